"""Schedules: what a few clients do, what befalls their requests and the cluster meanwhile; and how they are run."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import anyio
import attrs
from hypothesis import strategies as st
from tikv_embedded.errors import TopologyError
from tikv_proto import errorpb
from tikv_rpc import ReplicaRead, RequestOptions
from tikv_txn import (
    AlreadyExists,
    BackoffExceeded,
    ClosedError,
    DeadlineExceeded,
    KeyLocked,
    RpcError,
    TransactionAborted,
    TransactionClient,
    TransactionOptions,
    UndeterminedError,
    WriteConflict,
)

from tests.transactions.history import LatestRead, Outcome, Txn
from tests.transactions.recording import RecordedTransaction, Recording
from tests.transactions.virtual_cluster import Fault, VirtualCluster

KEYS: Final = (b"a", b"h", b"m", b"t")
"""Few, so that transactions meet."""
CLIENTS: Final = 2
MODES: Final = {
    "2pc": TransactionOptions(async_commit=False, one_pc=False),
    "async commit": TransactionOptions(one_pc=False),
    "1pc": TransactionOptions(async_commit=False),
    "fastest": TransactionOptions(),
    "causal": TransactionOptions(causal_consistency=True),
    "follower": TransactionOptions(requests=RequestOptions(replica_read=ReplicaRead.FOLLOWER)),
}
LOOKS: Final = ("latest", "stale", "past")
"""How to read without a transaction: the newest, a little in the past, where another transaction has read."""
EXPECTED: Final = (
    WriteConflict,
    AlreadyExists,
    KeyLocked,
    TransactionAborted,
    DeadlineExceeded,
    BackoffExceeded,
    ClosedError,
    RpcError,
    UndeterminedError,
)
"""How transactions may fail here. Stores that contradict each other, above all, are no such way."""
SETTLED: Final = 100.0
"""Seconds after which nothing goes on in the background any more."""


async def _get(txn: RecordedTransaction, key: bytes) -> None:
    await txn.get(key)


async def _batch_get(txn: RecordedTransaction, key: bytes) -> None:
    await txn.batch_get(sorted({key, *txn.keys[::3]}))


async def _scan(txn: RecordedTransaction, key: bytes) -> None:
    await txn.scan(reverse=key > txn.keys[1])


def _written(
    write: Callable[[RecordedTransaction, bytes], None],
) -> Callable[[RecordedTransaction, bytes], Awaitable[None]]:
    async def step(txn: RecordedTransaction, key: bytes) -> None:
        write(txn, key)

    return step


STEPS: Final[dict[str, Callable[[RecordedTransaction, bytes], Awaitable[None]]]] = {
    "get": _get,
    "batch_get": _batch_get,
    "scan": _scan,
    "put": _written(RecordedTransaction.put),
    "delete": _written(RecordedTransaction.delete),
    "insert": _written(RecordedTransaction.insert),
    "lock": _written(RecordedTransaction.lock),
}
_CHANGES: Final[dict[str, Callable[[VirtualCluster, bytes, int], None]]] = {
    "split": lambda cluster, key, _store: cluster.split(key),
    "merge": lambda cluster, key, _store: cluster.merge(key),
    "move leader": VirtualCluster.move_leader,
    "crash": lambda cluster, _key, store: cluster.crash(store),
    "restart": lambda cluster, _key, store: cluster.restart(store),
}


@attrs.frozen
class Script:
    """One transaction."""

    client: int
    mode: str
    """One of `MODES` or `LOOKS`."""
    steps: tuple[tuple[str, bytes], ...]
    start: float = 0.0
    pause: float = 0.0
    """Seconds before each step, and before the commit."""
    patience: float = 60.0
    """Seconds after which it is cancelled."""
    timeout: float = 20.0
    """Seconds that each of its calls may take."""


@attrs.frozen
class Change:
    """What happens to the cluster."""

    at: float
    kind: str
    key: bytes
    store: int


@attrs.frozen
class Schedule:
    scripts: tuple[Script, ...]
    faults: tuple[Fault, ...] = ()
    changes: tuple[Change, ...] = ()
    lives: tuple[float, ...] = (300.0,) * CLIENTS
    """Seconds after which each client vanishes."""


@attrs.frozen
class Result:
    history: list[Txn]
    """Of the clients, and of one that looks at everything afterwards."""
    latest: list[LatestRead]
    cluster: VirtualCluster

    def settled(self) -> list[Txn]:
        """Return the history with every outcome as the stores know it, which must be what the clients were told."""
        return [self._settled(txn) for txn in self.history]

    def _settled(self, txn: Txn) -> Txn:
        records = {key: self.cluster.record(key, txn.start_ts) for key in txn.touched}
        commits = {record.commit_ts if record.is_committed else 0 for record in records.values()}
        assert len(commits) <= 1, f"{txn.name} is committed in part: {records}"
        commit_ts = commits.pop() if commits else txn.commit_ts
        if txn.outcome is Outcome.UNDETERMINED:
            outcome = Outcome.COMMITTED if commit_ts else Outcome.ABORTED
            # It may have happened after its client had given up.
            return attrs.evolve(txn, outcome=outcome, commit_ts=commit_ts, ended=math.inf)
        assert commit_ts == txn.commit_ts, f"{txn.name} is {txn.outcome.value} at {txn.commit_ts}, not {commit_ts}"
        return txn


async def run(schedule: Schedule) -> Result:
    """Run a schedule on trio's virtual clock, and let everything come to its end."""
    recording = Recording(KEYS)
    async with VirtualCluster([KEYS[1], KEYS[2]], schedule.faults) as cluster:
        async with anyio.create_task_group() as tasks:
            for number, life in enumerate(schedule.lives):
                scripts = [script for script in schedule.scripts if script.client == number]
                tasks.start_soon(_live, cluster, recording, scripts, life)
            tasks.start_soon(_change, cluster, schedule.changes)
        cluster.heal()
        await anyio.sleep(SETTLED)
        async with TransactionClient(cluster.url, transport=cluster.transport) as client:
            async with recording.transaction(client) as txn:
                await txn.batch_get(KEYS)
                await txn.scan()
            # What others locked and did not change is in the way of writers alone.
            async with recording.transaction(client, MODES["2pc"]) as txn:
                for key in KEYS:
                    txn.put(key)
            await anyio.sleep(SETTLED)
        return Result(recording.txns, recording.latest, cluster)


