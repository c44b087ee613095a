from __future__ import annotations

import pytest
from tikv_pd import PdClient, PdConfig
from tikv_pd.lowlevel import MappedTransport, map_hosts
from tikv_pd.testing import FakePd, MemoryTransport

HOSTS = {"pd1:2379": "127.0.0.1:1", "pd2:2379": "127.0.0.1:2"}


@pytest.fixture
def pd_behind_nat(network: MemoryTransport) -> FakePd:
    """Two members that advertise names and are reached at ports of the loopback interface."""
    fake = FakePd(network, members=HOSTS)
    for advertised, reachable in HOSTS.items():
        network.serve(reachable, fake.handlers(advertised))
        network.stop(advertised)
    return fake


async def test_members_are_dialed_where_they_can_be_reached(pd_behind_nat: FakePd) -> None:
    config = PdConfig(host_mapping=HOSTS)

    async with PdClient("pd2:2379", config=config, transport=pd_behind_nat.transport) as client:
        assert client.leader == "pd1:2379"
        assert await client.get_stores() == []

    assert {address for address, _ in pd_behind_nat.transport.log} == set(HOSTS.values())


async def test_an_address_that_is_not_mapped_is_dialed_as_it_is(pd_behind_nat: FakePd) -> None:
    config = PdConfig(host_mapping=HOSTS)

    async with PdClient("127.0.0.1:2", config=config, transport=pd_behind_nat.transport) as client:
        assert (await client.get_ts()).logical == 1


async def test_a_function_may_map_addresses(pd_behind_nat: FakePd) -> None:
    config = PdConfig(host_mapping=lambda address: address.replace("pd", "127.0.0.1:").removesuffix(":2379"))

    async with PdClient("pd1:2379", config=config, transport=pd_behind_nat.transport) as client:
        assert (await client.get_ts()).logical == 1


async def test_what_maps_already_is_not_mapped_twice(network: MemoryTransport) -> None:
    mapped = map_hosts(network, HOSTS)

    assert isinstance(mapped, MappedTransport)
    assert map_hosts(mapped, HOSTS) is mapped
    assert map_hosts(network, None) is network


async def test_errors_name_the_address_that_was_dialed(network: MemoryTransport) -> None:
    assert MappedTransport(network, HOSTS).connect("pd1:2379").address == "127.0.0.1:1"


def test_a_mapping_is_a_mapping_or_a_function() -> None:
    with pytest.raises(TypeError, match="host_mapping must be a mapping or a function"):
        PdConfig(host_mapping=["pd1:2379"])  # type: ignore[arg-type]  # on purpose


def test_options_with_a_mapping_can_still_be_hashed() -> None:
    assert hash(PdConfig(host_mapping=HOSTS)) == hash(PdConfig())
