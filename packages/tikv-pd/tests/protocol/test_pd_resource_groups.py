from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import (
    ConfigError,
    Consumption,
    Keyspace,
    PdClient,
    PdError,
    ResourceGroup,
    ResourceGroupChange,
    ResourceGroupSettings,
    Runaway,
)
from tikv_pd.testing import FakePd
from tikv_proto import resource_manager
from tikv_proto.services import ResourceManager

REPORTS = ResourceGroup("reports", 500, 1000, priority=4, job_types=("br", "lightning"))


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        yield client


async def test_a_group_that_was_added_is_there_until_it_is_deleted(client: PdClient) -> None:
    assert await client.resource_groups.get("reports") is None

    await client.resource_groups.add(REPORTS)

    assert await client.resource_groups.get("reports") == REPORTS
    assert [group.name for group in await client.resource_groups.get_all()] == ["default", "reports"]
    await client.resource_groups.delete("reports")
    assert await client.resource_groups.get("reports") is None


async def test_a_group_is_modified(client: PdClient) -> None:
    await client.resource_groups.add(REPORTS)

    await client.resource_groups.modify(ResourceGroup("reports", 600))

    assert await client.resource_groups.get("reports") == ResourceGroup("reports", 600)


async def test_a_refusal_is_raised_at_once(client: PdClient) -> None:
    started = anyio.current_time()

    with pytest.raises(PdError, match="reports resource group does not exist"):
        await client.resource_groups.modify(REPORTS)
    with pytest.raises(PdError, match="reports resource group does not exist"):
        await client.resource_groups.delete("reports")

    assert anyio.current_time() == started


async def test_an_error_in_the_answer_is_raised(client: PdClient, pd: FakePd) -> None:
    async def refuse(_request: object) -> resource_manager.PutResourceGroupResponse:
        return resource_manager.PutResourceGroupResponse(error=resource_manager.Error(message="no room"))

    pd.transport.serve("pd1:2379", {**pd.handlers("pd1:2379"), ResourceManager.AddResourceGroup: refuse})

    with pytest.raises(PdError, match="no room"):
        await client.resource_groups.add(REPORTS)


@pytest.mark.parametrize(
    "group",
    [ResourceGroup("", 1), ResourceGroup("a", -1), ResourceGroup("a", 2**64), ResourceGroup("a", 1, priority=17)],
)
async def test_a_group_that_cannot_be_is_refused(client: PdClient, group: ResourceGroup) -> None:
    with pytest.raises(ConfigError):
        await client.resource_groups.add(group)


async def test_all_settings_of_a_group_come_back(client: PdClient) -> None:
    runaway = Runaway("SwitchGroup", 1.5, 1000, 50, "slow", "Similar", 600.0)
    group = ResourceGroup("reports", 500, -2, 16, ("br",), 30, runaway)

    await client.resource_groups.add(group)

    assert await client.resource_groups.get("reports") == group


async def test_what_a_group_consumed_is_told_if_asked_for(client: PdClient, pd: FakePd) -> None:
    used = Consumption(1.5, 2.5, 3, 4, 0.25, 0.125, 5, 6, 7, 8)
    pd.resources.consumption["default"] = used

    default = await client.resource_groups.get("default", with_ru_stats=True)
    plain = await client.resource_groups.get("default")
    (listed,) = await client.resource_groups.get_all(with_ru_stats=True)

    assert default is not None
    assert plain is not None
    assert (default.consumption, plain.consumption, listed.consumption) == (used, None, used)
    assert default == plain


async def test_a_refusal_of_a_group_that_is_there_is_raised(client: PdClient, pd: FakePd) -> None:
    pd.refuse(ResourceManager.GetResourceGroup, "UNKNOWN", "no manager")

    with pytest.raises(PdError, match="no manager"):
        await client.resource_groups.get("default")
    assert await client.resource_groups.get("reports") is None


async def test_another_refusal_of_a_group_is_raised(client: PdClient, pd: FakePd) -> None:
    pd.refuse(ResourceManager.GetResourceGroup, "UNIMPLEMENTED")

    with pytest.raises(PdError, match="UNIMPLEMENTED"):
        await client.resource_groups.get("default")


async def test_settings_are_loaded_and_watched_without_a_gap(client: PdClient) -> None:
    await client.resource_groups.add(REPORTS)
    loaded = await client.resource_groups.load()
    await client.resource_groups.modify(ResourceGroup("reports", 600))
    await client.resource_groups.delete("reports")

    async with client.resource_groups.watch(revision=loaded.revision + 1) as watch:
        told = [await anext(watch), await anext(watch)]

    assert loaded == ResourceGroupSettings((REPORTS,), 2)
    assert told == [
        ResourceGroupChange("reports", ResourceGroup("reports", 600), 3),
        ResourceGroupChange("reports", None, 4),
    ]


async def test_settings_that_cannot_be_read_are_left_out(client: PdClient, pd: FakePd) -> None:
    await client.resource_groups.add(REPORTS)
    pd.meta.put(b"resource_group/settings/broken", b"\xff")

    loaded = await client.resource_groups.load()

    assert loaded.groups == (REPORTS,)


async def test_a_keyspace_has_groups_of_its_own(client: PdClient, pd: FakePd) -> None:
    groups = client.resource_groups.of_keyspace(7)

    await groups.add(REPORTS)
    async with groups.watch() as watch:
        await groups.modify(ResourceGroup("reports", 600, keyspace_id=7))
        told = await anext(watch)

    assert pd.resource_groups["reports"].keyspace_id == 7
    assert (await groups.load()).groups == (ResourceGroup("reports", 600, keyspace_id=7),)
    assert (await client.resource_groups.load()).groups == ()
    assert told.group == ResourceGroup("reports", 600, keyspace_id=7)


async def test_a_group_of_another_keyspace_is_refused(client: PdClient) -> None:
    with pytest.raises(ConfigError, match="is of keyspace 8, the groups here are those of keyspace 7"):
        await client.resource_groups.of_keyspace(7).add(ResourceGroup("reports", 1, keyspace_id=8))
    with pytest.raises(ConfigError, match="is of keyspace 8, the groups here are of no keyspace"):
        await client.resource_groups.modify(ResourceGroup("reports", 1, keyspace_id=8))
    with pytest.raises(ConfigError, match="keyspace_id must be"):
        client.resource_groups.of_keyspace(1 << 24)


async def test_the_groups_of_a_client_of_a_keyspace_are_those_of_the_keyspace(pd: FakePd) -> None:
    pd.keyspaces["orders"] = Keyspace(7, "orders", "ENABLED")

    async with PdClient("tikv://pd1:2379?keyspaceName=orders", transport=pd.transport) as client:
        await client.resource_groups.add(REPORTS)
        await client.resource_groups.of_keyspace(None).add(ResourceGroup("batch", 1))

    assert pd.resource_groups["reports"].keyspace_id == 7
    assert pd.resource_groups["batch"].keyspace_id is None
