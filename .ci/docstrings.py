"""How the documentation site reads sources: an extension of griffe, which parses them without importing them."""

from __future__ import annotations

import re
from typing import Any

# Only the session that builds the site has it.
import griffe  # type: ignore[import-not-found]

# Sections of ours that Google's style does not know, such as "Every call may raise:", and their indented entries.
_RAISES = re.compile(
    r"^(?P<title>[^\n]*\braise\b[^\n]*|Raises, [^\n]*):\n(?P<entries>(?: {4}[^\n]*\n?)+)", re.MULTILINE
)
_ENTRY = re.compile(r"^ {4}(\S[^:\n]*): ", re.MULTILINE)
_CLOSING = re.compile(r"^(Cancellation|Interrupted|Source): ", re.MULTILINE)


class Reading(griffe.Extension):  # type: ignore[misc]  # Its base is not there for the type checker.
    """Shows attrs classes and docstrings as readers expect them."""

    def on_attribute_instance(self, *, attr: Any, **_: Any) -> None:
        """Put the default of a field in place of the call that declares it, and say nothing of where it is kept."""
        attr.labels -= {"class-attribute", "instance-attribute"}
        call = attr.value
        if not isinstance(call, griffe.ExprCall) or str(call.function) != "attrs.field":
            return
        given = {each.name: each.value for each in call.arguments if isinstance(each, griffe.ExprKeyword)}
        attr.value = given.get("default")
        if "factory" in given:
            attr.value = f"{given['factory']}()"

    def on_class_members(self, *, cls: Any, **_: Any) -> None:
        """Take what `__new__` takes for what the class takes."""
        if "__new__" in cls.members and "__init__" not in cls.members:
            cls.members["__init__"] = cls.members["__new__"]

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Make lists and paragraphs of the sections that Google's style does not know."""
        if obj.docstring is None:
            return
        text = _RAISES.sub(_as_list, obj.docstring.value)
        obj.docstring.value = _CLOSING.sub(r"\n*\1:* ", text)


def _as_list(section: re.Match[str]) -> str:
    entries = _ENTRY.sub(lambda entry: f"- `{entry[1]}`: ".replace(", ", "`, `"), section["entries"])
    return f"*{section['title']}:*\n\n{entries}"
