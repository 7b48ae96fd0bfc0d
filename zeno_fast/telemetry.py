"""OpenTelemetry for a manager: a span for each call, and metrics from its status.

Needs the package `opentelemetry-api` (the extra `otel`). Nothing of it is paid for before
`instrument` is called, nor after the result is closed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any

from opentelemetry import metrics, propagate, trace
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider

from zeno_fast._envelope import set_context_provider
from zeno_fast.driver import BoundSlot, Parameters, Scope
from zeno_fast.errors import UsageError
from zeno_fast.manager import PluginManager
from zeno_fast.plugin import SlotDefinition
from zeno_fast.stream import Stream

SCOPE = "zeno_fast"
# What the guest of the call that is being made gets as its envelope's `context`.
_carried: ContextVar[dict[str, str] | None] = ContextVar("zeno_fast.telemetry", default=None)
_instrumented: set[int] = set()

COUNTERS = {
    "calls": "Calls that have ended.",
    "errors": "Calls that have failed.",
    "timeouts": "Calls that have failed by their time limit.",
    "restarts": "Processes started in place of ones that ended by themselves.",
}
GAUGES = {
    "in_flight": "Calls that a guest has and has not answered.",
    "queued": "Calls that wait to be sent.",
    "memory": "Resident memory of the processes, in bytes.",
}
QUANTILES = ("p50", "p90", "p99")


def instrument(
    manager: PluginManager,
    *,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
) -> Instrumentation:
    """Trace a manager's calls and observe its counts until the result is closed.

    Each call is a client span, each `map` and each `stream` one as a whole; its W3C trace context
    reaches the guest as the envelope's `context`. Latencies are observed as percentiles of all
    calls since a plugin was loaded: they are counted in the plugin's own histograms, which costs a
    call some nanoseconds, where recording one in OpenTelemetry would cost microseconds.

    Args:
        tracer_provider: The global one where it is None.
        meter_provider: The same.

    Raises UsageError where the manager is instrumented already.
    """
    return Instrumentation(manager, tracer_provider, meter_provider)


class Instrumentation:
    """What `instrument` has put in place, until it is closed; see there."""

    def __init__(
        self,
        manager: PluginManager,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
    ) -> None:
        if id(manager) in _instrumented:
            raise UsageError("the plugin manager is instrumented already")
        self._manager = manager
        self._closed = False
        tracer = trace.get_tracer(SCOPE, tracer_provider=tracer_provider)
        self._observe(metrics.get_meter(SCOPE, meter_provider=meter_provider))
        _instrumented.add(id(manager))
        set_context_provider(_carried.get)
        manager.wrap_slots(lambda slot: TracedSlot(slot, tracer))

    def close(self) -> None:
        """Trace and observe no more. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._manager.wrap_slots(None)
        _instrumented.discard(id(self._manager))
        if not _instrumented:
            set_context_provider(None)

    def __enter__(self) -> Instrumentation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _observe(self, meter: metrics.Meter) -> None:
        for name, description in COUNTERS.items():
            meter.create_observable_counter(
                f"zeno_fast.{name}", [self._look(name)], description=description
            )
        for name, description in GAUGES.items():
            unit = "By" if name == "memory" else ""
            meter.create_observable_gauge(
                f"zeno_fast.{name}", [self._look(name)], unit=unit, description=description
            )
        meter.create_observable_gauge(
            "zeno_fast.workers", [self._look("workers", len)], description="Processes that run."
        )
        meter.create_observable_gauge(
            "zeno_fast.breaker_open",
            [self._look("breaker", lambda breaker: int(breaker["state"] != "closed"))],
            description="1 while a plugin is refused for its failures.",
        )
        meter.create_observable_gauge(
            "zeno_fast.latency", [self._latencies], unit="s", description="Percentiles of calls."
        )

    def _plugins(self) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self._closed:
            yield from self._manager.status()["plugins"].items()

    def _look(
        self, key: str, value: Callable[[Any], int] = int
    ) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterator[Observation]:
            for name, plugin in self._plugins():
                if key in plugin:
                    yield Observation(value(plugin[key]), {"zeno_fast.plugin": name})

        return observe

    def _latencies(self, _: CallbackOptions) -> Iterator[Observation]:
        for name, plugin in self._plugins():
            for quantile in QUANTILES if plugin.get("latency") else ():
                attributes = {"zeno_fast.plugin": name, "quantile": quantile}
                yield Observation(plugin["latency"][quantile], attributes)


