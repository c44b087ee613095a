"""Answering one message of a BatchCommands stream, in one step of the loop.

The requests of a message are in flight together, so no order among them is promised. All writes go first, with one
durable engine write for the whole message; each still is atomic by itself, since a batch applies as a whole. Then all
reads see one snapshot that has those writes. A request that has to wait is handed back and never holds up the rest.
Source: TiKV server/service/kv.rs handle_batch_commands_request, batch.rs.
"""

from __future__ import annotations

from typing import Any

from tikv_proto import tikvpb
from tikv_proto.services import all_rpcs

from tikv_embedded.engine import Engine, WriteBatch
from tikv_embedded.store.health_feedback import HealthReporter
from tikv_embedded.store.raw_requests import RAW_RULES, RawRule, RawStore

MAX_GROUP = 128
"""How many responses go into one message at most."""
MIN_DELAY_MS = 10
"""An `Empty` that asks for less is answered at once."""

_RAW_FIELDS: dict[str, RawRule] = {
    rpc.batch_field: RAW_RULES[rpc.request] for rpc in all_rpcs() if rpc.batch_field and rpc.request in RAW_RULES
}


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
    message: tikvpb.BatchCommandsRequest, engine: Engine, raw: RawStore, health: HealthReporter
) -> BatchAnswers:
    """Carry out all requests of `message` and return their answers.

    A request without a command gets an empty response, as from TiKV. One whose command this store does not serve gets
    that command's response with an error in it; TiKV would let its caller run into a timeout.

    Args:
        message: As received.
        engine: Written to once if anything is to be written.
        raw: Serves the raw requests.
        health: Answers GetHealthFeedback.

    Raises:
        ClusterIdMismatchError: a request is for another cluster, and the stream must end. Writes of the same message
            may be done.
    """
    answers = BatchAnswers()
    writes: list[tuple[int, str, RawRule, Any]] = []
    reads: list[tuple[int, str, RawRule, Any]] = []
    for request_id, request in zip(message.request_ids, message.requests, strict=False):
        field = request.WhichOneof("cmd")
        if field is None:
            answers.add(request_id)
            continue
        rule = _RAW_FIELDS.get(field)
        if rule is not None:
            (reads if rule.is_read else writes).append((request_id, field, rule, getattr(request, field)))
        elif field == "Empty":
            _answer_empty(answers, request_id, request.Empty)
        elif field == "GetHealthFeedback":
            answers.has_feedback = True
            answers.add(request_id).GetHealthFeedback.health_feedback.CopyFrom(health.report())
        else:
            refuse(getattr(answers.add(request_id), field), field)
    if writes:
        _write(answers, writes, engine, raw)
    if reads:
        _read(answers, reads, engine, raw)
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


def _write(answers: BatchAnswers, writes: list[tuple[int, str, RawRule, Any]], engine: Engine, raw: RawStore) -> None:
    """None of the writes that can be batched reads, so they share a snapshot from before all of them."""
    together = WriteBatch()
    with engine.snapshot() as snapshot:
        session = raw.session(snapshot)
        for request_id, field, rule, request in writes:
            response, batch = session.run(rule, request)
            if batch is not None:
                together.extend(batch)
            getattr(answers.add(request_id), field).CopyFrom(response)
    if together:
        engine.write(together)


def _read(answers: BatchAnswers, reads: list[tuple[int, str, RawRule, Any]], engine: Engine, raw: RawStore) -> None:
    with engine.snapshot() as snapshot:
        session = raw.session(snapshot)
        for request_id, field, rule, request in reads:
            response, _ = session.run(rule, request)
            getattr(answers.add(request_id), field).CopyFrom(response)
