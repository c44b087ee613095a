from __future__ import annotations

import re
from pathlib import Path

import attrs
import pytest
import tikv_rpc
from tikv_rpc import RpcConfig
from tikv_rpc.testing import FakeStore

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
PLAN_EXAMPLE, CLUSTER_EXAMPLE, *_ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_example_of_a_plan_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(PLAN_EXAMPLE, {"__name__": "readme"})

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "put asks store 1"
    assert "count asks store 2" in lines
    assert lines[-1] == "found 1"


def test_the_example_on_a_cluster_compiles() -> None:
    compile(CLUSTER_EXAMPLE, "README.md", "exec")


@pytest.mark.parametrize("option", attrs.fields(RpcConfig), ids=lambda option: option.name)
def test_each_option_is_in_the_table_with_its_default(option: attrs.Attribute[object]) -> None:
    assert f"| `{option.name}` | {option.default} |" in README


def test_each_plan_is_in_the_table() -> None:
    plans = [
        name
        for name, value in vars(tikv_rpc).items()
        if getattr(value, "__module__", "") == "tikv_rpc._plans.over_regions"
    ]

    named = {name for name in plans if f"`{name}" in README}
    # Protocols describe plans, they are none.
    assert set(plans) - named <= {"Plan", "RegionPlan", "RoutePlan"}


def test_each_way_to_misbehave_is_told() -> None:
    ways = [name for name in vars(FakeStore) if name.endswith("_next")]

    assert [name for name in ways if f"`{name}`" not in README] == []
