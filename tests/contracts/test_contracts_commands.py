"""The commands a reader of README.md is told to run are those that CI runs."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = ROOT / ".ci" / "run"


def command(session: str) -> str:
    """Return the one command of the README that sets everything up and runs a session."""
    (found,) = re.findall(rf"^ *(python3 -m venv .* -s {session})$", README, flags=re.MULTILINE)
    return str(found)


@pytest.mark.parametrize("session", ["demo", "tests"])
def test_one_command_of_the_readme_starts_from_nothing_but_python(session: str) -> None:
    expected = f"python3 -m venv .venv && .venv/bin/pip install nox && .venv/bin/nox -s {session}"

    assert command(session) == expected


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert command("tests") in CI.read_text(encoding="utf-8")


def test_ci_can_be_run() -> None:
    assert os.access(CI, os.X_OK)
    assert subprocess.run(["bash", "-n", str(CI)], check=False).returncode == 0
