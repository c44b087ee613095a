"""Check a clean environment: exactly the named distributions of ours are installed, and they import from there.

Usage: python installed.py DISTRIBUTION...
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
import sysconfig
from pathlib import Path


def main(expected: list[str]) -> None:
    """Exit with a message when something is missing, surplus, or imported from elsewhere."""
    installed = sorted(dist.name for dist in importlib.metadata.distributions() if dist.name.startswith("tikv-"))
    if installed != sorted(expected):
        raise SystemExit(f"installed are {installed}, expected were {sorted(expected)}")
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    for name in installed:
        module = importlib.import_module(name.replace("-", "_"))
        if module.__file__ is None or site_packages not in Path(module.__file__).resolve().parents:
            raise SystemExit(f"{name} was imported from {module.__file__}, not from {site_packages}")
    print("installed and imported from site-packages:", *installed)


if __name__ == "__main__":
    main(sys.argv[1:])
