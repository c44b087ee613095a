"""Makes pages of the documentation site that nobody writes: of each public module, each package, and the changelog.

A hook of mkdocs. Which modules and names are public is what the golden list in `tests/contracts` says, so a new package
needs nothing here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Only the session that builds the site has it.
from mkdocs.structure.files import File  # type: ignore[import-not-found]

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "contracts" / "public_surface.txt"
SOURCES = {path.name: path for path in ROOT.glob("packages/*/src/*")}
READMES = {path.parent.name: path for path in [ROOT / "proto" / "README.md", *ROOT.glob("packages/*/README.md")]}
FROM_THE_TOP = ["tikv_raw", "tikv_txn", "tikv_rpc", "tikv_region", "tikv_pd", "tikv_embedded"]
"""Order of the packages in the site; others follow."""


def on_config(config: Any) -> Any:
    """Put the pages into the empty sections of the navigation."""
    made = {
        "Packages": [{name: uri} for name, uri, _ in package_pages()],
        "API reference": [{name: uri} for name, uri, _ in module_pages()],
    }
    config.nav = [{title: made.get(title, below) for title, below in entry.items()} for entry in config.nav]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages."""
    for _, uri, text in [*package_pages(), *module_pages()]:
        files.append(File.generated(config, uri, content=text))
    files.append(File.generated(config, "changelog.md", content=(ROOT / "CHANGELOG.md").read_text()))
    return files


def package_pages() -> Iterator[tuple[str, str, str]]:
    """Yield name, place and text of a page for each package: its README."""
    names = {"proto": "tikv-proto"}
    for directory in sorted(READMES, key=lambda name: _rank(name.replace("-", "_"))):
        name = names.get(directory, directory)
        yield name, f"packages/{name}.md", READMES[directory].read_text()


def module_pages() -> Iterator[tuple[str, str, str]]:
    """Yield name, place and text of a page for each public module."""
    public: dict[str, list[str]] = {}
    for line in GOLDEN.read_text().splitlines():
        module, name = line.split()
        public.setdefault(module, []).append(name)
    for module in sorted(public, key=lambda name: (_rank(name.partition(".")[0]), name)):
        yield module, f"reference/{module}.md", "\n".join(_page(module, public))


def _rank(package: str) -> int:
    return FROM_THE_TOP.index(package) if package in FROM_THE_TOP else len(FROM_THE_TOP)


def _page(module: str, public: dict[str, list[str]]) -> Iterator[str]:
    own: list[str] = []
    others: list[str] = []
    package = module.partition(".")[0]
    origins, contents = _top(module)
    for name in sorted(public[module], key=lambda name: _place(name, origins, contents)):
        origin = origins[name]
        root = origin.partition(".")[0]
        is_from_below = root != package
        is_at_root = origin != module and module != package and name in public[package]
        if is_from_below or is_at_root:
            others.append(f"[`{name}`][{root}.{name}]")
        else:
            own.append(name)
    yield f"# {module}\n\n::: {module}\n    options:\n      members: false\n      show_root_heading: false\n"
    if others:
        yield f"Exported here, too: {', '.join(others)}.\n"
    for name in own:
        yield f"::: {module}.{name}\n    options:\n      heading_level: 2\n"


def _place(name: str, origins: dict[str, str], contents: str) -> tuple[bool, int, int]:
    """Return where a name goes: in the order of the module's docstring, then that of the module; errors at the end."""
    mentioned = contents.find(f"`{name}`")
    is_error = origins[name].endswith(".errors")
    return is_error, mentioned if mentioned >= 0 else len(contents), list(origins).index(name)


def _top(module: str) -> tuple[dict[str, str], str]:
    """Return the names that a module has at its top, each with the module it comes from; and its docstring."""
    package, _, rest = module.partition(".")
    path = SOURCES[package].joinpath(*rest.split(".")) if rest else SOURCES[package]
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())
    names: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: str(node.module) for alias in node.names}
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names[node.name] = module
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id: module for target in targets if isinstance(target, ast.Name)}
    return names, ast.get_docstring(tree) or ""
