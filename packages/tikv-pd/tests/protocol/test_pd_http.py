from __future__ import annotations

import sys
from collections.abc import AsyncIterator

import anyio
import pytest
from tikv_pd import (
    ClosedError,
    ClusterMismatch,
    ConfigError,
    DeadlineExceeded,
    HttpAnswer,
    Keyspace,
    KeyspaceNotFound,
    Member,
    MemberHealth,
    MinResolvedTs,
    MinResolvedTsDisabled,
    PdClient,
    PdConfig,
    PdError,
    Peer,
    Region,
    RegionEpoch,
    RegionStats,
    Store,
    StoreStats,
)
from tikv_pd.testing import FakeHttp, FakePd
from tikv_proto.services import PD

VERSION = "/pd/api/v1/version"
REGION = {
    "id": 3,
    "start_key": "67",
    "end_key": "70FF",
    "epoch": {"conf_ver": 2, "version": 5},
    "peers": [{"id": 30, "store_id": 1}, {"id": 31, "store_id": 2, "is_learner": True}],
    "leader": {"id": 30, "store_id": 1},
    "down_peers": [{"peer": {"id": 31, "store_id": 2}, "down_seconds": 9}],
    "pending_peers": [{"id": 31, "store_id": 2}],
    "approximate_size": 96,
    "approximate_keys": 1000,
    "written_bytes": 1,
    "read_bytes": 2,
    "written_keys": 3,
    "read_keys": 4,
}
STATS = RegionStats(
    Region(3, b"g", b"p\xff", RegionEpoch(2, 5), (Peer(30, 1), Peer(31, 2, True)), Peer(30, 1), (31,), (31,)),
    96,
    1000,
    1,
    2,
    3,
    4,
)


@pytest.fixture
def http(pd: FakePd) -> FakeHttp:
    http = FakeHttp(pd)
    http.pages[VERSION] = {"version": "v9.0.0"}
    return http


@pytest.fixture
async def client(pd: FakePd, http: FakeHttp) -> AsyncIterator[PdClient]:
    config = PdConfig(caller_component="orders")
    async with PdClient("pd1:2379", transport=pd.transport, config=config, http_transport=http) as client:
        yield client
    assert http.is_closed or not http.requests


async def test_the_leader_is_asked_and_told_who_asks(client: PdClient, http: FakeHttp) -> None:
    assert await client.http.get_version() == "v9.0.0"

    assert http.requests == [("pd1:2379", VERSION)]
    assert http.headers == [{"X-Caller-ID": "orders"}]


@pytest.mark.parametrize("status", [400, 403, 404])
async def test_a_refusal_of_what_was_asked_is_final(client: PdClient, http: FakeHttp, status: int) -> None:
    http.refusals["pd1:2379"] = HttpAnswer(status, b'"no such thing"\n')

    with pytest.raises(PdError) as caught:
        await client.http.get_version()

    assert (caught.value.kind, caught.value.message) == (str(status), '"no such thing"')
    assert len(http.requests) == 1


async def test_followers_are_asked_when_the_leader_cannot_answer(client: PdClient, http: FakeHttp) -> None:
    http.refusals["pd1:2379"] = HttpAnswer(500, b"out of memory")

    assert await client.http.get_version() == "v9.0.0"
    assert [address for address, _ in http.requests] == ["pd1:2379", "pd2:2379"]


async def test_an_error_of_all_members_is_that_of_the_leader(client: PdClient, pd: FakePd, http: FakeHttp) -> None:
    http.refusals["pd1:2379"] = HttpAnswer(500, b"out of memory")
    http.refusals["pd2:2379"] = HttpAnswer(500, b"out of disk")
    pd.stop("pd3:2379")
    started = anyio.current_time()

    with pytest.raises(PdError, match=r"500 \(out of memory\)"):
        await client.http.get_version()

    assert len(http.requests) == 3
    assert anyio.current_time() == started


@pytest.mark.parametrize(
    "answer",
    [
        HttpAnswer(503, b"no leader yet"),
        HttpAnswer(500, b"redirect to not leader"),
        HttpAnswer(500, b"there is no leader"),
        HttpAnswer(500, b"region 1 is not served"),
        HttpAnswer(500, b"not primary"),
    ],
)
async def test_what_shows_that_the_leader_moved_has_the_members_asked(
    client: PdClient, pd: FakePd, http: FakeHttp, answer: HttpAnswer
) -> None:
    http.refusals = {"pd1:2379": answer, "pd3:2379": answer}
    pd.leader = "pd2:2379"
    asked = pd.calls(PD.GetMembers)

    assert await client.http.get_version() == "v9.0.0"
    await anyio.wait_all_tasks_blocked()

    assert pd.calls(PD.GetMembers) > asked
    assert client.leader == "pd2:2379"


