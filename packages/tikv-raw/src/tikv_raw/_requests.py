"""Lowering: arguments to requests, answers to results. No I/O, no retries.

Keys are encoded here and nowhere else; the default column family has no name on the wire.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial, reduce
from operator import xor
from typing import Any, Protocol

import attrs
from tikv_pd import TikvError
from tikv_proto import kvrpcpb, services
from tikv_region import KeyCodec, KeyRange, Redaction, redact
from tikv_rpc import Edge, Effect, KeyWork, RangeWork, Request
from tikv_rpc.frontend.paging import Page, rest_of_scan, scan_bounds
from tikv_rpc.request import field, head

from tikv_raw.config import RawConfig
from tikv_raw.errors import RawError

# Bytes a pair adds to a request besides its key and value: tags, lengths, a TTL.
_PAIR_OVERHEAD = 16


@attrs.frozen
class CasResult:
    """What a compare-and-swap found and did. True if it swapped."""

    swapped: bool
    """Whether the value was written."""
    previous: bytes | None
    """The value found, None when the key was missing."""

    def __bool__(self) -> bool:
        return self.swapped


@attrs.frozen
class Checksum:
    """A checksum over pairs, independent of their order. Source: kvrpcpb.RawChecksumResponse."""

    crc64_xor: int
    """CRC-64 (XZ) of key then value of each pair, all xor-ed. Under API v2 a key has its 4-byte prefix."""
    total_kvs: int
    """Number of pairs."""
    total_bytes: int
    """Bytes of keys and values. Under API v2 a key has its 4-byte prefix."""


@attrs.frozen
class RawRequests:
    """Makes the requests of one client."""

    codec: KeyCodec
    atomic: bool

    def get(self, key: bytes, cf: str) -> bytes:
        """Return a RawGetRequest, serialized."""
        return field(2, self.codec.encode_key(key)) + _get_options(cf)

    def ttl(self, key: bytes, cf: str) -> bytes:
        """Return a RawGetKeyTTLRequest, serialized."""
        return kvrpcpb.RawGetKeyTTLRequest(key=self.codec.encode_key(key), cf=cf).SerializeToString()

    def put(self, key: bytes, value: bytes, ttl: int, cf: str) -> bytes:
        """Return a RawPutRequest, serialized."""
        return field(2, self.codec.encode_key(key)) + field(3, value) + _put_options(cf, ttl, self.atomic)

    def delete(self, key: bytes, cf: str) -> bytes:
        """Return a RawDeleteRequest, serialized."""
        message = kvrpcpb.RawDeleteRequest(key=self.codec.encode_key(key), cf=cf, for_cas=self.atomic)
        return message.SerializeToString()

    def compare_and_swap(
        self, key: bytes, expected: bytes | None, value: bytes | None, ttl: int, cf: str
    ) -> Request[kvrpcpb.RawCASResponse]:
        """Write one pair, or remove it when there is no value, if the key holds the expected value."""
        message = kvrpcpb.RawCASRequest(
            key=self.codec.encode_key(key),
            value=value or b"",
            delete=value is None,
            previous_not_exist=expected is None,
            previous_value=expected or b"",
            ttl=ttl,
            cf=cf,
        )
        return Request(services.Tikv.RawCompareAndSwap, message, Effect.ONCE)

    def batch_get(
        self, keys: Sequence[bytes], cf: str, max_keys: int, max_bytes: int, expected: int = 0
    ) -> KeyWork[kvrpcpb.RawBatchGetResponse]:
        """Read many keys, each of whose pairs is expected to have so many bytes in the answer."""
        encode = self.codec.encode_key

        def build(part: Sequence[int]) -> Request[kvrpcpb.RawBatchGetResponse]:
            message = kvrpcpb.RawBatchGetRequest(keys=[encode(keys[position]) for position in part], cf=cf)
            return Request(services.Tikv.RawBatchGet, message, Effect.READ)

        if max(map(len, keys), default=0) + _PAIR_OVERHEAD <= expected:
            sizes = [expected] * len(keys)
        else:
            sizes = [max(len(key) + _PAIR_OVERHEAD, expected) for key in keys]
        return KeyWork(keys, build, max_keys, max_bytes, sizes)

    def batch_put(
        self,
        keys: Sequence[bytes],
        values: Sequence[bytes],
        ttls: Sequence[int] | int,
        cf: str,
        max_keys: int,
        max_bytes: int,
    ) -> KeyWork[kvrpcpb.RawBatchPutResponse]:
        """Write many pairs, with one TTL or one for each."""
        encode = self.codec.encode_key

        def build(part: Sequence[int]) -> Request[kvrpcpb.RawBatchPutResponse]:
            pieces: list[bytes] = []
            for position in part:
                key, value = encode(keys[position]), values[position]
                before_key, before_value = _pair_heads(len(key), len(value))
                pieces += (before_key, key, before_value, value)
            options = kvrpcpb.RawBatchPutRequest(ttls=_part_of(ttls, part), cf=cf, for_cas=self.atomic)
            pieces.append(options.SerializeToString())
            return Request(services.Tikv.RawBatchPut, b"".join(pieces), Effect.WRITE)

        sizes = [len(key) + len(value) + _PAIR_OVERHEAD for key, value in zip(keys, values, strict=True)]
        return KeyWork(keys, build, max_keys, max_bytes, sizes)

    def batch_delete(
        self, keys: Sequence[bytes], cf: str, max_keys: int, max_bytes: int
    ) -> KeyWork[kvrpcpb.RawBatchDeleteResponse]:
        """Remove many keys."""
        encode = self.codec.encode_key

        def build(part: Sequence[int]) -> Request[kvrpcpb.RawBatchDeleteResponse]:
            message = kvrpcpb.RawBatchDeleteRequest(
                keys=[encode(keys[position]) for position in part], cf=cf, for_cas=self.atomic
            )
            return Request(services.Tikv.RawBatchDelete, message, Effect.WRITE)

        return KeyWork(keys, build, max_keys, max_bytes, [len(key) + _PAIR_OVERHEAD for key in keys])

    def delete_range(self, key_range: KeyRange, cf: str) -> RangeWork[kvrpcpb.RawDeleteRangeResponse]:
        """Remove every key of a range."""

        def build(part: KeyRange) -> Request[kvrpcpb.RawDeleteRangeResponse]:
            start, end = self.codec.encode_range(part.start, part.end)
            message = kvrpcpb.RawDeleteRangeRequest(start_key=start, end_key=end, cf=cf)
            return Request(services.Tikv.RawDeleteRange, message, Effect.WRITE)

        return RangeWork(key_range, build)

    def coprocessor(
        self, name: str, version: str, ranges: Sequence[KeyRange], data: bytes, effect: Effect
    ) -> Request[kvrpcpb.RawCoprocessorResponse]:
        """Have a plugin of the store work on ranges that lie in one Region."""
        message = kvrpcpb.RawCoprocessorRequest(
            copr_name=name, copr_version_req=version, ranges=self._ranges(ranges), data=data
        )
        return Request(services.Tikv.RawCoprocessor, message, effect)

    def checksum(self, key_range: KeyRange) -> RangeWork[kvrpcpb.RawChecksumResponse]:
        """Compute a checksum over a range."""

        def build(part: KeyRange) -> Request[kvrpcpb.RawChecksumResponse]:
            start, end = self.codec.encode_range(part.start, part.end)
            message = kvrpcpb.RawChecksumRequest(
                algorithm=kvrpcpb.ChecksumAlgorithm.Crc64_Xor,
                ranges=[kvrpcpb.KeyRange(start_key=start, end_key=end)],
            )
            return Request(services.Tikv.RawChecksum, message, Effect.READ)

        return RangeWork(key_range, build)

    def scan(
        self, key_range: KeyRange, limit: int, *, reverse: bool, key_only: bool, cf: str
    ) -> Edge[kvrpcpb.RawScanResponse]:
        """Read the first pairs of a range in the order of the scan, as far as one Region holds them."""

        def build(part: KeyRange) -> Request[kvrpcpb.RawScanResponse]:
            start, end = scan_bounds(self.codec.encode_range(part.start, part.end), reverse=reverse)
            message = kvrpcpb.RawScanRequest(
                start_key=start, end_key=end, limit=limit, key_only=key_only, reverse=reverse, cf=cf
            )
            return Request(services.Tikv.RawScan, message, Effect.READ)

        return Edge(key_range, at_end=reverse, request=build)

    @classmethod
    def of(cls, codec: KeyCodec, config: RawConfig, *, atomic: bool) -> RawRequests:
        """Make them for a client of these options; its writes may be ordered with compare-and-swaps."""
        redaction = config.rpc.redact
        if redaction == "off":
            return cls(codec, atomic)
        return _RedactedRequests(codec, atomic, redaction)

    def scan_all(
        self, ranges: Sequence[KeyRange], limit: int, *, reverse: bool, key_only: bool, cf: str
    ) -> Request[Any]:
        """Read up to `limit` pairs of each of some ranges that lie in one Region, disjoint and in scan order.

        The response has the pairs in `kvs`, one range after the other.
        """
        if len(ranges) == 1:
            return self.scan(ranges[0], limit, reverse=reverse, key_only=key_only, cf=cf).request(ranges[0])
        message = kvrpcpb.RawBatchScanRequest(
            ranges=self._ranges(ranges, reverse=reverse), each_limit=limit, key_only=key_only, reverse=reverse, cf=cf
        )
        return Request(services.Tikv.RawBatchScan, message, Effect.READ)

    def _ranges(self, ranges: Iterable[KeyRange], *, reverse: bool = False) -> list[kvrpcpb.KeyRange]:
        bounds = (scan_bounds(self.codec.encode_range(each.start, each.end), reverse=reverse) for each in ranges)
        return [kvrpcpb.KeyRange(start_key=start, end_key=end) for start, end in bounds]

    def pairs(self, operation: str, pairs: Iterable[kvrpcpb.KvPair]) -> list[tuple[bytes, bytes]]:
        """Return answered pairs with the keys that users know.

        Raises:
            RawError: the store reports a failure in place of a pair.
        """
        decode = self.codec.decode_key
        result = []
        for pair in pairs:
            value = pair.value
            # Only a pair without a value can be an error; asking each takes time.
            if not value and pair.HasField("error"):
                raise RawError(operation, pair.error.abort or str(pair.error).strip())
            result.append((decode(pair.key), value))
        return result

    def page(
        self, covered: KeyRange, response: kvrpcpb.RawScanResponse, asked: KeyRange, limit: int, *, reverse: bool
    ) -> Page:
        """Return a page of a scan: what the Region at the edge of `asked` holds, up to `limit` pairs."""
        pairs = response.kvs
        is_full = len(pairs) >= limit and not pairs[-1].HasField("error")
        last = self.codec.decode_key(pairs[-1].key) if is_full else None
        rest = rest_of_scan(asked, covered, last, reverse=reverse)
        return Page(len(pairs), rest, partial(self.pairs, "scan", pairs))


@attrs.frozen
class _RedactedRequests(RawRequests):
    """Those of a client whose errors do not show keys; what goes wrong after a plan has none around it."""

    redaction: Redaction

    def pairs(self, operation: str, pairs: Iterable[kvrpcpb.KvPair]) -> list[tuple[bytes, bytes]]:
        """Return answered pairs with the keys that users know."""
        try:
            return RawRequests.pairs(self, operation, pairs)
        except TikvError as error:
            redact(error, self.redaction)
            raise


def _part_of(ttls: Sequence[int] | int, part: Sequence[int]) -> list[int]:
    """Return the TTLs of the pairs at some positions as the wire has them: none, one for all, or one for each."""
    own = [ttls] if isinstance(ttls, int) else [ttls[position] for position in part]
    if len(set(own)) == 1:
        return own[:1] if own[0] else []
    return own


# What nearly all requests have in common is serialized once, or once for each; keys and values are joined in front of
# it. Messages that hold them would take three times as long.


@lru_cache(maxsize=16)
def _get_options(cf: str) -> bytes:
    return kvrpcpb.RawGetRequest(cf=cf).SerializeToString()


@lru_cache(maxsize=1024)
def _put_options(cf: str, ttl: int, for_cas: bool) -> bytes:  # called once, in the order of the fields
    return kvrpcpb.RawPutRequest(ttl=ttl, cf=cf, for_cas=for_cas).SerializeToString()


@lru_cache(maxsize=4096)
def _pair_heads(key_size: int, value_size: int) -> tuple[bytes, bytes]:
    """Return what stands before the key and before the value of a pair in RawBatchPutRequest.pairs."""
    before_key, before_value = head(2, key_size), head(3, value_size)
    return head(2, len(before_key) + key_size + len(before_value) + value_size) + before_key, before_value


class _Refusable(Protocol):
    @property
    def error(self) -> str: ...


def accept(operation: str, response: _Refusable) -> None:
    """Raise RawError when the store refused."""
    if response.error:
        raise RawError(operation, response.error)


def refusal(response: Any) -> str:
    """Return why the store refused, empty when it did not."""
    error: str = response.error
    return error


def merge_checksums(answers: Iterable[tuple[KeyRange, kvrpcpb.RawChecksumResponse]]) -> Checksum:
    """Return the checksum of all parts together."""
    responses = [response for _, response in answers]
    for response in responses:
        accept("checksum", response)
    return Checksum(
        reduce(xor, (response.checksum for response in responses), 0),
        sum(response.total_kvs for response in responses),
        sum(response.total_bytes for response in responses),
    )
