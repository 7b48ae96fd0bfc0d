"""Checks a manifest's fields while they are read; every complaint has a position."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from zeno_fast.errors import ManifestError
from zeno_fast.yaml_source import ListNode, MappingNode, Node, ScalarNode, plain

__all__ = ["Document", "Fields", "did_you_mean", "nearest"]

_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?) *(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 365 * 86400.0
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) *([kmg]i?)?b", re.IGNORECASE)
_BYTES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """Return the choice that the word nearly is, else None."""
    plain_choices = {choice.lower().replace("_", "-"): choice for choice in choices}
    close = difflib.get_close_matches(word.lower().replace("_", "-"), plain_choices, n=1)
    return plain_choices[close[0]] if close else None


def did_you_mean(word: str, choices: Iterable[str]) -> str | None:
    """Return `did you mean ...?` for a near miss of one of the choices, else None."""
    near = nearest(word, choices)
    return f"did you mean `{near}`?" if near else None


def _kind(node: Node) -> str:
    """Name what stands there, for messages."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, ListNode):
        return "a list"
    assert isinstance(node, ScalarNode)
    value = node.value
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"the boolean `{node.text}`"
    if isinstance(value, (int, float)):
        return f"the number `{node.text}`"
    return f"`{_short(node.text)}`"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


class Document:
    """One manifest while it is read.

    Args:
        file: Named in every message.
        strict: Whether a warning is an error.

    Attributes:
        warnings: What was odd, each with its position.
        plugin: The plugin's name once it is known.
    """

    def __init__(self, file: Path, *, strict: bool = False) -> None:
        self.file = file
        self.strict = strict
        self.warnings: list[str] = []
        self.plugin: str | None = None

    def error(
        self,
        problem: str,
        node: Node | None,
        key: str,
        expected: str | None = None,
        hint: str | None = None,
    ) -> ManifestError:
        """Make the error for a value."""
        return ManifestError(
            problem,
            file=self.file,
            line=node.line if node else None,
            column=node.column if node else None,
            key=key or None,
            expected=expected,
            hint=hint,
            plugin=self.plugin,
        )

    def warn(
        self,
        problem: str,
        node: Node | None,
        key: str,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        """Note something odd; raise it where the document is read strictly."""
        error = self.error(problem, node, key, expected, hint)
        if self.strict:
            raise error
        self.warnings.append(str(error))

    def text(self, node: Node, key: str, expected: str = "a string") -> str:
        """Read a scalar as it is written, whatever type YAML would give it."""
        if not isinstance(node, ScalarNode):
            raise self.error(f"found {_kind(node)}", node, key, expected)
        if "\0" in node.text:
            raise self.error("holds a NUL character", node, key, expected)
        node.is_text = True
        return node.text

    def texts(self, node: Node, key: str) -> tuple[str, ...]:
        """Read a list of non-empty strings; a single one stands for a list of one."""
        expected = "a list of strings"
        if isinstance(node, ScalarNode) and not isinstance(node.value, bool):
            items: list[tuple[Node, str]] = [(node, key)]
        elif isinstance(node, ListNode):
            items = [(item, f"{key}[{index}]") for index, item in enumerate(node.items)]
        else:
            raise self.error(f"found {_kind(node)}", node, key, expected)
        for item, place in items:
            if isinstance(item, ScalarNode) and (item.value is None or not item.text.strip()):
                raise self.error("is empty", item, place, expected)
        return tuple(self.text(item, place, expected) for item, place in items)

    def choice(self, node: Node, key: str, choices: tuple[str, ...]) -> str:
        """Read one of the choices."""
        expected = "one of " + ", ".join(f"`{choice}`" for choice in choices)
        text = self.text(node, key, expected)
        if text not in choices:
            hint = did_you_mean(text, choices)
            raise self.error(f"`{_short(text)}` is not known", node, key, expected, hint)
        return text

    def flag(self, node: Node, key: str) -> bool:
        """Read a boolean; `yes` and `on` mean true here, as in the YAML of the first guests."""
        value = node.value if isinstance(node, ScalarNode) else None
        if isinstance(value, bool):
            return value
        if isinstance(node, ScalarNode) and node.tag != "str" and node.text.lower() in _TRUTHS:
            return _TRUTHS[node.text.lower()]
        raise self.error(f"found {_kind(node)}", node, key, "true or false")

    def integer(self, node: Node, key: str, minimum: int, maximum: int | None = None) -> int:
        """Read a whole number within bounds."""
        expected = f"a whole number of at least {minimum}"
        if maximum is not None:
            expected += f" and at most {maximum}"
        value = node.value if isinstance(node, ScalarNode) else None
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"found {_kind(node)}", node, key, expected)
        if value < minimum or (maximum is not None and value > maximum):
            raise self.error(f"`{value}` is out of range", node, key, expected)
        return value

    def duration(self, node: Node, key: str, *, zero: bool = False) -> float:
        """Read seconds, or text such as `500ms`, `30s`, `5m`, `1h`."""
        expected = "seconds as a number, or text such as `500ms`, `30s`, `5m`"
        value = node.value if isinstance(node, ScalarNode) else None
        if isinstance(value, str) and (match := _DURATION.fullmatch(value)):
            value = float(match[1]) * _SECONDS[match[2]]
        if isinstance(value, (bool, str)) or value is None:
            raise self.error(f"found {_kind(node)}", node, key, expected)
        if value < 0 or (value == 0 and not zero) or value > _LONGEST:
            bounds = "0 or more" if zero else "more than 0"
            raise self.error("is out of range", node, key, f"{bounds} and at most a year")
        return float(value)

    def size(self, node: Node, key: str, minimum: int, maximum: int) -> int:
        """Read bytes, or text such as `256MiB` or `64KB`."""
        value = node.value if isinstance(node, ScalarNode) else None
        if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
            value = int(float(match[1]) * _BYTES[(match[2] or "").lower()])
        if isinstance(value, bool) or not isinstance(value, int):
            expected = "bytes as a whole number, or text such as `256MiB` or `64KB`"
            raise self.error(f"found {_kind(node)}", node, key, expected)
        if not minimum <= value <= maximum:
            raise self.error("is out of range", node, key, f"{minimum} to {maximum} bytes")
        return value


