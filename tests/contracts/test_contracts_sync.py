"""The blocking clients are what their async twins are: the same names, parameters, results and docstrings."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any, get_overloads

import pytest
import tikv_raw
import tikv_raw.sync
import tikv_txn
import tikv_txn.sync

ROOT = Path(__file__).parents[2]
CLIENTS = {
    tikv_raw.RawClient: tikv_raw.sync.RawClient,
    tikv_txn.TransactionClient: tikv_txn.sync.TransactionClient,
}
TWINS: dict[type, type] = {
    **CLIENTS,
    tikv_raw.Scan: tikv_raw.sync.Scan,
    tikv_txn.Transaction: tikv_txn.sync.Transaction,
    tikv_txn.TransactionScan: tikv_txn.sync.TransactionScan,
    tikv_txn.Savepoint: tikv_txn.sync.Savepoint,
    tikv_txn.Snapshot: tikv_txn.sync.Snapshot,
    tikv_txn.Scan: tikv_txn.sync.Scan,
}
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
    """Return what one calls or reads, properties as the functions that they are."""
    own = [base for base in reversed(cls.__mro__) if base.__module__.startswith("tikv_")]
    found = {
        name: value.fget if isinstance(value, property) else value
        for base in own
        for name, value in vars(base).items()
        if callable(value) or isinstance(value, property)
    }
    names = {*SPELLED, *SPELLED.values()}
    return {name: value for name, value in found.items() if not name.startswith("_") or name in names}


def parity() -> list[Any]:
    return [
        pytest.param(value, twin, SPELLED.get(name, name), id=f"{cls.__name__}.{name}")
        for cls, twin in TWINS.items()
        for name, value in methods(cls).items()
    ]


def parameters(function: Any) -> list[tuple[str, Any, Any, str]]:
    signature = inspect.signature(function)
    return [(each.name, each.kind, each.default, blocking(each.annotation)) for each in signature.parameters.values()]


def blocking(annotation: Any) -> str:
    """What is awaited is there."""
    return re.sub(r"\bAwaitable\[(\w+)\]", r"\1", str(annotation))


@pytest.mark.parametrize("package", ["tikv_raw", "tikv_txn"])
def test_what_is_committed_is_what_the_script_writes(writer: ModuleType, package: str) -> None:
    committed = ast.parse(writer.MODULES[package].target.read_text(encoding="utf-8"))
    written = ast.parse(writer.generate(package))

    def body(tree: ast.Module) -> list[str]:
        return [ast.dump(node) for node in tree.body if not isinstance(node, (ast.Import, ast.ImportFrom))]

    assert body(committed) == body(written), "run .ci/blocking.py"


@pytest.mark.parametrize(("value", "twin", "name"), parity())
def test_a_method_has_a_blocking_twin_with_the_same_parameters(value: Any, twin: type, name: str) -> None:
    found = methods(twin)[name]

    assert parameters(found) == parameters(value)
    assert not inspect.iscoroutinefunction(found)
    assert [parameters(each) for each in get_overloads(found)] == [parameters(each) for each in get_overloads(value)]


@pytest.mark.parametrize(("cls", "twin"), TWINS.items(), ids=lambda cls: str(cls.__name__))
def test_what_is_read_like_an_attribute_is_so_in_both(cls: type, twin: type) -> None:
    def properties(of: type) -> set[str]:
        return {name for name, value in vars(of).items() if isinstance(value, property) and name[0] != "_"}

    assert properties(twin) == properties(cls)


def test_functions_have_a_twin_too() -> None:
    found, value = tikv_txn.sync.transactional, tikv_txn.transactional

    assert parameters(found) == parameters(value)
    assert [parameters(each) for each in get_overloads(found)] == [parameters(each) for each in get_overloads(value)]


@pytest.mark.parametrize(("value", "twin", "name"), parity())
def test_a_blocking_method_is_documented_in_words_that_fit_it(value: Any, twin: type, name: str) -> None:
    doc = inspect.getdoc(methods(twin)[name])

    if not name.startswith("__"):
        assert value.__doc__ is not None
        assert doc is not None
        if name != "close":  # It says which thread may close, instead of which task.
            assert len(doc.splitlines()) == len((inspect.getdoc(value) or "").splitlines())
    assert not any(word in (doc or "") for word in ("async with", "async for", "await ", "aclose", " task"))


@pytest.mark.parametrize(("cls", "twin"), TWINS.items(), ids=lambda cls: str(cls.__name__))
def test_a_blocking_class_has_nothing_more(cls: type, twin: type) -> None:
    assert set(methods(twin)) <= {SPELLED.get(name, name) for name in methods(cls)}


@pytest.mark.parametrize(("cls", "twin"), CLIENTS.items(), ids=lambda cls: str(cls.__name__))
def test_a_client_is_made_with_the_same_parameters(cls: Any, twin: Any) -> None:
    assert parameters(twin.__init__) == parameters(cls.__init__)


@pytest.mark.parametrize("twin", TWINS.values(), ids=lambda twin: f"{twin.__module__}.{twin.__name__}")
def test_a_blocking_class_is_documented_in_words_that_fit_it(twin: type) -> None:
    assert twin.__doc__
    assert not re.search(r"\b(async|await|aclose|tasks?)\b", twin.__doc__)
