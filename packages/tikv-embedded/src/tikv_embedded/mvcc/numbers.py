"""Numbers and strings inside lock and write records.

Fixed numbers are 8 bytes big-endian, varying ones little-endian groups of 7 bits. The length in front of a string is
a varying number too, of a signed kind: the sign lies in the lowest bit, so lengths are doubled.
Source: TiKV tikv_util codec/number.rs, codec/bytes.rs encode_compact_bytes.
"""

from __future__ import annotations

_MORE = 0x80
_U64_SIZE = 8
_MAX_SHIFT = 63


def encode_u64(number: int) -> bytes:
    """Return the 8 bytes of a fixed number."""
    return number.to_bytes(_U64_SIZE, "big")


def encode_var_u64(number: int) -> bytes:
    """Return the 1 to 10 bytes of a varying number."""
    encoded = bytearray()
    while number >= _MORE:
        encoded.append(number & (_MORE - 1) | _MORE)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def encode_compact_bytes(data: bytes) -> bytes:
    """Return a string with its length in front."""
    return encode_var_u64(len(data) << 1) + data


class RecordReader:
    """Takes a record apart from its first byte on; every method raises `ValueError` where the record ends early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        start, end = self._position, self._position + size
        if end > len(self._data):
            raise ValueError("the record ends early")
        self._position = end
        return self._data[start:end]

    def byte(self) -> int:
        """Return the next byte."""
        return self.take(1)[0]

    def u64(self) -> int:
        """Return a fixed number."""
        return int.from_bytes(self.take(_U64_SIZE), "big")

    def var_u64(self) -> int:
        """Return a varying number."""
        number = shift = 0
        while shift <= _MAX_SHIFT:
            byte = self.byte()
            number |= (byte & (_MORE - 1)) << shift
            if byte < _MORE:
                return number
            shift += 7
        raise ValueError("a number of more than 64 bits")

    def compact_bytes(self) -> bytes:
        """Return a string that has its length in front."""
        return self.take(self.var_u64() >> 1)
