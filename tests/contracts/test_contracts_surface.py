"""What the packages export, name by name: a change of it is a change of what users rely on, and shows here."""

from __future__ import annotations

import importlib
import types
from pathlib import Path

import pytest

GOLDEN = Path(__file__).with_name("public_surface.txt")
MODULES = [
    "tikv_pd",
    "tikv_pd.lowlevel",
    "tikv_pd.testing",
    "tikv_region",
    "tikv_region.testing",
    "tikv_rpc",
    "tikv_rpc.testing",
    "tikv_raw",
    "tikv_txn",
    "tikv_embedded",
]


def golden() -> dict[str, list[str]]:
    lines = GOLDEN.read_text().splitlines()
    return {module: [line.split()[1] for line in lines if line.split()[0] == module] for module in MODULES}


def exported(module_name: str) -> list[str]:
    module = importlib.import_module(module_name)
    if not module_name.count("."):
        return sorted(
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and not isinstance(value, types.ModuleType)
        )
    # Modules that are public as such export what they define or re-export from their own package.
    package = module_name.partition(".")[0]
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "").partition(".")[0] == package
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_module_exports_what_the_golden_list_says(module: str) -> None:
    assert exported(module) == golden()[module]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module: str) -> None:
    values = {name: getattr(importlib.import_module(module), name) for name in exported(module)}

    undocumented = [name for name, value in values.items() if isinstance(value, type) and not value.__doc__]

    assert undocumented == []


if __name__ == "__main__":
    GOLDEN.write_text("".join(f"{module} {name}\n" for module in MODULES for name in exported(module)))
