"""PD's HTTP API: what it tells that its RPCs do not, such as the least resolved timestamp and statistics.

A request goes to the leader; a member that cannot answer is followed by the next one, since followers pass requests on.
What a member refuses for what it asks is final; what shows that the leader moved has the members asked who leads, and
is tried again until the time is up. Source: pd client http/client.go.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import quote

import attrs

from tikv_pd._routing.calls import Calls
from tikv_pd._routing.pursuit import Pursuit
from tikv_pd._services.http_values import (
    MemberHealth,
    MinResolvedTs,
    RegionStats,
    StoreStats,
    health,
    keyspace,
    leader,
    members,
    regions,
    stores,
    version,
)
from tikv_pd.backoff import Backoffer
from tikv_pd.deadline import Deadline
from tikv_pd.errors import ConfigError, KeyspaceNotFound, MinResolvedTsDisabled, PdError, RpcError
from tikv_pd.lowlevel import as_bytes, dialed
from tikv_pd.topology import Keyspace, Member

T = TypeVar("T")

_TIMEOUT: Final = 30.0
"""Seconds a request may take with all its attempts, unless the call says otherwise. Source: pd client http."""
_FINAL: Final = frozenset({"400", "403", "404"})
"""Statuses that every member would answer with. Source: pd client http, noNeedRetry."""
_LEADER_MOVED: Final = ("no leader", "not leader", "is not served", "not primary")
"""What the texts of errors say that a change of leaders causes. Source: pd client errs, IsLeaderChange."""
_V1: Final = "/pd/api/v1"
_V2: Final = "/pd/api/v2"


@attrs.frozen
class HttpAnswer:
    """What a server answered."""

    status: int
    """HTTP status code."""
    body: bytes
    """What it sent."""


class HttpTransport(Protocol):
    """What sends requests over HTTP."""

    async def get(self, address: str, target: str, *, headers: Mapping[str, str], timeout: float) -> HttpAnswer:
        """Return the answer to a GET for `target`, path and query, of the server at `host:port`.

        Raises RpcError when there is none, also when `timeout` seconds pass.
        """
        ...

    async def aclose(self) -> None:
        """Close every connection."""
        ...


class PdHttp:
    """PD's HTTP API, as `PdClient.http`. Errors and cancellation as there; needs the extra `tikv-pd[http]`.

    A refusal is a `PdError` whose `kind` is the HTTP status, such as `400`. A call takes at most 30 s unless it says
    otherwise; that is shared out evenly among the members, the leader first.
    """

    def __init__(self, calls: Calls, transport: HttpTransport) -> None:
        self._calls = calls
        self._transport = transport

    async def get_min_resolved_ts(self, *, timeout: float | None = None) -> int:
        """Return the composed timestamp below which no transaction of the cluster is undecided; 0 while unknown.

        Raises:
            MinResolvedTsDisabled: PD is configured not to keep it.

        Source: /pd/api/v1/min-resolved-ts.
        """
        return (await self._min_resolved_ts("", timeout)).ts

    async def get_min_resolved_ts_by_store(
        self, store_ids: Iterable[int] | None = None, *, timeout: float | None = None
    ) -> MinResolvedTs:
        """Return the same for each of these stores, and the least of them; or for all stores, and the cluster's.

        A store PD knows nothing of has the largest timestamp there is.

        Raises:
            MinResolvedTsDisabled: PD is configured not to keep it.

        Source: /pd/api/v1/min-resolved-ts with a scope.
        """
        ids = None if store_ids is None else [_positive(each, "store_id") for each in store_ids]
        if ids == []:
            raise ConfigError("store_ids must not be empty; leave them out for all stores")
        scope = "cluster" if ids is None else ",".join(map(str, ids))
        return await self._min_resolved_ts(f"?scope={scope}", timeout)

    async def get_health(self, *, timeout: float | None = None) -> list[MemberHealth]:
        """Return how PD's members are. Source: /pd/api/v1/health."""
        return await self._get("get_health", f"{_V1}/health", health, timeout)

    async def get_members(self, *, timeout: float | None = None) -> list[Member]:
        """Return PD's members in no given order. Source: /pd/api/v1/members."""
        return await self._get("get_members", f"{_V1}/members", members, timeout)

    async def get_leader(self, *, timeout: float | None = None) -> Member:
        """Return the leader of PD, as it says. Source: /pd/api/v1/leader."""
        return await self._get("get_leader", f"{_V1}/leader", leader, timeout)

    async def get_version(self, *, timeout: float | None = None) -> str:
        """Return PD's version. Source: /pd/api/v1/version."""
        return await self._get("get_version", f"{_V1}/version", version, timeout)

    async def get_region(self, key: bytes, *, timeout: float | None = None) -> RegionStats | None:
        """Return the Region that holds `key`, as PD holds keys, with its statistics; None when PD knows none.

        Source: /pd/api/v1/region/key.
        """
        key = as_bytes(key, "key")
        if not key:  # An empty one is no part of a path.
            first = await self.get_regions(limit=1, timeout=timeout)
            return first[0] if first else None
        return await self._find("get_region", f"{_V1}/region/key/{_escape(key)}", RegionStats.from_json, timeout)

    async def get_region_by_id(self, region_id: int, *, timeout: float | None = None) -> RegionStats | None:
        """Return the Region of this id with its statistics; None when there is none.

        Source: /pd/api/v1/region/id.
        """
        path = f"{_V1}/region/id/{_positive(region_id, 'region_id')}"
        return await self._find("get_region_by_id", path, RegionStats.from_json, timeout)

    async def get_regions(
        self, start: bytes = b"", end: bytes = b"", *, limit: int | None = None, timeout: float | None = None
    ) -> list[RegionStats]:
        """Return the Regions that overlap `[start, end)` with their statistics, in order of their keys.

        Args:
            start: Where the range begins, as PD holds keys.
            end: Where it ends; empty for unbounded.
            limit: How many at most, the first ones; None for all, which may take long.
            timeout: Seconds.

        Source: /pd/api/v1/regions/key.
        """
        if limit is not None:
            _positive(limit, "limit")
        query = f"key={_escape(as_bytes(start, 'start'))}&end_key={_escape(as_bytes(end, 'end'))}&limit={limit or -1}"
        return await self._get("get_regions", f"{_V1}/regions/key?{query}", regions, timeout)

    async def get_stores(self, *, timeout: float | None = None) -> list[StoreStats]:
        """Return the stores that did not leave the cluster, with their statistics, in no given order.

        Source: /pd/api/v1/stores.
        """
        return await self._get("get_stores", f"{_V1}/stores", stores, timeout)

    async def get_store(self, store_id: int, *, timeout: float | None = None) -> StoreStats | None:
        """Return the store of this id with its statistics; None when there is none. Source: /pd/api/v1/store."""
        path = f"{_V1}/store/{_positive(store_id, 'store_id')}"
        return await self._find("get_store", path, StoreStats.from_json, timeout)

    async def get_keyspace(self, name: str, *, timeout: float | None = None) -> Keyspace:
        """Return the keyspace of this name, whatever its state.

        Raises:
            KeyspaceNotFound: there is none.

        Source: /pd/api/v2/keyspaces.
        """
        if not name:
            raise ConfigError("a keyspace has a name")
        return await self._keyspace("get_keyspace", name, _escape(name.encode()), timeout)

    async def get_keyspace_by_id(self, keyspace_id: int, *, timeout: float | None = None) -> Keyspace:
        """Return the keyspace of this id, whatever its state.

        Raises:
            KeyspaceNotFound: there is none.

        Source: /pd/api/v2/keyspaces/id.
        """
        if not 0 <= keyspace_id < 1 << 24:
            raise ConfigError(f"a keyspace id must be between 0 and 2**24 - 1, got {keyspace_id}")
        return await self._keyspace("get_keyspace_by_id", str(keyspace_id), f"id/{keyspace_id}", timeout)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()

    async def _min_resolved_ts(self, query: str, timeout: float | None) -> MinResolvedTs:
        path = f"{_V1}/min-resolved-ts{query}"
        found = await self._get("get_min_resolved_ts", path, MinResolvedTs.from_json, timeout)
        if found is None:
            raise MinResolvedTsDisabled(f"GET {path}", "UNKNOWN", "pd-server.min-resolved-ts-persistence-interval is 0")
        return found

    async def _keyspace(self, operation: str, name: str, path: str, timeout: float | None) -> Keyspace:
        try:
            return await self._get(operation, f"{_V2}/keyspaces/{path}", keyspace, timeout)
        except PdError as error:
            if error.kind != "404":
                raise
            raise KeyspaceNotFound(name, error.message) from error

    async def _find(self, operation: str, target: str, make: Callable[[Any], T], timeout: float | None) -> T | None:
        """Return what is made of the answer; None when PD says that there is nothing."""
        try:
            return await self._get(operation, target, make, timeout)
        except PdError as error:
            if error.kind != "404":
                raise
            return None

    async def _get(self, operation: str, target: str, make: Callable[[Any], T], timeout: float | None) -> T:
        deadline = Deadline(operation, _TIMEOUT if timeout is None else timeout, self._calls.transport.now)
        pursuit = Pursuit(self._calls.members, Backoffer(deadline, budget=math.inf))
        while True:
            address = self._calls.members.leader
            outcome = await self._ask_around(address, target, deadline, pursuit)
            if isinstance(outcome, RpcError):
                with self._calls.members.while_open():
                    await pursuit.recover(address, outcome)
                continue
            try:
                return make(json.loads(outcome))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise PdError(f"GET {target}", "UNKNOWN", f"the answer is not what was asked for: {error!r}") from error

    async def _ask_around(self, leading: str, target: str, deadline: Deadline, pursuit: Pursuit) -> bytes | RpcError:
        """Ask one member after the other; return the first good answer, or why the leader has none just now."""
        known = self._calls.members
        addresses = [leading, *(each for each in known.known.members if each != leading)]
        first: PdError | RpcError | None = None
        for number, address in enumerate(addresses):
            left = deadline.check(pursuit.failure) / (len(addresses) - number)
            outcome = await self._ask(address, target, left)
            if isinstance(outcome, bytes):
                return outcome
            if isinstance(outcome, PdError) and outcome.kind in _FINAL:
                raise outcome
            if isinstance(outcome, RpcError):
                known.doubt(leading)
            first = first or outcome
        if isinstance(first, PdError):
            raise first
        assert first is not None
        return first

    async def _ask(self, address: str, target: str, timeout: float) -> bytes | PdError | RpcError:
        """Return the answer of one member, or why there is none: PdError if it refused, RpcError if that may pass."""
        dial = dialed(address, self._calls.config.host_mapping)
        headers = {"X-Caller-ID": self._calls.config.caller_component}
        try:
            answer = await self._transport.get(dial, target, headers=headers, timeout=timeout)
        except RpcError as error:
            return error
        if answer.status == 200:
            return answer.body
        words = answer.body.decode(errors="replace").strip()
        if answer.status == 503 or any(each in words for each in _LEADER_MOVED):
            return RpcError(address, f"GET {target}", "UNAVAILABLE", f"{answer.status} {words}")
        return PdError(f"GET {target}", str(answer.status), words)


def _escape(value: bytes) -> str:
    """Return bytes for a URL; dots too, or else a key of dots leads to another path."""
    return quote(value, safe="").replace(".", "%2E")


def _positive(value: int, what: str) -> int:
    if not 0 < value < 1 << 64:
        raise ConfigError(f"{what} must be between 1 and 2**64 - 1, got {value}")
    return value
