from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
import tikv_pd
from tikv_pd import PdConfig, SecurityConfig

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CLUSTER_EXAMPLE, FAKE_EXAMPLE, *_ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_on_a_cluster_compiles() -> None:
    compile(CLUSTER_EXAMPLE, "README.md", "exec")


def test_the_example_without_a_cluster_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(FAKE_EXAMPLE, {})

    assert capsys.readouterr().out.startswith("retried for ")


@pytest.mark.parametrize("option", attrs.fields(PdConfig), ids=lambda option: option.name)
def test_each_option_is_in_the_table_with_its_default(option: attrs.Attribute[object]) -> None:
    assert f"| `{option.name}` | {option.default} |" in README


def test_each_option_of_security_is_in_the_table() -> None:
    assert all(f"`{option.name}`" in README for option in attrs.fields(SecurityConfig))


def test_each_error_is_in_the_table() -> None:
    errors = [name for name, value in vars(tikv_pd).items() if isinstance(value, type) and issubclass(value, Exception)]

    assert [name for name in errors if f"`{name}`" not in README] == []
