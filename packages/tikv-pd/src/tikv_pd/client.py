"""The client of PD: timestamps, Regions, stores, keyspaces, splitting and scattering."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import attrs
from google.protobuf.message import Message
from tikv_proto import pdpb, services
from tikv_proto.services import Rpc

from tikv_pd._routing.calls import Calls
from tikv_pd._routing.connections import Connections
from tikv_pd._routing.members import Members
from tikv_pd._routing.service_route import RESOURCE_MANAGERS, ROUTERS, ServiceRoute
from tikv_pd._routing.tso_source import NO_KEYSPACE, TsoSource
from tikv_pd._routing.ways import Ways
from tikv_pd._services.gc import Gc
from tikv_pd._services.http import HttpTransport, PdHttp
from tikv_pd._services.keyspaces import Keyspaces, enabled
from tikv_pd._services.meta_storage import GlobalConfigs, MetaStorage
from tikv_pd._services.resource_control import ResourceGroups
from tikv_pd._streams.oracle import Oracle
from tikv_pd._streams.region_queries import ById, ByKey, ByPrevKey, Query, RegionQueries, key_ranges
from tikv_pd._streams.tso import Tso
from tikv_pd.config import (
    Address,
    BreakerConfig,
    KeyspaceRef,
    PdConfig,
    SecurityConfig,
    parse_address,
    parse_keyspace,
)
from tikv_pd.deadline import Deadline
from tikv_pd.errors import ClosedError, ConfigError, PdError, UnknownRegion
from tikv_pd.lowlevel import BackgroundTasks, Transport, as_bytes, map_hosts
from tikv_pd.observer import ObservedTransport, PdObserver
from tikv_pd.timestamp import Timestamp
from tikv_pd.topology import Keyspace, Member, Operator, Region, Store

Resp = TypeVar("Resp", bound=Message)


@attrs.define(eq=False)
class _Session:
    """What exists while the client is open."""

    transport: Transport
    members: Members
    calls: Calls
    tso: Tso
    oracle: Oracle
    regions: RegionQueries
    gc: Gc
    keyspaces: Keyspaces
    meta: MetaStorage
    global_config: GlobalConfigs
    resource_groups: ResourceGroups
    keyspace: Keyspace | None
    http: PdHttp | None = None


class PdClient:
    """A connection to PD, wherever its leader is. Use it once, inside `async with`.

    Opening finds the leader through any of the addresses; closing leaves nothing behind. Every operation retries
    inside: it follows the leader, waits while PD is away, and ends when it succeeds, when no attempt can help, or when
    its `timeout` is over. Any number of tasks may use one client.

    Keys are as PD holds them: plain for raw API V1, memcomparable-encoded otherwise.

    Args:
        address: `tikv://host:port[,host:port]`, `host:port`, or several of them; any living member will do. A URL may
            name a keyspace: `tikv://host:port?keyspaceName=users`.
        keyspace: Name or id of the keyspace whose client this is, which timestamps may depend on where PD runs as
            microservices; None when it is in none.
        config: How patient to be.
        security: TLS material; plain text without.
        transport: What to reach PD through, gRPC by default.
        observer: Whom to report each RPC to, for metrics.
        http_transport: What to reach PD's HTTP API through, httpx2 by default; closed with the client.

    Raises:
        ConfigError: the address, the keyspace or the TLS material cannot be used.

    Every operation may raise:
        DeadlineExceeded: its time is up; `__cause__` is the last failure.
        PdError: PD refused it for good.
        ClusterMismatch: another cluster answers at the address.
        ClosedError: the client is not open.
        TypeError: a key is not bytes.
        ConfigError: another argument can never work.
        CircuitOpen: queries of Regions only, with `PdConfig.region_breaker`.

    Cancelling an operation is safe; it leaves nothing behind.
    """

    def __init__(
        self,
        address: Address,
        *,
        keyspace: KeyspaceRef | None = None,
        config: PdConfig | None = None,
        security: SecurityConfig | None = None,
        transport: Transport | None = None,
        observer: PdObserver | None = None,
        http_transport: HttpTransport | None = None,
    ) -> None:
        parsed = parse_address(address)
        self._seeds = parsed.endpoints
        self._keyspace = parse_keyspace(keyspace, parsed)
        self._config = config if config is not None else PdConfig()
        self._security = security
        self._transport = transport
        self._observer = observer
        self._http_transport = http_transport
        self._session: _Session | None = None
        self._stack = AsyncExitStack()
        self._was_opened = False

    async def __aenter__(self) -> Self:
        """Find the leader, and the keyspace if there is one.

        Raises:
            PdUnavailable: no member answered within `PdConfig.open_timeout`, or none of the addresses is a PD.
            ClusterMismatch: the addresses belong to different clusters.
            KeyspaceNotFound: there is no such enabled keyspace.
            ClosedError: the client was opened before.
        """
        if self._was_opened:
            raise ClosedError("PdClient", "was opened before; make a new one")
        self._was_opened = True
        transport = self._transport if self._transport is not None else _grpc(self._security)
        transport = map_hosts(transport, self._config.host_mapping)
        if self._observer is not None:
            transport = ObservedTransport(transport, self._observer)
        async with AsyncExitStack() as stack:
            self._session = await self._start(transport, stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Close the client: operations under way in other tasks end with ClosedError."""
        self._session = None
        return await self._stack.__aexit__(kind, error, traceback)

    async def _start(self, transport: Transport, stack: AsyncExitStack) -> _Session:
        """Learn what there is to know and start the tasks; what is to be ended later is put on the stack."""
        config = self._config
        deadline = Deadline("opening PdClient", config.open_timeout, transport.now)
        members = Members(self._seeds, transport, config, tls=self._security is not None)
        stack.push_async_callback(members.aclose)
        tso_servers = Connections(transport)
        stack.push_async_callback(tso_servers.aclose)
        registries = (RESOURCE_MANAGERS, ROUTERS) if config.use_routers else (RESOURCE_MANAGERS,)
        routes: list[ServiceRoute] = []
        for registry in registries:
            servers = Connections(transport)
            stack.push_async_callback(servers.aclose)
            routes.append(ServiceRoute(registry, members, servers, config, transport.now))
        await members.discover(deadline)
        tasks = await stack.enter_async_context(BackgroundTasks())
        ways = Ways(members, config, transport.now)
        tasks.start_soon(members.run)
        tasks.start_soon(ways.run)
        for route in routes:
            tasks.start_soon(route.run)
        calls = Calls(members, ways, transport, config, routes)
        keyspaces = Keyspaces(calls)
        keyspace = await self._load_keyspace(keyspaces, deadline)
        keyspace_id = keyspace.id if keyspace is not None else NO_KEYSPACE
        source = TsoSource(members, ways, tso_servers, config, keyspace_id, transport.now)
        with anyio.move_on_after(deadline.remaining()):
            await source.look()
            await calls.ready(services.PD.QueryRegion, deadline)
        tso = Tso(source, transport, config)
        oracle = Oracle(calls, tso)
        regions = RegionQueries(calls)
        for run in (source.run, tso.run, oracle.run, regions.run):
            tasks.start_soon(run)
        return _Session(
            transport=transport,
            members=members,
            calls=calls,
            tso=tso,
            oracle=oracle,
            regions=regions,
            gc=Gc(calls),
            keyspaces=keyspaces,
            meta=MetaStorage(calls),
            global_config=GlobalConfigs(calls),
            resource_groups=ResourceGroups(calls, keyspace.id if keyspace is not None else None),
            keyspace=keyspace,
        )

    async def _load_keyspace(self, keyspaces: Keyspaces, deadline: Deadline) -> Keyspace | None:
        """Return the keyspace whose client this is; None when it is in none."""
        wanted = self._keyspace
        if wanted is None:
            return None
        timeout = deadline.check()
        if isinstance(wanted, str):
            return enabled(await keyspaces.get(wanted, timeout=timeout))
        return enabled(await keyspaces.get_by_id(wanted, timeout=timeout))

    @property
    def cluster_id(self) -> int:
        """Identity of the cluster. Raises ClosedError when the client is not open."""
        return self._open_session().members.known.cluster_id

    @property
    def keyspace(self) -> Keyspace | None:
        """The keyspace whose client this is, as it was when the client was opened; None when it is in none.

        Raises ClosedError when the client is not open.
        """
        return self._open_session().keyspace

    @property
    def leader(self) -> str:
        """Address of PD's leader as far as known. Raises ClosedError when the client is not open."""
        return self._open_session().members.leader

    @property
    def gc(self) -> Gc:
        """Safe points and barriers of garbage collection. Raises ClosedError when the client is not open."""
        return self._open_session().gc

    @property
    def keyspaces(self) -> Keyspaces:
        """Keyspaces in any state. Raises ClosedError when the client is not open."""
        return self._open_session().keyspaces

    @property
    def meta(self) -> MetaStorage:
        """PD's own key-value storage. Raises ClosedError when the client is not open."""
        return self._open_session().meta

    @property
    def global_config(self) -> GlobalConfigs:
        """Configuration kept in PD. Raises ClosedError when the client is not open."""
        return self._open_session().global_config

    @property
    def resource_groups(self) -> ResourceGroups:
        """Resource groups. Raises ClosedError when the client is not open."""
        return self._open_session().resource_groups

    @property
    def http(self) -> PdHttp:
        """PD's HTTP API.

        Raises:
            ConfigError: the extra `tikv-pd[http]` is not installed, or the TLS material cannot be used.
            ClosedError: the client is not open.
        """
        session = self._open_session()
        if session.http is None:
            given = self._http_transport
            session.http = PdHttp(session.calls, given if given is not None else _httpx(self._security))
            self._stack.push_async_callback(session.http.aclose)
        return session.http

    def change_region_breaker(self, config: BreakerConfig | None) -> None:
        """Change when queries of Regions fail at once, what `PdConfig.region_breaker` says at first.

        What was counted stays; a window, or a rest, that is under way ends when it would have.

        Args:
            config: From now on; None for never.

        Raises:
            TypeError: it is neither.
            ClosedError: the client is not open.

        Source: pd client pkg/circuitbreaker ChangeSettings.
        """
        self._open_session().calls.change_region_breaker(config)

    async def get_members(self, *, timeout: float | None = None) -> list[Member]:
        """Return PD's members in no given order. Source: pdpb.PD.GetMembers."""
        answer = await self._call("get_members", services.PD.GetMembers, pdpb.GetMembersRequest(), timeout)
        leader = answer.leader.member_id
        return [
            Member(each.member_id, each.name, tuple(each.client_urls), each.member_id == leader, each.binary_version)
            for each in answer.members
        ]

    async def get_ts(self, *, timeout: float | None = None) -> Timestamp:
        """Return a timestamp above every one granted before the call, by this client or any other.

        Callers at the same moment share one message to PD.

        Raises:
            TimestampFallback: PD went back in time.

        Source: pdpb.PD.Tso; pd client tso.
        """
        seconds = self._config.operation_timeout if timeout is None else timeout
        return await self._open_session().tso.ask(None, "get_ts", seconds)

    def change_low_resolution_interval(self, seconds: float) -> None:
        """Change how old timestamps of low resolution are, what `PdConfig.low_resolution_interval` says at first.

        It counts at once, except where stale reads need a shorter one, which then grows up to this one.

        Raises:
            ConfigError: it is not above 0.
            TypeError: it is no number.
            ClosedError: the client is not open.

        Source: client-go oracle SetLowResolutionTimestampUpdateInterval.
        """
        self._open_session().oracle.change_interval(seconds)

    async def get_low_resolution_ts(self, *, timeout: float | None = None) -> Timestamp:
        """Return a timestamp granted not long ago, mostly without asking PD.

        It is as old as `PdConfig.low_resolution_interval` as a rule, less while `validate_read_ts` is used for reads
        less stale than that, and twice that at most: when PD was away for longer, the call waits for a new one.
        Successive calls never go back.

        Source: client-go oracle GetLowResolutionTimestamp.
        """
        return await self._open_session().oracle.recent("get_low_resolution_ts", timeout)

    async def get_stale_ts(self, staleness: float, *, timeout: float | None = None) -> Timestamp:
        """Return a timestamp to read at that lies `staleness` seconds in the past, mostly without asking PD.

        Raises:
            ConfigError: `staleness` is not above 0, or before all time.

        Source: client-go oracle GetStaleTimestamp.
        """
        return await self._open_session().oracle.stale(staleness, timeout)

    async def get_min_ts(self, *, timeout: float | None = None) -> Timestamp:
        """Return a timestamp not above any that other services which grant timestamps would grant now.

        The same as `get_ts` where PD alone grants them. Source: pdpb.PD.GetMinTS.
        """
        session = self._open_session()
        deadline = session.calls.deadline("get_min_ts", timeout)
        try:
            answer = await session.calls.attempt(services.PD.GetMinTS, pdpb.GetMinTSRequest(), deadline)
        except PdError as error:
            if error.kind != "UNIMPLEMENTED":
                raise
            return await session.tso.ask(None, deadline.operation, deadline.check(), of=deadline.timeout)
        return Timestamp(answer.timestamp.physical, answer.timestamp.logical)

    async def wait_for(self, ts: int, *, timeout: float | None = None) -> Timestamp:
        """Return a timestamp not below the composed `ts` as soon as PD grants one.

        For timestamps that come from elsewhere and may lie in the future, such as those of async commit.
        """
        session = self._open_session()
        return await session.oracle.wait_for(ts, session.calls.deadline("wait_for", timeout))

    async def validate_read_ts(self, ts: int, *, stale: bool = False, timeout: float | None = None) -> None:
        """Return if PD has granted a timestamp that is not below the composed `ts`, so that reading there is safe.

        Mostly without asking PD. `LATEST` is fine unless `stale`.

        Args:
            ts: Where to read.
            stale: Whether it is a stale read. Those have timestamps of low resolution refreshed more often.
            timeout: Seconds.

        Raises:
            FutureTimestamp: PD has not.
            ConfigError: no timestamp is like this, or a stale read is to be at `LATEST`.

        Source: client-go oracle ValidateReadTS.
        """
        await self._open_session().oracle.validate(ts, is_stale=stale, timeout=timeout)

    async def get_external_timestamp(self, *, timeout: float | None = None) -> Timestamp:
        """Return the timestamp an application keeps in PD; zero when none was set.

        Source: pdpb.PD.GetExternalTimestamp.
        """
        request = pdpb.GetExternalTimestampRequest()
        answer = await self._call("get_external_timestamp", services.PD.GetExternalTimestamp, request, timeout)
        return Timestamp.from_ts(answer.timestamp)

    async def set_external_timestamp(self, timestamp: Timestamp, *, timeout: float | None = None) -> None:
        """Keep a timestamp in PD for the applications of the cluster.

        Raises:
            PdError: it is below the one that is kept, or above what PD has granted.

        Source: pdpb.PD.SetExternalTimestamp.
        """
        request = pdpb.SetExternalTimestampRequest(timestamp=timestamp.ts)
        await self._call("set_external_timestamp", services.PD.SetExternalTimestamp, request, timeout)

    async def get_region(
        self, key: bytes, *, need_buckets: bool = False, allow_follower: bool = False, timeout: float | None = None
    ) -> Region | None:
        """Return the Region that holds `key`; None when PD knows none.

        Callers at the same moment share one message to PD.

        Args:
            key: The key.
            need_buckets: Whether to tell the Region's buckets.
            allow_follower: Whether to ask a follower of PD first, which may lag behind and knows no buckets, to spare
                the leader.
            timeout: Seconds.

        Source: pdpb.PD.QueryRegion; GetRegion where PD does not have that, and for followers.
        """
        query = ByKey(as_bytes(key, "key"), need_buckets)
        return await self._region("get_region", query, timeout, allow_follower=allow_follower)

    async def get_prev_region(
        self, key: bytes, *, need_buckets: bool = False, allow_follower: bool = False, timeout: float | None = None
    ) -> Region | None:
        """Return the Region that ends where the one holding `key` starts; None when there is none.

        Arguments as of `get_region`. Source: pdpb.PD.QueryRegion, GetPrevRegion.
        """
        query = ByPrevKey(as_bytes(key, "key"), need_buckets)
        return await self._region("get_prev_region", query, timeout, allow_follower=allow_follower)

    async def get_region_by_id(
        self, region_id: int, *, need_buckets: bool = False, allow_follower: bool = False, timeout: float | None = None
    ) -> Region | None:
        """Return the Region of this id; None when there is none, any more or yet.

        Arguments as of `get_region`. Source: pdpb.PD.QueryRegion, GetRegionByID.
        """
        query = ById(_id(region_id, "region_id"), need_buckets)
        return await self._region("get_region_by_id", query, timeout, allow_follower=allow_follower)

    async def get_region_from_member(
        self, key: bytes, addresses: Address, *, timeout: float | None = None
    ) -> Region | None:
        """Return the Region that holds `key` as one member of PD knows it; None when it knows none.

        Members are asked one after the other until one answers, whether it leads or not: to compare what they know, or
        to get by while there is no leader. See `get_members` for where they are.

        Args:
            key: The key.
            addresses: `host:port`, or client URL, of a member, or several of those to be asked in this order.
            timeout: Seconds.

        Raises:
            PdUnavailable: none of them has an answer.

        Source: pd client GetRegionFromMember; pdpb.PD.GetRegion.
        """
        query, endpoints = ByKey(as_bytes(key, "key")), parse_address(addresses).endpoints
        return await self._open_session().regions.get_from("get_region_from_member", query, endpoints, timeout)

    async def scan_regions(
        self, start: bytes, end: bytes = b"", *, limit: int = 128, timeout: float | None = None
    ) -> list[Region]:
        """Return the Regions that overlap `[start, end)` in order of their keys, the first `limit` of them.

        An empty `end` is unbounded. PD may know no Region of a part of the range for a while: the list then has a hole.

        Source: pdpb.PD.BatchScanRegions with one range.
        """
        start, end = as_bytes(start, "start"), as_bytes(end, "end")
        if end and start > end:
            raise ConfigError("start must not be above end; Regions are scanned in ascending order only")
        _check_limit(limit)
        if end and start == end:
            return []
        return await self._scan("scan_regions", [(start, end)], limit, timeout)

    async def batch_scan_regions(
        self,
        ranges: Iterable[tuple[bytes, bytes]],
        *,
        limit: int = 128,
        contain_all: bool = False,
        need_buckets: bool = False,
        allow_follower: bool = False,
        timeout: float | None = None,
    ) -> list[Region]:
        """Return the Regions that overlap any of the ranges, in order of their keys, each once.

        Args:
            ranges: (start, end) pairs in ascending order that do not overlap; an empty end is unbounded.
            limit: How many Regions in all.
            contain_all: Whether a hole is an error.
            need_buckets: Whether to tell the Regions' buckets.
            allow_follower: Whether to ask a follower of PD first, as for `get_region`.
            timeout: Seconds.

        Raises:
            RegionsIncomplete: PD knows no Region of a part of a range, and `contain_all` was asked for.

        Source: pdpb.PD.BatchScanRegions.
        """
        pairs = [(as_bytes(start, "start"), as_bytes(end, "end")) for start, end in ranges]
        _check_limit(limit)
        if not pairs:
            return []
        return await self._scan(
            "batch_scan_regions",
            pairs,
            limit,
            timeout,
            contain_all=contain_all,
            need_buckets=need_buckets,
            allow_follower=allow_follower,
        )

    async def get_store(self, store_id: int, *, timeout: float | None = None) -> Store | None:
        """Return the store of this id, also one that left the cluster; None when PD never knew it.

        Source: pdpb.PD.GetStore.
        """
        calls = self._open_session().calls
        deadline = calls.deadline("get_store", timeout)
        request = pdpb.GetStoreRequest(store_id=_id(store_id, "store_id"))
        try:
            answer = await calls.attempt(services.PD.GetStore, request, deadline)
        except PdError as error:
            # PD has no kind of error for an unknown store, only words: the list of stores tells for certain.
            if error.kind != "UNKNOWN":
                raise
            stores = await calls.attempt(services.PD.GetAllStores, pdpb.GetAllStoresRequest(), deadline)
            if all(store.id != store_id for store in stores.stores):
                return None
            raise
        return Store.from_pb(answer.store)

    async def get_stores(self, *, exclude_tombstone: bool = False, timeout: float | None = None) -> list[Store]:
        """Return every store, also those that left the cluster unless they are excluded, in no given order.

        Source: pdpb.PD.GetAllStores.
        """
        request = pdpb.GetAllStoresRequest(exclude_tombstone_stores=exclude_tombstone)
        answer = await self._call("get_stores", services.PD.GetAllStores, request, timeout)
        return [Store.from_pb(store) for store in answer.stores]

    async def load_keyspace(self, name: str, *, timeout: float | None = None) -> Keyspace:
        """Return the enabled keyspace of this name.

        Raises:
            KeyspaceNotFound: there is none, its Regions are not ready, or it is not enabled.

        Source: keyspacepb.Keyspace.LoadKeyspace.
        """
        return enabled(await self.keyspaces.get(name, timeout=timeout))

    async def split_regions(
        self, keys: Iterable[bytes], *, retry_limit: int = 0, timeout: float | None = None
    ) -> list[int]:
        """Split Regions so that each of `keys` starts one, and return the ids of the new Regions.

        PD waits for the splits. A key that starts a Region already makes none, nor does one that PD could not split at
        in time: ask again, or look with `scan_regions`.

        Args:
            keys: Where to split.
            retry_limit: How often PD tries again what it could not split.
            timeout: Seconds.

        Source: pdpb.PD.SplitRegions.
        """
        request = pdpb.SplitRegionsRequest(
            split_keys=[as_bytes(key, "key") for key in keys], retry_limit=_retry_limit(retry_limit)
        )
        answer = await self._call("split_regions", services.PD.SplitRegions, request, timeout, is_patient=True)
        return list(answer.regions_id)

    async def scatter_regions(
        self,
        region_ids: Iterable[int],
        *,
        group: str = "",
        retry_limit: int = 0,
        skip_store_limit: bool = False,
        timeout: float | None = None,
    ) -> list[int]:
        """Start to spread Regions over the stores and return the ids of those for which PD could not.

        Args:
            region_ids: The Regions.
            group: Regions of one group are spread evenly among each other.
            retry_limit: How often PD tries again those that could not be.
            skip_store_limit: Whether PD is to disregard how many Regions a store may take in a minute.
            timeout: Seconds.

        Source: pdpb.PD.ScatterRegion.
        """
        request = pdpb.ScatterRegionRequest(
            regions_id=[_id(each, "region_id") for each in region_ids],
            group=group,
            retry_limit=_retry_limit(retry_limit),
            skip_store_limit=skip_store_limit,
        )
        if not request.regions_id:
            return []
        answer = await self._call("scatter_regions", services.PD.ScatterRegion, request, timeout, is_patient=True)
        return list(answer.failed_regions_id)

    async def split_and_scatter_regions(
        self, keys: Iterable[bytes], *, group: str = "", retry_limit: int = 0, timeout: float | None = None
    ) -> list[int]:
        """Split Regions as `split_regions` does, spread the new ones over the stores, and return their ids.

        Arguments as of `split_regions` and `scatter_regions`. Source: pdpb.PD.SplitAndScatterRegions.
        """
        request = pdpb.SplitAndScatterRegionsRequest(
            split_keys=[as_bytes(key, "key") for key in keys], group=group, retry_limit=_retry_limit(retry_limit)
        )
        answer = await self._call(
            "split_and_scatter_regions", services.PD.SplitAndScatterRegions, request, timeout, is_patient=True
        )
        return list(answer.regions_id)

    async def get_operator(self, region_id: int, *, timeout: float | None = None) -> Operator | None:
        """Return what PD's scheduler does, or did last, with a Region; None when it knows of nothing.

        Source: pdpb.PD.GetOperator.
        """
        request = pdpb.GetOperatorRequest(region_id=_id(region_id, "region_id"))
        try:
            answer = await self._call("get_operator", services.PD.GetOperator, request, timeout)
        except UnknownRegion:
            return None
        status = pdpb.OperatorStatus.Name(answer.status)
        return Operator(answer.region_id, answer.desc.decode(), status, answer.kind.decode())

    async def wait_for_scatter(self, region_id: int, *, timeout: float | None = None) -> Operator | None:
        """Return, once a Region is not being scattered any more, what PD's scheduler does with it, or did last.

        Args:
            region_id: The Region, after `scatter_regions` or `split_and_scatter_regions`.
            timeout: Seconds; peers that hold much data may need minutes to move.

        Returns:
            The operator, whose `status` tells how it ended if it still is the one that scattered; None when PD knows
            of none, as it forgets those that ended some minutes ago.

        Source: client-go KVStore.WaitScatterRegionFinish.
        """
        calls = self._open_session().calls
        deadline = calls.deadline("wait_for_scatter", timeout)
        pause = 0.01
        while True:
            operator = await self.get_operator(region_id, timeout=deadline.check())
            if operator is None or not operator.is_scattering:
                return operator
            with calls.members.while_open():
                await anyio.sleep(min(pause, deadline.check()))
            pause = min(2 * pause, 0.5)

    async def _region(
        self, operation: str, query: Query, timeout: float | None, *, allow_follower: bool
    ) -> Region | None:
        regions = self._open_session().regions
        return await regions.get(operation, query, timeout, allow_follower=allow_follower)

    async def _scan(
        self,
        operation: str,
        ranges: list[tuple[bytes, bytes]],
        limit: int,
        timeout: float | None,
        *,
        contain_all: bool = False,
        need_buckets: bool = False,
        allow_follower: bool = False,
    ) -> list[Region]:
        request = pdpb.BatchScanRegionsRequest(
            ranges=key_ranges(ranges), limit=limit, need_buckets=need_buckets, contain_all_key_range=contain_all
        )
        answer = await self._open_session().calls.call(
            operation, services.PD.BatchScanRegions, request, timeout, allow_follower=allow_follower
        )
        return [region for region in map(Region.from_answer, answer.regions) if region is not None]

    async def _call(
        self, name: str, rpc: Rpc[Any, Resp], request: Message, timeout: float | None, *, is_patient: bool = False
    ) -> Resp:
        return await self._open_session().calls.call(name, rpc, request, timeout, is_patient=is_patient)

    def _open_session(self) -> _Session:
        if self._session is None:
            raise ClosedError("PdClient")
        return self._session


def _grpc(security: SecurityConfig | None) -> Transport:
    # Those who bring their own transport, as tests do, need not pay for importing gRPC.
    from tikv_pd.grpc_transport import GrpcTransport  # noqa: PLC0415

    return GrpcTransport(security)


def _httpx(security: SecurityConfig | None) -> HttpTransport:
    try:
        from tikv_pd.httpx_transport import HttpxTransport  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        if error.name != "httpx2":
            raise
        raise ConfigError("PD's HTTP API needs the extra `http`: pip install 'tikv-pd[http]'") from error
    return HttpxTransport(security)


def _check_limit(limit: int) -> None:
    if not 0 < limit < 2**31:
        raise ConfigError(f"limit must be between 1 and 2**31 - 1, got {limit}")


def _retry_limit(value: int) -> int:
    if not 0 <= value < 2**64:
        raise ConfigError(f"retry_limit must be between 0 and 2**64 - 1, got {value}")
    return value


def _id(value: int, what: str) -> int:
    if not 0 < value < 2**64:
        raise ConfigError(f"{what} must be between 1 and 2**64 - 1, got {value}")
    return value
