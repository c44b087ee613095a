"""TiKV as a key-value store: the raw client, async and sync."""
