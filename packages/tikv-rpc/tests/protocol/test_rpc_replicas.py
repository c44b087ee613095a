"""Which replicas a request is sent to, one after the other, and how: traces of whole requests.

Each row lists what the attempts are answered, one after the other, and then whom they went to: `s1L` is store 1 asked
as the leader, `R` as a replica, `S` for a stale read, and `s2>s1` is store 2 asked to pass the request on to store 1.
Store 1 leads, if nothing else is said, and of replicas that are as good the first is taken.

The answers:

    NL      not the leader, who it is is not known     NL3     not the leader, that is the one on store 3
    BUSY    busy, for how long is not known            BUSYw   busy for 10 ms
    NR      not as far as the read's timestamp         LOST    none in time, and the store looks dead
    others  the region error of that name

Source: client-go replica_selector_test.go. The order of the attempts is that of client-go. Waits are fewer: none is
taken as long as another replica has not been tried.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import attrs
import pytest
from tikv_pd import TikvError
from tikv_pd.errors import RpcError
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import RegionEntry
from tikv_rpc import Effect, ReplicaRead, Request, RequestOptions, RetryRegion, Route, RpcClient, RpcConfig
from tikv_rpc._stores.replicas import Access
from tikv_rpc.errors import RelocateError
from tikv_rpc.testing import FakeCluster

LETTERS = {Access.LEADER: "L", Access.REPLICA: "R", Access.STALE: "S"}


def region_error(answer: str, entry: RegionEntry) -> errorpb.Error:
    """Return what an answer of the table stands for."""
    if answer.startswith("NL"):
        peers = [peer for peer in entry.peers if answer[2:] == str(peer.store_id)]
        return errorpb.Error(not_leader=errorpb.NotLeader(leader=peers[0].to_pb() if peers else None))
    if answer.startswith("BUSY"):
        busy = errorpb.ServerIsBusy(reason="busy", estimated_wait_ms=10 if answer == "BUSYw" else 0)
        return errorpb.Error(server_is_busy=busy)
    if answer == "LATE":
        return errorpb.Error(server_is_busy=errorpb.ServerIsBusy(reason="deadline is exceeded"))
    if answer == "CLOSING":
        return errorpb.Error(message="TiKV is closing")
    field = {
        "NR": "data_is_not_ready",
        "STALE_COMMAND": "stale_command",
        "MAX_TS": "max_timestamp_not_synced",
        "MERGING": "proposal_in_merging_mode",
        "READ_INDEX": "read_index_not_ready",
        "NOT_INIT": "region_not_initialized",
        "DISK_FULL": "disk_full",
        "FLASHBACK": "FlashbackInProgress",
        "NOT_FOUND": "region_not_found",
    }[answer]
    error = errorpb.Error()
    getattr(error, field).SetInParent()
    return error


class Script:
    """In place of `Dispatch`: answers attempts from a list and notes where they went."""

    def __init__(self, cluster: FakeCluster, answers: str) -> None:
        self.path: list[str] = []
        self._cluster = cluster
        self._answers = answers.split()

    async def execute(self, entry: RegionEntry, route: Route, request: Request[Any], call: Any, /) -> Any:
        index, asked = route.target.index, route.store.id
        letter = LETTERS[route.target.access]
        if route.target.proxy is None:
            self.path.append(f"s{asked}{letter}")
        else:
            assert route.forward == entry.stores[index].address
            self.path.append(f"s{asked}>s{entry.stores[index].id}")
        answer = self._answers.pop(0) if self._answers else "OK"
        if answer == "OK":
            return request.rpc.response()
        if answer == "LOST":
            if not (request.effect is Effect.READ and call.options.read_timeout):
                self._cluster.store(asked).stop()
            raise RpcError(route.client.address, request.rpc.name, "DEADLINE_EXCEEDED", "no answer", sent=True)
        return request.rpc.response(region_error=region_error(answer, entry))


@attrs.frozen
class Row:
    """One trace."""

    answers: str
    path: str
    end: str = "ok"
    """`ok`, `relocate`, or the name of an error."""
    waits: dict[str, int] = attrs.field(factory=dict)
    """Waits taken, by kind."""
    is_valid: bool = True
    """Whether the Region in the cache is still taken for right."""
    options: dict[str, Any] = attrs.field(factory=dict)
    is_write: bool = False
    leader: int = 1
    leader_after: int | None = None
    stores: int = 3
    learner: int = 0
    """The store with a learner, if any."""
    slow: int = 0
    """A store that is slow from the start, if any."""
    forwarding: bool = False

    def __str__(self) -> str:
        who = ",".join(f"{name}={getattr(value, 'name', value)}" for name, value in self.options.items())
        kind = "write" if self.is_write else "read"
        return f"{kind}({who}) {self.answers or 'OK'}"


BUSY, RPC, SCHEDULING = "tikvServerBusy", "tikvRPC", "regionScheduling"
TIMED = {"read_timeout": 1.0}
IDLE = {"busy_threshold": 0.01}
FOLLOWER = {"replica_read": ReplicaRead.FOLLOWER}
MIXED = {"replica_read": ReplicaRead.MIXED}
PREFER = {"replica_read": ReplicaRead.PREFER_LEADER}
LEARNER = {"replica_read": ReplicaRead.LEARNER}
STALE = {"stale_read": True}


def zone(store: int) -> dict[str, Any]:
    return {"match_labels": (("zone", f"z{store}"),)}


ROWS = [
    # The leader.
    Row("", "s1L"),
    Row("NL", "s1L s2L", leader_after=2),
    Row("NL NL NL", "s1L s2L s3L", "relocate", {SCHEDULING: 1}, is_valid=False),
    Row("NL3", "s1L s3L", leader_after=3),
    Row("BUSY", "s1L s1L", waits={BUSY: 1}),
    Row("BUSY BUSY", "s1L s1L s2L", waits={BUSY: 1}),
    Row("BUSY BUSY NL3", "s1L s1L s2L s3L", waits={BUSY: 1}, leader_after=3),
    Row("BUSY BUSY NL1 BUSY BUSY", "s1L s1L s2L s1L s1L s1L", waits={BUSY: 4}, leader_after=1),
    Row("BUSY BUSY NL NL", "s1L s1L s2L s3L s1L", waits={BUSY: 2}),
    Row("BUSY BUSYw BUSY", "s1L s1L s1L s2L", waits={BUSY: 2}),
    Row("BUSY NL2 BUSY BUSY", "s1L s1L s2L s2L s3L", waits={BUSY: 2}),
    Row("BUSY " * 11, "s1L s1L s2L s3L" + " s1L" * 8, waits={BUSY: 9}),
    Row("BUSY BUSY BUSY", "s1L s1L s1L s1L", waits={BUSY: 3}, stores=1),
    Row("LOST", "s1L s2L", leader_after=2),
    Row("LOST NL1 NL1", "s1L s2L s3L", "relocate", {RPC: 1}, is_valid=False),
    Row("LOST BUSY BUSY", "s1L s2L s3L", "relocate", {BUSY: 1}, is_valid=False),
    Row("CLOSING", "s1L s2L"),
    *[
        Row(error, "s1L s1L", waits={kind: 1})
        for error, kind in [
            ("STALE_COMMAND", "regionMiss"),
            ("MAX_TS", "maxTsNotSynced"),
            ("MERGING", SCHEDULING),
            ("READ_INDEX", SCHEDULING),
            ("NOT_INIT", "regionNotInitialized"),
            ("DISK_FULL", "tikvDiskFull"),
        ]
    ],
    # Reads that may only take so long.
    Row("LOST", "s1L s2R", options=TIMED),
    Row("LATE", "s1L s2R", options=TIMED),
    Row("NL3 LOST", "s1L s3L s2R", options=TIMED, leader_after=3),
    Row("NL LOST NL2", "s1L s2L s3L", "relocate", {SCHEDULING: 1}, options=TIMED),
    Row("NL3 LOST", "s1L s3L s2L", options=TIMED, is_write=True),
    Row("LOST NL NL2 BUSY LOST", "s1L s2L s3L s2L s2L", "relocate", {BUSY: 1, RPC: 1}, is_valid=False, is_write=True),
    # Leaders that are too busy.
    Row("BUSYw BUSYw", "s1L s2R s3R", options=IDLE),
    Row("BUSYw BUSYw BUSYw", "s1L s2R s3R s1L", waits={BUSY: 1}, options=IDLE),
    Row("BUSY BUSY", "s1L s1L s2L", waits={BUSY: 1}, options=IDLE, is_write=True),
    # Followers.
    Row("", "s2R", options=FOLLOWER),
    Row("BUSYw BUSY", "s2R s3R s1L", options=FOLLOWER),
    Row("BUSY BUSYw BUSY", "s2R s3R s1L", "relocate", {BUSY: 1}, is_valid=False, options=FOLLOWER),
    Row("NOT_FOUND", "s2R s1L", is_valid=False, options=FOLLOWER),
    Row("", "s1L", options=FOLLOWER, is_write=True),
    Row("", "s1L", options=FOLLOWER, stores=1),
    # Any replica.
    *[
        row
        for mode in (MIXED, PREFER)
        for row in (
            Row("", "s1L", options=mode),
            Row("BUSYw STALE_COMMAND BUSY", "s1L s2R s3R", "relocate", {BUSY: 1}, is_valid=False, options=mode),
            Row("BUSY NOT_FOUND", "s1L s2R", "relocate", {"regionMiss": 1}, is_valid=False, options=mode),
        )
    ],
    Row("LOST BUSY", "s2R s1L s3R", options=MIXED | zone(2)),
    Row("FLASHBACK", "s2R s1L", options=MIXED | zone(2) | TIMED),
    Row("FLASHBACK", "s1L", "FlashbackInProgress", options=MIXED),
    Row("BUSY BUSY BUSY", "s2R s3L s1R", "relocate", {BUSY: 1}, is_valid=False, options=PREFER | zone(2), leader=3),
    Row("", "s2R", options=PREFER, slow=1),
    Row("BUSY BUSYw BUSY", "s2R s3R s1L", "relocate", {BUSY: 1}, is_valid=False, options=PREFER, slow=1),
    Row("BUSY", "s4R s1L", options=LEARNER, stores=4, learner=4),
    Row("", "s2R", options=MIXED, slow=1, leader=3),
    Row("", "s3L", options=MIXED | zone(1), slow=1, leader=3),
    # Reads at a timestamp in the past.
    Row("", "s1S", options=STALE),
    Row("NR BUSY", "s1S s2R s3R", options=STALE),
    Row("NR", "s2S s1L", options=STALE | zone(2)),
    Row("NR BUSY", "s2S s1L s2S", options=STALE | zone(2)),
    Row(
        "NR NL BUSY BUSY",
        "s2S s1L s2R s3R",
        "relocate",
        {BUSY: 1},
        is_valid=False,
        options=STALE | zone(2),
    ),
    Row("NR NL3 BUSY NL2 BUSY", "s2S s1L s3L s3L s2L s2L", waits={BUSY: 2}, options=STALE | zone(2)),
    Row("LOST NL2", "s2S s1L s3S", options=STALE | zone(2) | TIMED),
    Row("LOST BUSY", "s1S s2S s3S", options=STALE | TIMED),
    Row("BUSY BUSYw", "s1S s2S s3S", options=STALE),
    Row("NR BUSY BUSY", "s1S s2L s3S s1S", options=STALE, leader=2),
    Row("", "s1L", options=STALE, is_write=True),
    # Through another store.
    Row("LOST", "s1L s2>s1", forwarding=True),
    Row("LOST LOST LOST", "s1L s2>s1 s3>s1", "relocate", {RPC: 1}, is_valid=False, forwarding=True),
    Row("LOST NL2 LOST BUSY", "s1L s2>s1 s2L s3>s2", "relocate", {BUSY: 1}, is_valid=False, forwarding=True),
    Row("LOST NL", "s1L s2>s1 s3L", forwarding=True, is_write=True),
]


class Bench:
    """A client with one Region, asked by rows."""

    def __init__(self, cluster: FakeCluster, rpc: RpcClient, entry: RegionEntry) -> None:
        self.cluster = cluster
        self.rpc = rpc
        self.entry = entry
        self.waits: dict[str, int] = {}

    async def ask(self, row: Row) -> tuple[str, str]:
        """Return whom the attempts went to, and how it ended."""
        script = Script(self.cluster, row.answers)
        call = self.rpc.call("trace", 600, RequestOptions(**row.options))
        rpc, message = (
            (Tikv.RawPut, kvrpcpb.RawPutRequest()) if row.is_write else (Tikv.RawGet, kvrpcpb.RawGetRequest())
        )
        request: Request[Any] = Request(rpc, message, Effect.WRITE if row.is_write else Effect.READ)
        end = "ok"
        try:
            await RetryRegion(script, self.rpc).execute(self.entry, request, call)
        except RelocateError:
            end = "relocate"
        except TikvError as error:
            end = type(error).__name__
        self.waits = call.backoffer.waits
        return " ".join(script.path), end


@pytest.fixture
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    row: Row = request.param
    async with FakeCluster(stores=row.stores) as cluster:
        cluster.move_leader(b"a", row.leader)
        config = RpcConfig(forwarding=row.forwarding)
        async with cluster.connect(config, choose=min) as rpc:
            region = cluster.map.region(b"a")
            peers = tuple(attrs.evolve(peer, is_learner=peer.store_id == row.learner) for peer in region.peers)
            entry = rpc.cache.insert(attrs.evolve(region, peers=peers), cluster.map.stores.values())
            assert entry is not None
            for store in entry.stores:
                store.labels = (("zone", f"z{store.id}"),)
                if store.id == row.slow:
                    store.health.timed.mark_slow()
            # Stores are not watched before the tasks of the client have begun.
            await anyio.wait_all_tasks_blocked()
            yield Bench(cluster, rpc, entry)


@pytest.mark.parametrize(("bench", "row"), [(row, row) for row in ROWS], indirect=["bench"], ids=str)
async def test_a_request_goes_to(bench: Bench, row: Row) -> None:
    path, end = await bench.ask(row)

    assert (path, end) == (row.path, row.end)
    assert bench.waits == row.waits
    assert (bench.entry.invalid_reason is None) == row.is_valid
    if row.leader_after is not None:
        assert bench.entry.leader_store.id == row.leader_after


@pytest.mark.parametrize("bench", [Row("", "", forwarding=True)], indirect=True)
async def test_the_next_request_goes_through_the_other_store_at_once(bench: Bench) -> None:
    await bench.ask(Row("LOST", ""))

    path, _ = await bench.ask(Row("", ""))

    assert path == "s2>s1"


@pytest.mark.parametrize("bench", [Row("", "")], indirect=True)
async def test_a_slow_leader_is_avoided_by_the_next_request_already(bench: Bench) -> None:
    first, _ = await bench.ask(Row("BUSY", "", options=PREFER))

    second, end = await bench.ask(Row("BUSY BUSY BUSY", "", options=PREFER))

    assert (first, second, end) == ("s1L s2R", "s2R s3R s1L", "relocate")
