from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from tikv_pd import (
    ConfigError,
    DataCompacted,
    GlobalConfig,
    PdClient,
    PdError,
)
from tikv_pd._services.meta_storage import prefix_end
from tikv_pd.testing import FakePd
from tikv_proto import meta_storagepb
from tikv_proto.services import PD, MetaStorage


@pytest.fixture
async def client(pd: FakePd) -> AsyncIterator[PdClient]:
    async with PdClient("pd1:2379", transport=pd.transport) as client:
        yield client


async def test_what_was_put_is_there_until_it_is_deleted(client: PdClient) -> None:
    assert await client.meta.get(b"k") is None

    first = await client.meta.put(b"k", b"1")
    second = await client.meta.put(b"k", b"2")

    assert second == first + 1
    assert await client.meta.get(b"k") == b"2"
    await client.meta.delete(b"k")
    assert await client.meta.get(b"k") is None


async def test_a_prefix_is_read_in_order(client: PdClient, pd: FakePd) -> None:
    for key in (b"b/2", b"a", b"b/1", b"c"):
        pd.meta.put(key, key)

    found = await client.meta.get_prefix(b"b/")
    some = await client.meta.get_prefix(b"", limit=3)

    assert [key for key, _ in found.entries] == [b"b/1", b"b/2"]
    assert (found.has_more, found.revision) == (False, pd.meta.revision)
    assert [key for key, _ in some.entries] == [b"a", b"b/1", b"b/2"]
    assert some.has_more


async def test_the_kinds_of_errors_are_those_of_the_service(client: PdClient, pd: FakePd) -> None:
    async def compacted(_request: object) -> meta_storagepb.GetResponse:
        error = meta_storagepb.Error(type=meta_storagepb.ErrorType.DATA_COMPACTED, message="gone")
        return meta_storagepb.GetResponse(header=meta_storagepb.ResponseHeader(cluster_id=7, error=error))

    pd.transport.serve("pd1:2379", {**pd.handlers("pd1:2379"), MetaStorage.Get: compacted})

    with pytest.raises(DataCompacted, match="gone"):
        await client.meta.get(b"k", revision=1)


async def test_the_leader_is_followed(client: PdClient, pd: FakePd) -> None:
    pd.leader = "pd2:2379"

    await client.meta.put(b"k", b"v")
    await client.global_config.store({"a": b"1"})

    assert client.leader == "pd2:2379"


async def test_an_empty_key_is_refused(client: PdClient) -> None:
    with pytest.raises(ConfigError, match="key must not be empty"):
        await client.meta.put(b"", b"v")
    with pytest.raises(ConfigError, match="limit must be between"):
        await client.meta.get_prefix(b"", limit=0)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [(b"a", b"b"), (b"a\xff", b"b"), (b"a\x00", b"a\x01"), (b"\xff\xff", b"\x00"), (b"", b"\x00")],
)
def test_the_end_of_a_prefix_is_the_next_prefix(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


async def test_configuration_is_stored_and_loaded(client: PdClient, pd: FakePd) -> None:
    await client.global_config.store({"a": b"1", "b": b"2"})

    assert await client.global_config.load() == GlobalConfig((("a", b"1"), ("b", b"2")), pd.meta.revision)
    assert await client.global_config.load(["b", "c"]) == GlobalConfig((("b", b"2"),), 0)
    await client.global_config.store({"a": None})
    assert [name for name, _ in (await client.global_config.load()).items] == ["b"]


async def test_configuration_has_paths(client: PdClient) -> None:
    await client.global_config.store({"a": b"1"}, path="/global/config/orders")

    assert (await client.global_config.load(path="/global/config/orders")).items == (("a", b"1"),)
    assert (await client.global_config.load(["a"])).items == ()


async def test_a_path_that_pd_refuses_is_an_error(client: PdClient, pd: FakePd) -> None:
    pd.refuse(PD.LoadGlobalConfig, "INVALID_ARGUMENT", "not allowed")
    pd.answer_error(PD.StoreGlobalConfig, "UNKNOWN", "etcd is away")

    with pytest.raises(PdError, match="not allowed"):
        await client.global_config.load(path="/elsewhere")
    with pytest.raises(PdError, match="etcd is away"):
        await client.global_config.store({"a": b"1"})
