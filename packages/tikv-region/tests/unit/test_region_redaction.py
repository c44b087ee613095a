"""Keys in errors, redacted: what prints, and what stays."""

from __future__ import annotations

import copy
import pickle

import pytest
from tikv_pd import PdError, TikvError
from tikv_region import (
    CodecError,
    EntryTooLarge,
    RedactedKey,
    Redaction,
    RegionError,
    RegionUnavailable,
    StoreUnavailable,
    redact,
)
from tikv_region.redaction import redact_key, redact_words, shorten

KEY = b"secret"


@pytest.mark.parametrize(("redaction", "shown"), [("off", "0x736563726574"), ("on", "?")])
def test_a_key_prints_as_it_is_to(redaction: Redaction, shown: str) -> None:
    assert shorten(redact_key(KEY, redaction)) == shown


def test_a_marked_key_prints_between_marks() -> None:
    assert shorten(redact_key(KEY, "marker")) == "\u20390x736563726574\u203a"


def test_a_redacted_key_stays_the_key_it_is() -> None:
    key = redact_key(KEY, "on")

    assert isinstance(key, RedactedKey)
    assert (key, hash(key)) == (KEY, hash(KEY))
    assert repr(key) == f"{[key]}"[1:-1] == "?"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda key: pickle.loads(pickle.dumps(key))])
def test_a_copy_of_a_redacted_key_is_redacted(duplicate: object) -> None:
    assert callable(duplicate)

    copied = duplicate(redact_key(KEY, "marker"))

    assert copied == KEY
    assert repr(copied).startswith("\u2039")


def test_redacting_twice_changes_nothing() -> None:
    key, words = redact_key(KEY, "marker"), redact_words("no", "marker")

    assert redact_key(key, "marker") is key
    assert redact_words(words, "marker") == words


def test_nothing_changes_when_it_is_off() -> None:
    error = RegionUnavailable(KEY, "gone")

    redact(error, "off")

    assert type(error.key) is bytes
    assert redact_words("key 73", "off") == "key 73"


def test_every_error_that_led_to_another_is_redacted() -> None:
    first, second, third = RegionUnavailable(KEY, "gone"), ValueError("no"), RegionUnavailable(KEY, "away")
    third.__cause__, second.__context__ = second, first
    # A circle, as a handler that raises what it caught from something else makes one.
    first.__context__ = third

    redact(third, "on")

    assert str(first) == "no Region for key ?: gone"
    assert str(third) == "no Region for key ?: away"


@pytest.mark.parametrize(
    "error",
    [
        RegionError("key_not_in_region", "key 736563726574 is not here", 4, 1),
        PdError("GetRegion", "UNKNOWN", "no Region for 736563726574"),
        CodecError("0x736563726574 is no key of API V2"),
    ],
)
def test_what_quotes_keys_is_not_told(error: TikvError) -> None:
    redact(error, "on")

    assert "736563726574" not in f"{error} {error!r} {error.args}"


@pytest.mark.parametrize("error", [EntryTooLarge(4, 9000), StoreUnavailable(1, "no address")])
def test_what_names_no_key_says_what_it_said(error: TikvError) -> None:
    said = str(error)

    redact(error, "on")

    assert str(error) == said
