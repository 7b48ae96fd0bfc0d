"""Pointers and exports of WASM guests that make no sense, and memory that was freed."""

from __future__ import annotations

from contextlib import suppress

import pytest
import wasmtime
from fault.bounds import within
from fault.wasm_guests import LATE, doing, expect
from wasm.conftest import ALLOC, ECHO_BODY, ECHO_DATA, FINE, data, module

from zeno_fast import PluginCrashed, PluginLoadError, ProtocolError, ZenoError

pytestmark = pytest.mark.usefixtures("healthy_wasm")

SIZE = 2 * 65536  # of the guests' memory
OUTSIDE = "answered with a pointer outside of the guest's memory of 131072 bytes"


def alloc_giving(address: str) -> str:
    return f'(func $alloc (export "alloc") (param $n i32) (result i32) {address})'


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (0, "answered with a null pointer"),
        (1, "not JSON"),
        (SIZE - 1, "not JSON"),
        (SIZE, OUTSIDE),
        (SIZE + 1, OUTSIDE),
        (0x7FFF_FFFF, OUTSIDE),
        (0x8000_0000, OUTSIDE),
        (0xFFFF_FFF0, OUTSIDE),
        (0xFFFF_FFFF, OUTSIDE),
    ],
)
def test_f5_an_answer_that_is_nowhere_is_refused(manager, load_wasm, address, says):
    plugin = load_wasm(module(f"(i32.const {address})"), instances=1)
    for count in range(1, 4):
        with within(LATE):
            expect(manager, ProtocolError, f"slot 'run' was {says}|slot 'run' was .*{says}")
        # An address that a guest cannot have is of a guest that has lost its mind.
        assert plugin.status()["broken"] == (count if says == OUTSIDE else 0)


