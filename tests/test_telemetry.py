"""OpenTelemetry: a span for each call, its context in the guest's hands, and metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from wasm.conftest import ALLOC, module

from zeno_fast import PluginManager, SlotError, UsageError
from zeno_fast.telemetry import instrument

# Answers with its envelope's context.
GUEST = """
for request in requests():
    if not lifecycle(request, "work"):
        if "error" in request["parameters"]:
            fail(request, "no")
        else:
            answer(request, request.get("context"))
"""
# Answers with the whole envelope that it was given.
WASM = module(
    """
    (memory.copy (i32.const 9000) (local.get 2) (local.get 3))
    (i32.store16 (i32.add (i32.const 9000) (local.get 3)) (i32.const 0x007d))
    (i32.const 8973)
    """,
    '(data (i32.const 8973) "{\\22success\\22:true,\\22data\\22:    ")',
    alloc=ALLOC,
)


@pytest.fixture
def spans():
    return InMemorySpanExporter()


@pytest.fixture
def tracer_provider(spans):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    yield provider
    provider.shutdown()


def traceparent(span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def test_each_way_of_calling_is_a_span_whose_context_the_guest_sees(
    manager, make_plugin, spans, tracer_provider
):
    manager.load_plugin(make_plugin(GUEST))

    async def from_loop():
        return await manager.call_async("work", {"n": 1})

    def stream():
        with manager.stream("work", {"n": 1}) as found:
            list(found)
        return found.result

    ways = {
        "call": lambda: manager.call("work", {"n": 1}),
        "no parameters": lambda: manager.call("work"),
        "execute_slot": lambda: manager.execute_slot("scripted", "work", {"n": 1}).data,
        "submit": lambda: manager.submit("work", {"n": 1}).result(),
        "call_async": lambda: asyncio.run(from_loop()),
        "stream": stream,
    }
    assert manager.call("work") is None
    with instrument(manager, tracer_provider=tracer_provider):
        for way, call in ways.items():
            spans.clear()
            seen = call()
            (span,) = spans.get_finished_spans()
            assert seen == {"traceparent": traceparent(span)}, way
            assert span.name == "work"
            assert span.attributes["zeno_fast.plugin"] == "scripted"
            assert span.attributes["rpc.method"] == "work"
            assert span.status.status_code is StatusCode.UNSET
        spans.clear()
        seen = list(manager.map("work", [{"n": n} for n in range(5)]))
        (span,) = spans.get_finished_spans()
        assert seen == [{"traceparent": traceparent(span)}] * 5
        assert span.attributes["zeno_fast.calls"] == 5
    spans.clear()
    assert manager.call("work", {"n": 1}) is None
    assert not spans.get_finished_spans()


def test_a_call_is_a_child_of_the_span_around_it_and_carries_its_error(
    manager, make_plugin, spans, tracer_provider
):
    manager.load_plugin(make_plugin(GUEST))
    tracer = tracer_provider.get_tracer("test")
    with instrument(manager, tracer_provider=tracer_provider):
        with tracer.start_as_current_span("outer") as outer, pytest.raises(SlotError):
            manager.call("work", {"error": 1})
        future = manager.submit("work", {"error": 1})
        assert isinstance(future.exception(), SlotError)
    inner = spans.get_finished_spans()[0]
    assert inner.parent.span_id == outer.get_span_context().span_id
    for span in spans.get_finished_spans():
        if span.name == "work":
            assert span.status.status_code is StatusCode.ERROR
            assert "SlotError" in span.status.description
            assert span.events[0].name == "exception"
    assert not trace.get_current_span().get_span_context().is_valid


def test_a_wasm_guest_gets_the_context_in_its_envelope(manager, tmp_path, spans, tracer_provider):
    import wasmtime

    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "plugin.wasm").write_bytes(bytes(wasmtime.wat2wasm(WASM)))
    (folder / "manifest.yaml").write_text(
        "name: whole\nbinary: plugin.wasm\nslots: [{name: whole.run}]\n"
    )
    manager.load_plugin(folder)
    for parameters in ({"n": 1}, {}):
        whole = {"slot_name": "whole.run", "parameters": parameters}
        assert manager.call("whole.run", parameters) == whole
        spans.clear()
        with instrument(manager, tracer_provider=tracer_provider):
            seen = manager.call("whole.run", parameters)
        (span,) = spans.get_finished_spans()
        assert seen == {**whole, "context": {"traceparent": traceparent(span)}}


def test_a_stream_that_is_left_and_plugins_that_come_later_are_traced_too(
    manager, make_plugin, spans, tracer_provider
):
    with instrument(manager, tracer_provider=tracer_provider):
        manager.load_plugin(make_plugin(GUEST))
        with pytest.raises(UsageError, match="instrumented already"):
            instrument(manager)
        stream = manager.stream("work")
        stream.close()
        manager.reload_plugin("scripted")
        manager.call("work")
    assert [span.name for span in spans.get_finished_spans()] == ["work", "work"]


def test_counts_and_percentiles_are_observed(manager, make_plugin):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    manager.load_plugin(make_plugin(GUEST, sidecar="workers: 2"))
    with instrument(manager, meter_provider=provider):
        for _ in range(3):
            manager.call("work")
        with pytest.raises(SlotError):
            manager.call("work", {"error": 1})
        found = {}
        for resource in reader.get_metrics_data().resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        key = metric.name, point.attributes.get("quantile")
                        found[key] = point.value
                        assert point.attributes["zeno_fast.plugin"] == "scripted"
    assert found["zeno_fast.calls", None] == 4
    assert found["zeno_fast.errors", None] == 1
    assert found["zeno_fast.restarts", None] == 0
    assert found["zeno_fast.workers", None] >= 1
    assert found["zeno_fast.breaker_open", None] == 0
    assert found["zeno_fast.memory", None] > 1 << 20
    assert 0 < found["zeno_fast.latency", "p50"] <= found["zeno_fast.latency", "p99"] < 10
    provider.shutdown()


def test_without_the_package_nothing_else_is_missed(run_python):
    ended = run_python(
        """
        import sys
        sys.modules["opentelemetry"] = None
        from zeno_fast import PluginManager
        with PluginManager() as manager:
            print(manager.slots)
        """
    )
    assert ended.stdout == "{}\n", ended.stderr


def test_examples_still_work_while_traced(spans, tracer_provider, no_leaks):
    text = Path(__file__).parents[1] / "examples" / "plugins" / "text"
    with PluginManager() as manager, instrument(manager, tracer_provider=tracer_provider):
        manager.load_plugin(text)
        assert manager.call("text.stats", {"text": "one two"})["words"] == 2
    assert len(spans.get_finished_spans()) == 1
