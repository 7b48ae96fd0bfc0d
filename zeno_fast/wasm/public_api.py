"""An instance called through the `wasmtime` package's public API alone.

Slower by far than `_wasm.Guest`, but true to whatever library is installed: it takes that one's
place where the library is not laid out as expected, or where ZENO_FAST_WASM=public asks for it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

import wasmtime
from wasmtime import ExitTrap, Trap, TrapCode, WasmtimeError

from zeno_fast import _wasm, _wasmtime
from zeno_fast.errors import ProtocolError, ZenoError
from zeno_fast.log import GuestLog
from zeno_fast.wasm.engine import MOST_TABLES
from zeno_fast.wasm.hostcalls import HostCalls
from zeno_fast.wasm.imports import PROTOCOL, SYSTEM, HostFunction
from zeno_fast.wasm.program import Program, new_linker
from zeno_fast.wasm.ticks import ticks_of

CHUNK = 1 << 16


class PublicGuest:
    """One instance of a plugin's module; see `zeno_fast.wasm.guest.Guest`.

    Args:
        program: The compiled module and its limits.
        host_calls: Answers what the guest asks of the host.
    """

    def __init__(self, program: Program, host_calls: HostCalls) -> None:
        self.broken = False
        self.worn = False
        self.unreached = False
        self.interrupted = False
        self.owner = 0
        self.served = 0
        self._program = program
        self._failures = program.failures
        self._host_calls = host_calls
        self.streams = GuestLog(program.plugin, "stdout"), GuestLog(program.plugin, "stderr")
        self._scope: MutableMapping[str, Any] | None = None
        # What a host function or a stream raised; the package would keep it in a global.
        self._raised: BaseException | None = None
        self._caller: wasmtime.Caller | None = None  # while a host function runs
        # What runs, in which slot, within how many seconds; for what fails in a host call.
        self._call: tuple[str, str | None, float] = ("", None, 0.0)
        self._bound = 0
        self.deadline = 0
        self._functions: dict[str, wasmtime.Func] = {}
        self._memory: wasmtime.Memory | None = None
        self._store = wasmtime.Store(program.engine.engine)
        self._store.set_limits(
            memory_size=program.memory, table_elements=program.table, instances=1, memories=1,
            tables=MOST_TABLES,
        )  # fmt: skip
        wasi, self._output = program.world.new_wasi()
        self._store.set_wasi(wasi)
        self._linker = new_linker(program.engine.engine)
        me = weakref.ref(self)
        for function in program.host_functions:
            self._define(me, function)

    @property
    def memory_size(self) -> int:
        """Bytes of linear memory."""
        return 0 if self._memory is None else self._memory.data_len(self._store)

    def instantiate(self, deadline: int) -> None:
        """Make the instance; this runs the module's start section."""
        instance = self._enter(
            "its start",
            deadline,
            lambda: self._linker.instantiate(self._store, self._program.module),
        )
        exports = instance.exports(self._store)
        for name in self._program.exports:
            function = exports[name]
            assert isinstance(function, wasmtime.Func)
            self._functions[name] = function
        memory = exports["memory"]
        assert isinstance(memory, wasmtime.Memory)
        self._memory = memory

    def run(self, name: str, deadline: int, may_exit: bool = False) -> int:
        """Run an exported function without parameters; return its result."""
        result = self._enter(
            name, deadline, lambda: self._functions[name](self._store), may_exit=may_exit
        )
        if not isinstance(result, int):
            return 0
        return result & (0xFFFFFFFF_FFFFFFFF if name in self._program.packed else 0xFFFFFFFF)

    def settle(self) -> None:
        """Note how much memory the guest takes before its first call."""
        size = self.memory_size
        self._bound = size + max(0, self._program.memory - size) // 2

    def text_of(self, name: str, answer: int) -> bytes:
        """Return the bytes that a function's result stands for."""
        return self._text_of(name, answer, "a life-cycle function", None)

    def interrupt(self) -> None:
        """End the running call, if there is one, and let no other begin; from any thread."""
        self.interrupted = True
        if self.owner:
            self._store.set_epoch_deadline(0)

    def close(self) -> None:
        """Free the instance; not while a call runs. May be repeated."""
        self.broken = True
        self._memory = None
        self._functions.clear()
        self._store.close()
        self._linker.close()

    def execute(
        self,
        slot: _wasm.Slot,
        text: bytes,
        deadline: int,
        seconds: float,
        scope: MutableMapping[str, Any] | None,
    ) -> Any:
        """Call the slot with encoded parameters and return its data."""
        what = f"slot {slot.name!r}"
        request = slot.head + text + slot.tail
        self.unreached = False
        self._scope = scope
        alloc, execute = self._functions["alloc"], self._functions["plugin_execute"]
        try:
            address = self._allocate(what, slot, request, text, deadline, seconds, alloc)
            name_at = address + len(slot.head) + len(text) + 2
            name_size = len(slot.name.encode())
            arguments = (name_at, name_size, address, len(request) - name_size - 2)
            answer = self._enter(
                what,
                deadline,
                lambda: execute(self._store, *map(_signed, arguments)),
                slot.name,
                seconds,
            )
            self.worn = self.worn or 0 < self._bound < self.memory_size
            body = self._text_of("plugin_execute", answer, what, slot.name)
            self.served += 1
            if self._program.frees:
                self._free(what, address, deadline)
            return _wasm.read_answer(body, self._failures, slot)
        finally:
            self._scope = None

    def _allocate(
        self,
        what: str,
        slot: _wasm.Slot,
        request: bytes,
        text: bytes,
        deadline: int,
        seconds: float,
        alloc: wasmtime.Func,
    ) -> int:
        """Copy a request into memory taken from the guest and return its address."""
        size = len(request)
        if size > 0xFFFFFFFF:
            raise self._failures.no_room(slot.name, len(text), self.memory_size, False)
        used = self.served > 0
        try:
            found = self._enter(
                what, deadline, lambda: alloc(self._store, _signed(size)), slot.name, seconds
            )
        except ZenoError:
            self.unreached = used
            raise
        address = int(found & 0xFFFFFFFF)
        outside = address + size > self.memory_size
        if address == 0 or outside:
            self.broken = True
            self.unreached = used and address == 0
            raise self._failures.no_room(
                slot.name, len(text), self.memory_size, outside and address != 0
            )
        assert self._memory is not None
        self._memory.write(self._store, request, address)
        return address

    def _free(self, what: str, address: int, deadline: int) -> None:
        """Give a request's memory back; a trap in there ends the guest but not the call."""
        free = self._functions["free"]
        try:
            self._enter(what, deadline, lambda: free(self._store, _signed(address)))
        except ZenoError:
            self.broken = True

    def _enter(
        self,
        what: str,
        deadline: int,
        call: Callable[[], Any],
        slot: str | None = None,
        seconds: float = 0.0,
        may_exit: bool = False,
    ) -> Any:
        """Let the guest run until `deadline`; turn what ended it into an exception."""
        if self.broken or self.interrupted:
            raise self._failures.closed(slot)
        self._program.world.check_process()
        if _wasm.stack_left() < self._program.stack:
            raise self._failures.no_stack(_wasm.stack_left())
        self.owner = threading.get_ident()
        self.deadline = deadline
        self._call = what, slot, seconds
        result = trap = None
        try:
            if self._program.fuel:
                self._store.set_fuel(self._program.fuel)
            # Those of this process: the child of a fork needs a clock of its own.
            with ticks_of(self._program.engine.engine).limit(self._store, deadline):
                result = call()
        except (Trap, WasmtimeError) as error:
            trap = error
        finally:
            self.owner = 0
        raised, self._raised = self._raised, None
        exited = may_exit and isinstance(trap, ExitTrap) and trap.code == 0 and raised is None
        self.broken = raised is not None or (trap is not None and not exited)
        try:
            self._log_output()
            if isinstance(raised, ProtocolError):
                raised = self._failures.crashed(what, slot, str(raised), self.streams[1])
            if raised is not None:
                raise raised
            if trap is not None and not exited:
                raise self._explain(trap, what, slot, seconds)
        finally:
            if trap is not None:
                trap.close()  # it refers to itself, and would keep the module in memory as long
        # Ticks are coarse: it may have ended before the next one.
        if _wasmtime.now_ns() >= deadline:
            raise self._failures.timed_out(what, slot, seconds)
        return result

    def _log_output(self) -> None:
        """Log what the library has written for the guest meanwhile."""
        if self._output is not None:
            for number, stream in enumerate(self.streams):
                stream.take(self._output, number)

    def _explain(
        self, error: Trap | WasmtimeError, what: str, slot: str | None, seconds: float
    ) -> ZenoError:
        """Return the exception for what a call ended with."""
        code = error.trap_code if isinstance(error, Trap) else None
        if code is TrapCode.INTERRUPT:
            if self.interrupted:
                return self._failures.closed(slot)
            return self._failures.timed_out(what, slot, seconds)
        exhausted = self._failures.exhausted(str(error)) if not isinstance(error, Trap) else None
        if exhausted is not None:
            return exhausted
        status = error.code if isinstance(error, ExitTrap) else None
        return self._failures.crashed(
            what, slot, str(error), self.streams[1], status,
            None if code is None else code.value, self.memory_size,
        )  # fmt: skip

    def _text_of(self, name: str, answer: int, what: str, slot: str | None) -> bytes:
        size = self.memory_size
        packed = name in self._program.packed
        address = answer >> 32 & 0xFFFFFFFF if packed else answer & 0xFFFFFFFF
        nbytes = answer & 0xFFFFFFFF if packed else 0
        if address == 0:
            raise self._failures.null_answer(what, slot)
        if address >= size or address + nbytes > size or self._memory is None:
            self.broken = True
            raise self._failures.outside_answer(what, slot, size)
        if packed:
            return bytes(self._memory.read(self._store, address, address + nbytes))
        found = bytearray()
        for start in range(address, size, CHUNK):
            chunk = self._memory.read(self._store, start, min(start + CHUNK, size))
            end = chunk.find(0)
            if end >= 0:
                return bytes(found + chunk[:end])
            found += chunk
        return bytes(found)

    def read(self, address: int, nbytes: int) -> bytes:
        """Return bytes of memory; for host functions. Raises ProtocolError."""
        caller, memory = self._calling()
        if address + nbytes > memory.data_len(caller):
            raise ProtocolError(f"{nbytes} bytes at {address:#x} are outside of the guest's memory")
        return bytes(memory.read(caller, address, address + nbytes))

    def write(self, address: int, data: bytes) -> None:
        """Change bytes of memory; for host functions. Raises ProtocolError."""
        caller, memory = self._calling()
        if address + len(data) > memory.data_len(caller):
            nbytes = len(data)
            raise ProtocolError(f"{nbytes} bytes at {address:#x} are outside of the guest's memory")
        memory.write(caller, data, address)

    def _calling(self) -> tuple[wasmtime.Caller, wasmtime.Memory]:
        assert self._caller is not None
        memory = self._caller.get("memory")
        if not isinstance(memory, wasmtime.Memory):
            raise ProtocolError("a host function was called without a memory")
        return self._caller, memory

    def _define(self, me: weakref.ref[PublicGuest], function: HostFunction) -> None:
        def answer(caller: wasmtime.Caller, *values: int) -> int | None:
            guest = me()
            if guest is None or guest._raised is not None:  # it is to end, at its next step
                return 0 if function.returns else None
            guest._caller = caller
            try:
                return guest._serve(function, [value & 0xFFFFFFFF for value in values])
            except BaseException as error:  # noqa: BLE001 - raised again when the guest has ended
                guest._stop(error)
                return 0 if function.returns else None
            finally:
                guest._caller = None

        self._linker.define_func(
            function.module, function.name, function.type(), answer, access_caller=True
        )

    def _stop(self, error: BaseException) -> None:
        """Keep an exception and let the guest trap at its next step."""
        self._raised = error
        self._store.set_epoch_deadline(0)

    def _serve(self, function: HostFunction, values: list[int]) -> int | None:
        self._log_output()  # in the order in which it was printed
        name = function.name
        beyond = function.number - len(PROTOCOL)
        if beyond >= 0:
            result = SYSTEM[beyond].function(self, *values)
            return result if function.returns else None
        first = self._argument(name, *values[:2])
        if name == "host_log":
            self._host_calls.log(self._host_calls.level(first), self._argument(name, *values[2:]))
            return None
        answer = self._host_calls.answer(name, first, self._scope, self.deadline)
        if isinstance(answer, bool):
            return int(answer)
        address = self._allocate_for(len(answer) + 1)
        if address != 0:
            self.write(address, answer + b"\0")
        return _signed(address)

    def _argument(self, name: str, address: int, nbytes: int) -> bytes:
        """Return the bytes that a pair of pointer and length stands for. Raises ProtocolError."""
        try:
            return self.read(address, nbytes)
        except ProtocolError as error:
            raise ProtocolError(f"{name} was called with nonsense: {error}") from None

    def _allocate_for(self, nbytes: int) -> int:
        """Take memory from the guest while it waits for a host function."""
        caller, _ = self._calling()
        alloc = caller.get("alloc")
        if not isinstance(alloc, wasmtime.Func):
            raise ProtocolError("a host function was called without an alloc")
        try:
            return int(alloc(caller, nbytes)) & 0xFFFFFFFF
        except (Trap, WasmtimeError) as error:
            failure = self._explain(error, *self._call)
            error.close()  # see `_enter`
        raise failure


def _signed(number: int) -> int:
    """Return what the package takes for an unsigned i32."""
    return number - (1 << 32) if number >= 1 << 31 else number
