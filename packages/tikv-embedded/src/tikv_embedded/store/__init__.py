"""The side of a TiKV store: its services, the checks of a request, and the raw key-value actions."""
