"""Money moves between accounts on the embedded cluster, over real gRPC, while everything goes wrong.

Short here; `python -m tests.transactions.bank` runs the whole of it. `TRANSACTIONS_SECONDS=60` makes these longer.
"""

from __future__ import annotations

import os

import pytest

from tests.transactions.bank import MODES, Load, run

SECONDS = float(os.environ.get("TRANSACTIONS_SECONDS", "3"))


@pytest.fixture
def anyio_backend() -> str:
    """Both sides are grpc.aio's, which knows asyncio alone."""
    return "asyncio"


@pytest.mark.timeout(SECONDS + 60)
@pytest.mark.parametrize("mode", MODES)
async def test_no_money_is_made_or_lost(mode: str) -> None:
    bank = await run(Load(mode=mode, seconds=SECONDS))

    assert len(bank.committed) > SECONDS
    assert bank.audits
