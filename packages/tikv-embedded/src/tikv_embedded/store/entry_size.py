"""How much one write may carry."""

from __future__ import annotations

from tikv_proto import errorpb

from tikv_embedded.engine import WriteBatch

MAX_ENTRY_SIZE = 8 * 1024 * 1024
"""Most bytes of keys and values one write may carry; TiKV's `raftstore.raft-entry-max-size`."""


def entry_error(region_id: int, batch: WriteBatch) -> errorpb.Error | None:
    """Return the Region error for a write that does not fit a raft entry, None for one that does."""
    size = sum(len(key) + len(value) for _, _, key, value in batch)
    if size <= MAX_ENTRY_SIZE:
        return None
    return errorpb.Error(
        message=f"raft entry is too large, region {region_id}, entry size {size}",
        raft_entry_too_large=errorpb.RaftEntryTooLarge(region_id=region_id, entry_size=size),
    )
