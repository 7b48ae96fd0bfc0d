"""What a host program holds: loads plugins, calls their slots, closes them all."""

from __future__ import annotations

import atexit
import logging
import os
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from zeno_fast import permissions
from zeno_fast._shm import Buffer
from zeno_fast.driver import BoundSlot, Parameters, Scope
from zeno_fast.errors import PermissionDenied, SlotError, ZenoError
from zeno_fast.events import EventHandler, EventHub
from zeno_fast.host.functions import HostCallback, HostFunctions
from zeno_fast.limits import NO_LIMITS, WasmLimits
from zeno_fast.loading import Loader, LoadReport
from zeno_fast.plugin import LoadedPlugin, Response, SlotDefinition
from zeno_fast.registry import Registry
from zeno_fast.reloading import Reloader
from zeno_fast.stream import Stream

if TYPE_CHECKING:
    from zeno_fast.publication import Publication
    from zeno_fast.watching import Watch

__all__ = ["LoadReport", "PluginManager"]

logger = logging.getLogger("zeno_fast")

CLOSE_TIMEOUT = 10.0  # seconds that others may take to give up what they were starting


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
        self._host = HostFunctions()
        self._registry = Registry()
        self._routes = self._registry.routes
        self._find = self._registry.find
        self._events = EventHub()
        self._loader = Loader(
            self._registry, self._host, timeout, max_message, wasm_limits,
            allow_absolute_binaries, self._events,
        )  # fmt: skip
        self._watches: list[Watch] = []
        self._publication: Publication | None = None
        self._reloader = Reloader(self._registry, self._loader, self._events)
        _close_at_exit(self)
        if os.environ.get("ZENO_FAST_PUBLISH") == "1":
            self.publish_status()
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
        bound = self._registry.find_in(plugin, slot)
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
        return self._loader.load(folder)

    def load_plugins_from_dir(self, folder: str | os.PathLike[str]) -> LoadReport:
        """Load every plugin folder directly below `folder`; one that fails keeps none from loading.

        They are compiled and started at the same time, and belong to the manager in the order of
        their folders' names: of two that claim a name or a slot the first has it.

        Raises PluginLoadError where `folder` is no directory.
        """
        return self._loader.load_all(folder)

    def unload_plugin(self, name: str) -> None:
        """End a plugin and forget it. Raises PluginUnavailable where none has that name."""
        self._registry.remove(name).driver.close()
        self._events.emit("plugin_unloaded", name, "unloaded", logging.DEBUG)

    def reload_plugin(self, name: str, *, allow_more_permissions: bool = False) -> LoadedPlugin:
        """Start what is in a plugin's folder now, switch to it, and end the old version.

        No call is lost: those in flight are ended by the old version, which this waits for, at
        most until their deadlines; all others are answered by the new one. Reloads of one plugin
        come one after the other, and hold up no other plugin.

        Args:
            allow_more_permissions: Whether the new version may have permissions which the running
                one has not, or be a native process where that one was WASM.

        A version that does not load leaves the old one serving and raises ManifestError,
        PluginLoadError or, where it asks for more, PermissionDenied.
        """
        return self._reloader.reload(name, allow_more_permissions)

    def reset_plugin(self, name: str) -> None:
        """Forgive a plugin the failures for which it is refused; it is started again.

        Raises PluginUnavailable where none has that name.
        """
        self.get_plugin(name).driver.reset()

    def reload_all_plugins(self, *, allow_more_permissions: bool = False) -> LoadReport:
        """Reload every plugin as `reload_plugin` does; the failures leave their old one serving."""
        return self._reloader.reload_all(allow_more_permissions)

    def watch(self, folder: str | os.PathLike[str] | None = None, *, settle: float = 0.5) -> Watch:
        """Reload plugins whose folders change, until the result is closed or the manager is.

        Plugin folders that appear are loaded, those that vanish are unloaded. What fails is logged
        and an event, leaves the old version serving, and is tried again after the next change.

        Args:
            folder: A plugin's folder, or a directory of such; None for all that the manager loads
                from, now and later.
            settle: Seconds for which nothing may have changed in a folder before it is acted upon.

        Raises UsageError where the package `watchfiles` is missing, or `folder` is none.
        """
        from zeno_fast.watching import Watch  # noqa: PLC0415 - few programs watch

        self._registry.refuse_if_closed()
        watch = Watch(self, self._registry, self._loader, self._events, folder, settle)
        self._watches = [*(other for other in self._watches if not other.closed), watch]
        if self._registry.closed:  # by another thread, which may not have seen it
            watch.close()
        return watch

    # -- looking ------------------------------------------------------------------------------

    @property
    def slots(self) -> Mapping[str, SlotDefinition]:
        """The definitions of all slots, by name, at this moment."""
        with self._registry.lock:
            return MappingProxyType(
                {name: self._routes[name].definition for name in sorted(self._routes)}
            )

    @property
    def failures(self) -> Mapping[str, ZenoError]:
        """What was wrong with each plugin folder that did not load, by its name."""
        return MappingProxyType(dict(self._registry.failures))

    def get_plugin(self, name: str) -> LoadedPlugin:
        """Return a loaded plugin. Raises PluginUnavailable where none has that name."""
        return self._registry.get(name)

    def list_plugins(self) -> list[LoadedPlugin]:
        """Return the loaded plugins in the order of their names."""
        return self._registry.list_plugins()

    def status(self) -> dict[str, Any]:
        """Say how the manager and each plugin do, in values that JSON can carry."""
        return {
            "closed": self._registry.closed,
            "plugins": {plugin.name: plugin.status() for plugin in self.list_plugins()},
            "failures": {name: str(error) for name, error in self._registry.failures.items()},
        }

    def wrap_slots(self, wrap: Callable[[BoundSlot], BoundSlot] | None) -> None:
        """Have callers go through `wrap(slot)` from now on, as telemetry does; None ends that."""
        self._registry.wrap_slots(wrap)

    def on_event(self, handler: EventHandler) -> Callable[[], None]:
        """Have `handler` told what happens to plugins beside their calls; return what ends that.

        It is called in the thread in which it happens, often one that watches all plugins, and must
        not block; what it raises is logged. docs/operations.md lists the events.
        """
        return self._events.subscribe(handler)

    def publish_status(self) -> None:
        """Let other processes of this user see `status`, as `zeno-fast status` and `top` do.

        Until the manager is closed, over a local socket that leaves nothing behind. So does
        ZENO_FAST_PUBLISH=1 in the environment, for every manager.
        """
        from zeno_fast.publication import Publication  # noqa: PLC0415 - few programs publish

        self._registry.refuse_if_closed()
        with self._registry.lock:
            if self._publication is not None:
                return
            reference = weakref.ref(self)

            def status() -> dict[str, Any]:
                manager = reference()
                return {"closed": True, "plugins": {}} if manager is None else manager.status()

            self._publication = Publication(status)
        if self._registry.closed:  # by another thread, which may not have seen it
            self._publication.close()

    def check_permission(self, plugin: str, kind: str, resource: str) -> None:
        """Raise PermissionDenied unless a plugin's manifest allows it the resource.

        Args:
            kind: `network`, `filesystem`, `env`, `database` or `scope`.
            resource: A URL, a path, a name, or `read` or `write`.
        """
        loaded = self._registry.plugins.get(plugin)
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

    def buffer(self, nbytes: int) -> Buffer:
        """Return memory that plugins can be given without a copy, whatever its size.

        It has the buffer protocol, so that NumPy or `readinto` can fill it. As a parameter of a
        call it, or any view of a part of it, reaches a sidecar that takes shared memory as it is;
        the sidecar may write to it, and answer with a view of it, which may go on to the next
        plugin. Everywhere else it is copied. Raises OSError where the system has none to share.
        """
        return Buffer(nbytes)

    # -- closing ------------------------------------------------------------------------------

    def close(self) -> None:
        """End every plugin and wait until all are gone. Idempotent, from any thread."""
        drivers = self._registry.close()
        for watch in self._watches:
            watch.close()
        if self._publication is not None:
            self._publication.close()
        with ExitStack() as stack:
            stack.callback(self._loader.close)
            stack.callback(self._registry.wait_closed, CLOSE_TIMEOUT)
            for driver in drivers:
                stack.callback(driver.close)
            for driver in drivers:
                driver.begin_close()  # all at once; each is waited for afterwards

    def __del__(self) -> None:
        if not hasattr(self, "_watches") or self._registry.closed:
            return
        if self._registry.plugins or any(not watch.closed for watch in self._watches):
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


def _close_at_exit(manager: PluginManager) -> None:
    """Close a manager at the interpreter's exit unless it is gone by then."""
    reference = weakref.ref(manager)

    def close() -> None:
        alive = reference()
        if alive is not None:
            alive.close()

    atexit.register(close)
    weakref.finalize(manager, atexit.unregister, close).atexit = False
