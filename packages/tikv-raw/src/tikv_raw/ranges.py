"""Scans and other work over ranges of keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TypeAlias

from tikv_pd import ConfigError
from tikv_pd.lowlevel import as_bytes
from tikv_proto import kvrpcpb
from tikv_proto.services import Tikv
from tikv_region import KeyRange
from tikv_rpc import Call, Effect, Priority, ReplicaRead, Request
from tikv_rpc.frontend.arguments import BytesLike, as_range, check_flag, check_limit, check_timeout
from tikv_rpc.frontend.callers import while_reading
from tikv_rpc.frontend.paging import Page

from tikv_raw._arguments import as_ranges, check_progress
from tikv_raw._callbacks import Unmade
from tikv_raw._many_ranges import CoprocessorAnswer, RegionsWork, ScanOrder
from tikv_raw._requests import Checksum, accept
from tikv_raw._session import Opened
from tikv_raw.batches import BatchOperations
from tikv_raw.scan import Scan

Range: TypeAlias = KeyRange | tuple[BytesLike, BytesLike]
"""A range of keys: (start, end), half-open, an empty end unbounded."""
CoprocessorData: TypeAlias = BytesLike | Callable[[Sequence[tuple[bytes, bytes]]], BytesLike]
"""What a plugin is to work with, or what makes it of the (start, end) of a request's ranges."""


