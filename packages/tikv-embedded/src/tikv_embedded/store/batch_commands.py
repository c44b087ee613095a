"""Answering one message of a BatchCommands stream, in one step of the loop.

The requests of a message are in flight together, so no order among them is promised. All writes go first. Raw ones
share one durable engine write, and so do those of transactions that have no key in common, round by round; each still
is atomic by itself, since a batch applies as a whole. Then all reads see one snapshot that has those writes. A request
that has to wait is handed back and never holds up the rest.
Source: TiKV server/service/kv.rs handle_batch_commands_request, batch.rs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

from tikv_proto import tikvpb
from tikv_proto.services import all_rpcs

from tikv_embedded.engine import Engine, WriteBatch
from tikv_embedded.store.health_feedback import HealthReporter
from tikv_embedded.store.latches import in_rounds
from tikv_embedded.store.raw_requests import RAW_RULES, RawRule, RawStore
from tikv_embedded.store.txn_requests import TXN_RULES, TxnRule, TxnStore, latches_of

MAX_GROUP = 128
"""How many responses go into one message at most."""
MIN_DELAY_MS = 10
"""An `Empty` that asks for less is answered at once."""

_RULES: dict[str, RawRule | TxnRule] = {
    rpc.batch_field: rule
    for rpc in all_rpcs()
    if rpc.batch_field and (rule := RAW_RULES.get(rpc.request) or TXN_RULES.get(rpc.request))
}


class RequestStores(NamedTuple):
    """What serves the requests of one store."""

    raw: RawStore
    txn: TxnStore


class _Command(NamedTuple):
    """One request of a message."""

    id: int
    field: str
    rule: RawRule | TxnRule
    request: Any


class BatchAnswers:
    """What became of one message.

    Attributes:
        groups: Responses ready to send, `MAX_GROUP` in each.
        delayed: (request id, Empty) to be answered after their delay.
        has_feedback: Whether the health of the store was asked for.
    """

    def __init__(self) -> None:
        self.groups: list[tikvpb.BatchCommandsResponse] = []
        self.delayed: list[tuple[int, tikvpb.BatchCommandsEmptyRequest]] = []
        self.has_feedback = False
        self._room = 0

    def add(self, request_id: int) -> tikvpb.BatchCommandsResponse.Response:
        """Return the empty response of a request, to be filled in."""
        if not self._room:
            self.groups.append(tikvpb.BatchCommandsResponse())
            self._room = MAX_GROUP
        self._room -= 1
        group = self.groups[-1]
        group.request_ids.append(request_id)
        return group.responses.add()


def answer_message(
    message: tikvpb.BatchCommandsRequest, engine: Engine, stores: RequestStores, health: HealthReporter
) -> BatchAnswers:
    """Carry out all requests of `message` and return their answers.

    A request without a command gets an empty response, as from TiKV. One whose command this store does not serve gets
    that command's response with an error in it; TiKV would let its caller run into a timeout.

    Args:
        message: As received.
        engine: Written to once for all raw writes, and once for each round of transactional ones.
        stores: Serve the requests.
        health: Answers GetHealthFeedback.

    Raises:
        ClusterIdMismatchError: a request is for another cluster, and the stream must end. Writes of the same message
            may be done.
    """
    answers = BatchAnswers()
    raw_writes: list[_Command] = []
    txn_writes: list[_Command] = []
    reads: list[_Command] = []
    for request_id, request in zip(message.request_ids, message.requests, strict=False):
        field = request.WhichOneof("cmd")
        if field is None:
            answers.add(request_id)
            continue
        rule = _RULES.get(field)
        if rule is not None:
            writes = raw_writes if isinstance(rule, RawRule) else txn_writes
            (reads if rule.is_read else writes).append(_Command(request_id, field, rule, getattr(request, field)))
        elif field == "Empty":
            _answer_empty(answers, request_id, request.Empty)
        elif field == "GetHealthFeedback":
            answers.has_feedback = True
            answers.add(request_id).GetHealthFeedback.health_feedback.CopyFrom(health.report())
        else:
            refuse(getattr(answers.add(request_id), field), field)
    # No raw write that can be batched reads, so they share a snapshot from before all of them.
    for commands in ([raw_writes] if raw_writes else []), in_rounds(txn_writes, _latches):
        for together in commands:
            _carry_out(answers, together, engine, stores)
    if reads:
        _carry_out(answers, reads, engine, stores)
    return answers


def refuse(response: Any, command: str) -> None:
    """Fill the response of a command that this store does not serve: its error, whichever form that has.

    BroadcastTxnStatus has none, and may be ignored.
    """
    text = f"{command} is not served by the embedded cluster"
    fields = response.DESCRIPTOR.fields_by_name
    if "error" in fields and fields["error"].message_type is None:
        response.error = text
    elif "error" in fields:
        response.error.abort = text
    elif "errors" in fields:
        response.errors.add().abort = text
    elif "other_error" in fields:
        response.other_error = text


def _answer_empty(answers: BatchAnswers, request_id: int, empty: tikvpb.BatchCommandsEmptyRequest) -> None:
    if empty.delay_time >= MIN_DELAY_MS:
        answers.delayed.append((request_id, empty))
    else:
        answers.add(request_id).Empty.test_id = empty.test_id


def _latches(command: _Command) -> Collection[bytes] | None:
    return latches_of(command.rule, command.request) if isinstance(command.rule, TxnRule) else None


def _carry_out(answers: BatchAnswers, commands: list[_Command], engine: Engine, stores: RequestStores) -> None:
    """Answer `commands` from one snapshot, and write what they want written."""
    together = WriteBatch()
    with engine.snapshot() as snapshot:
        raw, txn = stores.raw.session(snapshot), stores.txn.session(snapshot)
        for request_id, field, rule, request in commands:
            response, batch = raw.run(rule, request) if isinstance(rule, RawRule) else txn.run(rule, request)
            if batch is not None:
                together.extend(batch)
            getattr(answers.add(request_id), field).CopyFrom(response)
    if together:
        engine.write(together)
