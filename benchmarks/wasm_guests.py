"""The guests that the WASM benchmarks call, in WebAssembly's text format."""

from __future__ import annotations

import wasmtime

# Of whatever guest: the answer is {"success":true,"data":<parameters>,"error":null}.
TEXTS = r"""
  (data (i32.const 1024) "{\22success\22:true,\22data\22:")
  (data (i32.const 1100) ",\22error\22:null}\00")"""

# `free` takes everything back that was taken since.
PLUGIN = r"""(module
  {imports}
  (memory (export "memory") 64)
  (global $heap (mut i32) (i32.const 65536))
  (func $alloc (export "alloc") (param $n i32) (result i32) (local $at i32)
    (local.set $at (global.get $heap))
    (global.set $heap (i32.and (i32.add (i32.add (local.get $at) (local.get $n)) (i32.const 7))
      (i32.const -8)))
    (local.get $at))
  (func (export "free") (param $at i32) (global.set $heap (local.get $at)))
  {functions}
  (func (export "plugin_execute")
    (param $name i32) (param $nname i32) (param $request i32) (param $n i32) (result i32)
    (local $out i32) (local $from i32)
    (local.set $from (i32.add (local.get $request) (i32.add (local.get $nname) (i32.const 29))))
    (local.set $n (i32.sub (local.get $n) (i32.add (local.get $nname) (i32.const 30))))
    {before}
    (local.set $out (call $alloc (i32.add (local.get $n) (i32.const 64))))
    (memory.copy (local.get $out) (i32.const 1024) (i32.const 23))
    (memory.copy (i32.add (local.get $out) (i32.const 23)) (local.get $from) (local.get $n))
    (memory.copy (i32.add (local.get $out) (i32.add (local.get $n) (i32.const 23)))
      (i32.const 1100) (i32.const 15))
    (local.get $out))
  {data})"""

# Before it answers, it does what the first letter of the slot's name says as often as the number
# in its parameters {"n":NUMBER} says: `l`og, get from the `s`cope, or `w`ork, 4 cycles or so.
WORK_IMPORTS = r"""
  (import "env" "host_log" (func $log (param i32 i32 i32 i32)))
  (import "env" "host_scope_get" (func $scope (param i32 i32) (result i32)))"""
WORK_FUNCTIONS = r"""
  (func $number (param $at i32) (result i32) (local $found i32) (local $digit i32)
    (loop $next
      (local.set $digit (i32.sub (i32.load8_u (local.get $at)) (i32.const 48)))
      (if (i32.lt_u (local.get $digit) (i32.const 10)) (then
        (local.set $found
          (i32.add (i32.mul (local.get $found) (i32.const 10)) (local.get $digit)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next))))
    (local.get $found))
  (func $work (param $letter i32) (param $left i32) (local $mixed i32) (local $answer i32)
    (block $done
      (loop $again
        (br_if $done (i32.eqz (local.get $left)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (if (i32.eq (local.get $letter) (i32.const 119)) (then
          (local.set $mixed
            (i32.add (i32.mul (local.get $mixed) (i32.const 1664525)) (i32.const 1013904223)))
          (br $again)))
        (if (i32.eq (local.get $letter) (i32.const 108)) (then
          (call $log (i32.const 1200) (i32.const 5) (i32.const 1210) (i32.const 19))
          (br $again)))
        (local.set $answer (call $scope (i32.const 1230) (i32.const 4)))
        (br_if $again (i32.eq (i32.load8_u offset=11 (local.get $answer)) (i32.const 116)))
        (unreachable)))  ;; the host said no, not {"success":true,...
    (i32.store (i32.const 512) (local.get $mixed)))"""
WORK_BEFORE = r"""
    (call $work (i32.load8_u (local.get $name))
      (call $number (i32.add (local.get $from) (i32.const 5))))"""
WORK_TEXTS = r"""
  (data (i32.const 1200) "debug")
  (data (i32.const 1210) "one more row parsed")
  (data (i32.const 1230) "user")"""

