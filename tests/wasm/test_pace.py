"""Which calls are made in an event loop's own thread, and what becomes of the loop meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import wasmtime

from zeno_fast import PluginManager
from zeno_fast.errors import InvalidParameters, PluginUnavailable, SlotError
from zeno_fast.host.functions import HostFunctions
from zeno_fast.plugin import InputDefinition
from zeno_fast.wasm import pace, ticks
from zeno_fast.wasm.pace import LONG_NS, MOST_PROOF, PROOF, SHORT_NS, TURNS, Pace
from zeno_fast.wasm.slot import MOST_IN_LOOP, WasmSlot

from .conftest import ECHO, FINE, Load, Plugin, answering, data, module

SHORT, MEDIUM, LONG = SHORT_NS - 1, SHORT_NS, LONG_NS + 1

# -- Pace by itself ---------------------------------------------------------------------------


def proof_of(learnt: Pace) -> int:
    """Return how many short calls in a row it takes to be believed."""
    for count in range(2 * MOST_PROOF):
        if learnt.is_short:
            return count
        learnt.note(SHORT, False)
    raise AssertionError("never believed")


def test_three_short_calls_in_a_row_are_believed() -> None:
    assert proof_of(Pace(None)) == PROOF == 3


@pytest.mark.parametrize("took", [MEDIUM, LONG, 10**12])
@pytest.mark.parametrize("after", [0, 1, 2, 3, 100])
def test_one_call_that_is_not_short_begins_the_count_anew(took: int, after: int) -> None:
    learnt = Pace(None)
    for _ in range(after):
        learnt.note(SHORT, False)
    learnt.note(took, False)
    assert not learnt.is_short
    assert proof_of(learnt) == PROOF


def test_a_call_that_kept_the_loop_makes_the_next_proof_longer() -> None:
    learnt = Pace(None)
    proofs = []
    for _ in range(10):
        proofs.append(proof_of(learnt))
        learnt.note(LONG, True)
    assert proofs[:6] == [3, 12, 48, 192, 768, 3072]
    assert set(proofs[6:]) == {MOST_PROOF}


def test_a_call_that_is_only_a_little_too_long_costs_no_trust() -> None:
    learnt = Pace(None)
    for _ in range(10):
        assert proof_of(learnt) == PROOF
        learnt.note(LONG_NS, True)


@pytest.mark.parametrize("blocking", [True, False])
def test_what_a_slot_says_of_itself_is_not_learnt(blocking: bool) -> None:
    told = Pace(blocking)
    assert told.is_short is not blocking
    for took in (SHORT, SHORT, SHORT, SHORT, LONG, LONG, SHORT):
        told.note(took, True)
        assert told.is_short is not blocking


def test_a_turn_is_due_after_as_many_calls_again_and_again() -> None:
    learnt = Pace(None)
    due = [learnt.turn_is_due() for _ in range(5 * TURNS)]
    assert [number for number, is_due in enumerate(due, 1) if is_due] == [
        TURNS * n for n in range(1, 6)
    ]


# -- call_async -------------------------------------------------------------------------------

ASK = '(import "env" "host_file_read" (func $ask (param i32 i32) (result i32)))'
IF_NAMED = """
  (if (i32.eq (i32.load8_u (local.get $name)) (i32.const {letter})) (then {body}))"""
# Its slots: `ask` calls the host before it answers 1, `refuse` refuses, `echo` echoes.
MANY = module(
    IF_NAMED.format(
        letter=ord("a"),
        body="(drop (call $ask (i32.const 0) (i32.const 0)))(return (i32.const 2048))",
    )
    + IF_NAMED.format(letter=ord("r"), body="(return (i32.const 3072))")
    + IF_NAMED.format(letter=ord("f"), body="(return (i32.const 2048))")
    + "(i32.const 2048)",
    data(2048, FINE + "\0") + data(3072, '{"success":false,"error":"no"}\0'),
    imports=ASK,
)


class Host(HostFunctions):
    """Notes which thread a guest asks in, and does `action` meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []
        self.action: Callable[[], Any] = lambda: None

    def call(self, *arguments: Any) -> Any:
        self.threads.append(threading.get_ident())
        self.action()
        return {}


