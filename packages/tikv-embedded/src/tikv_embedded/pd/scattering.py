"""Scattering of Regions, and what PD says about it afterwards.

Leaders move at once, peers stay where they are. Scattering can be held up, so that it is seen to run.
"""

from __future__ import annotations

from collections.abc import Iterable

from tikv_proto import pdpb

from tikv_embedded.topology import Topology

RUNNING, SUCCESS = pdpb.OperatorStatus.RUNNING, pdpb.OperatorStatus.SUCCESS


class Scattering:
    """The scatter operators of one cluster, since its start."""

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._operators: dict[int, pdpb.OperatorStatus.ValueType] = {}
        self._held = False

    def scatter(self, region_ids: Iterable[int]) -> None:
        """Spread the leaders of these Regions, now or when `finish` is called; unknown ids are passed over."""
        known = [region_id for region_id in region_ids if region_id in self._topology.regions]
        self._operators.update(dict.fromkeys(known, RUNNING if self._held else SUCCESS))
        if not self._held:
            self._topology.balance_leaders(known)

    def status(self, region_id: int) -> pdpb.OperatorStatus.ValueType | None:
        """Return how far the last operator of a Region is; None when it was never scattered."""
        return self._operators.get(region_id)

    def hold(self) -> None:
        """Let operators run, and do nothing, until they are finished."""
        self._held = True

    def finish(self, status: pdpb.OperatorStatus.ValueType) -> None:
        """End what runs and hold nothing up any more; leaders move on SUCCESS alone."""
        running = [region_id for region_id, each in self._operators.items() if each == RUNNING]
        self._held = False
        self._operators.update(dict.fromkeys(running, status))
        if status == SUCCESS:
            self._topology.balance_leaders(running)
