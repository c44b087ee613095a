from __future__ import annotations

import subprocess
import sys

import pytest
import tikv_pd
from tikv_pd.lowlevel import as_bytes


def test_importing_the_package_does_not_import_grpc() -> None:
    code = "import sys, tikv_pd; sys.exit('grpc' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 0


def test_every_public_name_has_a_docstring() -> None:
    undocumented = [name for name, value in vars(tikv_pd).items() if isinstance(value, type) and not value.__doc__]

    assert undocumented == []


@pytest.mark.parametrize("value", [b"key", bytearray(b"key"), memoryview(b"key")])
def test_bytes_like_keys_are_accepted(value: object) -> None:
    assert as_bytes(value, "key") == b"key"
    assert type(as_bytes(value, "key")) is bytes


def test_a_str_key_is_a_type_error_that_says_what_to_do() -> None:
    with pytest.raises(TypeError, match=r"key must be bytes, not str; use key\.encode\(\)"):
        as_bytes("key", "key")


@pytest.mark.parametrize("value", [None, 1, [b"key"]])
def test_what_is_not_bytes_like_is_a_type_error(value: object) -> None:
    with pytest.raises(TypeError, match="key must be bytes, not "):
        as_bytes(value, "key")
