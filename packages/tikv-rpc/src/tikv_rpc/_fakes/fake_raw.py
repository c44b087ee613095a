"""Raw key-value in memory: what a store of a `FakeCluster` does with raw requests once their Region is right."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, TypeAlias

import anyio
import attrs
from google.protobuf.message import Message
from tikv_proto import kvrpcpb
from tikv_proto.services import Rpc, Tikv

Bounds: TypeAlias = tuple[bytes, bytes]
"""First key and end of a Region, as keys travel; an empty end is unbounded."""


@attrs.frozen
class RawValue:
    """A value and the moment it vanishes."""

    value: bytes
    """The value."""
    expires_at: float = 0.0
    """Seconds on the backend's clock; 0 for never."""


class RawMap:
    """Column families of pairs, as all stores of a cluster share them. Keys are those that travel.

    TTLs are always on, and the checks by which a store refuses an argument are left out: tests script what they need.
    """

    def __init__(self) -> None:
        self._families: dict[str, dict[bytes, RawValue]] = {}
        self._answers: dict[Rpc[Any, Any], Callable[[Any, Bounds], Message]] = {
            Tikv.RawGet: self._get,
            Tikv.RawBatchGet: self._batch_get,
            Tikv.RawPut: self._put,
            Tikv.RawBatchPut: self._batch_put,
            Tikv.RawDelete: self._delete,
            Tikv.RawBatchDelete: self._batch_delete,
            Tikv.RawDeleteRange: self._delete_range,
            Tikv.RawScan: self._scan,
            Tikv.RawBatchScan: self._batch_scan,
            Tikv.RawGetKeyTTL: self._key_ttl,
            Tikv.RawCompareAndSwap: self._compare_and_swap,
            Tikv.RawChecksum: self._checksum,
        }

    def serves(self, rpc: Rpc[Any, Any]) -> bool:
        """Tell whether it answers an RPC."""
        return rpc in self._answers

    def answer(self, rpc: Rpc[Any, Any], request: Any, bounds: Bounds) -> Message:
        """Carry out a request within a Region."""
        return self._answers[rpc](request, bounds)

    def pairs(self, cf: str = "default") -> dict[bytes, bytes]:
        """Return the pairs of a column family by ascending key."""
        return {key: found.value for key, found in self._live(cf, b"", b"")}

    def put(self, key: bytes, value: bytes, *, cf: str = "default", ttl: int = 0) -> None:
        """Write a pair; it vanishes after `ttl` seconds, 0 for never."""
        self._families.setdefault(cf or "default", {})[key] = RawValue(value, anyio.current_time() + ttl if ttl else 0)

    def _find(self, cf: str, key: bytes) -> RawValue | None:
        found = self._families.get(cf or "default", {}).get(key)
        return found if found is not None and _is_live(found) else None

    def _remove(self, cf: str, keys: Iterable[bytes]) -> None:
        family = self._families.get(cf or "default", {})
        for key in keys:
            family.pop(key, None)

    def _live(self, cf: str, start: bytes, end: bytes) -> Iterator[tuple[bytes, RawValue]]:
        family = self._families.get(cf or "default", {})
        for key in sorted(family):
            if start <= key and (not end or key < end) and _is_live(family[key]):
                yield key, family[key]

    def _get(self, request: kvrpcpb.RawGetRequest, _bounds: Bounds) -> kvrpcpb.RawGetResponse:
        found = self._find(request.cf, request.key)
        return kvrpcpb.RawGetResponse(not_found=True) if found is None else kvrpcpb.RawGetResponse(value=found.value)

    def _batch_get(self, request: kvrpcpb.RawBatchGetRequest, _bounds: Bounds) -> kvrpcpb.RawBatchGetResponse:
        found = ((key, self._find(request.cf, key)) for key in request.keys)
        return kvrpcpb.RawBatchGetResponse(
            pairs=[kvrpcpb.KvPair(key=key, value=known.value) for key, known in found if known is not None]
        )

    def _put(self, request: kvrpcpb.RawPutRequest, _bounds: Bounds) -> kvrpcpb.RawPutResponse:
        self.put(request.key, request.value, cf=request.cf, ttl=request.ttl)
        return kvrpcpb.RawPutResponse()

    def _batch_put(self, request: kvrpcpb.RawBatchPutRequest, _bounds: Bounds) -> kvrpcpb.RawBatchPutResponse:
        ttls = list(request.ttls) if len(request.ttls) > 1 else [*request.ttls, 0][:1] * len(request.pairs)
        for pair, ttl in zip(request.pairs, ttls, strict=True):
            self.put(pair.key, pair.value, cf=request.cf, ttl=ttl)
        return kvrpcpb.RawBatchPutResponse()

    def _delete(self, request: kvrpcpb.RawDeleteRequest, _bounds: Bounds) -> kvrpcpb.RawDeleteResponse:
        self._remove(request.cf, [request.key])
        return kvrpcpb.RawDeleteResponse()

    def _batch_delete(self, request: kvrpcpb.RawBatchDeleteRequest, _bounds: Bounds) -> kvrpcpb.RawBatchDeleteResponse:
        self._remove(request.cf, request.keys)
        return kvrpcpb.RawBatchDeleteResponse()

    def _delete_range(self, request: kvrpcpb.RawDeleteRangeRequest, bounds: Bounds) -> kvrpcpb.RawDeleteRangeResponse:
        part = _within(request.start_key, request.end_key, bounds)
        self._remove(request.cf, [key for key, _ in self._live(request.cf, *part)])
        return kvrpcpb.RawDeleteRangeResponse()

    def _scan(self, request: kvrpcpb.RawScanRequest, bounds: Bounds) -> kvrpcpb.RawScanResponse:
        return kvrpcpb.RawScanResponse(
            kvs=self._pairs(request, request.start_key, request.end_key, request.limit, bounds)
        )

    def _batch_scan(self, request: kvrpcpb.RawBatchScanRequest, bounds: Bounds) -> kvrpcpb.RawBatchScanResponse:
        response = kvrpcpb.RawBatchScanResponse()
        following = [*(span.start_key for span in request.ranges), b""][1:]
        for span, after in zip(request.ranges, following, strict=True):
            end = span.end_key or after
            if end and (span.start_key <= end if request.reverse else span.start_key >= end):
                invalid = kvrpcpb.KvPair(error=kvrpcpb.KeyError(abort="Invalid KeyRanges"))
                return kvrpcpb.RawBatchScanResponse(kvs=[invalid])
            response.kvs.extend(self._pairs(request, span.start_key, end, request.each_limit, bounds))
        return response

    def _pairs(
        self,
        request: kvrpcpb.RawScanRequest | kvrpcpb.RawBatchScanRequest,
        start: bytes,
        end: bytes,
        limit: int,
        bounds: Bounds,
    ) -> list[kvrpcpb.KvPair]:
        lower, upper = (end, start) if request.reverse else (start, end)
        found = list(self._live(request.cf, *_within(lower, upper, bounds)))
        if request.reverse:
            found.reverse()
        return [kvrpcpb.KvPair(key=key, value=b"" if request.key_only else known.value) for key, known in found[:limit]]

    def _key_ttl(self, request: kvrpcpb.RawGetKeyTTLRequest, _bounds: Bounds) -> kvrpcpb.RawGetKeyTTLResponse:
        found = self._find(request.cf, request.key)
        if found is None:
            return kvrpcpb.RawGetKeyTTLResponse(not_found=True)
        left = max(int(found.expires_at - anyio.current_time()), 1) if found.expires_at else 0
        return kvrpcpb.RawGetKeyTTLResponse(ttl=left)

    def _compare_and_swap(self, request: kvrpcpb.RawCASRequest, _bounds: Bounds) -> kvrpcpb.RawCASResponse:
        found = self._find(request.cf, request.key)
        previous = None if found is None else found.value
        expected = None if request.previous_not_exist else request.previous_value
        if previous == expected:
            if request.delete:
                self._remove(request.cf, [request.key])
            else:
                self.put(request.key, request.value, cf=request.cf, ttl=request.ttl)
        return kvrpcpb.RawCASResponse(
            succeed=previous == expected, previous_not_exist=previous is None, previous_value=previous or b""
        )

    def _checksum(self, request: kvrpcpb.RawChecksumRequest, bounds: Bounds) -> kvrpcpb.RawChecksumResponse:
        response = kvrpcpb.RawChecksumResponse()
        for span in request.ranges:
            for key, known in self._live("default", *_within(span.start_key, span.end_key, bounds)):
                response.checksum ^= crc64(key + known.value)
                response.total_kvs += 1
                response.total_bytes += len(key) + len(known.value)
        return response


def crc64(data: bytes) -> int:
    """Return the CRC-64 (XZ) of `data`, the one RawChecksum is made of."""
    crc = _ONES
    for byte in data:
        crc = _crc64_of_byte((crc ^ byte) & 0xFF) ^ (crc >> 8)
    return crc ^ _ONES


_ONES = 0xFFFFFFFFFFFFFFFF


@cache
def _crc64_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (0xC96C5795D7870F42 if byte & 1 else 0)
    return byte


def _is_live(found: RawValue) -> bool:
    return not found.expires_at or anyio.current_time() < found.expires_at


def _within(start: bytes, end: bytes, bounds: Bounds) -> Bounds:
    """Return what of a range lies in a Region, the part TiKV looks at."""
    ends = [bound for bound in (end, bounds[1]) if bound]
    return max(start, bounds[0]), min(ends, default=b"")