class Held:
    """Holds a guest in its call until `open` is set."""

    def __init__(self, host: Host) -> None:
        self.open = threading.Event()
        self.inside = threading.Semaphore(0)
        host.action = self

    def __call__(self) -> None:
        self.inside.release()
        assert self.open.wait(30)


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take calls for short that a busy machine has made long."""
    seem(monkeypatch, 10**10)


def seem(monkeypatch: pytest.MonkeyPatch, ns: int) -> None:
    """Have calls seem short below so many nanoseconds, and long above."""
    monkeypatch.setattr(pace, "SHORT_NS", ns)
    monkeypatch.setattr(pace, "LONG_NS", ns)


@pytest.fixture(autouse=True)
def parked_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the public API's clock end as soon as it is idle: every test waits for its thread."""
    monkeypatch.setattr(ticks, "PARK_AFTER_NS", 5_000_000)


@pytest.fixture
def many(patient: None, load: Load, host: Host) -> Plugin:
    return load(MANY, host, instances=2)


async def ask(slot: WasmSlot, host: Host, parameters: Any = None) -> str:
    """Call a slot and tell where it was called."""
    host.threads.clear()
    assert await slot.call_async(parameters, None, None) == 1
    (thread,) = host.threads
    return "loop" if thread == threading.get_ident() else "thread"


async def learn(slot: WasmSlot, host: Host) -> None:
    """Call a slot until it is called in the loop."""
    for _ in range(10):
        if await ask(slot, host) == "loop":
            return
    raise AssertionError("never called in the loop")


def test_calls_that_are_short_move_into_the_loop_after_three(many: Plugin, host: Host) -> None:
    slot = many.slot("ask")

    async def work() -> list[str]:
        return [await ask(slot, host) for _ in range(10)]

    assert asyncio.run(work()) == ["thread"] * 3 + ["loop"] * 7


def test_what_was_learnt_holds_in_the_next_loop_and_for_its_slot_alone(
    many: Plugin, host: Host
) -> None:
    slot, other = many.slot("ask"), many.slot("ask again")
    asyncio.run(learn(slot, host))
    assert asyncio.run(ask(slot, host)) == "loop"
    assert asyncio.run(ask(other, host)) == "thread"


def test_submitted_calls_are_learnt_from_as_well(many: Plugin, host: Host) -> None:
    slot = many.slot("ask")
    for _ in range(3):
        assert slot.submit(None, None, None).result(20) == 1
    assert asyncio.run(ask(slot, host)) == "loop"


