"""What an action wants written, in TiKV's terms. Source: TiKV storage/mvcc/txn.rs MvccTxn."""

from __future__ import annotations

import attrs

from tikv_embedded.engine import CF_DEFAULT, CF_LOCK, CF_WRITE, WriteBatch
from tikv_embedded.mvcc.keys import append_ts, encode_key
from tikv_embedded.mvcc.lock import Lock
from tikv_embedded.mvcc.write import Write


@attrs.frozen
class Modifications:
    """Collects a batch; all keys are user keys."""

    batch: WriteBatch = attrs.field(factory=WriteBatch)

    def put_lock(self, key: bytes, lock: Lock) -> None:
        """Lock `key`, or replace its lock."""
        self.batch.put(CF_LOCK, encode_key(key), lock.to_bytes())

    def unlock(self, key: bytes) -> None:
        """Remove the lock on `key`."""
        self.batch.delete(CF_LOCK, encode_key(key))

    def put_value(self, key: bytes, start_ts: int, value: bytes) -> None:
        """Write a long value."""
        self.batch.put(CF_DEFAULT, append_ts(encode_key(key), start_ts), value)

    def delete_value(self, key: bytes, start_ts: int) -> None:
        """Remove a long value."""
        self.batch.delete(CF_DEFAULT, append_ts(encode_key(key), start_ts))

    def put_write(self, key: bytes, commit_ts: int, write: Write) -> None:
        """Write a record, or replace the one at `commit_ts`."""
        self.batch.put(CF_WRITE, append_ts(encode_key(key), commit_ts), write.to_bytes())

    def delete_write(self, key: bytes, commit_ts: int) -> None:
        """Remove a record."""
        self.batch.delete(CF_WRITE, append_ts(encode_key(key), commit_ts))
