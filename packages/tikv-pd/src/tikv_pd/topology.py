"""What a cluster is made of, as PD reports it: values that know nothing of protobuf once made."""

from __future__ import annotations

import attrs
from tikv_proto import keyspacepb, metapb, pdpb

from tikv_pd.errors import ConfigError


@attrs.frozen
class RegionEpoch:
    """Which incarnation of a Region is meant. Source: metapb.RegionEpoch."""

    conf_ver: int
    """Grows when peers change."""
    version: int
    """Grows when the range changes."""

    def to_pb(self) -> metapb.RegionEpoch:
        """Make the message from the value."""
        return metapb.RegionEpoch(conf_ver=self.conf_ver, version=self.version)


@attrs.frozen
class Peer:
    """One replica of a Region. Source: metapb.Peer."""

    id: int
    """Id of the peer."""
    store_id: int
    """The store it lives on."""
    is_learner: bool = False
    """Whether it does not vote."""
    is_witness: bool = False
    """Whether it holds no data."""

    @classmethod
    def from_pb(cls, peer: metapb.Peer) -> Peer:
        """Make the value from the message."""
        return cls(peer.id, peer.store_id, peer.role == metapb.PeerRole.Learner, peer.is_witness)

    def to_pb(self) -> metapb.Peer:
        """Make the message from the value."""
        role = metapb.PeerRole.Learner if self.is_learner else metapb.PeerRole.Voter
        return metapb.Peer(id=self.id, store_id=self.store_id, role=role, is_witness=self.is_witness)


@attrs.frozen
class Buckets:
    """Where a Region's data may be cut into parts of like size, for work on them side by side.

    Source: metapb.Buckets.
    """

    version: int
    """Grows whenever they change."""
    keys: tuple[bytes, ...]
    """Bounds in ascending order, those of the Region included."""

    @classmethod
    def from_pb(cls, buckets: metapb.Buckets) -> Buckets:
        """Make the value from the message."""
        return cls(buckets.version, tuple(buckets.keys))

    def to_pb(self, region_id: int) -> metapb.Buckets:
        """Make the message from the value."""
        return metapb.Buckets(region_id=region_id, version=self.version, keys=self.keys)


@attrs.frozen
class Region:
    """A contiguous range of keys and its replicas.

    Keys are as PD holds them: plain for raw API V1, memcomparable-encoded otherwise. The range is half-open, an empty
    `end_key` is unbounded.
    """

    id: int
    """Id of the Region; it survives splits (the rightmost piece keeps it) and leader changes."""
    start_key: bytes
    """First key, inclusive."""
    end_key: bytes
    """End of the range, exclusive; empty for unbounded."""
    epoch: RegionEpoch
    """Incarnation."""
    peers: tuple[Peer, ...]
    """All replicas."""
    leader: Peer | None = None
    """The leader, if PD knows one."""
    down_peers: tuple[int, ...] = ()
    """Ids of the peers PD has not heard of for a while."""
    pending_peers: tuple[int, ...] = ()
    """Ids of the peers that lag behind."""
    buckets: Buckets | None = None
    """Its buckets, if they were asked for and PD's leader knows any."""

    @classmethod
    def from_pb(
        cls,
        region: metapb.Region,
        leader: metapb.Peer | None = None,
        down_peers: tuple[int, ...] = (),
        pending_peers: tuple[int, ...] = (),
        buckets: Buckets | None = None,
    ) -> Region:
        """Make the value from the messages; a leader with id 0 stands for none."""
        return cls(
            region.id,
            region.start_key,
            region.end_key,
            RegionEpoch(region.region_epoch.conf_ver, region.region_epoch.version),
            tuple(Peer.from_pb(peer) for peer in region.peers),
            Peer.from_pb(leader) if leader is not None and leader.id else None,
            down_peers,
            pending_peers,
            buckets,
        )

    @classmethod
    def from_answer(cls, answer: pdpb.GetRegionResponse | pdpb.RegionResponse | pdpb.Region) -> Region | None:
        """Make the value from an answer of PD; None when it holds no Region."""
        if not answer.HasField("region"):
            return None
        return cls.from_pb(
            answer.region,
            answer.leader if answer.HasField("leader") else None,
            tuple(stats.peer.id for stats in answer.down_peers),
            tuple(peer.id for peer in answer.pending_peers),
            Buckets.from_pb(answer.buckets) if answer.HasField("buckets") else None,
        )

    def to_pb(self) -> metapb.Region:
        """Make the message from the value; it has no place for the leader and the state of peers."""
        return metapb.Region(
            id=self.id,
            start_key=self.start_key,
            end_key=self.end_key,
            region_epoch=self.epoch.to_pb(),
            peers=[peer.to_pb() for peer in self.peers],
        )