def test_a_slot_that_gets_long_moves_back_and_needs_more_proof(
    many: Plugin, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = many.slot("ask")

    async def work() -> list[str]:
        await learn(slot, host)
        with monkeypatch.context() as patch:
            seem(patch, 0)
            found = [await ask(slot, host) for _ in range(2)]
        return found + [await ask(slot, host) for _ in range(20)]

    assert asyncio.run(work()) == ["loop", "thread"] + ["thread"] * 12 + ["loop"] * 8


def test_a_slot_that_blocks_is_always_called_in_a_thread(many: Plugin, host: Host) -> None:
    slot = many.slot("ask", blocking=True)

    async def work() -> set[str]:
        return {await ask(slot, host) for _ in range(20)}

    assert asyncio.run(work()) == {"thread"}


def test_a_slot_that_does_not_block_is_always_called_in_the_loop(
    many: Plugin, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    slot = many.slot("ask", blocking=False)
    seem(monkeypatch, 0)

    async def work() -> list[str]:
        return [await ask(slot, host) for _ in range(100)]

    assert set(asyncio.run(work())) == {"loop"}


def test_large_parameters_go_to_a_thread(many: Plugin, host: Host) -> None:
    slot = many.slot("ask")

    async def work() -> list[str]:
        await learn(slot, host)
        most = MOST_IN_LOOP - len('{"x":""}')
        sizes = (most, most + 1, 10 * most, most)
        return [await ask(slot, host, {"x": "x" * size}) for size in sizes]

    assert asyncio.run(work()) == ["loop", "thread", "thread", "loop"]


@pytest.mark.parametrize("blocking", [None, False])
def test_a_busy_pool_is_waited_for_in_a_thread(
    patient: None, load: Load, host: Host, blocking: bool | None
) -> None:
    plugin = load(MANY, host, instances=1)
    slot, fine = plugin.slot("ask"), plugin.slot("fine", blocking=blocking)

    async def work() -> None:
        for _ in range(5):
            assert await fine.call_async(None, None, None) == 1
        held = Held(host)
        first = slot.submit(None, None, None)
        assert held.inside.acquire(timeout=20)
        waiting = [asyncio.create_task(fine.call_async(None, None, None)) for _ in range(4)]
        for _ in range(10):
            await asyncio.sleep(0.001)  # the loop goes on
        assert not any(task.done() for task in waiting)
        held.open.set()
        assert await asyncio.gather(*waiting) == [1] * 4
        assert first.result(20) == 1

    asyncio.run(work())


def test_an_instance_that_is_taken_at_others_turn_does_not_keep_the_loop(
    patient: None, load: Load, host: Host
) -> None:
    plugin = load(MANY, host, instances=1)
    slot, fine = plugin.slot("ask"), plugin.slot("fine", blocking=False)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        held = Held(host)
        calls = []

        async def take() -> None:
            calls.append(slot.submit(None, 20.0, None))
            assert held.inside.acquire(timeout=20)
            loop.call_later(0.005, held.open.set)

        # One of these gives way to the other tasks, of which one takes the only instance then.
        for _ in range(TURNS):
            held.open.clear()
            task = asyncio.create_task(take())
            assert await fine.call_async(None, 3.0, None) == 1
            await task
            assert await asyncio.wrap_future(calls.pop()) == 1

    asyncio.run(work())


class Ticker:
    """A task that counts how often it gets its turn, and the longest time without one."""

    def __init__(self) -> None:
        self.count = 0

    async def run(self) -> None:
        while True:
            self.count += 1
            await asyncio.sleep(0)

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self.run())
        await asyncio.sleep(0)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@pytest.mark.parametrize("blocking", [None, False])
def test_other_tasks_get_their_turn_during_ten_thousand_short_calls(
    patient: None, load: Load, blocking: bool | None
) -> None:
    slot = load(answering(FINE), instances=1).slot("fine", blocking=blocking)

    async def work() -> list[int]:
        for _ in range(5):
            await slot.call_async(None, None, None)
        counts = []
        async with Ticker() as ticker:
            for _ in range(10_000):
                assert await slot.call_async(None, None, None) == 1
                counts.append(ticker.count)
        return counts

    counts = asyncio.run(work())
    turns = counts[-1] - counts[0]
    assert turns >= 10_000 // TURNS - 1
    assert turns < 10_000 / 10  # most of them cost no turn
    gaps = [later - sooner for sooner, later in zip(counts, counts[TURNS:], strict=False)]
    assert min(gaps) >= 1


def test_tasks_of_many_slots_share_the_loop(patient: None, load: Load) -> None:
    plugin = load(answering(FINE), instances=1)
    slots = [plugin.slot(f"fine {n}", blocking=False) for n in range(4)]
    order: list[int] = []

    async def call(number: int) -> None:
        for _ in range(10 * TURNS):
            assert await slots[number].call_async(None, None, None) == 1
            order.append(number)

    async def work() -> None:
        await asyncio.gather(*(call(number) for number in range(4)))

    asyncio.run(work())
    # Nobody is through before everybody has begun.
    begun = [order.index(number) for number in range(4)]
    assert max(begun) < 4 * TURNS
    assert len(order) == 40 * TURNS


@pytest.mark.parametrize("learnt", [False, True])
def test_a_slot_that_takes_long_keeps_the_loop_for_one_call_at_most(
    load: Load, host: Host, patient: None, monkeypatch: pytest.MonkeyPatch, learnt: bool
) -> None:
    plugin = load(MANY, host, instances=2)
    slot = plugin.slot("ask")

    async def work() -> list[str]:
        if learnt:
            await learn(slot, host)
        # A busy machine's short calls are not what this is about.
        seem(monkeypatch, 20_000_000)
        host.action = lambda: time.sleep(0.05)
        found = []
        async with Ticker() as ticker:
            for _ in range(6):
                before = ticker.count
                where = await ask(slot, host)
                # In a thread it leaves the loop thousands of turns, and in the loop hardly any.
                found.append((where, ticker.count - before > 20))
        return found

    first = ("loop", False) if learnt else ("thread", True)
    assert asyncio.run(work()) == [first, *[("thread", True)] * 5]


# -- what a caller sees is the same either way ------------------------------------------------


@pytest.fixture(params=["loop", "thread"])
def blocking(request: pytest.FixtureRequest) -> bool:
    """Whether the slot says that its calls are made in a thread."""
    return bool(request.param == "thread")


def test_refused_parameters_are_the_same_error_as_in_a_call(
    many: Plugin, host: Host, blocking: bool
) -> None:
    slot = many.slot(
        "ask", blocking=blocking, inputs={"n": InputDefinition("n", "int", required=True)}
    )
    for parameters in ({}, {"n": "x"}, {"n": object()}, None):
        with pytest.raises(InvalidParameters) as called:
            slot.call(parameters, None, None)
        with pytest.raises(InvalidParameters) as awaited:
            asyncio.run(slot.call_async(parameters, None, None))
        assert str(awaited.value) == str(called.value)
    assert host.threads == []


def test_a_refusal_of_the_guest_is_the_same_error_as_in_a_call(
    many: Plugin, blocking: bool
) -> None:
    slot = many.slot("refuse", blocking=blocking)
    with pytest.raises(SlotError) as called:
        slot.call(None, None, None)
    for _ in range(5):
        with pytest.raises(SlotError) as awaited:
            asyncio.run(slot.call_async(None, None, None))
        assert (str(awaited.value), awaited.value.data) == (str(called.value), called.value.data)


def test_refusals_are_learnt_from_like_answers(many: Plugin) -> None:
    slot = many.slot("refuse")
    used = []
    executor = many.driver.executor
    many.driver.executor = lambda: (used.append(1), executor())[1]  # type: ignore[method-assign]

    async def work() -> None:
        for _ in range(10):
            with pytest.raises(SlotError):
                await slot.call_async(None, None, None)

    asyncio.run(work())
    assert len(used) == 3


def test_a_scope_reaches_the_guest_either_way(load: Load, blocking: bool, patient: None) -> None:
    class Scopes(HostFunctions):
        def call(self, plugin: Any, parameters: Any, scope: Any, host_call: Any) -> Any:
            scope["seen"] = scope.get("seen", 0) + 1
            return {}

    slot = load(MANY, Scopes()).slot("ask", blocking=blocking)
    scope: dict[str, Any] = {}

    async def work() -> None:
        for _ in range(5):
            await slot.call_async(None, None, scope)

    asyncio.run(work())
    assert scope == {"seen": 5}


def test_a_closed_plugin_refuses_either_way(many: Plugin, blocking: bool) -> None:
    slot = many.slot("fine", blocking=blocking)
    assert asyncio.run(slot.call_async(None, None, None)) == 1
    many.driver.close()
    with pytest.raises(PluginUnavailable):
        asyncio.run(slot.call_async(None, None, None))


def test_echoes_are_their_own_whether_in_the_loop_or_not(load: Load, blocking: bool) -> None:
    slot = load(ECHO, instances=2).slot(blocking=blocking)

    async def work() -> list[Any]:
        return await asyncio.gather(
            *(slot.call_async({"n": n, "x": "x" * (n % 700)}, None, None) for n in range(300))
        )

    assert asyncio.run(work()) == [{"n": n, "x": "x" * (n % 700)} for n in range(300)]


def test_a_call_that_is_cancelled_at_its_turn_is_never_made(many: Plugin, host: Host) -> None:
    slot = many.slot("ask", blocking=False)

    async def work() -> None:
        made = 0
        cancelled = 0
        for _ in range(4 * TURNS):
            task = asyncio.create_task(slot.call_async(None, None, None))
            await asyncio.sleep(0)  # it begins: and is through, or gives others their turn
            task.cancel()
            try:
                await task
                made += 1
            except asyncio.CancelledError:
                cancelled += 1
            assert len(host.threads) == made
        assert cancelled == 4
        assert await slot.call_async(None, None, None) == 1

    asyncio.run(work())
    status = many.driver.status()
    assert (status["busy"], status["waiting"], status["broken"]) == (0, 0, 0)


def test_a_call_that_is_cancelled_before_its_thread_began_it_is_never_made(
    load: Load, host: Host, patient: None
) -> None:
    slot = load(MANY, host, instances=1).slot("ask", blocking=True)
    held = Held(host)

    async def work() -> None:
        first = asyncio.create_task(slot.call_async(None, None, None))
        while not held.inside.acquire(blocking=False):
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(slot.call_async(None, None, None)) for _ in range(5)]
        await asyncio.sleep(0.01)
        for task in others:
            task.cancel()
        found = await asyncio.gather(*others, return_exceptions=True)
        assert all(isinstance(error, asyncio.CancelledError) for error in found)
        held.open.set()
        assert await first == 1
        assert await slot.call_async(None, None, None) == 1

    asyncio.run(work())
    assert len(host.threads) == 2


