"""What a test or an operator can do to PD beyond its RPCs: `EmbeddedCluster.pd`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from tikv_proto import pdpb

from tikv_embedded.bootstrap import user_bound
from tikv_embedded.health import HealthStatus
from tikv_embedded.pd.faults import Fault, Loss
from tikv_embedded.pd.state import PdState


class PdControls:
    """PD as the one who runs the cluster sees it. Changes show at once, on all members.

    The methods that make faults name an RPC by its method, such as `GetRegion`, or `Check` and `Watch` of the health
    service; an empty name stands for every RPC. A fault strikes so many calls, or with `times=None` all until it is
    cleared; `member` (an index in `pd_addresses`) confines it to one port. The servers that do PD's work apart share
    its faults, and are counted in the same way. Of several faults that match, the one made first strikes, until it is
    used up. On the streams `Tso`, `QueryRegion` and `AcquireTokenBuckets` a call is one request.

    Args:
        state: Of the running cluster.
    """

    def __init__(self, state: PdState) -> None:
        self._state = state

    @property
    def min_resolved_ts(self) -> int:
        """What the leading stores reported as resolved, the least of them; 0 until all of them did."""
        return self._state.marks.min_resolved

    def advance_clock(self, seconds: float) -> None:
        """Move PD's clock ahead for good: timestamps jump, GC barriers expire, token buckets fill.

        Raises:
            ValueError: `seconds` is negative.
        """
        self._state.clock.advance(seconds)

    def compact(self) -> int:
        """Forget all past changes of meta storage and global config, and return the revision that is left.

        Watches from before it end with DATA_COMPACTED.
        """
        pairs = self._state.pairs
        if pairs.compact_revision < pairs.revision:
            pairs.compact(pairs.revision)
        return pairs.compact_revision

    def delay(self, rpc: str, seconds: float, *, times: int | None = None, member: int | None = None) -> None:
        """Let calls wait before anything happens; on a stream, those behind them wait too."""
        self._state.faults.add(Fault(rpc, member, times, delay=seconds))

    def lose_requests(self, rpc: str, *, times: int | None = 1, member: int | None = None) -> None:
        """Let calls never arrive: nothing happens, and their callers wait until they give up."""
        self._state.faults.add(Fault(rpc, member, times, loss=Loss.REQUEST))

    def lose_answers(self, rpc: str, *, times: int | None = 1, member: int | None = None) -> None:
        """Do what calls ask for, and let their callers wait until they give up."""
        self._state.faults.add(Fault(rpc, member, times, loss=Loss.ANSWER))

    def refuse(
        self,
        rpc: str,
        code: str = "UNAVAILABLE",
        message: str = "injected",
        *,
        times: int | None = 1,
        member: int | None = None,
    ) -> None:
        """Let calls fail with a gRPC status, named as gRPC does; on a stream, that ends it.

        Raises:
            KeyError: gRPC has no such status.
        """
        self._state.faults.add(Fault(rpc, member, times, refusal=(grpc.StatusCode[code], message)))

    def answer_error(
        self, rpc: str, kind: str, message: str = "injected", *, times: int | None = 1, member: int | None = None
    ) -> None:
        """Let calls be answered with an error in the header and nothing else, `kind` named as in `pdpb.ErrorType`.

        Raises:
            ValueError: PD has no such error.
        """
        error = pdpb.Error(type=pdpb.ErrorType.Value(kind), message=message)
        self._state.faults.add(Fault(rpc, member, times, header_error=error))

    def edit_answers(
        self, rpc: str, change: Callable[[Any], None], *, times: int | None = 1, member: int | None = None
    ) -> None:
        """Serve calls, and change their answers in place before they are sent: another cluster's id, no leader."""
        self._state.faults.add(Fault(rpc, member, times, edit=change))

    def tso_falls_back(self, seconds: float, *, times: int | None = 1, member: int | None = None) -> None:
        """Hand out timestamps that lie so far back: what a client must never pass on. PD itself goes on unharmed."""

        def fall_back(response: Any) -> None:
            response.timestamp.physical -= int(seconds * 1000)

        self._state.faults.add(Fault("Tso", member, times, edit=fall_back))

    def clear_faults(self, rpc: str = "") -> None:
        """Forget the faults of one RPC, or all; calls that they hold already stay held."""
        self._state.faults.clear(rpc)

    def cut_buckets(self, *keys: bytes) -> None:
        """Cut Regions into buckets at raw user keys, and nowhere else from now on; their version grows.

        Every Region has at least one bucket then, which PD tells when asked for.
        """
        self._state.buckets.cut(user_bound(self._state.mode, key) for key in keys)

    def set_health(self, member: int, status: str) -> None:
        """Let a member's health service say `SERVING`, `NOT_SERVING`, `SERVICE_UNKNOWN` or `UNKNOWN`; calls go on.

        Args:
            member: Index in `pd_addresses`.
            status: Which.

        Raises:
            KeyError: the health service has no such status.
            IndexError: there is no such member.
        """
        self._state.health[member].status = HealthStatus[status]

    def freeze_regions(self) -> None:
        """Answer queries with the Regions as they are now, whatever happens to them, until `clear_regions`.

        Stores go on by the truth, and so do requests to split and scatter.
        """
        self._state.view.freeze()

    def hide_regions(self, *region_ids: int) -> None:
        """Answer queries as if PD knew nothing of these Regions, until `clear_regions`: there are holes."""
        self._state.view.hide(region_ids)

    def forget_leaders(self, *region_ids: int) -> None:
        """Answer queries as if PD knew of no leader of these Regions, until `clear_regions`."""
        self._state.view.forget_leaders(region_ids)

    def set_down_peers(self, region_id: int, *store_ids: int) -> None:
        """Let PD say that the Region's peers on these stores are down, and no others, until `clear_regions`."""
        self._state.view.set_down(region_id, store_ids)

    def clear_regions(self) -> None:
        """Answer queries of Regions with the truth again."""
        self._state.view.clear()

    def hold_scattering(self) -> None:
        """Let scatter operators run, and move nothing, until `finish_scattering`."""
        self._state.scattering.hold()

    def finish_scattering(self, status: str = "SUCCESS") -> None:
        """End the scatter operators that run, and hold up no more; leaders move on `SUCCESS` alone.

        Args:
            status: Named as in `pdpb.OperatorStatus`: `SUCCESS`, `TIMEOUT`, `CANCEL` or `REPLACE`.

        Raises:
            ValueError: there is no such status.
        """
        self._state.scattering.finish(pdpb.OperatorStatus.Value(status))
