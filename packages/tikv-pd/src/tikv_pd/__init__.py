"""The Placement Driver client of TiKV: members, timestamps, Regions, stores, keyspaces."""
