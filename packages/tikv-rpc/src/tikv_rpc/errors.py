"""What can go wrong between a plan and its result. Everything else is raised by the layers below."""

from __future__ import annotations

from tikv_pd.errors import RpcError


class RelocateError(Exception):
    """The Region asked is not the right one any more: locate the keys again and resend.

    Passes between plans and never reaches a user; `__cause__` is the region error.
    """


def given_up(address: str, method: str) -> RpcError:
    """Return what is known of an attempt whose caller was cancelled: it was sent."""
    return RpcError(address, method, "CANCELLED", "given up")


def expired(address: str, method: str, timeout: float, *, sent: bool) -> RpcError:
    """Return the error of an attempt whose time ran out."""
    return RpcError(address, method, "DEADLINE_EXCEEDED", f"no answer within {timeout:.3g} s", sent=sent)
