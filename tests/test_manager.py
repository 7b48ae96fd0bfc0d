"""Universal slots, loading that isolates failures, reloading, permissions, host calls."""

from __future__ import annotations

import gc
import os
import warnings

import pytest

import zeno_fast
from zeno_fast import (
    InvalidParameters,
    ManifestError,
    PermissionDenied,
    PluginLoadError,
    PluginManager,
    PluginUnavailable,
    SlotNotFound,
    UsageError,
    WasmLimits,
    ZenoError,
)

ECHO = """
for request in requests():
    if not lifecycle(request, "{slot}"):
        answer(request, request["parameters"])
"""


def test_a_folder_loads_although_one_plugin_in_it_is_broken(make_plugin, tmp_path, no_leaks):
    make_plugin(ECHO.format(slot="a.echo"), name="a")
    make_plugin("import sys; sys.exit(3)", name="broken")
    make_plugin(ECHO.format(slot="c.echo"), name="c")
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "manifest.yaml").write_text("name: [")
    with PluginManager(tmp_path) as manager:
        assert [plugin.name for plugin in manager.list_plugins()] == ["a", "c"]
        assert set(manager.failures) == {"broken", "wrong"}
        assert isinstance(manager.failures["broken"], PluginLoadError)
        assert isinstance(manager.failures["wrong"], ManifestError)
        assert manager.call("c.echo", {"n": 1}) == {"n": 1}


def test_load_plugins_from_dir_reports_each_failure(manager, make_plugin, tmp_path):
    make_plugin(ECHO.format(slot="a.echo"), name="a")
    make_plugin("import sys; sys.exit(3)", name="broken")
    report = manager.load_plugins_from_dir(tmp_path)
    assert [plugin.name for plugin in report.loaded] == ["a"]
    assert "exit status 3" in str(report.failures["broken"])


def test_a_directory_that_does_not_exist_is_an_error(tmp_path, no_leaks):
    with pytest.raises(PluginLoadError, match="does not exist"):
        PluginManager(tmp_path / "nowhere")


def test_two_plugins_that_claim_one_slot_are_an_error_that_names_both(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO.format(slot="echo"), name="first"))
    with pytest.raises(PluginLoadError, match=r"'echo'.*'first'.*'second'"):
        manager.load_plugin(make_plugin(ECHO.format(slot="echo"), name="second"))
    assert [plugin.name for plugin in manager.list_plugins()] == ["first"]
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_two_folders_with_one_name_are_an_error(manager, make_plugin, tmp_path):
    manager.load_plugin(make_plugin(ECHO.format(slot="echo")))
    with pytest.raises(PluginLoadError, match="loaded already"):
        manager.load_plugin(make_plugin(ECHO.format(slot="echo"), folder=tmp_path / "b"))


