"""The same behaviour from every kind of guest, in every language, by either style of answering."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from guests.build import build

from zeno_fast import (
    PluginCrashed,
    PluginManager,
    Response,
    SlotError,
    SlotNotFound,
    SlotTimeout,
)

WASM = ("c-wasm", "go-wasm", "rust-wasm", "rust-wasm-leaky", "assemblyscript")
SIDECARS = ("python", "python-no-ids", "node", "php", "go", "go-ring", "c", "c-no-ids", "c-ring")
MIB = 1024 * 1024


# WASM guests once more through the public API of the `wasmtime` package.
PUBLIC = tuple(f"{name} public" for name in WASM)


@pytest.fixture(scope="module", params=WASM + PUBLIC + SIDECARS)
def guest(request, build_guest, tmp_path_factory) -> Iterator[Path]:
    name, _, way = request.param.partition(" ")
    with pytest.MonkeyPatch.context() as patch:
        if way:
            patch.setenv("ZENO_FAST_WASM", way)
        yield build_guest(name, tmp_path_factory.mktemp("guests"))


@pytest.fixture
def name(guest) -> str:
    return guest.name


@pytest.fixture
def loaded(manager, guest) -> PluginManager:
    manager.load_plugin(guest)
    return manager


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 2**53, 1.5, -0.25, "", "text", [], {}, [1, [2, [3]]],
        {"a": {"b": [None, {"c": "d"}]}},
    ],
    ids=repr,
)  # fmt: skip
def test_every_json_type_comes_back_as_it_was(loaded, name, value):
    assert loaded.call(f"{name}.echo", {"value": value}) == value


@pytest.mark.parametrize(
    "text",
    [
        "Zürich", "日本語", "𝄞 and 🎉", "\u2028\u2029", "a\x00b", "\x01\x1f\x7f", "\"\\/\b\f\n\r\t",
        "\ufeffbom", "é" * 4096, "}\n{", '{"success":true}',
    ],
    ids=ascii,
)  # fmt: skip
def test_unicode_comes_back_as_it_was(loaded, name, text):
    assert loaded.call(f"{name}.echo", {"value": text}) == text
    assert loaded.call(f"{name}.echo", {"value": {text: 1}}) == {text: 1}
    assert loaded.call(f"{name}.size", {"text": text}) == len(text.encode())


@pytest.mark.parametrize(
    "nbytes", [0, 1, 4095, 4096, 4097, 65535, 65536, 65537, MIB, 16 * MIB], ids=str
)
def test_b5_any_size_comes_back_whole(loaded, name, nbytes):
    text = "x" * nbytes
    assert loaded.call(f"{name}.echo", {"value": text}) == text


def test_a_slot_that_was_not_listed_is_not_found(loaded, name):
    with pytest.raises(SlotNotFound, match=f"did you mean '{name}.echo'"):
        loaded.call(f"{name}.ecko")
    with pytest.raises(SlotNotFound):
        loaded.execute_slot(name, f"{name}.nowhere")


def test_a_slot_that_the_guest_does_not_know_is_its_error(manager, guest, name, tmp_path):
    folder = build(name, tmp_path)
    with (folder / "manifest.yaml").open("a") as manifest:
        manifest.write(f"\nslots:\n  - name: {name}.nowhere\n")
    manager.load_plugin(folder)
    with pytest.raises(SlotError, match="unknown slot"):
        manager.call(f"{name}.nowhere")
    assert manager.call(f"{name}.echo", {"value": 1}) == 1


def test_a_guests_error_is_a_slot_error_with_its_text(loaded, name):
    with pytest.raises(SlotError, match="not today") as caught:
        loaded.call(f"{name}.fail", {"message": "not today"})
    assert (caught.value.plugin, caught.value.slot) == (name, f"{name}.fail")
    response = loaded.execute_slot(name, f"{name}.fail", {"message": "not today"})
    assert response == Response(False, None, "not today")
    assert loaded.execute_slot(name, f"{name}.echo", {"value": 1}) == Response(True, 1, None)


def test_after_a_crash_the_next_call_works(loaded, name):
    with pytest.raises(PluginCrashed) as caught:
        loaded.call(f"{name}.crash")
    assert name in str(caught.value)
    assert loaded.call(f"{name}.echo", {"value": "back"}) == "back"


def test_d2_a_slot_that_takes_too_long_times_out_and_the_next_call_works(loaded, name):
    with pytest.raises(SlotTimeout):
        loaded.call(f"{name}.sleep", {"seconds": 0.5}, timeout=0.1)
    assert loaded.call(f"{name}.echo", {"value": "next"}) == "next"


def test_what_a_guest_prints_beside_its_answer_is_logged(loaded, name, caplog):
    caplog.set_level("DEBUG", f"zeno_fast.plugin.{name}")
    loaded.call(f"{name}.spam")
    loaded.close()
    assert [record for record in caplog.records if record.name == f"zeno_fast.plugin.{name}"]


def test_h1_a_thousand_calls_from_8_threads(loaded, name):
    wrong = []

    def run(thread):
        for step in range(125):
            value = [thread, step]
            if loaded.call(f"{name}.echo", {"value": value}) != value:
                wrong.append(value)

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_a_thousand_tasks_in_one_event_loop(loaded, name):
    async def main():
        return await asyncio.gather(
            *(loaded.call_async(f"{name}.echo", {"value": n}) for n in range(1000))
        )

    assert asyncio.run(main()) == list(range(1000))


def test_submit_and_map_answer_in_order(loaded, name):
    futures = [loaded.submit(f"{name}.echo", {"value": n}) for n in range(200)]
    assert [future.result(30) for future in futures] == list(range(200))
    assert list(loaded.map(f"{name}.echo", ({"value": n} for n in range(500)))) == list(range(500))


def test_reloading_starts_a_guest_anew(loaded, name):
    for _ in range(3):
        loaded.call(f"{name}.count")
    loaded.reload_plugin(name)
    assert loaded.call(f"{name}.count") == 1