class Fields:
    """The keys of one mapping; each is asked for once, and what nobody asked for is unknown.

    A key with an empty value counts as absent, as it does to every guest's own reader.

    Args:
        document: Where errors and warnings go.
        node: The mapping.
        path: Its dotted key, "" at the top.
    """

    def __init__(self, document: Document, node: MappingNode, path: str = "") -> None:
        self.document = document
        self.node = node
        self.path = path
        self._known: dict[str, None] = {}

    def key(self, name: str) -> str:
        """Return the dotted key of a name in this mapping."""
        return f"{self.path}.{name}" if self.path else name

    def get(self, name: str) -> Node | None:
        """Return the value of a key and mark the key as known."""
        self._known[name] = None
        entry = self.node.entries.get(name)
        if entry is None or (isinstance(entry[1], ScalarNode) and entry[1].value is None):
            return None
        return entry[1]

    def text(self, name: str, default: str = "") -> str:
        """Read a string."""
        node = self.get(name)
        return default if node is None else self.document.text(node, self.key(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """Read a list of strings."""
        node = self.get(name)
        return () if node is None else self.document.texts(node, self.key(name))

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        """Read one of the choices."""
        node = self.get(name)
        return default if node is None else self.document.choice(node, self.key(name), choices)

    def flag(self, name: str, default: bool) -> bool:
        """Read a boolean."""
        node = self.get(name)
        return default if node is None else self.document.flag(node, self.key(name))

    def integer(self, name: str, default: int, minimum: int, maximum: int | None = None) -> int:
        """Read a whole number."""
        node = self.get(name)
        if node is None:
            return default
        return self.document.integer(node, self.key(name), minimum, maximum)

    def duration(self, name: str) -> float | None:
        """Read a time above 0, in seconds."""
        node = self.get(name)
        return None if node is None else self.document.duration(node, self.key(name))

    def texts_by_name(self, name: str) -> Mapping[str, str]:
        """Read a mapping of strings; numbers and booleans stay as written."""
        fields = self.section(name)
        found: dict[str, str] = {}
        if fields is not None:
            for inner, (_, node) in fields.node.entries.items():
                found[inner] = self.document.text(node, fields.key(inner))
        return MappingProxyType(found)

    def section(self, name: str) -> Fields | None:
        """Read a mapping inside this one."""
        node = self.get(name)
        if node is None:
            return None
        if not isinstance(node, MappingNode):
            raise self.document.error(
                f"found {_kind(node)}", node, self.key(name), "a mapping of keys to values"
            )
        return Fields(self.document, node, self.key(name))

    def plain(self, name: str) -> Any:
        """Read any value as data that JSON can carry."""
        node = self.get(name)
        return None if node is None else plain(node)

    def finish(self, homes: Mapping[str, str] | None = None) -> None:
        """Warn of keys that nobody asked for.

        Args:
            homes: Keys that belong into another section, and its name.
        """
        for name, (key_node, _) in self.node.entries.items():
            if name in self._known:
                continue
            hint = did_you_mean(name, self._known)
            if homes and name in homes and hint is None:
                hint = f"did you mean `{homes[name]}.{name}`?"
            self.document.warn("unknown key", key_node, self.key(name), hint=hint)
