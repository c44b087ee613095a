"""A scripted PD in memory: its members answer from plain values that a test sets, and misbehave on request."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, TypeAlias

import anyio
import attrs
from google.protobuf.message import Message
from tikv_proto import keyspacepb, meta_storagepb, pdpb, resource_manager
from tikv_proto.healthpb import HealthCheckRequest, HealthCheckResponse
from tikv_proto.services import PD, Health, Keyspace as KeyspaceService, MetaStorage, ResourceManager, Rpc

from tikv_pd._fakes.fake_gc import FakeGc
from tikv_pd._fakes.fake_meta import FakeMeta
from tikv_pd._fakes.fake_resources import FakeResources
from tikv_pd._fakes.memory_transport import (
    Handlers,
    MemoryTransport,
    ServerStream,
    StreamHandler,
    UnaryHandler,
    fail,
    request_metadata,
)
from tikv_pd.timestamp import LOGICAL_BITS, Timestamp
from tikv_pd.topology import Keyspace, Operator, Peer, Region, RegionEpoch, Store

Answer: TypeAlias = Callable[[Any], Message]
"""Makes the response to a request, without its header."""
AnyRpc: TypeAlias = Rpc[Any, Any]

_FOLLOWERS_MAY: frozenset[AnyRpc] = frozenset({PD.GetRegion, PD.GetPrevRegion, PD.GetRegionByID, PD.BatchScanRegions})
"""What followers answer by themselves when the metadata of a request allows it."""

_ANYBODY: frozenset[AnyRpc] = frozenset({PD.GetMembers, PD.GetClusterInfo, Health.Check})
"""What all members answer, to clients that do not know the cluster yet."""

_KEYSPACE_STEPS = {
    "ENABLED": {"ENABLED", "DISABLED"},
    "DISABLED": {"ENABLED", "DISABLED", "ARCHIVED"},
    "ARCHIVED": {"ARCHIVED", "TOMBSTONE"},
    "TOMBSTONE": {"TOMBSTONE"},
}
"""What states a keyspace may go to from each."""


@attrs.define(eq=False)
class _Fault:
    """What befalls the next `left` calls of an RPC."""

    rpc: AnyRpc | None
    address: str | None
    left: float
    act: Callable[[], Awaitable[pdpb.Error | None]]
    healed: anyio.Event = attrs.field(factory=anyio.Event)


class FakePd:
    """PD members on a `MemoryTransport`, all started.

    Its attributes are the cluster: change them at any time, the next answer follows. Followers refuse what they do not
    pass on, but for GetMembers, GetClusterInfo and their health, as PD does; `transport.log` holds every call.

    Args:
        transport: The network.
        members: Address of each member; the first one leads.
        cluster_id: Identity of the cluster.
    """

    def __init__(
        self, transport: MemoryTransport, *, members: Iterable[str] = ("pd1:2379",), cluster_id: int = 7
    ) -> None:
        self.transport = transport
        """The network the members are on."""
        self.members = list(members)
        """Addresses that GetMembers lists. A member may be listed and stopped, or serve and not be listed."""
        self.leader: str | None = self.members[0]
        """Address of the leader; None while there is none."""
        self.cluster_id = cluster_id
        """What headers say, and what requests must say."""
        self.regions: list[Region] = []
        """The Regions by start key."""
        self.unwell: set[str] = set()
        """Address of each member whose health service says that it does not serve; calls go on."""
        self.stores: dict[int, Store] = {}
        """The stores by id."""
        self.keyspaces: dict[str, Keyspace] = {}
        """The keyspaces by name. Watches tell changes of them when a client makes one."""
        self.operators: dict[int, Operator] = {}
        """What the scheduler does, by Region."""
        self.gc = FakeGc()
        """Garbage collection."""
        self.meta = FakeMeta()
        """PD's own storage, and the configuration in it."""
        self.resources = FakeResources(self.meta)
        """Resource groups, and the tokens they get."""
        self.resource_groups = self.resources.groups
        """The resource groups by name."""
        self.timestamp = Timestamp(1_000_000, 0)
        """The last timestamp granted."""
        self.tso_urls: list[str] | None = None
        """URLs of the TSO servers, maybe none, where those grant timestamps; None where PD does. PD grants them too."""
        self.external_timestamp = Timestamp(0, 0)
        """The timestamp an application keeps."""
        self.region_queries: list[pdpb.QueryRegionRequest] = []
        """Each message of the QueryRegion streams, its header left out."""
        self.tso_counts: list[int] = []
        """How many timestamps each TsoRequest asked for."""
        self.headers: list[pdpb.RequestHeader] = []
        """Header of each request, GetMembers excluded, refused ones too."""
        self._faults: list[_Fault] = []
        self._keyspaces_changed = anyio.Event()
        for address in self.members:
            self.start(address)

    def start(self, address: str) -> None:
        """Let a member serve, again or for the first time."""
        self.transport.serve(address, self.handlers(address))

    def stop(self, address: str | None = None) -> None:
        """Stop a member, or all: calls under way break, new ones are refused."""
        for member in [address] if address is not None else self.members:
            self.transport.stop(member)

    def calls(self, rpc: AnyRpc, at: str | None = None) -> int:
        """Return how often an RPC was called (a stream: opened), at one member or at any."""
        return sum(name == rpc.name and at in {None, address} for address, name in self.transport.log)

    def refuse(
        self,
        rpc: AnyRpc,
        code: str = "UNAVAILABLE",
        details: str = "",
        *,
        at: str | None = None,
        times: float = math.inf,
    ) -> None:
        """Answer calls of `rpc` with a gRPC status; a Tso stream ends with it when the next request arrives.

        Args:
            rpc: Which calls.
            code: gRPC status code by name.
            details: Its text.
            at: Only at this member.
            times: How many calls; all until `heal` by default.
        """

        async def act() -> None:
            raise fail(code, details)

        self._faults.append(_Fault(rpc, at, times, act))

    def answer_error(
        self, rpc: AnyRpc, kind: str, message: str = "", *, at: str | None = None, times: float = math.inf
    ) -> None:
        """Answer calls of `rpc` with an error in the header; `kind` is a pdpb.ErrorType by name."""

        async def act() -> pdpb.Error:
            return pdpb.Error(type=pdpb.ErrorType.Value(kind), message=message)

        self._faults.append(_Fault(rpc, at, times, act))

    def hang(self, rpc: AnyRpc | None, *, at: str | None = None, times: float = math.inf) -> None:
        """Leave calls of `rpc`, or with None all calls, without an answer; `heal` answers those that still wait."""

        async def act() -> None:
            await fault.healed.wait()

        fault = _Fault(rpc, at, times, act)
        self._faults.append(fault)

    def heal(self) -> None:
        """Take back every fault."""
        for fault in self._faults:
            fault.healed.set()
        self._faults.clear()

    def split(self, key: bytes) -> int:
        """Split the Region that holds `key` there; return the id of the new, left piece, 0 when there is nothing to do.

        The right piece keeps the id; peers of the left one get ids of their own and stay on their stores.
        """
        region = self._find(key)
        if region is None or region.start_key == key:
            return 0
        new_id = 1 + max(max(r.id, *(peer.id for peer in r.peers)) for r in self.regions)
        peers = tuple(attrs.evolve(peer, id=peer_id) for peer_id, peer in enumerate(region.peers, start=new_id + 1))
        leader_store = region.leader.store_id if region.leader is not None else 0
        leader = next((peer for peer in peers if peer.store_id == leader_store), None)
        epoch = RegionEpoch(region.epoch.conf_ver, region.epoch.version + 1)
        left = Region(new_id, region.start_key, key, epoch, peers, leader)
        position = self.regions.index(region)
        self.regions[position : position + 1] = [left, attrs.evolve(region, start_key=key, epoch=epoch)]
        return new_id

    def grant(self, count: int) -> pdpb.Timestamp:
        """Grant timestamps and return the last of them."""
        granted = self.timestamp
        if granted.logical + count >= 1 << LOGICAL_BITS:
            granted = Timestamp(granted.physical + 1, 0)
        self.timestamp = granted = Timestamp(granted.physical, granted.logical + count)
        return pdpb.Timestamp(physical=granted.physical, logical=granted.logical)

    async def strike(self, address: str, rpc: AnyRpc, request: Any) -> pdpb.Error | None:
        """Let the fault happen that is to befall a call, if there is one; return an error for the header."""
        befalls = {rpc, *_rpcs_of(request)} if rpc is PD.QueryRegion else {rpc}
        for fault in self._faults:
            if fault.rpc in {None, *befalls} and fault.address in {None, address} and fault.left > 0:
                fault.left -= 1
                return await fault.act()
        return None

    def handlers(self, address: str) -> Handlers:
        """Return what the member at `address` serves, to be altered and served in its place."""
        answers: dict[AnyRpc, Answer] = {
            PD.GetRegion: lambda request: _region_answer(self._find(request.region_key), request),
            PD.GetPrevRegion: lambda request: _region_answer(self._find_before(request.region_key), request),
            PD.GetRegionByID: lambda request: _region_answer(
                next((region for region in self.regions if region.id == request.region_id), None), request
            ),
            PD.BatchScanRegions: self._scan,
            PD.GetStore: self._get_store,
            PD.GetAllStores: lambda request: pdpb.GetAllStoresResponse(
                stores=[
                    store.to_pb()
                    for store in self.stores.values()
                    if not (store.is_tombstone and request.exclude_tombstone_stores)
                ]
            ),
            PD.SplitRegions: self._split,
            PD.ScatterRegion: self._scatter,
            PD.GetMinTS: lambda _: pdpb.GetMinTSResponse(
                timestamp=pdpb.Timestamp(physical=self.timestamp.physical, logical=self.timestamp.logical)
            ),
            PD.GetExternalTimestamp: lambda _: pdpb.GetExternalTimestampResponse(timestamp=self.external_timestamp.ts),
            PD.SetExternalTimestamp: self._set_external_timestamp,
            PD.SplitAndScatterRegions: self._split_and_scatter,
            PD.GetOperator: self._get_operator,
            KeyspaceService.LoadKeyspace: self._load_keyspace,
            KeyspaceService.LoadKeyspaceByID: self._load_keyspace_by_id,
            KeyspaceService.GetAllKeyspaces: self._get_keyspaces,
            KeyspaceService.UpdateKeyspaceState: self._update_keyspace,
            **self.gc.answers(),
            **self.meta.answers(),
            **self.resources.answers(),
        }
        served: dict[AnyRpc, UnaryHandler | StreamHandler] = {
            rpc: self._unary(address, rpc, answer) for rpc, answer in answers.items()
        }
        served[PD.GetMembers] = self._unary(address, PD.GetMembers, self._get_members)
        served[PD.GetClusterInfo] = self._unary(address, PD.GetClusterInfo, self._get_cluster_info)
        served[Health.Check] = self._unary(address, Health.Check, lambda request: self._check(address, request))
        served[PD.Tso] = lambda stream: self._tso(address, stream)
        served[PD.QueryRegion] = lambda stream: self._query_regions(address, stream)
        served[MetaStorage.Watch] = lambda stream: self._watch(address, stream)
        served[ResourceManager.AcquireTokenBuckets] = lambda stream: self._acquire_tokens(address, stream)
        served[KeyspaceService.WatchKeyspaces] = lambda stream: self._watch_keyspaces(address, stream)
        return served

    def _unary(self, address: str, rpc: AnyRpc, answer: Answer) -> UnaryHandler:
        async def handle(request: Any) -> Message:
            error = await self._admit(address, rpc, request)
            response: Any = rpc.response() if error is not None else answer(request)
            has_header = "header" in rpc.response.DESCRIPTOR.fields_by_name
            if has_header:
                response.header.cluster_id = self.cluster_id
            if error is not None:
                place = (response.header if has_header else response).error
                place.type, place.message = error.type, error.message
            return response  # type: ignore[no-any-return]  # the class of the message comes from the table

        return handle

    async def _admit(self, address: str, rpc: AnyRpc, request: Any) -> pdpb.Error | None:
        """Let a scripted fault happen, then refuse what PD refuses; return an error for the header."""
        has_header = "header" in rpc.request.DESCRIPTOR.fields_by_name
        if rpc not in _ANYBODY and has_header:
            self.headers.append(request.header)
        error = await self.strike(address, rpc, request)
        if error is not None:
            return error
        if rpc in _ANYBODY:
            return None
        if has_header and request.header.cluster_id != self.cluster_id:
            raise fail("FAILED_PRECONDITION", f"need cluster {self.cluster_id}, got {request.header.cluster_id}")
        metadata = request_metadata()
        if "pd-forwarded-host" in metadata:
            if metadata["pd-forwarded-host"] != f"http://{self.leader}":
                raise fail("INVALID_ARGUMENT", "the forwarded host is not leader")
        elif address != self.leader and not (rpc in _FOLLOWERS_MAY and "pd-allow-follower-handle" in metadata):
            raise fail("UNAVAILABLE", "not leader")
        return None

    async def _tso(self, address: str, stream: ServerStream) -> None:
        while True:
            request: pdpb.TsoRequest = await stream.receive()
            self.tso_counts.append(request.count)
            error = await self._admit(address, PD.Tso, request)
            header = pdpb.ResponseHeader(cluster_id=self.cluster_id, error=error)
            if error is not None:
                await stream.send(pdpb.TsoResponse(header=header))
                continue
            last = self.grant(request.count)
            await stream.send(pdpb.TsoResponse(header=header, count=request.count, timestamp=last))

    async def _query_regions(self, address: str, stream: ServerStream) -> None:
        while True:
            request: pdpb.QueryRegionRequest = await stream.receive()
            error = await self._admit(address, PD.QueryRegion, request)
            header = pdpb.ResponseHeader(cluster_id=self.cluster_id, error=error)
            request.ClearField("header")
            self.region_queries.append(request)
            if error is not None:
                await stream.send(pdpb.QueryRegionResponse(header=header))
                continue
            by_key = [self._find(key) for key in request.keys]
            by_prev_key = [self._find_before(key) for key in request.prev_keys]
            by_id = [region for region in self.regions if region.id in request.ids]
            await stream.send(
                pdpb.QueryRegionResponse(
                    header=header,
                    key_id_map=[region.id if region is not None else 0 for region in by_key],
                    prev_key_id_map=[region.id if region is not None else 0 for region in by_prev_key],
                    regions_by_id={
                        region.id: pdpb.RegionResponse(**_parts(region, need_buckets=request.need_buckets))
                        for region in (*by_key, *by_prev_key, *by_id)
                        if region is not None
                    },
                )
            )

    async def _watch(self, address: str, stream: ServerStream) -> None:
        request: meta_storagepb.WatchRequest = await stream.receive()
        error = await self._admit(address, MetaStorage.Watch, request)
        if error is None:
            await self.meta.watch(stream, request)
            return
        kinds, kind = meta_storagepb.ErrorType, pdpb.ErrorType.Name(error.type)
        told = meta_storagepb.Error(
            type=kinds.Value(kind) if kind in kinds.keys() else kinds.UNKNOWN,  # noqa: SIM118  # no mapping
            message=error.message,
        )
        await stream.send(meta_storagepb.WatchResponse(header=meta_storagepb.ResponseHeader(error=told)))

    async def _acquire_tokens(self, address: str, stream: ServerStream) -> None:
        while True:
            request: resource_manager.TokenBucketsRequest = await stream.receive()
            error = await self._admit(address, ResourceManager.AcquireTokenBuckets, request)
            if error is not None:
                told = resource_manager.Error(message=error.message)
                await stream.send(resource_manager.TokenBucketsResponse(error=told))
            else:
                await stream.send(self.resources.grant(request))

    async def _watch_keyspaces(self, address: str, stream: ServerStream) -> None:
        error = await self._admit(address, KeyspaceService.WatchKeyspaces, await stream.receive())
        header = pdpb.ResponseHeader(cluster_id=self.cluster_id, error=error)
        told: list[Keyspace] = []
        while True:
            changed = self._keyspaces_changed
            news = [] if error is not None else [each for each in self.keyspaces.values() if each not in told]
            told = list(self.keyspaces.values())
            keyspaces = [each.to_pb() for each in news]
            await stream.send(keyspacepb.WatchKeyspacesResponse(header=header, keyspaces=keyspaces))
            await changed.wait()

    def _get_members(self, _request: pdpb.GetMembersRequest) -> pdpb.GetMembersResponse:
        members = {
            address: pdpb.Member(name=address, member_id=number, client_urls=[f"http://{address}"])
            for number, address in enumerate(self.members, start=1)
        }
        leader = members.get(self.leader) if self.leader is not None else None
        return pdpb.GetMembersResponse(members=list(members.values()), leader=leader)

    def _check(self, address: str, _request: HealthCheckRequest) -> HealthCheckResponse:
        statuses = HealthCheckResponse.ServingStatus
        return HealthCheckResponse(status=statuses.NOT_SERVING if address in self.unwell else statuses.SERVING)

    def _get_cluster_info(self, _request: pdpb.GetClusterInfoRequest) -> pdpb.GetClusterInfoResponse:
        modes = pdpb.ServiceMode
        mode = modes.PD_SVC_MODE if self.tso_urls is None else modes.API_SVC_MODE
        return pdpb.GetClusterInfoResponse(serviceModes=[mode], tso_urls=self.tso_urls or [])

    def _set_external_timestamp(self, request: pdpb.SetExternalTimestampRequest) -> pdpb.SetExternalTimestampResponse:
        wanted = Timestamp.from_ts(request.timestamp)
        if wanted > self.timestamp:
            return pdpb.SetExternalTimestampResponse(header=_header("INVALID_VALUE", "above the global one"))
        if wanted < self.external_timestamp:
            return pdpb.SetExternalTimestampResponse(header=_header("INVALID_VALUE", "below the one set before"))
        self.external_timestamp = wanted
        return pdpb.SetExternalTimestampResponse()

    def _find(self, key: bytes) -> Region | None:
        for region in self.regions:
            if region.start_key <= key and (not region.end_key or key < region.end_key):
                return region
        return None

    def _find_before(self, key: bytes) -> Region | None:
        region = self._find(key)
        if region is None or not region.start_key:
            return None
        return next((before for before in self.regions if before.end_key == region.start_key), None)

    def _scan(self, request: pdpb.BatchScanRegionsRequest) -> pdpb.BatchScanRegionsResponse:
        found = [
            region
            for region in self.regions
            for span in request.ranges
            if (not region.end_key or span.start_key < region.end_key)
            and (not span.end_key or region.start_key < span.end_key)
        ]
        if request.contain_all_key_range and any(self._has_hole(span) for span in request.ranges):
            return pdpb.BatchScanRegionsResponse(
                header=_header("REGIONS_NOT_CONTAIN_ALL_KEY_RANGE", "found a hole region")
            )
        unique = list(dict.fromkeys(found))
        regions = [
            pdpb.Region(**_parts(region, need_buckets=request.need_buckets))
            for region in unique[: request.limit or None]
        ]
        return pdpb.BatchScanRegionsResponse(regions=regions)

    def _has_hole(self, span: pdpb.KeyRange) -> bool:
        key = span.start_key
        while (region := self._find(key)) is not None:
            if not region.end_key or (span.end_key and region.end_key >= span.end_key):
                return False
            key = region.end_key
        return True

    def _get_store(self, request: pdpb.GetStoreRequest) -> pdpb.GetStoreResponse:
        store = self.stores.get(request.store_id)
        if store is None:
            return pdpb.GetStoreResponse(header=_header("UNKNOWN", f"invalid store ID {request.store_id}, not found"))
        return pdpb.GetStoreResponse(store=store.to_pb())

    def _split(self, request: pdpb.SplitRegionsRequest) -> pdpb.SplitRegionsResponse:
        made = [self.split(key) for key in request.split_keys]
        return pdpb.SplitRegionsResponse(finished_percentage=100, regions_id=[new_id for new_id in made if new_id])

    def _scatter(self, request: pdpb.ScatterRegionRequest) -> pdpb.ScatterRegionResponse:
        known = {region.id for region in self.regions}
        failed = [region_id for region_id in request.regions_id if region_id not in known]
        return pdpb.ScatterRegionResponse(finished_percentage=100, failed_regions_id=failed)

    def _load_keyspace(self, request: keyspacepb.LoadKeyspaceRequest) -> keyspacepb.LoadKeyspaceResponse:
        keyspace = self.keyspaces.get(request.name)
        if keyspace is None:
            return keyspacepb.LoadKeyspaceResponse(header=_header("ENTRY_NOT_FOUND", "keyspace does not exist"))
        return keyspacepb.LoadKeyspaceResponse(keyspace=keyspace.to_pb())

    def _load_keyspace_by_id(self, request: keyspacepb.LoadKeyspaceByIDRequest) -> keyspacepb.LoadKeyspaceResponse:
        names = [keyspace.name for keyspace in self.keyspaces.values() if keyspace.id == request.id]
        return self._load_keyspace(keyspacepb.LoadKeyspaceRequest(name=names[0] if names else ""))

    def _get_keyspaces(self, request: keyspacepb.GetAllKeyspacesRequest) -> keyspacepb.GetAllKeyspacesResponse:
        found = sorted(
            (each for each in self.keyspaces.values() if each.id >= request.start_id), key=lambda each: each.id
        )
        return keyspacepb.GetAllKeyspacesResponse(keyspaces=[each.to_pb() for each in found[: request.limit or None]])

    def _update_keyspace(
        self, request: keyspacepb.UpdateKeyspaceStateRequest
    ) -> keyspacepb.UpdateKeyspaceStateResponse:
        keyspace = next((each for each in self.keyspaces.values() if each.id == request.id), None)
        if keyspace is None:
            return keyspacepb.UpdateKeyspaceStateResponse(header=_header("ENTRY_NOT_FOUND", "keyspace does not exist"))
        state = keyspacepb.KeyspaceState.Name(request.state)
        if state not in _KEYSPACE_STEPS[keyspace.state]:
            return keyspacepb.UpdateKeyspaceStateResponse(header=_header("UNKNOWN", "cannot change keyspace state"))
        self.keyspaces[keyspace.name] = keyspace = attrs.evolve(keyspace, state=state)
        changed, self._keyspaces_changed = self._keyspaces_changed, anyio.Event()
        changed.set()
        return keyspacepb.UpdateKeyspaceStateResponse(keyspace=keyspace.to_pb())

    def _get_operator(self, request: pdpb.GetOperatorRequest) -> pdpb.GetOperatorResponse:
        operator = self.operators.get(request.region_id)
        if operator is None:
            return pdpb.GetOperatorResponse(header=_header("REGION_NOT_FOUND", "Not Found"))
        return pdpb.GetOperatorResponse(
            region_id=operator.region_id,
            desc=operator.description.encode(),
            status=pdpb.OperatorStatus.Value(operator.status),
            kind=operator.kind.encode(),
        )

    def _split_and_scatter(self, request: pdpb.SplitAndScatterRegionsRequest) -> pdpb.SplitAndScatterRegionsResponse:
        made = self._split(pdpb.SplitRegionsRequest(split_keys=request.split_keys)).regions_id
        return pdpb.SplitAndScatterRegionsResponse(
            split_finished_percentage=100, scatter_finished_percentage=100, regions_id=made
        )


