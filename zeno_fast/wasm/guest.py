"""What the pool, the slots and the start-up know of an instance, however it is called."""

from __future__ import annotations

from typing import Protocol


class Guest(Protocol):
    """One instance of a plugin's module; `_wasm.Guest` or `public_api.PublicGuest`.

    It serves one call at a time. Deadlines are nanoseconds by the clock of `_wasmtime.now_ns`.

    Attributes:
        broken: It trapped, overran or was closed; nothing may be called any more.
        worn: Its memory has grown past its bound; it should be replaced.
        interrupted: `interrupt` was called.
        owner: The thread that runs it, 0 for none.
        served: Calls that it answered.
    """

    @property
    def broken(self) -> bool: ...  # noqa: D102
    @property
    def worn(self) -> bool: ...  # noqa: D102
    @property
    def interrupted(self) -> bool: ...  # noqa: D102
    @property
    def owner(self) -> int: ...  # noqa: D102
    @property
    def deadline(self) -> int: ...  # noqa: D102
    @property
    def served(self) -> int: ...  # noqa: D102

    @property
    def memory_size(self) -> int:
        """Bytes of linear memory."""
        ...

    def instantiate(self, deadline: int) -> None:
        """Make the instance; this runs the module's start section. Raises what `run` raises."""
        ...

    def run(self, name: str, deadline: int, may_exit: bool = False) -> int:
        """Run an exported function without parameters; return its result, unsigned.

        Args:
            may_exit: Whether `proc_exit(0)` is an ordinary end.

        Raises SlotTimeout, PluginCrashed, or what a signal handler or a host function raised.
        """
        ...

    def text_of(self, name: str, answer: int) -> bytes:
        """Return the bytes that a function's result stands for. Raises ProtocolError.

        Those from an address to the next NUL or the end of memory; or as many as are said.
        """
        ...

    def settle(self) -> None:
        """Note how much memory the guest takes before its first call."""
        ...

    def interrupt(self) -> None:
        """End the running call, if there is one, and let no other begin; from any thread."""
        ...

    def close(self) -> None:
        """Free the instance; not while a call runs. May be repeated."""
        ...
