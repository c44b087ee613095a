"""How user keys and versions become engine keys.

| column family | key |
|---|---|
| lock | memcomparable user key |
| write | memcomparable user key, 8 bytes of the inverted commit timestamp |
| default | memcomparable user key, 8 bytes of the inverted start timestamp |

The inversion puts the newest version of a key first. No encoding of a user key is a prefix of another one's.
Source: TiKV components/txn_types/src/types.rs Key.
"""

from __future__ import annotations

from tikv_embedded import memcomparable

MAX_TS = (1 << 64) - 1
"""The timestamp behind all others; a read at it sees the newest data."""
TS_SIZE = 8
"""Bytes of a version at the end of a key."""
BEHIND_VERSIONS = b"\xff" * TS_SIZE + b"\0"
"""Appended to an encoded user key, the bound behind all of its versions."""


def encode_key(key: bytes) -> bytes:
    """Return the memcomparable form of a user key."""
    return memcomparable.encode(key)


def decode_key(encoded: bytes) -> bytes:
    """Return the user key of a memcomparable form without a version.

    Raises:
        ValueError: it is not one.
    """
    key, rest = memcomparable.decode(encoded)
    if rest:
        raise ValueError("a version follows the key")
    return key


def append_ts(encoded: bytes, ts: int) -> bytes:
    """Return the engine key of one version of an encoded user key."""
    return encoded + (MAX_TS ^ ts).to_bytes(TS_SIZE, "big")


def split_ts(stored: bytes) -> tuple[bytes, int]:
    """Return the encoded user key and the timestamp of a version's engine key."""
    return stored[:-TS_SIZE], MAX_TS ^ int.from_bytes(stored[-TS_SIZE:], "big")


def physical_ms(ts: int) -> int:
    """Return the physical part of a timestamp, in milliseconds."""
    return ts >> 18
