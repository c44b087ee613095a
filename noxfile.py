"""The sessions that build and check this monorepo; `nox -l` lists them, plain `nox` runs what CI runs.

Packages and what they need of each other are read from their own pyproject.toml files; nothing is listed here twice.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.needs_version = ">=2025.10.14"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
# Not every machine has every Python; a missing one is reported as skipped, in CI too.
nox.options.error_on_missing_interpreters = False
nox.options.download_python = "never"
nox.options.sessions = ["tests", "lint", "types", "docs", "proto", "build", "wheels"]

ROOT = Path(__file__).parent
DIST = ROOT / "dist"
PYTHONS = ["3.11", "3.12", "3.13", "3.14"]

# What tests may import besides the declared dependencies of the package under test, and what runs them.
TEST = [
    "pytest>=9,<10",
    "pytest-timeout>=2.4,<3",
    "pytest-xdist>=3.8,<4",
    "anyio[trio]>=4.11,<5",
    "trustme>=1.2,<2",
    "hypothesis>=6.150,<7",
    # Shows what the extra `tikv-rpc[otel]`, which brings the API alone, hands to it.
    "opentelemetry-sdk>=1.30,<2",
]
# What formats, lints and judges is pinned: a new version may find something new in old code.
LINT = ["ruff==0.17.5", "import-linter==2.16"]
STUBS = ["types-protobuf==7.35.1.20260906", "types-grpcio==1.85.0.20261028", "sortedcontainers-stubs==2.4.3"]
TYPES = ["mypy==2.4.1", *STUBS]
# mkdocs-material names zensical, which reads the same mkdocs.yml, as its successor, and tells so at each build.
DOCS = ["mkdocs==1.6.1", "mkdocs-material==9.8.1", "mkdocstrings==1.0.8", "mkdocstrings-python==2.0.11"]
# An old compiler on purpose, always the same: what it writes is committed.
COMPILER = ["grpcio-tools==1.80.0", "mypy-protobuf==5.1.0"]

# Two processes pay on any machine; `-- -n0` turns them off, for a debugger.
PYTEST = ["pytest", "--numprocesses=2", "--dist=worksteal"]


@dataclass(frozen=True)
class Package:
    """One distribution of the monorepo, as its pyproject.toml states it."""

    name: str
    version: str
    path: Path
    """Its directory, relative to the root."""
    requires: frozenset[str]
    """Names of all distributions it depends on, ours and others."""
    extras: frozenset[str]
    """Names of its extras, all of which its tests need."""

    def with_extras(self, name: str) -> str:
        """Return a requirement of the package, `name` being its name or path, together with its extras."""
        return f"{name}[{','.join(sorted(self.extras))}]" if self.extras else name


def read_packages() -> dict[str, Package]:
    """Return the packages by name, each after those it needs."""
    packages = {}
    for file in [ROOT / "proto" / "pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]:
        project = tomllib.loads(file.read_text())["project"]
        requires = frozenset(Requirement(line).name for line in project["dependencies"])
        path = file.parent.relative_to(ROOT)
        extras = frozenset(project.get("optional-dependencies", {}))
        packages[project["name"]] = Package(project["name"], project["version"], path, requires, extras)
    order = TopologicalSorter({package.name: package.requires & set(packages) for package in packages.values()})
    return {name: packages[name] for name in order.static_order()}


PACKAGES = read_packages()


def with_siblings(*names: str) -> list[Package]:
    """Return the named packages and every package of the monorepo they need, dependencies first."""
    needed = set(names)
    for package in reversed(PACKAGES.values()):
        if package.name in needed:
            needed |= package.requires & set(PACKAGES)
    return [package for package in PACKAGES.values() if package.name in needed]


def install_from_tree(session: nox.Session, packages: Iterable[Package], *others: str) -> None:
    """Install packages as editable together with other requirements."""
    # One build backend for all: a build environment for each package takes longer than the builds.
    session.install("hatchling>=1.27", "editables")
    editables = (f"--editable={package.with_extras(str(package.path))}" for package in packages)
    session.install("--no-build-isolation", *editables, *others)


@nox.session
def demo(session: nox.Session) -> None:
    """Show the raw client at work on an embedded cluster."""
    install_from_tree(session, with_siblings("tikv-raw", "tikv-embedded"))
    session.run("python", "examples/demo.py", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests of all packages and those across packages on the running Python."""
    install_from_tree(session, PACKAGES.values(), *TEST)
    session.run(*PYTEST, *session.posargs)


