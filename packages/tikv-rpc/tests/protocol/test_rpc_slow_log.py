"""What is logged of operations that were slow, and what of keys shows there and in errors."""

from __future__ import annotations

import copy
import logging
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from tikv_pd import DeadlineExceeded, TikvError
from tikv_proto import errorpb, kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import RegionUnavailable
from tikv_rpc import (
    AtKey,
    Effect,
    Operation,
    OperationReport,
    Request,
    RetryRegion,
    RpcClient,
    RpcConfig,
    WaitReport,
    dispatch,
    operation,
)
from tikv_rpc._reports.slow_log import KEPT, SlowLog
from tikv_rpc.testing import FakeCluster

if TYPE_CHECKING:
    from tikv_region import Redaction

SECRET = b"secret"
HEX = SECRET.hex()


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tikv_rpc.slow"]


async def run(rpc: RpcClient, message: Any, timeout: float = 30) -> Any:
    is_read = isinstance(message, kvrpcpb.RawGetRequest)
    request: Request[Any] = Request(
        Tikv.RawGet if is_read else Tikv.RawPut, message, Effect.READ if is_read else Effect.WRITE
    )
    plain: AtKey[Any] = AtKey(RetryRegion(dispatch(rpc), rpc), rpc.cache)
    call = rpc.call("get" if is_read else "put", timeout)
    return await operation(rpc, plain).execute((message.key, request), call)


def read(key: bytes = SECRET) -> kvrpcpb.RawGetRequest:
    return kvrpcpb.RawGetRequest(key=key)


