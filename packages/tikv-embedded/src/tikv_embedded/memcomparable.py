"""TiKV's memcomparable form of a byte string: byte order is kept, and no encoding is a prefix of another.

The string is cut into groups of 8 bytes, each followed by a marker byte: 0xFF for a full group that is not the last,
else 0xFF minus the number of zero bytes that fill the group up. The empty string is one group of padding.
"""

from __future__ import annotations

_GROUP = 8
_FULL = 0xFF


def encode(data: bytes) -> bytes:
    """Return the memcomparable form of `data`, `(len(data) // 8 + 1) * 9` bytes."""
    whole = len(data) // _GROUP * _GROUP
    groups = [data[i : i + _GROUP] for i in range(0, whole, _GROUP)]
    rest = data[whole:]
    padding = _GROUP - len(rest)
    groups.append(rest + bytes(padding) + bytes((_FULL - padding,)))
    return b"\xff".join(groups)


def decode(data: bytes) -> tuple[bytes, bytes]:
    """Return the string that `data` begins with, and what follows its encoding.

    Raises:
        ValueError: `data` does not begin with a complete encoding.
    """
    groups: list[bytes] = []
    for start in range(0, len(data) - _GROUP, _GROUP + 1):
        end = start + _GROUP
        padding = _FULL - data[end]
        if not padding:
            groups.append(data[start:end])
            continue
        if padding > _GROUP or any(data[end - padding : end]):
            break
        groups.append(data[start : end - padding])
        return b"".join(groups), data[end + 1 :]
    raise ValueError("not a memcomparable byte string")
