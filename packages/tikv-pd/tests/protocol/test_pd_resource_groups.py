from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import ConfigError, PdClient, PdError, ResourceGroup
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
