"""Print modules, classes and functions that stand out in size. Nothing fails on it; it says where to look again.

Usage: python sizes.py DIRECTORY...
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

MODULE_LINES = 400
PACKAGE_MODULES = 16
FUNCTION_LINES = 60
PARAMETERS = 6
NESTING = 3
PUBLIC_METHODS = 15

Function = ast.FunctionDef | ast.AsyncFunctionDef
NESTS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)


def main(directories: list[str]) -> None:
    """Print one line for each finding, in order of place."""
    paths = (path for directory in directories for path in sorted(Path(directory).rglob("*.py")))
    sources = [path for path in paths if "do not edit" not in path.read_text().partition("\n")[0]]
    findings = [finding for path in sources for finding in in_module(path)]
    for package, count in Counter(path.parent for path in sources).items():
        if count > PACKAGE_MODULES:
            findings.append(f"{package}: {count} modules")
    for finding in findings:
        print(finding.replace(f"{Path.cwd()}/", ""))
    print(
        f"{len(findings)} of {len(sources)} modules and what is in them stand out" if findings else "nothing stands out"
    )


def in_module(path: Path) -> Iterator[str]:
    """Yield what stands out in one file."""
    source = path.read_text()
    lines = source.count("\n")
    if lines > MODULE_LINES:
        yield f"{path}: {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Function):
            where = f"{path}:{node.lineno}: {node.name}"
            yield from (f"{where}: {what}" for what in in_function(node, source.splitlines()))
        elif isinstance(node, ast.ClassDef):
            methods = [item.name for item in node.body if isinstance(item, Function) and not item.name.startswith("_")]
            if len(methods) > PUBLIC_METHODS:
                yield f"{path}:{node.lineno}: {node.name}: {len(methods)} public methods"


def in_function(node: Function, source: list[str]) -> Iterator[str]:
    """Yield what stands out in one function: code lines without docstring, blanks and comments; parameters; nesting."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    if not body:
        return
    text = (line.strip() for line in source[body[0].lineno - 1 : node.end_lineno])
    lines = sum(bool(line) and not line.startswith("#") for line in text)
    if lines > FUNCTION_LINES:
        yield f"{lines} code lines"
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    parameters = sum(argument.arg not in ("self", "cls") for argument in arguments)
    if parameters > PARAMETERS:
        yield f"{parameters} parameters"
    depth = max(nesting(child) for child in body)
    if depth > NESTING:
        yield f"nested {depth} deep"


def nesting(node: ast.AST) -> int:
    """Return how many blocks are inside each other; an elif and a function inside do not count."""
    if isinstance(node, Function | ast.Lambda | ast.ClassDef):
        return 0
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        children.remove(node.orelse[0])
        return max(nesting(node.orelse[0]), 1 + max(map(nesting, children), default=0))
    return isinstance(node, NESTS) + max(map(nesting, children), default=0)


if __name__ == "__main__":
    main(sys.argv[1:])
