"""Reads slot definitions, tolerant of the many ways in which guests write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from zeno_fast.errors import ProtocolError
from zeno_fast.plugin import EMPTY, InputDefinition, SlotDefinition

__all__ = ["MalformedSlots", "parse_slots", "read_slots"]

_TRUTHS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False, "": False}


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
    outputs = raw.get("outputs")
    return SlotDefinition(
        name=_name(raw.get("name") or name, path, "the name of a slot"),
        plugin=plugin,
        description=_text(raw.get("description")),
        example=_text(raw.get("example")),
        inputs=_inputs(raw.get("inputs"), (*path, "inputs")),
        outputs=MappingProxyType(dict(outputs)) if isinstance(outputs, Mapping) else EMPTY,
        idempotent=_truth(raw.get("idempotent"), (*path, "idempotent")),
    )


def _inputs(raw: Any, path: tuple[str | int, ...]) -> Mapping[str, InputDefinition]:
    required: Any = ()
    if (
        isinstance(raw, Mapping)
        and raw.get("type") == "object"
        and isinstance(raw.get("properties"), Mapping)
    ):
        required = raw.get("required") or ()  # a JSON schema, as some guests send it
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
