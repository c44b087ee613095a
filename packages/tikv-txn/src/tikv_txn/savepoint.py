"""Savepoints: a part of a transaction's writes that can be taken back."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tikv_pd import ConfigError

from tikv_txn._buffer import Buffer, Mark


class Savepoint:
    """A moment within a transaction to which its writes can be taken back. `Transaction.savepoint` makes it.

    As a `with` or `async with` block, what is written within is taken back when the block raises, and stays otherwise.
    It costs no request. Ending a savepoint ends those made after it; what was read is not forgotten.
    """

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._mark: Mark = buffer.mark()

    def release(self) -> None:
        """End the savepoint; what was written since stays, as far as the savepoints around and the transaction do.

        Raises:
            ConfigError: it has ended.
        """
        self._buffer.release(self._open_mark())

    def rollback(self) -> None:
        """End the savepoint, and take back what was written since: values, inserts, locks and assertions.

        Raises:
            ConfigError: it has ended.
        """
        self._buffer.roll_back(self._open_mark())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # It may have been ended within the block, by itself or with the transaction.
        if self._buffer.is_open(self._mark):
            if error is None:
                self.release()
            else:
                self.rollback()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)

    def _open_mark(self) -> Mark:
        if not self._buffer.is_open(self._mark):
            raise ConfigError("this savepoint has ended: it was released or rolled back, or one around it was")
        return self._mark
