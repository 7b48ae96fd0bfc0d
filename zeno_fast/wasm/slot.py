"""What callers get for one slot of a WASM plugin: the direct call, and what runs in threads."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zeno_fast import _wasm, _wasmtime
from zeno_fast._envelope import parameters_of
from zeno_fast.driver import BoundSlot, Driver, Parameters, Scope, latest
from zeno_fast.errors import PluginUnavailable, ZenoError
from zeno_fast.host.context import current_host_call
from zeno_fast.plugin import EMPTY, SlotDefinition
from zeno_fast.stream import Stream, WholeStream
from zeno_fast.wasm.pace import SHORT_NS, Pace

if TYPE_CHECKING:
    from zeno_fast.wasm.driver import WasmDriver

MOST_IN_LOOP = 65536  # bytes of parameters that a loop's own thread deals with
WINDOW = 4  # calls that `map` keeps under way, for each instance


class WasmSlot(_wasm.Slot):
    """One slot of one WASM plugin; see `zeno_fast.driver.BoundSlot`."""

    def __init__(self, definition: SlotDefinition, driver: WasmDriver) -> None:
        super().__init__(
            definition,
            driver.pool,
            driver.timeout,
            not driver.public,
            driver.statistics.of(definition.name),
        )
        self._driver = driver
        self._moved: tuple[Driver, BoundSlot] | None = None
        blocking = definition.blocking
        if blocking is None and driver.reaches_callbacks:
            blocking = True  # what the host does there may need the loop
        self._pace = Pace(blocking)

    def submit(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Future[Any]:
        """Start the call in a thread; the parameters are encoded before this returns."""
        seconds = self._driver.timeout if timeout is None else timeout
        try:
            return self._submit(self.encode(parameters), seconds, scope)
        except ZenoError as error:
            refused: Future[Any] = Future()
            refused.set_exception(error)
            return refused

    def _submit(self, text: bytes, seconds: float, scope: Scope | None) -> Future[Any]:
        deadline = _wasmtime.deadline_ns(seconds)
        within = current_host_call()
        try:
            if self._driver.successor is not None:
                return self._successor().submit(parameters_of(text), seconds, scope)
            if within is None:
                return self._driver.executor().submit(self._timed, text, deadline, seconds, scope)
            self._driver.pool.refuse_waiting_for_itself(self.definition.name, within)
            # Not behind others: those may wait for this one. And whom it calls has to know, too.
            context = copy_context()
            return self._driver.inner_executor().submit(
                context.run, self._timed, text, deadline, seconds, scope
            )
        except (PluginUnavailable, RuntimeError) as error:
            # The plugin was closed or replaced just now, or the interpreter ends.
            if self._driver.successor is not None:
                return self._successor().submit(parameters_of(text), seconds, scope)
            if isinstance(error, ZenoError):
                raise
            raise PluginUnavailable(
                f"plugin {self.plugin!r} was closed", plugin=self.plugin, slot=self.definition.name
            ) from error

    def map(
        self, many: Iterable[Parameters], timeout: float | None, scope: Scope | None
    ) -> Iterator[Any]:
        """Call once for each of `many` and yield the data in order.

        Calls that turn out to be short are made one after the other in the caller's own thread;
        as soon as two in a row are not, the rest runs in all instances at once.
        """
        source = iter(many)
        long = 0  # in a row; the first call of all may only have been cold
        for parameters in source:
            begun = time.perf_counter_ns()
            data = self.call(parameters, timeout, scope)
            long = 0 if time.perf_counter_ns() - begun < SHORT_NS else long + 1
            yield data
            if long == 2:
                break
        window = WINDOW * self._driver.pool.limit
        pending: deque[Future[Any]] = deque()
        try:
            for parameters in source:
                pending.append(self.submit(parameters, timeout, scope))
                if len(pending) >= window:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def stream(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Stream:
        """Return the stream of a call: a WASM guest has only its final answer to give."""
        seconds = self._driver.timeout if timeout is None else timeout
        text = self.encode(parameters)
        if self._driver.successor is not None:
            return self._successor().stream(parameters_of(text), seconds, scope)
        return WholeStream(
            self.definition.name,
            lambda: self.call_encoded(text, _wasmtime.deadline_ns(seconds), seconds, scope),
            lambda: asyncio.wrap_future(self._submit(text, seconds, scope)),
        )

    async def call_async(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Any:
        """Call the slot: here, where its calls are known to be short, else in a thread.

        A call that is cancelled before it began is never made.
        """
        seconds = self._driver.timeout if timeout is None else timeout
        text = self.encode(parameters)
        short = self._pace.is_short and len(text) <= MOST_IN_LOOP
        if short and self._pace.turn_is_due():
            await asyncio.sleep(0)
        if not (short and self._driver.pool.idle):
            if self._driver.successor is not None:
                return await self._successor().call_async(parameters_of(text), seconds, scope)
            return await asyncio.wrap_future(self._submit(text, seconds, scope))
        return self._timed(text, _wasmtime.deadline_ns(seconds), seconds, scope, True)

    def _timed(
        self, text: bytes, deadline: int, seconds: float, scope: Scope | None, in_loop: bool = False
    ) -> Any:
        """Call the slot and learn how long that takes."""
        begun = time.perf_counter_ns()
        try:
            return self.call_encoded(text, deadline, seconds, scope)
        finally:
            self._pace.note(time.perf_counter_ns() - begun, in_loop)

    def forward(self, text: bytes, deadline: int, scope: Scope | None) -> Any:
        """Make a call, as the pool lends no more instances, by the driver that answers now."""
        seconds = max(0.0, (deadline - _wasmtime.now_ns()) / 1e9)
        return self._successor().call(parameters_of(text), seconds, scope)

    def _successor(self) -> BoundSlot:
        """Return the slot of the driver that answers now; the parameters are checked already."""
        driver = latest(self._driver)
        if self._moved is None or self._moved[0] is not driver:
            self._moved = driver, driver.bind(replace(self.definition, inputs=EMPTY))
        return self._moved[1]
