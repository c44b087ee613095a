"""A bank on transactions: money moves between accounts from many tasks, and none of it is ever lost or made.

Run with `python examples/bank.py`, with tikv-txn and tikv-embedded installed; `--pd 127.0.0.1:2379` takes a cluster
that runs already, and keeps its accounts under `bank/` there.
"""

from __future__ import annotations

import argparse
import random
import time
from contextlib import AsyncExitStack

import anyio
from tikv_embedded import EmbeddedCluster
from tikv_txn import Transaction, TransactionClient, transactional

ACCOUNTS = 100
OPENING_BALANCE = 1000
PREFIX = b"bank/"


class Difference(Exception):
    """There is not as much money as there was."""


def account(number: int) -> bytes:
    """Return the key of an account."""
    return PREFIX + b"%04d" % number


async def balance(txn: Transaction, key: bytes) -> int:
    """Return what an account holds."""
    return int(await txn.get(key) or 0)


@transactional
async def transfer(txn: Transaction, source: bytes, target: bytes, amount: int) -> bool:
    """Move money if the source has it; return whether it did."""
    left = await balance(txn, source) - amount
    if left < 0:
        return False
    gained = await balance(txn, target) + amount
    txn.put_many({source: b"%d" % left, target: b"%d" % gained})
    return True


async def audit(client: TransactionClient) -> int:
    """Return how much money there is, at one moment."""
    return sum([int(value) async for _, value in client.snapshot().scan(prefix=PREFIX)])


async def run(address: str | None, seconds: float, tasks: int) -> None:
    """Open the accounts, move money for a while, and count it all the time."""
    async with AsyncExitStack() as stack:
        if address is None:
            address = (await stack.enter_async_context(EmbeddedCluster(stores=3))).url
        client = await stack.enter_async_context(TransactionClient(address))
        async with client.begin() as txn:
            txn.put_many({account(number): b"%d" % OPENING_BALANCE for number in range(ACCOUNTS)})

        moved = refused = audits = 0
        ends = time.monotonic() + seconds

        async def customer() -> None:
            nonlocal moved, refused
            while time.monotonic() < ends:
                source, target = random.sample(range(ACCOUNTS), 2)
                if await transfer(client, account(source), account(target), random.randint(1, 500)):
                    moved += 1
                else:
                    refused += 1

        async def auditor() -> None:
            nonlocal audits
            while time.monotonic() < ends:
                found = await audit(client)
                if found != ACCOUNTS * OPENING_BALANCE:
                    raise Difference(f"there are {found}, not {ACCOUNTS * OPENING_BALANCE}")
                audits += 1

        async with anyio.create_task_group() as group:
            group.start_soon(auditor)
            for _ in range(tasks):
                group.start_soon(customer)
        print(f"{moved} transfers, {refused} refused for want of money, {audits} audits: every one found all the money")


def main() -> None:
    """Run the bank."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pd", help="address of a running cluster's PD; an embedded one is made by default")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--tasks", type=int, default=16)
    options = parser.parse_args()
    anyio.run(run, options.pd, options.seconds, options.tasks)


if __name__ == "__main__":
    main()
