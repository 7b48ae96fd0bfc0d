"""Uses the public names as a caller would; type-checked, never run. A wrong type fails mypy."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from typing_extensions import assert_type

from zeno_fast import (
    HostCall,
    InvalidParameters,
    LoadedPlugin,
    LoadReport,
    Manifest,
    ManifestError,
    MessageTooLarge,
    PluginCrashed,
    PluginManager,
    Response,
    SlotDefinition,
    SlotError,
    SlotTimeout,
    Stream,
    Watch,
    ZenoError,
    current_host_call,
)


def loading(folder: Path) -> None:
    with PluginManager(str(folder), timeout=5, allow_absolute_binaries=True) as manager:
        assert_type(manager, PluginManager)
        assert_type(manager.load_plugin(folder / "one"), LoadedPlugin)
        report = manager.load_plugins_from_dir(folder)
        assert_type(report, LoadReport)
        assert_type(report.loaded, list[LoadedPlugin])
        assert_type(report.failures, dict[str, ZenoError])
        assert_type(manager.list_plugins(), list[LoadedPlugin])
        assert_type(manager.slots, Mapping[str, SlotDefinition])
        assert_type(manager.reload_plugin("one", allow_more_permissions=True), LoadedPlugin)
        assert_type(manager.reload_all_plugins(), LoadReport)
        with manager.watch(folder, settle=1) as watch:
            assert_type(watch, Watch)
            assert_type(watch.closed, bool)
        assert_type(manager.get_plugin("one").manifest, Manifest)
        assert_type(manager.status(), dict[str, Any])


def calling(manager: PluginManager) -> None:
    scope: dict[str, object] = {}
    assert_type(manager.call("a.b", {"x": 1}, timeout=0.5, scope=scope), Any)
    assert_type(manager.submit("a.b"), Future[Any])
    assert_type(manager.map("a.b", [{"x": 1}, {"x": 2}]), Iterator[Any])
    assert_type(asyncio.run(manager.call_async("a.b")), Any)
    with manager.stream("a.b", {"x": 1}, timeout=0.5) as stream:
        assert_type(stream, Stream)
        assert_type([chunk for chunk in stream], list[Any])
        assert_type(stream.result, Any)
    response = manager.execute_slot("a", "a.b")
    assert_type(response, Response)
    assert_type(response.success, bool)
    assert_type(response.error, str | None)
    manager.call("a.b", ["not", "a", "mapping"])  # type: ignore[arg-type]
    manager.call("a.b", timeout="1s")  # type: ignore[arg-type]


async def streaming(manager: PluginManager) -> None:
    async with manager.stream("a.b") as stream:
        assert_type([chunk async for chunk in stream], list[Any])


def asked(parameters: dict[str, Any]) -> float | None:
    current = current_host_call()
    assert_type(current, HostCall | None)
    return current.remaining() if current is not None else None


def failing(manager: PluginManager) -> str:
    try:
        manager.call("a.b")
    except InvalidParameters as error:
        assert_type(error.key, str | None)
    except MessageTooLarge as error:
        assert_type(error.nbytes, int | None)
    except SlotError as error:
        assert_type(error.message, str)
    except TimeoutError as error:
        return str(error)
    except PluginCrashed as error:
        assert_type(error.exit_status, int | None)
    except ManifestError as error:
        assert_type(error.file, Path)
        assert_type(error.line, int | None)
    except ZenoError as error:
        assert_type(error.plugin, str | None)
    return ""


def hierarchy(error: SlotTimeout) -> tuple[TimeoutError, ZenoError]:
    return error, error