# What an Extism PDK does around a function: the input is copied into the guest's own memory and
# the output out of it through the kernel, eight bytes a call. Answers what the plugin answers.
EXTISM = r"""(module
  (import "extism:host/env" "input_length" (func $input_length (result i64)))
  (import "extism:host/env" "input_load_u64" (func $input_load_u64 (param i64) (result i64)))
  (import "extism:host/env" "input_load_u8" (func $input_load_u8 (param i64) (result i32)))
  (import "extism:host/env" "alloc" (func $take (param i64) (result i64)))
  (import "extism:host/env" "store_u64" (func $store_u64 (param i64 i64)))
  (import "extism:host/env" "store_u8" (func $store_u8 (param i64 i32)))
  (import "extism:host/env" "output_set" (func $output_set (param i64 i64)))
  (memory (export "memory") 64)
  (func $input (param $to i32) (param $n i32) (local $i i32)
    (block $whole (loop $next
      (br_if $whole (i32.gt_u (i32.add (local.get $i) (i32.const 8)) (local.get $n)))
      (i64.store (i32.add (local.get $to) (local.get $i))
        (call $input_load_u64 (i64.extend_i32_u (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 8)))
      (br $next)))
    (block $all (loop $next
      (br_if $all (i32.eq (local.get $i) (local.get $n)))
      (i32.store8 (i32.add (local.get $to) (local.get $i))
        (call $input_load_u8 (i64.extend_i32_u (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next))))
  (func $output (param $from i32) (param $n i32) (local $i i32) (local $to i64)
    (local.set $to (call $take (i64.extend_i32_u (local.get $n))))
    (block $whole (loop $next
      (br_if $whole (i32.gt_u (i32.add (local.get $i) (i32.const 8)) (local.get $n)))
      (call $store_u64 (i64.add (local.get $to) (i64.extend_i32_u (local.get $i)))
        (i64.load (i32.add (local.get $from) (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 8)))
      (br $next)))
    (block $all (loop $next
      (br_if $all (i32.eq (local.get $i) (local.get $n)))
      (call $store_u8 (i64.add (local.get $to) (i64.extend_i32_u (local.get $i)))
        (i32.load8_u (i32.add (local.get $from) (local.get $i))))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
    (call $output_set (local.get $to) (i64.extend_i32_u (local.get $n))))
  (func (export "echo") (result i32) (local $n i32)
    (local.set $n (i32.wrap_i64 (call $input_length)))
    (call $input (i32.const 65536) (local.get $n))
    (local.set $n (i32.sub (local.get $n) (i32.const {around})))
    (memory.copy (i32.const 2097152) (i32.const 1024) (i32.const 23))
    (memory.copy (i32.const 2097175) (i32.const {start}) (local.get $n))
    (memory.copy (i32.add (i32.const 2097175) (local.get $n)) (i32.const 1100) (i32.const 14))
    (call $output (i32.const 2097152) (i32.add (local.get $n) (i32.const 37)))
    (i32.const 0))
  {data})"""


def echo(functions: str = "") -> bytes:
    """Return a plugin whose slots answer their parameters.

    Args:
        functions: More of them, which nobody calls.
    """
    return _assemble(PLUGIN.format(imports="", functions=functions, before="", data=TEXTS))


def work() -> bytes:
    """Return a plugin whose slots call the host, or work, so and so often, and answer as `echo`."""
    return _assemble(
        PLUGIN.format(
            imports=WORK_IMPORTS,
            functions=WORK_FUNCTIONS,
            before=WORK_BEFORE,
            data=TEXTS + WORK_TEXTS,
        )
    )


def extism_echo(slot: str) -> bytes:
    """Return what `echo` is, as a guest of Extism and for the requests to one slot."""
    around = len(slot) + 30
    return _assemble(EXTISM.format(around=around, start=65536 + around - 1, data=TEXTS))


def _assemble(text: str) -> bytes:
    return bytes(wasmtime.wat2wasm(text))