async def test_an_api_that_comes_back_is_waited_for(client: PdClient, pd: FakePd) -> None:
    pd.stop()
    started = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(client.http.get_version)
        await anyio.sleep(12)
        for address in pd.members:
            pd.start(address)

    assert anyio.current_time() - started < 20


async def test_an_api_that_stays_away_has_30_seconds(client: PdClient, pd: FakePd) -> None:
    pd.stop()
    started = anyio.current_time()

    with pytest.raises(DeadlineExceeded) as caught:
        await client.http.get_version()

    assert anyio.current_time() - started == pytest.approx(30)
    assert caught.value.__cause__ is not None


async def test_a_silent_leader_leaves_time_for_the_others(client: PdClient, http: FakeHttp) -> None:
    http.silent = {"pd1:2379", "pd2:2379"}
    started = anyio.current_time()

    assert await client.http.get_version(timeout=3) == "v9.0.0"
    assert anyio.current_time() - started == pytest.approx(2)


async def test_another_cluster_is_an_error(client: PdClient, pd: FakePd, http: FakeHttp) -> None:
    http.refusals = {address: HttpAnswer(503, b"") for address in pd.members}
    pd.cluster_id = 8

    with pytest.raises(ClusterMismatch):
        await client.http.get_version()


async def test_addresses_are_mapped(pd: FakePd, http: FakeHttp) -> None:
    mapping = {"localhost:1": "pd1:2379"}
    pd.members, pd.leader = ["localhost:1"], "localhost:1"
    pd.transport.serve("pd1:2379", pd.handlers("localhost:1"))
    config = PdConfig(host_mapping=mapping)

    async with PdClient("localhost:1", transport=pd.transport, config=config, http_transport=http) as client:
        await client.http.get_version()

    assert http.requests == [("pd1:2379", VERSION)]


async def test_the_least_resolved_timestamp(client: PdClient, http: FakeHttp) -> None:
    page = {"is_real_time": True, "min_resolved_ts": 2**63, "persist_interval": "1s", "stores_min_resolved_ts": None}
    stores = {"2": 7, "1": 2**64 - 1}
    http.pages["/pd/api/v1/min-resolved-ts"] = page
    http.pages["/pd/api/v1/min-resolved-ts?scope=cluster"] = {**page, "stores_min_resolved_ts": stores}
    http.pages["/pd/api/v1/min-resolved-ts?scope=2,1"] = {
        **page,
        "min_resolved_ts": 7,
        "stores_min_resolved_ts": stores,
    }

    assert await client.http.get_min_resolved_ts() == 2**63
    by_store = ((1, 2**64 - 1), (2, 7))
    assert await client.http.get_min_resolved_ts_by_store() == MinResolvedTs(2**63, by_store)
    assert await client.http.get_min_resolved_ts_by_store([2, 1]) == MinResolvedTs(7, by_store)


async def test_a_least_resolved_timestamp_that_is_not_kept_is_an_error(client: PdClient, http: FakeHttp) -> None:
    http.pages["/pd/api/v1/min-resolved-ts"] = {"min_resolved_ts": 0, "stores_min_resolved_ts": None}

    with pytest.raises(MinResolvedTsDisabled, match="min-resolved-ts-persistence-interval"):
        await client.http.get_min_resolved_ts()


async def test_members_and_how_they_are(client: PdClient, http: FakeHttp) -> None:
    one = {"name": "a", "member_id": 1, "client_urls": ["http://pd1:2379"], "binary_version": "v9.0.0"}
    two = {"name": "b", "member_id": 2, "client_urls": ["http://pd2:2379"]}
    http.pages["/pd/api/v1/members"] = {"members": [one, two], "leader": one}
    http.pages["/pd/api/v1/leader"] = one
    http.pages["/pd/api/v1/health"] = [{**one, "health": True}, {**two, "health": False}]

    first = Member(1, "a", ("http://pd1:2379",), True, "v9.0.0")
    assert await client.http.get_members() == [first, Member(2, "b", ("http://pd2:2379",), False)]
    assert await client.http.get_leader() == first
    assert await client.http.get_health() == [
        MemberHealth(1, "a", ("http://pd1:2379",), True),
        MemberHealth(2, "b", ("http://pd2:2379",), False),
    ]


async def test_regions_with_their_statistics(client: PdClient, http: FakeHttp) -> None:
    bare = {"id": 4, "start_key": "", "end_key": "", "epoch": {}, "leader": {}}
    http.pages["/pd/api/v1/region/id/3"] = REGION
    http.pages["/pd/api/v1/region/key/%2Fk%FF%2E%20"] = REGION
    http.pages["/pd/api/v1/regions/key?key=&end_key=&limit=1"] = {"count": 1, "regions": [bare]}
    http.pages["/pd/api/v1/regions/key?key=a%26&end_key=b&limit=-1"] = {"count": 2, "regions": [bare, REGION]}
    http.pages["/pd/api/v1/regions/key?key=x&end_key=&limit=-1"] = {"count": 0, "regions": None}
    other = RegionStats(Region(4, b"", b"", RegionEpoch(0, 0), ()))

    assert await client.http.get_region_by_id(3) == STATS
    assert await client.http.get_region_by_id(9) is None
    assert await client.http.get_region(b"/k\xff. ") == STATS
    assert await client.http.get_region(b"other") is None
    assert await client.http.get_region(b"") == other
    assert await client.http.get_regions(b"a&", b"b") == [other, STATS]
    assert await client.http.get_regions(b"x") == []


