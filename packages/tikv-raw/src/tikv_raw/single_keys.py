"""Reads and writes of one key."""

from __future__ import annotations

from tikv_pd import ConfigError
from tikv_pd.lowlevel import as_bytes
from tikv_rpc import Priority, ReplicaRead
from tikv_rpc.frontend.arguments import BytesLike

from tikv_raw._arguments import check_has_ttl
from tikv_raw._calls import Calls
from tikv_raw._requests import CasResult, accept


class KeyOperations(Calls):
    """What a client does with one key. See `RawClient` for what all calls have in common."""

    async def get(
        self,
        key: BytesLike,
        *,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> bytes | None:
        """Return the value of `key`, or None when there is none. An empty value is a value.

        Args:
            key: Any bytes, also none.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.
            replica_read: Which replica serves it.

        Source: kvrpcpb.RawGetRequest.
        """
        opened = self._session.opened or self._session.not_open()
        key = as_bytes(key, "key")
        payload = opened.requests.get(key, self._cf_or(cf))
        options = self._options(priority, replica_read)
        response = await opened.get.execute(key, payload, self._seconds(timeout), options)
        accept("get", response)
        return response.value or (None if response.not_found else b"")

    async def put(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: int | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None:
        """Store `value` under `key`, in place of any value and TTL before.

        Args:
            key: At most `RawConfig.max_key_bytes`.
            value: From none to `RawConfig.max_value_bytes`.
            ttl: Whole seconds after which the key vanishes, at least 1; None for never. Needs API v1ttl or v2.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.

        Raises:
            KeyTooLarge, ValueTooLarge: nothing was sent.
            RawError: the store refused, having no TTL or taking only shorter keys. Nothing was written.
            EntryTooLarge: the store takes only smaller values. Nothing was written.

        Source: kvrpcpb.RawPutRequest.
        """
        opened = self._session.opened or self._session.not_open()
        limits = opened.limits
        key = limits.key(key)
        payload = self._writes(opened).put(key, limits.value(key, value), limits.ttl(ttl), self._cf_or(cf))
        accept("put", await opened.put.execute(key, payload, self._seconds(timeout), self._options(priority)))

    async def delete(
        self,
        key: BytesLike,
        *,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> None:
        """Remove `key`; a missing one is fine.

        Args:
            key: At most `RawConfig.max_key_bytes`.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.

        Source: kvrpcpb.RawDeleteRequest.
        """
        opened = self._session.opened or self._session.not_open()
        key = opened.limits.key(key)
        payload = self._writes(opened).delete(key, self._cf_or(cf))
        accept("delete", await opened.delete.execute(key, payload, self._seconds(timeout), self._options(priority)))

    async def ttl(
        self,
        key: BytesLike,
        *,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
        replica_read: ReplicaRead | None = None,
    ) -> int | None:
        """Return the seconds `key` has left.

        Args:
            key: Any bytes, also none.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.
            replica_read: Which replica serves it.

        Returns:
            Whole seconds; 0 when it never expires, None when it is missing.

        Raises:
            ConfigError: the client speaks API v1, which has no TTL.

        Source: kvrpcpb.RawGetKeyTTLRequest.
        """
        opened = self._session.opened or self._session.not_open()
        check_has_ttl(enabled=opened.limits.has_ttl)
        key = as_bytes(key, "key")
        payload = opened.requests.ttl(key, self._cf_or(cf))
        options = self._options(priority, replica_read)
        response = await opened.ttl.execute(key, payload, self._seconds(timeout), options)
        accept("ttl", response)
        return None if response.not_found else response.ttl

    async def compare_and_swap(
        self,
        key: BytesLike,
        expected: BytesLike | None,
        value: BytesLike | None,
        *,
        ttl: int | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> CasResult:
        """Store `value` under `key`, or remove the key, if it holds `expected` now, atomically.

        Atomic among compare-and-swaps; with other writes to the same keys only if all clients that write them do so in
        atomic mode, see `RawConfig.atomic`.

        Args:
            key: At most `RawConfig.max_key_bytes`.
            expected: The value it must hold; None if it must be missing. An empty value is a value.
            value: What to store; None to remove the key.
            ttl: Whole seconds after which the key vanishes, at least 1; None for never, also if it had a TTL before.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.

        Returns:
            Whether it was swapped, and the value found.

        Raises:
            KeyTooLarge, ValueTooLarge: nothing was sent.
            UndeterminedError: an answer was lost; it is not tried again, since the first try may have succeeded.

        Source: kvrpcpb.RawCASRequest.
        """
        return await self._swap("compare_and_swap", key, expected, value, ttl, cf, timeout, priority)

    async def put_if_absent(
        self,
        key: BytesLike,
        value: BytesLike,
        *,
        ttl: int | None = None,
        cf: str | None = None,
        timeout: float | None = None,
        priority: Priority | None = None,
    ) -> CasResult:
        """Store `value` under `key` if that is missing, atomically: `compare_and_swap` that expects no value.

        Args:
            key: At most `RawConfig.max_key_bytes`.
            value: From none to `RawConfig.max_value_bytes`.
            ttl: Whole seconds after which the key vanishes, at least 1; None for never.
            cf: Column family.
            timeout: Seconds.
            priority: How the store orders the request.

        Returns:
            Whether it was stored, and the value found when it was not.

        Raises:
            KeyTooLarge, ValueTooLarge: nothing was sent.
            UndeterminedError: an answer was lost; it is not tried again, since the first try may have succeeded.

        Source: kvrpcpb.RawCASRequest with previous_not_exist.
        """
        return await self._swap("put_if_absent", key, None, as_bytes(value, "value"), ttl, cf, timeout, priority)

    async def _swap(
        self,
        operation: str,
        key: BytesLike,
        expected: BytesLike | None,
        value: BytesLike | None,
        ttl: int | None,
        cf: str | None,
        timeout: float | None,
        priority: Priority | None,
    ) -> CasResult:
        opened = self._session.opened or self._session.not_open()
        limits = opened.limits
        key = limits.key(key)
        if value is None and ttl is not None:
            raise ConfigError("a swap that removes the key takes no ttl")
        request = opened.requests.compare_and_swap(
            key,
            None if expected is None else as_bytes(expected, "expected"),
            None if value is None else limits.value(key, value),
            limits.ttl(ttl),
            self._cf_or(cf),
        )
        response = await opened.compare_and_swap.execute(
            (key, request), self._begin(opened, operation, timeout, priority)
        )
        accept(operation, response)
        return CasResult(response.succeed, None if response.previous_not_exist else response.previous_value)
