"""Which plugins there are and which slot belongs to whom."""

from __future__ import annotations

import difflib
import logging
import threading
from collections.abc import Callable, Container, Iterable
from dataclasses import replace
from types import MappingProxyType

from zeno_fast.driver import BoundSlot, Driver
from zeno_fast.errors import PluginLoadError, PluginUnavailable, SlotNotFound, UsageError, ZenoError
from zeno_fast.manifest import Manifest
from zeno_fast.plugin import EMPTY, GuestDescription, LoadedPlugin, SlotDefinition

logger = logging.getLogger("zeno_fast")


class Registry:
    """The plugins of one manager and the routes to their slots; safe from any thread.

    Attributes:
        lock: Held while the plugins or routes are changed, and never while one starts or ends.
        plugins: By name.
        routes: Who answers a slot, by its name; looked at without the lock.
        failures: What was wrong with plugin folders that did not load, by the folders' names.
        draining: Drivers that others have taken the place of, and that still have calls.
        closed: Whether the manager takes no more calls.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.plugins: dict[str, LoadedPlugin] = {}
        self.routes: dict[str, BoundSlot] = {}
        self.failures: dict[str, ZenoError] = {}
        self.draining: set[Driver] = set()
        self.closed = False
        self._starting: dict[Driver, int] = {}  # and the thread that does it
        self._changed = threading.Condition(self.lock)
        self._unlisted: dict[tuple[str, str], BoundSlot] = {}
        self._wrap: Callable[[BoundSlot], BoundSlot] | None = None

    def get(self, name: str) -> LoadedPlugin:
        """Return a loaded plugin. Raises PluginUnavailable where none has that name."""
        try:
            return self.plugins[name]
        except KeyError:
            raise PluginUnavailable(
                f"no plugin {name!r} is loaded{_suggest(name, self.plugins)}", plugin=name
            ) from None

    def list_plugins(self) -> list[LoadedPlugin]:
        """Return the loaded plugins in the order of their names."""
        with self.lock:
            return [self.plugins[name] for name in sorted(self.plugins)]

    # -- changing -----------------------------------------------------------------------------

    def begin(self, driver: Driver) -> None:
        """Note a driver that is about to start; `register` or `discard` must follow."""
        with self.lock:
            self.refuse_if_closed()
            self._starting[driver] = threading.get_ident()

    def discard(self, driver: Driver) -> None:
        """Forget a driver that was started and is closed again."""
        with self.lock:
            self._starting.pop(driver, None)
            self._changed.notify_all()

    def take_in(
        self, manifest: Manifest, driver: Driver, description: GuestDescription | None
    ) -> LoadedPlugin:
        """Make a started plugin one of these; one that is refused is the caller's to close."""
        with self.lock:
            self.refuse_if_closed()
            return self.register(manifest, driver, description)

    def register(
        self,
        manifest: Manifest,
        driver: Driver,
        description: GuestDescription | None,
        replacing: LoadedPlugin | None = None,
    ) -> LoadedPlugin:
        """Make a plugin's slots callable; called with the lock held."""
        if replacing is None:
            self.refuse_if_loaded(manifest)  # by now: others may load at the same time
        definitions = _definitions(manifest, description)
        for name in definitions:
            owner = self.routes.get(name)
            if owner is not None and owner.definition.plugin != manifest.name:
                raise PluginLoadError(
                    f"slot {name!r} is claimed by two plugins: {owner.definition.plugin!r} in "
                    f"{self.plugins[owner.definition.plugin].folder} and {manifest.name!r} in "
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
        bound = {name: self._bind(driver, definition) for name, definition in definitions.items()}
        self.plugins[manifest.name] = plugin
        self.routes.update(bound)  # at once, for those who look without the lock
        if replacing is not None:
            self._forget_slots(replacing, bound)
        self.discard(driver)
        return plugin

    def _bind(self, driver: Driver, definition: SlotDefinition) -> BoundSlot:
        bound = driver.bind(definition)
        return bound if self._wrap is None else self._wrap(bound)

    def wrap_slots(self, wrap: Callable[[BoundSlot], BoundSlot] | None) -> None:
        """Have callers get `wrap(slot)` in place of each slot, now and later; None ends that."""
        with self.lock:
            self._wrap = wrap
            for plugin in self.plugins.values():
                for name, definition in plugin.slots.items():
                    self.routes[name] = self._bind(plugin.driver, definition)
            self._unlisted.clear()

    def describe_late(self, manifest: Manifest, description: GuestDescription) -> None:
        """Take in what a plugin offers that was only started by its first call."""
        with self.lock:
            plugin = self.plugins.get(manifest.name)
            if plugin is None or plugin.manifest is not manifest or self.closed:
                return
            try:
                self.register(manifest, plugin.driver, description, replacing=plugin)
            except PluginLoadError as error:
                self.failures[manifest.folder.name] = error
                logger.error("%s", error)  # noqa: TRY400 - the message says it all

    def remove(self, name: str) -> LoadedPlugin:
        """Forget a plugin and return it. Raises PluginUnavailable where none has that name."""
        with self.lock:
            plugin = self.get(name)
            self._forget(plugin)
        return plugin

    def close(self) -> list[Driver]:
        """Forget all plugins, take in no more, and return the drivers that have to be closed.

        Those that start are told to give up; whoever starts them closes them, see `wait_closed`.
        """
        with self.lock:
            self.closed = True
            drivers = [plugin.driver for plugin in self.plugins.values()]
            drivers += self.draining
            self.plugins.clear()
            self.routes.clear()
            self._unlisted.clear()
            starting = list(self._starting)
        for driver in starting:
            driver.begin_close()
        return drivers

    def wait_closed(self, timeout: float) -> None:
        """Wait until what other threads were starting at `close` is gone."""
        with self.lock:
            if threading.get_ident() not in self._starting.values():
                self._changed.wait_for(lambda: not self._starting, timeout)

    def refuse_if_closed(self) -> None:
        """Raise UsageError once the manager is closed."""
        if self.closed:
            raise UsageError("the plugin manager is closed")

    def refuse_if_loaded(self, manifest: Manifest) -> None:
        """Raise PluginLoadError where a plugin of the same name is there."""
        if manifest.name in self.plugins:
            raise PluginLoadError(
                f"plugin {manifest.name!r} in {manifest.folder} is loaded already, from "
                f"{self.plugins[manifest.name].folder}",
                plugin=manifest.name,
                folder=manifest.folder,
            )

    def _forget(self, plugin: LoadedPlugin) -> None:
        del self.plugins[plugin.name]
        self._forget_slots(plugin, ())

    def _forget_slots(self, plugin: LoadedPlugin, kept: Container[str]) -> None:
        for name in plugin.slots:
            if name not in kept:
                self.routes.pop(name, None)
        for key in [key for key in self._unlisted if key[0] == plugin.name]:
            del self._unlisted[key]

    # -- finding ------------------------------------------------------------------------------

    def find(self, slot: str) -> BoundSlot:
        """Return who answers a slot, starting plugins that have not said yet what they offer."""
        bound = self.routes.get(slot)
        if bound is not None:
            return bound
        self.refuse_if_closed()
        for plugin in self.list_plugins():
            if plugin.slots or plugin.driver.described:
                continue
            plugin.driver.describe()
            bound = self.routes.get(slot)
            if bound is not None:
                return bound
        message = f"no loaded plugin has a slot {slot!r}{_suggest(slot, self.routes)}"
        silent = [plugin.name for plugin in self.list_plugins() if not plugin.slots]
        if silent:
            message += (
                f"; {', '.join(map(repr, silent))} lists no slots and is called with "
                f"execute_slot({silent[0]!r}, {slot!r})"
            )
        raise SlotNotFound(message, slot=slot)

    def find_in(self, name: str, slot: str) -> BoundSlot:
        """Return the slot of a named plugin, listed or, where it lists none, unlisted."""
        bound = self.routes.get(slot)
        if bound is not None and bound.definition.plugin == name:
            return bound
        bound = self._unlisted.get((name, slot))
        if bound is not None:
            return bound
        self.refuse_if_closed()
        plugin = self.get(name)
        if not plugin.slots and not plugin.driver.described:
            plugin.driver.describe()
        with self.lock:
            plugin = self.get(name)
            if slot in plugin.slots:
                return self.routes[slot]
            if plugin.slots:
                raise SlotNotFound(
                    f"plugin {name!r} has no slot {slot!r}{_suggest(slot, plugin.slots)}",
                    plugin=name,
                    slot=slot,
                )
            bound = self._bind(plugin.driver, SlotDefinition(slot, plugin=name))
            return self._unlisted.setdefault((name, slot), bound)


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
