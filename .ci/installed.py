"""Check a clean environment: exactly the named distributions of ours are installed, and all of each imports from there.

Usage: python installed.py DISTRIBUTION...
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

FOR_LATER = ("testing", "pytest_plugin", "httpx_transport", "otel")
"""Modules that may need a test runner, or an extra, which are not installed yet."""


def main(expected: list[str]) -> None:
    """Exit with a message when something is missing, surplus, or imported from elsewhere."""
    installed = sorted(dist.name for dist in importlib.metadata.distributions() if dist.name.startswith("tikv-"))
    if installed != sorted(expected):
        raise SystemExit(f"installed are {installed}, expected were {sorted(expected)}")
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    for module in (module for name in installed for module in modules(name.replace("-", "_"))):
        if module.__file__ is None or site_packages not in Path(module.__file__).resolve().parents:
            raise SystemExit(f"{module.__name__} was imported from {module.__file__}, not from {site_packages}")
    print("installed and imported from site-packages:", *installed)


def modules(package: str) -> Iterator[ModuleType]:
    """Import a package and every module in it; what one imports must be declared, as nothing else is installed."""
    root = importlib.import_module(package)
    yield root
    for found in pkgutil.walk_packages(root.__path__, f"{package}."):
        if found.name.rpartition(".")[2] not in FOR_LATER:
            yield importlib.import_module(found.name)


if __name__ == "__main__":
    main(sys.argv[1:])
