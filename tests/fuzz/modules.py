"""Makes WASM modules that are nearly right, from a few that are."""

from __future__ import annotations

import random
import re

import wasmtime
from wasm.conftest import ALLOC, ECHO, FINE, answering, data, module

TWO = "(param i32 i32) (result i32)"
FOUR = "(param i32 i32 i32 i32) (result i32)"
WASI = "wasi_snapshot_preview1"
IMPORTS = (
    '(import "env" "host_log" (func $log (param i32 i32 i32 i32)))'
    f'(import "env" "host_db_query" (func $query {TWO}))'
    f'(import "env" "host_scope_set" (func $set {TWO}))'
    f'(import "env" "host_env_get" (func $env {TWO}))'
    f'(import "{WASI}" "fd_write" (func $write {FOUR}))'
    f'(import "{WASI}" "poll_oneoff" (func $poll {FOUR}))'
    f'(import "{WASI}" "random_get" (func $random {TWO}))'
    f'(import "{WASI}" "proc_exit" (func $exit (param i32)))'
)
QUERY = '{"connection":"main","sql":"select 1"}'
DESCRIBED = (
    '(func (export "plugin_init") (result i32) (i32.const 5000))'
    '(func (export "plugin_register_slots") (result i32) (i32.const 5100))'
    '(func (export "_initialize") (global.set $ready (i32.const 1)))'
    '(func (export "plugin_cleanup") (global.set $ready (i32.const 0)))'
    '(func (export "free") (param i32) (drop (local.get 0)))'
    "(global $ready (mut i32) (i32.const 0))"
    + data(5000, '{"name":"fuzz","version":"1"}\0')
    + data(5100, '[{"name":"echo","inputs":{"n":"int"}}]\0')
)
TABLES = """(table $t 8 funcref) (elem (i32.const 0) $one $two)
  (func $one (result i32) (i32.const 2048)) (func $two (result i32) (memory.size))
  (start $start) (func $start (table.set $t (i32.const 3) (ref.func $one)))"""

# Name -> text.
SEEDS = {
    "echo": ECHO,
    "fine": answering(FINE),
    "described": answering(FINE, DESCRIBED),
    "asks": module(
        f"(call $query (i32.const 4000) (i32.const {len(QUERY)}))",
        data(4000, QUERY),
        imports=IMPORTS,
    ),
    "prints": module(
        """(i32.store (i32.const 3000) (i32.const 4000)) (i32.store (i32.const 3004) (i32.const 9))
        (drop (call $write (i32.const 1) (i32.const 3000) (i32.const 1) (i32.const 3008)))
        (call $log (i32.const 4100) (i32.const 4) (i32.const 4000) (i32.const 9))
        (drop (call $random (i32.const 3100) (i32.const 16)))
        (drop (call $env (i32.const 4000) (i32.const 4)))
        (drop (call $set (i32.const 4200) (i32.const 19)))
        (i32.const 2048)""",
        data(4000, "some text")
        + data(4100, "info")
        + data(4200, '{"key":1,"value":2}')
        + data(2048, FINE + "\0"),
        imports=IMPORTS,
    ),
    "sleeps": module(
        """(i32.store8 (i32.const 4016) (i32.const 1)) (i32.store (i32.const 4024) (i32.const 999))
        (drop (call $poll (i32.const 4000) (i32.const 5000) (i32.const 1) (i32.const 6000)))
        (if (i32.load8_u (i32.const 6001)) (then (call $exit (i32.const 3))))
        (i32.const 2048)""",
        data(2048, FINE + "\0"),
        imports=IMPORTS,
    ),
    "tables": module(
        """(drop (table.grow $t (ref.null func) (i32.const 10)))
        (if (i32.eqz (i32.load8_u (local.get $req))) (then unreachable))
        (call_indirect $t (result i32) (i32.and (local.get $nlen) (i32.const 3)))""",
        TABLES + data(2048, FINE + "\0"),
    ),
    "loops": module(
        """(local.set $nlen (i32.const 1000))
        (loop $l (br_if $l (local.tee $nlen (i32.sub (local.get $nlen) (i32.const 1)))))
        (memory.fill (i32.const 60000) (i32.const 65) (i32.const 5000))
        (memory.copy (i32.const 9000) (i32.const 60000) (i32.const 100))
        (i32.const 2048)""",
        data(2048, FINE + "\0") + ALLOC.replace('"alloc"', '"other"').replace("$", "$other_"),
    ),
}
SEEDS["sized"] = module(
    f"""(if (i32.gt_u (local.get $rlen) (i32.const 60000)) (then
      (call $abort (i32.const 4004) (i32.const 0) (i32.const 7) (i32.const 9))))
    (i64.or (i64.shl (i64.const 2048) (i64.const 32)) (i64.const {len(FINE)}))""",
    data(4000, "\10\0\0\0" + "f\0a\0i\0l\0") + data(2048, FINE),
    imports='(import "env" "abort" (func $abort (param i32 i32 i32 i32)))',
).replace("(param $rlen i32) (result i32)", "(param $rlen i32) (result i64)")
NUMBERS = (
    *(0, 1, 2, 7, 8, 127, 128, 255, 1024, 2047, 2048, 4096, 65_535, 65_536, 131_071, 131_072),
    *(262_144, 1 << 22, 1 << 24, (1 << 31) - 1, 1 << 31, (1 << 32) - 16, (1 << 32) - 1),
    *(-1, -2, -8, -65_536),
)
INSTRUCTIONS = (
    ("i32.add", "i32.sub", "i32.mul", "i32.div_u", "i32.div_s", "i32.rem_u", "i32.shl", "i32.xor"),
    ("i32.eq", "i32.ne", "i32.lt_s", "i32.gt_u", "i32.le_u", "i32.ge_s"),
    ("local.set", "local.tee", "drop"),
    ("i32.load", "i32.load8_u", "i32.load16_s", "memory.grow", "i32.eqz", "i32.clz"),
    ("i64.or", "i64.shl", "i64.add", "i64.sub"),
    ("i32.store", "i32.store8", "i32.store16"),
    ("memory.fill", "memory.copy"),
    ("br", "br_if"),
    ("nop", "unreachable", "return"),
    ('"alloc"', '"free"', '"plugin_init"', '"memory"', '"plugin_execute"', '"_start"'),
    ('"host_db_query"', '"host_http_request"', '"host_file_read"', '"host_scope_get"'),
    ('"fd_write"', '"poll_oneoff"', '"fd_read"', '"fd_pwrite"', '"path_open"'),
    ("i32", "i64", "f64", "funcref", "externref"),
    ("funcref", "externref"),
)
BYTES = b"\x00\x01\x0b\x0f\x10\x20\x41\x7f\x80\xfc\xff"


