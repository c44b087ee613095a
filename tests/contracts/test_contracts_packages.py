"""What all distributions of the monorepo promise together, read from their own metadata."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PYPROJECTS = [ROOT / "proto" / "pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]
PROJECTS: dict[str, dict[str, Any]] = {
    project["name"]: project
    for file in PYPROJECTS
    for project in [tomllib.loads(file.read_text(encoding="utf-8"))["project"]]
}
CLIENTS = {"tikv-pd", "tikv-region", "tikv-rpc", "tikv-raw", "tikv-txn"}

every_package = pytest.mark.parametrize("file", PYPROJECTS, ids=lambda file: str(file.parent.name))


def siblings(name: str) -> set[str]:
    """Return the distributions of ours that one needs, directly or through others."""
    direct = {Requirement(line).name for line in PROJECTS[name]["dependencies"]} & set(PROJECTS)
    return direct.union(*map(siblings, direct))


def test_these_are_the_distributions() -> None:
    assert set(PROJECTS) == {"tikv-proto", "tikv-embedded", *CLIENTS}


def test_all_distributions_have_one_version() -> None:
    assert len({project["version"] for project in PROJECTS.values()}) == 1


@pytest.mark.parametrize("name", PROJECTS)
def test_a_sibling_is_required_in_exactly_the_version_it_was_released_with(name: str) -> None:
    requirements = [Requirement(line) for line in PROJECTS[name]["dependencies"]]

    pins = {required.name: str(required.specifier) for required in requirements if required.name in PROJECTS}

    assert pins == {sibling: f"=={PROJECTS[sibling]['version']}" for sibling in pins}


@pytest.mark.parametrize("name", PROJECTS)
def test_others_are_required_in_a_range_that_has_a_floor(name: str) -> None:
    requirements = [Requirement(line) for line in PROJECTS[name]["dependencies"]]

    floors = {required.name: any(one.operator == ">=" for one in required.specifier) for required in requirements}

    assert all(floors[other] for other in set(floors) - set(PROJECTS))


def test_who_installs_the_raw_client_gets_neither_transactions_nor_the_embedded_cluster() -> None:
    assert siblings("tikv-raw") == {"tikv-proto", "tikv-pd", "tikv-region", "tikv-rpc"}


def test_the_embedded_cluster_and_the_clients_need_nothing_of_each_other() -> None:
    assert siblings("tikv-embedded") == {"tikv-proto"}
    assert all("tikv-embedded" not in siblings(client) for client in CLIENTS)
    assert "tikv-raw" not in siblings("tikv-txn")


@every_package
def test_a_package_carries_its_types_its_readme_its_license_and_its_tests(file: Path) -> None:
    name = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"]
    sources = file.parent / "src" / name.replace("-", "_")

    assert (sources / "__init__.py").is_file()
    assert (sources / "py.typed").is_file()
    assert (file.parent / "README.md").read_text(encoding="utf-8").startswith(f"# {name}\n")
    assert (file.parent / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert any((file.parent / "tests").rglob("test_*.py"))


@every_package
def test_a_package_states_what_an_index_shows(file: Path) -> None:
    metadata = tomllib.loads(file.read_text(encoding="utf-8"))
    project = metadata["project"]

    assert metadata["build-system"]["build-backend"] == "hatchling.build"
    assert project["license"] == "Apache-2.0"
    assert project["requires-python"] == ">=3.11"
    assert project["readme"] == "README.md"
    assert project["description"]
    assert "Typing :: Typed" in project["classifiers"]


@every_package
def test_an_sdist_holds_sources_and_tests(file: Path) -> None:
    targets = tomllib.loads(file.read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]

    assert {"src", "tests", "README.md"} <= set(targets["sdist"]["include"])


def test_the_root_is_no_distribution_and_only_configures_tools() -> None:
    root = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

    assert set(root) == {"tool"}


def test_the_changelog_opens_with_the_version_of_the_packages() -> None:
    (version,) = {project["version"] for project in PROJECTS.values()}
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()

    newest = next(line for line in lines if line.startswith("## "))

    assert version in newest
