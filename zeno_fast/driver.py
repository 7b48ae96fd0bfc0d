"""The interface between the manager and what makes one plugin's slots callable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from typing import Any, Protocol

from zeno_fast.plugin import GuestDescription, SlotDefinition
from zeno_fast.stream import Stream

Parameters = Mapping[str, Any]
Scope = MutableMapping[str, Any]


class BoundSlot(Protocol):
    """One slot of one plugin, ready to be called; safe from any thread.

    Every method checks the parameters against the slot's inputs first (`InvalidParameters`), then
    raises `SlotError`, `SlotTimeout`, `PluginCrashed`, `PluginUnavailable` or `ProtocolError`.
    `timeout` is in seconds; None means the plugin's own limit.
    """

    @property
    def definition(self) -> SlotDefinition:
        """The slot's name, inputs and outputs."""
        ...

    def call(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Any:
        """Call the slot and return its data."""
        ...

    def submit(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Future[Any]:
        """Start the call and return a future of its data; refusals are the future's exception."""
        ...

    def map(
        self, many: Iterable[Parameters], timeout: float | None, scope: Scope | None
    ) -> Iterator[Any]:
        """Call once for each of `many`, pipelined; yield the data in order."""
        ...

    def stream(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Stream:
        """Return an iterator over the partial results of a call, which its first item begins."""
        ...

    async def call_async(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Any:
        """Call the slot from a running event loop."""
        ...


class Superseded(Exception):
    """A driver of another kind answers now; never seen by callers.

    Attributes:
        driver: That driver.
    """

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self.driver = driver


class Driver(Protocol):
    """Makes the slots of one plugin callable; owns whatever runs them until `close`."""

    def load(self) -> GuestDescription | None:
        """Make the guest ready and ask what it offers.

        Returns None where the guest is only started by its first call.
        Raises PluginLoadError; nothing is left running then.
        """
        ...

    def start(self) -> GuestDescription:
        """Do as `load` does, and start the guest even where its first call is to start it."""
        ...

    @property
    def described(self) -> bool:
        """Whether the guest has been asked what it offers."""
        ...

    @property
    def successor(self) -> Driver | None:
        """The driver that answers in this one's place, or None."""
        ...

    def describe(self) -> None:
        """Start a guest that waits for its first call, so that what it offers gets known.

        Raises as a call does.
        """
        ...

    def bind(self, definition: SlotDefinition) -> BoundSlot:
        """Return the callable form of one slot."""
        ...

    def status(self) -> dict[str, Any]:
        """Say how the guest does, in values that JSON can carry."""
        ...

    def reset(self) -> None:
        """Forgive the failures for which calls are refused or put off."""
        ...

    def supersede(self, successor: Driver) -> None:
        """Let another driver answer this plugin's calls from now on, and end the guest.

        Calls that still come here go to the other one: by `bind` of the slot's definition. Waits
        until those in flight have ended, at most until their deadlines, or until `close`.
        """
        ...

    def begin_close(self) -> None:
        """Take no more calls and ask the guest to end; never blocks, `close` must follow."""
        ...

    def close(self) -> None:
        """End the guest and free all it held; calls in flight fail with PluginUnavailable."""
        ...


def latest(driver: Driver) -> Driver:
    """Return who answers in a driver's place at the end, the driver itself where nobody does."""
    while driver.successor is not None:
        driver = driver.successor
    return driver
