"""How keys of users become keys of TiKV, and bounds of Regions become keys of users again.

Source: client-go internal/apicodec; TiKV's memcomparable encoding, components/codec/src/byte.rs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

from tikv_pd import ConfigError
from tikv_proto import kvrpcpb

from tikv_region.errors import CodecError
from tikv_region.redaction import shorten

NULL_KEYSPACE_ID: Final = 0xFFFFFFFF
"""What requests carry outside API V2. Source: client-go apicodec."""
MAX_KEYSPACE_ID: Final = 0xFFFFFF
"""Largest keyspace id: three bytes of each key hold it."""

_GROUP = 8
_FULL = 0xFF


class KeyCodec(Protocol):
    """Translates between the keys users see and those that travel."""

    @property
    def api_version(self) -> int:
        """kvrpcpb.APIVersion for the request's Context; a client of V1TTL sends V1 as well."""
        ...

    @property
    def keyspace_id(self) -> int:
        """Keyspace for the request's Context; 0xFFFFFFFF outside API V2."""
        ...

    @property
    def keyspace_name(self) -> str:
        """Name of the keyspace for the request's Context; empty outside API V2."""
        ...

    def encode_key(self, key: bytes) -> bytes:
        """Return a user's key as requests carry it."""
        ...

    def decode_key(self, key: bytes) -> bytes:
        """Return a key of a response as the user knows it.

        Raises:
            CodecError: it lies outside the keyspace.
        """
        ...

    def encode_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return a user's range as requests carry it; an empty `end` stands for the end of the key space."""
        ...

    def decode_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return a range of a response as the user knows it: the part of it that lies in the keyspace.

        Raises:
            CodecError: no key of the keyspace is in it.
        """
        ...

    def encode_region_key(self, key: bytes) -> bytes:
        """Return a user's key as PD knows it."""
        ...

    def encode_region_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return a user's range as PD knows it."""
        ...

    def decode_region_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Return the user's keys that a Region of PD or a store holds; None when it holds none of them.

        Raises:
            CodecError: a bound is not encoded as it should be.
        """
        ...

    def decode_bucket_keys(self, keys: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return the bounds of a Region's buckets as the user's keys: those that lie in the keyspace, and its ends.

        Raises:
            CodecError: a bound is not encoded as it should be.
        """
        ...


