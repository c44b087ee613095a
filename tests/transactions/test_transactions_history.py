"""What clients read and wrote on the embedded cluster, over real gRPC and while everything goes wrong, is a history
that snapshot isolation allows. `TRANSACTIONS_SECONDS=60` makes the tests longer.
"""

from __future__ import annotations

import os
import random
from contextlib import suppress

import anyio
import anyio.lowlevel
import attrs
import pytest
from tikv_embedded import EmbeddedCluster
from tikv_txn import TransactionClient

from tests.transactions.bank import CONFIG
from tests.transactions.history import Outcome, check
from tests.transactions.recording import Recording
from tests.transactions.schedules import EXPECTED, LOOKS, MODES, STEPS, look
from tests.transactions.turmoil import turmoil, unlocked

SECONDS = float(os.environ.get("TRANSACTIONS_SECONDS", "3"))
KEYS = tuple(b"k%02d" % number for number in range(12))
CLIENTS, TASKS = 2, 5


@pytest.fixture
def anyio_backend() -> str:
    """Both sides are grpc.aio's, which knows asyncio alone."""
    return "asyncio"


async def work(client: TransactionClient, recording: Recording, choices: random.Random) -> None:
    """Do one random transaction after the other."""
    kinds = [*STEPS, "get", "get", "put", "put", "put"]
    while True:
        options, timeout = MODES[choices.choice(list(MODES))], choices.choice([0.01, 0.03, 0.1, None, None])
        with suppress(*EXPECTED), anyio.move_on_after(choices.choice([0.02, 10, 10, 10, 10])):
            if choices.random() < 0.2:
                await look(
                    client, recording, choices.choice(LOOKS), choices.sample(KEYS, 3), choices.uniform(0.001, 0.1)
                )
                continue
            async with recording.transaction(client, options, timeout=timeout) as txn:
                for _ in range(choices.randrange(1, 5)):
                    await STEPS[choices.choice(kinds)](txn, choices.choice(KEYS))
        await anyio.lowlevel.checkpoint()


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize(("seed", "network"), [(1, False), (2, True)])
async def test_clients_see_snapshots_whatever_happens(seed: int, network: bool) -> None:
    recording = Recording(KEYS)
    async with EmbeddedCluster(stores=3, pd_members=3, network_faults=network) as cluster:
        async with turmoil(cluster, KEYS, seed, network=network):
            with anyio.move_on_after(SECONDS):
                async with anyio.create_task_group() as tasks:
                    for number in range(CLIENTS):
                        tasks.start_soon(live, cluster, recording, f"{seed}.{number}")
        async with TransactionClient(cluster.url, config=CONFIG) as client:
            await leave(client, recording)
            await unlocked(cluster, client)

    outcomes = [txn.outcome for txn in recording.txns]
    assert outcomes.count(Outcome.COMMITTED) > SECONDS
    assert check(recording.txns, recording.latest) == []


async def live(cluster: EmbeddedCluster, recording: Recording, seed: str) -> None:
    """Be a client until cancelled."""
    async with (
        TransactionClient(cluster.url, config=attrs.evolve(CONFIG, timeout=3.0)) as client,
        anyio.create_task_group() as tasks,
    ):
        for number in range(TASKS):
            tasks.start_soon(work, client, recording, random.Random(f"{seed}.{number}"))


async def leave(client: TransactionClient, recording: Recording) -> None:
    """Look at everything, and put every lock away by writing everything."""
    async with recording.transaction(client) as txn:
        await txn.scan()
    async with recording.transaction(client, MODES["2pc"], timeout=20) as txn:
        for key in KEYS:
            txn.put(key)
    async with recording.transaction(client) as txn:
        await txn.batch_get(KEYS)
