"""Resource managers and routers: servers that take work over from PD's leader."""

from __future__ import annotations

import json

import anyio
import pytest
from tikv_pd import PdClient, PdConfig, ResourceGroup, TokenRequest
from tikv_pd._routing.service_route import RESOURCE_MANAGERS, REST, ROUTERS, Choice
from tikv_pd.testing import FakePd
from tikv_proto import meta_storagepb, pdpb, resource_manager as rmpb
from tikv_proto.services import PD, Health, MetaStorage, ResourceManager, Router

PRIMARY = b"/ms/7/resource_manager/primary"


def appoint(pd: FakePd, address: str) -> None:
    """Let a resource manager be primary, and serve what PD's leader does."""
    url = f"http://{address}"
    pd.meta.put(PRIMARY, rmpb.Participant(name="rm", listen_urls=[url]).SerializeToString())
    pd.transport.serve(address, pd.handlers("pd1:2379"))


def add_router(pd: FakePd, address: str) -> None:
    """Let a router serve what PD's leader does."""
    pd.meta.put(
        b"/ms/7/router/registry/" + address.encode(), json.dumps({"service-addr": f"http://{address}"}).encode()
    )
    handlers = pd.handlers("pd1:2379")
    pd.transport.serve(address, {router: handlers[rpc] for rpc, router in ROUTERS.rpcs.items()})


def asked(pd: FakePd, name: str) -> list[str]:
    """Return who was called, in order."""
    return [address for address, rpc in pd.transport.log if rpc == name]


class TestResourceManagers:
    async def test_reads_and_tokens_go_to_the_primary_and_changes_to_pd(self, pd: FakePd) -> None:
        appoint(pd, "rm1:3379")

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.resource_groups.add(ResourceGroup("users", 100))
            assert await client.resource_groups.get("users") is not None
            assert len(await client.resource_groups.get_all()) == 2
            await client.resource_groups.acquire_token_buckets([TokenRequest("users", 10.0)], client_id=1)
            await client.resource_groups.modify(ResourceGroup("users", 200))
            await client.resource_groups.delete("users")

        for name in ("GetResourceGroup", "ListResourceGroups", "AcquireTokenBuckets"):
            assert asked(pd, name) == ["rm1:3379"]
        for name in ("AddResourceGroup", "ModifyResourceGroup", "DeleteResourceGroup"):
            assert asked(pd, name) == ["pd1:2379"]

    async def test_nothing_is_looked_for_before_it_is_needed(self, pd: FakePd) -> None:
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.get_ts()
            await anyio.sleep(100)

        assert pd.calls(MetaStorage.Get) == 0

    async def test_without_one_everything_goes_to_pd(self, pd: FakePd) -> None:
        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.resource_groups.get_all()

        assert asked(pd, "ListResourceGroups") == ["pd1:2379"]

    async def test_a_pd_without_a_storage_has_none(self, pd: FakePd) -> None:
        pd.refuse(MetaStorage.Get, "UNIMPLEMENTED")

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.resource_groups.get_all()

        assert pd.calls(PD.GetMembers) == 1

    @pytest.mark.parametrize("error", ["a status", "an error"])
    async def test_a_storage_that_cannot_be_read_holds_nobody_up(self, pd: FakePd, error: str) -> None:
        appoint(pd, "rm1:3379")
        if error == "a status":
            pd.refuse(MetaStorage.Get, times=1)
        else:
            pd.answer_error(MetaStorage.Get, "UNKNOWN", times=1)

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.resource_groups.get_all()

        assert asked(pd, "ListResourceGroups") == ["pd1:2379"]
        assert anyio.current_time() == 0

    async def test_pd_steps_in_for_a_primary_that_fails_until_it_has_rested(self, pd: FakePd) -> None:
        appoint(pd, "rm1:3379")

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.resource_groups.get_all()
            pd.transport.stop("rm1:3379")
            await client.resource_groups.get_all()
            appoint(pd, "rm1:3379")
            await anyio.sleep(REST + 1)
            await client.resource_groups.get_all()

        assert asked(pd, "ListResourceGroups") == ["rm1:3379", "rm1:3379", "pd1:2379", "rm1:3379"]

    async def test_another_primary_is_found_soon_after_the_old_one_failed(self, pd: FakePd) -> None:
        appoint(pd, "rm1:3379")

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.resource_groups.get_all()
            pd.transport.stop("rm1:3379")
            appoint(pd, "rm2:3379")
            await client.resource_groups.get_all()
            looks = pd.calls(MetaStorage.Get)
            await client.resource_groups.get_all()
            await anyio.sleep(3.1)
            await client.resource_groups.get_all()

            assert (looks, pd.calls(MetaStorage.Get)) == (1, 2)

        assert asked(pd, "ListResourceGroups")[-1] == "rm2:3379"
        assert pd.transport.open_connections() == []

    async def test_a_primary_that_is_gone_leaves_its_work_to_pd(self, pd: FakePd) -> None:
        appoint(pd, "rm1:3379")

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.resource_groups.get_all()
            pd.meta.delete(PRIMARY)
            await anyio.sleep(61)
            await client.resource_groups.get_all()

        assert asked(pd, "ListResourceGroups") == ["rm1:3379", "pd1:2379"]

    async def test_a_refusal_for_good_is_one(self, pd: FakePd) -> None:
        appoint(pd, "rm1:3379")
        pd.refuse(ResourceManager.ListResourceGroups, "UNKNOWN", "no")

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            with pytest.raises(Exception, match="no"):
                await client.resource_groups.get_all()

        assert asked(pd, "ListResourceGroups") == ["rm1:3379"]


