"""A request as bytes: its fields once, the Context of a Region in front of them for each attempt.

Protobuf's wire format lets a message be concatenated from its fields, and Context is field 1 of every store request.
So the caller's fields are serialized once, a Region's Context is serialized once, and an attempt only joins the two;
nothing is mutated or copied when a request is sent again to another Region or peer.
"""

from __future__ import annotations

import enum
from functools import lru_cache
from typing import Any, Generic

from google.protobuf.message import Message
from tikv_pd.lowlevel import Resp
from tikv_proto import tikvpb
from tikv_proto.services import Rpc


class Effect(enum.Enum):
    """What an attempt whose answer was lost means."""

    READ = enum.auto()
    """Nothing; ask again."""
    WRITE = enum.auto()
    """It may have been applied; applying it again is the same. Undetermined only if no later attempt is answered."""
    ONCE = enum.auto()
    """It may have been applied, and applying it again is not the same: undetermined at once."""


class Request(Generic[Resp]):
    """One request to one Region, without its Context.

    A plain slotted class: one is made for each call, on the hot path.
    """

    __slots__ = ("context", "effect", "first", "payload", "rpc")

    def __init__(self, rpc: Rpc[Any, Resp], message: Message | bytes, effect: Effect, context: bytes = b"") -> None:
        self.rpc = rpc
        """Which RPC it is."""
        self.payload = message if isinstance(message, bytes) else message.SerializeToString()
        """The message without Context, serialized, or given as bytes. Keys are encoded already."""
        self.effect = effect
        """What a lost answer means."""
        self.context = context
        """Serialized fields of kvrpcpb.Context of this request alone, such as the locks that a read may pass."""
        self.first = ""
        """How the first attempt asked, once there is a second: see `route.manner`."""


def varint(number: int) -> bytes:
    """Return protobuf's variable-length form of a number that is not negative."""
    out = bytearray()
    while number > 127:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number: int, data: bytes) -> bytes:
    """Return a field of a message that holds bytes, serialized."""
    return head(number, len(data)) + data


@lru_cache(maxsize=4096)
def head(number: int, size: int) -> bytes:
    """Return what stands before `size` bytes that are a field of a message."""
    return varint(number << 3 | 2) + varint(size)


@lru_cache(maxsize=4096)
def batch_head(batch_field: str, size: int) -> bytes:
    """Return what stands before a request of `size` bytes when it is one of `BatchCommandsRequest.requests`."""
    command = head(tikvpb.BatchCommandsRequest.Request.DESCRIPTOR.fields_by_name[batch_field].number, size)
    return head(1, len(command) + size) + command
