"""Queries of single Regions: over a stream that all callers share, or one RPC each where PD does not have it.

Source: pdpb.PD.QueryRegion; pd client clients/router. Differences on purpose: a stream that breaks is replaced under
those who wait, and an older PD is asked in the way it knows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Final, TypeAlias

import attrs
from tikv_proto import pdpb, services
from tikv_proto.services import Rpc

from tikv_pd._routing.calls import Calls
from tikv_pd._routing.members import why
from tikv_pd._routing.ways import Way, is_silence
from tikv_pd._streams.shared_stream import SharedStream
from tikv_pd.deadline import Deadline
from tikv_pd.errors import ConfigError, DeadlineExceeded, PdError, PdUnavailable, RpcError, TikvError
from tikv_pd.lowlevel import Connection
from tikv_pd.topology import Region

MAX_BATCH: Final = 10_000
"""Queries in one message at most. Source: pd client router, maxRequestBatchSize."""


@attrs.frozen
class ByKey:
    """The Region that holds a key."""

    key: bytes
    """The key, as PD holds it."""
    need_buckets: bool = False
    """Whether to tell its buckets."""


@attrs.frozen
class ByPrevKey:
    """The Region before the one that holds a key."""

    key: bytes
    """The key, as PD holds it."""
    need_buckets: bool = False
    """Whether to tell its buckets."""


@attrs.frozen
class ById:
    """The Region of an id."""

    id: int
    """The id."""
    need_buckets: bool = False
    """Whether to tell its buckets."""


Query: TypeAlias = ByKey | ByPrevKey | ById


class Directory:
    """The exchange of Region queries.

    Args:
        calls: Which cluster it is, and who is asked.
    """

    name = services.PD.QueryRegion.name
    """QueryRegion."""

    def __init__(self, calls: Calls) -> None:
        self._members = calls.members
        self._route = calls.route(services.PD.QueryRegion)

    def begin(self, address: str) -> tuple[Rpc[pdpb.QueryRegionRequest, pdpb.QueryRegionResponse], pdpb.RequestHeader]:
        """Return the RPC of PD, or of a router."""
        rpc = self._route.rpc(services.PD.QueryRegion, address)
        return rpc, pdpb.RequestHeader(cluster_id=self._members.known.cluster_id)

    def ask(
        self, questions: Sequence[Query], header: pdpb.RequestHeader
    ) -> tuple[pdpb.QueryRegionRequest, Callable[[pdpb.QueryRegionResponse], Sequence[Region | None]]]:
        """Return a request for all of them and what picks the Regions of the answer."""
        request = pdpb.QueryRegionRequest(
            header=header,
            keys=[query.key for query in questions if isinstance(query, ByKey)],
            prev_keys=[query.key for query in questions if isinstance(query, ByPrevKey)],
            ids=[query.id for query in questions if isinstance(query, ById)],
            need_buckets=any(query.need_buckets for query in questions),
        )

        def answers(answer: pdpb.QueryRegionResponse) -> Sequence[Region | None]:
            if len(answer.key_id_map) != len(request.keys) or len(answer.prev_key_id_map) != len(request.prev_keys):
                raise ValueError("the answer does not tell a Region for each key")
            known = {each: Region.from_answer(region) for each, region in answer.regions_by_id.items()}
            by_key, by_prev_key = iter(answer.key_id_map), iter(answer.prev_key_id_map)
            found: list[Region | None] = []
            for query in questions:
                if isinstance(query, ById):
                    region = known.get(query.id)
                else:
                    region = known.get(next(by_key if isinstance(query, ByKey) else by_prev_key))
                if region is not None and region.buckets is not None and not query.need_buckets:
                    # Somebody else in the batch asked for them.
                    region = attrs.evolve(region, buckets=None)
                found.append(region)
            return found

        return request, answers


class _WayOfStream:
    """The way to the leader, or a router, for a stream, which followers do not pass on.

    Args:
        calls: Who leads, and whether it can be reached.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._route = calls.route(services.PD.QueryRegion)

    @property
    def leader(self) -> str:
        """Address of the leader; raises ClosedError once the client is closed."""
        return self._route.leader

    def way(self) -> Way:
        """Return the way, which is always straight."""
        return Way(self.leader, self.leader)

    def failed(self, way: Way, error: TikvError) -> TikvError:
        """Take note of how a stream ended."""
        return self._calls.ways.failed(way, error)

    def connection(self, address: str) -> Connection:
        """Return the connection to an address."""
        return self._route.connection(address)

    def doubt(self, suspect: str) -> None:
        """Have the members asked again soon."""
        self._route.doubt(suspect)

    async def refresh(self, suspect: str) -> TikvError | None:
        """Wait until the members were asked again."""
        return await self._route.refresh(suspect)

    def verdict(self, address: str, error: TikvError, *, is_confirmed: bool) -> TikvError | None:
        """Return what to raise: the failure itself when followers are to pass the queries on, one by one."""
        if is_confirmed and is_silence(error) and self._calls.ways.is_forwarding():
            return error
        return self._route.verdict(address, error, is_confirmed=is_confirmed)


