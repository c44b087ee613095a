"""What PD answers over HTTP: health, members, Regions, stores, the least resolved timestamp, keyspaces.

Source: tikv/pd server/api (router.go and the handlers it names), server/apiv2/handlers/keyspace.go.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, unquote_to_bytes, urlsplit

from google.protobuf.json_format import MessageToDict
from tikv_proto import keyspacepb

from tikv_embedded.errors import OptionError
from tikv_embedded.meta import TIKV_VERSION
from tikv_embedded.pd.http_endpoint import HttpRequest
from tikv_embedded.pd.keyspaces import StateChangeRefusedError
from tikv_embedded.pd.members import PdMember
from tikv_embedded.pd.state import PdState
from tikv_embedded.region import Peer, Region, Store, StoreState

Answer = tuple[int, object]

_V1, _V2 = "/pd/api/v1", "/pd/api/v2"


class PdHttp:
    """The HTTP side of PD, the same on all members.

    Args:
        state: What the members share.
        is_running: Whether a member answers at all.
    """

    def __init__(self, state: PdState, is_running: Callable[[PdMember], bool]) -> None:
        self._state = state
        self._is_running = is_running

    def answer(self, request: HttpRequest) -> Answer:
        """Return status and value for a request; what is not served is 404, another method of it 405."""
        parts = urlsplit(request.target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        path, _, last = parts.path.rpartition("/")
        if path.startswith(f"{_V2}/keyspaces") or parts.path == f"{_V2}/keyspaces":
            return self._keyspaces(request.method, parts.path.removeprefix(f"{_V2}/keyspaces"), request.body)
        whole: dict[str, Callable[[], Answer]] = {
            "/ping": lambda: (200, "pong"),
            "/health": self._health,
            f"{_V1}/health": self._health,
            f"{_V1}/members": self._members,
            f"{_V1}/leader": lambda: (200, _member(self._state.members.leader)),
            f"{_V1}/version": lambda: (200, {"version": TIKV_VERSION}),
            f"{_V1}/regions": lambda: (200, _regions(self._state.topology.scan(b"", b"", 0))),
            f"{_V1}/regions/key": lambda: self._regions_by_key(query),
            f"{_V1}/stores": lambda: (200, _stores([self._store(each) for each in self._all_stores()])),
            f"{_V1}/min-resolved-ts": lambda: self._min_resolved_ts(query.get("scope", "")),
        }
        single: dict[str, Callable[[], Answer]] = {
            f"{_V1}/region/id": lambda: self._region_by_id(last),
            f"{_V1}/region/key": lambda: (200, _region(self._state.topology.find(unquote_to_bytes(last)))),
            f"{_V1}/store": lambda: self._store_by_id(last),
        }
        found = whole.get(parts.path) or single.get(path)
        if found is None:
            return 404, "404 page not found"
        return found() if request.method == "GET" else (405, "Method Not Allowed")

    def _health(self) -> Answer:
        members = self._state.members.members
        fields = ("name", "member_id", "client_urls")
        return 200, [
            {name: _member(each)[name] for name in fields} | {"health": self._is_running(each)} for each in members
        ]

    def _members(self) -> Answer:
        members, leader = self._state.members.members, _member(self._state.members.leader)
        return 200, {
            "header": {"cluster_id": self._state.topology.cluster_id},
            "members": [_member(each) for each in members],
            "leader": leader,
            "etcd_leader": leader,
        }

    def _regions_by_key(self, query: dict[str, str]) -> Answer:
        limit = query.get("limit", "16")
        if not limit.lstrip("-").isdigit():
            return 400, f"invalid limit: {limit}"
        start, end = query.get("key", "").encode(), query.get("end_key", "").encode()
        return 200, _regions(self._state.topology.scan(start, end, int(limit)))

    def _region_by_id(self, text: str) -> Answer:
        region = self._state.topology.regions.get(int(text)) if text.isdigit() else None
        return (404, f"region {text} not found") if region is None else (200, _region(region))

    def _store_by_id(self, text: str) -> Answer:
        store = self._state.topology.stores.get(int(text)) if text.isdigit() else None
        return (404, f"invalid store ID {text}, not found") if store is None else (200, self._store(store))

    def _all_stores(self) -> list[Store]:
        stores = sorted(self._state.topology.stores.items())
        return [store for _, store in stores if store.state is not StoreState.TOMBSTONE]

    def _store(self, store: Store) -> dict[str, Any]:
        regions = self._state.topology.regions.values()
        return {
            "store": {
                "id": store.id,
                "address": store.address,
                "labels": [{"key": key, "value": value} for key, value in store.labels],
                "version": TIKV_VERSION,
                "state_name": store.state.name.capitalize(),
            },
            "status": {
                "region_count": sum(region.peer_on(store.id) is not None for region in regions),
                "leader_count": sum(
                    region.leader is not None and region.leader.store_id == store.id for region in regions
                ),
            },
        }

    def _min_resolved_ts(self, scope: str) -> Answer:
        """The cluster's, with `scope=cluster` that and all stores', or that of some stores and the least of them."""
        marks, least, stores = self._state.marks, self._state.marks.min_resolved, None
        if scope == "cluster":
            stores = {each.id: marks.resolved_by(each.id) for each in self._all_stores()}
        elif scope:
            ids = scope.split(",")
            if not all(each.isdigit() for each in ids):
                return 400, f"invalid store ids: {scope}"
            stores = {int(each): marks.resolved_by(int(each)) for each in ids}
            least = min(stores.values())
        return 200, {
            "is_real_time": True,
            "min_resolved_ts": least,
            "persist_interval": "1s",
            "stores_min_resolved_ts": stores,
        }

    def _keyspaces(self, method: str, path: str, body: bytes) -> Answer:
        match method, path.strip("/").split("/"):
            case "GET", [""]:
                keyspaces = [_keyspace(each) for each in self._state.keyspaces.since(0)]
                return 200, {"keyspaces": keyspaces, "next_page_token": ""}
            case "GET", ["id", text]:
                return self._show(self._state.keyspaces.by_id(int(text)) if text.isdigit() else None)
            case "GET", [name]:
                return self._show(self._state.keyspaces.by_name(name))
            case ("POST", [""]) | ("PUT", [_, "state"]):
                try:
                    fields = json.loads(body)
                    return self._create(fields) if method == "POST" else self._set_state(path.split("/")[1], fields)
                except (ValueError, KeyError, AttributeError, TypeError) as error:
                    return 400, str(error)
            case _:
                return 405, "Method Not Allowed"

    def _show(self, keyspace: keyspacepb.KeyspaceMeta | None) -> Answer:
        return (404, "keyspace does not exist") if keyspace is None else (200, _keyspace(keyspace))

    def _create(self, fields: dict[str, Any]) -> Answer:
        try:
            return 200, _keyspace(self._state.create_keyspace(fields["name"], fields.get("config")))
        except OptionError as error:
            return 500, str(error)

    def _set_state(self, name: str, fields: dict[str, Any]) -> Answer:
        keyspace = self._state.keyspaces.by_name(name)
        if keyspace is None:
            return 404, "keyspace does not exist"
        state = keyspacepb.KeyspaceState.Value(fields["state"].upper())
        try:
            return 200, _keyspace(self._state.keyspaces.set_state(keyspace, state))
        except StateChangeRefusedError as error:
            return 500, str(error)


def _member(member: PdMember) -> dict[str, Any]:
    return {"name": member.name, "member_id": member.id, "client_urls": [member.url], "peer_urls": [member.url]}


def _peer(peer: Peer) -> dict[str, Any]:
    role = "Learner" if peer.is_learner else "Voter"
    return {"id": peer.id, "store_id": peer.store_id, "role_name": role, "is_learner": peer.is_learner}


def _region(region: Region) -> dict[str, Any]:
    return {
        "id": region.id,
        "start_key": region.start_key.hex().upper(),
        "end_key": region.end_key.hex().upper(),
        "epoch": {"conf_ver": region.epoch.conf_ver, "version": region.epoch.version},
        "peers": [_peer(peer) for peer in region.peers],
        "leader": {} if region.leader is None else _peer(region.leader),
        "approximate_size": 1,
        "approximate_keys": 0,
    }


def _regions(regions: list[Region]) -> dict[str, Any]:
    return {"count": len(regions), "regions": [_region(each) for each in regions]}


def _stores(stores: list[dict[str, Any]]) -> dict[str, Any]:
    return {"count": len(stores), "stores": stores}


def _keyspace(keyspace: keyspacepb.KeyspaceMeta) -> dict[str, Any]:
    shown = MessageToDict(keyspace, preserving_proto_field_name=True)
    numbers = {"id": keyspace.id, "created_at": keyspace.created_at, "state_changed_at": keyspace.state_changed_at}
    # JSON of protobuf has 64-bit numbers as text and leaves zeros out.
    return {**shown, **numbers, "state": keyspacepb.KeyspaceState.Name(keyspace.state)}
