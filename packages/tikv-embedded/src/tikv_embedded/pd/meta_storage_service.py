"""The meta storage of one PD member: its pairs by revision, for those who keep settings there.

Only the leader answers; the cluster id of a request is not looked at. Get and the pairs before a change tell keys and
values alone, as PD has it.
Source: tikv/pd pkg/mcs/metastorage/server/grpc_service.go.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from tikv_proto import meta_storagepb
from tikv_proto.services import MetaStorage, Rpc

from tikv_embedded.pd.members import PdMember
from tikv_embedded.pd.revisions import (
    Change,
    CompactedError,
    Event,
    FutureRevisionError,
    KeyValue,
    Selection,
)
from tikv_embedded.pd.state import PdState
from tikv_embedded.rpc_handlers import Handler, ServicerContext, server_stream, unary

Req = TypeVar("Req", bound=Message)
Resp = TypeVar("Resp", bound=Message)


class MetaStorageService:
    """Handlers of one PD member.

    Args:
        state: Shared with the other members.
        member: Which of them this is.
    """

    def __init__(self, state: PdState, member: PdMember) -> None:
        self._state = state
        self._member = member
        self._pairs = state.pairs

    def handlers(self) -> list[Handler]:
        """Return what this member answers."""
        return [
            self._handler(MetaStorage.Get, self._get),
            self._handler(MetaStorage.Put, self._put),
            self._handler(MetaStorage.Delete, self._delete),
            server_stream(MetaStorage.Watch, self._watch),
        ]

    def _handler(self, rpc: Rpc[Req, Resp], answer: Callable[[Req], Resp]) -> Handler:
        async def handle(request: Req, context: ServicerContext) -> Resp:
            await self._check_leading(context)
            return answer(request)

        return unary(rpc, handle)

    def _get(self, request: meta_storagepb.GetRequest) -> meta_storagepb.GetResponse:
        try:
            found = self._pairs.select(Selection(request.key, request.range_end), request.revision)
        except (CompactedError, FutureRevisionError) as error:
            return meta_storagepb.GetResponse(header=self._error("UNKNOWN", str(error)))
        kept = found[: request.limit] if request.limit > 0 else found
        return meta_storagepb.GetResponse(
            header=self._header(), kvs=map(_bare, kept), count=len(found), more=len(kept) < len(found)
        )

    def _put(self, request: meta_storagepb.PutRequest) -> meta_storagepb.PutResponse:
        if not request.key:
            return meta_storagepb.PutResponse(header=self._error("UNKNOWN", "etcdserver: key is not provided"))
        if request.lease:
            return meta_storagepb.PutResponse(header=self._error("UNKNOWN", "etcdserver: requested lease not found"))
        (event,) = self._pairs.apply([Change(request.key, request.value)])
        before = _bare(event.prev_kv) if request.prev_kv and event.HasField("prev_kv") else None
        return meta_storagepb.PutResponse(header=self._header(), prev_kv=before)

    def _delete(self, request: meta_storagepb.DeleteRequest) -> meta_storagepb.DeleteResponse:
        """One key, whatever range was asked for; and PD does not count what it deletes."""
        events = self._pairs.apply([Change(request.key, None)])
        before = [_bare(event.prev_kv) for event in events] if request.prev_kv else []
        return meta_storagepb.DeleteResponse(header=self._header(), prev_kvs=before)

    async def _watch(
        self, request: meta_storagepb.WatchRequest, context: ServicerContext
    ) -> AsyncIterator[meta_storagepb.WatchResponse]:
        await self._check_leading(context)
        selection = Selection(request.key, request.range_end)
        try:
            async for revision, events in self._pairs.watch(selection, request.start_revision):
                yield meta_storagepb.WatchResponse(
                    header=self._header(revision), events=[_told(event, request.prev_kv) for event in events]
                )
        except CompactedError as error:
            yield meta_storagepb.WatchResponse(
                header=self._error("DATA_COMPACTED", compaction_message(request.start_revision, error)),
                compact_revision=error.compact_revision,
            )
            await context.abort(grpc.StatusCode.UNKNOWN, str(error))

    async def _check_leading(self, context: ServicerContext) -> None:
        if self._state.members.leader != self._member:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not leader")

    def _header(self, revision: int | None = None, error: Any = None) -> meta_storagepb.ResponseHeader:
        return meta_storagepb.ResponseHeader(
            cluster_id=self._state.topology.cluster_id,
            revision=self._pairs.revision if revision is None else revision,
            error=error,
        )

    def _error(self, kind: str, message: str) -> meta_storagepb.ResponseHeader:
        error = meta_storagepb.Error(type=meta_storagepb.ErrorType.Value(kind), message=message)
        return self._header(error=error)


def compaction_message(revision: int, error: CompactedError) -> str:
    """Return what PD says to a watcher from a revision that is gone."""
    return f"required watch revision: {revision} is smaller than current compact/min revision {error.compact_revision}."


def _bare(pair: KeyValue) -> KeyValue:
    return KeyValue(key=pair.key, value=pair.value)


def _told(event: Event, with_previous: bool) -> Event:
    before = _bare(event.prev_kv) if with_previous and event.HasField("prev_kv") else None
    return Event(type=event.type, kv=event.kv, prev_kv=before)
