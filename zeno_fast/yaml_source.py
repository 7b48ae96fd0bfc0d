"""Safe YAML with positions: what a manifest says, and on which line and column.

Stricter than YAML where a file could mislead its reader: no tags beyond the core ones, no duplicate
or merge keys, one document, bounded size, depth and aliases. Plain scalars are kept as written, so
that a version `1.10` stays `1.10` and a key `on` stays `on`; `ScalarNode.value` reads them by YAML
1.2's core rules where no text is wanted.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zeno_fast.errors import ManifestError

__all__ = ["ListNode", "MappingNode", "Node", "ScalarNode", "plain", "read_file", "read_yaml"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 50_000
# Text and values after every alias is written out; only aliases can take a file of MAX_BYTES there.
MAX_EXPANDED = 4 * MAX_BYTES

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CORE = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset({"str", "int", "float", "bool", "null"})
_INTEGER = re.compile(r"[-+]?[0-9]{1,20}|0o[0-7]{1,21}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"  # as YAML defines it
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOOLEANS = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})


@dataclass(slots=True)
class Node:
    """A value in the file; line and column count from 1.

    Attributes:
        weight: Text and values in it with every alias written out.
        height: Levels of nesting below it.
    """

    line: int
    column: int
    weight: int = 0
    height: int = 0


@dataclass(slots=True)
class ScalarNode(Node):
    """A single value as written.

    Attributes:
        text: The characters, without quotes and escapes.
        tag: `str` for quoted text, a core type where a tag names one, "" for a plain scalar.
        is_text: Whether it was read as text, so that the plain data keep it as written, too.
    """

    text: str = ""
    tag: str = ""
    is_text: bool = False

    @property
    def value(self) -> str | int | float | bool | None:
        """The value by YAML 1.2's core rules; a number that JSON cannot carry stays text."""
        text = self.text
        if self.tag == "str":
            return text
        if text in _NULLS:
            return None
        if text in _BOOLEANS:
            return _BOOLEANS[text]
        if _INTEGER.fullmatch(text):
            base = {"0o": 8, "0x": 16}.get(text[:2], 10)
            integer = int(text, base)
            return integer if -(1 << 63) <= integer < 1 << 64 else text
        if _FLOAT.fullmatch(text):
            number = float(text)
            return text if abs(number) == float("inf") else number
        return text


@dataclass(slots=True)
class ListNode(Node):
    """A sequence."""

    items: list[Node] = field(default_factory=list)


@dataclass(slots=True)
class MappingNode(Node):
    """A mapping; keys are texts, whatever YAML would make of them."""

    entries: dict[str, tuple[ScalarNode, Node]] = field(default_factory=dict)


def plain(node: Node) -> Any:
    """Return the node as data that JSON can carry."""
    if isinstance(node, MappingNode):
        return {key: plain(value) for key, (_, value) in node.entries.items()}
    if isinstance(node, ListNode):
        return [plain(item) for item in node.items]
    assert isinstance(node, ScalarNode)
    return node.text if node.is_text else node.value


def read_file(file: Path) -> bytes:
    """Read a manifest's bytes.

    Raises ManifestError where it is too large, OSError where it cannot be read. Something that is
    not a regular file is refused, as opening a named pipe would wait for its writer.
    """
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ManifestError("not a regular file", file=file, expected="a YAML file")
    with open(descriptor, "rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ManifestError(
            "the file is too large", file=file, expected=f"at most {MAX_BYTES} bytes"
        )
    return data


def read_yaml(data: bytes, file: Path) -> MappingNode:
    """Read a document whose top is a mapping; `file` is for messages only.

    Raises ManifestError.
    """
    text = _decode(data, file)
    builder = _Builder(file)
    try:
        builder.feed(_events(text))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        context = getattr(error, "context", None)
        raise ManifestError(
            f"not valid YAML: {problem}" + (f", {context}" if context else ""),
            file=file,
            line=mark.line + 1 if mark else None,
            column=mark.column + 1 if mark else None,
        ) from None
    top = builder.top
    if top is None or (isinstance(top, ScalarNode) and top.value is None):
        raise ManifestError("the file is empty", file=file, expected="`name: ...` and more keys")
    if not isinstance(top, MappingNode):
        raise ManifestError(
            "not a manifest",
            file=file,
            line=top.line,
            column=top.column,
            expected="a mapping such as `name: my-plugin`",
        )
    return top


def _decode(data: bytes, file: Path) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line_start = before.rfind(b"\n") + 1
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        raise ManifestError(
            "not UTF-8",
            file=file,
            line=before.count(b"\n") + 1,
            column=len(before[line_start:].decode("utf-8", "replace")) + 1,
            expected="text in UTF-8",
            hint="the file looks like UTF-16" if utf16 else None,
        ) from None
    found = _UNPRINTABLE.search(text)
    if found:
        before_text = text[: found.start()]
        raise ManifestError(
            f"the character U+{ord(found[0]):04X} is not allowed in YAML",
            file=file,
            line=before_text.count("\n") + 1,
            column=found.start() - before_text.rfind("\n"),
        )
    return text