@nox.session(python=PYTHONS)
@nox.parametrize("dist", [nox.param(name, id=name) for name in PACKAGES])
def test(session: nox.Session, dist: str) -> None:
    """Run the tests of one package on one Python."""
    install_from_tree(session, with_siblings(dist), *TEST)
    session.run(*PYTEST, str(PACKAGES[dist].path / "tests"), *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build the sdist of each package, and from it its wheel, into dist/."""
    session.install("build>=1.2", "hatchling>=1.27")
    shutil.rmtree(DIST, ignore_errors=True)
    for package in PACKAGES.values():
        session.run("python", "-m", "build", "--no-isolation", "--outdir", str(DIST), str(package.path), silent=True)


@nox.session(requires=["build"], reuse_venv=False)
@nox.parametrize("dist", [nox.param(name, id=name) for name in PACKAGES])
def wheels(session: nox.Session, dist: str) -> None:
    """Test one package as its users get it: its wheel and what that requires, in a clean environment."""
    package = PACKAGES[dist]
    session.install(f"--find-links={DIST}", f"{package.name}=={package.version}")
    # An empty directory, so that nothing of the source tree can be imported.
    with tempfile.TemporaryDirectory() as empty, session.chdir(empty):
        session.run("python", str(ROOT / ".ci" / "installed.py"), *(sibling.name for sibling in with_siblings(dist)))
        session.install(f"--find-links={DIST}", f"{package.with_extras(package.name)}=={package.version}", *TEST)
        config = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider"]
        session.run(*PYTEST, *config, str(ROOT / package.path / "tests"), *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format and the direction of imports; then print what stands out in size."""
    session.install(*LINT)
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    sources = [str(package.path / "src") for package in PACKAGES.values()]
    session.run("lint-imports", env={"PYTHONPATH": os.pathsep.join(sources)})
    session.run("python", ".ci/sizes.py", *sources)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of everything, strictly."""
    install_from_tree(session, PACKAGES.values(), *TEST, *TYPES, "nox")
    sources = [str(package.path / "src") for package in PACKAGES.values()]
    session.run("mypy", *sources, "examples", "benchmarks", "noxfile.py", ".ci", "proto/generate.py")
    # Tests are no packages, so modules such as conftest are told apart by where they are: one run for each base.
    for base in [*(package.path for package in PACKAGES.values()), Path()]:
        session.run("mypy", "--explicit-package-bases", str(base / "tests"), env={"MYPYPATH": str(base)})


@nox.session
def proto(session: nox.Session) -> None:
    """Compile the .proto sources again; fail when the result differs from what was there, and leave it in place."""
    session.install(*COMPILER)
    shipped = ROOT / "proto" / "src" / "tikv_proto"
    before = {path.name: path.read_bytes() for path in shipped.iterdir() if path.is_file()}
    session.run("python", "proto/generate.py")
    after = {path.name: path.read_bytes() for path in shipped.iterdir() if path.is_file()}
    changed = sorted(name for name in after if after[name] != before.get(name))
    if changed:
        session.error(f"regenerated, please review and commit: {', '.join(changed)}")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site into site/; fail on any warning."""
    # Sources are parsed, not imported. Ruff formats signatures.
    session.install(*DOCS, *(tool for tool in LINT if tool.startswith("ruff")))
    session.run("mkdocs", "build", "--strict", *session.posargs, env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session
def bench(session: nox.Session) -> None:
    """Measure what is promised of speed, beside its targets, bare gRPC and other clients."""
    install_from_tree(session, with_siblings("tikv-raw", "tikv-txn", "tikv-embedded"), "uvloop")
    session.run("python", "benchmarks/run.py", *session.posargs)
    session.run("python", "benchmarks/txn.py")
