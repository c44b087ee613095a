"""Every Python example of the documents is run on a fresh cluster, which stands in for the one at 127.0.0.1:2379.

An example that cannot be run has `<!-- not run: why -->` on the line before its fence. One that needs API v1ttl or v2,
or a keyspace, says so in its own text. Examples may await at the top level, and may use a running `cluster`.

Those with `<!-- file: name -->` in that place are files of a project: pytest is run on all of a document together.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Any

import anyio.to_thread
import attrs
import pytest
from tikv_embedded import EmbeddedCluster

ROOT = Path(__file__).parents[2]
READMES = [ROOT / "proto" / "README.md", *sorted(ROOT.glob("packages/*/README.md"))]
DOCUMENTS = [ROOT / "README.md", *READMES, *sorted(ROOT.glob("docs/*.md"))]
ADDRESS = "127.0.0.1:2379"
_FILE = re.compile(r"^<!-- file: (?P<name>\S+) -->\n```\w+\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^(?P<before>[^\n]*\n)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@attrs.frozen
class Example:
    path: Path
    line: int
    code: str
    is_run: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def api_version(self) -> str:
        found = re.search(r'api_version="(v1|v1ttl|v2)"', self.code)
        return found[1] if found else "v2" if self.keyspaces else "v1"

    @property
    def keyspaces(self) -> list[str]:
        return re.findall(r'(?:keyspaceName=|keyspace=")(\w+)', self.code)

    def compiled(self, address: str) -> CodeType:
        source = "\n" * (self.line - 1) + self.code.replace(ADDRESS, address)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code: CodeType = compile(source, str(self.path), "exec", flags=flags, dont_inherit=True)
        return code


def examples(path: Path) -> Iterator[Example]:
    text = path.read_text()
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        is_run = not (found["before"] or "").startswith(("<!-- not run: ", "<!-- file: "))
        yield Example(path, line, found["code"], is_run)


EXAMPLES = [example for path in DOCUMENTS for example in examples(path)]
PROJECTS = [path for path in DOCUMENTS if _FILE.search(path.read_text())]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("example", [example for example in EXAMPLES if example.is_run], ids=str)
async def test_an_example_runs(example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    async with EmbeddedCluster(
        api_version=example.api_version, keyspaces=example.keyspaces, http="pd.http" in example.code
    ) as cluster:
        code = example.compiled(cluster.pd_addresses[0])
        names: dict[str, Any] = {"__name__": "__main__", "cluster": cluster}
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, names)
        elif ".run(" in example.code or ".sync import" in example.code:
            # It has an event loop of its own, or blocks, and the cluster needs this one.
            await anyio.to_thread.run_sync(exec, code, names)
        else:
            exec(code, names)


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: path.name)
def test_the_tests_that_a_document_shows_pass(path: Path, tmp_path: Path) -> None:
    for found in _FILE.finditer(path.read_text()):
        (tmp_path / found["name"]).write_text(found["text"])

    run = [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "--import-mode=importlib"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_an_example_is_python(example: Example) -> None:
    example.compiled(ADDRESS)


def test_no_example_is_missed() -> None:
    assert len(EXAMPLES) == sum(path.read_text().count("```python") for path in DOCUMENTS)


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_the_readme_of_a_package_can_be_read_without_the_repository(path: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())

    assert [link for link in links if not link.startswith(("https://", "#"))] == []
