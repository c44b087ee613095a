"""Timestamps: what the messages of the stream say that everybody shares who wants one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from tikv_proto import pdpb, services, tsopb
from tikv_proto.services import Rpc

from tikv_pd._routing.tso_source import TsoSource
from tikv_pd._streams.shared_stream import SharedStream
from tikv_pd.config import PdConfig
from tikv_pd.errors import TimestampFallback
from tikv_pd.lowlevel import Transport
from tikv_pd.timestamp import LOGICAL_BITS, Timestamp

IN_FLIGHT: Final = 4
"""Messages sent and not answered at most; while there are so many, callers gather for the next one."""

TsoAnswer: TypeAlias = pdpb.TsoResponse | tsopb.TsoResponse
"""What grants timestamps: PD's answer, or that of a TSO server."""


def first_of(answer: TsoAnswer, count: int, floor: int) -> Timestamp:
    """Return the first of the `count` timestamps that an answer grants. PD names the last one.

    Raises:
        ValueError: the answer does not fit the request.
        TimestampFallback: they are not above `floor`.
    """
    last = answer.timestamp
    if answer.count != count:
        raise ValueError(f"asked for {count} timestamps, was granted {answer.count}")
    if not count <= last.logical + 1 <= 1 << LOGICAL_BITS:
        raise ValueError(f"the last of {count} timestamps cannot have logical part {last.logical}")
    first = Timestamp(last.physical, last.logical - count + 1)
    if first.ts <= floor:
        raise TimestampFallback(floor, first.ts)
    return first


class Grants:
    """The exchange of timestamps; it knows the latest one granted, and when.

    Args:
        source: Who grants them.
        now: The clock.
    """

    name = services.PD.Tso.name
    """Tso."""

    def __init__(self, source: TsoSource, now: Callable[[], float]) -> None:
        self._source = source
        self._now = now
        self.latest = Timestamp(0, 0)
        """The largest timestamp granted; zero before the first."""
        self.latest_at = 0.0
        """When it came, on the clock."""

    def begin(self, address: str) -> tuple[Rpc[Any, Any], Any]:
        """Return the RPC of who is at an address, and the header of its requests."""
        return self._source.begin(address)

    def ask(
        self, questions: Sequence[None], header: pdpb.RequestHeader | tsopb.RequestHeader
    ) -> tuple[pdpb.TsoRequest | tsopb.TsoRequest, Callable[[TsoAnswer], Sequence[Timestamp]]]:
        """Return a request for that many timestamps and what derives them from the answer."""
        count = len(questions)
        # The largest one known when it is sent: messages that overlap are not ordered among each other.
        floor = self.latest.ts

        def answers(answer: TsoAnswer) -> Sequence[Timestamp]:
            first = first_of(answer, count, floor)
            physical = first.physical
            granted = [Timestamp(physical, logical) for logical in range(first.logical, first.logical + count)]
            if granted[-1] > self.latest:
                self.latest, self.latest_at = granted[-1], self._now()
            return granted

        if isinstance(header, tsopb.RequestHeader):
            return tsopb.TsoRequest(header=header, count=count), answers
        return pdpb.TsoRequest(header=header, count=count), answers


class Tso(SharedStream[None, Timestamp]):
    """The shared stream of timestamps; `run` serves those who `ask`."""

    def __init__(self, source: TsoSource, transport: Transport, config: PdConfig) -> None:
        self.grants = Grants(source, transport.now)
        """What was granted."""
        super().__init__(self.grants, source, transport, config, max_batch=config.max_tso_batch, in_flight=IN_FLIGHT)
