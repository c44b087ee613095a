"""Region and store caches and key codecs for TiKV clients."""
