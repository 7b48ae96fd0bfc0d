"""Watches plugin folders and reloads what has changed, once it is complete."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from zeno_fast.errors import UsageError, ZenoError
from zeno_fast.fingerprint import Baseline, Fingerprint, is_of_no_account
from zeno_fast.loading import MANIFEST_NAME, Loader
from zeno_fast.permissions import granted_path
from zeno_fast.plugin import LoadedPlugin
from zeno_fast.registry import Registry

if TYPE_CHECKING:
    from zeno_fast.events import EventHub
    from zeno_fast.manager import PluginManager

logger = logging.getLogger("zeno_fast.watching")

TICK = 0.1  # seconds between two looks
LONG = 60.0  # seconds of changes after which somebody should know that nothing is reloaded
RETRY = 5.0  # seconds until the system is asked again to watch what it did not want to
CLOSE_TIMEOUT = 5.0  # seconds


class _Changing:
    """A folder in which something has changed and may go on to."""

    def __init__(self) -> None:
        self.began = self.since = time.monotonic()
        self.seen = False
        self.look: Fingerprint | None = None
        self.due = 0.0
        self.reported = False


class Watch:
    """Reloads plugins whose folders change, until `close`; made by `PluginManager.watch`.

    Args:
        manager: Is not kept alive.
        folder: A plugin's folder, or one of such; None for all that the manager loads from.
        settle: Seconds that a folder must rest before it is looked at.

    Raises UsageError where the package `watchfiles` is missing.
    """

    def __init__(
        self,
        manager: PluginManager,
        registry: Registry,
        loader: Loader,
        events: EventHub,
        folder: str | os.PathLike[str] | None,
        settle: float,
    ) -> None:
        if not settle >= 0:
            raise ValueError(f"settle must be 0 or more seconds, not {settle!r}")
        try:
            import watchfiles  # noqa: F401, PLC0415 - it takes as long to import as all the rest
        except ImportError as error:
            raise UsageError(
                "watching folders needs the package watchfiles: pip install 'zeno_fast[watch]'"
            ) from error
        self._manager = weakref.ref(manager)
        self._registry = registry
        self._loader = loader
        self._events = events
        self._folder = None if folder is None else Path(os.path.abspath(folder))
        if self._folder is not None and not self._folder.is_dir():
            raise UsageError(f"{self._folder} cannot be watched: it is no directory")
        self._is_plugin = self._folder is not None and (self._folder / MANIFEST_NAME).is_file()
        self._settle = settle
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._changing: dict[Path, _Changing] = {}
        self._busy: set[Path] = set()
        # Taken here, so that what changes from now on is noticed.
        self._known = {path: self._baseline(path) for path in self._at_start()}
        self._thread = threading.Thread(target=self._run, name="zeno_fast watch", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        """Whether the watch has ended."""
        return self._stop.is_set()

    def close(self) -> None:
        """Stop watching; a reload that has begun goes on. Idempotent, from any thread."""
        self._stop.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_TIMEOUT)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # -- what is watched ----------------------------------------------------------------------

    def _roots(self) -> list[Path]:
        if self._folder is None:
            return list(self._loader.roots)
        return [] if self._is_plugin else [self._folder]

    def _singles(self) -> list[Path]:
        """Return the plugin folders that lie in no root."""
        if self._folder is not None:
            return [self._folder] if self._is_plugin else []
        roots = self._roots()
        names = [plugin.name for plugin in self._registry.list_plugins()]
        folders = [path for name, path in dict(self._loader.folders).items() if name in names]
        return [path for path in folders if path.parent not in roots]

    def _at_start(self) -> list[Path]:
        """Return the folders whose state is that of what is loaded, or of what did not load."""
        failed = self._registry.failures
        return [
            path
            for path in self._candidates()
            if self._plugin_in(path) is not None or path.name in failed
        ]

    def _baseline(self, path: Path) -> Baseline:
        return Baseline(path, Fingerprint.take(path, self._data(path)) or Fingerprint())

    def _candidates(self) -> list[Path]:
        """Return all folders that hold a plugin, or may."""
        found = self._singles()
        for root in self._roots():
            try:
                found += [entry for entry in root.iterdir() if entry.is_dir()]
            except OSError:  # it is not there at the moment
                continue
        return found

    def _plugin_in(self, folder: Path) -> LoadedPlugin | None:
        real = Path(os.path.realpath(folder))
        for plugin in self._registry.list_plugins():
            if self._loader.folders.get(plugin.name) == folder or plugin.folder == real:
                return plugin
        return None

    def _data(self, folder: Path) -> list[Path]:
        """Return what a plugin may write to in its own folder: that is no change of it."""
        plugin = self._plugin_in(folder)
        if plugin is None:
            return []
        binary = plugin.manifest.binary_path
        found = []
        for grant in plugin.manifest.permissions.filesystem:
            path = Path(os.path.normpath(folder / granted_path(grant)))
            real = Path(os.path.realpath(path))
            holds = binary is not None and binary.is_relative_to(real)
            if grant != "*" and path != folder and path.is_relative_to(folder) and not holds:
                found.append(path)
        return found

    def _paths(self) -> list[tuple[str, int, int]]:
        """Return what there is to watch; a folder that was replaced by another is another."""
        found = []
        for path in dict.fromkeys((*self._roots(), *self._singles())):
            try:
                look = path.stat()
            except OSError:
                continue
            found.append((str(path), look.st_dev, look.st_ino))
        return found

    # -- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._watch(self._paths())
            except OSError as error:
                logger.warning("plugin folders cannot be watched, for now: %s", error)
                self._stop.wait(RETRY)
            except Exception:
                logger.exception("the watch over plugin folders failed, and goes on")
                self._stop.wait(RETRY)

    def _watch(self, paths: Sequence[tuple[str, int, int]]) -> None:
        """Look at changes until there is something else to watch."""
        self._touch_all()
        if not paths:
            while not (self._stop.wait(TICK) or self._paths()):
                self._look()
            return
        from watchfiles import watch  # noqa: PLC0415

        changes = watch(
            *(path for path, _, _ in paths),
            watch_filter=None,
            debounce=int(TICK * 1000),
            step=int(TICK * 500),
            rust_timeout=int(TICK * 1000),
            yield_on_timeout=True,
            stop_event=self._stop,
            raise_interrupt=False,
            ignore_permission_denied=True,
        )
        armed = False
        with closing(changes):
            for some in changes:
                if not armed:
                    armed = True
                    self._touch_all()  # what has changed before that was seen by nobody
                self._touch(path for _, path in some)
                self._look()
                if self._paths() != paths:
                    return

    def _touch_all(self) -> None:
        with self._lock:
            for path in (*self._known, *self._candidates()):
                self._changing.setdefault(path, _Changing())

    def _touch(self, changed: Iterable[str]) -> None:
        """Note the plugin folders in which something has changed."""
        folders = {path: 1 for path in self._roots()} | dict.fromkeys(self._singles(), 0)
        real = {Path(os.path.realpath(path)): path for path in folders}
        for text in changed:
            path = Path(text)
            for place in (*folders, *real):
                if path.is_relative_to(place):
                    break
            else:
                self._touch_all()
                return
            folder = real.get(place, place)
            parts = path.relative_to(place).parts
            depth = folders[folder]
            if len(parts) < depth or is_of_no_account(parts[depth:]):
                continue
            folder = folder.joinpath(*parts[:depth])
            within = folder.joinpath(*parts[depth:])
            if any(within.is_relative_to(data) for data in self._data(folder)):
                continue
            with self._lock:
                self._changing.setdefault(folder, _Changing())

    def _look(self) -> None:
        """Act upon each folder that has changed and now rests."""
        with self._lock:
            changing = [pair for pair in self._changing.items() if pair[0] not in self._busy]
        for folder, state in changing:
            now = time.monotonic()
            if now < state.due:
                continue
            look = Fingerprint.take(folder, self._data(folder))
            took = time.monotonic() - now
            state.due = now + 5 * took  # a folder of very many files does not keep a core busy
            if not state.seen or look != state.look:
                state.seen, state.look, state.since = True, look, now
                if now - state.began > LONG and not state.reported:
                    state.reported = True
                    logger.warning(
                        "plugin folder %s has been changing for %.0f s and is loaded once it rests "
                        "for %g s; does the plugin write into it? Then let it write to a folder of "
                        "its own that `permissions.filesystem` grants",
                        folder, now - state.began, self._settle,
                    )  # fmt: skip
            elif now - state.since >= self._settle:
                with self._lock:
                    del self._changing[folder]
                known = self._known.get(folder)
                if look is not None and known is not None and known.looks_like(look):
                    continue
                if look is None and folder not in self._known:
                    continue
                with self._lock:
                    self._busy.add(folder)
                # Each on its own: a plugin that starts slowly, or drains, holds up no other.
                threading.Thread(
                    target=self._act, args=(folder, look), name="zeno_fast reload", daemon=True
                ).start()

    # -- what is done -------------------------------------------------------------------------

    def _act(self, folder: Path, look: Fingerprint | None) -> None:
        known = self._known.get(folder)
        try:
            self._apply(folder, look, known)
        except ZenoError as error:
            logger.debug("plugin folder %s: %s", folder, error)  # the event has told it
        except Exception:
            logger.exception("plugin folder %s could not be dealt with", folder)
        finally:
            if look is None:
                if self._plugin_in(folder) is None:
                    self._known.pop(folder, None)
            else:
                self._known[folder] = Baseline(folder, look, known, self._data(folder))
            with self._lock:
                self._busy.discard(folder)

    def _apply(self, folder: Path, look: Fingerprint | None, known: Baseline | None) -> None:
        manager = self._manager()
        if manager is None or self._stop.is_set():
            return
        plugin = self._plugin_in(folder)
        if look is None:
            if plugin is not None and not folder.parent.is_dir():
                logger.warning("plugin %r goes on serving: all of %s is gone", plugin.name, folder)
            elif plugin is not None:
                logger.warning("plugin %r is unloaded: %s is gone", plugin.name, folder)
                manager.unload_plugin(plugin.name)
        elif known is not None and known.holds_what(look):
            logger.debug("plugin folder %s was touched and holds what it held", folder)
        elif plugin is not None:
            if known is not None:  # else it was loaded just now, by somebody else
                manager.reload_plugin(plugin.name)
        elif (folder / MANIFEST_NAME).is_file():
            self._load(manager, folder)

    def _load(self, manager: PluginManager, folder: Path) -> None:
        try:
            manager.load_plugin(folder)
        except ZenoError as error:
            if not self._registry.closed:
                self._registry.failures[folder.name] = error
                self._events.emit("load_failed", folder.name, f"not loaded: {error}", logging.ERROR)
            raise
        self._registry.failures.pop(folder.name, None)
