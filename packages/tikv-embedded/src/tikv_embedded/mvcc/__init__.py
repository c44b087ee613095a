"""Transactions as TiKV stores them: records, reads, and one module per action.

`keys`, `lock` and `write` are the bytes in the engine; `reader` finds records in a snapshot, `snapshot_read` what a
reader at a timestamp sees; `actions` decide what a request changes. Nothing here awaits or writes: an action takes a
`TxnContext` and a request, and returns the response and a `WriteBatch`, or raises `MvccError`.
"""
