"""A TiKV-compatible cluster (PD and stores over gRPC, in memory or durable) in one process."""
