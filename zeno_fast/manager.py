"""Which plugins there are, which slot belongs to whom; load, call, reload, close."""

from __future__ import annotations

import atexit
import difflib
import logging
import os
import threading
import warnings
import weakref
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from zeno_fast import permissions
from zeno_fast.driver import BoundSlot, Driver, Parameters, Scope
from zeno_fast.errors import (
    PermissionDenied,
    PluginLoadError,
    PluginUnavailable,
    SlotError,
    SlotNotFound,
    UsageError,
    ZenoError,
)
from zeno_fast.events import EventHub
from zeno_fast.host.functions import HostCallback, HostFunctions
from zeno_fast.limits import NO_LIMITS, WasmLimits
from zeno_fast.manifest import Manifest
from zeno_fast.plugin import EMPTY, GuestDescription, LoadedPlugin, Response, SlotDefinition
from zeno_fast.stream import Stream

if TYPE_CHECKING:
    from zeno_fast.sidecar.monitor import Monitor

logger = logging.getLogger("zeno_fast")

MANIFEST_NAME = "manifest.yaml"
HOST_THREADS = 512  # host calls and callbacks of futures at the same time; made as needed
JOB_THREADS = 32  # processes that start or stop at the same time
LOAD_THREADS = 8  # plugins that are loaded at the same time


