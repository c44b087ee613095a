"""What PD's HTTP API tells, as values made of its JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from tikv_pd.topology import Keyspace, Member, Peer, Region, RegionEpoch, Store


@attrs.frozen
class MinResolvedTs:
    """Below which timestamps no transaction is undecided."""

    ts: int
    """The least of the stores that were asked for, or the cluster's, composed; 0 while unknown."""
    stores: tuple[tuple[int, int], ...] = ()
    """(store id, its timestamp) pairs by id, if they were asked for."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> MinResolvedTs | None:
        """Make the value from PD's; None when PD does not keep it."""
        if not found.get("is_real_time", False):
            return None
        stores = found.get("stores_min_resolved_ts") or {}
        return cls(int(found["min_resolved_ts"]), tuple(sorted((int(each), int(ts)) for each, ts in stores.items())))


@attrs.frozen
class MemberHealth:
    """How one of PD's members is."""

    id: int
    """Id of the member."""
    name: str
    """Its name."""
    client_urls: tuple[str, ...]
    """Where clients reach it, with scheme."""
    is_healthy: bool
    """Whether it answers the one that was asked."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> MemberHealth:
        """Make the value from PD's."""
        return cls(found["member_id"], found["name"], tuple(found["client_urls"]), found["health"])


@attrs.frozen
class RegionStats:
    """A Region, and what its leader told PD of it in the last heartbeat."""

    region: Region
    """The Region."""
    approximate_size: int = 0
    """MiB."""
    approximate_keys: int = 0
    """Keys, all versions of them."""
    written_bytes: int = 0
    """Written since the heartbeat before."""
    read_bytes: int = 0
    """Read since the heartbeat before."""
    written_keys: int = 0
    """Written since the heartbeat before."""
    read_keys: int = 0
    """Read since the heartbeat before."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> RegionStats:
        """Make the value from PD's."""
        leader = found.get("leader") or {}
        region = Region(
            found["id"],
            bytes.fromhex(found["start_key"]),
            bytes.fromhex(found["end_key"]),
            RegionEpoch(found["epoch"].get("conf_ver", 0), found["epoch"].get("version", 0)),
            tuple(_peer(each) for each in found.get("peers") or []),
            _peer(leader) if leader.get("id") else None,
            tuple(each["peer"]["id"] for each in found.get("down_peers") or []),
            tuple(each["id"] for each in found.get("pending_peers") or []),
        )
        return cls(
            region,
            found.get("approximate_size", 0),
            found.get("approximate_keys", 0),
            found.get("written_bytes", 0),
            found.get("read_bytes", 0),
            found.get("written_keys", 0),
            found.get("read_keys", 0),
        )


@attrs.frozen
class StoreStats:
    """A store, and what it told PD of itself in the last heartbeat."""

    store: Store
    """The store."""
    state: str
    """Its state as PD names it, such as `Up`, `Disconnected` or `Down`."""
    region_count: int = 0
    """Regions with a peer on it."""
    leader_count: int = 0
    """Regions led from it."""
    capacity: str = ""
    """Size of its disk, in PD's words, such as `1.8TiB`."""
    available: str = ""
    """What is left of that."""
    uptime: str = ""
    """How long it runs, in PD's words, such as `3h2m1s`."""

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> StoreStats:
        """Make the value from PD's."""
        store, status = found["store"], found["status"]
        state = store.get("state_name", "")
        labels = tuple((each["key"], each["value"]) for each in store.get("labels") or [])
        return cls(
            Store(store["id"], store["address"], labels, state == "Tombstone", store.get("version", "")),
            state,
            status.get("region_count", 0),
            status.get("leader_count", 0),
            status.get("capacity", ""),
            status.get("available", ""),
            status.get("uptime", ""),
        )


def members(found: Mapping[str, Any]) -> list[Member]:
    """Return PD's members."""
    leading = (found.get("leader") or {}).get("member_id")
    return [_member(each, is_leader=each["member_id"] == leading) for each in found["members"]]


def leader(found: Mapping[str, Any]) -> Member:
    """Return the leader of PD's members."""
    return _member(found, is_leader=True)


def health(found: Iterable[Mapping[str, Any]]) -> list[MemberHealth]:
    """Return how PD's members are."""
    return [MemberHealth.from_json(each) for each in found]


def version(found: Mapping[str, Any]) -> str:
    """Return PD's version."""
    return str(found["version"])


def regions(found: Mapping[str, Any]) -> list[RegionStats]:
    """Return Regions, maybe none."""
    return [RegionStats.from_json(each) for each in found["regions"] or []]


def stores(found: Mapping[str, Any]) -> list[StoreStats]:
    """Return stores, maybe none."""
    return [StoreStats.from_json(each) for each in found["stores"] or []]


def keyspace(found: Mapping[str, Any]) -> Keyspace:
    """Return a keyspace."""
    return Keyspace(found["id"], found["name"], found["state"], tuple(sorted((found.get("config") or {}).items())))


def _peer(found: Mapping[str, Any]) -> Peer:
    return Peer(found["id"], found["store_id"], found.get("is_learner", False), found.get("is_witness", False))


def _member(found: Mapping[str, Any], *, is_leader: bool) -> Member:
    urls = tuple(found["client_urls"])
    return Member(found["member_id"], found["name"], urls, is_leader, found.get("binary_version", ""))
