"""What became of a client's calls, as values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import attrs
from tikv_region import Liveness, StoreEntry


@attrs.frozen(kw_only=True)
class BatchStats:
    """Counters of one stream, or of all that lead to one store, since they were made."""

    messages: int
    """BatchCommands messages sent."""
    requests: int
    """Requests in them."""
    bytes_sent: int
    """Bytes of them, before compression."""
    late: int
    """Answers that came after their caller had gone, or that nobody had asked for."""
    in_flight: int
    """Calls that wait now, for their turn or for an answer, the unary ones included."""
    queued: int
    """Those of them that wait for their turn."""
    streams: int
    """BatchCommands streams open now."""
    reconnects: int
    """Streams that broke."""
    unary: int
    """Unary calls made: what BatchCommands cannot carry, and everything where a store does not offer it."""

    @property
    def average_batch(self) -> float:
        """Requests in a message, on average; 0 before the first."""
        return self.requests / self.messages if self.messages else 0.0

    @classmethod
    def of_unary(cls, unary: int, *, in_flight: int) -> Self:
        """Return the counters of unary calls alone."""
        return attrs.evolve(cls.total([]), unary=unary, in_flight=in_flight)

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Return the sums."""
        values = list(parts)
        return cls(**{name: sum(getattr(part, name) for part in values) for name in attrs.fields_dict(cls)})


@attrs.frozen(kw_only=True)
class StoreStats:
    """How one store does, as this client sees it."""

    store_id: int
    """Its id; 0 when no Region known leads there any more."""
    batch: BatchStats
    """What became of the calls to it."""
    liveness: Liveness
    """Whether it answers, by the last look at it."""
    slow_score: float
    """How slow it is, from 1 to 100: by its own report or by the time requests take, whichever is worse."""
    estimated_wait: float
    """Seconds a request would wait there, by its own estimate."""


@attrs.frozen(kw_only=True)
class RpcStats:
    """How a client does. Counters since it was made, but those of stores, which begin anew with their connections."""

    stores: Mapping[str, StoreStats]
    """The stores that are connected to, by address."""
    region_errors: Mapping[str, int]
    """Attempts that a store refused because of the Region, by kind; see `tikv_region.RegionError`."""
    rpc_errors: Mapping[str, int]
    """Attempts without an answer, by gRPC status code. Those that were cancelled are not among them."""
    waits: Mapping[str, int]
    """Waits between attempts, by kind; see `tikv_pd.BackoffKind`."""
    wait_seconds: Mapping[str, float]
    """Seconds they took, by kind."""

    @property
    def attempts(self) -> int:
        """Requests sent to the stores that are connected to."""
        return sum(store.batch.requests + store.batch.unary for store in self.stores.values())

    @property
    def in_flight(self) -> int:
        """Calls that wait now, for their turn or for an answer."""
        return sum(store.batch.in_flight for store in self.stores.values())


def store_stats(batch: BatchStats, entry: StoreEntry | None, now: float) -> StoreStats:
    """Return how a store does, `entry` being what is known of it, if anything is."""
    if entry is None:
        return StoreStats(store_id=0, batch=batch, liveness=Liveness.REACHABLE, slow_score=1.0, estimated_wait=0.0)
    health = entry.health
    return StoreStats(
        store_id=entry.id,
        batch=batch,
        liveness=health.liveness,
        slow_score=max(health.timed.score, health.reported_score(now)),
        estimated_wait=health.estimated_wait(now),
    )
