"""What one call to a WASM slot costs: by payload, from an event loop, with host calls in it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import wasm_guests
from report import measure, show, summary
from wasm_sides import (
    Call,
    bind,
    caller,
    extism,
    json_and_copies,
    only_json,
    open_driver,
    optional,
    public_api,
    pywasm3,
)

from zeno_fast.log import plugin_logger
from zeno_fast.manifest import WasmOptions

SMALL: dict[str, Any] = {"name": "world", "count": 3, "tags": ["a", "b"]}
PAYLOADS = {"small": SMALL, "4KiB": {"text": "x" * 4096}, "64KiB": {"text": "x" * 65536}}
MEBIBYTE = {"text": "x" * (1 << 20)}
HOST_CALLS = (0, 1, 10)  # made by the guest in one call to it

Rows = dict[str, dict[str, float]]
Finding = tuple[dict[str, Any], bool]  # what goes into the file, and whether all answers were right


def echo(rounds: int, calls: int) -> Finding:
    """Compare the ways of calling a guest that answers its parameters."""
    binary = wasm_guests.echo()
    driver = open_driver(binary, WasmOptions(instances=1))
    others, missing = optional(
        {
            "public API": lambda: public_api(binary),
            "Extism": extism,
            "pywasm3": lambda: pywasm3(binary),
        }
    )
    results: dict[str, Any] = {"not_installed": missing} if missing else {}
    correct = driver.status()["call"] == "direct"
    for size, payload in PAYLOADS.items():
        print(f"- {size}")
        sides = {"orjson alone": only_json(payload), "zeno_fast": caller(bind(driver)), **others}
        rows, right = compare(sides, payload, rounds, calls)
        correct = correct and right
        faster = {name: ratio(rows, name, "zeno_fast") for name in others}
        print(
            "zeno_fast is", ", ".join(f"{n:.1f} times faster than {x}" for x, n in faster.items())
        )
        results[size] = {
            **rows,
            "times_of_orjson_alone": ratio(rows, "zeno_fast", "orjson alone"),
            "times_faster_than": faster,
        }
    for name in missing:
        print(f"{name} is not installed: pip install -e '.[bench]'")
    driver.close()
    return results, correct


def large(rounds: int, calls: int) -> Finding:
    """Call with 1 MiB of text there and back, beside its JSON and a copy each way."""
    driver = open_driver(wasm_guests.echo(), WasmOptions(instances=1))
    sides = {
        "orjson and two copies": json_and_copies(MEBIBYTE),
        "orjson alone": only_json(MEBIBYTE),
        "zeno_fast": caller(bind(driver)),
    }
    rows, correct = compare(sides, MEBIBYTE, rounds, max(calls // 20, 2))
    driver.close()
    times = ratio(rows, "zeno_fast", "orjson and two copies")
    return {**rows, "times_of_orjson_and_two_copies": times}, correct


def fresh(rounds: int, calls: int) -> Finding:
    """Give each call an instance of its own, of a module that is compiled already."""
    binary = wasm_guests.echo()
    one = WasmOptions(instances=1)
    drivers = [open_driver(binary, one), open_driver(binary, WasmOptions(instances=1, fresh=True))]
    kept, single = (caller(bind(driver)) for driver in drivers)
    sides = {"zeno_fast, kept": kept, "zeno_fast": single}
    sides["public API"] = public_api(binary, fresh=True)
    sides |= optional({"Extism": lambda: extism(fresh=True)})[0]
    rows, correct = compare(sides, SMALL, rounds, max(calls // 5, 2))
    for driver in drivers:
        driver.close()
    faster = {x: ratio(rows, x, "zeno_fast") for x in rows if not x.startswith("zeno_fast")}
    return {**rows, "times_faster_than": faster}, correct


def host_calls(rounds: int, calls: int) -> Finding:
    """Find what each host call that the guest makes adds to a call: the difference over many."""
    driver = open_driver(wasm_guests.work(), WasmOptions(instances=1), read_scope=True)
    asking = {
        "host_log, not logged": caller(bind(driver, "log")),
        "host_scope_get": caller(bind(driver, "scope"), {"user": "Ada"}),
    }
    logger = plugin_logger("bench")
    correct = _count_records(logger, asking["host_log, not logged"], 10) == 10
    sides = {}
    for name, call in asking.items():
        for count in HOST_CALLS:
            parameters = {"n": count}
            correct = correct and call(parameters) == parameters
            sides[f"{name}, {count}"] = lambda call=call, sent=parameters: call(sent)
    logger.setLevel(logging.INFO)
    rows = _rows(sides, rounds, calls)
    logger.setLevel(logging.NOTSET)
    show(rows, "host_log, not logged, 0")
    added = {}
    for name in asking:
        none, one, ten = (rows[f"{name}, {count}"]["median_us"] for count in HOST_CALLS)
        added[name] = {
            "first_us": round(one - none, 3),
            "each_of_10_us": round((ten - none) / 10, 3),
        }
        print(f"{name}: the first adds {one - none:.2f} us, each of ten {(ten - none) / 10:.2f} us")
    driver.close()
    return {**rows, "added": added}, correct


def from_a_loop(rounds: int, calls: int) -> Finding:
    """Await calls in an asyncio loop, one after the other, beside what is done without us."""
    driver = open_driver(wasm_guests.echo(), WasmOptions(instances=1))
    slot = bind(driver)
    call = caller(slot)
    ways: dict[str, Callable[[], Awaitable[Any]]] = {
        "to_thread(call)": lambda: asyncio.to_thread(call, SMALL),
        "call_async": lambda: slot.call_async(SMALL, None, None),
    }
    samples: dict[str, list[float]] = {name: [] for name in ("call, not awaited", *ways)}

    async def run() -> bool:
        correct = bool(call(SMALL) == SMALL)
        for _ in range(rounds):
            once = measure({"call": lambda: call(SMALL)}, rounds=1, calls=calls)
            samples["call, not awaited"] += once["call"]
            for name, begin in ways.items():
                for _ in range(calls):
                    began = time.perf_counter()
                    data = await begin()
                    samples[name].append(time.perf_counter() - began)
                    correct = correct and bool(data == SMALL)
        return correct

    correct = asyncio.run(run())
    driver.close()
    rows = {name: summary(taken) for name, taken in samples.items()}
    show(rows, "call, not awaited")
    return {**rows}, correct


def compare(
    sides: dict[str, Call], payload: dict[str, Any], rounds: int, calls: int
) -> tuple[Rows, bool]:
    """Call all sides with the same payload, in turns; the first one is the baseline."""
    correct = True
    for name, call in sides.items():
        if call(payload) != payload:
            correct = False
            print(f"{name} answers something else")
    rows = _rows(
        {name: (lambda call=call: call(payload)) for name, call in sides.items()}, rounds, calls
    )
    show(rows, next(iter(sides)))
    return rows, correct


def ratio(rows: Rows, slow: str, fast: str) -> float:
    """Return how many times the one median is of the other."""
    return round(rows[slow]["median_us"] / rows[fast]["median_us"], 2)


def _rows(sides: dict[str, Any], rounds: int, calls: int) -> Rows:
    return {
        name: summary(taken) for name, taken in measure(sides, rounds=rounds, calls=calls).items()
    }


def _count_records(logger: logging.Logger, call: Call, count: int) -> int:
    """Count what a guest that logs so often brings to the log where its level is logged."""
    seen = []

    class Counter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    handler = Counter()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    call({"n": count})
    logger.setLevel(logging.NOTSET)
    logger.removeHandler(handler)
    logger.propagate = propagate
    return len(seen)
