"""Running a function in a transaction until it commits: may it run again, and the loop around it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tikv_pd import Backoffer, BackoffKind, Deadline, DeadlineExceeded, Jitter, TikvError

from tikv_txn.transaction import Transaction, TransactionState

Result = TypeVar("Result")

RERUN: Final = BackoffKind("txnRerun", 0.01, 1.0, Jitter.EQUAL)
"""A transaction met another one. Short, as the other one has mostly ended by then."""
_DONE: Final = frozenset({TransactionState.COMMITTED, TransactionState.COMMITTING, TransactionState.UNDETERMINED})


def may_run_again(error: Exception, state: TransactionState) -> bool:
    """Tell whether a function may run again in another transaction after this one, in `state`, ended with `error`.

    Not when the transaction has committed or may have: what it wrote would be written twice. Of a group of errors, as
    task groups raise, each one has to allow it.
    """
    if state in _DONE:
        return False
    if isinstance(error, ExceptionGroup):
        return all(may_run_again(each, state) for each in error.exceptions)
    return isinstance(error, TikvError) and error.retryable and not error.undetermined


class Pauses:
    """The waits of a function between one transaction and the next.

    Args:
        deadline: No wait lasts beyond it.
    """

    def __init__(self, deadline: Deadline) -> None:
        self._backoffer = Backoffer(deadline, budget=math.inf)
        self._cause: Exception | None = None

    async def after(self, error: Exception) -> None:
        """Wait after a transaction that failed.

        Raises:
            DeadlineExceeded: time ran out; the last failure that is not of that kind is the `__cause__`.
        """
        # That time ran out at last says less than what took it.
        if self._cause is None or not isinstance(error, DeadlineExceeded):
            self._cause = error
        await self._backoffer.backoff(RERUN, self._cause)


async def run(
    begin: Callable[[], Transaction], function: Callable[[Transaction], Awaitable[Result]], deadline: Deadline
) -> Result:
    """Call a function with transactions of `begin`, one after the other, until one commits; return its result.

    Raises:
        DeadlineExceeded: `deadline` has passed; the last failure is the `__cause__`.
        TypeError: the function returns nothing to await.
    """
    pauses = Pauses(deadline)
    while True:
        transaction = begin()
        try:
            async with transaction:
                running = function(transaction)
                if not inspect.isawaitable(running):
                    raise TypeError("the function must be async: define it with `async def`")
                result = await running
        except Exception as error:
            if not may_run_again(error, transaction.state):
                raise
            await pauses.after(error)
        else:
            return result