def _header(kind: str, message: str) -> pdpb.ResponseHeader:
    return pdpb.ResponseHeader(error=pdpb.Error(type=pdpb.ErrorType.Value(kind), message=message))


def _rpcs_of(request: pdpb.QueryRegionRequest) -> Iterator[AnyRpc]:
    """Yield the RPCs that ask by themselves what a message of QueryRegion asks: their faults befall it too."""
    if request.keys:
        yield PD.GetRegion
    if request.prev_keys:
        yield PD.GetPrevRegion
    if request.ids:
        yield PD.GetRegionByID


def _parts(region: Region, *, need_buckets: bool) -> dict[str, Any]:
    """Return the fields that every answer about a Region has."""
    states = {peer.id: peer for peer in region.peers}
    has_buckets = need_buckets and region.buckets is not None
    return {
        "region": region.to_pb(),
        "leader": region.leader.to_pb() if region.leader is not None else None,
        "down_peers": [pdpb.PeerStats(peer=_peer(states, peer_id)) for peer_id in region.down_peers],
        "pending_peers": [_peer(states, peer_id) for peer_id in region.pending_peers],
        "buckets": region.buckets.to_pb(region.id) if has_buckets and region.buckets is not None else None,
    }


def _peer(peers: dict[int, Peer], peer_id: int) -> Any:
    return peers[peer_id].to_pb()


def _region_answer(region: Region | None, request: Any) -> pdpb.GetRegionResponse:
    if region is None:
        return pdpb.GetRegionResponse()
    return pdpb.GetRegionResponse(**_parts(region, need_buckets=request.need_buckets))
