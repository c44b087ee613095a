"""Writes the blocking twin of an async client: `python .ci/blocking.py`, with ruff installed, after the client changed.

The twin has the public methods of the client's class and of those it inherits from, with their parameters, overloads
and docstrings, and hands each call over to a portal. `tests/contracts` compares what is committed with what this makes.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "packages" / "tikv-raw" / "src" / "tikv_raw" / "sync.py"
WORDS = [
    (r"`async (with|for)`", r"`\1`"),
    (r"\btask\b", "thread"),
    (r"\btasks\b", "threads"),
    (r"\baclose\b", "close"),
    (r"\bCancelling\b", "Interrupting"),
    (r"\bcancelled\b", "interrupted"),
    (r"\bCancellation:", "Interrupted:"),
]
"""What docstrings say of awaiting, and of blocking."""
OWN = {"__init__", "__aenter__", "__aexit__", "aclose"}
"""Methods that the template below writes itself."""

TEMPLATE = '''
"""The raw client for programs that do not await: the same names, parameters and results, from any thread.

Written by `.ci/blocking.py` after the async client: change that one, and run the script.
"""

from __future__ import annotations

class Scan(Pages[tuple[bytes, bytes]]):
    """SCAN_DOC"""

    def __init__(self, portal: Portal, scan: tikv_raw.scan.Scan) -> None:
        super().__init__(portal, scan._take_page, scan.aclose)

class RawClient:
    """CLIENT_DOC"""

    def __init__(INIT) -> None:
        self._client = tikv_raw.client.RawClient(INIT_ARGUMENTS)
        self._portal = Portal(self._client, "RawClient")

    def __enter__(self) -> Self:
        self._portal.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._portal.close()

    def close(self) -> None:
        """Close the client; calls under way fail with ClosedError, or UndeterminedError for a write that was sent.

        Closing twice is fine, and a closed client may be opened again. Any thread may close it.

        Raises:
            ConfigError: it is called in the client's own thread, by a callback.
        """
        self._portal.close()

    def _view(self, client: tikv_raw.client.RawClient) -> Self:
        """Return a client for a view of the async one, on the same portal."""
        view = copy(self)
        view._client = client
        return view
'''
THREADS = """

    An event loop runs in a thread of its own while the client is open, also beside a running one, as in a notebook.
    Ctrl-C interrupts a call and leaves the client usable. Callbacks, and iterables of keys and pairs, run in the
    client's thread, where calling the client raises ConfigError. Processes fork before they open their first client;
    in a later fork's child clients raise ClosedError. A program that exits closes what it forgot to close."""


def main() -> None:
    """Write the module anew."""
    TARGET.write_text(generate(), encoding="utf-8")
    for command in (["check", "--select", "I", "--fix"], ["format"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, str(TARGET)], check=True)  # noqa: S603  # ours


def generate() -> str:
    """Return the source of the twin, unformatted."""
    import tikv_raw.client  # noqa: PLC0415  # the client may be broken when this module is imported
    import tikv_raw.scan  # noqa: PLC0415

    client, scan = tikv_raw.client.RawClient, tikv_raw.scan.Scan
    classes = [cls for cls in client.__mro__ if cls.__module__.startswith("tikv_raw.")]
    nodes = [(node, inspect.getmodule(cls)) for cls in classes for node in methods(cls)]
    init = next(node for node, _ in nodes if node.name == "__init__")
    public = [(node, module) for node, module in nodes if node.name not in OWN and not node.name.startswith("_")]
    text = TEMPLATE.replace("SCAN_DOC", blocking(docstring(scan))).replace(
        "CLIENT_DOC", before_source(blocking(docstring(client)), THREADS)
    )
    text = text.replace("INIT_ARGUMENTS", arguments(init)).replace("INIT", ast.unparse(init.args))
    tree = ast.parse(text)
    (twin,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RawClient"]
    overloaded = {node.name for node, _ in public if is_overload(node)}
    twin.body += [method(node, overloaded) for node, _ in public]
    modules = [module for _, module in public if module is not None] + [sys.modules[client.__module__]]
    tree.body[2:2] = imports(tree, modules)
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def definition(cls: type) -> ast.ClassDef:
    """Return the source of a class."""
    module = inspect.getmodule(cls)
    assert module is not None
    nodes = ast.parse(inspect.getsource(module)).body
    return next(node for node in nodes if isinstance(node, ast.ClassDef) and node.name == cls.__name__)


def methods(cls: type) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Return what a class defines by itself, overloads included."""
    return [each for each in definition(cls).body if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]


def docstring(cls: type) -> str | None:
    """Return a class's docstring as it is written; from 3.13 on, `__doc__` is not."""
    return ast.get_docstring(definition(cls), clean=False)


def method(node: ast.FunctionDef | ast.AsyncFunctionDef, overloaded: set[str]) -> ast.FunctionDef:
    """Return the twin of a method."""
    doc = ast.get_docstring(node, clean=False)
    body: list[ast.stmt] = [] if doc is None else [ast.Expr(ast.Constant(blocking(doc)))]
    returns = ast.unparse(node.returns) if node.returns is not None else "None"
    if is_overload(node):
        body.append(ast.Expr(ast.Constant(...)))
    else:
        call = f"self._client.{node.name}({arguments(node)})"
        function = f"self._client.{node.name}"
        if isinstance(node, ast.AsyncFunctionDef):
            if node.name in overloaded:
                # A type checker cannot tell which one is handed over.
                body += ast.parse(f"function: Callable[..., Coroutine[Any, Any, {returns}]] = {function}").body
                function = "function"
            call = f"self._portal.call({', '.join(filter(None, [function, arguments(node)]))})"
        elif returns == "Scan":
            call = f"Scan(self._portal, {call})"
        elif returns == "Self":
            call = f"self._view({call})"
        else:
            call = f"self._portal.run({', '.join(filter(None, [function, arguments(node)]))})"
        body += ast.parse(call if returns == "None" else f"return {call}").body
    (twin,) = ast.parse(f"def {node.name}(): ...").body
    assert isinstance(twin, ast.FunctionDef)
    twin.args, twin.body, twin.decorator_list, twin.returns = node.args, body, node.decorator_list, node.returns
    return twin


def is_overload(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Tell whether a method only declares how another is called."""
    return any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)


def arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return how a method hands on what it is given."""
    positional = [each.arg for each in (*node.args.posonlyargs, *node.args.args) if each.arg != "self"]
    return ", ".join([*positional, *(f"{each.arg}={each.arg}" for each in node.args.kwonlyargs)])


def imports(tree: ast.Module, modules: list[ModuleType]) -> list[ast.stmt]:
    """Return imports of the names that a module uses, found where the client's modules import or define them."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found = {"Portal": "tikv_rpc", "Pages": "tikv_rpc", "copy": "copy", "Coroutine": "collections.abc"}
    for module in modules:
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                found |= {alias.name: node.module for alias in node.names if alias.asname in {None, alias.name}}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = module.__name__
    names = sorted(name for name in used & set(found) if name not in {"RawClient", "Scan"})
    lines = [f"from {found[name]} import {name}" for name in names]
    return ast.parse("\n".join(["import tikv_raw.client", "import tikv_raw.scan", *lines])).body


def blocking(doc: Any) -> str:
    """Return what a docstring says of a client that blocks."""
    text = str(doc)
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text)
    return text


def before_source(doc: str, addition: str) -> str:
    """Return a docstring with a paragraph more, above its source."""
    head, source = doc.split("\n\n    Source:")
    return f"{head}{addition}\n\n    Source:{source}"


if __name__ == "__main__":
    main()