# -- who says it ------------------------------------------------------------------------------


@pytest.fixture
def with_slots(
    way: str, no_leaks: None, patient: None, tmp_path: Path
) -> Iterator[Callable[..., tuple[PluginManager, list[int]]]]:
    """Load a plugin whose manifest, or whose guest itself, lists a slot `ask`."""
    managers = []

    def load(
        manifest: dict[str, Any] | None, guest: dict[str, Any] | None
    ) -> tuple[PluginManager, list[int]]:
        more = data(2048, FINE + "\0")
        if guest is not None:
            more += data(4096, json.dumps([{"name": "ask", **guest}]) + "\0")
            more += '(func (export "plugin_register_slots") (result i32) (i32.const 4096))'
        code = module(
            "(drop (call $ask (i32.const 3000) (i32.const 1)))(i32.const 2048)",
            more + data(3000, "a"),
            imports=ASK,
        )
        (tmp_path / "plugin.wasm").write_bytes(bytes(wasmtime.wat2wasm(code)))
        options: dict[str, Any] = {
            "name": "test",
            "binary": "plugin.wasm",
            "permissions": {"filesystem": ["*"]},
            "wasm": {"instances": 1},
        }
        if manifest is not None:
            options["slots"] = [{"name": "ask", **manifest}]
        (tmp_path / "manifest.yaml").write_text(json.dumps(options), encoding="utf-8")
        manager = PluginManager()
        managers.append(manager)
        threads: list[int] = []
        manager.set_host_callback("file_read", lambda _: threads.append(threading.get_ident()))
        manager.load_plugin(tmp_path)
        return manager, threads

    yield load
    for manager in managers:
        manager.close()


@pytest.mark.parametrize(
    ("manifest", "guest", "expected"),
    [
        ({"blocking": True}, None, "tttttttttt"),
        ({"blocking": False}, None, "llllllllll"),
        ({}, None, "tttttttttt"),
        (None, {"blocking": True}, "tttttttttt"),
        (None, {"blocking": False}, "llllllllll"),
        (None, {}, "tttttttttt"),
        # What the manifest declares goes before what the guest lists.
        ({"blocking": False}, {"blocking": True}, "llllllllll"),
        ({"blocking": True}, {"blocking": False}, "tttttttttt"),
        ({}, {"blocking": True}, "tttttttttt"),
    ],
)
# Where nothing is said a thread is taken, as the plugin is granted what calls back.
def test_a_manifest_and_a_guest_say_whether_a_slot_blocks(
    with_slots: Callable[..., Any], manifest: Any, guest: Any, expected: str
) -> None:
    manager, threads = with_slots(manifest, guest)

    async def work() -> None:
        for _ in range(10):
            assert await manager.call_async("ask") == 1

    asyncio.run(work())
    own = threading.get_ident()
    assert "".join("l" if thread == own else "t" for thread in threads) == expected