class RangeOperations(BatchOperations):
    """What a client does with ranges of keys. See `RawClient` for what all calls have in common."""

    def scan(
        self,
        start: BytesLike = b"",
        end: BytesLike = b"",
        *,
        prefix: BytesLike | None = None,
        limit: int | None = None,
        reverse: bool = False,
        key_only: bool = False,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> Scan:
        """Return an iterator over the (key, value) pairs from `start` up to but excluding `end`.

        Lazy: pages of `RawConfig.scan_page` pairs or about `scan_bytes` are fetched as they are consumed, one ahead.

        Args:
            start: First key, inclusive, also when `reverse`.
            end: End of the range, exclusive, also when `reverse`; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it, all keys there are when it is empty.
            limit: Pairs at most, any number; None for all, 0 for none.
            reverse: Descending instead of ascending order of keys.
            key_only: Leave the values out; they come as b"".
            cf: Column family.
            timeout: Seconds that fetching one page may take.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Raises:
            ConfigError: `prefix` together with `start` or `end`, or a negative limit.
            ClosedError: the client is not open. The errors of reading come while iterating; see `Scan`.

        Source: kvrpcpb.RawScanRequest.
        """
        opened = self._session.opened or self._session.not_open()
        key_range = as_range(start, end, prefix)
        limit = check_limit(limit)
        check_flag(reverse, "reverse")
        check_flag(key_only, "key_only")
        cf_on_wire = self._cf_or(cf)
        if timeout is not None:
            timeout = check_timeout(timeout)

        async def fetch(rest: KeyRange, page_limit: int) -> Page:
            call = self._begin(opened, "scan", timeout, priority, replica_read)
            return await self._page(opened, rest, page_limit, cf_on_wire, call, reverse=reverse, key_only=key_only)

        config = self._session.config
        page_pairs = partial(opened.sizes.fit, config.scan_page, config.scan_bytes, key_only=key_only)
        return Scan(fetch, opened.rpc, key_range, limit, page_pairs, "RawClient")

    async def batch_scan(
        self,
        ranges: Iterable[Range],
        *,
        each_limit: int | None = None,
        reverse: bool = False,
        key_only: bool = False,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> list[list[tuple[bytes, bytes]]]:
        """Return the pairs of many ranges.

        Ranges that lie in one Region share requests, `RpcConfig.concurrency` of which are under way at a time. The
        result is in memory as a whole; use `scan` for a range of unknown size.

        Args:
            ranges: (start, end) tuples or `KeyRange`s, in any order, also overlapping; `prefix_range` makes one.
            each_limit: Pairs of each range at most, exactly those a scan with this limit would give; None for all.
            reverse: Take each range from its end, in descending order of keys.
            key_only: Leave the values out; they come as b"".
            cf: Column family.
            timeout: Seconds, for all of them together.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Returns:
            A list of (key, value) pairs for each range, in the order of `ranges`. Not a snapshot.

        Source: kvrpcpb.RawBatchScanRequest.
        """
        opened = self._session.opened or self._session.not_open()
        wanted = await while_reading(ranges, partial(as_ranges, ranges))
        order = ScanOrder(
            wanted,
            check_limit(each_limit),
            check_flag(reverse, "reverse"),
            check_flag(key_only, "key_only"),
            self._cf_or(cf),
        )
        return await opened.scan_ranges.execute(
            order, self._begin(opened, "batch_scan", timeout, priority, replica_read)
        )

    async def delete_range(
        self,
        start: BytesLike,
        end: BytesLike = b"",
        *,
        everything: bool = False,
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None:
        """Remove every key from `start` up to but excluding `end`.

        Not atomic: it goes Region by Region, and when it fails, or while it runs, some keys may be removed and others
        not. A range with `start` at or above `end` is empty, and nothing happens.

        Args:
            start: First key to remove.
            end: First key to keep. Empty means all that follow, which needs `everything=True`.
            everything: Says that an unbounded end is meant.
            progress: Called with the number of Regions done after each of them. Must not block the loop; what it raises
                ends the call, and is raised.
            cf: Column family.
            timeout: Seconds.
            priority: How the stores order the requests.

        Raises:
            ConfigError: `end` is empty and `everything` is not set.
            KeyTooLarge: a bound is longer than a key may be. Nothing was sent.
            DeadlineExceeded: time ran out before anything was removed.
            UndeterminedError: some keys may have been removed.
            RawError: a store refused; other keys may have been removed.

        Source: kvrpcpb.RawDeleteRangeRequest.
        """
        key_range = KeyRange(as_bytes(start, "start"), as_bytes(end, "end"))
        if not check_flag(everything, "everything") and not key_range.end:
            raise ConfigError("delete_range without an end removes every key from start on; pass everything=True")
        await self._delete_range("delete_range", key_range, progress, cf, timeout, priority)

    async def delete_prefix(
        self,
        prefix: BytesLike,
        *,
        everything: bool = False,
        progress: Callable[[int], object] | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None:
        """Remove every key that begins with `prefix`.

        Not atomic, as `delete_range`.

        Args:
            prefix: Empty means all keys there are, which needs `everything=True`.
            everything: Says that an empty prefix is meant.
            progress: Called with the number of Regions done after each of them. Must not block the loop; what it raises
                ends the call, and is raised.
            cf: Column family.
            timeout: Seconds.
            priority: How the stores order the requests.

        Raises:
            ConfigError: `prefix` is empty and `everything` is not set.
            KeyTooLarge, DeadlineExceeded, UndeterminedError, RawError: as `delete_range`.

        Source: kvrpcpb.RawDeleteRangeRequest.
        """
        prefix = as_bytes(prefix, "prefix")
        if not check_flag(everything, "everything") and not prefix:
            raise ConfigError("delete_prefix with an empty prefix removes every key; pass everything=True")
        await self._delete_range("delete_prefix", as_range(b"", b"", prefix), progress, cf, timeout, priority)

    async def count(
        self,
        start: BytesLike = b"",
        end: BytesLike = b"",
        *,
        prefix: BytesLike | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> int:
        """Return the number of keys of a range.

        Stores count those of the default column family themselves, many Regions at a time; of another one all keys are
        fetched, page after page. Not a snapshot.

        Args:
            start: First key.
            end: End of the range, exclusive; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it.
            cf: Column family.
            timeout: Seconds.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Source: kvrpcpb.RawChecksumRequest; RawScanRequest with key_only.
        """
        opened = self._session.opened or self._session.not_open()
        rest: KeyRange | None = as_range(start, end, prefix)
        assert rest is not None
        cf_on_wire = self._cf_or(cf)
        call = self._begin(opened, "count", timeout, priority, replica_read)
        if not cf_on_wire:
            return (await opened.checksum.execute(opened.requests.checksum(rest), call)).total_kvs
        count, size = 0, self._session.config.scan_page
        while rest is not None and not rest.is_empty:
            page = await self._page(opened, rest, size, cf_on_wire, call, reverse=False, key_only=True)
            count += len(page.pairs())
            rest = page.rest
        return count

    async def checksum(
        self,
        start: BytesLike = b"",
        end: BytesLike = b"",
        *,
        prefix: BytesLike | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> Checksum:
        """Return a checksum over the pairs of a range in the default column family, in all Regions.

        Not a snapshot; equal data gives equal checksums however it is split into Regions.

        Args:
            start: First key.
            end: End of the range, exclusive; empty for unbounded.
            prefix: Instead of `start` and `end`: all keys that begin with it.
            timeout: Seconds.
            priority: How the stores order the requests.
            replica_read: Which replica serves them.

        Returns:
            The checksum; all zero for an empty range.

        Source: kvrpcpb.RawChecksumRequest.
        """
        opened = self._session.opened or self._session.not_open()
        work = opened.requests.checksum(as_range(start, end, prefix))
        return await opened.checksum.execute(work, self._begin(opened, "checksum", timeout, priority, replica_read))

    async def coprocessor(
        self,
        name: str,
        version: str,
        ranges: Iterable[Range],
        data: CoprocessorData = b"",
        *,
        read_only: bool = False,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> list[CoprocessorAnswer]:
        """Have a coprocessor plugin of the stores work on ranges, one request for each Region.

        Args:
            name: Which plugin.
            version: Which versions of it, as a semantic version requirement such as `^1.0`.
            ranges: (start, end) tuples or `KeyRange`s; no Region is asked about parts that it does not hold.
            data: What the plugin is to work with, or a function that makes it of the ranges of each request.
            read_only: Whether the plugin changes nothing, so that a request whose answer was lost can be sent again.
            timeout: Seconds, for all requests together.
            priority: How the stores order the requests.

        Returns:
            An answer for each request, in ascending order of its first range.

        Raises:
            RawError: there is no such plugin, or it failed.
            UndeterminedError: without `read_only`, an answer was lost, or a part of the Regions failed.

        Source: client-rust RawClient::coprocessor; kvrpcpb.RawCoprocessorRequest.
        """
        opened = self._session.opened or self._session.not_open()
        for text, what in ((name, "name"), (version, "version")):
            if not isinstance(text, str):
                raise TypeError(f"{what} must be a str, not {type(text).__name__}")
        if not callable(data):
            data = as_bytes(data, "data")
        effect = Effect.READ if read_only else Effect.ONCE

        def make(part: Sequence[KeyRange]) -> Request[kvrpcpb.RawCoprocessorResponse]:
            made = as_bytes(data(_bounds(part)), "data") if callable(data) else data
            return opened.requests.coprocessor(name, version, part, made, effect)

        def build(part: Sequence[KeyRange]) -> Request[kvrpcpb.RawCoprocessorResponse]:
            return Unmade(Tikv.RawCoprocessor, effect, partial(make, part)) if callable(data) else make(part)

        wanted = await while_reading(ranges, partial(as_ranges, ranges))
        call = self._begin(opened, "coprocessor", timeout, priority)
        work = RegionsWork([each for each in wanted if not each.is_empty], build)
        answers = await opened.coprocessor.execute(work, call)
        for _, response in answers:
            accept("coprocessor", response)
        return sorted(
            (CoprocessorAnswer(_bounds(part), response.data) for part, response in answers),
            key=lambda answer: answer.ranges,
        )

    async def _page(
        self,
        opened: Opened,
        rest: KeyRange,
        limit: int,
        cf: str,
        call: Call,
        *,
        reverse: bool,
        key_only: bool,
    ) -> Page:
        work = opened.requests.scan(rest, limit, reverse=reverse, key_only=key_only, cf=cf)
        covered, response = await opened.page.execute(work, call)
        if not key_only:
            opened.sizes.learn(len(response.kvs), response.ByteSize())
        return opened.requests.page(covered, response, rest, limit, reverse=reverse)

    async def _delete_range(
        self,
        operation: str,
        key_range: KeyRange,
        progress: Callable[[int], object] | None,
        cf: str | None,
        timeout: float | None,
        priority: Priority | None,
    ) -> None:
        opened = self._session.opened or self._session.not_open()
        check_progress(progress)
        opened.limits.key(key_range.start)
        opened.limits.key(key_range.end)
        work = opened.requests.delete_range(key_range, self._cf_or(cf))
        call = self._begin(opened, operation, timeout, priority)
        for _, response in await opened.delete_range(progress).execute(work, call):
            accept(operation, response)


def _bounds(ranges: Iterable[KeyRange]) -> tuple[tuple[bytes, bytes], ...]:
    return tuple((each.start, each.end) for each in ranges)
