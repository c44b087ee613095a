"""The blocking clients are what their async twins are: the same names, parameters, results and docstrings."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, get_overloads

import pytest
import tikv_raw
import tikv_raw.sync

ROOT = Path(__file__).parents[2]
TWINS = {tikv_raw.RawClient: tikv_raw.sync.RawClient, tikv_raw.Scan: tikv_raw.sync.Scan}
SPELLED = {
    "aclose": "close",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    """The script that writes blocking clients."""
    spec = importlib.util.spec_from_file_location("blocking", ROOT / ".ci" / "blocking.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def methods(cls: type) -> dict[str, Any]:
    own = [base for base in reversed(cls.__mro__) if base.__module__.startswith("tikv_")]
    found = {name: value for base in own for name, value in vars(base).items() if callable(value)}
    return {name: value for name, value in found.items() if not name.startswith("_") or name in SPELLED}


def parity() -> list[Any]:
    return [
        pytest.param(value, twin, SPELLED.get(name, name), id=f"{cls.__name__}.{name}")
        for cls, twin in TWINS.items()
        for name, value in methods(cls).items()
    ]


def parameters(function: Any) -> list[tuple[str, Any, Any, Any]]:
    signature = inspect.signature(function)
    return [(each.name, each.kind, each.default, each.annotation) for each in signature.parameters.values()]


def test_what_is_committed_is_what_the_script_writes(writer: ModuleType) -> None:
    committed, written = ast.parse(writer.TARGET.read_text(encoding="utf-8")), ast.parse(writer.generate())

    def body(tree: ast.Module) -> list[str]:
        return [ast.dump(node) for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]

    assert body(committed) == body(written), "run .ci/blocking.py"


@pytest.mark.parametrize(("value", "twin", "name"), parity())
def test_a_method_has_a_blocking_twin_with_the_same_parameters(value: Any, twin: type, name: str) -> None:
    blocking = getattr(twin, name)

    assert parameters(blocking) == parameters(value)
    assert not inspect.iscoroutinefunction(blocking)
    assert [parameters(each) for each in get_overloads(blocking)] == [parameters(each) for each in get_overloads(value)]


@pytest.mark.parametrize(("value", "twin", "name"), parity())
def test_a_blocking_method_is_documented_in_words_that_fit_it(value: Any, twin: type, name: str) -> None:
    doc = inspect.getdoc(getattr(twin, name))

    if not name.startswith("__"):
        assert value.__doc__ is not None
        assert doc is not None
        if name != "close":  # It says which thread may close, instead of which task.
            assert len(doc.splitlines()) == len((inspect.getdoc(value) or "").splitlines())
    assert not any(word in (doc or "") for word in ("async with", "async for", "await ", "aclose", " task"))


@pytest.mark.parametrize(("cls", "twin"), TWINS.items(), ids=lambda cls: str(cls.__name__))
def test_a_blocking_class_has_nothing_more(cls: type, twin: type) -> None:
    assert set(methods(twin)) <= {SPELLED.get(name, name) for name in methods(cls)}


def test_a_client_is_made_with_the_same_parameters() -> None:
    assert parameters(tikv_raw.sync.RawClient.__init__) == parameters(tikv_raw.RawClient.__init__)
    assert tikv_raw.sync.RawClient.__doc__