class PlainCodec:
    """Raw API V1 and V1TTL: keys travel as they are."""

    api_version: int = kvrpcpb.APIVersion.V1
    """Always V1."""
    keyspace_id: int = NULL_KEYSPACE_ID
    """No keyspace."""
    keyspace_name: str = ""
    """No keyspace."""

    def encode_key(self, key: bytes) -> bytes:
        """Return `key`."""
        return key

    def decode_key(self, key: bytes) -> bytes:
        """Return `key`."""
        return key

    def encode_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return the range as it is."""
        return start, end

    def decode_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return the range as it is."""
        return start, end

    def encode_region_key(self, key: bytes) -> bytes:
        """Return `key`."""
        return key

    def encode_region_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return the range as it is."""
        return start, end

    def decode_region_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Return the range as it is."""
        return start, end

    def decode_bucket_keys(self, keys: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return the bounds as they are."""
        return tuple(keys)


class TxnV1Codec(PlainCodec):
    """Transactional API V1: keys travel as they are, bounds of Regions are memcomparable."""

    def encode_region_key(self, key: bytes) -> bytes:
        """Return `key` memcomparable."""
        return memcomparable_encode(key)

    def encode_region_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return both bounds memcomparable; an empty `end` stays empty."""
        return memcomparable_encode(start), memcomparable_encode(end) if end else b""

    def decode_region_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Return both bounds decoded; empty ones stay empty."""
        last = memcomparable_decode(end) if end else b""
        if end and not last:
            return None
        return memcomparable_decode(start) if start else b"", last

    def decode_bucket_keys(self, keys: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return the bounds decoded; empty ones stay empty."""
        return tuple(memcomparable_decode(key) if key else b"" for key in keys)


class KeyspaceCodec:
    """API V2: every key begins with a mode and a keyspace id; bounds of Regions are memcomparable in both modes.

    Args:
        mode: `b"r"` for raw, `b"x"` for transactional.
        keyspace_id: At most 0xFFFFFF.
        keyspace_name: As PD knows it.

    Raises:
        ConfigError: the id does not fit three bytes.
    """

    api_version: int = kvrpcpb.APIVersion.V2
    """Always V2."""

    def __init__(self, mode: Literal[b"r", b"x"], keyspace_id: int, keyspace_name: str) -> None:
        if not 0 <= keyspace_id <= MAX_KEYSPACE_ID:
            raise ConfigError(f"a keyspace id is between 0 and {MAX_KEYSPACE_ID}, got {keyspace_id}")
        self.keyspace_id = keyspace_id
        """The keyspace."""
        self.keyspace_name = keyspace_name
        """Its name."""
        self._prefix = mode + keyspace_id.to_bytes(3, "big")
        bound = (int.from_bytes(self._prefix, "big") + 1).to_bytes(4, "big")
        # Behind the last keyspace begins another mode; TiKV takes a range up to there only if its end is that one byte.
        # Source: components/api_version/src/api_v2.rs parse_range_mode.
        self._bound = bound if bound[:1] == mode else bound[:1]

    def encode_key(self, key: bytes) -> bytes:
        """Return `key` behind the prefix of the keyspace."""
        return self._prefix + key

    def decode_key(self, key: bytes) -> bytes:
        """Return `key` without the prefix."""
        if not key.startswith(self._prefix):
            raise self._outside(f"key {shorten(key)}")
        return key[4:]

    def encode_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return the range behind the prefix, bounded by the keyspace."""
        return self._prefix + start, self._prefix + end if end else self._bound

    def decode_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return the part of the range that lies in the keyspace, without the prefix; all of it is empty bounds."""
        part = self._clip(start, end)
        if part is None:
            raise self._outside(f"the range from {shorten(start)} to {shorten(end)}")
        return part

    def encode_region_key(self, key: bytes) -> bytes:
        """Return the prefixed key memcomparable."""
        return memcomparable_encode(self._prefix + key)

    def encode_region_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes]:
        """Return the prefixed bounds memcomparable; the end is never empty."""
        first, last = self.encode_range(start, end)
        return memcomparable_encode(first), memcomparable_encode(last)

    def decode_region_range(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Return the part of the Region that lies in the keyspace; an end at or past its bound is empty."""
        return self._clip(memcomparable_decode(start) if start else b"", memcomparable_decode(end) if end else b"")

    def decode_bucket_keys(self, keys: Sequence[bytes]) -> tuple[bytes, ...]:
        """Return the bounds in the keyspace; an empty one at either end stands for all that lies beyond."""
        bounds = [memcomparable_decode(key) if key else b"" for key in keys]
        inner = tuple(bound[4:] for bound in bounds if bound.startswith(self._prefix) and bound != self._prefix)
        below = bool(bounds) and bounds[0] <= self._prefix
        above = bool(bounds) and (not bounds[-1] or bounds[-1] >= self._bound)
        return (*((b"",) if below else ()), *inner, *((b"",) if above else ()))

    def _clip(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        if start >= self._bound or (end and end <= self._prefix):
            return None
        return start[4:] if start > self._prefix else b"", end[4:] if end and end < self._bound else b""

    def _outside(self, what: str) -> CodecError:
        return CodecError(f"{what} is outside keyspace {self.keyspace_name!r} ({self.keyspace_id})")


def split_keyspace(key: bytes) -> tuple[Literal[b"r", b"x"], int, bytes]:
    """Return the mode, the keyspace id and the user's key of a key of API V2 as requests carry it.

    Raises:
        CodecError: it is none.

    Source: client-go apicodec.ParseKeyspaceID and DecodeKey.
    """
    mode = key[:1]
    if len(key) < 4 or (mode != b"r" and mode != b"x"):
        raise CodecError(f"{shorten(key)} is no key of API V2")
    return (b"r" if mode == b"r" else b"x"), int.from_bytes(key[1:4], "big"), key[4:]


def memcomparable_encode(data: bytes) -> bytes:
    """Encode bytes so that encodings compare as the originals do and none is a prefix of another.

    Groups of eight bytes, the last one padded with zeros and never full, each followed by 0xFF less its padding.
    """
    whole = len(data) - len(data) % _GROUP
    groups = [data[at : at + _GROUP] + b"\xff" for at in range(0, whole, _GROUP)]
    padding = _GROUP - (len(data) - whole)
    groups.append(data[whole:] + bytes(padding) + bytes([_FULL - padding]))
    return b"".join(groups)


def memcomparable_decode(encoded: bytes) -> bytes:
    """Decode what `memcomparable_encode` made.

    Raises:
        CodecError: it is cut short, goes on after its last group, or is padded wrongly.
    """
    count, rest = divmod(len(encoded), _GROUP + 1)
    markers = encoded[_GROUP :: _GROUP + 1]
    padding = _FULL - markers[-1] if markers else 0
    if rest or not 1 <= padding <= _GROUP or markers.count(b"\xff") != count - 1:
        raise CodecError(
            f"{shorten(encoded)} is not memcomparable; is the API version of the client that of the cluster?"
        )
    groups = [encoded[at : at + _GROUP] for at in range(0, len(encoded), _GROUP + 1)]
    data = b"".join(groups)
    if data[len(data) - padding :].strip(b"\0"):
        raise CodecError(f"{shorten(encoded)} is not memcomparable: its padding is not zero")
    return data[: len(data) - padding]
