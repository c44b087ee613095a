from __future__ import annotations

import subprocess
import sys

import pytest
import tikv_rpc
import tikv_rpc.testing


def test_importing_the_package_does_not_import_grpc() -> None:
    code = "import sys, tikv_rpc; sys.exit('grpc' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0


@pytest.mark.parametrize("module", [tikv_rpc, tikv_rpc.testing])
def test_every_public_name_has_a_docstring(module: object) -> None:
    undocumented = [name for name, value in vars(module).items() if isinstance(value, type) and not value.__doc__]

    assert undocumented == []