class RegionQueries:
    """Answers queries of single Regions; its `run` must run."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        # The server answers one message at a time; what comes meanwhile gathers.
        self._stream: SharedStream[Query, Region | None] = SharedStream(
            Directory(calls),
            _WayOfStream(calls),
            calls.transport,
            calls.config,
            max_batch=MAX_BATCH,
            in_flight=1,
        )
        self._has_stream = True

    async def run(self) -> None:
        """Serve the callers until cancelled."""
        await self._stream.run()

    async def get(self, operation: str, query: Query, timeout: float | None, *, allow_follower: bool) -> Region | None:
        """Return the Region, None when PD knows none."""
        deadline = self._calls.deadline(operation, timeout)
        is_for_follower = allow_follower and bool(self._calls.ways.followers())
        if self._has_stream and not is_for_follower and not self._calls.ways.is_forwarding():
            try:
                return await self._ask_stream(query, deadline)
            except RpcError:
                # The leader cannot be reached from here.
                deadline.check()
            except PdError as error:
                if error.kind != "UNIMPLEMENTED":
                    raise
                self._has_stream = False
        rpc, request = unary(query)
        answer = await self._calls.attempt(rpc, request, deadline, allow_follower=allow_follower)
        return Region.from_answer(answer)

    async def get_from(
        self, operation: str, query: Query, addresses: Sequence[str], timeout: float | None
    ) -> Region | None:
        """Return what the first of some members to have an answer says, each asked in turn."""
        deadline = self._calls.deadline(operation, timeout)
        rpc, request = unary(query)
        failures: list[tuple[str, str]] = []
        for address in addresses:
            answer = await self._calls.ask_member(address, rpc, request, deadline)
            if not isinstance(answer, TikvError):
                return Region.from_answer(answer)
            failures.append((address, why(answer)))
        members = self._calls.members
        members.doubt(members.leader)
        raise PdUnavailable(tuple(failures))

    async def _ask_stream(self, query: Query, deadline: Deadline) -> Region | None:
        """Ask over the stream, anew whenever the time of an attempt is up if there is a breaker, which counts those."""
        calls = self._calls
        cause: BaseException | None = None
        while True:
            left = deadline.check(cause)
            limit = left if calls.region_breaker is None else min(left, calls.config.timeout)
            try:
                with calls.guard(services.PD.QueryRegion, deadline.operation):
                    return await self._stream.ask(query, deadline.operation, limit, of=deadline.timeout)
            except DeadlineExceeded as error:
                if limit == left:
                    raise
                cause = error.__cause__


def unary(query: Query) -> tuple[Rpc[Any, pdpb.GetRegionResponse], pdpb.GetRegionRequest | pdpb.GetRegionByIDRequest]:
    """Return the RPC of a query by itself, and its request."""
    if isinstance(query, ById):
        by_id = pdpb.GetRegionByIDRequest(region_id=query.id, need_buckets=query.need_buckets)
        return services.PD.GetRegionByID, by_id
    rpc = services.PD.GetRegion if isinstance(query, ByKey) else services.PD.GetPrevRegion
    return rpc, pdpb.GetRegionRequest(region_key=query.key, need_buckets=query.need_buckets)


def key_ranges(ranges: Sequence[tuple[bytes, bytes]]) -> list[pdpb.KeyRange]:
    """Return half-open ranges as messages.

    Raises:
        ConfigError: they are not in ascending order, overlap, or one is empty.
    """
    for start, end in ranges:
        if end and start >= end:
            raise ConfigError("each range must begin before it ends")
    for (_, end), (start, _) in pairwise(ranges):
        if not end or start < end:
            raise ConfigError("ranges must be in ascending order and must not overlap")
    return [pdpb.KeyRange(start_key=start, end_key=end) for start, end in ranges]
