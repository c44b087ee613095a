"""Lowering of reads: arguments to requests. No I/O, no retries."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from tikv_proto import kvrpcpb, services
from tikv_region import KeyCodec, KeyRange
from tikv_rpc import Effect, Request
from tikv_rpc.frontend.paging import scan_bounds


@attrs.frozen
class ReadRequests:
    """Makes the requests of snapshots."""

    codec: KeyCodec

    def get(self, key: bytes, ts: int, context: bytes, *, need_commit_ts: bool = False) -> Request[kvrpcpb.GetResponse]:
        """Read one key."""
        message = kvrpcpb.GetRequest(key=self.codec.encode_key(key), version=ts, need_commit_ts=need_commit_ts)
        return Request(services.Tikv.KvGet, message, Effect.READ, context)

    def batch_get(
        self, keys: Sequence[bytes], ts: int, context: bytes, *, need_commit_ts: bool = False
    ) -> Request[kvrpcpb.BatchGetResponse]:
        """Read keys of one Region."""
        encoded = [self.codec.encode_key(key) for key in keys]
        message = kvrpcpb.BatchGetRequest(keys=encoded, version=ts, need_commit_ts=need_commit_ts)
        return Request(services.Tikv.KvBatchGet, message, Effect.READ, context)

    def scan(
        self,
        part: KeyRange,
        ts: int,
        context: bytes,
        limit: int,
        *,
        reverse: bool = False,
        key_only: bool = False,
        sample_step: int = 0,
    ) -> Request[kvrpcpb.ScanResponse]:
        """Read up to `limit` pairs of a range in one Region."""
        start, end = scan_bounds(self.codec.encode_range(part.start, part.end), reverse=reverse)
        message = kvrpcpb.ScanRequest(
            start_key=start,
            end_key=end,
            limit=limit,
            version=ts,
            key_only=key_only,
            reverse=reverse,
            sample_step=sample_step,
        )
        return Request(services.Tikv.KvScan, message, Effect.READ, context)
