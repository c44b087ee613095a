"""What `PdClient` offers in parts: garbage collection, keyspaces, meta storage, resource groups, HTTP."""
