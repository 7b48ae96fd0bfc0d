"""A new version of a plugin beside the old one: started, switched to, and the old one drained."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zeno_fast.driver import Driver
from zeno_fast.errors import PermissionDenied, PluginLoadError, UsageError, ZenoError
from zeno_fast.events import EventHub
from zeno_fast.host.context import current_host_call
from zeno_fast.loading import Loader, LoadReport
from zeno_fast.manifest import Manifest
from zeno_fast.permissions import widened
from zeno_fast.plugin import LoadedPlugin
from zeno_fast.registry import Registry
from zeno_fast.yaml_source import ListNode, MappingNode, Node, ScalarNode, read_file, read_yaml

logger = logging.getLogger("zeno_fast")


class _Turn:
    """Whose turn it is to reload one plugin."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.thread = 0


class Reloader:
    """Replaces plugins by what is in their folders now; safe from any thread.

    Args:
        registry: Where the slots are switched.
        loader: Starts new versions.
        events: Is told of reloads that were refused or failed.
    """

    def __init__(self, registry: Registry, loader: Loader, events: EventHub) -> None:
        self._registry = registry
        self._loader = loader
        self._events = events
        self._turns: dict[str, _Turn] = {}

    def reload(self, name: str, allow_more_permissions: bool) -> LoadedPlugin:
        """Replace a plugin; see `PluginManager.reload_plugin`."""
        try:
            with self._turn(name):
                old, new = self._replace(name, allow_more_permissions)
        except PermissionDenied as error:
            self._events.emit("reload_refused", name, str(error), logging.WARNING)
            raise
        except ZenoError as error:
            self._events.emit("reload_failed", name, f"not reloaded: {error}", logging.ERROR)
            raise
        self._events.emit(
            "plugin_reloaded", name, f"reloaded {new.version}".rstrip(), version=new.version
        )
        if _is_within(name):
            # A call that waits for the caller is in flight: it has to end before the old version.
            threading.Thread(
                target=self._end_old, args=(old, new.driver), name="zeno_fast drain", daemon=True
            ).start()
        else:
            self._end_old(old, new.driver)
        return new

    def reload_all(self, allow_more_permissions: bool) -> LoadReport:
        """Replace all plugins, one after the other; see `PluginManager.reload_all_plugins`."""
        report = LoadReport()
        for plugin in self._registry.list_plugins():
            try:
                report.loaded.append(self.reload(plugin.name, allow_more_permissions))
            except ZenoError as error:
                report.failures[plugin.folder.name] = error
        return report

    @contextmanager
    def _turn(self, name: str) -> Iterator[None]:
        """Let one reload of a plugin after the other start and switch; drains may overlap."""
        with self._registry.lock:
            self._registry.refuse_if_closed()
            self._registry.get(name)
            turn = self._turns.setdefault(name, _Turn())
        # Its holder may wait for the start of a version whose host call this is.
        for_itself = turn.thread == threading.get_ident() or _is_within(name)
        if not turn.lock.acquire(blocking=not for_itself):
            raise UsageError(
                f"plugin {name!r} is being reloaded already, and cannot be reloaded once more from "
                "within: do it when that has ended",
                plugin=name,
            )
        try:
            turn.thread = threading.get_ident()
            yield
        finally:
            turn.thread = 0
            turn.lock.release()

    def _replace(self, name: str, allow_more_permissions: bool) -> tuple[Driver, LoadedPlugin]:
        """Start what is in a plugin's folder and switch to it; return the old driver, too."""
        self._registry.refuse_if_closed()
        old = self._registry.get(name)
        manifest = self._loader.read_again(old)
        if not allow_more_permissions:
            _refuse_more(old.manifest, manifest)
        # What runs is not replaced by what has not yet shown that it does.
        driver, description = self._loader.start(manifest, at_once=old.driver.described)
        try:
            with self._registry.lock:
                self._registry.refuse_if_closed()
                current = self._registry.get(name)
                _refuse_another(current, old)
                new = self._registry.register(manifest, driver, description, replacing=current)
                self._registry.draining.add(old.driver)
        except BaseException:
            self._loader.discard(driver)
            raise
        return old.driver, new

    def _end_old(self, old: Driver, new: Driver) -> None:
        try:
            old.supersede(new)
        finally:
            with self._registry.lock:
                self._registry.draining.discard(old)


def _is_within(name: str) -> bool:
    """Tell whether this code runs in a host call which a call of this plugin waits for."""
    call = current_host_call()
    while call is not None:
        if call.plugin == name:
            return True
        call = call.outer
    return False


def _refuse_another(current: LoadedPlugin, old: LoadedPlugin) -> None:
    """Raise PluginLoadError where a plugin was unloaded and loaded while it was reloaded."""
    if current.driver is not old.driver:
        raise PluginLoadError(
            f"plugin {old.name!r} was loaded from {current.folder} while it was reloaded; that one "
            "serves",
            plugin=old.name,
            folder=old.folder,
        )


def _refuse_more(old: Manifest, new: Manifest) -> None:
    """Raise PermissionDenied where a new version may do what the running one may not."""
    more: list[str] = []
    for kind, entries in widened(old.permissions, new.permissions, new.folder).items():
        for entry in entries:
            more.append(f"{entry!r} (permissions.{kind}{_line_of(new.file, kind, entry)})")
    if (old.type, new.type) == ("wasm", "sidecar"):
        more.append("to run as a native process, outside of the sandbox (type: sidecar)")
    if more:
        raise PermissionDenied(
            f"the new version of plugin {new.name!r} asks in {new.file} for more than the one that "
            f"is running may do: {', '.join(more)}; the running one goes on serving, and "
            f"`reload_plugin({new.name!r}, allow_more_permissions=True)` accepts it",
            plugin=new.name,
        )


def _line_of(file: Path, kind: str, entry: str) -> str:
    """Say on which line of a manifest a permission stands; nothing where it is not found."""
    try:
        node: Node = read_yaml(read_file(file), file)
    except (OSError, ZenoError):  # it is being changed again
        return ""
    for key in ("permissions", kind):
        if not isinstance(node, MappingNode) or key not in node.entries:
            return ""
        node = node.entries[key][1]
    for item in node.items if isinstance(node, ListNode) else (node,):
        if isinstance(item, ScalarNode) and item.text == entry:
            return f", line {item.line}"
    return f", line {node.line}"