def make_case(seed: int, number: int) -> bytes:
    """Make the module of a seed with this number."""
    rng = random.Random(f"{seed}/{number}")
    text = SEEDS[rng.choice(sorted(SEEDS))]
    if rng.random() < 0.6:
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            text = _change_text(rng, text)
    try:
        code = bytes(wasmtime.wat2wasm(text))
    except wasmtime.WasmtimeError:  # it went too far
        code = bytes(wasmtime.wat2wasm(SEEDS["echo"]))
    if rng.random() < 0.5:
        other = bytes(wasmtime.wat2wasm(SEEDS[rng.choice(sorted(SEEDS))]))
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            code = _change_bytes(rng, code, other)
    return code


def _change_text(rng: random.Random, text: str) -> str:
    """Put another number, or another word of the same kind, in one place."""
    if rng.random() < 0.6:
        places = list(re.finditer(r"(?<=[ (])-?(0x[0-9a-f]+|\d+)(?=[ )])", text))
        found = rng.choice(places)
        return text[: found.start()] + str(rng.choice(NUMBERS)) + text[found.end() :]
    words = rng.choice(INSTRUCTIONS)
    places = [
        found
        for word in words
        for found in re.finditer(rf"(?<=[ (]){re.escape(word)}(?=[ )])", text)
    ]
    if not places:
        return text
    found = rng.choice(places)
    return text[: found.start()] + rng.choice(words) + text[found.end() :]


def _change_bytes(rng: random.Random, code: bytes, other: bytes) -> bytes:
    """Flip, replace, insert, delete, repeat or borrow some bytes."""
    at = rng.randrange(8 if rng.random() < 0.95 else 0, len(code) + 1)
    size = rng.choice((1, 1, 1, 2, 8, rng.randrange(1, 40)))
    start = rng.randrange(len(other))
    flipped = bytes([code[at] ^ (1 << rng.randrange(8))]) if at < len(code) else b"\0"
    gone, came = rng.choice(
        (
            (1, flipped),
            (1, bytes([rng.randrange(256)])),
            (1, bytes([rng.choice(BYTES)])),
            (0, rng.randbytes(size)),
            (size, b""),
            (0, code[at : at + size]),
            (size, other[start : start + size]),
        )
    )
    return code[:at] + came + code[at + gone :]