class TestSlowLog:
    async def test_a_slow_operation_is_logged_once_with_what_it_went_through(
        self, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        cluster.store(1).answer_next(
            Tikv.RawGet, region_error=errorpb.Error(region_not_initialized=errorpb.RegionNotInitialized())
        )
        cluster.store(1).delay_next(Tikv.RawGet, 1.5)
        async with cluster.connect(RpcConfig(slow_threshold=1.0)) as rpc:
            await run(rpc, read())

        (entry,) = logged(caplog)
        region = cluster.map.region(SECRET).id
        assert entry.splitlines() == [
            f"slow get: 1.502 s, OK, key 0x{HEX}, 2 attempts, 1 wait",
            f"  +0.000 s  RawGet to store 1 (tikv1:20160), Region {region} as leader: 0.000 s, region_not_initialized",
            "  +0.000 s  regionNotInitialized 0.002 s",
            f"  +0.002 s  RawGet to store 1 (tikv1:20160), Region {region} as leader, again: 1.500 s, OK",
        ]

    async def test_a_fast_operation_is_not_logged(self, cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
        cluster.store(1).delay_next(Tikv.RawGet, 0.9)
        async with cluster.connect(RpcConfig(slow_threshold=1.0)) as rpc:
            await run(rpc, read())

        assert logged(caplog) == []

    async def test_an_operation_that_failed_slowly_is_logged_with_its_error(
        self, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        cluster.store(1).hang_next(Tikv.RawGet)
        async with cluster.connect(RpcConfig(slow_threshold=1.0)) as rpc:
            with pytest.raises(DeadlineExceeded):
                await run(rpc, read(), timeout=2)

        assert logged(caplog)[0].startswith("slow get: 2.000 s, DeadlineExceeded")

    async def test_values_never_show(self, cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
        cluster.store(1).delay_next(Tikv.RawPut, 2)
        async with cluster.connect(RpcConfig(slow_threshold=1.0)) as rpc:
            await run(rpc, kvrpcpb.RawPutRequest(key=b"k", value=SECRET))

        (entry,) = logged(caplog)
        assert HEX not in entry
        assert SECRET.decode() not in entry

    @pytest.mark.parametrize(("redaction", "shown"), [("on", "?"), ("marker", f"\u20390x{HEX}\u203a")])
    async def test_keys_show_as_they_are_to(
        self, cluster: FakeCluster, caplog: pytest.LogCaptureFixture, redaction: Redaction, shown: str
    ) -> None:
        cluster.store(1).delay_next(Tikv.RawGet, 2)
        async with cluster.connect(RpcConfig(slow_threshold=1.0, redact=redaction)) as rpc:
            await run(rpc, read())

        assert f"key {shown}, 1 attempt" in logged(caplog)[0]

    async def test_nothing_is_rendered_when_nobody_reads_it(
        self, cluster: FakeCluster, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.ERROR, "tikv_rpc.slow")
        cluster.store(1).delay_next(Tikv.RawGet, 2)
        async with cluster.connect(RpcConfig(slow_threshold=1.0)) as rpc:
            await run(rpc, read())

        assert logged(caplog) == []

    def test_of_very_many_events_the_first_and_the_last_are_kept(self, caplog: pytest.LogCaptureFixture) -> None:
        kept = SlowLog(1.0).begin(Operation("get", b"k", None, 0.0))

        for number in range(1000):
            kept.wait(WaitReport(f"kind{number}", 0, float(number), 1.0))
        kept.end(OperationReport(1000.0, "BackoffExceeded", 0, 1000))

        lines = logged(caplog)[0].splitlines()
        assert len(lines) == 1 + 2 * KEPT + 1
        assert "kind0 " in lines[1]
        assert "kind999 " in lines[-2]
        assert lines[-1].strip() == f"and {1000 - 2 * KEPT} more in between"

    @pytest.mark.parametrize(
        ("key", "keys", "subject"),
        [
            (None, None, ""),
            (None, 5, "5 keys, "),
            (b"k", 1, "1 key from 0x6b, "),
            (b"k", None, "key 0x6b, "),
            (b"", None, "key 0x, "),
        ],
    )
    def test_what_is_known_of_keys_is_told(
        self, caplog: pytest.LogCaptureFixture, key: bytes | None, keys: int | None, subject: str
    ) -> None:
        kept = SlowLog(1.0).begin(Operation("batch_put", key, keys, 0.0))

        kept.end(OperationReport(2.0, "OK", 3, 1))

        assert logged(caplog) == [f"slow batch_put: 2.000 s, OK, {subject}3 attempts, 1 wait"]

    def test_branches_are_shown_together(self, caplog: pytest.LogCaptureFixture) -> None:
        kept = SlowLog(1.0).begin(Operation("batch_get", b"k", 2, 10.0))

        for branch, started in [(0, 10.0), (1, 10.1), (2, 10.2), (1, 10.3)]:
            kept.wait(WaitReport("regionMiss", branch, started, 0.1))
        kept.end(OperationReport(2.0, "OK", 0, 4))

        assert logged(caplog)[0].splitlines() == [
            "slow batch_get: 2.000 s, OK, 2 keys from 0x6b, 0 attempts, 4 waits",
            "  +0.000 s  regionMiss 0.100 s",
            "  branch 1",
            "    +0.100 s  regionMiss 0.100 s",
            "    +0.300 s  regionMiss 0.100 s",
            "  branch 2",
            "    +0.200 s  regionMiss 0.100 s",
        ]


class TestErrors:
    async def fail_without_a_region(self, cluster: FakeCluster, redaction: Redaction) -> TikvError:
        """Return the error of reading a key whose Region PD does not know."""
        cluster.pd.regions = []
        async with cluster.connect(RpcConfig(redact=redaction)) as rpc:
            with pytest.raises(DeadlineExceeded) as raised:
                await run(rpc, read(), timeout=2)
        return raised.value

    async def test_a_key_shows_in_hex(self, cluster: FakeCluster) -> None:
        error = await self.fail_without_a_region(cluster, "off")

        assert HEX in str(error)

    @pytest.mark.parametrize(("redaction", "shown"), [("on", "?"), ("marker", f"\u20390x{HEX}\u203a")])
    async def test_a_redacted_key_shows_nowhere_in_an_error(
        self, cluster: FakeCluster, redaction: Redaction, shown: str
    ) -> None:
        error = await self.fail_without_a_region(cluster, redaction)

        printed = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__)
        assert f"no Region for key {shown}" in str(error)
        assert HEX not in printed.replace(shown, "")
        assert repr(SECRET) not in printed
        assert SECRET not in error.args

    async def test_a_redacted_key_is_the_key_to_a_program(self, cluster: FakeCluster) -> None:
        error = await self.fail_without_a_region(cluster, "on")

        cause = error.__cause__
        assert isinstance(cause, RegionUnavailable)
        assert cause.key == SECRET
        for duplicate in (pickle.loads(pickle.dumps(cause)), copy.copy(cause)):
            assert duplicate.key == SECRET
            assert HEX not in str(duplicate)

    async def test_two_clients_of_one_process_differ(self, cluster: FakeCluster) -> None:
        hidden = await self.fail_without_a_region(cluster, "on")
        shown = await self.fail_without_a_region(cluster, "off")

        assert HEX not in str(hidden)
        assert HEX in str(shown)

    async def test_what_a_store_says_of_keys_does_not_show(self, cluster: FakeCluster) -> None:
        quoting = errorpb.Error(
            message=f"key {HEX} is not in region", key_not_in_region=errorpb.KeyNotInRegion(key=SECRET)
        )
        cluster.store(1).answer_next(Tikv.RawGet, region_error=quoting, times=1000)
        async with cluster.connect(RpcConfig(redact="on")) as rpc:
            with pytest.raises(DeadlineExceeded) as raised:
                await run(rpc, read(), timeout=1)

        assert "key_not_in_region (?)" in str(raised.value)
        assert HEX not in "".join(traceback.format_exception(raised.value))

    async def test_the_words_of_a_refusal_are_redacted(self, cluster: FakeCluster) -> None:
        cluster.store(1).answer_next(Tikv.RawGet, kvrpcpb.RawGetResponse(error=f"invalid key {HEX}"), times=2)
        async with cluster.connect(RpcConfig(redact="on")) as rpc, cluster.connect(RpcConfig()) as plain:
            hidden, shown = await run(rpc, read()), await run(plain, read())

        assert hidden.error == "?"
        assert shown.error == f"invalid key {HEX}"