def test_a_plugin_that_lists_no_slots_is_called_by_plugin_and_slot_name(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if request["slot_name"] == "greet":
                    put({"success": True, "data": "hello"})
                else:
                    put({"success": True, "data": {"error": "Unknown slot"}})
            """
        )
    )
    assert manager.execute_slot("scripted", "greet").data == "hello"
    with pytest.raises(SlotNotFound, match=r"execute_slot\('scripted', 'greet'\)"):
        manager.call("greet")
    assert dict(manager.slots) == {}


def test_section_5_a_slots_declared_inputs_were_never_checked(manager, make_plugin):
    manager.load_plugin(
        make_plugin(
            """
            for request in requests():
                if request["slot_name"] == "plugin_register_slots":
                    answer(request, [{"name": "add", "inputs": {
                        "a": {"type": "int", "required": True},
                        "b": {"type": "int", "default": 5},
                        "note": {"type": "string"}}}])
                elif request["slot_name"] == "plugin_init":
                    answer(request, {"name": "scripted"})
                else:
                    answer(request, request["parameters"])
            """
        )
    )
    given = {"a": 1}
    assert manager.call("add", given) == {"a": 1, "b": 5}
    assert given == {"a": 1}
    assert manager.call("add", {"a": 1, "b": 2, "more": [1]}) == {"a": 1, "b": 2, "more": [1]}
    before = manager.get_plugin("scripted").status()["calls"]
    for wrong, key in (
        ({}, "a"),
        ({"a": "1"}, "a"),
        ({"a": 1, "note": 5}, "note"),
        ({"a": None}, "a"),
    ):
        with pytest.raises(InvalidParameters) as caught:
            manager.call("add", wrong)
        assert caught.value.key == key
    with pytest.raises(InvalidParameters, match=r"more\.x\[1\]"):
        manager.call("add", {"a": 1, "more": {"x": [1, object()]}})
    with pytest.raises(InvalidParameters, match="must be a mapping"):
        manager.call("add", [1])
    assert manager.get_plugin("scripted").status()["calls"] == before


def test_section_5_reloading_left_the_old_sidecar_running(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO.format(slot="echo")))
    old = manager.get_plugin("scripted").status()["pid"]
    manager.reload_plugin("scripted")
    assert manager.get_plugin("scripted").status()["pid"] != old
    with pytest.raises(ProcessLookupError):
        os.kill(old, 0)
    assert manager.call("echo", {"n": 1}) == {"n": 1}


def test_r2_a_new_version_that_does_not_load_leaves_the_old_one_serving(manager, make_plugin):
    folder = make_plugin(ECHO.format(slot="echo"))
    manager.load_plugin(folder)
    (folder / "guest.py").write_text("raise SystemExit(9)")
    with pytest.raises(PluginLoadError, match="exit status 9"):
        manager.reload_plugin("scripted")
    assert manager.call("echo", {"n": 1}) == {"n": 1}
    report = manager.reload_all_plugins()
    assert list(report.failures) == ["scripted"]


def test_a_reload_takes_in_new_slots_and_drops_old_ones(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO.format(slot="old")))
    make_plugin(ECHO.format(slot="new"))
    manager.reload_plugin("scripted")
    assert set(manager.slots) == {"new"}
    assert manager.call("new", {"n": 1}) == {"n": 1}


def test_unloading_forgets_a_plugin_and_its_slots(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO.format(slot="echo")))
    manager.unload_plugin("scripted")
    assert manager.list_plugins() == []
    with pytest.raises(SlotNotFound):
        manager.call("echo")
    with pytest.raises(PluginUnavailable, match="no plugin"):
        manager.unload_plugin("scripted")


def test_section_5_a_call_without_a_plugins_identity_was_allowed_everything(manager, make_plugin):
    manager.load_plugin(
        make_plugin(ECHO.format(slot="echo"), manifest="permissions: {network: ['*.example.com']}")
    )
    manager.check_permission("scripted", "network", "https://api.example.com/v1")
    with pytest.raises(PermissionDenied):
        manager.check_permission("scripted", "network", "https://example.com.evil.org/")
    for nobody in ("", "other", None):
        with pytest.raises(PermissionDenied):
            manager.check_permission(nobody, "network", "https://api.example.com/v1")
    with pytest.raises(UsageError):
        manager.check_permission("scripted", "colour", "red")


def test_host_calls_are_answered_or_refused(manager, make_plugin, caplog):
    manager.load_plugin(
        make_plugin(
            """
            lines = requests()
            for request in lines:
                if lifecycle(request, "ask"):
                    continue
                put({"type": "host_call", "id": "h1", **request["parameters"]})
                response = next(lines)
                answer(request, {k: response.get(k) for k in ("id", "success", "data", "error")})
            """,
            manifest="permissions: {scope: [read, write], database: [main]}",
        )
    )
    asked = []

    def db_query(parameters):
        asked.append(parameters)
        return {"rows": [1]}

    def broken(parameters):
        raise RuntimeError("database is down")

    def ask(function, parameters, **more):
        return manager.call("ask", {"function": function, "parameters": parameters}, **more)

    scope = {"user": 7}
    assert ask("scope_get", {"key": "user"}, scope=scope)["data"] == {"value": 7}
    assert ask("scope_set", {"key": "seen", "value": [1]}, scope=scope)["success"] is True
    assert scope == {"user": 7, "seen": [1]}
    assert "without a scope" in ask("scope_get", {"key": "user"})["error"]
    assert ask("log", {"level": "warn", "message": "from the guest"})["success"] is True
    assert "from the guest" in caplog.text
    query = {"connection": "main", "sql": "select ?", "params": [1]}
    assert "offers no function" in ask("db_query", query)["error"]
    manager.set_host_callback("db_query", db_query)
    assert ask("db_query", query) == {
        "id": "h1", "success": True, "data": {"rows": [1]}, "error": None,
    }  # fmt: skip
    assert asked == [query]  # section 5: bind parameters were dropped
    assert "permissions" in ask("db_query", {**query, "connection": "other"})["error"]
    assert len(asked) == 1
    manager.set_host_callback("db_query", broken)
    assert "database is down" in ask("db_query", query)["error"]
    assert "offers no function" in ask("file_read", {"path": "manifest.yaml"})["error"] or (
        "permissions" in ask("file_read", {"path": "manifest.yaml"})["error"]
    )


def test_a_manager_that_was_forgotten_closes_its_plugins_and_says_so(make_plugin, no_leaks):
    manager = PluginManager()
    manager.load_plugin(make_plugin(ECHO.format(slot="echo")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del manager
        gc.collect()
    assert any(issubclass(warning.category, ResourceWarning) for warning in caught)


def test_every_error_is_a_zeno_error_and_is_exported():
    for name in zeno_fast.__all__:
        thing = getattr(zeno_fast, name)
        if isinstance(thing, type) and issubclass(thing, Exception):
            assert issubclass(thing, ZenoError)
    assert zeno_fast.__version__


def test_importing_zeno_fast_loads_neither_wasmtime_nor_asyncio(run_python):
    done = run_python(
        """
        import sys, zeno_fast
        names = ("wasmtime", "asyncio", "click", "rich", "watchfiles")
        print([name for name in names if name in sys.modules])
        """
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_timeout_must_make_sense(manager, make_plugin):
    with pytest.raises(ValueError, match="timeout"):
        PluginManager(timeout=0)
    manager.load_plugin(make_plugin(ECHO.format(slot="echo")))
    with pytest.raises(ValueError, match="timeout"):
        manager.call("echo", {}, timeout=-1)


WAT = """(module (memory (export "memory") 2)
  (func (export "alloc") (param i32) (result i32) (i32.const 4096))
  (func (export "plugin_execute") (param i32 i32 i32 i32) (result i32) (i32.const 1024))
  (data (i32.const 1024) "{\\22success\\22:true,\\22data\\22:1}\\00"))"""


def test_of_two_folders_that_claim_a_name_the_first_has_it(manager, tmp_path):
    for folder in ("b", "a", "c"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "p.wat").write_text(WAT, encoding="utf-8")
        name = "other" if folder == "c" else "same"
        (tmp_path / folder / "manifest.yaml").write_text(
            f"name: {name}\nbinary: p.wat\nslots: [{folder}.slot]\n", encoding="utf-8"
        )
    report = manager.load_plugins_from_dir(tmp_path)
    assert [plugin.folder.name for plugin in report.loaded] == ["a", "c"]
    assert list(report.failures) == ["b"]
    assert "is loaded already, from" in str(report.failures["b"])
    assert sorted(manager.slots) == ["a.slot", "c.slot"]
    assert manager.call("a.slot") == 1


def test_a_manager_bounds_what_manifests_ask_for(no_leaks, tmp_path):
    (tmp_path / "p.wat").write_text(WAT, encoding="utf-8")

    def load(wasm, **limits):
        (tmp_path / "manifest.yaml").write_text(
            f"name: p\nbinary: p.wat\nwasm: {{{wasm}}}\nslots: [p.slot]\n", encoding="utf-8"
        )
        with PluginManager(wasm_limits=WasmLimits(**limits)) as manager:
            manager.load_plugin(tmp_path)
            assert manager.call("p.slot") == 1

    load("memory: 1MiB", memory=1 << 20)
    load("")
    load("", memory=1 << 20, table=10, stack=1 << 17, fuel=1_000_000, timeout=1.0)
    for wasm, limits in [
        ("memory: 2MiB", {"memory": 1 << 20}),
        ("table: 11", {"table": 10}),
        ("stack: 256KiB", {"stack": 1 << 17}),
        ("fuel: 11", {"fuel": 10}),
        ("timeout: 2s", {"timeout": 1.0}),
    ]:
        with pytest.raises(PluginLoadError, match=f"asks for `wasm.{wasm.partition(':')[0]}`"):
            load(wasm, **limits)
    with pytest.raises(ValueError, match="memory must be more than 0"):
        WasmLimits(memory=0)
