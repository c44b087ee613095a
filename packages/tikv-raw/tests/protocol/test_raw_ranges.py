"""Scans of many ranges, removal with progress, counts, coprocessor plugins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from tikv_pd import Keyspace
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_raw import (
    ConfigError,
    CoprocessorAnswer,
    KeyRange,
    RawClient,
    RawConfig,
    RawError,
    UndeterminedError,
    prefix_range,
)
from tikv_region import KeyspaceCodec
from tikv_rpc.testing import FakeCluster

PAIRS = {b"%02d" % number: b"value %d" % number for number in range(20)}
EVERYTHING = (b"", b"")


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """Regions split at b"05" and b"12"."""
    async with FakeCluster([b"05", b"12"]) as running:
        for key, value in PAIRS.items():
            running.raw.put(key, value)
        yield running


@pytest.fixture
async def client(cluster: FakeCluster) -> AsyncIterator[RawClient]:
    async with RawClient(cluster.url, config=RawConfig(scan_page=6), transport=cluster.transport) as opened:
        yield opened


def expected(
    ranges: Sequence[tuple[bytes, bytes]], limit: int | None, *, reverse: bool
) -> list[list[tuple[bytes, bytes]]]:
    found = (
        [(key, value) for key, value in PAIRS.items() if start <= key and (not end or key < end)]
        for start, end in ranges
    )
    return [(pairs[::-1] if reverse else pairs)[:limit] for pairs in found]


# --- batch_scan -------------------------------------------------------------------------------------------------------

RANGES = {
    "none": [],
    "one": [(b"03", b"07")],
    "everything": [EVERYTHING],
    "disjoint": [(b"00", b"02"), (b"02", b"04"), (b"06", b"15"), (b"18", b"")],
    "any order": [(b"18", b""), (b"06", b"15"), (b"00", b"02")],
    "overlapping": [(b"03", b"09"), (b"", b"05"), (b"03", b"09"), (b"08", b""), EVERYTHING],
    "empty ones": [(b"07", b"07"), (b"09", b"03"), (b"99", b""), (b"10", b"11"), (b"\0", b"\1")],
    "many": [(b"%02d" % number, b"%02d" % (number + 1)) for number in range(20)],
}


@pytest.mark.parametrize("ranges", RANGES.values(), ids=RANGES)
@pytest.mark.parametrize("limit", [None, 0, 1, 2, 5, 6, 7, 100])
@pytest.mark.parametrize("reverse", [False, True])
async def test_each_range_gives_what_a_scan_of_it_would(
    client: RawClient, ranges: list[tuple[bytes, bytes]], limit: int | None, reverse: bool
) -> None:
    found = await client.batch_scan(ranges, each_limit=limit, reverse=reverse)

    assert found == expected(ranges, limit, reverse=reverse)


async def test_ranges_in_one_region_share_a_request(cluster: FakeCluster, client: RawClient) -> None:
    await client.batch_scan([(b"00", b"01"), (b"02", b"03"), (b"04", b"05"), (b"12", b"13")], each_limit=1)

    (shared,) = cluster.requests(Tikv.RawBatchScan)
    assert [(span.start_key, span.end_key) for span in shared.ranges] == [
        (b"00", b"01"),
        (b"02", b"03"),
        (b"04", b"05"),
    ]
    assert shared.each_limit == 1
    assert [request.start_key for request in cluster.requests(Tikv.RawScan)] == [b"12"]


async def test_many_ranges_without_a_limit_share_requests_too(cluster: FakeCluster) -> None:
    async with RawClient(cluster.url, transport=cluster.transport) as client:
        found = await client.batch_scan(RANGES["many"])

    assert found == expected(RANGES["many"], None, reverse=False)
    # Of 5, 7 and 8 ranges, four at a time.
    assert len(cluster.log) == 6


async def test_a_request_asks_for_a_page_at_most(cluster: FakeCluster, client: RawClient) -> None:
    await client.batch_scan(RANGES["many"], each_limit=2)

    assert {len(request.ranges) * request.each_limit for request in cluster.requests(Tikv.RawBatchScan)} <= {4, 6}


async def test_a_range_whose_limit_is_reached_is_asked_for_no_more(cluster: FakeCluster, client: RawClient) -> None:
    await client.batch_scan([EVERYTHING], each_limit=3)

    assert len(cluster.log) == 1


async def test_keys_may_be_scanned_without_values_in_another_column_family(
    cluster: FakeCluster, client: RawClient
) -> None:
    cluster.raw.put(b"01", b"locked", cf="lock")
    cluster.raw.put(b"03", b"locked", cf="lock")

    found = await client.batch_scan(map(prefix_range, [b"0", b"1"]), key_only=True, cf="lock")

    assert found == [[(b"01", b""), (b"03", b"")], []]


@pytest.mark.parametrize("reverse", [False, True])
async def test_limits_are_exact_while_regions_split_and_merge(
    cluster: FakeCluster, client: RawClient, reverse: bool
) -> None:
    ranges = [(b"00", b"11"), (b"11", b""), EVERYTHING, (b"03", b"14")]
    await client.batch_scan(ranges)
    cluster.store(1).before_next(None, lambda: cluster.split(b"03", b"08", b"15"))
    cluster.store(1).before_next(None, lambda: cluster.merge(b"00"))
    cluster.store(1).before_next(None, lambda: cluster.move_leader(b"09", 2))

    for limit in (None, 4, 9):
        found = await client.batch_scan(ranges, each_limit=limit, reverse=reverse)

        assert found == expected(ranges, limit, reverse=reverse)


@pytest.mark.parametrize("reverse", [False, True])
async def test_many_ranges_of_a_keyspace_stay_in_it(reverse: bool) -> None:
    codec = KeyspaceCodec(b"r", 5, "users")
    async with FakeCluster([b"05"], codec=codec) as cluster:
        cluster.pd.keyspaces["users"] = Keyspace(5, "users", "ENABLED")
        for key, value in PAIRS.items():
            cluster.raw.put(codec.encode_key(key), value)
        cluster.raw.put(b"r\0\0\6x", b"another's")
        async with RawClient(f"{cluster.url}?keyspaceName=users", transport=cluster.transport) as client:
            found = await client.batch_scan([(b"", b"03"), EVERYTHING], reverse=reverse)

    assert found == expected([(b"", b"03"), EVERYTHING], None, reverse=reverse)


async def test_a_refused_scan_of_many_ranges_is_raised(cluster: FakeCluster, client: RawClient) -> None:
    refusal = kvrpcpb.RawBatchScanResponse(kvs=[kvrpcpb.KvPair(error=kvrpcpb.KeyError(abort="Invalid KeyRanges"))])
    cluster.store(1).answer_next(Tikv.RawBatchScan, refusal)

    with pytest.raises(RawError, match="the store refused batch_scan: Invalid KeyRanges"):
        await client.batch_scan([(b"00", b"01"), (b"02", b"03")], each_limit=1)


# --- removing, counting -----------------------------------------------------------------------------------------------


async def test_removal_tells_of_each_region(cluster: FakeCluster, client: RawClient) -> None:
    told: list[int] = []

    await client.delete_range(b"02", b"15", progress=told.append)

    assert told == [1, 2, 3]
    assert list(cluster.data) == [b"00", b"01", b"15", b"16", b"17", b"18", b"19"]


@pytest.mark.parametrize("error", [ZeroDivisionError("1"), ConfigError("anything")], ids=["of python", "of ours"])
async def test_an_error_of_progress_ends_a_removal(client: RawClient, error: Exception) -> None:
    told = []

    def stop(done: int) -> None:
        told.append(done)
        if done == 2:
            raise error

    with pytest.raises(type(error)) as caught:
        await client.delete_range(b"02", b"15", progress=stop)

    assert caught.value is error
    assert told == [1, 2]
    assert await client.get(b"00") == PAIRS[b"00"]


async def test_a_prefix_is_removed_with_all_that_begins_with_it(cluster: FakeCluster, client: RawClient) -> None:
    cluster.raw.put(b"0", b"")
    told: list[int] = []

    await client.delete_prefix(b"0", progress=told.append)

    assert list(cluster.data) == list(PAIRS)[10:]
    assert told == [1, 2]


async def test_everything_is_removed_only_when_that_is_said(cluster: FakeCluster, client: RawClient) -> None:
    with pytest.raises(ConfigError, match="delete_prefix with an empty prefix removes every key; pass everything=True"):
        await client.delete_prefix(b"")
    assert len(cluster.data) == 20
    await client.delete_prefix(b"", everything=True)

    assert cluster.data == {}


async def test_keys_are_counted_by_the_stores(cluster: FakeCluster, client: RawClient) -> None:
    assert await client.count() == 20
    assert await client.count(b"03", b"14") == 11
    assert await client.count(prefix=b"1") == 10
    assert await client.count(b"14", b"03") == 0
    assert cluster.requests(Tikv.RawScan) == []


async def test_keys_of_another_column_family_are_counted_page_by_page(cluster: FakeCluster, client: RawClient) -> None:
    for key in list(PAIRS)[:17]:
        cluster.raw.put(key, b"", cf="write")

    assert await client.count(cf="write") == 17
    assert await client.count(b"03", b"14", cf="write") == 11
    assert await client.count(b"14", b"03", cf="write") == 0
    assert await client.count(prefix=b"2", cf="write") == 0


async def test_a_checksum_of_a_prefix_is_that_of_its_range(client: RawClient) -> None:
    assert await client.checksum(prefix=b"1") == await client.checksum(b"1", b"2")


# --- coprocessor ------------------------------------------------------------------------------------------------------


def serve_plugin(cluster: FakeCluster) -> None:
    """Have stores answer with what they are asked for."""

    async def answer(request: kvrpcpb.RawCoprocessorRequest) -> kvrpcpb.RawCoprocessorResponse:
        if request.copr_name != "echo":
            return kvrpcpb.RawCoprocessorResponse(error=f"No registered coprocessor with name '{request.copr_name}'")
        spans = b" ".join(span.start_key + b"-" + span.end_key for span in request.ranges)
        return kvrpcpb.RawCoprocessorResponse(data=request.copr_version_req.encode() + b" " + spans + request.data)

    cluster.handlers[Tikv.RawCoprocessor] = answer


async def test_a_plugin_is_asked_once_for_each_region(cluster: FakeCluster, client: RawClient) -> None:
    serve_plugin(cluster)

    found = await client.coprocessor("echo", "^1.0", [(b"03", b"07"), KeyRange(b"00", b"02"), (b"15", b"")], b"!")

    assert found == [
        CoprocessorAnswer(((b"03", b"05"), (b"00", b"02")), b"^1.0 03-05 00-02!"),
        CoprocessorAnswer(((b"05", b"07"),), b"^1.0 05-07!"),
        CoprocessorAnswer(((b"15", b""),), b"^1.0 15-!"),
    ]


async def test_what_a_plugin_works_with_may_depend_on_the_ranges(cluster: FakeCluster, client: RawClient) -> None:
    serve_plugin(cluster)
    asked: list[Any] = []

    def make(ranges: Sequence[tuple[bytes, bytes]]) -> bytes:
        asked.append(ranges)
        return b"/%d" % len(ranges)

    found = await client.coprocessor("echo", "1", [(b"01", b"02"), (b"03", b"06")], make)

    assert [answer.data for answer in found] == [b"1 01-02 03-05/2", b"1 05-06/1"]
    assert sorted(asked) == [((b"01", b"02"), (b"03", b"05")), ((b"05", b"06"),)]


async def test_an_error_of_what_makes_a_plugin_s_data_comes_out_as_it_is(
    cluster: FakeCluster, client: RawClient
) -> None:
    serve_plugin(cluster)
    error = ConfigError("anything")

    def make(ranges: Sequence[tuple[bytes, bytes]]) -> bytes:
        if ranges[0][0] == b"05":
            raise error
        return b""

    with pytest.raises(ConfigError) as caught:
        await client.coprocessor("echo", "1", [(b"01", b"02"), (b"03", b"06")], make)

    assert caught.value is error


async def test_a_plugin_that_is_not_there_is_an_error(cluster: FakeCluster, client: RawClient) -> None:
    serve_plugin(cluster)

    with pytest.raises(RawError, match="the store refused coprocessor: No registered coprocessor with name 'nothing'"):
        await client.coprocessor("nothing", "1", [EVERYTHING])


async def test_a_plugin_is_asked_again_only_if_it_changes_nothing(cluster: FakeCluster, client: RawClient) -> None:
    serve_plugin(cluster)
    cluster.store(1).drop_reply_next(Tikv.RawCoprocessor)

    with pytest.raises(UndeterminedError, match="coprocessor is unknown"):
        await client.coprocessor("echo", "1", [(b"01", b"02")])
    assert len(cluster.requests(Tikv.RawCoprocessor)) == 1

    cluster.store(1).drop_reply_next(Tikv.RawCoprocessor)
    (answer,) = await client.coprocessor("echo", "1", [(b"01", b"02")], read_only=True)
    assert answer.data == b"1 01-02"


async def test_a_plugin_follows_a_region_that_splits(cluster: FakeCluster, client: RawClient) -> None:
    serve_plugin(cluster)
    await client.get(b"01")
    cluster.store(1).before_next(Tikv.RawCoprocessor, lambda: cluster.split(b"03"))

    found = await client.coprocessor("echo", "1", [(b"01", b"04")])

    assert [answer.data for answer in found] == [b"1 01-03", b"1 03-04"]


async def test_a_plugin_is_named_by_text(client: RawClient) -> None:
    with pytest.raises(TypeError, match="name must be a str, not bytes"):
        await client.coprocessor(b"echo", "1", [])  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError, match="data must be bytes, not str"):
        await client.coprocessor("echo", "1", [], "data")  # type: ignore[arg-type]  # on purpose
    assert await client.coprocessor("echo", "1", []) == []


async def test_words_are_no_flags(cluster: FakeCluster, client: RawClient) -> None:
    before = dict(cluster.data)
    wrong: Any = "no"

    with pytest.raises(TypeError, match="everything must be True or False"):
        await client.delete_range(b"", everything=wrong)
    with pytest.raises(TypeError, match="everything must be True or False"):
        await client.delete_prefix(b"a", everything=wrong)
    with pytest.raises(TypeError, match="reverse must be True or False"):
        client.scan(reverse=wrong)
    with pytest.raises(TypeError, match="key_only must be True or False"):
        await client.batch_scan([(b"", b"")], key_only=wrong)

    assert cluster.data == before
