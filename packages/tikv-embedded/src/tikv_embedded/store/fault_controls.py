"""What a test or an operator can do to stores beyond their RPCs: `EmbeddedCluster.faults`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import grpc
from tikv_proto import errorpb
from tikv_proto.services import Tikv

from tikv_embedded.errors import TopologyError
from tikv_embedded.health import HealthStatus
from tikv_embedded.pd.clock import Clock
from tikv_embedded.store.calls import EMPTY, HEALTH_CALLS, OPENING, ReceivedCall, Recording
from tikv_embedded.store.faults import CallWatch, Effect, Selection, StoreFault
from tikv_embedded.store.health_feedback import HEALTHY
from tikv_embedded.store.region_errors import REGION_ERRORS, region_error
from tikv_embedded.store.service import UNARY, TikvService

_UNARY = {rpc.name: rpc for rpc in UNARY}
_REQUESTS = frozenset((*_UNARY, EMPTY))
_NAMES = _REQUESTS | HEALTH_CALLS | {OPENING}
_ABLE_TO_ERR = frozenset(
    name for name, rpc in _UNARY.items() if "region_error" in rpc.response.DESCRIPTOR.fields_by_name
)
"""Requests whose answers have room for a Region error."""


class StoreFaults:
    """The stores as the one who breaks them sees them. Everything shows at once.

    Faults begin with `on`, which chooses calls; a method of what it returns says what becomes of them. Of several
    faults that fit a call, the one made first strikes, alone, until it is used up or lifted: so faults with `times=1`
    made one after the other are a script.

    Args:
        watch: Of the stores.
        services: Store id → its service.
        clock: Theirs.
    """

    def __init__(self, watch: CallWatch, services: Mapping[int, TikvService], clock: Clock) -> None:
        self._watch = watch
        self._clock = clock
        self._services = services
        self._lags: dict[int, StoreFault] = {}

    def on(
        self,
        *rpcs: str,
        store: int | None = None,
        region: int | None = None,
        when: Callable[[ReceivedCall], bool] | None = None,
        after: int = 0,
        times: int | None = None,
        chance: float = 1.0,
    ) -> StoreCalls:
        """Choose the calls that a fault shall strike: those that fit everything that is given.

        Args:
            *rpcs: Method names of the Tikv service, such as `RawGet`, which stand for unary and batched requests
                alike; `Empty`; `BatchCommands` for the opening of streams; `Check` and `Watch` for health checks.
                Without names every request is meant, but neither openings nor health checks.
            store: The store that serves the call, whichever it was sent to.
            region: The Region that the request is for.
            when: Looks at the call, once all else fits.
            after: So many are let through first.
            times: So many are struck; None is until the fault is lifted.
            chance: How likely each is struck; see `seed`.

        Raises:
            ValueError: there is no such RPC, or a number is out of range.
        """
        unknown = set(rpcs) - _NAMES
        if unknown:
            raise ValueError(f"no such RPC of a store: {', '.join(sorted(unknown))}")
        if after < 0 or (times is not None and times < 1) or not 0 <= chance <= 1:
            raise ValueError(f"cannot strike with after={after}, times={times}, chance={chance}")
        selection = Selection(
            rpcs=frozenset(rpcs),
            store_id=store,
            region_id=region,
            when=when,
            after=after,
            times=times,
            chance=chance,
        )
        return StoreCalls(self._watch, selection)

    def hang(self, store: int) -> StoreFault:
        """Let a store accept everything and answer nothing, health checks and what it passes on included.

        Connections to it stay alive, and are made. Lifting the fault lets it answer all that has waited.
        """
        self._service(store)

        def is_of_store(call: ReceivedCall) -> bool:
            return store in (call.store_id, call.proxy)

        return self.on(*_NAMES, when=is_of_store).hold()

    def seed(self, seed: int) -> None:
        """Begin the draws of `chance` anew; a cluster starts with seed 0, so runs alike draw alike."""
        self._watch.random.seed(seed)

    def record(self) -> Recording:
        """Return a recording of all calls that stores receive from now on; it costs time and memory until stopped."""
        return self._watch.record()

    def advance_clock(self, seconds: float) -> None:
        """Move the clock of all stores ahead for good: pairs with a TTL expire. PD's clock is another one.

        Raises:
            ValueError: `seconds` is negative.
        """
        self._clock.advance(seconds)

    def open_streams(self, store: int) -> int:
        """Return how many BatchCommands streams that were sent to the store are open."""
        return len(self._service(store).streams)

    def cut_streams(self, store: int, code: str = "UNAVAILABLE", message: str = "injected") -> int:
        """End the BatchCommands streams that were sent to the store, and return how many; their answers are lost.

        Args:
            store: Which store.
            code: A gRPC status by name; `OK` ends them without an error.
            message: Of the status.

        Raises:
            KeyError: gRPC has no such status.
        """
        streams = list(self._service(store).streams)
        for opened in streams:
            opened.end(grpc.StatusCode[code], message)
        return len(streams)

    def set_health(self, store: int, status: str) -> None:
        """Let the store's health service say `SERVING`, `NOT_SERVING`, `SERVICE_UNKNOWN` or `UNKNOWN`; calls go on.

        Raises:
            KeyError: the health service has no such status.
        """
        self._service(store).health.status = HealthStatus[status]

    def set_slow_score(self, store: int, score: int, *, sequence: int | None = None) -> None:
        """Let the store report how slow it is; every stream of it hears of that with its next message.

        Args:
            store: Which store.
            score: 1, well, to 100.
            sequence: The `feedback_seq_no` of the next report; later ones count on from there.
        """
        self._service(store).feedback.set_slow_score(score, sequence)

    def set_load(self, store: int, percent: int | None) -> None:
        """Let BatchCommands streams say that the store is so busy (`transport_layer_load`); None is the truth."""
        self._service(store).feedback.load_percent = percent

    def set_read_wait(self, store: int, milliseconds: int, *, applied_index: int = 0) -> StoreFault:
        """Let reads be refused that would not wait so long: ServerIsBusy with the estimated wait, until lifted.

        That concerns reads with a `busy_threshold_ms` below it; others are served at once.

        Args:
            store: Which store.
            milliseconds: The estimated wait.
            applied_index: What the error says of it.
        """
        self._service(store)

        def is_impatient(call: ReceivedCall) -> bool:
            return 0 < call.context.busy_threshold_ms < milliseconds

        return self.on(store=store, when=is_impatient).region_error(
            "server_is_busy",
            reason="estimated wait time exceeds threshold",
            estimated_wait_ms=milliseconds,
            applied_index=applied_index,
        )

    def set_safe_ts_lag(self, store: int, seconds: float) -> None:
        """Let the store's safe timestamp stay behind: GetStoreSafeTS tells, and newer stale reads get DataIsNotReady.

        The safe timestamp never goes back, so a greater lag makes it stand still. Stale reads are judged by the
        `version` of the request; raw requests have none and are always served.
        """
        safe_ts = self._service(store).safe_ts
        safe_ts.lag = seconds
        if store in self._lags:
            self._lags.pop(store).lift()

        def is_too_new(call: ReceivedCall) -> bool:
            return call.context.stale_read and getattr(call.request, "version", 0) > safe_ts.advance()

        def refuse(call: ReceivedCall) -> Any:
            return _with_error(call, region_error("data_is_not_ready", call, {"safe_ts": safe_ts.advance()}))

        if seconds > 0:
            selection = Selection(rpcs=_ABLE_TO_ERR, store_id=store, when=is_too_new)
            self._lags[store] = self._watch.add(StoreFault(selection, Effect(answer=refuse)))

    def clear(self) -> None:
        """Lift all faults, and let the health, scores, loads and safe timestamps of all stores be as they should."""
        self._watch.lift_all()
        self._lags.clear()
        for service in self._services.values():
            service.health.status = HealthStatus.SERVING
            service.feedback.set_slow_score(HEALTHY)
            service.feedback.load_percent = None
            service.safe_ts.lag = 0.0

    def _service(self, store: int) -> TikvService:
        service = self._services.get(store)
        if service is None:
            raise TopologyError(f"there is no store {store}")
        return service


class StoreCalls:
    """Calls that were chosen by `StoreFaults.on`; each method makes a fault of them, and returns it.

    Args:
        watch: Where the fault goes.
        selection: Which calls.
    """

    def __init__(self, watch: CallWatch, selection: Selection) -> None:
        self._watch = watch
        self._selection = selection

    def delay(self, seconds: float) -> StoreFault:
        """Let them wait before they are served; on a stream, nothing waits behind them."""
        return self._add(Effect(wait=seconds))

    def delay_answer(self, seconds: float) -> StoreFault:
        """Serve them at once, and answer so much later."""
        return self._add(Effect(wait=seconds, waits_after=True))

    def hold(self) -> StoreFault:
        """Let them wait until the fault is lifted, and serve them then."""
        return self._add(Effect(wait=None))

    def hold_answer(self) -> StoreFault:
        """Serve them at once, and answer when the fault is lifted."""
        return self._add(Effect(wait=None, waits_after=True))

    def lose_request(self) -> StoreFault:
        """Let them never arrive: nothing happens, and their callers wait until they give up."""
        return self._add(Effect(loses_request=True))

    def lose_answer(self) -> StoreFault:
        """Serve them, and never answer."""
        return self._add(Effect(loses_answer=True))

    def duplicate(self) -> StoreFault:
        """Serve them twice; on a stream, answer twice too."""
        return self._add(Effect(copies=2))

    def refuse(self, code: str = "UNAVAILABLE", message: str = "injected") -> StoreFault:
        """Let them fail with a gRPC status, named as gRPC does; a batched one ends its whole stream with it.

        `on("BatchCommands").refuse("UNIMPLEMENTED")` is a store without BatchCommands.

        Raises:
            KeyError: gRPC has no such status.
        """
        return self._add(Effect(refusal=(grpc.StatusCode[code], message)))

    def region_error(self, name: str, *, message: str = "", **fields: Any) -> StoreFault:
        """Answer them with a Region error, and do nothing of what they ask for.

        Args:
            name: As errorpb.Error has it in small letters: `not_leader`, `server_is_busy`, `data_is_not_ready` and so
                on; or `message_only`, an error with no more than a message.
            message: For people.
            **fields: Of that error; those not given are filled as a store would, but `not_leader` names no leader and
                `epoch_not_match` no Regions unless told to. Values may be `Peer` and `Region`.

        Raises:
            ValueError: there is no such error, or it has no such field.
        """
        if name not in REGION_ERRORS:
            raise ValueError(f"there is no region error {name!r}; there are {', '.join(sorted(REGION_ERRORS))}")
        unable = self._selection.rpcs - _ABLE_TO_ERR
        if unable:
            raise ValueError(f"answers of {', '.join(sorted(unable))} hold no region error")
        region_error(name, _NO_CALL, fields)
        effect = Effect(answer=lambda call: _with_error(call, region_error(name, call, fields, message)))
        selection = attrs.evolve(self._selection, rpcs=self._selection.rpcs or _ABLE_TO_ERR)
        return self._watch.add(StoreFault(selection, effect))

    def answer(self, response: Any) -> StoreFault:
        """Answer them with this message, or with what this function makes of the call; nothing else happens.

        Requests that the store does not serve can be answered so too. Execution times are filled in where the message
        has none.

        Args:
            response: Of the class that the RPC answers with, or `ReceivedCall` → such a message.

        Raises:
            TypeError: the RPCs that were named answer with something else.
        """
        if callable(response):
            return self._add(Effect(answer=response))
        wrong = [
            name for name in self._selection.rpcs if name in _UNARY and type(response) is not _UNARY[name].response
        ]
        if wrong:
            raise TypeError(f"{', '.join(sorted(wrong))} is not answered with {type(response).__name__}")
        return self._add(Effect(answer=lambda _call: copy.copy(response)))

    def edit(self, change: Callable[[Any], None]) -> StoreFault:
        """Serve them, and change the answer in place before it is sent."""
        return self._add(Effect(edit=change))

    def misdirect_answer(self) -> StoreFault:
        """Serve them, and on a stream answer under an id that nobody asked with; a call by itself is not affected."""
        return self._add(Effect(misses_caller=True))

    def empty_answer(self) -> StoreFault:
        """Serve them, and on a stream answer with a response that holds no command."""
        return self._add(Effect(loses_command=True))

    def _add(self, effect: Effect) -> StoreFault:
        return self._watch.add(StoreFault(self._selection, effect))


def _with_error(call: ReceivedCall, error: errorpb.Error) -> Any:
    return _UNARY[call.rpc].response(region_error=error)


_NO_CALL = ReceivedCall(store_id=0, rpc=Tikv.RawGet.name, request=Tikv.RawGet.request(), metadata={})
"""To try out the fields of an error."""
