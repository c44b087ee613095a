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
        """Put the default of a field in place of the call that declares it; what `__init__` assigns has none."""
        if "instance-attribute" in attr.labels and "class-attribute" not in attr.labels:
            attr.value = None
        attr.labels -= {"class-attribute", "instance-attribute"}
        call = attr.value
        if not isinstance(call, griffe.ExprCall) or str(call.function) != "attrs.field":
            return
        given = {each.name: each.value for each in call.arguments if isinstance(each, griffe.ExprKeyword)}
        attr.extra["attrs"]["init"] = str(given.get("init", True))
        attr.value = given.get("default")
        if "factory" in given:
            attr.value = f"{given['factory']}()"

    def on_class_members(self, *, cls: Any, **_: Any) -> None:
        """Say what the class takes: the fields of an attrs class, or what `__new__` takes."""
        if "__init__" in cls.members:
            return
        if "__new__" in cls.members:
            cls.members["__init__"] = cls.members["__new__"]
        declared = [str(decorator.value) for decorator in cls.decorators]
        # With a base, such as that of errors, there may be more fields than are seen here.
        if not cls.bases and any(text.startswith(("attrs.frozen", "attrs.define")) for text in declared):
            kind = griffe.ParameterKind
            way = kind.keyword_only if "kw_only=True" in declared[-1] else kind.positional_or_keyword
            fields = [attr for attr in cls.attributes.values() if _is_parameter(attr)]
            taken = [griffe.Parameter("self", kind=kind.positional_or_keyword)]
            taken += [_as_parameter(attr, way) for attr in fields]
            cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(*taken)))

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Make lists and paragraphs of the sections that Google's style does not know."""
        if obj.docstring is None:
            return
        text = _RAISES.sub(_as_list, obj.docstring.value)
        obj.docstring.value = _CLOSING.sub(r"\n*\1:* ", text)


def _is_parameter(attr: Any) -> bool:
    is_field = attr.annotation is not None and not str(attr.annotation).startswith("ClassVar")
    return is_field and "property" not in attr.labels and attr.extra["attrs"].get("init") != "False"


def _as_parameter(attr: Any, way: Any) -> Any:
    return griffe.Parameter(attr.name.lstrip("_"), annotation=attr.annotation, kind=way, default=attr.value)


def _as_list(section: re.Match[str]) -> str:
    entries = _ENTRY.sub(lambda entry: f"- `{entry[1]}`: ".replace(", ", "`, `"), section["entries"])
    return f"*{section['title']}:*\n\n{entries}"
