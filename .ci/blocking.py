"""Writes the blocking twins of async clients: `python .ci/blocking.py`, with ruff installed, after a client changed.

A twin has the public members of its class and of those that this one inherits from, with their parameters, overloads
and docstrings, and hands each call over to a portal. `tests/contracts` compares what is committed with what this makes.

A template, in `.ci/blocking`, says what is not so simple. Where it has a method that the async class has, its body is
taken, and the rest from there; where it has a docstring for a class, that is put at the end of the class's own. `(...)`
stands for the arguments of the method.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
TEMPLATES = Path(__file__).with_suffix("")
WORDS = [
    # The longer ones first.
    (r", to be begun by `async with` or by `await`\.", " that has begun."),
    (
        r"The tasks of one event loop may read and write in one transaction[^.;]*; other threads must not\.",
        "One thread at a time may use it, its scans and its savepoints.",
    ),
    (r"(writes behind is not\.) Several tasks may iterate over one scan: each pair goes to one of them\.", r"\1"),
    (
        r"Any task of the event loop may close it, whichever opened it; all who do return when it is closed\.",
        "Any thread may close it.",
    ),
    (
        r"ConfigError: it was opened in another event loop\. Cancellation: the client is closed all the same[^.]*\.",
        "ConfigError: it is called in the client's own thread, by an interceptor.",
    ),
    (r"Must not block the loop; what (it raises)", r"What \1"),
    (r"`with` or `async with` block", "`with` block"),
    (r"`tikv_txn.transactional`", "`tikv_txn.sync.transactional`"),
    (r"\b([Aa])n async function\b", r"\1 function"),
    (r"\basync (with|for|def)\b", r"\1"),
    (r"\bawait (?=\w)", ""),
    (r"\btask\b", "thread"),
    (r"\btasks\b", "threads"),
    (r"\baclose\b", "close"),
    (r"\bCancelling\b", "Interrupting"),
    (r"\bcancelled\b", "interrupted"),
    (r"\bCancellation:", "Interrupted:"),
]
"""What docstrings say of awaiting, where a space is any, and of blocking."""
WIDTH = 120
"""Characters of a line; what is too much goes to the next line, if that is of the same paragraph."""
SPELLED = {
    "aclose": "close",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}
"""Members that are called otherwise in a twin, and are always written by the template."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Twin(NamedTuple):
    """How a class gets the members that its template does not write."""

    module: str
    """Where its async class of the same name is."""
    inner: str = ""
    """The attribute with the async object; empty when the template writes all."""
    is_local: bool = False
    """Whether functions that do not await run in the caller's thread, not in the event loop's."""
    translated: frozenset[str] = frozenset()
    """Functions that only have to forget about awaiting."""


class Module(NamedTuple):
    """A module to be written."""

    target: Path
    twins: dict[str, Twin]
    functions: tuple[tuple[str, str], ...] = ()
    """Functions that only have to forget about awaiting, after the module that they are in."""


MODULES = {
    "tikv_raw": Module(
        ROOT / "packages" / "tikv-raw" / "src" / "tikv_raw" / "sync.py",
        {"Scan": Twin("tikv_raw.scan"), "RawClient": Twin("tikv_raw.client", "_client")},
    ),
    "tikv_txn": Module(
        ROOT / "packages" / "tikv-txn" / "src" / "tikv_txn" / "sync.py",
        {
            "Scan": Twin("tikv_txn.scan"),
            "Snapshot": Twin("tikv_txn.snapshot", "_snapshot"),
            "TransactionScan": Twin("tikv_txn.transaction_scan"),
            "Savepoint": Twin("tikv_txn.savepoint", "_savepoint", is_local=True),
            "Transaction": Twin("tikv_txn.transaction", "_transaction", is_local=True),
            "TransactionClient": Twin("tikv_txn.client", "_client", translated=frozenset({"transactional"})),
        },
        (("tikv_txn.client", "transactional"),),
    ),
}
"""By their packages."""


def main() -> None:
    """Write the modules anew."""
    for package, module in MODULES.items():
        module.target.write_text(generate(package), encoding="utf-8")
        for command in (["check", "--select", "I", "--fix"], ["format"]):
            subprocess.run([sys.executable, "-m", "ruff", *command, str(module.target)], check=True)  # noqa: S603  # ours