async def _live(cluster: VirtualCluster, recording: Recording, scripts: list[Script], life: float) -> None:
    with anyio.move_on_after(life):
        async with (
            TransactionClient(cluster.url, transport=cluster.transport) as client,
            anyio.create_task_group() as tasks,
        ):
            for script in scripts:
                tasks.start_soon(_perform if script.mode in MODES else _look, client, recording, script)


async def _perform(client: TransactionClient, recording: Recording, script: Script) -> None:
    await anyio.sleep(script.start)
    with anyio.move_on_after(script.patience), suppress(*EXPECTED):
        async with recording.transaction(client, MODES[script.mode], timeout=script.timeout) as txn:
            for step, key in script.steps:
                await anyio.sleep(script.pause)
                await STEPS[step](txn, key)
            await anyio.sleep(script.pause)


async def _look(client: TransactionClient, recording: Recording, script: Script) -> None:
    await anyio.sleep(script.start + script.pause)
    with anyio.move_on_after(script.patience), suppress(*EXPECTED):
        await look(client, recording, script.mode, [key for _, key in script.steps], max(script.pause, 0.001))


async def look(client: TransactionClient, recording: Recording, way: str, keys: list[bytes], staleness: float) -> None:
    """Read in one of the ways of `LOOKS`."""
    if way == "latest":
        await recording.read_latest(client, keys)
    elif way == "stale":
        await recording.read_snapshot(client.snapshot(staleness=staleness))
    elif recording.txns:
        await recording.read_snapshot(client.snapshot(recording.txns[-1].start_ts))


async def _change(cluster: VirtualCluster, changes: tuple[Change, ...]) -> None:
    for change in sorted(changes, key=lambda change: change.at):
        await anyio.sleep(max(change.at - anyio.current_time(), 0))
        with suppress(TopologyError):
            _CHANGES[change.kind](cluster, change.key, change.store)


_REFUSALS: Final = (
    errorpb.Error(message="busy", server_is_busy=errorpb.ServerIsBusy(reason="busy")),
    errorpb.Error(message="stale command", stale_command=errorpb.StaleCommand()),
    errorpb.Error(message="not synced", max_timestamp_not_synced=errorpb.MaxTimestampNotSynced()),
)
UNDETERMINED_RESULT: Final = errorpb.Error(message="undetermined", undetermined_result=errorpb.UndeterminedResult())

_OFTEN: Final = [*KEYS, KEYS[0], KEYS[2]]

_delays = st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.3, 4.0])
_faults = st.one_of(
    st.builds(Fault, before=_delays, after=_delays),
    st.builds(Fault, before=_delays, after=_delays),
    st.builds(Fault, is_lost=st.just(True), before=_delays),
    st.builds(Fault, is_answer_lost=st.just(True), before=_delays),
    st.builds(Fault, late=st.sampled_from([0.05, 0.5, 4.0, 12.0])),
    st.builds(Fault, before=_delays, refusal=st.sampled_from(_REFUSALS)),
    st.builds(Fault, denial=st.just(UNDETERMINED_RESULT)),
)
_scripts = st.builds(
    Script,
    client=st.integers(0, CLIENTS - 1),
    mode=st.sampled_from([*sorted(MODES), "causal", *LOOKS]),
    steps=st.lists(
        st.tuples(st.sampled_from([*STEPS, "get", "get", "put", "put", "put"]), st.sampled_from(_OFTEN)),
        min_size=1,
        max_size=6,
    ).map(tuple),
    start=st.sampled_from([0.0, 0.01, 0.03, 0.1, 0.2, 0.5, 4.0]),
    pause=st.sampled_from([0.0, 0.01, 0.05]),
    patience=st.sampled_from([60.0, 60.0, 60.0, 0.1, 0.3]),
    timeout=st.sampled_from([20.0, 20.0, 0.03, 0.2]),
)
_changes = st.builds(
    Change,
    at=st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.5, 3.0]),
    kind=st.sampled_from(sorted(_CHANGES)),
    key=st.sampled_from(KEYS),
    store=st.integers(1, 3),
)
schedules = st.builds(
    Schedule,
    scripts=st.lists(_scripts, min_size=3, max_size=10).map(tuple),
    faults=st.lists(_faults, min_size=5, max_size=50).map(tuple),
    changes=st.lists(_changes, max_size=6).map(tuple),
    lives=st.lists(st.sampled_from([300.0, 300.0, 300.0, 0.1, 0.3]), min_size=CLIENTS, max_size=CLIENTS).map(tuple),
)
