"""Brings an instance from its module to where it can serve slots."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import orjson

from zeno_fast import _wasm, _wasmtime
from zeno_fast.errors import ProtocolError
from zeno_fast.log import plugin_logger
from zeno_fast.plugin import GuestDescription, SlotDefinition
from zeno_fast.slots import parse_slots
from zeno_fast.wasm.guest import Guest
from zeno_fast.wasm.hostcalls import HostCalls
from zeno_fast.wasm.program import Program, new_linker
from zeno_fast.wasm.public_api import PublicGuest

log = logging.getLogger("zeno_fast.wasm")
MODE_VARIABLE = "ZENO_FAST_WASM"
LIFE_CYCLE = ("plugin_init", "plugin_register_slots")
_warned: list[str] = []


def why_public() -> str:
    """Say why guests are called through the package's public API, "" where they are not."""
    if os.environ.get(MODE_VARIABLE) == "public":
        return f"{MODE_VARIABLE}=public"
    if _wasmtime.MISMATCH and not _warned:
        _warned.append(_wasmtime.MISMATCH)
        log.warning("WASM guests are called the slow way: %s", _wasmtime.MISMATCH)
    return _wasmtime.MISMATCH


class GuestMaker:
    """Makes and starts the instances of one program.

    Attributes:
        public: Why the public API is used, or "".
    """

    def __init__(self, program: Program, host_calls: HostCalls) -> None:
        self._program = program
        self._host_calls = host_calls
        self._logger = plugin_logger(program.plugin)
        self.public = why_public()
        if not self.public:
            engine = program.engine.engine
            linker = new_linker(engine)
            _wasm.define_host_functions(linker, program.host_functions)
            self._pre = linker.instantiate_pre(program.module)
            linker.close()
            self._engine = _wasmtime.keep_engine(engine)

    def new(self) -> Guest:
        """Make an instance that has yet to be started."""
        if self.public:
            return PublicGuest(self._program, self._host_calls)
        return _wasm.Guest(self._program, self._pre, self._engine, self._host_calls)

    def start(self, guest: Guest, deadline: int) -> None:
        """Run what a guest wants to be run before its first slot.

        Its life-cycle functions, too: they may prepare it for what follows. What they answer was
        looked at when the first instance was started.

        Raises SlotTimeout, PluginCrashed or PluginUnavailable.
        """
        exports = self._program.exports
        self._initialize(guest, deadline)
        for name in LIFE_CYCLE:
            if name in exports:
                guest.run(name, deadline)
        guest.settle()

    def start_first(self, guest: Guest, deadline: int) -> GuestDescription:
        """Do what `start` does, and return what the guest says of itself and offers."""
        self._initialize(guest, deadline)
        info, slots = (self._ask(guest, name, deadline) for name in LIFE_CYCLE)
        guest.settle()
        return GuestDescription(info=_members(info), slots=self._slots(slots))

    def _initialize(self, guest: Guest, deadline: int) -> None:
        exports = self._program.exports
        guest.instantiate(deadline)
        if "_initialize" in exports:
            guest.run("_initialize", deadline)
        elif "_start" in exports:
            guest.run("_start", deadline, True)

    def retire(self, guest: Guest) -> None:
        """Let a guest clean up, where it is still able to, and free it."""
        if not (guest.broken or guest.interrupted) and "plugin_cleanup" in self._program.exports:
            try:
                guest.run("plugin_cleanup", _wasmtime.deadline_ns(1.0))
            except Exception as error:  # noqa: BLE001 - it is gone either way
                self._logger.warning("plugin_cleanup failed: %s", error)
        guest.close()

    def close(self) -> None:
        """Free the module; nothing made of it is in use any more."""
        if not self.public:
            self._pre.close()
        self._program.module.close()

    def _ask(self, guest: Guest, name: str, deadline: int) -> Any:
        """Return what a life-cycle function answers, None where it is absent or makes no sense."""
        if name not in self._program.exports:
            return None
        answer = guest.run(name, deadline)
        try:
            return _wasm.loads_prefix(guest.text_of(name, answer))
        except (ProtocolError, orjson.JSONDecodeError) as error:
            if guest.broken:
                raise
            self._logger.warning("the answer of %s is ignored: %s", name, error)
            return None

    def _slots(self, raw: Any) -> tuple[SlotDefinition, ...] | None:
        try:
            return parse_slots(raw, self._program.plugin)
        except ProtocolError as error:
            self._logger.warning("the answer of plugin_register_slots is ignored: %s", error)
            return None


def _members(raw: Any) -> Mapping[str, Any]:
    """Return what `plugin_init` says, with or without an envelope around it."""
    if isinstance(raw, dict) and isinstance(raw.get("data"), dict):
        raw = raw["data"]
    if not isinstance(raw, dict) or raw.get("error") or raw.get("success") is False:
        return {}
    return raw