def generate(package: str) -> str:
    """Return the source of a package's twins, unformatted."""
    made = MODULES[package]
    tree = ast.parse((TEMPLATES / f"{package}.txt").read_text(encoding="utf-8"))
    sources = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            sources |= complete(node, made.twins[node.name], set(made.twins))
    for module, function in made.functions:
        tree.body += [blocking(node) for node in named(source_of(module).body, function)]
    tree.body[2:2] = imports(tree, sources)
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def complete(twin: ast.ClassDef, how: Twin, twins: set[str]) -> set[str]:
    """Give a template's class what it lacks; return the modules that this comes from."""
    original = getattr(import_module(how.module), twin.name)
    classes = [cls for cls in original.__mro__ if cls.__module__.partition(".")[0] == how.module.partition(".")[0]]
    doc = in_words(ast.get_docstring(definition(original), clean=False))
    addition = ast.get_docstring(twin, clean=False)
    if addition is not None:
        del twin.body[0]
        doc = with_paragraph(doc, addition)
    twin.body.insert(0, ast.Expr(ast.Constant(doc)))
    written = {node.name: node for node in twin.body if isinstance(node, ast.FunctionDef)}
    for cls in classes:
        for node in methods(cls):
            own = written.get(SPELLED.get(node.name, node.name))
            if own is not None:
                adopt(own, node)
            elif not node.name.startswith("_") and how.inner:
                twin.body.append(member(node, how, twins, overloaded(cls)))
    return {cls.__module__ for cls in classes}


def adopt(own: ast.FunctionDef, node: Function) -> None:
    """Give a method of a template the parameters and the docstring of its original, as far as it has none."""
    if node.name == "__init__" and len(own.args.args) > 1:
        return
    if node.name not in SPELLED:
        own.args = blocking(node).args
    doc = ast.get_docstring(node, clean=False)
    if doc is not None and ast.get_docstring(own) is None:
        own.body.insert(0, ast.Expr(ast.Constant(in_words(doc))))
    for call in ast.walk(own):
        if isinstance(call, ast.Call) and [ast.unparse(each) for each in call.args] == ["..."]:
            call.args, call.keywords = arguments(node)


def member(node: Function, how: Twin, twins: set[str], overloads: set[str]) -> ast.FunctionDef:
    """Return the twin of a method or a property."""
    if node.name in how.translated:
        translated: ast.FunctionDef = blocking(node)
        return translated
    doc = ast.get_docstring(node, clean=False)
    body: list[ast.stmt] = [] if doc is None else [ast.Expr(ast.Constant(in_words(doc)))]
    returns = ast.unparse(node.returns) if node.returns is not None else "None"
    function, given = f"self.{how.inner}.{node.name}", ast.unparse(ast.Call(ast.Name("_"), *arguments(node)))[2:-1]
    handed = ", ".join(filter(None, [function, given]))
    if is_overload(node):
        body.append(ast.Expr(ast.Constant(...)))
    else:
        if is_property(node):
            call = function
        elif isinstance(node, ast.AsyncFunctionDef):
            if node.name in overloads:
                # A type checker cannot tell which one is handed over.
                body += ast.parse(f"function: Callable[..., Coroutine[Any, Any, {returns}]] = {function}").body
                handed = handed.replace(function, "function", 1)
            call = f"self._portal.call({handed})"
        elif how.is_local or returns in {*twins, "Self"}:
            call = f"{function}({given})"
        else:
            call = f"self._portal.run({handed})"
        if returns in twins:
            call = f"{returns}(self._portal, {call})"
        elif returns == "Self":
            call = f"self._view({call})"
        body += ast.parse(call if returns == "None" else f"return {call}").body
    (twin,) = ast.parse(f"def {node.name}(): ...").body
    assert isinstance(twin, ast.FunctionDef)
    twin.args, twin.body, twin.decorator_list, twin.returns = node.args, body, node.decorator_list, node.returns
    return twin


def source_of(module: str) -> ast.Module:
    """Return the source of a module."""
    return ast.parse(inspect.getsource(sys.modules[module]))


def named(body: list[ast.stmt], name: str) -> list[Any]:
    """Return the functions and classes of that name, overloads included."""
    return [node for node in body if isinstance(node, ast.ClassDef | Function) and node.name == name]


def definition(cls: type) -> ast.ClassDef:
    """Return the source of a class, with its docstring as it is written; from 3.13 on, `__doc__` is not."""
    (node,) = named(source_of(cls.__module__).body, cls.__name__)
    assert isinstance(node, ast.ClassDef)
    return node