# A plugin that is being started.
_Start = tuple[Manifest, "Future[tuple[Driver, GuestDescription | None]]"]


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of the plugins in a folder.

    Attributes:
        loaded: The plugins that are ready, in the order of their folders' names.
        failures: What was wrong with each of the others, by the name of its folder.
    """

    loaded: list[LoadedPlugin] = field(default_factory=list)
    failures: dict[str, ZenoError] = field(default_factory=dict)


class PluginManager:
    """Loads plugins and calls their slots; one serves any number of threads and event loops.

    Used as a context manager it closes everything at the end; at the interpreter's exit, too.

    Args:
        folder: Every plugin folder directly below it is loaded; what fails is logged and kept in
            `failures`. None loads nothing yet.
        timeout: Seconds that a call may take where neither the caller nor the manifest says.
        max_message: Bytes that a sidecar's request or answer may have where its manifest does not
            say.
        wasm_limits: What no WASM plugin gets beyond, whatever its manifest asks for.
        allow_absolute_binaries: Whether a manifest may name a binary by an absolute path.

    Raises PluginLoadError where `folder` is none.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        timeout: float = 30.0,
        max_message: int = 256 * 1024 * 1024,
        wasm_limits: WasmLimits = NO_LIMITS,
        allow_absolute_binaries: bool = False,
    ) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, not {timeout!r}")
        if max_message < 1024:
            raise ValueError(f"max_message must be 1024 bytes or more, not {max_message!r}")
        self._timeout = timeout
        self._max_message = max_message
        self._wasm_limits = wasm_limits
        self._allow_absolute = allow_absolute_binaries
        self._host = HostFunctions()
        self._events = EventHub()
        self._lock = threading.RLock()
        self._plugins: dict[str, LoadedPlugin] = {}
        self._routes: dict[str, BoundSlot] = {}
        self._unlisted: dict[tuple[str, str], BoundSlot] = {}
        self._failures: dict[str, ZenoError] = {}
        self._monitor: Monitor | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._jobs: ThreadPoolExecutor | None = None
        self._closed = False
        _close_at_exit(self)
        if folder is not None:
            try:
                for name, error in self.load_plugins_from_dir(folder).failures.items():
                    logger.error("plugin folder %s was not loaded: %s", name, error)
            except BaseException:
                self.close()
                raise

    # -- calling ------------------------------------------------------------------------------

    def call(
        self,
        slot: str,
        parameters: Parameters | None = None,
        *,
        timeout: float | None = None,
        scope: Scope | None = None,
    ) -> Any:
        """Call a slot, whichever plugin owns it, and return its data.

        Args:
            parameters: What the guest gets; JSON, and what orjson takes for JSON.
            timeout: Seconds, waiting for a free guest included; None for the plugin's own limit.
            scope: What the guest's scope functions read and write during this call.

        Raises SlotNotFound, InvalidParameters, SlotError, SlotTimeout, PluginCrashed,
        PluginUnavailable or ProtocolError.
        """
        bound = self._routes.get(slot) or self._find(slot)
        return bound.call(parameters, timeout, scope)

    def execute_slot(
        self,
        plugin: str,
        slot: str,
        parameters: Parameters | None = None,
        *,
        timeout: float | None = None,
        scope: Scope | None = None,
    ) -> Response:
        """Call a slot of a named plugin; a guest's refusal is a Response and no exception.

        A plugin that lists no slots is called all the same. Raises as `call` does, but for
        SlotError.
        """
        bound = self._find_in(plugin, slot)
        try:
            return Response(True, bound.call(parameters, timeout, scope))
        except SlotError as error:
            return Response(False, error.data, error.message)

    def submit(
        self,
        slot: str,
        parameters: Parameters | None = None,
        *,
        timeout: float | None = None,
        scope: Scope | None = None,
    ) -> Future[Any]:
        """Start a call and return a future of its data. Raises SlotNotFound at once."""
        return self._find(slot).submit(parameters, timeout, scope)

    def map(
        self,
        slot: str,
        many: Iterable[Parameters],
        *,
        timeout: float | None = None,
        scope: Scope | None = None,
    ) -> Iterator[Any]:
        """Call once for each of `many`, pipelined, and yield the data in order.

        `many` may be endless: only a bounded window of it is read ahead. The first failure ends
        the iteration with its error.
        """
        return self._find(slot).map(many, timeout, scope)

    def stream(
        self,
        slot: str,
        parameters: Parameters | None = None,
        *,
        timeout: float | None = None,
        scope: Scope | None = None,
    ) -> Stream:
        """Return an iterator, plain and async, over the partial results of a call.

        It begins with the first `next` and ends with the final answer, whose data is then its
        `result`; closing it gives the call up. Raises SlotNotFound and InvalidParameters at once.
        """
        return self._find(slot).stream(parameters, timeout, scope)

    def call_async(
        self,
        slot: str,
        parameters: Parameters | None = None,
        *,
        timeout: float | None = None,
        scope: Scope | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call a slot from any running event loop; what is awaited raises as `call` does."""
        bound = self._routes.get(slot)
        if bound is None:
            return self._find_and_call(slot, parameters, timeout, scope)
        return bound.call_async(parameters, timeout, scope)

    async def _find_and_call(
        self, slot: str, parameters: Parameters | None, timeout: float | None, scope: Scope | None
    ) -> Any:
        """Call a slot that may have to be asked of plugins which have not started yet."""
        import asyncio  # noqa: PLC0415 - only programs that have a loop need it

        bound = await asyncio.get_running_loop().run_in_executor(None, self._find, slot)
        return await bound.call_async(parameters, timeout, scope)

    # -- loading ------------------------------------------------------------------------------

    def load_plugin(self, folder: str | os.PathLike[str]) -> LoadedPlugin:
        """Load the plugin in a folder.

        Raises ManifestError or PluginLoadError; nothing of it is left then.
        """
        manifest = self._read(Path(folder))
        driver, description = self._start(manifest)
        try:
            return self._take_in(manifest, driver, description)
        except BaseException:
            driver.close()
            raise

    def load_plugins_from_dir(self, folder: str | os.PathLike[str]) -> LoadReport:
        """Load every plugin folder directly below `folder`; one that fails keeps none from loading.

        They are compiled and started at the same time, and belong to the manager in the order of
        their folders' names: of two that claim a name or a slot the first has it.

        Raises PluginLoadError where `folder` is no directory.
        """
        root = Path(folder)
        if not root.is_dir():
            what = "is not a directory" if root.exists() else "does not exist"
            raise PluginLoadError(f"the plugin directory {root} {what}", folder=root)
        entries = [entry for entry in sorted(root.iterdir()) if (entry / MANIFEST_NAME).is_file()]
        report = LoadReport()
        if not entries:
            return report
        begun: list[Driver] = []
        try:
            with ThreadPoolExecutor(min(len(entries), LOAD_THREADS), "zeno_fast load") as executor:
                starts: dict[Path, _Start] = {}
                for entry in entries:
                    try:
                        manifest = self._read(entry)
                        starts[entry] = manifest, executor.submit(self._begin, manifest, begun)
                    except ZenoError as error:
                        report.failures[entry.name] = error
                try:
                    for entry, (manifest, start) in starts.items():
                        try:
                            report.loaded.append(self._finish(manifest, start))
                        except ZenoError as error:
                            report.failures[entry.name] = error
                finally:
                    executor.shutdown(wait=False, cancel_futures=True)
        finally:
            # All have ended by now. Left are those that failed, or all where an exception came.
            kept = {plugin.driver for plugin in self.list_plugins()}
            for driver in begun:
                if driver not in kept:
                    driver.close()
        self._failures.update(report.failures)
        return report

    def _begin(
        self, manifest: Manifest, begun: list[Driver]
    ) -> tuple[Driver, GuestDescription | None]:
        """Start a plugin and note it, so that it is closed whatever becomes of its caller."""
        driver, description = self._start(manifest)
        begun.append(driver)
        return driver, description

    def _finish(
        self, manifest: Manifest, start: Future[tuple[Driver, GuestDescription | None]]
    ) -> LoadedPlugin:
        """Take in a plugin once it is started, or raise what kept it from that."""
        return self._take_in(manifest, *start.result())

    def _take_in(
        self, manifest: Manifest, driver: Driver, description: GuestDescription | None
    ) -> LoadedPlugin:
        """Make a started plugin the manager's; one that is refused is the caller's to close."""
        with self._lock:
            self._refuse_if_closed()
            return self._register(manifest, driver, description)

    def _read(self, folder: Path) -> Manifest:
        """Read the manifest of a plugin that is not loaded yet. Raises as `load_plugin` does."""
        manifest = Manifest.load(folder, allow_absolute_binary=self._allow_absolute)
        for warning in manifest.warnings:
            logger.warning("%s", warning)
        with self._lock:
            self._refuse_if_closed()
            self._refuse_if_loaded(manifest)
        return manifest

    def _refuse_if_loaded(self, manifest: Manifest) -> None:
        if manifest.name in self._plugins:
            raise PluginLoadError(
                f"plugin {manifest.name!r} in {manifest.folder} is loaded already, from "
                f"{self._plugins[manifest.name].folder}",
                plugin=manifest.name,
                folder=manifest.folder,
            )

    def unload_plugin(self, name: str) -> None:
        """End a plugin and forget it. Raises PluginUnavailable where none has that name."""
        with self._lock:
            plugin = self.get_plugin(name)
            self._forget(plugin)
        plugin.driver.close()

    def reload_plugin(self, name: str) -> LoadedPlugin:
        """Load a plugin's folder anew and end the old one.

        A version that does not load leaves the old one serving and raises ManifestError or
        PluginLoadError.
        """
        with self._lock:
            old = self.get_plugin(name)
        manifest = Manifest.load(old.folder, allow_absolute_binary=self._allow_absolute)
        if manifest.name != name:
            raise PluginLoadError(
                f"{manifest.file} names itself {manifest.name!r} now, and no longer {name!r}; "
                "unload the old one and load the folder as a new plugin",
                plugin=name,
                folder=old.folder,
            )
        driver, description = self._start(manifest)
        try:
            with self._lock:
                self._refuse_if_closed()
                current = self.get_plugin(name)
                new = self._register(manifest, driver, description, replacing=current)
        except BaseException:
            driver.close()
            raise
        current.driver.close()
        return new

    def reset_plugin(self, name: str) -> None:
        """Forgive a plugin the failures for which it is refused; it is started again.

        Raises PluginUnavailable where none has that name.
        """
        self.get_plugin(name).driver.reset()

    def reload_all_plugins(self) -> LoadReport:
        """Reload every plugin; the failures leave their old version serving."""
        report = LoadReport()
        for plugin in self.list_plugins():
            try:
                report.loaded.append(self.reload_plugin(plugin.name))
            except ZenoError as error:
                report.failures[plugin.folder.name] = error
        return report

    # -- looking ------------------------------------------------------------------------------

    @property
    def slots(self) -> Mapping[str, SlotDefinition]:
        """The definitions of all slots, by name, at this moment."""
        with self._lock:
            return MappingProxyType(
                {name: self._routes[name].definition for name in sorted(self._routes)}
            )

    @property
    def failures(self) -> Mapping[str, ZenoError]:
        """What was wrong with each plugin folder that did not load, by its name."""
        return MappingProxyType(dict(self._failures))

    def get_plugin(self, name: str) -> LoadedPlugin:
        """Return a loaded plugin. Raises PluginUnavailable where none has that name."""
        try:
            return self._plugins[name]
        except KeyError:
            raise PluginUnavailable(
                f"no plugin {name!r} is loaded{_suggest(name, self._plugins)}", plugin=name
            ) from None

    def list_plugins(self) -> list[LoadedPlugin]:
        """Return the loaded plugins in the order of their names."""
        with self._lock:
            return [self._plugins[name] for name in sorted(self._plugins)]

    def status(self) -> dict[str, Any]:
        """Say how the manager and each plugin do, in values that JSON can carry."""
        return {
            "closed": self._closed,
            "plugins": {plugin.name: plugin.status() for plugin in self.list_plugins()},
            "failures": {name: str(error) for name, error in self._failures.items()},
        }

    def check_permission(self, plugin: str, kind: str, resource: str) -> None:
        """Raise PermissionDenied unless a plugin's manifest allows it the resource.

        Args:
            kind: `network`, `filesystem`, `env`, `database` or `scope`.
            resource: A URL, a path, a name, or `read` or `write`.
        """
        loaded = self._plugins.get(plugin)
        if loaded is None:
            raise PermissionDenied(
                f"no plugin {plugin!r} is loaded, and who has no identity has no permission",
                plugin=plugin,
            )
        try:
            permissions.check(loaded.manifest.permissions, loaded.folder, kind, resource)
        except PermissionDenied as denied:
            denied.plugin = plugin
            raise

    def set_host_callback(self, name: str, function: HostCallback | None) -> None:
        """Let `function(parameters)` answer the guests' host calls of that name.

        Its return value is the answer's data; what it raises is logged, and a refusal to the
        guest. It runs in a thread of the manager's. None takes it back.
        """
        self._host.set_callback(name, function)

    # -- closing ------------------------------------------------------------------------------

    def close(self) -> None:
        """End every plugin and wait until all are gone. Idempotent, from any thread."""
        with self._lock:
            self._closed = True
            plugins = list(self._plugins.values())
            self._plugins.clear()
            self._routes.clear()
            self._unlisted.clear()
        with ExitStack() as stack:
            for executor in (self._executor, self._jobs):
                if executor is not None:
                    stack.callback(executor.shutdown, wait=False)
            if self._monitor is not None:
                stack.callback(self._monitor.close)
            for plugin in plugins:
                stack.callback(plugin.driver.close)
            for plugin in plugins:
                plugin.driver.begin_close()  # all at once; each is waited for afterwards

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._plugins:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, stacklevel=2, source=self)
            self.close()

    def __enter__(self) -> PluginManager:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- inside -------------------------------------------------------------------------------

    def _start(self, manifest: Manifest) -> tuple[Driver, GuestDescription | None]:
        try:
            driver = self._make_driver(manifest)
        except ImportError as error:
            raise PluginLoadError(
                f"the compiled modules of zeno_fast are not beside {Path(__file__).parent}: "
                f"{error}. In a source tree that was not built, run `pip install -e .`, or run "
                "Python from another directory to use the installed package",
                plugin=manifest.name,
                folder=manifest.folder,
            ) from error
        try:
            return driver, driver.load()
        except BaseException:
            driver.close()
            raise

    def _make_driver(self, manifest: Manifest) -> Driver:
        # Each kind is imported when its first plugin is loaded: WASM alone costs 50 ms.
        if manifest.type == "wasm":
            from zeno_fast.binary import read_wasm  # noqa: PLC0415
            from zeno_fast.wasm.driver import WasmDriver  # noqa: PLC0415

            return WasmDriver(
                manifest, read_wasm(manifest), self._host, self._timeout, self._wasm_limits
            )
        from zeno_fast.sidecar.driver import SidecarDriver  # noqa: PLC0415
        from zeno_fast.sidecar.monitor import Monitor  # noqa: PLC0415

        with self._lock:
            self._refuse_if_closed()  # or what is made here would outlive it
            if self._monitor is None:
                self._monitor = Monitor()
            if self._executor is None:
                self._executor = ThreadPoolExecutor(HOST_THREADS, "zeno_fast host")
            if self._jobs is None:
                self._jobs = ThreadPoolExecutor(JOB_THREADS, "zeno_fast job")
        reference = weakref.ref(self)  # the driver's threads must not keep the manager alive

        def describe_late(description: GuestDescription) -> None:
            manager = reference()
            if manager is not None:
                manager._describe_late(manifest, description)

        return SidecarDriver(
            manifest,
            self._host,
            self._monitor,
            self._executor,
            self._jobs,
            self._timeout,
            self._max_message,
            describe_late,
            self._events,
        )

    def _register(
        self,
        manifest: Manifest,
        driver: Driver,
        description: GuestDescription | None,
        replacing: LoadedPlugin | None = None,
    ) -> LoadedPlugin:
        """Make a plugin's slots callable; called with the lock held."""
        if replacing is None:
            self._refuse_if_loaded(manifest)  # by now: others may load at the same time
        definitions = _definitions(manifest, description)
        for name in definitions:
            owner = self._routes.get(name)
            if owner is not None and owner.definition.plugin != manifest.name:
                raise PluginLoadError(
                    f"slot {name!r} is claimed by two plugins: {owner.definition.plugin!r} in "
                    f"{self._plugins[owner.definition.plugin].folder} and {manifest.name!r} in "
                    f"{manifest.folder}",
                    plugin=manifest.name,
                    folder=manifest.folder,
                )
        info = description.info if description is not None else EMPTY
        plugin = LoadedPlugin(
            manifest,
            driver,
            MappingProxyType(definitions),
            manifest.version or str(info.get("version") or ""),
        )
        if replacing is not None:
            self._forget(replacing)
        self._plugins[manifest.name] = plugin
        self._routes.update(
            {name: driver.bind(definition) for name, definition in definitions.items()}
        )
        return plugin

    def _describe_late(self, manifest: Manifest, description: GuestDescription) -> None:
        """Take in what a plugin offers that was only started by its first call."""
        with self._lock:
            plugin = self._plugins.get(manifest.name)
            if plugin is None or plugin.manifest is not manifest or self._closed:
                return
            try:
                self._register(manifest, plugin.driver, description, replacing=plugin)
            except PluginLoadError as error:
                self._failures[manifest.folder.name] = error
                logger.error("%s", error)  # noqa: TRY400 - the message says it all

    def _forget(self, plugin: LoadedPlugin) -> None:
        del self._plugins[plugin.name]
        for name in plugin.slots:
            self._routes.pop(name, None)
        for key in [key for key in self._unlisted if key[0] == plugin.name]:
            del self._unlisted[key]

    def _find(self, slot: str) -> BoundSlot:
        """Return who answers a slot, starting plugins that have not said yet what they offer."""
        bound = self._routes.get(slot)
        if bound is not None:
            return bound
        self._refuse_if_closed()
        for plugin in self.list_plugins():
            if plugin.slots or plugin.driver.described:
                continue
            plugin.driver.describe()
            bound = self._routes.get(slot)
            if bound is not None:
                return bound
        message = f"no loaded plugin has a slot {slot!r}{_suggest(slot, self._routes)}"
        silent = [plugin.name for plugin in self.list_plugins() if not plugin.slots]
        if silent:
            message += (
                f"; {', '.join(map(repr, silent))} lists no slots and is called with "
                f"execute_slot({silent[0]!r}, {slot!r})"
            )
        raise SlotNotFound(message, slot=slot)

    def _find_in(self, name: str, slot: str) -> BoundSlot:
        """Return the slot of a named plugin, listed or, where it lists none, unlisted."""
        bound = self._routes.get(slot)
        if bound is not None and bound.definition.plugin == name:
            return bound
        bound = self._unlisted.get((name, slot))
        if bound is not None:
            return bound
        self._refuse_if_closed()
        plugin = self.get_plugin(name)
        if not plugin.slots and not plugin.driver.described:
            plugin.driver.describe()
            plugin = self.get_plugin(name)
        with self._lock:
            if slot in plugin.slots:
                return self._routes[slot]
            if plugin.slots:
                raise SlotNotFound(
                    f"plugin {name!r} has no slot {slot!r}{_suggest(slot, plugin.slots)}",
                    plugin=name,
                    slot=slot,
                )
            bound = plugin.driver.bind(SlotDefinition(slot, plugin=name))
            return self._unlisted.setdefault((name, slot), bound)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise UsageError("the plugin manager is closed")


def _definitions(
    manifest: Manifest, description: GuestDescription | None
) -> dict[str, SlotDefinition]:
    """Return a plugin's slots: what the manifest declares goes before what the guest lists."""
    listed = description.slots if description is not None else None
    definitions = {definition.name: definition for definition in listed or ()}
    definitions.update({definition.name: definition for definition in manifest.slots or ()})
    return {
        name: replace(definition, plugin=manifest.name) for name, definition in definitions.items()
    }


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _close_at_exit(manager: PluginManager) -> None:
    """Close a manager at the interpreter's exit unless it is gone by then."""
    reference = weakref.ref(manager)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(manager, atexit.unregister, close).atexit = False
