"""Clients in processes of their own, and the environment that those of others are installed into."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clients import OPEN, PEERS
from measure import Measurement
from servers import HERE, Server

_TIMEOUT = 60.0
"""Seconds after which a client counts as failed."""


class ClientFailedError(Exception):
    """A client could not be installed, or did not do its job; says why in one line."""


@dataclass(frozen=True)
class Environments:
    """Which Python runs which client."""

    pythons: Mapping[str, Path]
    failures: Mapping[str, str]
    """Clients that could not be installed, and why."""

    def run(self, client: str, server: Server, *job: str, script: str = "client_process.py") -> dict[str, Measurement]:
        """Run a job of `client_process.py`, or of another script that takes and prints the like.

        Raises:
            ClientFailedError: the client was not installed or failed.
        """
        if client in self.failures:
            raise ClientFailedError(self.failures[client])
        command: list[str | Path] = [
            self.pythons[client],
            HERE / script,
            client,
            server.url,
            str(server.pid),
            *job,
        ]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise ClientFailedError(f"not done within {_TIMEOUT:.0f} s") from None
        # With figures there is no failure: tikv-client now and then crashes when its interpreter ends, after the work.
        if not ran.stdout:
            raise ClientFailedError(_last_line(ran.stderr) or f"exit status {ran.returncode}")
        return {case: Measurement(**figures) for case, figures in json.loads(ran.stdout).items()}


def install(directory: Path, clients: Iterable[str] = tuple(PEERS), *also: str) -> Environments:
    """Install other clients, each into an environment of its own below `directory`; what fails is kept as such.

    Args:
        directory: Where the environments go.
        clients: Names of the clients.
        *also: Requirements that each environment gets besides.
    """
    pythons = dict.fromkeys(OPEN, Path(sys.executable))
    failures = {}
    for client in clients:
        venv.create(directory / client, with_pip=True)
        pythons[client] = directory / client / "bin" / "python"
        command: list[str | Path] = [pythons[client], "-m", "pip", "install", "--quiet", PEERS[client], *also]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            failures[client] = f"not installed: {_last_line(ran.stderr)}"
    return Environments(pythons, failures)


def left_out() -> Environments:
    """Return environments without other clients."""
    return Environments(dict.fromkeys(OPEN, Path(sys.executable)), dict.fromkeys(PEERS, "left out"))


def _last_line(text: str) -> str:
    """Return the last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else ""