def _events(text: str) -> Iterator[Any]:
    loader = _LOADER(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()


@dataclass(slots=True)
class _Frame:
    """A collection that is still open; `path` is its dotted key."""

    node: ListNode | MappingNode
    path: str
    anchor: str | None
    size_before: int
    key: ScalarNode | None = None


class _Builder:
    """Builds nodes from parser events; never recurses, so that no input can exhaust the stack."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.top: Node | None = None
        self._stack: list[_Frame] = []
        self._anchors: dict[str, Node | None] = {}
        self._size = 0
        self._count = 0
        self._documents = 0

    def feed(self, events: Iterator[Any]) -> None:
        """Take every event up to the end of the stream."""
        for event in events:
            if isinstance(event, yaml.ScalarEvent):
                self._scalar(event)
            elif isinstance(event, yaml.AliasEvent):
                self._alias(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._open(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close()
            elif isinstance(event, yaml.DocumentStartEvent):
                self._documents += 1
                if self._documents > 1:
                    raise self._error("a second document begins here", event, "one document")

    def _scalar(self, event: Any) -> None:
        tag = self._tag(event, _SCALAR_TAGS) or ("str" if event.style else "")
        node = ScalarNode(*_place(event), text=event.value, tag=tag, weight=1 + len(event.value))
        if tag not in {"", "str"}:
            kinds = {"int": int, "float": (int, float), "bool": bool, "null": type(None)}
            if not isinstance(node.value, kinds[tag]):  # type: ignore[arg-type]
                raise self._error(f"`{event.value}` does not fit its tag `!!{tag}`", event)
        if _SURROGATE.search(event.value):
            raise self._error("half of a surrogate pair is not a character", event)
        self._grow(node.weight, event)
        if event.anchor:
            self._anchors[event.anchor] = node
        self._add(node, event)

    def _alias(self, event: Any) -> None:
        if event.anchor not in self._anchors:
            raise self._error(f"the alias `*{event.anchor}` has no anchor before it", event)
        node = self._anchors[event.anchor]
        if node is None:
            raise self._error(f"the alias `*{event.anchor}` contains itself", event)
        if len(self._stack) + node.height > MAX_DEPTH:
            raise self._too_deep(event)
        self._grow(node.weight, event)
        self._add(node, event)

    def _open(self, event: Any) -> None:
        if len(self._stack) >= MAX_DEPTH:
            raise self._too_deep(event)
        node: ListNode | MappingNode
        if isinstance(event, yaml.SequenceStartEvent):
            self._tag(event, frozenset({"seq"}))
            node = ListNode(*_place(event))
        else:
            self._tag(event, frozenset({"map"}))
            node = MappingNode(*_place(event))
        path, before = self._path(), self._size
        self._grow(1, event)
        self._add(node, event)
        if event.anchor:
            self._anchors[event.anchor] = None  # open: an alias to it would contain itself
        self._stack.append(_Frame(node, path, event.anchor, before))

    def _close(self) -> None:
        frame = self._stack.pop()
        node = frame.node
        children = (
            node.items
            if isinstance(node, ListNode)
            else [value for _, value in node.entries.values()]
        )
        node.weight = self._size - frame.size_before
        node.height = 1 + max((child.height for child in children), default=0)
        if frame.anchor:
            self._anchors[frame.anchor] = node

    def _add(self, node: Node, event: Any) -> None:
        self._count += 1
        if self._count > MAX_NODES:
            raise self._error("too many values", event, f"at most {MAX_NODES}")
        if not self._stack:
            self.top = node
            return
        frame = self._stack[-1]
        if isinstance(frame.node, ListNode):
            frame.node.items.append(node)
        elif frame.key is None:
            frame.key = self._key(node, frame.node, event)
        else:
            frame.node.entries[frame.key.text] = (frame.key, node)
            frame.key = None

    def _key(self, node: Node, mapping: MappingNode, event: Any) -> ScalarNode:
        if not isinstance(node, ScalarNode):
            raise self._error("a list or a mapping cannot be a key", event, "a name")
        if node.text == "<<" and not node.tag:
            raise self._error("merge keys (`<<`) are not read here", event, "the keys written out")
        if node.text in mapping.entries:
            first = mapping.entries[node.text][0]
            raise self._error(
                "the key is given twice", event, key=node.text, hint=f"first in line {first.line}"
            )
        return node

    def _tag(self, event: Any, allowed: frozenset[str]) -> str:
        """Return the short name of an explicit core tag, "" where there is no tag."""
        tag: str | None = event.tag
        if tag is None:
            return ""
        short = tag.removeprefix(_CORE)
        if tag.startswith(_CORE) and short in allowed:
            return short
        shown = f"!!{short}" if tag.startswith(_CORE) else tag
        raise self._error(f"the tag `{shown}` is not allowed", event, "a plain value without a tag")

    def _grow(self, weight: int, event: Any) -> None:
        self._size += weight
        if self._size > MAX_EXPANDED:
            raise self._error("aliases make the file too large when written out", event)

    def _too_deep(self, event: Any) -> ManifestError:
        return self._error("nested too deeply", event, f"at most {MAX_DEPTH} levels")

    def _path(self, key: str | None = None) -> str:
        """Return the dotted key of what comes next, or of a key in the open mapping."""
        if not self._stack:
            return ""
        frame = self._stack[-1]
        if isinstance(frame.node, ListNode):
            return f"{frame.path}[{len(frame.node.items)}]"
        if key is None and frame.key is not None:
            key = frame.key.text
        return ".".join(part for part in (frame.path, key) if part)

    def _error(
        self,
        problem: str,
        event: Any,
        expected: str | None = None,
        *,
        key: str | None = None,
        hint: str | None = None,
    ) -> ManifestError:
        line, column = _place(event)
        return ManifestError(
            problem,
            file=self.file,
            line=line,
            column=column,
            key=self._path(key) or None,
            expected=expected,
            hint=hint,
        )


def _place(event: Any) -> tuple[int, int]:
    mark = event.start_mark
    return mark.line + 1, mark.column + 1
