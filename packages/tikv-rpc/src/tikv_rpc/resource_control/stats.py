"""How resource groups do on this client, as values.

What is counted of a group lives as long as the group is in use here. One that was idle for minutes and is dropped takes
its counts along, and whoever still holds on to it counts into the void: nothing comes back of it.

Source: tikv/pd client/resource_group/controller/metrics/metrics.go for what is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import attrs

from tikv_rpc.resource_control.details import RuDetails

_NONE: Final[Mapping[str, int]] = MappingProxyType({})


@attrs.frozen
class RuSeries:
    """What request units are counted by."""

    source: str
    """`RequestOptions.request_source`; empty without one."""
    kind: str
    """`read` or `write`."""
    direction: str
    """`charge`, or `refund` for what was charged ahead and not used."""


_NO_RU: Final[Mapping[RuSeries, float]] = MappingProxyType({})


@attrs.frozen(kw_only=True)
class GroupCounts:
    """What became of the requests of a resource group on this client since it is in use here."""

    requests: int = 0
    """Requests that got their tokens, or needed none."""
    waiting: int = 0
    """Those that are after tokens just now."""
    retries: int = 0
    """How often one looked for tokens again, having found too few."""
    wait_seconds: float = 0.0
    """Seconds waited for tokens by those that got them."""
    throttled_seconds: float = 0.0
    """Seconds waited for tokens by those that were throttled in the end."""
    failures: Mapping[str, int] = _NONE
    """Requests that did not get theirs, by the class of the error, or `Cancelled`."""
    ru: Mapping[RuSeries, float] = _NO_RU
    """Request units."""
    token_requests: int = 0
    """Requests for tokens to PD the group was part of."""
    low_notices: int = 0
    """How often PD was asked before it was time, as tokens ran low."""
    reported_ru: float = 0.0
    """Request units whose use PD was told of."""
    predicted: int = 0
    """Coprocessor requests that were charged ahead for the bytes they were expected to read."""
    unpredicted: int = 0
    """Coprocessor requests of which nobody knew what to expect."""
    predicted_bytes: int = 0
    """Bytes charged ahead."""
    actual_bytes: int = 0
    """Bytes that were read instead, of those that were answered."""


@attrs.frozen
class GroupStats:
    """How a resource group does on this client."""

    details: RuDetails
    """What its requests cost so far."""
    tokens: float = 0.0
    """Tokens (request units) it holds; negative for a debt."""
    rate: float = 0.0
    """Tokens a second it gets."""
    burst_limit: int = 0
    """Tokens it may save up; 0 for any number, below 0 when nothing is limited."""
    average: float = 0.0
    """Request units a second it used lately."""
    is_throttled: bool = False
    """Whether PD granted less than was asked for."""
    is_degraded: bool = False
    """Whether it goes by its own rate, as PD does not answer."""
    is_deleted: bool = False
    """Whether PD knows it no more; it goes by the settings of `default`."""
    counts: GroupCounts | None = None
    """What became of its requests; None for one that is not in use any more."""


class GroupTally:
    """Counts for one group, under the names that `GroupCounts` has for them.

    A plain slotted class: each request counts several times.
    """

    __slots__ = (
        "actual_bytes",
        "failures",
        "low_notices",
        "predicted",
        "predicted_bytes",
        "reported_ru",
        "requests",
        "retries",
        "ru",
        "throttled_seconds",
        "token_requests",
        "unpredicted",
        "wait_seconds",
        "waiting",
    )

    def __init__(self) -> None:
        self.requests = self.waiting = self.retries = self.token_requests = self.low_notices = 0
        self.predicted = self.unpredicted = self.predicted_bytes = self.actual_bytes = 0
        self.wait_seconds = self.throttled_seconds = self.reported_ru = 0.0
        self.failures: Counter[str] = Counter()
        # By what makes a `RuSeries`: a value of its own for each request would cost more than the rest.
        self.ru: dict[tuple[str, str, str], float] = {}

    @property
    def is_used(self) -> bool:
        """Whether there was a request that had to get tokens."""
        return bool(self.requests or self.waiting or self.failures)

    def charge(self, source: str, read_ru: float, write_ru: float) -> None:
        """Count request units; negative ones are given back."""
        ru = self.ru
        for kind, amount in (("read", read_ru), ("write", write_ru)):
            if amount:
                series = (source, kind, "charge" if amount > 0 else "refund")
                ru[series] = ru.get(series, 0.0) + abs(amount)

    def expect(self, predicted_bytes: int) -> None:
        """Count a coprocessor request by what it is expected to read, 0 for no idea."""
        self.predicted += predicted_bytes > 0
        self.unpredicted += predicted_bytes == 0
        self.predicted_bytes += predicted_bytes

    def counts(self) -> GroupCounts:
        """Return them as they are now."""
        numbers = {name: getattr(self, name) for name in self.__slots__ if name not in {"failures", "ru"}}
        failures = dict(self.failures)
        ru = {RuSeries(*series): amount for series, amount in self.ru.copy().items()}
        return GroupCounts(**numbers, failures=MappingProxyType(failures), ru=MappingProxyType(ru))
