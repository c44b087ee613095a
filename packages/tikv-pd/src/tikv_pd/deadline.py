"""One deadline per operation, shared by all its attempts and waits."""

from __future__ import annotations

from collections.abc import Callable

from tikv_pd.errors import DeadlineExceeded


class Deadline:
    """A moment by which an operation must have ended.

    A plain slotted class: one is made for each call, on the hot path.
    """

    __slots__ = ("at", "now", "operation", "timeout")

    def __init__(self, operation: str, timeout: float, now: Callable[[], float]) -> None:
        self.operation = operation
        """What must end, for the error."""
        self.timeout = timeout
        """Seconds given; `inf` for no limit."""
        self.now = now
        """The clock: seconds, monotonic."""
        self.at = now() + timeout
        """When it ends, on that clock."""

    def remaining(self) -> float:
        """Return the seconds left, negative when it has passed."""
        return self.at - self.now()

    def check(self, cause: BaseException | None = None) -> float:
        """Return the seconds left; raise DeadlineExceeded, from `cause`, when none are."""
        left = self.remaining()
        if not left > 0:  # Also when it is not a number.
            raise DeadlineExceeded(self.operation, self.timeout) from cause
        return left

    def __repr__(self) -> str:
        return f"<Deadline of {self.operation}, {self.remaining():.3f} s left>"
