"""Reads slot definitions, tolerant of the many ways in which guests write them.

What a manifest declares is read the same way, and then checked for slips: its author can mend them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from zeno_fast.errors import ProtocolError
from zeno_fast.plugin import EMPTY, InputDefinition, SlotDefinition
from zeno_fast.schema import Document, Fields, did_you_mean
from zeno_fast.yaml_source import ListNode, MappingNode, Node, ScalarNode, plain

__all__ = ["MalformedSlots", "check_declared", "parse_slots", "read_slots"]

_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}

_SLOT_KEYS = ("name", "description", "example", "inputs", "outputs", "idempotent", "blocking")
_INPUT_KEYS = ("type", "required", "default", "description")
# The words for types that calls are checked by, and the JSON type that each means.
_TYPES = {
    **dict.fromkeys(("string", "str", "text"), "string"),
    **dict.fromkeys(("int", "integer", "int32", "int64"), "integer"),
    **dict.fromkeys(("number", "float", "double", "float64"), "number"),
    **dict.fromkeys(("bool", "boolean"), "boolean"),
    **dict.fromkeys(("object", "map", "dict"), "object"),
    **dict.fromkeys(("array", "list"), "array"),
    **dict.fromkeys(("any", ""), "any"),
}


class MalformedSlots(ValueError):
    """A list of slots that cannot be understood.

    Attributes:
        path: Keys and indexes that lead to the culprit, from the value that was read.
        expected: What should have stood there.
    """

    def __init__(self, problem: str, path: tuple[str | int, ...], expected: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path
        self.expected = expected

    @property
    def place(self) -> str:
        """The path as text, such as `slots[2].name`."""
        text = ""
        for step in self.path:
            text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
        return text


def parse_slots(raw: Any, plugin: str) -> tuple[SlotDefinition, ...] | None:
    """Read a guest's answer to `plugin_register_slots`.

    Accepts a list, `{"slots": [...]}`, either of them under `data`, and definitions by name.
    Returns None where the answer lists no slots at all, such as `{"error": "Unknown slot"}`.
    Raises ProtocolError.
    """
    try:
        return read_slots(raw, plugin)
    except MalformedSlots as error:
        place = f"{error.place}: " if error.path else ""
        raise ProtocolError(
            f"plugin {plugin!r}: its list of slots cannot be understood: {place}{error.problem}; "
            f"expected {error.expected}",
            plugin=plugin,
        ) from None


def read_slots(raw: Any, plugin: str) -> tuple[SlotDefinition, ...] | None:
    """Do the work of `parse_slots`. Raises MalformedSlots."""
    path: tuple[str | int, ...] = ()
    for wrapper in ("data", "slots"):
        if isinstance(raw, Mapping) and isinstance(raw.get(wrapper), (list, tuple, Mapping)):
            raw = raw[wrapper]
            path = (*path, wrapper)
    if isinstance(raw, Mapping) and path[-1:] == ("slots",):
        definitions = [((*path, name), name, value) for name, value in raw.items()]
    elif isinstance(raw, (list, tuple)):
        definitions = [((*path, index), None, value) for index, value in enumerate(raw)]
    else:
        return None
    found: dict[str, SlotDefinition] = {}
    for place, name, value in definitions:
        slot = _slot(value, name, plugin, place)
        if slot.name in found:
            raise MalformedSlots(f"the slot `{slot.name}` is listed twice", place, "each slot once")
        found[slot.name] = slot
    return tuple(found.values())


def _slot(raw: Any, name: str | None, plugin: str, path: tuple[str | int, ...]) -> SlotDefinition:
    if isinstance(raw, str) and name is None:
        raw = {"name": raw}
    elif raw is None and name is not None:
        raw = {}
    if not isinstance(raw, Mapping):
        raise MalformedSlots(f"found {_json(raw)}", path, "a slot with `name` and `inputs`")
    outputs, blocking = raw.get("outputs"), raw.get("blocking")
    return SlotDefinition(
        name=_name(raw.get("name") or name, path, "the name of a slot"),
        plugin=plugin,
        description=_text(raw.get("description")),
        example=_text(raw.get("example")),
        inputs=_inputs(raw.get("inputs"), (*path, "inputs")),
        outputs=MappingProxyType(dict(outputs)) if isinstance(outputs, Mapping) else EMPTY,
        idempotent=_truth(raw.get("idempotent"), (*path, "idempotent")),
        blocking=_truth(blocking, (*path, "blocking")) if blocking not in (None, "") else None,
    )


def _inputs(raw: Any, path: tuple[str | int, ...]) -> Mapping[str, InputDefinition]:
    required: Any = ()
    if isinstance(raw, Mapping) and _is_schema(raw):
        required = raw.get("required") or ()
        raw, path = raw["properties"], (*path, "properties")
    if raw is None:
        return EMPTY
    if isinstance(raw, Mapping):
        pairs = [((*path, name), name, value) for name, value in raw.items()]
    elif isinstance(raw, (list, tuple)):
        pairs = [
            ((*path, index), value.get("name") if isinstance(value, Mapping) else value, value)
            for index, value in enumerate(raw)
        ]
    else:
        raise MalformedSlots(f"found {_json(raw)}", path, "parameters by name")
    in_list = not isinstance(raw, Mapping)
    found: dict[str, InputDefinition] = {}
    for place, raw_name, value in pairs:
        name = _name(raw_name, place, "the name of a parameter")
        if name in found:
            raise MalformedSlots(f"`{name}` is listed twice", place, "each parameter once")
        described = {} if in_list and isinstance(value, str) else value
        definition = _input(name, described, place)
        if isinstance(required, (list, tuple)) and name in required:
            definition = InputDefinition(
                name,
                definition.type,
                True,
                definition.has_default,
                definition.default,
                definition.description,
            )
        found[name] = definition
    return MappingProxyType(found)


def _input(name: str, raw: Any, path: tuple[str | int, ...]) -> InputDefinition:
    if raw is None:
        raw = {}
    elif isinstance(raw, str):
        raw = {"type": raw}
    if not isinstance(raw, Mapping):
        raise MalformedSlots(f"found {_json(raw)}", path, "`type`, `required`, `default`")
    kind = raw.get("type")
    # Guests that serialise a structure write `"default": null` where there is none.
    default = raw.get("default")
    return InputDefinition(
        name=name,
        type=kind.strip().lower() if isinstance(kind, str) else "",
        required=_truth(raw.get("required"), (*path, "required")),
        has_default=default is not None,
        default=default,
        description=_text(raw.get("description")),
    )


def _name(raw: Any, path: tuple[str | int, ...], expected: str) -> str:
    if not isinstance(raw, str) or not raw.strip():
        problem = "has no `name`" if raw is None or raw == "" else f"`name` is {_json(raw)}"
        raise MalformedSlots(problem, path, expected)
    return raw


def _truth(raw: Any, path: tuple[str | int, ...]) -> bool:
    if raw is None or isinstance(raw, bool):
        return bool(raw)
    if isinstance(raw, (str, int)) and str(raw).lower() in _TRUTHS:
        return _TRUTHS[str(raw).lower()]
    raise MalformedSlots(f"found {_json(raw)}", path, "true or false")


def _text(raw: Any) -> str:
    if raw is None:
        return ""
    return raw if isinstance(raw, str) else _json(raw, limit=None)


def _json(raw: Any, limit: int | None = 60) -> str:
    """Show a value in a message, or an example that a guest gave as an object."""
    text = json.dumps(raw, ensure_ascii=False, default=str)
    return text if limit is None or len(text) <= limit else text[: limit - 3] + "..."


def check_declared(document: Document, node: Node) -> None:
    """Warn of slips in the slots of a manifest that `read_slots` has understood.

    Raises ManifestError where a default is not of the declared type.
    """
    for place, slot in _children(node, "slots"):
        if not isinstance(slot, MappingNode):
            continue
        fields = Fields(document, slot, place)
        for key in _SLOT_KEYS:
            fields.get(key)
        fields.finish()
        inputs = fields.get("inputs")
        if inputs is not None:
            _check_inputs(document, inputs, fields.key("inputs"))


def _check_inputs(document: Document, node: Node, place: str) -> None:
    if isinstance(node, MappingNode) and _is_schema(plain(node)):
        # The keys of a JSON schema are many, and they are its own.
        for inner, item in _children(node.entries["properties"][1], f"{place}.properties"):
            if isinstance(item, MappingNode):
                _check_type(document, Fields(document, item, inner))
        return
    for inner, item in _children(node, place):
        if isinstance(item, MappingNode):
            fields = Fields(document, item, inner)
            for key in _INPUT_KEYS if isinstance(node, MappingNode) else ("name", *_INPUT_KEYS):
                fields.get(key)
            fields.finish()
            _check_type(document, fields)
        elif isinstance(node, MappingNode) and isinstance(item, ScalarNode) and item.value:
            _type_of(document, item, inner)


def _check_type(document: Document, fields: Fields) -> None:
    node = fields.get("type")
    declared = "any"
    if isinstance(node, ScalarNode):
        declared = _type_of(document, node, fields.key("type"))
    default = fields.get("default")
    if default is None or declared == "any":
        return
    found = _json_type(plain(default))
    # As for the parameters of a call: 2.0 is a whole number, and a whole number is a number.
    if declared != found and not (declared == "number" and found == "integer"):
        raise document.error(
            f"{_json(plain(default))} does not fit the type",
            default,
            fields.key("default"),
            f"a value of the type {declared}",
            "put it in quotes"
            if declared == "string" and isinstance(default, ScalarNode)
            else None,
        )


def _type_of(document: Document, node: ScalarNode, place: str) -> str:
    word = node.text.strip().lower()
    if word not in _TYPES:
        known = [known for known in _TYPES if known]
        document.warn(
            f"`{node.text}` is not a known type", node, place, hint=did_you_mean(word, known)
        )
    return _TYPES.get(word, "any")


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return "integer"
    kinds = {str: "string", float: "number", dict: "object", list: "array"}
    return kinds[type(value)]


def _is_schema(inputs: Mapping[str, Any]) -> bool:
    """Tell whether inputs are a JSON schema, as some guests send it, and not parameters by name."""
    return inputs.get("type") == "object" and isinstance(inputs.get("properties"), Mapping)


def _children(node: Node, place: str) -> list[tuple[str, Node]]:
    """Return what is in a list or mapping, each with its dotted key."""
    if isinstance(node, ListNode):
        return [(f"{place}[{index}]", item) for index, item in enumerate(node.items)]
    if isinstance(node, MappingNode):
        return [(f"{place}.{key}", item) for key, (_, item) in node.entries.items()]
    return []