@pytest.mark.parametrize("address", [1, 3, 4095, SIZE - len(FINE), SIZE - len(FINE) - 1])
def test_f5_an_answer_may_be_anywhere_in_memory(manager, load_wasm, address):
    # The last but one ends with memory itself, without a terminator.
    load_wasm(module(f"(i32.const {address})", data(address, FINE)), instances=1)
    assert [manager.call("run") for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize("nbytes", [1, 2047, 2048, 2049, 65000])
def test_f5_an_answer_without_an_end_is_no_json_whatever_follows(manager, load_wasm, nbytes):
    text = '{"success":true,"data":"' + "x" * (nbytes - 1)
    load_wasm(module(f"(i32.const {SIZE - nbytes})", data(SIZE - nbytes, text[:nbytes])))
    for _ in range(2):
        expect(manager, ProtocolError, "slot 'run' was answered with what is not JSON")


@pytest.mark.parametrize("address", [SIZE, 0x8000_0000, 0xFFFF_FFFF])
@pytest.mark.parametrize("export", ["plugin_init", "plugin_register_slots"])
def test_f5_a_guest_that_describes_itself_nowhere_does_not_load(load_wasm, export, address):
    more = f'(func (export "{export}") (result i32) (i32.const {address}))'
    with within(LATE), pytest.raises(PluginLoadError, match=f"'hostile'.*{OUTSIDE}"):
        load_wasm(doing("", more))


# -- an address and a size, as one i64 ----------------------------------------------------------


def packed(address: int, nbytes: int, more: str = "", **rest: str) -> str:
    """Write a guest whose answer is so many bytes at an address."""
    code = module(f"(i64.const {address << 32 | nbytes})", more, **rest)
    return code.replace("(param $rlen i32) (result i32)", "(param $rlen i32) (result i64)")


@pytest.mark.parametrize(
    ("address", "nbytes"),
    [
        (SIZE, 0),
        (SIZE, 1),
        (SIZE - 1, 2),
        (1, SIZE),
        (1, 0xFFFF_FFFF),
        (0x8000_0000, 0),
        (0x8000_0000, 0x8000_0000),
        (0xFFFF_FFFF, 1),
        (0xFFFF_FFFF, 0xFFFF_FFFF),
    ],
)
def test_f5_an_answer_whose_size_leads_out_of_memory_is_refused(
    manager, load_wasm, address, nbytes
):
    plugin = load_wasm(packed(address, nbytes), instances=1)
    for count in range(1, 4):
        with within(LATE):
            expect(manager, ProtocolError, f"slot 'run' was {OUTSIDE}")
        assert plugin.status()["broken"] == count


@pytest.mark.parametrize("nbytes", [0, 1, 0xFFFF_FFFF])
def test_f5_a_sized_answer_at_no_address_is_refused(manager, load_wasm, nbytes):
    load_wasm(packed(0, nbytes), instances=1)
    for _ in range(2):
        expect(manager, ProtocolError, "slot 'run' was answered with a null pointer")


@pytest.mark.parametrize(("address", "nbytes"), [(2048, 0), (2048, 10), (SIZE - 1, 1), (1, 2047)])
def test_f5_a_sized_answer_of_something_else_is_no_json(manager, load_wasm, address, nbytes):
    load_wasm(packed(address, nbytes, data(2048, FINE)), instances=1)
    for _ in range(2):
        expect(manager, ProtocolError, "slot 'run' was answered with what is not JSON")


@pytest.mark.parametrize("address", [1, 2048, SIZE - len(FINE)])
@pytest.mark.parametrize("free", ["", "scribbles"])
def test_f5_a_sized_answer_may_be_anywhere_in_memory(manager, load_wasm, address, free):
    scribble = """(func (export "free") (param i32)
      (memory.fill (i32.const 1) (i32.const 0xff) (i32.const 131071)))"""
    plugin = load_wasm(
        packed(address, len(FINE), data(address, FINE) + (scribble if free else "")),
        fresh=bool(free),
        instances=1,
    )
    assert [manager.call("run") for _ in range(3)] == [1, 1, 1]
    assert plugin.status()["broken"] == 0


@pytest.mark.parametrize("export", ["plugin_init", "plugin_register_slots"])
@pytest.mark.parametrize(("address", "nbytes"), [(SIZE - 1, 2), (1, 0xFFFF_FFFF), (1 << 31, 0)])
def test_f5_a_guest_whose_description_leads_out_of_memory_does_not_load(
    load_wasm, export, address, nbytes
):
    more = f'(func (export "{export}") (result i64) (i64.const {address << 32 | nbytes}))'
    with within(LATE), pytest.raises(PluginLoadError, match=f"'hostile'.*{OUTSIDE}"):
        load_wasm(doing("", more))


# -- alloc ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [SIZE, SIZE - 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFF0, -1])
def test_f5_a_request_is_not_written_outside_of_memory(manager, load_wasm, address):
    plugin = load_wasm(doing("", alloc=alloc_giving(f"(i32.const {address})")), instances=1)
    for count in range(1, 4):
        expect(
            manager,
            PluginCrashed,
            r"gave memory outside of its own for parameters of 2 bytes to slot 'run'; it has "
            r"131072 bytes of at most 268435456 \(see `wasm\.memory`",
        )
        assert plugin.status()["broken"] == count


def test_f5_an_alloc_that_gives_nothing_is_named_with_the_limit(manager, load_wasm):
    load_wasm(doing("", alloc=alloc_giving("(i32.const 0)")), instances=1)
    for _ in range(3):
        expect(manager, PluginCrashed, r"gave no memory for .* slot 'run'; .*`wasm\.memory`")


# Head, parameters, tail and two terminators, as the guest finds them.
REQUEST = len('{"slot_name":"run","parameters":{}}\0run\0')


@pytest.mark.parametrize("beyond", [0, 1])
def test_f5_a_request_may_end_with_memory_itself(manager, load_wasm, beyond):
    load_wasm(doing("", alloc=alloc_giving(f"(i32.const {SIZE - REQUEST + beyond})")))
    for _ in range(3):
        if beyond:
            expect(manager, PluginCrashed, "gave memory outside of its own")
        else:
            assert manager.call("run") == 1


@pytest.mark.parametrize("address", [1, 3, 7001, 65535])
def test_f5_a_request_may_be_at_an_odd_address(manager, load_wasm, address):
    load_wasm(
        module(ECHO_BODY, ECHO_DATA, alloc=twice(f"(i32.const {address})", "(i32.const 32768)"))
    )
    assert [manager.call("run", {"n": n}) for n in range(3)] == [{"n": n} for n in range(3)]


def twice(first: str, second: str) -> str:
    """Write an alloc that gives one thing for a request and another for the echo."""
    return f"""(global $taken (mut i32) (i32.const 0))
      (func $alloc (export "alloc") (param $n i32) (result i32)
        (global.set $taken (i32.xor (global.get $taken) (i32.const 1)))
        (if (result i32) (global.get $taken) (then {first}) (else {second})))"""


@pytest.mark.parametrize("address", [2048, 2049, 2040, 2048 - REQUEST // 2, 2048 + 20])
def test_f5_a_request_upon_the_answer_is_an_answer_or_an_error(manager, load_wasm, address):
    load_wasm(doing("", alloc=alloc_giving(f"(i32.const {address})")), instances=1)
    for _ in range(3):
        with suppress(ProtocolError):
            assert manager.call("run") in (None, 1)


def test_f5_an_alloc_that_always_gives_the_same_serves_one_call_after_the_other(manager, load_wasm):
    # The echo is made where the request is, but behind it.
    load_wasm(module(ECHO_BODY, ECHO_DATA, alloc=twice("(i32.const 8192)", "(i32.const 32768)")))
    for n in range(20):
        sent = {"text": "x" * (n * 100), "n": n}
        assert manager.call("run", sent) == sent


@pytest.mark.parametrize("npages", [1, 600])
def test_f5_memory_that_moves_while_the_request_is_written_gets_it(manager, load_wasm, npages):
    moving = ALLOC.replace(
        "(local.set $at (global.get $heap))",
        f"(drop (memory.grow (i32.const {npages}))) (local.set $at (global.get $heap))",
    )
    load_wasm(module(ECHO_BODY, ECHO_DATA, alloc=moving), instances=1)
    for n in range(6):
        assert manager.call("run", {"n": n, "text": "x" * 5000}) == {"n": n, "text": "x" * 5000}


def test_f5_addresses_at_the_end_of_4_gib_do_not_overflow(manager, load_wasm):
    top = (1 << 32) - 128
    code = doing("", alloc=alloc_giving(f"(i32.const {top})")).replace(
        '(memory (export "memory") 2)', '(memory (export "memory") 65536)'
    )
    load_wasm(code, memory=1 << 32, instances=1)
    assert manager.call("run") == 1
    with pytest.raises(PluginCrashed, match="gave memory outside of its own"):
        manager.call("run", {"text": "x" * 128})
    assert manager.call("run") == 1


# -- memory that was freed --------------------------------------------------------------------

SCRIBBLE = """(func $free (export "free") (param i32)
  (memory.fill (i32.const 1) (i32.const 0xff) (i32.const 65000))
  (memory.fill (i32.const 65536) (i32.const 0xff)
    (i32.sub (i32.mul (memory.size) (i32.const 65536)) (i32.const 65536)))
  (memory.init $text (i32.const 1024) (i32.const 0) (i32.const 84)))"""


@pytest.mark.parametrize("nbytes", [0, 1, 2000, 2047, 2048, 2049, 5000, 200_000])
def test_f5_an_answer_is_read_before_its_memory_is_freed(manager, load_wasm, nbytes):
    # `free` writes over all of memory, but for what the echo is made of.
    text = '{"success":true,"data":'.ljust(76, "\0") + "}\0junk{}"
    escaped = "".join(f"\\{byte:02x}" for byte in text.encode())
    code = module(ECHO_BODY, ECHO_DATA + SCRIBBLE + f'(data $text "{escaped}")')
    load_wasm(code, instances=1)
    for n in range(3):
        assert manager.call("run", {"n": n, "t": "x" * nbytes}) == {"n": n, "t": "x" * nbytes}


@pytest.mark.parametrize("nbytes", [10, 5000])
def test_f5_an_answer_within_the_request_is_read_before_that_is_freed(manager, load_wasm, nbytes):
    # The request is the answer, too: an object that says neither success nor error.
    load_wasm(module("(local.get $req)", SCRIBBLE + f'(data $text "{"x" * 84}")'))
    for _ in range(3):
        assert manager.call("run", {"t": "x" * nbytes}) is None


@pytest.mark.parametrize("nbytes", [1, 5000])
@pytest.mark.parametrize(
    "body",
    [
        "unreachable",
        "(loop $l (br $l))",
        "(call $free (local.get 0))",
        "(i32.store (i32.const -1) (i32.const 0))",
        "(drop (memory.grow (i32.const 100)))",
    ],
    ids=["trap", "loop", "recursion", "outside", "grow"],
)
def test_f5_an_answer_is_given_whatever_free_does(manager, load_wasm, body, nbytes):
    free = f'(func $free (export "free") (param i32) {body} {body})'
    plugin = load_wasm(module(ECHO_BODY, ECHO_DATA + free), instances=1)
    for count in range(1, 4):
        with within(LATE):
            sent = {"n": count, "t": "x" * nbytes}
            assert manager.call("run", sent, timeout=0.1) == sent
        assert plugin.status()["broken"] == (0 if "grow" in body else count)


def test_f5_a_guest_that_frees_its_request_itself_is_not_harmed(manager, load_wasm):
    # A second free of the same address traps, as some allocators do.
    free = """(global $freed (mut i32) (i32.const 0))
      (func $free (export "free") (param i32)
        (if (i32.eq (local.get 0) (global.get $freed)) (then unreachable))
        (global.set $freed (local.get 0)))"""
    plugin = load_wasm(doing("(call $free (local.get $req))", free), instances=1)
    for count in range(1, 4):
        assert manager.call("run") == 1
        assert plugin.status()["broken"] == count


# -- exports ----------------------------------------------------------------------------------

PARTS = {
    "memory": '(memory (export "memory") 2)',
    "alloc": alloc_giving("(i32.const 8192)"),
    "plugin_execute": """(func (export "plugin_execute") (param i32 i32 i32 i32) (result i32)
      (i32.const 2048))""",
}
# Name of the part -> what stands in its place.
WRONG = {
    "no memory": ("memory", "(memory 2)"),
    "no alloc": ("alloc", ""),
    "no plugin_execute": ("plugin_execute", ""),
    "memory is a function": ("memory", '(memory 2) (func (export "memory"))'),
    "memory is a table": ("memory", '(memory 2) (table (export "memory") 1 funcref)'),
    "memory is a global": ("memory", '(memory 2) (global (export "memory") i32 (i32.const 0))'),
    "memory has 64 bits": ("memory", '(memory (export "memory") i64 2)'),
    "memory is shared": ("memory", '(memory (export "memory") 2 2 shared)'),
    "memory is imported": (
        "memory",
        '(import "env" "memory" (memory 2)) (export "memory" (memory 0))',
    ),
    "alloc is a global": ("alloc", '(global (export "alloc") i32 (i32.const 8192))'),
    "alloc takes nothing": ("alloc", '(func (export "alloc") (result i32) (i32.const 8192))'),
    "alloc gives nothing": ("alloc", '(func (export "alloc") (param i32))'),
    "alloc takes i64": (
        "alloc",
        '(func (export "alloc") (param i64) (result i32) (i32.const 9))',
    ),
    "alloc gives i64": (
        "alloc",
        '(func (export "alloc") (param i32) (result i64) (i64.const 9))',
    ),
    "alloc gives f32": (
        "alloc",
        '(func (export "alloc") (param i32) (result f32) (f32.const 9))',
    ),
    "alloc gives two": (
        "alloc",
        '(func (export "alloc") (param i32) (result i32 i32) (i32.const 1) (i32.const 2))',
    ),
    "alloc gives a reference": (
        "alloc",
        '(func (export "alloc") (param i32) (result externref) (ref.null extern))',
    ),
    "plugin_execute is a table": ("plugin_execute", '(table (export "plugin_execute") 1 funcref)'),
    "plugin_execute takes three": (
        "plugin_execute",
        '(func (export "plugin_execute") (param i32 i32 i32) (result i32) (i32.const 2048))',
    ),
    "plugin_execute takes i64": (
        "plugin_execute",
        '(func (export "plugin_execute") (param i32 i32 i32 i64) (result i32) (i32.const 2048))',
    ),
    "plugin_execute gives f64": (
        "plugin_execute",
        '(func (export "plugin_execute") (param i32 i32 i32 i32) (result f64) (f64.const 2048))',
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_f5_an_export_that_is_missing_or_of_another_kind_is_named(load_wasm, case):
    part, text = WRONG[case]
    parts = {**PARTS, part: text}  # the memory, which may be imported, comes first
    with within(LATE), pytest.raises(PluginLoadError, match=f"(?s)'hostile'.*{part}") as caught:
        load_wasm(f"(module {''.join(parts.values())})")
    assert caught.value.plugin == "hostile"


@pytest.mark.parametrize(
    "more",
    [
        '(global (export "free") i32 (i32.const 0))',
        '(func (export "free") (param i64))',
        '(func (export "free") (result i32) unreachable)',
        '(func (export "plugin_cleanup") (param i32) unreachable)',
        '(func (export "plugin_cleanup") unreachable)',
        '(func (export "plugin_cleanup") (loop $l (br $l)))',
        '(memory (export "second") 1)',
        '(table (export "tables") 1 externref)',
        '(tag (export "tag"))',
        '(export "a memory" (memory 0)) (export "" (memory 0))',
    ],
)
def test_f5_an_odd_export_that_is_not_needed_harms_nobody(manager, load_wasm, more):
    with within(5), suppress(PluginLoadError):  # such as for a second memory
        load_wasm(doing("", more), instances=1)
        assert [manager.call("run") for _ in range(3)] == [1, 1, 1]
        manager.unload_plugin("hostile")  # which runs plugin_cleanup


def test_f5_a_global_or_function_named_as_nothing_is_no_way_in(manager, load_wasm):
    names = ["memory\\00", "plugin_execute ", "żółw", "a" * 10_000]
    exports = "".join(f'(export "{name}" (func $execute))' for name in names)
    load_wasm(doing("", exports))
    assert manager.call("run") == 1


def test_f5_modules_of_every_feature_load_or_are_refused(manager, load_wasm):
    features = [
        "(func (param v128) (result v128) (local.get 0))",
        "(type $s (struct (field i32))) (func (result (ref $s)) (struct.new $s (i32.const 1)))",
        "(type $a (array i8)) (func (result (ref $a)) (array.new_default $a (i32.const 9)))",
        "(func (result funcref) (ref.func $execute)) (elem declare func $execute)",
        "(table 10 externref)",
        "(table i64 10 funcref)",
        "(func (drop (i64.add128 (i64.const 1) (i64.const 1) (i64.const 1) (i64.const 1))) (drop))",
        '(func (export "many") (result i32 i32 i32) (i32.const 1) (i32.const 2) (i32.const 3))',
    ]
    for number, more in enumerate(features):
        name = f"feature{number}"
        with suppress(PluginLoadError, wasmtime.WasmtimeError):
            load_wasm(doing("", more), name=name, slots=(name,))
            with suppress(ZenoError):
                assert manager.call(name) == 1
