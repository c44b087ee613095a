"""The request engine of TiKV clients: connections, BatchCommands, retries, plans."""
