"""tikv_proto shares a process with other carriers of kvproto, and runs on every implementation of protobuf."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IMPLEMENTATIONS = ("upb", "python")

BOTH_WORK = """
assert Store(address="theirs").SerializeToString() == b"\\x3a\\x06theirs"
assert metapb.Store(address="ours").SerializeToString() == b"\\x12\\x04ours"
assert metapb.Store.DESCRIPTOR.full_name == Store.DESCRIPTOR.full_name == "metapb.Store"
assert kvrpcpb.Context(peer=metapb.Peer(id=1)).peer.id == 1
assert metapb.StoreState.Up == 0 and services.PD.GetStore.response().store.address == ""
"""


def run(program: str, implementation: str, directory: Path) -> None:
    """Run a program in an empty directory, with warnings as errors, on one implementation of protobuf."""
    environment = {
        **os.environ,
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": implementation,
        "PYTHONPATH": str(HERE),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-W", "error", "-c", program]

    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_another_kvproto_may_be_imported_before(implementation: str, tmp_path: Path) -> None:
    program = "from kvproto_stand_in import Store\nfrom tikv_proto import kvrpcpb, metapb, services\n" + BOTH_WORK

    run(program, implementation, tmp_path)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_another_kvproto_may_be_imported_after(implementation: str, tmp_path: Path) -> None:
    program = (
        "from tikv_proto import kvrpcpb, metapb, services\n"
        "metapb.Store(), kvrpcpb.Context()\n"
        "from kvproto_stand_in import Store\n" + BOTH_WORK
    )

    run(program, implementation, tmp_path)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_default_pool_stays_empty(implementation: str, tmp_path: Path) -> None:
    program = """
from google.protobuf import descriptor_pool
from tikv_proto import services
from tikv_proto._pool import FILES, POOL
instances = [message() for rpc in services.all_rpcs() for message in (rpc.request, rpc.response)]
default = descriptor_pool.Default()
for file in FILES:
    POOL.FindFileByName(file)
    try:
        default.FindFileByName(file)
    except KeyError:
        continue
    raise AssertionError(file)
"""

    run(program, implementation, tmp_path)


@pytest.mark.timeout(120)
def test_messages_and_services_behave_the_same_in_pure_python_protobuf(tmp_path: Path) -> None:
    tests = [str(HERE / name) for name in ("test_proto_messages.py", "test_proto_services.py")]
    program = f"""
import sys, pytest
from google.protobuf.internal import api_implementation
assert api_implementation.Type() == "python"
options = ["-q", "-c", {os.devnull!r}, "-p", "no:cacheprovider", "--import-mode=importlib"]
sys.exit(pytest.main([*options, *{tests!r}]))
"""

    run(program, "python", tmp_path)
