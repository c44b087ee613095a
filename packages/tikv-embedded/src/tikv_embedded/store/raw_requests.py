"""From a raw request to its response: the checks of the store around the pure actions of `tikv_embedded.store.raw`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import attrs
from tikv_proto import errorpb, kvrpcpb

from tikv_embedded import memcomparable
from tikv_embedded.engine import Snapshot, WriteBatch
from tikv_embedded.region import Region
from tikv_embedded.store.api_mode import ApiMode
from tikv_embedded.store.raw import RAW_ACTIONS, RawContext
from tikv_embedded.store.region_checks import check_keys, check_range, check_region, check_seeks, deadline_error
from tikv_embedded.topology import Topology


class ClusterIdMismatchError(Exception):
    """A request names another cluster; it ends its call, or its whole stream, with INVALID_ARGUMENT."""

    @classmethod
    def of(cls, needed: int, sent: int) -> Self:
        """Return the error for a request that names the cluster `sent`."""
        return cls(f"cluster id mismatch, need {needed} but got {sent}")


@attrs.frozen
class RawRule:
    """How one kind of raw request is served."""

    response: type[Any]
    """Class of the response; all have a `region_error`."""
    keys: Callable[[Any], Sequence[bytes]]
    """The user keys of a request that decide whether it is in its Region."""
    check: Callable[[Region, Sequence[bytes]], errorpb.Error | None]
    """Looks at them, encoded like the bounds."""
    is_read: bool = False
    """Whether replicas may answer it when asked to."""


def _key(request: Any) -> Sequence[bytes]:
    return (request.key,)


def _keys(request: Any) -> Sequence[bytes]:
    return list(request.keys)


def _pairs(request: Any) -> Sequence[bytes]:
    return [pair.key for pair in request.pairs]


def _start(request: Any) -> Sequence[bytes]:
    """A scan is cut at the bounds, so only where it begins matters; an empty start is a bound itself."""
    return (request.start_key,) if request.start_key else ()


def _starts(request: Any) -> Sequence[bytes]:
    return [span.start_key for span in request.ranges if span.start_key]


def _range(request: Any) -> Sequence[bytes]:
    return request.start_key, request.end_key


def _check_range(region: Region, keys: Sequence[bytes]) -> errorpb.Error | None:
    start_key, end_key = keys
    return check_range(region, start_key, end_key)


RAW_RULES: dict[type[Any], RawRule] = {
    kvrpcpb.RawGetRequest: RawRule(kvrpcpb.RawGetResponse, _key, check_keys, is_read=True),
    kvrpcpb.RawBatchGetRequest: RawRule(kvrpcpb.RawBatchGetResponse, _keys, check_keys, is_read=True),
    kvrpcpb.RawScanRequest: RawRule(kvrpcpb.RawScanResponse, _start, check_seeks, is_read=True),
    kvrpcpb.RawBatchScanRequest: RawRule(kvrpcpb.RawBatchScanResponse, _starts, check_seeks, is_read=True),
    kvrpcpb.RawGetKeyTTLRequest: RawRule(kvrpcpb.RawGetKeyTTLResponse, _key, check_keys, is_read=True),
    kvrpcpb.RawChecksumRequest: RawRule(kvrpcpb.RawChecksumResponse, _starts, check_seeks, is_read=True),
    kvrpcpb.RawPutRequest: RawRule(kvrpcpb.RawPutResponse, _key, check_keys),
    kvrpcpb.RawBatchPutRequest: RawRule(kvrpcpb.RawBatchPutResponse, _pairs, check_keys),
    kvrpcpb.RawDeleteRequest: RawRule(kvrpcpb.RawDeleteResponse, _key, check_keys),
    kvrpcpb.RawBatchDeleteRequest: RawRule(kvrpcpb.RawBatchDeleteResponse, _keys, check_keys),
    kvrpcpb.RawDeleteRangeRequest: RawRule(kvrpcpb.RawDeleteRangeResponse, _range, _check_range),
    kvrpcpb.RawCASRequest: RawRule(kvrpcpb.RawCASResponse, _key, check_keys),
}
"""Every raw request a store serves; RawCoprocessor is none of them."""


@attrs.frozen
class RawStore:
    """Serves the raw requests of one store. Nothing here awaits or writes."""

    topology: Topology
    mode: ApiMode
    next_ts: Callable[[], int]
    store_id: int
    clock: Callable[[], float] = time.monotonic
    """Seconds; deadlines are measured with it."""
    wall_clock: Callable[[], float] = time.time
    """Unix seconds; pairs expire by it."""

    def session(self, snapshot: Snapshot) -> RawSession:
        """Return what serves requests from that snapshot; for one step of the loop."""
        return RawSession(self, snapshot)


class RawSession:
    """Serves the requests that arrived together from one snapshot, as of one time."""

    def __init__(self, store: RawStore, snapshot: Snapshot) -> None:
        self._store_id = store.store_id
        self._topology = store.topology
        self._regions = store.topology.regions
        self._snapshot = snapshot
        self._mode = store.mode
        self._next_ts = store.next_ts
        self._now = store.wall_clock()
        self._clock = store.clock
        self._received = store.clock()
        self._contexts: dict[int, RawContext] = {}
        self._is_v2 = store.mode is ApiMode.V2

    def run(self, rule: RawRule, request: Any) -> tuple[Any, WriteBatch | None]:
        """Return the response and what to write before it is sent.

        Raises:
            ClusterIdMismatchError: the request is for another cluster.
        """
        context = request.context
        if context.cluster_id and context.cluster_id != self._topology.cluster_id:
            raise ClusterIdMismatchError.of(self._topology.cluster_id, context.cluster_id)
        region = self._led_region(context) or check_region(
            self._topology, self._store_id, context, is_read=rule.is_read
        )
        if not isinstance(region, Region):
            return rule.response(region_error=region), None
        error = self._late(context) or self._misplaced(rule, region, request)
        if error is not None:
            return rule.response(region_error=error), None
        return RAW_ACTIONS[type(request)](self._raw_context(region), request)

    def _led_region(self, context: kvrpcpb.Context) -> Region | None:
        """Return the Region if every check of `check_region` passes at a glance, which is nearly always."""
        region = self._regions.get(context.region_id)
        if region is None or region.leader is None or context.term:
            return None
        leader, peer = region.leader, context.peer
        if peer.id != leader.id or peer.store_id != leader.store_id or leader.store_id != self._store_id:
            return None
        return region if context.region_epoch.version == region.epoch.version else None

    def _late(self, context: kvrpcpb.Context) -> errorpb.Error | None:
        if not context.max_execution_duration_ms:
            return None
        return deadline_error(context, (self._clock() - self._received) * 1000)

    def _misplaced(self, rule: RawRule, region: Region, request: Any) -> errorpb.Error | None:
        """Return the error of a key outside the Region; keys that the action refuses anyway fit no bounds."""
        keys = rule.keys(request)
        if not self._is_v2:
            return rule.check(region, keys) if not request.context.api_version else None
        if request.context.api_version != kvrpcpb.APIVersion.V2 or not keys or keys[0][:1] != b"r":
            return None
        return rule.check(region, [memcomparable.encode(key) for key in keys])

    def _raw_context(self, region: Region) -> RawContext:
        known = self._contexts.get(region.id)
        if known is None:
            known = self._contexts[region.id] = RawContext(
                snapshot=self._snapshot,
                mode=self._mode,
                now=self._now,
                region_id=region.id,
                region_start=region.start_key,
                region_end=region.end_key,
                next_ts=self._next_ts,
            )
        return known
