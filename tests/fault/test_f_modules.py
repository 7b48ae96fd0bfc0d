"""Files that are no WASM module, or none for this host; what is said of each."""

from __future__ import annotations

from contextlib import suppress

import pytest
import wasmtime
from fault.bounds import within
from fault.wasm_guests import LATE, doing
from wasm.conftest import ECHO

from zeno_fast import PluginLoadError, ZenoError

pytestmark = pytest.mark.usefixtures("healthy_wasm")

MODULE = b"\0asm\1\0\0\0"
BROKEN = {
    "empty": (b"", "is empty"),
    "one byte": (b"\0", "not a WASM module"),
    "magic": (b"\0asm", "not a WASM module|WASM of version"),
    "text": (b"hello", "not a WASM module: it begins with b'hello'"),
    "script": (b"#!/bin/sh\nexit 0\n", "it is a script.*`type: sidecar`"),
    "WAT": (ECHO.encode(), "it is WebAssembly text"),
    "ELF": (b"\x7fELF\2\1\1" + b"\0" * 100, "it is a Linux program.*`type: sidecar`"),
    "Windows": (b"MZ\x90\0" + b"\0" * 100, "it is a Windows program.*`type: sidecar`"),
    "component": (b"\0asm\x0d\0\1\0" + b"\0" * 8, "it is a WASM component"),
    "version 2": (b"\0asm\2\0\0\0", "WASM module of version 2"),
    "zeros": (b"\0" * 100_000, "not a WASM module"),
    "zip": (b"PK\3\4" + b"\0" * 100, "it is a ZIP archive"),
    "no sections": (MODULE, "does not export memory, alloc, plugin_execute"),
    "garbage": (MODULE + b"garbage", "cannot be compiled"),
    "huge section": (MODULE + b"\1\xff\xff\xff\xff\x0f", "cannot be compiled"),
    "huge count": (MODULE + b"\1\5\xff\xff\xff\xff\x0f", "cannot be compiled"),
    "endless number": (MODULE + b"\1" + b"\x80" * 100, "cannot be compiled"),
    "unknown section": (MODULE + b"\x7f\0", "cannot be compiled"),
    "two of a section": (MODULE + b"\1\1\0" * 2, "cannot be compiled"),
    "a module behind a space": (b" " + MODULE, "not a WASM module"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_f9_what_is_no_module_is_refused_with_the_reason(manager, load_wasm, tmp_path, what):
    code, says = BROKEN[what]
    for _ in range(2):
        with within(LATE), pytest.raises(PluginLoadError, match=f"(?s){says}") as caught:
            load_wasm(code)
        assert f"plugin 'hostile': {tmp_path}/hostile/plugin.wasm" in str(caught.value)
        assert (caught.value.plugin, caught.value.folder) == ("hostile", tmp_path / "hostile")
    assert [plugin.name for plugin in manager.list_plugins()] == ["healthy"]
    load_wasm(doing(""))  # the name was not taken by what did not load
    assert manager.call("run") == 1


def test_f9_a_module_that_is_cut_off_anywhere_is_refused(manager, load_wasm):
    code = bytes(wasmtime.wat2wasm(doing("")))
    loaded = []
    with within(60):
        for size in range(len(code)):
            try:
                load_wasm(code[:size])
            except PluginLoadError as error:
                assert "plugin 'hostile'" in str(error)  # noqa: PT017
                continue
            loaded.append(size)  # only the answer's text, or names, are missing
            with suppress(ZenoError):
                assert manager.call("run") == 1
            manager.unload_plugin("hostile")
    assert len(loaded) < 3


KINDS = {
    "function": "(func)",
    "function of i64": "(func (param i64) (result i64))",
    "global": "(global i32)",
    "mutable global": "(global (mut i64))",
    "memory": "(memory 1)",
    "table": "(table 1 funcref)",
    "tag": "(tag)",
}


@pytest.mark.parametrize("module", ["env", "wasi_snapshot_preview1", "wasi_unstable", ""])
def test_f9_all_unknown_imports_are_listed(manager, load_wasm, module):
    names = [f"{kind}_{n}" for kind in ("function", "global", "table") for n in range(20)]
    imports = "".join(
        f'(import "{module}" "{name}" {KINDS[name.partition("_")[0]]})' for name in names
    )
    with within(LATE), pytest.raises(PluginLoadError, match="'hostile'") as caught:
        load_wasm(doing("", imports=imports))
    assert "it imports what the host does not have" in str(caught.value)
    assert all(f"{module}.{name}" in str(caught.value) for name in names)


@pytest.mark.parametrize("kind", KINDS)
def test_f9_an_import_of_another_kind_is_named(load_wasm, kind):
    imports = f'(import "env" "host_log" {KINDS[kind]})'
    code = f'(module {imports} (func (export "plugin_init") (result i32) (i32.const 0)))'
    with within(LATE), pytest.raises(PluginLoadError, match=r"(?s)'hostile'.*env\.host_log"):
        load_wasm(code)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", ["fd_write", "random_get"])  # the host's own, the library's
def test_f9_a_part_of_wasi_of_another_kind_does_not_load(load_wasm, function, kind):
    imports = f'(import "wasi_snapshot_preview1" "{function}" {KINDS[kind]})'
    code = doing("", imports=imports)
    if kind == "memory":  # it would be the first, to which the data goes
        code = code.replace('(memory (export "memory") 2)', '(export "memory" (memory 0))')
    with within(LATE), pytest.raises(PluginLoadError, match=f"(?s)'hostile'.*{function}"):
        load_wasm(code)


def test_f9_known_and_unknown_imports_and_exports_are_named_at_once(load_wasm):
    imports = """(import "env" "host_log" (func (param i32 i32 i32 i32)))
      (import "env" "host_exec" (func)) (import "env" "host_scope_get" (func))
      (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "fd_exec" (func))"""
    with pytest.raises(PluginLoadError) as caught:
        load_wasm(f'(module {imports} (memory (export "memory") 1) (func (export "alloc")))')
    text = str(caught.value)
    for part in ("env.host_exec", "wasi_snapshot_preview1.fd_exec", "env.host_scope_get", "alloc"):
        assert part in text
    for part in ("host_log", "fd_write"):
        assert part not in text
    assert "does not export plugin_execute" in text


def test_f9_names_of_imports_may_be_anything(load_wasm):
    names = ["", "a b", "line\\nend", "żółw", "\\00", "x" * 10_000, "%s", "{}"]
    imports = "".join(f'(import "env" "{name}" (func))' for name in names)
    with within(LATE), pytest.raises(PluginLoadError, match=r"(?s)'hostile'.*żółw"):
        load_wasm(doing("", imports=imports))


LOADING = """
    import sys
    from zeno_fast import PluginLoadError, PluginManager

    with PluginManager() as manager:
        for folder in {folders!r}:
            print(folder.rpartition("/")[2], flush=True)
            try:
                manager.load_plugin(folder)
                print("loaded")
            except PluginLoadError as error:
                print("refused")
"""
# Exports that the host looks at, and signatures that only differ from what it wants in the type.
EXPORTS = {
    "alloc": "(param {}) (result i32)",
    "plugin_execute": "(param i32 i32 i32 {}) (result i32)",
    "plugin_init": "(result {})",
    "_start": "(param {})",
    "free": "(param {})",
    "plugin_cleanup": "(result {})",
}


@pytest.mark.parametrize("kind", ["v128", "anyref", "(ref func)"])
def test_f9_a_type_that_the_library_can_only_compile_does_not_end_the_host(
    way, make_wasm, run_python, kind
):
    # Its C API has no such types, and ends the process where it is asked for one.
    modules = {}
    for name, signature in EXPORTS.items():
        code = doing("", f'(func (export "{name}") {signature.format(kind)} unreachable)')
        if name in ("alloc", "plugin_execute"):
            code = code.replace(f'$alloc (export "{name}")', "$alloc")
            code = code.replace(f'$execute (export "{name}")', "$execute")
        modules[name] = code
    for number, module in enumerate(("env", "wasi_snapshot_preview1")):
        function = ("host_log", "fd_write")[number]
        imports = f'(import "{module}" "{function}" (func (param {kind})))'
        modules[function] = doing("", imports=imports)
    folders = [str(make_wasm(code, name=name)) for name, code in modules.items()]
    with within(30):
        ended = run_python(LOADING.format(folders=folders))
    assert ended.returncode == 0, (ended.stdout.split()[-1:], ended.stderr[-300:])
    answers = dict(zip(ended.stdout.split()[::2], ended.stdout.split()[1::2], strict=True))
    assert list(answers) == list(modules)
    # An odd `free` or `plugin_cleanup` is left alone; all else is needed.
    assert {name for name, answer in answers.items() if answer == "loaded"} <= {
        "free",
        "plugin_cleanup",
    }