def methods(cls: type) -> list[Function]:
    """Return what a class defines by itself, overloads included."""
    return [each for each in definition(cls).body if isinstance(each, Function)]


def overloaded(cls: type) -> set[str]:
    """Return the names of the methods that have overloads."""
    return {node.name for node in methods(cls) if is_overload(node)}


def is_overload(node: Function) -> bool:
    """Tell whether a method only declares how another is called."""
    return any(isinstance(each, ast.Name) and each.id == "overload" for each in node.decorator_list)


def is_property(node: Function) -> bool:
    """Tell whether a method is read like an attribute."""
    return any(isinstance(each, ast.Name) and each.id == "property" for each in node.decorator_list)


def arguments(node: Function) -> tuple[list[ast.expr], list[ast.keyword]]:
    """Return how a method hands on what it is given."""
    positional = [each.arg for each in (*node.args.posonlyargs, *node.args.args) if each.arg != "self"]
    handed: list[ast.expr] = [ast.Name(name) for name in positional]
    if node.args.vararg is not None:
        handed.append(ast.Starred(ast.Name(node.args.vararg.arg)))
    return handed, [ast.keyword(each.arg, ast.Name(each.arg)) for each in node.args.kwonlyargs]


class Blocking(ast.NodeTransformer):
    """Forgets about awaiting."""

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        """`async def` is `def`."""
        return self.visit(ast.FunctionDef(**{field: getattr(node, field) for field in node._fields}))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """The docstring says so, too."""
        doc = ast.get_docstring(node, clean=False)
        if doc is not None:
            node.body[0] = ast.Expr(ast.Constant(in_words(doc)))
        return self.generic_visit(node)

    def visit_Await(self, node: ast.Await) -> Any:
        """`await x` is `x`."""
        return self.visit(node.value)

    def visit_Subscript(self, node: ast.Subscript) -> Any:
        """What is awaited is there."""
        kind = node.value.id if isinstance(node.value, ast.Name) else ""
        if kind == "Awaitable":
            return self.visit(node.slice)
        if kind == "Coroutine" and isinstance(node.slice, ast.Tuple):
            return self.visit(node.slice.elts[-1])
        return self.generic_visit(node)


def blocking(node: ast.AST) -> Any:
    """Return a piece of source without awaiting."""
    return Blocking().visit(ast.parse(ast.unparse(node)).body[0])


def imports(tree: ast.Module, modules: set[str]) -> list[ast.stmt]:
    """Return imports of the names that a module uses, found where the clients' modules import or define them."""
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    found = {
        "Portal": "tikv_rpc.frontend.portal",
        "Pages": "tikv_rpc.frontend.portal",
        "copy": "copy",
        "Coroutine": "collections.abc",
    }
    found |= {"Iterator": "collections.abc", "suppress": "contextlib"}
    for module in sorted(modules):
        for node in source_of(module).body:
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                found |= {alias.name: node.module for alias in node.names if alias.asname in {None, alias.name}}
            for target in [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", ()):
                found[ast.unparse(target)] = module
    own = {name for node in tree.body for name in defined(node)}
    lines = [f"from {found[name]} import {name}" for name in sorted(used & set(found) - own)]
    return ast.parse("\n".join(lines)).body


def defined(node: ast.stmt) -> list[str]:
    """Return the names that a statement defines or imports."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.name for alias in node.names]
    return (
        [node.name]
        if isinstance(node, ast.ClassDef)
        else [ast.unparse(node.target)]
        if isinstance(node, ast.AnnAssign)
        else []
    )


def in_words(doc: Any) -> str:
    """Return what a docstring says of what blocks."""
    text = str(doc)
    for pattern, replacement in WORDS:
        text = re.sub(pattern.replace(" ", r"\s+"), replacement, text)
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if len(line) > WIDTH:
            end = line.rindex(" ", 0, WIDTH + 1)
            if not lines[number + 1].strip():
                lines.insert(number + 1, re.sub(r"\S.*", "", line))
            following = lines[number + 1].lstrip()
            indent = lines[number + 1].removesuffix(following)
            lines[number : number + 2] = line[:end], f"{indent}{line[end + 1 :]} {following}".rstrip()
    return "\n".join(lines)


def with_paragraph(doc: str, addition: str) -> str:
    """Return a docstring with a paragraph more, above its source."""
    head, source = doc.split("\n\n    Source:")
    return f"{head}\n\n    {addition}\n\n    Source:{source}"


if __name__ == "__main__":
    main()
