"""From plugin folders to running plugins, one or all of a directory at the same time."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zeno_fast.driver import Driver
from zeno_fast.errors import PluginLoadError, ZenoError
from zeno_fast.events import EventHub
from zeno_fast.host.functions import HostFunctions
from zeno_fast.limits import WasmLimits
from zeno_fast.manifest import Manifest
from zeno_fast.plugin import GuestDescription, LoadedPlugin
from zeno_fast.registry import Registry

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


class Loader:
    """Reads plugin folders, starts what is in them, and owns what their drivers share.

    Args:
        registry: Takes the plugins in.
        host: What guests may ask of the host.
        timeout: Seconds that a call may take where nobody says.
        max_message: Bytes of a sidecar's message where its manifest does not say.
        wasm_limits: What no WASM plugin gets beyond.
        allow_absolute: Whether a manifest may name a binary by an absolute path.

    Attributes:
        folders: Where plugins were loaded from, by their names; absolute, links not resolved, so
            that a link may lead to another version later.
        roots: The directories whose plugin folders were loaded.
    """

    def __init__(
        self,
        registry: Registry,
        host: HostFunctions,
        timeout: float,
        max_message: int,
        wasm_limits: WasmLimits,
        allow_absolute: bool,
        events: EventHub,
    ) -> None:
        self._registry = registry
        self._host = host
        self._timeout = timeout
        self._max_message = max_message
        self._wasm_limits = wasm_limits
        self._allow_absolute = allow_absolute
        self._events = events
        self.folders: dict[str, Path] = {}
        self.roots: list[Path] = []
        self._monitor: Monitor | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._jobs: ThreadPoolExecutor | None = None

    def load(self, folder: str | os.PathLike[str]) -> LoadedPlugin:
        """Load the plugin in a folder.

        Raises ManifestError or PluginLoadError; nothing of it is left then.
        """
        manifest = self._read_new(Path(folder))
        driver, description = self.start(manifest)
        try:
            plugin = self._registry.take_in(manifest, driver, description)
        except BaseException:
            self.discard(driver)
            raise
        self._note_loaded(plugin, Path(folder))
        return plugin

    def load_all(self, folder: str | os.PathLike[str]) -> LoadReport:
        """Load every plugin folder directly below `folder`; one that fails keeps none from loading.

        They are compiled and started at the same time, and taken in in the order of their folders'
        names. Raises PluginLoadError where `folder` is no directory.
        """
        root = Path(folder)
        if not root.is_dir():
            what = "is not a directory" if root.exists() else "does not exist"
            raise PluginLoadError(f"the plugin directory {root} {what}", folder=root)
        if (known := Path(os.path.abspath(root))) not in self.roots:
            self.roots.append(known)
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
                        manifest = self._read_new(entry)
                        starts[entry] = manifest, executor.submit(self._begin, manifest, begun)
                    except ZenoError as error:
                        report.failures[entry.name] = error
                try:
                    for entry, (manifest, start) in starts.items():
                        try:
                            plugin = self._finish(manifest, start)
                            self._note_loaded(plugin, entry)
                            report.loaded.append(plugin)
                        except ZenoError as error:
                            report.failures[entry.name] = error
                finally:
                    executor.shutdown(wait=False, cancel_futures=True)
        finally:
            # All have ended by now. Left are those that failed, or all where an exception came.
            kept = {plugin.driver for plugin in self._registry.list_plugins()}
            for driver in begun:
                if driver not in kept:
                    self.discard(driver)
        self._registry.failures.update(report.failures)
        return report

    def _begin(
        self, manifest: Manifest, begun: list[Driver]
    ) -> tuple[Driver, GuestDescription | None]:
        """Start a plugin and note it, so that it is closed whatever becomes of its caller."""
        driver, description = self.start(manifest)
        begun.append(driver)
        return driver, description

    def _finish(
        self, manifest: Manifest, start: Future[tuple[Driver, GuestDescription | None]]
    ) -> LoadedPlugin:
        """Take in a plugin once it is started, or raise what kept it from that."""
        return self._registry.take_in(manifest, *start.result())

    def _read_new(self, folder: Path) -> Manifest:
        """Read the manifest of a plugin that is not loaded yet. Raises as `load` does."""
        manifest = self.read(folder)
        for warning in manifest.warnings:
            logger.warning("%s", warning)
        with self._registry.lock:
            self._registry.refuse_if_closed()
            self._registry.refuse_if_loaded(manifest)
        return manifest

    def read(self, folder: Path) -> Manifest:
        """Read the manifest in a folder. Raises ManifestError or PluginLoadError."""
        return Manifest.load(folder, allow_absolute_binary=self._allow_absolute)

    def _note_loaded(self, plugin: LoadedPlugin, folder: Path) -> None:
        self.folders[plugin.name] = Path(os.path.abspath(folder))
        self._events.emit(
            "plugin_loaded", plugin.name, f"loaded {plugin.version}".rstrip(), logging.DEBUG,
            version=plugin.version, type=plugin.kind, folder=str(plugin.folder),
        )  # fmt: skip

    def read_again(self, plugin: LoadedPlugin) -> Manifest:
        """Read the manifest of a loaded plugin's folder anew. Raises as `read` does."""
        manifest = self.read(self.folders.get(plugin.name, plugin.folder))
        if manifest.name != plugin.name:
            raise PluginLoadError(
                f"{manifest.file} names itself {manifest.name!r} now, and no longer "
                f"{plugin.name!r}; unload the old one and load the folder as a new plugin",
                plugin=plugin.name,
                folder=plugin.folder,
            )
        return manifest

    def start(
        self, manifest: Manifest, *, at_once: bool = False
    ) -> tuple[Driver, GuestDescription | None]:
        """Start a plugin; the caller registers it or gives it to `discard`.

        Args:
            at_once: Whether to start also what waits for its first call.

        Raises PluginLoadError, and UsageError once the manager is closed.
        """
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
            self._registry.begin(driver)
            return driver, driver.start() if at_once else driver.load()
        except BaseException as error:
            self.discard(driver)
            if isinstance(error, ZenoError):
                self._registry.refuse_if_closed()  # which is why, then
            raise

    def discard(self, driver: Driver) -> None:
        """Close what was started and did not become a plugin."""
        try:
            driver.close()
        finally:
            self._registry.discard(driver)

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

        with self._registry.lock:
            self._registry.refuse_if_closed()  # or what is made here would outlive it
            if self._monitor is None:
                self._monitor = Monitor()
            if self._executor is None:
                self._executor = ThreadPoolExecutor(HOST_THREADS, "zeno_fast host")
            if self._jobs is None:
                self._jobs = ThreadPoolExecutor(JOB_THREADS, "zeno_fast job")
        registry = self._registry  # what the driver's threads keep alive: not the manager

        def describe_late(description: GuestDescription) -> None:
            registry.describe_late(manifest, description)

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

    def close(self) -> None:
        """Free what the drivers share; all of them are closed by now."""
        if self._monitor is not None:
            self._monitor.close()
        for executor in (self._jobs, self._executor):
            if executor is not None:
                executor.shutdown(wait=False)
