"""PD over HTTP, on the port that speaks gRPC too."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tikv_embedded import EmbeddedCluster, PortInUseError
from tikv_embedded.testing import BareClient
from tikv_proto import pdpb
from tikv_proto.services import PD


@pytest.fixture
async def cluster() -> AsyncIterator[EmbeddedCluster]:
    async with EmbeddedCluster(http=True, pd_members=3, split_keys=[b"g", b"p"]) as running:
        yield running


async def raw(cluster: EmbeddedCluster, data: bytes, member: int = 0) -> bytes:
    host, port = cluster.pd_addresses[member].rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


async def http(
    cluster: EmbeddedCluster, path: str, method: str = "GET", body: bytes = b"", member: int = 0
) -> tuple[int, Any]:
    request = f"{method} {path} HTTP/1.1\r\nHost: pd\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    head, _, content = (await raw(cluster, request, member)).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(content)}".encode() in head or method == "HEAD"
    return int(head.split()[1]), json.loads(content or b"null")


async def test_grpc_and_http_share_a_port(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = client.stream(cluster.pd_addresses[0], PD.Tso)
    await stream.write(pdpb.TsoRequest(header=pdpb.RequestHeader(cluster_id=cluster.cluster_id), count=3))

    assert (await stream.read()).count == 3
    assert await http(cluster, "/ping") == (200, "pong")
    assert len((await client.ask_pd(cluster, PD.GetAllStores)).stores) == 3


async def test_members_and_their_health_are_told_by_all(cluster: EmbeddedCluster) -> None:
    await cluster.stop_pd_member(2)

    _, health = await http(cluster, "/pd/api/v1/health", member=1)
    _, members = await http(cluster, "/pd/api/v1/members")
    _, leader = await http(cluster, "/pd/api/v1/leader")

    assert [(each["name"], each["health"]) for each in health] == [("pd-1", True), ("pd-2", True), ("pd-3", False)]
    assert members["header"]["cluster_id"] == cluster.cluster_id
    assert members["leader"] == members["members"][0] == leader
    assert leader["client_urls"] == [f"http://{cluster.pd_addresses[0]}"]
    assert await http(cluster, "/health") == (200, health)


async def test_regions_are_listed_and_found(cluster: EmbeddedCluster) -> None:
    first = cluster.regions()[0]

    _, everything = await http(cluster, "/pd/api/v1/regions")
    _, some = await http(cluster, "/pd/api/v1/regions/key?key=h&limit=1")
    _, by_id = await http(cluster, f"/pd/api/v1/region/id/{first.id}")
    _, by_key = await http(cluster, "/pd/api/v1/region/key/%61")

    assert everything["count"] == 3
    assert [(each["start_key"], each["end_key"]) for each in everything["regions"]] == [
        ("", "67"),
        ("67", "70"),
        ("70", ""),
    ]
    assert some["regions"] == [everything["regions"][1]]
    assert by_id == by_key == everything["regions"][0]
    assert by_id["leader"] in by_id["peers"]
    assert by_id["epoch"] == {"conf_ver": first.epoch.conf_ver, "version": first.epoch.version}


async def test_stores_are_listed_and_found(cluster: EmbeddedCluster) -> None:
    store = cluster.stores()[0]

    _, stores = await http(cluster, "/pd/api/v1/stores")
    _, one = await http(cluster, f"/pd/api/v1/store/{store.id}")

    assert (stores["count"], stores["stores"][0]) == (3, one)
    assert (one["store"]["address"], one["store"]["state_name"]) == (store.address, "Up")
    assert one["status"] == {"region_count": 3, "leader_count": 1}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nowhere", 404),
        ("/pd/api/v1/region/id/999", 404),
        ("/pd/api/v1/region/id/x", 404),
        ("/pd/api/v1/store/999", 404),
        ("/pd/api/v1/regions/key?limit=x", 400),
        ("/pd/api/v1/min-resolved-ts?scope=a", 400),
        ("/pd/api/v1/version", 200),
        ("/pd/api/v2/keyspaces/none", 404),
        ("/pd/api/v2/keyspaces/id/x", 404),
    ],
)
async def test_what_is_not_there_is_said(cluster: EmbeddedCluster, path: str, status: int) -> None:
    assert (await http(cluster, path))[0] == status


async def test_other_methods_are_not_allowed(cluster: EmbeddedCluster) -> None:
    assert (await http(cluster, "/pd/api/v1/regions", "HEAD")) == (405, None)
    assert (await http(cluster, "/pd/api/v1/regions", "POST"))[0] == 405
    assert (await http(cluster, "/pd/api/v2/keyspaces", "DELETE"))[0] == 405


async def test_the_least_resolved_timestamp_has_scopes(cluster: EmbeddedCluster, client: BareClient) -> None:
    for store_id, ts in ((1, 30), (2, 20), (3, 40)):
        await client.ask_pd(cluster, PD.ReportMinResolvedTS, store_id=store_id, min_resolved_ts=ts)

    _, whole = await http(cluster, "/pd/api/v1/min-resolved-ts")
    _, every = await http(cluster, "/pd/api/v1/min-resolved-ts?scope=cluster")
    _, some = await http(cluster, "/pd/api/v1/min-resolved-ts?scope=1,3")

    assert whole == {
        "is_real_time": True,
        "min_resolved_ts": 20,
        "persist_interval": "1s",
        "stores_min_resolved_ts": None,
    }
    assert (every["min_resolved_ts"], every["stores_min_resolved_ts"]) == (20, {"1": 30, "2": 20, "3": 40})
    assert (some["min_resolved_ts"], some["stores_min_resolved_ts"]) == (30, {"1": 30, "3": 40})


async def test_keyspaces_are_made_shown_and_changed() -> None:
    async with EmbeddedCluster(http=True, api_version="v2") as cluster:
        body = json.dumps({"name": "new", "config": {"team": "a"}}).encode()
        root = "/pd/api/v2/keyspaces"

        status, made = await http(cluster, root, "POST", body)
        again = await http(cluster, root, "POST", body)
        _, listed = await http(cluster, root)
        disabled = await http(cluster, f"{root}/new/state", "PUT", b'{"state": "disabled"}')
        _, shown = await http(cluster, f"{root}/id/1")
        bad = [
            await http(cluster, root, "POST", b"{}"),
            await http(cluster, root, "POST", b"["),
            await http(cluster, f"{root}/new/state", "PUT", b'{"state": "lost"}'),
        ]
        refused = await http(cluster, f"{root}/DEFAULT/state", "PUT", b'{"state": "disabled"}')
        missing = await http(cluster, f"{root}/none/state", "PUT", b'{"state": "disabled"}')

    assert (status, made["id"], made["state"], made["config"]) == (200, 1, "ENABLED", {"team": "a"})
    assert again == (500, "there is a keyspace 'new' already")
    assert [each["name"] for each in listed["keyspaces"]] == ["DEFAULT", "new"]
    assert disabled == (200, shown)
    assert shown["state"] == "DISABLED"
    assert {status for status, _ in bad} == {400}
    assert (refused[0], missing[0]) == (500, 404)


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x00 no TLS here\r\n\r\n", b"GET /ping HTTP/1.1\r\nContent-Length: x\r\n\r\n"]
)
async def test_garbage_is_cut_off(cluster: EmbeddedCluster, garbage: bytes) -> None:
    assert await raw(cluster, garbage) == b""
    assert await http(cluster, "/ping") == (200, "pong")


async def test_a_member_can_be_stopped_and_started_on_its_port(cluster: EmbeddedCluster, client: BareClient) -> None:
    stream = client.stream(cluster.pd_addresses[0], PD.Tso)
    await stream.write(pdpb.TsoRequest(header=pdpb.RequestHeader(cluster_id=cluster.cluster_id), count=1))
    await stream.read()

    await cluster.stop_pd_member(0)
    host, port = cluster.pd_addresses[0].rsplit(":", 1)
    with socket.socket() as probe:
        is_refused = probe.connect_ex((host, int(port))) != 0
    await cluster.start_pd_member(0)

    assert is_refused
    assert await http(cluster, "/ping") == (200, "pong")


async def test_a_busy_port_is_refused(cluster: EmbeddedCluster) -> None:
    port = int(cluster.pd_addresses[0].rsplit(":", 1)[1])

    with pytest.raises(PortInUseError):
        await EmbeddedCluster(http=True, pd_port=port).start()
