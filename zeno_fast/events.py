"""What happens to plugins beside their calls: one event each, logged and given to who asked."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from zeno_fast.log import plugin_logger

logger = logging.getLogger("zeno_fast.events")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a plugin.

    Attributes:
        kind: Such as `worker_started`, `worker_exited`, `breaker_opened`, `plugin_reloaded`.
        plugin: The plugin's name.
        message: The same in a sentence.
        details: Facts that JSON can carry, by name.
        time: Seconds since the epoch.
    """

    kind: str
    plugin: str
    message: str
    details: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    time: float = field(default_factory=time.time)


EventHandler = Callable[[Event], None]


class EventHub:
    """Logs events under the plugin's name and hands them to subscribers; safe from any thread."""

    def __init__(self) -> None:
        self._handlers: tuple[EventHandler, ...] = ()
        self._lock = threading.Lock()

    def subscribe(self, handler: EventHandler) -> Callable[[], None]:
        """Have `handler` called with each event from now on; return what ends that.

        It is called in the thread in which the event happened, often the one that watches all
        plugins, and must not block.
        """
        with self._lock:
            self._handlers += (handler,)

        def unsubscribe() -> None:
            with self._lock:
                self._handlers = tuple(one for one in self._handlers if one is not handler)

        return unsubscribe

    def emit(
        self, kind: str, plugin: str, message: str, level: int = logging.INFO, **details: Any
    ) -> None:
        """Log an event and tell the subscribers; never raises."""
        event = Event(kind, plugin, message, MappingProxyType(details))
        plugin_logger(plugin).log(
            level, "%s", message, extra={"zeno_event": kind, "zeno_details": details}
        )
        for handler in self._handlers:
            try:
                handler(event)
            except Exception:  # an application's hook must not stop the watch over its plugins
                logger.exception("a subscriber failed at %s", kind)
