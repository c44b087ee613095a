"""What of a request and its response decides what they cost, read from the messages.

Reads and writes of transactions are charged as client-go charges them, since groups are shared with its users, such
as TiDB. Raw requests are charged by what they carry: client-go takes their writes for empty ones, a compare-and-swap,
a batch of deletes and a range of them for reads, and all reads for empty ones, which lets a raw client write any
amount for the price of its number of requests. That has no effect there, as its raw client knows no resource control;
here it would. TiKV makes no difference between the two kinds either: what it is told of bytes written on other stores
counts against the group in its scheduling, for raw requests as well (resource_group.rs, consume_penalty).

Keys count as they are stored, with the prefix of their keyspace: four bytes more than in client-go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tikv_proto import kvrpcpb
from tikv_proto.services import Rpc, Tikv

from tikv_rpc.resource_control.cost import ResponseInfo


def _prewrite_bytes(request: kvrpcpb.PrewriteRequest) -> int:
    mutations = sum(len(each.key) + len(each.value) for each in request.mutations)
    return mutations + len(request.primary_lock) + sum(map(len, request.secondaries))


def _keys_bytes(request: kvrpcpb.CommitRequest | kvrpcpb.RawBatchDeleteRequest) -> int:
    return sum(map(len, request.keys))


def _pair_bytes(request: kvrpcpb.RawPutRequest | kvrpcpb.RawCASRequest) -> int:
    return len(request.key) + len(request.value)


def _pairs_bytes(request: kvrpcpb.RawBatchPutRequest) -> int:
    return sum(len(pair.key) + len(pair.value) for pair in request.pairs)


def _key_bytes(request: kvrpcpb.RawDeleteRequest) -> int:
    return len(request.key)


_WRITE_BYTES: Final[Mapping[Rpc[Any, Any], Callable[[Any], int]]] = {
    Tikv.KvPrewrite: _prewrite_bytes,
    Tikv.KvCommit: _keys_bytes,
    Tikv.RawPut: _pair_bytes,
    Tikv.RawBatchPut: _pairs_bytes,
    Tikv.RawDelete: _key_bytes,
    Tikv.RawBatchDelete: _keys_bytes,
    Tikv.RawCompareAndSwap: _pair_bytes,
}
"""What writes write, in bytes. Source: client-go MakeRequestInfo, for transactions."""

_EMPTY_WRITES: Final = frozenset(
    {
        Tikv.KvPessimisticLock,
        Tikv.KvBatchRollback,
        Tikv.KVPessimisticRollback,
        Tikv.KvCheckTxnStatus,
        Tikv.KvCheckSecondaryLocks,
        Tikv.KvCleanup,
        Tikv.KvTxnHeartBeat,
        Tikv.KvResolveLock,
        Tikv.KvPrepareFlashbackToVersion,
        Tikv.KvFlashbackToVersion,
        Tikv.KvFlush,
        # A range is removed without reading or writing what is in it.
        Tikv.RawDeleteRange,
    }
)
"""Other writes, charged as if they wrote no bytes; every other RPC is a read. Source: client-go IsTxnWriteRequest."""

_DETAILED: Final = frozenset({Tikv.KvGet, Tikv.KvBatchGet})
"""Reads whose responses tell what they cost, if anything does."""
_SIZED: Final = frozenset({Tikv.KvScan, Tikv.RawGet, Tikv.RawBatchGet, Tikv.RawScan, Tikv.RawBatchScan})
"""Reads whose responses do not: their size stands for it."""


def written_bytes(rpc: Rpc[Any, Any], payload: bytes) -> int | None:
    """Return the bytes a request writes; None for a read.

    Args:
        rpc: Which RPC it is.
        payload: The request, serialized.
    """
    measure = _WRITE_BYTES.get(rpc)
    if measure is not None:
        return measure(rpc.request.FromString(payload))
    return 0 if rpc in _EMPTY_WRITES else None


def response_info(rpc: Rpc[Any, Any], response: Any) -> ResponseInfo:
    """Return what a response says of the cost of its request. Source: client-go MakeResponseInfo."""
    size = response.ByteSize()
    if rpc in _DETAILED:
        return _detailed(response.exec_details_v2, 0, size)
    if rpc in _SIZED:
        # A region error is no data.
        return ResponseInfo(read_bytes=0 if response_has_region_error(response) else size, size=size)
    if rpc is Tikv.Coprocessor:
        whole = _detailed(response.exec_details_v2, len(response.data), size)
        cpu_ms = whole.cpu_ms
        if not _tells_time(response.exec_details_v2):
            cpu_ms = float(response.exec_details.time_detail.process_wall_time_ms)
        # Tasks that traveled together are not part of the details of the whole.
        parts = [_detailed(part.exec_details_v2, len(part.data), 0) for part in response.batch_responses]
        return ResponseInfo(
            read_bytes=whole.read_bytes + sum(part.read_bytes for part in parts),
            cpu_ms=cpu_ms + sum(part.cpu_ms for part in parts),
            size=size,
        )
    return ResponseInfo(size=size)


def response_has_region_error(response: Any) -> bool:
    """Tell whether a response is nothing but a region error."""
    return "region_error" in response.DESCRIPTOR.fields_by_name and response.HasField("region_error")


def counters_of(response: Any) -> kvrpcpb.RUV2 | None:
    """Return what the store counted for the second model, None when it did not."""
    if "exec_details_v2" not in response.DESCRIPTOR.fields_by_name:
        return None
    details: kvrpcpb.ExecDetailsV2 = response.exec_details_v2
    return details.ru_v2 if details.HasField("ru_v2") else None


def _tells_time(details: kvrpcpb.ExecDetailsV2) -> bool:
    return details.HasField("time_detail_v2") or details.HasField("time_detail")


def _detailed(details: kvrpcpb.ExecDetailsV2, data: int, size: int) -> ResponseInfo:
    """Return what execution details tell; `data` stands for the bytes read where they do not."""
    read_bytes = details.scan_detail_v2.processed_versions_size if details.HasField("scan_detail_v2") else data
    if details.HasField("time_detail_v2"):
        cpu_ms = details.time_detail_v2.process_wall_time_ns / 1e6
    else:
        cpu_ms = float(details.time_detail.process_wall_time_ms)
    return ResponseInfo(read_bytes=read_bytes, cpu_ms=cpu_ms, size=size)
