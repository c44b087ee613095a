"""The example of transactions runs, and its money stays together."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio

EXAMPLE = Path(__file__).parents[2] / "examples" / "bank.py"


async def test_the_bank_loses_no_money() -> None:
    ended = await anyio.run_process([sys.executable, "-W", "error", str(EXAMPLE), "--seconds", "1"])

    assert ended.stdout.decode().endswith("audits: every one found all the money\n")
    assert ended.stderr == b""
