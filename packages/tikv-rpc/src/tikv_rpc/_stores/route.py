"""The way of one attempt: a connection, and the Context that goes in front of the request."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

from tikv_proto import kvrpcpb
from tikv_region import KeyCodec, RegionEntry, StoreEntry

from tikv_rpc._stores.replicas import Access, Target
from tikv_rpc._stores.store import StoreClient
from tikv_rpc.options import RequestOptions, milliseconds
from tikv_rpc.request import Effect, Request, field

EXECUTION_SHARE: Final = 2 / 3
"""Part of an attempt's time within which a store must begin its work. Source: client-go, 20 s of a write's 30 s.

A store must not still begin a write that the client has given up and sent again: it would undo what came after.
"""


class Route:
    """The way to a replica of a Region."""

    __slots__ = ("base", "client", "context", "fields", "forward", "options", "store", "target")

    def __init__(
        self,
        target: Target,
        store: StoreEntry,
        client: StoreClient,
        base: bytes,
        options: RequestOptions,
        added: bytes = b"",
        forward: str = "",
    ) -> None:
        self.target = target
        """Which replica, and how it is asked."""
        self.store = store
        """The store whose connection is used, as the cache knows it: the replica's own, or the proxy's."""
        self.client = client
        """The connection."""
        self.base = base
        """The fields of Context that name the replica."""
        self.serve(options, added)
        self.forward = forward
        """The address the store passes the request on to; empty when it serves it itself."""

    def serve(self, options: RequestOptions, added: bytes = b"") -> None:
        """Make the Context for requests with other options; `added` are fields of this attempt alone."""
        self.options = options
        """What the Context was made for."""
        self.fields = self.base + options.context + added
        """The Context, serialized."""
        self.context = framed(self.fields)
        """The same as field 1 of the request."""


class Routes:
    """The ways to a Region's replicas, kept on its cache entry until another peer leads."""

    __slots__ = ("bases", "leader")

    def __init__(self) -> None:
        self.leader: Route | None = None
        """The way of a plain request to the leader."""
        self.bases: dict[int, bytes] = {}
        """The fields of Context that name a replica, by its position."""

    @classmethod
    def of(cls, entry: RegionEntry) -> Routes:
        """Return those kept on an entry."""
        routes = entry.attachment
        if not isinstance(routes, cls):
            routes = entry.attachment = cls()
        return routes


def replica_context(cluster_id: int, codec: KeyCodec, entry: RegionEntry, index: int, attempt_timeout: float) -> bytes:
    """Return the fields of Context for a replica of a Region, without what options and attempts add."""
    return kvrpcpb.Context(
        region_id=entry.id,
        region_epoch=entry.epoch.to_pb(),
        peer=entry.peers[index].to_pb(),
        cluster_id=cluster_id,
        api_version=codec.api_version,  # type: ignore[arg-type]  # an int of the enum, as on the wire
        keyspace_id=codec.keyspace_id,
        keyspace_name=codec.keyspace_name,
        max_execution_duration_ms=milliseconds(attempt_timeout * EXECUTION_SHARE),
    ).SerializeToString()


def attempt_context(
    options: RequestOptions, target: Target, request: Request[Any], *, is_leader: bool, busy_threshold: float
) -> bytes:
    """Return the fields of Context that differ between the attempts of a request.

    Args:
        options: What the caller wants.
        target: Which replica is asked, and how.
        request: What is sent; it remembers how its first attempt asked.
        is_leader: Whether the replica is the leader as far as known.
        busy_threshold: The wait above which the store should refuse, in seconds; 0 for none.
    """
    first, source = request.first, options.request_source
    if source:
        asked = manner(target, is_leader=is_leader)
        source = f"retry_{first}_{asked}_{source}" if first else f"{asked}_{source}"
    is_timed = request.effect is Effect.READ and options.max_execution_duration is None
    return _attempt_fields(
        target.access,
        source,
        bool(first),
        milliseconds(busy_threshold or None),
        milliseconds(options.read_timeout if is_timed else None),
        options.tag(request.rpc),
    )


def manner(target: Target, *, is_leader: bool) -> str:
    """Return how a replica is asked, as stores' statistics name it. Source: client-go, patched request source."""
    whom = "leader" if is_leader else "follower"
    return f"stale_{whom}" if target.access is Access.STALE else whom


@lru_cache(maxsize=1024)
def _attempt_fields(
    access: Access, source: str, is_retry: bool, busy_threshold_ms: int, timeout_ms: int, tag: bytes
) -> bytes:
    return kvrpcpb.Context(
        replica_read=access is Access.REPLICA,
        stale_read=access is Access.STALE,
        request_source=source,
        is_retry_request=is_retry,
        busy_threshold_ms=busy_threshold_ms,
        max_execution_duration_ms=timeout_ms,
        resource_group_tag=tag,
    ).SerializeToString()


def framed(context: bytes) -> bytes:
    """Return serialized fields of a Context as field 1 of a request."""
    return field(1, context)
