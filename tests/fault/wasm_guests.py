"""Writes WASM guests for the fault tests, and calls them from many threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from wasm.conftest import FINE, data, module

from zeno_fast import PluginManager, ZenoError

LIMIT = 60.0  # seconds in which threads have to end on two busy cores
LATE = 2.0  # seconds that a guest may overrun its deadline by on a loaded machine
ANSWER = data(2048, FINE + "\0")
SLOT = "plugin 'hostile'.*slot 'run'"


def doing(body: str, more: str = "", **rest: str) -> str:
    """Write a guest that does something in each slot and answers 1 then."""
    return module(f"{body} (i32.const 2048)", ANSWER + more, **rest)


# For guests that do it only in the slot `run`, and answer with 1 in the other, `fine`.
IF_RUN = "(if (i32.eq (i32.load8_u (local.get $name)) (i32.const 114)) (then {}))"


def doing_in_run(body: str, more: str = "", **rest: str) -> str:
    """Write a guest that does something in the slot `run` alone, and answers 1 in each."""
    return doing(IF_RUN.format(body), more, **rest)


def importing(*functions: str, module: str = "env") -> str:
    """Import functions of two i32 parameters and one result, under their own names."""
    kind = "(param i32 i32) (result i32)"
    return "".join(f'(import "{module}" "{name}" (func ${name} {kind}))' for name in functions)


def expect(
    manager: PluginManager,
    kind: type[ZenoError],
    match: str,
    *,
    slot: str = "run",
    timeout: float | None = None,
) -> ZenoError:
    """Call the plugin `hostile`; fail unless it ends in such an error, which names it."""
    with pytest.raises(kind, match=match) as caught:
        manager.call(slot, timeout=timeout)
    assert type(caught.value) is kind
    assert (caught.value.plugin, caught.value.slot) == ("hostile", slot)
    assert "plugin 'hostile'" in str(caught.value)
    return caught.value


def in_threads(count: int, work: Callable[[int], Any]) -> None:
    """Run a function in threads of their own, begun together; raise what one of them raised."""
    trouble: list[BaseException] = []
    together = threading.Barrier(count)

    def run(number: int) -> None:
        together.wait(LIMIT)
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the test's
            trouble.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)
    assert not [thread for thread in threads if thread.is_alive()]
    if trouble:
        raise trouble[0]
