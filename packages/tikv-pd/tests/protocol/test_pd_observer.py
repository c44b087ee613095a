from __future__ import annotations

import anyio
import pytest
from tikv_pd import InvalidValue, PdClient, PdConfig, Timestamp
from tikv_pd.testing import FakePd
from tikv_proto.services import PD


class Notes:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, str]] = []
        self.seconds: list[float] = []

    def observe(self, rpc: str, address: str, seconds: float, outcome: str) -> None:
        self.seen.append((rpc, address, outcome))
        self.seconds.append(seconds)

    def outcomes(self, rpc: str) -> list[str]:
        return [outcome for name, _, outcome in self.seen if name == rpc]


async def test_each_rpc_is_reported_with_its_member(pd: FakePd) -> None:
    notes = Notes()

    async with PdClient("pd2:2379", transport=pd.transport, observer=notes) as client:
        await client.get_stores()

    assert ("GetMembers", "pd2:2379", "OK") in notes.seen
    assert notes.seen[-1] == ("GetAllStores", "pd1:2379", "OK")


async def test_each_attempt_is_reported_with_what_came_of_it(pd: FakePd) -> None:
    notes = Notes()
    pd.refuse(PD.GetAllStores, "UNAVAILABLE", times=1)
    pd.answer_error(PD.GetAllStores, "NOT_BOOTSTRAPPED", times=1)

    async with PdClient("pd1:2379", transport=pd.transport, observer=notes) as client:
        await client.get_stores()
        with pytest.raises(InvalidValue):
            await client.set_external_timestamp(Timestamp(2**40, 0))

    assert notes.outcomes("GetAllStores") == ["UNAVAILABLE", "NOT_BOOTSTRAPPED", "OK"]
    assert notes.outcomes("SetExternalTimestamp") == ["INVALID_VALUE"]


async def test_the_time_an_rpc_took_is_reported(pd: FakePd) -> None:
    notes = Notes()
    pd.hang(PD.GetStore, times=1)

    async with PdClient("pd1:2379", config=PdConfig(timeout=2), transport=pd.transport, observer=notes) as client:
        await client.get_store(1)

    assert notes.outcomes("GetStore") == ["DEADLINE_EXCEEDED", "OK"]
    assert notes.seconds[[rpc for rpc, _, _ in notes.seen].index("GetStore")] == pytest.approx(2)


async def test_each_message_of_a_stream_is_reported(pd: FakePd) -> None:
    notes = Notes()

    async with PdClient("pd1:2379", transport=pd.transport, observer=notes) as client:
        for _ in range(3):
            await client.get_ts()
        pd.refuse(PD.Tso, "UNAVAILABLE", times=1)
        await client.get_ts()
        await client.get_region(b"k")

    assert notes.outcomes("Tso") == ["OK", "OK", "OK", "UNAVAILABLE", "OK"]
    assert notes.outcomes("QueryRegion") == ["OK"]


async def test_a_cancelled_rpc_is_not_reported(pd: FakePd) -> None:
    notes = Notes()
    pd.hang(PD.GetStore)

    async with PdClient("pd1:2379", transport=pd.transport, observer=notes) as client:
        with anyio.move_on_after(0.5):
            await client.get_store(1)

    assert notes.outcomes("GetStore") == []
