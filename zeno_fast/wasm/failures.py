"""The exceptions that a WASM guest's misbehaviour becomes; their texts say what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zeno_fast.errors import (
    PluginCrashed,
    PluginUnavailable,
    ProtocolError,
    SlotTimeout,
    UsageError,
    ZenoError,
)
from zeno_fast.limits import STACK_MARGIN
from zeno_fast.log import GuestLog, plugin_logger

if TYPE_CHECKING:
    from zeno_fast.manifest import WasmOptions

TRAP_STACK_OVERFLOW, TRAP_OUT_OF_FUEL = 0, 11  # wasmtime_trap_code_t
NEARLY = 0.75  # of its memory: a guest that traps with more has likely found no more


class Failures:
    """Makes the exceptions of one plugin.

    Args:
        plugin: Its name.
        limits: The manifest's options, with every limit filled in.
    """

    def __init__(self, plugin: str, limits: WasmOptions) -> None:
        self.plugin = plugin
        self._limits = limits

    def closed(self, slot: str | None = None) -> PluginUnavailable:
        """Refuse a call to, or end a call of, a plugin that was closed."""
        return PluginUnavailable(
            f"plugin {self.plugin!r} was closed", plugin=self.plugin, slot=slot
        )

    def timed_out(self, what: str, slot: str | None = None, seconds: float = 0.0) -> SlotTimeout:
        """Say that a guest was interrupted; `seconds` are the limit, 0 where nobody set it."""
        limit = f"within {seconds:g} s" if seconds else "in time"
        return SlotTimeout(
            f"plugin {self.plugin!r}: {what} did not end {limit} and was interrupted",
            plugin=self.plugin,
            slot=slot,
        )

    def queued_too_long(self, slot: str, seconds: float, instances: int) -> SlotTimeout:
        """Say that no instance became free in time."""
        return SlotTimeout(
            f"plugin {self.plugin!r}: slot {slot!r} was not begun within {seconds:g} s, as all "
            f"{instances} instances were busy (see `wasm.instances` in the manifest)",
            plugin=self.plugin,
            slot=slot,
        )

    def reentered(self, slot: str, instances: int) -> PluginUnavailable:
        """Refuse a call that a guest makes, through the host, to its own exhausted plugin."""
        return PluginUnavailable(
            f"plugin {self.plugin!r}: slot {slot!r} was called from within a call to the same "
            f"plugin while all {instances} instances were busy; it would wait for itself",
            plugin=self.plugin,
            slot=slot,
        )

    def crashed(
        self,
        what: str,
        slot: str | None,
        reason: str,
        stderr: GuestLog,
        exit_status: int | None = None,
        trap: int | None = None,
        memory: int = 0,
    ) -> PluginCrashed:
        """Say what a guest ended with, and which limit that was, where it was one.

        Args:
            reason: The library's text of a trap or an error, with the guest's backtrace.
            exit_status: What the guest gave to `proc_exit`, None where it did not call that.
            trap: The library's number of a trap, None where it has none.
            memory: Bytes of linear memory that the guest has.
        """
        stderr.finish()
        lines = list(stderr.tail)
        if exit_status is not None:
            text = f"ended with exit status {exit_status} in {what}"
        elif trap == TRAP_OUT_OF_FUEL:
            text = (
                f"used up its fuel of {self._limits.fuel} in {what} (see `wasm.fuel` in the "
                "manifest)"
            )
        else:
            text = f"trapped in {what}: {_innermost(reason)}"
            bound = self._limits.memory or 0
            if trap == TRAP_STACK_OVERFLOW:
                text += (
                    f"; its calls nest within {self._limits.stack} bytes (see `wasm.stack` in the "
                    "manifest)"
                )
            elif memory > NEARLY * bound:
                text += (
                    f"; it has {memory} bytes of memory of at most {bound} (see `wasm.memory` in "
                    "the manifest)"
                )
        plugin_logger(self.plugin).error("%s: %s", text, reason)
        if lines:
            # Backtraces and advice follow the line that says what is wrong.
            panic = next((line for line in lines if "panic" in line.lower()), lines[-1])
            text += f"; its last words: {panic}"
        return PluginCrashed(
            f"plugin {self.plugin!r} {text}",
            exit_status=exit_status,
            stderr="\n".join(lines),
            plugin=self.plugin,
            slot=slot,
        )

    def not_started(self, slot: str, error: ZenoError) -> PluginCrashed:
        """Say that a call got no instance, as a fresh one failed before it could serve."""
        return PluginCrashed(
            f"plugin {self.plugin!r}: no fresh instance for slot {slot!r}: {error}",
            stderr=error.stderr if isinstance(error, PluginCrashed) else "",
            plugin=self.plugin,
            slot=slot,
        )

    def exhausted(self, reason: str) -> PluginUnavailable | None:
        """Say that the process has no place for one more instance of a `fresh` plugin.

        Returns None where the library's reason for not making one is another.
        """
        if "concurrent" not in reason or "limit" not in reason:
            return None
        return PluginUnavailable(
            f"plugin {self.plugin!r}: there is no place for one more instance: {reason}; make "
            "fewer calls to plugins with `wasm.fresh` at the same time, or lower their "
            "`wasm.instances`",
            plugin=self.plugin,
        )

    def no_stack(self, left: int) -> UsageError:
        """Refuse a call in a thread in which the guest could overrun the stack."""
        return UsageError(
            f"plugin {self.plugin!r} was called in a thread with {left} bytes of stack left, and a "
            f"guest may take {self._limits.stack} of it, the host {STACK_MARGIN} more; call it in "
            "a thread with a larger stack (threading.stack_size), or lower `wasm.stack` in the "
            "manifest",
            plugin=self.plugin,
        )

    def no_room(self, slot: str, nbytes: int, memory: int, outside: bool) -> PluginCrashed:
        """Say that `alloc` gave no memory for a request, or memory that is not there."""
        problem = "gave memory outside of its own" if outside else "gave no memory"
        return PluginCrashed(
            f"plugin {self.plugin!r} {problem} for parameters of {nbytes} bytes to slot {slot!r}; "
            f"it has {memory} bytes of at most {self._limits.memory} (see `wasm.memory` in the "
            "manifest)",
            plugin=self.plugin,
            slot=slot,
        )

    def null_answer(self, what: str, slot: str | None = None) -> ProtocolError:
        """Say that a guest returned no address."""
        return ProtocolError(
            f"plugin {self.plugin!r}: {what} was answered with a null pointer",
            plugin=self.plugin,
            slot=slot,
        )

    def outside_answer(self, what: str, slot: str | None, memory: int) -> ProtocolError:
        """Say that a guest returned an address that it does not have."""
        return ProtocolError(
            f"plugin {self.plugin!r}: {what} was answered with a pointer outside of the guest's "
            f"memory of {memory} bytes",
            plugin=self.plugin,
            slot=slot,
        )

    def not_json(self, slot: str, start: bytes, error: Exception) -> ProtocolError:
        """Say that an answer, which begins with `start`, is not JSON."""
        return ProtocolError(
            f"plugin {self.plugin!r}: slot {slot!r} was answered with what is not JSON "
            f"({error}): {start!r}",
            plugin=self.plugin,
            slot=slot,
        )

    def not_an_object(self, slot: str, value: Any) -> ProtocolError:
        """Say that an answer is JSON, but no envelope."""
        return ProtocolError(
            f"plugin {self.plugin!r}: slot {slot!r} was answered with {type(value).__name__}, not "
            "with an object that says `success`",
            plugin=self.plugin,
            slot=slot,
        )


def _innermost(reason: str) -> str:
    """Return the cause at the end of a library's error text, without the backtrace."""
    cause = reason.rpartition("Caused by:\n")[2].strip()
    return cause.splitlines()[-1].strip().removeprefix("wasm trap: ") if cause else reason
