"""Every field of the configuration and of the options shows on the wire or in time: a field without a check here fails,
as does a check whose field is ignored, since its values then come out alike.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs
import pytest
from tikv_pd import Timestamp
from tikv_proto import kvrpcpb
from tikv_proto.services import PD, Tikv
from tikv_rpc.testing import FakeCluster
from tikv_txn import (
    AssertionLevel,
    CommitTsLag,
    ConfigError,
    DeadlineExceeded,
    PdConfig,
    Priority,
    RegionConfig,
    RequestOptions,
    RpcConfig,
    SnapshotTooOld,
    Transaction,
    TransactionClient,
    TransactionOptions,
    TransactionTooLarge,
    TxnConfig,
)
from tikv_txn.testing import FakeMvcc


@attrs.frozen
class Setting:
    """A cluster, and a client of it with the option that is looked at."""

    cluster: FakeCluster
    mvcc: FakeMvcc
    client: TransactionClient
    options: TransactionOptions
    """Those of its transactions."""

    @property
    def prewrites(self) -> list[kvrpcpb.PrewriteRequest]:
        return self.cluster.requests(Tikv.KvPrewrite)

    async def commit(self, pairs: dict[bytes, bytes], options: TransactionOptions | None = None) -> Transaction:
        async with self.client.begin(options) as txn:
            txn.put_many(pairs)
        return txn

    def leave_a_lock(self, key: bytes, start_ts: int, *, txn_size: int = 1) -> None:
        """Lock a key for a transaction that was rolled back."""
        primary = b"primary %d" % start_ts
        self.mvcc.roll_back(primary, start_ts)
        self.mvcc.lock(key, start_ts, primary=primary)
        self.mvcc.locks[key].txn_size = txn_size


Outcome = Callable[[Setting], Awaitable[Any]]

TWO_PC = TransactionOptions(one_pc=False, async_commit=False)
ASYNC_COMMIT = TransactionOptions(one_pc=False)
LARGE = {b"a%d" % number: bytes(1 << 20) for number in range(36)}
FAR = {b"a": b"", b"h": b"", b"q": b""}


async def seconds_without_a_store(at: Setting) -> float:
    for store in at.cluster.stores.values():
        store.stop()
    began = anyio.current_time()
    with pytest.raises(DeadlineExceeded):
        await at.client.snapshot().get(b"a")
    return anyio.current_time() - began


async def seconds_without_a_store_in_a_transaction(at: Setting) -> float:
    async with at.client.begin() as txn:
        for store in at.cluster.stores.values():
            store.stop()
        began = anyio.current_time()
        with pytest.raises(DeadlineExceeded):
            await txn.get(b"a")
        return anyio.current_time() - began


async def seconds_of_running(at: Setting) -> float:
    async def fail(_txn: Transaction) -> None:
        raise SnapshotTooOld(1, 2)

    began = anyio.current_time()
    with pytest.raises(DeadlineExceeded):
        await at.client.run(fail)
    return anyio.current_time() - began


async def asks_for_one_phase(at: Setting) -> bool:
    await at.commit({b"a": b""})
    return at.prewrites[0].try_one_pc


async def takes_a_key_of_100_bytes(at: Setting) -> bool:
    async with at.client.begin() as txn:
        try:
            txn.put(b"k" * 100, b"")
        except ConfigError:
            return False
    return True


async def limit_of_a_scan(at: Setting) -> int:
    async for _ in at.client.snapshot().scan():
        pass
    return int(at.cluster.requests(Tikv.KvScan)[0].limit)


async def keys_in_requests(at: Setting) -> list[int]:
    await at.client.snapshot().batch_get([b"a%d" % number for number in range(8)])
    return sorted(len(request.keys) for request in at.cluster.requests(Tikv.KvBatchGet))


async def limit_of_a_page_after_one_of_large_values(at: Setting) -> int:
    await at.commit(dict.fromkeys((b"a%02d" % number for number in range(64)), bytes(1000)), ASYNC_COMMIT)
    await at.client.snapshot().batch_get([b"a%02d" % number for number in range(64)])
    return await limit_of_a_scan(at)


async def sizes_of_answers_are_minded(at: Setting) -> int:
    await at.client.snapshot().batch_get([b"a", b"b", b"c", b"d"])
    return len(at.cluster.requests(Tikv.KvBatchGet))


async def reads_a_key_again(at: Setting) -> bool:
    snapshot = at.client.snapshot()
    await snapshot.get(b"a")
    await snapshot.get(b"a")
    return len(at.cluster.requests(Tikv.KvGet)) == 2


async def mutations_in_requests(at: Setting) -> list[int]:
    await at.commit(dict.fromkeys((b"a%d" % number for number in range(8)), bytes(98)), TWO_PC)
    return sorted(len(request.mutations) for request in at.prewrites)


async def seconds_of_prewriting_three_regions(at: Setting) -> float:
    await at.client.snapshot().batch_get(FAR)
    at.cluster.store(1).delay_next(Tikv.KvPrewrite, 1.0, times=3)
    began = anyio.current_time()
    await at.commit(FAR, TWO_PC)
    return round(anyio.current_time() - began)


def ttl_ms(pairs: dict[bytes, bytes]) -> Outcome:
    async def outcome(at: Setting) -> int:
        await at.commit(pairs, TWO_PC)
        return at.prewrites[0].lock_ttl

    return outcome


async def is_kept_alive(at: Setting) -> bool:
    at.cluster.store(1).hang_next(Tikv.KvCommit, times=2)
    await at.commit(LARGE, TWO_PC)
    return bool(at.cluster.requests(Tikv.KvTxnHeartBeat))


async def is_kept_alive_after_five_seconds(at: Setting) -> bool:
    async def pass_time() -> None:
        await anyio.sleep(5)
        now = at.cluster.pd.timestamp
        at.cluster.pd.timestamp = Timestamp(now.physical + 5000, 0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pass_time)
        await is_kept_alive(at)
    return bool(at.cluster.requests(Tikv.KvTxnHeartBeat))


def commits_async(keys: list[bytes]) -> Outcome:
    async def outcome(at: Setting) -> bool:
        await at.commit(dict.fromkeys(keys, b""), ASYNC_COMMIT)
        return at.prewrites[0].use_async_commit

    return outcome


async def window_ms(at: Setting) -> int:
    await at.commit({b"a": b""})
    request = at.prewrites[0]
    return Timestamp.from_ts(request.max_commit_ts).physical - Timestamp.from_ts(request.min_commit_ts).physical


async def questions_about_two_transactions(at: Setting) -> int:
    for number in range(4):
        at.leave_a_lock(b"a%d" % number, 1 + number % 2)
        await at.client.snapshot().get(b"a%d" % number)
    return len(at.cluster.requests(Tikv.KvCheckTxnStatus))


async def resolves_single_keys(at: Setting) -> bool:
    at.leave_a_lock(b"a", 1, txn_size=100)
    async with at.client.begin() as txn:
        txn.put(b"a", b"")
    return bool(at.cluster.requests(Tikv.KvResolveLock)[0].keys)


async def seconds_until_two_locks_are_passed(at: Setting) -> float:
    await at.client.snapshot().get(b"b")
    at.cluster.store(1).delay_next(Tikv.KvResolveLock, 5.0, times=2)
    began = anyio.current_time()
    for number in (1, 2):
        at.leave_a_lock(b"a%d" % number, number)
        await at.client.snapshot().get(b"a%d" % number)
    return round(anyio.current_time() - began)


async def seconds_of_closing_during_a_commit(at: Setting) -> float:
    await at.client.snapshot().batch_get(FAR)
    at.cluster.store(1).before_next(Tikv.KvCommit, lambda: at.cluster.store(1).hang_next(Tikv.KvCommit, times=10))
    await at.commit(FAR, TWO_PC)
    began = anyio.current_time()
    await at.client.aclose()
    return anyio.current_time() - began


async def name_of_the_caller(at: Setting) -> str:
    await at.client.get_ts()
    await at.client.snapshot().get(b"a")
    return at.cluster.pd.headers[-1].caller_component


async def pages_of_regions(at: Setting) -> int:
    await at.client.snapshot().batch_get(FAR)
    return at.cluster.pd.calls(PD.BatchScanRegions)


async def time_of_an_attempt(at: Setting) -> int:
    await at.client.snapshot().get(b"a")
    return int(at.cluster.requests(Tikv.KvGet)[0].context.max_execution_duration_ms)


CONFIG: dict[str, tuple[Outcome, list[tuple[Any, Any]]]] = {
    "timeout": (seconds_without_a_store, [(2.0, 2.0), (5.0, 5.0)]),
    "run_timeout": (seconds_of_running, [(2.0, 2.0), (5.0, 5.0)]),
    "transaction": (asks_for_one_phase, [(TWO_PC, False), (TransactionOptions(), True)]),
    "max_key_bytes": (takes_a_key_of_100_bytes, [(100, False), (200, True)]),
    "scan_page": (limit_of_a_scan, [(3, 3), (30, 30)]),
    "batch_get_keys": (keys_in_requests, [(3, [2, 3, 3]), (100, [8])]),
    "scan_bytes": (limit_of_a_page_after_one_of_large_values, [(100_000, 3), (1 << 20, 31)]),
    "batch_get_bytes": (sizes_of_answers_are_minded, [(1, 4), (1 << 20, 1)]),
    "snapshot_cache_bytes": (reads_a_key_again, [(0, True), (1 << 20, False)]),
    "commit_batch_bytes": (mutations_in_requests, [(200, [2, 2, 2, 2]), (1 << 20, [8])]),
    "commit_concurrency": (seconds_of_prewriting_three_regions, [(1, 3), (3, 1)]),
    "lock_ttl": (ttl_ms({b"a": b""}), [(3.0, 3000), (0.5, 500)]),
    "managed_lock_ttl": (ttl_ms(LARGE), [(20.0, 20_000), (10.0, 10_000)]),
    "heartbeat_bytes": (is_kept_alive, [(1 << 20, True), (100 << 20, False)]),
    "max_heartbeat": (is_kept_alive_after_five_seconds, [(3600.0, True), (1.0, False)]),
    "async_commit_keys": (commits_async([b"a", b"b", b"c"]), [(2, False), (3, True)]),
    "async_commit_key_bytes": (commits_async([b"aa", b"bb"]), [(3, False), (4, True)]),
    "async_commit_window": (window_ms, [(2.0, 2000), (5.0, 5000)]),
    "resolved_transactions": (questions_about_two_transactions, [(1, 4), (2, 2)]),
    "resolve_lite_keys": (resolves_single_keys, [(100, False), (101, True)]),
    "background_tasks": (seconds_until_two_locks_are_passed, [(1, 5), (2, 0)]),
    "close_timeout": (seconds_of_closing_during_a_commit, [(0.0, 0.0), (3.0, 3.0)]),
    "pd": (name_of_the_caller, [(PdConfig(caller_component="orders"), "orders"), (PdConfig(), "tikv-sdk-python")]),
    "region": (pages_of_regions, [(RegionConfig(scan_page=1), 3), (RegionConfig(), 1)]),
    "rpc": (time_of_an_attempt, [(RpcConfig(attempt_timeout=3), 2000), (RpcConfig(attempt_timeout=6), 4000)]),
}


async def asks_for_async_commit(at: Setting) -> bool:
    await at.commit(FAR)
    return at.prewrites[0].use_async_commit


async def timestamps_of_a_transaction(at: Setting) -> int:
    granted = sum(at.cluster.pd.tso_counts)
    await at.commit({b"a": b""})
    return sum(at.cluster.pd.tso_counts) - granted


async def level_of_assertions(at: Setting) -> int:
    await at.commit({b"a": b""})
    return at.prewrites[0].assertion_level


async def commits_late(at: Setting) -> bool:
    txn = await at.commit({b"a": b""})
    assert txn.commit_ts is not None
    return txn.commit_ts.ts > LATE


async def seconds_of_waiting_for_a_late_timestamp(at: Setting) -> float:
    late = at.cluster.pd.timestamp.ts + 1000
    options = attrs.evolve(at.options, commit_after=late)
    began = anyio.current_time()
    with pytest.raises(CommitTsLag):
        await at.commit({b"a": b""}, options)
    return round(anyio.current_time() - began, 1)


async def priority(at: Setting) -> int:
    await at.commit({b"a": b""})
    return at.prewrites[0].context.priority


async def takes_an_entry_of_100_bytes(at: Setting) -> bool:
    async with at.client.begin() as txn:
        try:
            txn.put(b"k", bytes(99))
        except (ConfigError, TransactionTooLarge):
            return False
    return True


LATE = Timestamp(1_000_000, 8).ts
"""A few timestamps after the first that PD grants."""
OPTIONS: dict[str, tuple[Outcome, list[tuple[Any, Any]]]] = {
    "async_commit": (asks_for_async_commit, [(True, True), (False, False)]),
    "one_pc": (asks_for_one_phase, [(True, True), (False, False)]),
    "causal_consistency": (timestamps_of_a_transaction, [(True, 1), (False, 2)]),
    "assertion_level": (level_of_assertions, [(AssertionLevel.OFF, 0), (AssertionLevel.STRICT, 2)]),
    "commit_after": (commits_late, [(LATE, True), (0, False)]),
    "commit_after_timeout": (seconds_of_waiting_for_a_late_timestamp, [(0.5, 0.5), (2.0, 2.0)]),
    "timeout": (seconds_without_a_store_in_a_transaction, [(2.0, 2.0), (5.0, 5.0)]),
    "requests": (priority, [(RequestOptions(priority=Priority.HIGH), 2), (RequestOptions(), 0)]),
    "max_entry_bytes": (takes_an_entry_of_100_bytes, [(99, False), (100, True)]),
    "max_bytes": (takes_an_entry_of_100_bytes, [(99, False), (100, True)]),
}


def test_every_field_is_checked() -> None:
    assert CONFIG.keys() == attrs.fields_dict(TxnConfig).keys()


def test_every_option_is_checked() -> None:
    assert OPTIONS.keys() == attrs.fields_dict(TransactionOptions).keys()


def rows(checks: dict[str, tuple[Outcome, list[tuple[Any, Any]]]]) -> list[tuple[str, Any, Any]]:
    return [(field, value, expected) for field, (_, values) in checks.items() for value, expected in values]


async def outcome(cluster: FakeCluster, config: TxnConfig, look: Outcome) -> Any:
    async def nothing(_request: Any) -> kvrpcpb.ScanResponse:
        return kvrpcpb.ScanResponse()

    mvcc = FakeMvcc(cluster)
    cluster.handlers[Tikv.KvScan] = nothing
    async with TransactionClient(cluster.url, config=config, transport=cluster.transport) as client:
        return await look(Setting(cluster, mvcc, client, config.transaction))


@pytest.mark.parametrize(("field", "value", "expected"), rows(CONFIG))
async def test_the_configuration_shows(cluster: FakeCluster, field: str, value: Any, expected: Any) -> None:
    look, _ = CONFIG[field]

    assert await outcome(cluster, TxnConfig(**{field: value}), look) == expected


@pytest.mark.parametrize(("field", "value", "expected"), rows(OPTIONS))
async def test_the_options_of_transactions_show(cluster: FakeCluster, field: str, value: Any, expected: Any) -> None:
    look, _ = OPTIONS[field]
    config = TxnConfig(transaction=TransactionOptions(**{field: value}))

    assert await outcome(cluster, config, look) == expected