class TestRouters:
    async def test_regions_and_stores_are_asked_of_routers_where_that_is_wanted(self, pd: FakePd) -> None:
        add_router(pd, "router1:3379")

        async with PdClient("pd1:2379", config=PdConfig(use_routers=True), transport=pd.transport) as client:
            assert await client.get_region(b"k") is not None
            assert await client.get_prev_region(b"k", allow_follower=True) is not None
            assert len(await client.scan_regions(b"")) == 3
            assert await client.get_store(1) is not None
            assert len(await client.get_stores()) == 2
            await client.get_ts()

        for name in ("QueryRegion", "GetPrevRegion", "BatchScanRegions", "GetStore", "GetAllStores"):
            assert asked(pd, name) == ["router1:3379"]
        assert asked(pd, "Tso") == ["pd1:2379"]

    async def test_routers_are_not_asked_unless_that_is_wanted(self, pd: FakePd) -> None:
        add_router(pd, "router1:3379")

        async with PdClient("pd1:2379", transport=pd.transport) as client:
            await client.get_region(b"k")
            await client.get_stores()

        assert {address for address, _ in pd.transport.log} == {"pd1:2379"}

    async def test_the_next_router_and_then_pd_step_in_at_once(self, pd: FakePd) -> None:
        add_router(pd, "router1:3379")
        add_router(pd, "router2:3379")

        async with PdClient("pd1:2379", config=PdConfig(use_routers=True), transport=pd.transport) as client:
            for victim in ("router1:3379", "router2:3379", None):
                await client.get_region(b"k")
                await client.get_stores()
                if victim is not None:
                    pd.transport.stop(victim)

        assert asked(pd, "GetAllStores") == ["router1:3379", "router2:3379", "pd1:2379"]
        assert asked(pd, "QueryRegion")[-1] == "pd1:2379"
        assert anyio.current_time() == 0

    async def test_a_router_that_fails_says_nothing_about_pds_members(self, pd: FakePd) -> None:
        add_router(pd, "router1:3379")
        config = PdConfig(use_routers=True, forwarding=True)

        async with PdClient("pd1:2379", config=config, transport=pd.transport) as client:
            await client.get_region(b"k")
            pd.transport.stop("router1:3379")
            await client.get_region(b"k")
            await client.get_stores()

        assert pd.calls(Health.Check) == 0
        assert asked(pd, "GetAllStores") == ["pd1:2379"]

    async def test_what_a_router_refuses_is_asked_of_pd(self, pd: FakePd) -> None:
        add_router(pd, "router1:3379")
        pd.transport.serve("router1:3379", {Router.GetStore: refuse})

        async with PdClient("pd1:2379", config=PdConfig(use_routers=True), transport=pd.transport) as client:
            assert await client.get_store(1) is not None
            assert await client.get_region(b"k") is not None

        assert asked(pd, "GetStore") == ["router1:3379", "pd1:2379"]


async def refuse(_request: pdpb.GetStoreRequest) -> pdpb.GetStoreResponse:
    error = pdpb.Error(type=pdpb.ErrorType.REGION_NOT_FOUND, message="not loaded yet")
    return pdpb.GetStoreResponse(header=pdpb.ResponseHeader(error=error))


class TestTheChoice:
    def test_it_stays_while_the_server_does_its_work(self) -> None:
        choice = Choice().told(("a", "b"), 0)

        assert choice.current == "a"
        assert choice.told(("a", "b", "c"), 1).current == "a"

    def test_the_next_one_is_chosen_when_one_fails_and_nobody_when_all_do(self) -> None:
        choice = Choice().told(("a", "b"), 0).failed("a", 0)

        assert choice.current == "b"
        assert choice.failed("b", 1).current == ""

    def test_a_server_that_has_rested_is_chosen_again(self) -> None:
        choice = Choice().told(("a",), 0).failed("a", 0)

        assert choice.chosen(REST - 1).current == ""
        assert choice.chosen(REST + 1) == Choice(("a",), (), "a")

    @pytest.mark.parametrize("value", [b"", b"\xff\xff", b"7"])
    def test_what_cannot_be_read_names_nobody(self, value: bytes) -> None:
        answer = meta_storagepb.GetResponse(kvs=[meta_storagepb.KeyValue(value=value)])

        assert RESOURCE_MANAGERS.addresses(answer) == ROUTERS.addresses(answer) == ()
