from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime

import pytest
import tikv_txn
import tikv_txn.sync
import tikv_txn.testing
from tikv_txn import Timestamp


def test_a_moment_becomes_a_timestamp_and_comes_back() -> None:
    moment = datetime(2026, 11, 21, 12, 30, 0, 123000, tzinfo=UTC)

    assert Timestamp.from_ts(Timestamp.from_datetime(moment).ts).to_datetime() == moment


@pytest.mark.parametrize("module", ["tikv_txn", "tikv_txn.sync"])
def test_importing_it_does_not_import_grpc(module: str) -> None:
    code = f"import sys, {module}; sys.exit('grpc' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0


@pytest.mark.parametrize("module", [tikv_txn, tikv_txn.sync, tikv_txn.testing])
def test_every_public_name_has_a_docstring(module: object) -> None:
    own = {name: value for name, value in vars(module).items() if not name.startswith("_") and is_ours(value)}

    assert [name for name, value in own.items() if not value.__doc__] == []


def is_ours(value: object) -> bool:
    return isinstance(value, type) and value.__module__.startswith("tikv_txn")