@contextlib.contextmanager
def _carry(span: Span) -> Iterator[None]:
    """Have what is sent within go with the context of a span."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier, trace.set_span_in_context(span))
    token = _carried.set(carrier or None)
    try:
        yield
    finally:
        _carried.reset(token)


def _end(span: Span, error: BaseException | None) -> None:
    if error is not None:
        span.record_exception(error)
        span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
    span.end()


class TracedSlot:
    """A slot whose calls are spans; otherwise the slot that it wraps."""

    def __init__(self, slot: BoundSlot, tracer: Tracer) -> None:
        self._slot = slot
        self._tracer = tracer

    @property
    def definition(self) -> SlotDefinition:
        """The slot's definition."""
        return self._slot.definition

    @property
    def wrapped(self) -> BoundSlot:
        """The slot as it was."""
        return self._slot

    def _start(self) -> Span:
        definition = self._slot.definition
        return self._tracer.start_span(
            definition.name,
            kind=SpanKind.CLIENT,
            attributes={
                "rpc.system": "zeno_fast",
                "rpc.method": definition.name,
                "zeno_fast.plugin": definition.plugin,
            },
        )

    @contextlib.contextmanager
    def _span(self) -> Iterator[None]:
        span = self._start()
        try:
            current = trace.use_span(span, record_exception=False, set_status_on_exception=False)
            with current, _carry(span):
                yield
        except BaseException as error:
            _end(span, error)
            raise
        _end(span, None)

    def call(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Any:
        """Call the slot within a span."""
        with self._span():
            return self._slot.call(parameters, timeout, scope)

    def submit(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Future[Any]:
        """Start the call; its span ends with it."""
        span = self._start()
        with _carry(span):
            future = self._slot.submit(parameters, timeout, scope)

        def end(future: Future[Any]) -> None:
            if future.cancelled():
                span.set_attribute("zeno_fast.cancelled", True)
            _end(span, None if future.cancelled() else future.exception())

        future.add_done_callback(end)
        return future

    def map(
        self, many: Iterable[Parameters], timeout: float | None, scope: Scope | None
    ) -> Iterator[Any]:
        """Call once for each of `many` within one span."""
        span = self._start()
        count = 0
        failure: BaseException | None = None
        answers = self._slot.map(many, timeout, scope)
        try:
            while True:
                with _carry(span):
                    try:
                        data = next(answers)
                    except StopIteration:
                        return
                count += 1
                yield data
        except GeneratorExit:
            raise
        except BaseException as error:
            failure = error
            raise
        finally:
            close = getattr(answers, "close", None)
            if close is not None:
                close()
            span.set_attribute("zeno_fast.calls", count)
            _end(span, failure)

    def stream(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Stream:
        """Return the stream of a call, whose span ends with it."""
        span = self._start()
        with _carry(span):
            return TracedStream(self._slot.stream(parameters, timeout, scope), span)

    async def call_async(
        self, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Any:
        """Call the slot from a running event loop within a span."""
        with self._span():
            return await self._slot.call_async(parameters, timeout, scope)


class TracedStream(Stream):
    """A stream whose span ends when it does."""

    def __init__(self, stream: Stream, span: Span) -> None:
        super().__init__(stream.slot)
        self._stream = stream
        self._span: Span | None = span

    @property
    def result(self) -> Any:
        """The data of the final answer; see `Stream.result`."""
        return self._stream.result

    def __next__(self) -> Any:
        try:
            return next(self._stream)
        except BaseException as error:
            self._end_span(None if isinstance(error, StopIteration) else error)
            raise

    async def __anext__(self) -> Any:
        try:
            return await anext(self._stream)
        except BaseException as error:
            self._end_span(None if isinstance(error, StopAsyncIteration) else error)
            raise

    def close(self) -> None:
        """Give the call up if it has not ended."""
        self._stream.close()
        self._end_span(None)

    def _end_span(self, error: BaseException | None) -> None:
        span, self._span = self._span, None
        if span is not None:
            _end(span, error)

    def __del__(self) -> None:
        self._end_span(None)
