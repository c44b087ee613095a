"""Keys that do not show in logs: what errors carry is marked, for one client and not for its whole process.

A key in an error stays the key it is, for whoever handles the error. What a redacted one does not do is print.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, Self, TypeAlias

import attrs
from tikv_pd import TikvError

Redaction: TypeAlias = Literal["off", "on", "marker"]
"""How keys print: as hex, as `?`, or as hex between two marks, U+2039 and U+203A, by which log collectors find them.

Source: client-go util/redact; TiKV security.redact-info-log.
"""

_HIDDEN: Final = "?"
_OPENING, _CLOSING = "\u2039", "\u203a"


class RedactedKey(bytes):
    """A key that prints redacted, also in a repr, and equals the key it is made of.

    Args:
        key: The key.
        shown: What prints in its place.
    """

    shown: str
    """What prints in its place."""

    def __new__(cls, key: bytes, shown: str = _HIDDEN) -> Self:
        """Make one."""
        made = super().__new__(cls, key)
        made.shown = shown
        return made

    def __repr__(self) -> str:
        return self.shown


def shorten(key: bytes) -> str:
    """Return a key as hex for messages, cut to 32 bytes; as it is to print if it is redacted."""
    if isinstance(key, RedactedKey):
        return key.shown
    return f"0x{key[:32].hex()}{'…' if len(key) > 32 else ''}"


def redact_key(key: bytes, redaction: Redaction) -> bytes:
    """Return a key that prints as `redaction` says."""
    if redaction == "off" or isinstance(key, RedactedKey):
        return key
    return RedactedKey(key, _HIDDEN if redaction == "on" else _mark(shorten(key)))


def redact_words(words: str, redaction: Redaction) -> str:
    """Return what a store said in its own words, which may quote keys, as `redaction` says."""
    if redaction == "off" or not words or words == _HIDDEN or words.startswith(_OPENING):
        return words
    return _HIDDEN if redaction == "on" else _mark(words)


def redact(error: BaseException, redaction: Redaction) -> None:
    """Have the keys in an error and in all that led to it print as `redaction` says, and what stores said with them.

    Of each `TikvError` its fields of bytes, alone or in a tuple, and the `message` of those that quote a store or PD;
    of those without fields, such as a `CodecError`, all they say.
    """
    if redaction == "off":
        return
    for each in _chain(error):
        if not isinstance(each, TikvError):
            continue
        if attrs.has(type(each)):
            _redact_fields(each, redaction)
        else:
            each.args = tuple(redact_words(arg, redaction) if isinstance(arg, str) else arg for arg in each.args)


def _mark(text: str) -> str:
    return f"{_OPENING}{text}{_CLOSING}"


def _redact_fields(error: TikvError, redaction: Redaction) -> None:
    names = [field.name for field in attrs.fields(type(error))]  # type: ignore[arg-type]  # asked of classes of attrs alone
    for name in names:
        value = getattr(error, name)
        if isinstance(value, bytes):
            value = redact_key(value, redaction)
        elif isinstance(value, tuple):
            value = tuple(redact_key(part, redaction) if isinstance(part, bytes) else part for part in value)
        elif name == "message" and isinstance(value, str):
            value = redact_words(value, redaction)
        setattr(error, name, value)
    # What attrs hands to Exception is what pickles.
    error.args = tuple(getattr(error, name) for name in names)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, each once."""
    found = {id(error): error}
    waiting = [error]
    while waiting:
        at = waiting.pop()
        yield at
        for cause in (at.__cause__, at.__context__):
            if cause is not None and id(cause) not in found:
                found[id(cause)] = cause
                waiting.append(cause)
