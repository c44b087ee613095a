"""What the packages export, name by name: a change of it is a change of what users rely on, and shows here.

Run as a script, this module writes both golden lists anew.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pytest

GOLDEN = Path(__file__).with_name("public_surface.txt")
SIGNATURES = Path(__file__).with_name("public_signatures.txt")
MODULES = [
    "tikv_pd",
    "tikv_pd.lowlevel",
    "tikv_pd.testing",
    "tikv_region",
    "tikv_region.testing",
    "tikv_rpc",
    "tikv_rpc.otel",
    "tikv_rpc.resource_control",
    "tikv_rpc.testing",
    "tikv_raw",
    "tikv_raw.sync",
    "tikv_txn",
    "tikv_txn.sync",
    "tikv_txn.testing",
    "tikv_embedded",
]

# Those whose signatures are pinned as well.
SIGNED = [
    "tikv_pd",
    "tikv_pd.lowlevel",
    "tikv_pd.testing",
    "tikv_region",
    "tikv_region.testing",
    "tikv_rpc",
    "tikv_rpc.otel",
    "tikv_rpc.resource_control",
    "tikv_rpc.testing",
    "tikv_raw",
    "tikv_raw.sync",
    "tikv_txn",
    "tikv_txn.sync",
    "tikv_txn.testing",
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
        if not name.startswith("_")
        and getattr(value, "__module__", "").partition(".")[0] == package
        and not isinstance(value, (TypeVar, ParamSpec))
    )


def signatures() -> Iterator[str]:
    """What one can do with each name: parameters of calls, members of classes; once, wherever it is exported."""
    seen: list[Any] = []
    for module_name in SIGNED:
        for name in exported(module_name):
            value = getattr(importlib.import_module(module_name), name)
            if value in seen:
                continue
            seen.append(value)
            yield f"{module_name} {name}{parameters(value)}"
            if isinstance(value, type):
                yield from (f"{module_name} {name}.{member}" for member in members(value))


def members(cls: type) -> Iterator[str]:
    package = cls.__module__.partition(".")[0]
    bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] == package]
    known = {name: value for base in reversed(bases) for name, value in vars(base).items() if not name.startswith("_")}
    for name, value in sorted(known.items()):
        if isinstance(value, (classmethod, staticmethod)):
            yield f"{name}{parameters(value.__func__)}"
        elif inspect.isfunction(value):
            yield f"{name}{parameters(value)}"
        else:
            yield name


def parameters(value: Any) -> str:
    """Return what a call takes and gives; nothing for what is not called, or only by the interpreter's own means."""
    is_class = isinstance(value, type)
    if isinstance(value, enum.EnumType):
        return ""
    if not inspect.isfunction(value.__init__ if is_class else value) or getattr(value, "_is_protocol", False):
        return ""
    signature = inspect.signature(value)
    taken = [each for each in signature.parameters.values() if each.name not in {"self", "cls"}]
    shown = [shorten(each) for each in taken]
    keywords = [each.kind is each.KEYWORD_ONLY for each in taken]
    if True in keywords and not any(text.startswith("*") for text in shown):
        shown.insert(keywords.index(True), "*")
    given = "" if is_class else f" -> {signature.return_annotation}"
    return f"({', '.join(shown)}){' async' if inspect.iscoroutinefunction(value) else ''}{given}"


def shorten(parameter: inspect.Parameter) -> str:
    stars = (
        "*" if parameter.kind is parameter.VAR_POSITIONAL else "**" if parameter.kind is parameter.VAR_KEYWORD else ""
    )
    kind = parameter.annotation
    text = "" if kind is parameter.empty else f": {kind if isinstance(kind, str) else getattr(kind, '__name__', kind)}"
    default = "" if parameter.default is parameter.empty else " = …"
    if parameter.default is None or isinstance(parameter.default, (bool, int, float, str, bytes)):
        default = f" = {parameter.default!r}"
    return f"{stars}{parameter.name}{text}{default}"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_exports_what_the_golden_list_says(module: str) -> None:
    assert exported(module) == golden()[module]


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_docstring(module: str) -> None:
    values = {name: getattr(importlib.import_module(module), name) for name in exported(module)}

    undocumented = [name for name, value in values.items() if isinstance(value, type) and not value.__doc__]

    assert undocumented == []


def test_signatures_are_what_the_golden_list_says() -> None:
    assert list(signatures()) == SIGNATURES.read_text().splitlines()


if __name__ == "__main__":
    GOLDEN.write_text("".join(f"{module} {name}\n" for module in MODULES for name in exported(module)))
    SIGNATURES.write_text("".join(f"{line}\n" for line in signatures()))
