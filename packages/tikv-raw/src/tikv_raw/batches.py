"""Reads and writes of many keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeAlias, overload

from tikv_proto import kvrpcpb
from tikv_region import redact
from tikv_rpc import KeyWork, Priority, ReplicaRead
from tikv_rpc.frontend.arguments import BytesLike, as_key

from tikv_raw._arguments import check_on_error, check_progress
from tikv_raw._batches import BatchOutcome, GetBatch, Source, WriteBatch
from tikv_raw._session import Opened
from tikv_raw._windows import Span, Window, key_windows, pair_windows
from tikv_raw.single_keys import KeyOperations

OnError: TypeAlias = Literal["raise", "return"]
"""What a batch does with failures: `raise` the first one, or `return` all of them by key."""
Pair: TypeAlias = tuple[BytesLike, BytesLike] | tuple[BytesLike, BytesLike, int | None]
"""A key, its value, and perhaps a TTL of its own."""


class BatchOperations(KeyOperations):
    """What a client does with many keys. See `RawClient` for what all calls have in common."""

    @overload
    async def batch_get(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: Literal["raise"] = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> dict[bytes, bytes]: ...

    @overload
    async def batch_get(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: Literal["return"],
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> BatchOutcome: ...

    async def batch_get(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: OnError = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> dict[bytes, bytes] | BatchOutcome:
        """Return the values of those `keys` that exist.

        One request per Region and `RawConfig.batch_keys` or `batch_bytes`, `RpcConfig.concurrency` at a time. Of any
        number of keys, only some are under way at a time; beside the result itself, memory is bounded.

        Args:
            keys: Any order, duplicates allowed, also a generator; none asks nobody.
            on_error: "raise" the first failure, or "return" the failures by key beside the values.
            progress: Called again and again with the number of keys done. Must not block the loop; what it raises ends
                the batch, and is raised.
            cf: Column family.
            timeout: Seconds, for all of them together.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Returns:
            key → value for the keys found, in no given order. Not a snapshot: two keys may be read at different times.
            With `on_error="return"` a `BatchOutcome` that holds it.

        Source: kvrpcpb.RawBatchGetRequest.
        """
        opened = self._session.opened or self._session.not_open()
        is_kept, span, requests = check_on_error(on_error), self._span(opened), opened.requests
        check_progress(progress)
        cf_on_wire = self._cf_or(cf)

        def lower(window: Window) -> KeyWork[kvrpcpb.RawBatchGetResponse]:
            expected = int(opened.sizes.guess)
            return requests.batch_get(window.keys, cf_on_wire, span.request_keys, span.request_bytes, expected)

        source = await Source.of(keys, key_windows(keys, span, as_key, lambda: int(opened.sizes.guess)))
        batch = GetBatch(source, lower, requests.codec.decode_key, opened.sizes, is_kept=is_kept, progress=progress)
        plan = opened.batch_each if is_kept else opened.batch
        await plan.execute(batch, self._begin(opened, "batch_get", timeout, priority, replica_read))
        return self._shown(batch.outcome) if is_kept else batch.found

    @overload
    async def batch_put(
        self,
        pairs: Mapping[Any, Any] | Iterable[Pair],
        *,
        ttl: int | None = None,
        on_error: Literal["raise"] = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None: ...

    @overload
    async def batch_put(
        self,
        pairs: Mapping[Any, Any] | Iterable[Pair],
        *,
        ttl: int | None = None,
        on_error: Literal["return"],
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> BatchOutcome: ...

    async def batch_put(
        self,
        pairs: Mapping[Any, Any] | Iterable[Pair],
        *,
        ttl: int | None = None,
        on_error: OnError = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> BatchOutcome | None:
        """Store many pairs, in place of any values and TTLs before.

        Not atomic: when it fails, or while it runs, some pairs may be stored and others not; storing them all again is
        safe. One request per Region and `RawConfig.batch_keys` or `batch_bytes`, `RpcConfig.concurrency` at a time. Of
        any number of pairs, only some are under way at a time, so that a generator of millions takes bounded memory.

        Args:
            pairs: A mapping, or (key, value) or (key, value, ttl) tuples in any order, of which the last for a key
                counts, also from a generator; none does nothing. A TTL of None in a tuple stands for never.
            ttl: Whole seconds after which keys without a TTL of their own vanish, at least 1; None for never. Needs
                API v1ttl or v2.
            on_error: "raise" the first failure, or "return" the failures by key.
            progress: Called again and again with the number of pairs done. Must not block the loop; what it raises ends
                the batch, and is raised.
            cf: Column family.
            timeout: Seconds, for all of them together.
            priority: How the stores order the requests.

        Returns:
            Nothing; with `on_error="return"` a `BatchOutcome`, whose failures are empty when all pairs were stored.

        Raises:
            TypeError, KeyTooLarge, ValueTooLarge: a pair cannot be stored. Nothing was sent, unless `pairs` is an
                iterator: those before it may have been stored.
            DeadlineExceeded: time ran out before anything was stored.
            UndeterminedError: some pairs may have been stored.
            RawError, EntryTooLarge: a pair was refused; others may have been stored.

        Source: kvrpcpb.RawBatchPutRequest.
        """
        opened = self._session.opened or self._session.not_open()
        is_kept, span, requests = check_on_error(on_error), self._span(opened), self._writes(opened)
        check_progress(progress)
        cf_on_wire = self._cf_or(cf)

        def lower(window: Window) -> KeyWork[kvrpcpb.RawBatchPutResponse]:
            return requests.batch_put(
                window.keys, window.values, window.ttls, cf_on_wire, span.request_keys, span.request_bytes
            )

        source = await Source.of(pairs, pair_windows(pairs, opened.limits.ttl(ttl), span, opened.limits))
        batch = WriteBatch("batch_put", source, lower, is_kept=is_kept, progress=progress)
        plan = opened.batch_each if is_kept else opened.batch
        await plan.execute(batch, self._begin(opened, "batch_put", timeout, priority))
        return self._shown(batch.outcome) if is_kept else None

    @overload
    async def batch_delete(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: Literal["raise"] = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None: ...

    @overload
    async def batch_delete(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: Literal["return"],
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> BatchOutcome: ...

    async def batch_delete(
        self,
        keys: Iterable[BytesLike],
        *,
        on_error: OnError = "raise",
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> BatchOutcome | None:
        """Remove many keys; missing ones are fine.

        Not atomic: when it fails, or while it runs, some keys may be removed and others not; removing them all again is
        safe. Of any number of keys, only some are under way at a time.

        Args:
            keys: Any order, duplicates allowed, also a generator; none does nothing.
            on_error: "raise" the first failure, or "return" the failures by key.
            progress: Called again and again with the number of keys done. Must not block the loop; what it raises ends
                the batch, and is raised.
            cf: Column family.
            timeout: Seconds, for all of them together.
            priority: How the stores order the requests.

        Returns:
            Nothing; with `on_error="return"` a `BatchOutcome`, whose failures are empty when all keys were removed.

        Raises:
            TypeError, KeyTooLarge: a key cannot be removed. Nothing was sent, unless `keys` is an iterator: those
                before it may have been removed.
            DeadlineExceeded: time ran out before anything was removed.
            UndeterminedError: some keys may have been removed.
            RawError: a key was refused; others may have been removed.

        Source: kvrpcpb.RawBatchDeleteRequest.
        """
        opened = self._session.opened or self._session.not_open()
        is_kept, span, requests = check_on_error(on_error), self._span(opened), self._writes(opened)
        check_progress(progress)
        cf_on_wire = self._cf_or(cf)

        def lower(window: Window) -> KeyWork[kvrpcpb.RawBatchDeleteResponse]:
            return requests.batch_delete(window.keys, cf_on_wire, span.request_keys, span.request_bytes)

        source = await Source.of(keys, key_windows(keys, span, opened.limits.key, int))
        batch = WriteBatch("batch_delete", source, lower, is_kept=is_kept, progress=progress)
        plan = opened.batch_each if is_kept else opened.batch
        await plan.execute(batch, self._begin(opened, "batch_delete", timeout, priority))
        return self._shown(batch.outcome) if is_kept else None

    def _span(self, opened: Opened) -> Span:
        config = self._session.config
        return Span(config.batch_keys, config.batch_bytes, opened.rpc.config.concurrency)

    def _shown(self, outcome: BatchOutcome) -> BatchOutcome:
        """Return an outcome whose errors may be shown."""
        redaction = self._session.config.rpc.redact
        if redaction != "off":
            for error in set(outcome.failures.values()):
                redact(error, redaction)
        return outcome