async def test_there_may_be_no_region_at_all(client: PdClient, http: FakeHttp) -> None:
    http.pages["/pd/api/v1/regions/key?key=&end_key=&limit=1"] = {"count": 0, "regions": []}

    assert await client.http.get_region(b"") is None


async def test_stores_with_their_statistics(client: PdClient, http: FakeHttp) -> None:
    store = {
        "store": {
            "id": 1,
            "address": "tikv1:20160",
            "labels": [{"key": "zone", "value": "a"}],
            "version": "9.0.0",
            "state_name": "Up",
        },
        "status": {"capacity": "1GiB", "available": "1MiB", "uptime": "1h", "region_count": 3, "leader_count": 2},
    }
    http.pages["/pd/api/v1/stores"] = {"count": 1, "stores": [store]}
    http.pages["/pd/api/v1/store/1"] = store
    stats = StoreStats(Store(1, "tikv1:20160", (("zone", "a"),), False, "9.0.0"), "Up", 3, 2, "1GiB", "1MiB", "1h")

    assert await client.http.get_stores() == [stats]
    assert await client.http.get_store(1) == stats
    assert await client.http.get_store(2) is None


async def test_keyspaces(client: PdClient, http: FakeHttp) -> None:
    page = {"id": 7, "name": "orders", "state": "ENABLED", "config": {"b": "2", "a": "1"}}
    http.pages["/pd/api/v2/keyspaces/orders"] = page
    http.pages["/pd/api/v2/keyspaces/id/7"] = page
    orders = Keyspace(7, "orders", "ENABLED", (("a", "1"), ("b", "2")))

    assert await client.http.get_keyspace("orders") == orders
    assert await client.http.get_keyspace_by_id(7) == orders
    with pytest.raises(KeyspaceNotFound, match="users"):
        await client.http.get_keyspace("users")
    with pytest.raises(KeyspaceNotFound, match="8"):
        await client.http.get_keyspace_by_id(8)


async def test_a_refusal_is_not_taken_for_nothing(client: PdClient, http: FakeHttp) -> None:
    http.refusals["pd1:2379"] = HttpAnswer(403, b"not for you")

    with pytest.raises(PdError, match="not for you"):
        await client.http.get_store(1)
    with pytest.raises(PdError, match="not for you"):
        await client.http.get_keyspace("orders")


@pytest.mark.parametrize("page", [b"<html>", b"[]", b"{}", b'{"version": '])
async def test_an_answer_that_is_something_else_is_an_error(client: PdClient, http: FakeHttp, page: bytes) -> None:
    http.pages[VERSION] = page

    with pytest.raises(PdError, match="not what was asked for"):
        await client.http.get_version()


async def test_what_cannot_be_asked_is_refused(client: PdClient) -> None:
    with pytest.raises(ConfigError, match="store_ids"):
        await client.http.get_min_resolved_ts_by_store([])
    with pytest.raises(ConfigError, match="store_id"):
        await client.http.get_store(0)
    with pytest.raises(ConfigError, match="limit"):
        await client.http.get_regions(limit=0)
    with pytest.raises(ConfigError, match="a keyspace has a name"):
        await client.http.get_keyspace("")
    with pytest.raises(ConfigError, match="a keyspace id"):
        await client.http.get_keyspace_by_id(1 << 24)


async def test_a_closed_client_has_no_api(pd: FakePd, http: FakeHttp) -> None:
    http.silent = set(pd.members)
    ends: list[ClosedError] = []

    async def ask() -> None:
        with pytest.raises(ClosedError) as caught:
            await api.get_version()
        ends.append(caught.value)

    async with (
        anyio.create_task_group() as tasks,
        PdClient("pd1:2379", transport=pd.transport, http_transport=http) as client,
    ):
        api = client.http
        tasks.start_soon(ask)
        await anyio.sleep(1)

    assert len(ends) == 1
    with pytest.raises(ClosedError):
        client.http  # noqa: B018  # a property that raises
    with pytest.raises(ClosedError):
        await api.get_version()


async def test_without_the_extra_an_error_says_what_to_install(pd: FakePd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    monkeypatch.delitem(sys.modules, "tikv_pd.httpx_transport", raising=False)

    async with PdClient("pd1:2379", transport=pd.transport) as client:
        with pytest.raises(ConfigError, match=r"pip install 'tikv-pd\[http\]'"):
            client.http  # noqa: B018  # a property that raises