@attrs.frozen
class Store:
    """One TiKV process. Source: metapb.Store."""

    id: int
    """Id of the store."""
    address: str
    """Where clients reach it, `host:port`."""
    labels: tuple[tuple[str, str], ...] = ()
    """(key, value) pairs such as ("zone", "a")."""
    is_tombstone: bool = False
    """Whether it left the cluster for good."""
    version: str = ""
    """Its TiKV version."""

    @classmethod
    def from_pb(cls, store: metapb.Store) -> Store:
        """Make the value from the message."""
        return cls(
            store.id,
            store.address,
            tuple((label.key, label.value) for label in store.labels),
            store.state == metapb.StoreState.Tombstone or store.node_state == metapb.NodeState.Removed,
            store.version,
        )

    def to_pb(self) -> metapb.Store:
        """Make the message from the value."""
        return metapb.Store(
            id=self.id,
            address=self.address,
            state=metapb.StoreState.Tombstone if self.is_tombstone else metapb.StoreState.Up,
            node_state=metapb.NodeState.Removed if self.is_tombstone else metapb.NodeState.Serving,
            labels=[metapb.StoreLabel(key=key, value=value) for key, value in self.labels],
            version=self.version,
        )


@attrs.frozen
class Keyspace:
    """A named slice of the key space under API V2. Source: keyspacepb.KeyspaceMeta."""

    id: int
    """24-bit id, part of every key on the wire."""
    name: str
    """Unique name; `DEFAULT` has id 0."""
    state: str
    """keyspacepb.KeyspaceState by name, such as `ENABLED`."""
    config: tuple[tuple[str, str], ...] = ()
    """(key, value) pairs such as ("gc_management_type", "keyspace_level"), sorted."""

    @classmethod
    def from_pb(cls, keyspace: keyspacepb.KeyspaceMeta) -> Keyspace:
        """Make the value from the message.

        Raises:
            ConfigError: it is a keyspace of API V3. Such a one has an identity in place of an id; taken for id 0, it
                would lead to the data of the default keyspace.
        """
        if keyspace.WhichOneof("keyspace") == "keyspace_identity":
            raise ConfigError(f"keyspace {keyspace.name!r} is one of API V3, which this client does not speak")
        state = keyspacepb.KeyspaceState.Name(keyspace.state)
        return cls(keyspace.id, keyspace.name, state, tuple(sorted(keyspace.config.items())))

    def to_pb(self) -> keyspacepb.KeyspaceMeta:
        """Make the message from the value."""
        state = keyspacepb.KeyspaceState.Value(self.state)
        return keyspacepb.KeyspaceMeta(id=self.id, name=self.name, state=state, config=dict(self.config))


@attrs.frozen
class Member:
    """One PD process. Source: pdpb.Member."""

    id: int
    """Id of the member."""
    name: str
    """Its name."""
    client_urls: tuple[str, ...]
    """Where clients reach it, with scheme."""
    is_leader: bool
    """Whether it leads PD."""
    version: str = ""
    """Its version."""


@attrs.frozen
class Operator:
    """What PD's scheduler does, or did last, with a Region. Source: pdpb.GetOperatorResponse."""

    region_id: int
    """The Region."""
    description: str
    """What it is for, such as `scatter-region`."""
    status: str
    """pdpb.OperatorStatus by name, such as `RUNNING`."""
    kind: str
    """What it changes, such as `region,leader`."""

    @property
    def is_scattering(self) -> bool:
        """Whether it moves the Region's peers apart and has not ended."""
        return self.description == "scatter-region" and self.status == "RUNNING"
