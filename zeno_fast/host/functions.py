"""The functions that guests may call on the host, the same for both kinds of plugins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from zeno_fast import permissions
from zeno_fast.errors import PermissionDenied
from zeno_fast.host.context import CURRENT, MAX_DEPTH, HostCall

if TYPE_CHECKING:
    from zeno_fast.manifest import Manifest

HostCallback = Callable[[dict[str, Any]], Any]

LOG_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# Function -> the kind of permission it needs, and the parameter that names the resource.
GUARDED = {
    "db_query": ("database", "connection"),
    "http_request": ("network", "url"),
    "file_read": ("filesystem", "path"),
    "file_write": ("filesystem", "path"),
    "env_get": ("env", "name"),
}


# In place of a scope: a sidecar did not say for which of several calls it asks.
UNKNOWN_CALL: MutableMapping[str, Any] = {}


class HostRefusal(Exception):
    """The host does not do what a guest asked for; the text is the guest's answer."""


class HostFunctions:
    """Answers the host calls of every plugin of one manager; safe from any thread."""

    def __init__(self) -> None:
        self._callbacks: dict[str, HostCallback] = {}

    def set_callback(self, name: str, function: HostCallback | None) -> None:
        """Let `function` answer the host calls of that name, or nobody where it is None."""
        if function is None:
            self._callbacks.pop(name, None)
        else:
            self._callbacks[name] = function

    def call(
        self,
        plugin: Manifest,
        parameters: Mapping[str, Any] | None,
        scope: MutableMapping[str, Any] | None,
        host_call: HostCall,
    ) -> Any:
        """Do what a guest asks for and return the answer's data.

        Args:
            plugin: Who asks; its permissions are checked first.
            scope: What the call that the guest works on was given as `scope`.
            host_call: What is asked for, and until when; the current one meanwhile.

        Raises HostRefusal; whatever a callback raised was logged by then.
        """
        function = host_call.function
        if parameters is not None and not isinstance(parameters, Mapping):
            raise HostRefusal(f"{function}: parameters must be an object")
        given = dict(parameters or {})
        if host_call.depth > MAX_DEPTH:
            raise HostRefusal(
                f"{function}: {MAX_DEPTH} host functions wait for each other's slots already"
            )
        if function != "log" and host_call.remaining() == 0:
            raise HostRefusal(f"{function}: the time of the call that asks for it is up")
        token = CURRENT.set(host_call)
        try:
            return self._answer(plugin, function, given, scope)
        except PermissionDenied as denied:
            raise HostRefusal(str(denied)) from None
        except HostRefusal:
            raise
        except BaseException as error:
            # Whatever it is, SystemExit too: the guest waits for an answer, the host goes on.
            logging.getLogger(f"zeno_fast.plugin.{plugin.name}").exception(
                "host function %s failed", function
            )
            raise HostRefusal(f"{function} failed: {type(error).__name__}: {error}") from error
        finally:
            CURRENT.reset(token)

    def _answer(
        self,
        plugin: Manifest,
        function: str,
        given: dict[str, Any],
        scope: MutableMapping[str, Any] | None,
    ) -> Any:
        if function == "log":
            return self.log(plugin, given.get("level"), given.get("message", given.get("msg")))
        if function in ("scope_get", "scope_set"):
            return self._scope(plugin, function, given, scope)
        if function in GUARDED:
            kind, key = GUARDED[function]
            permissions.check(plugin.permissions, plugin.folder, kind, str(given.get(key, "")))
        callback = self._callbacks.get(function)
        if callback is None:
            raise HostRefusal(f"the host offers no function {function!r}")
        return callback(given)

    def log(self, plugin: Manifest, level: Any, message: Any) -> None:
        """Write a guest's own log message to the log, under the plugin's name."""
        number = LOG_LEVELS.get(str(level).lower(), logging.INFO)
        logging.getLogger(f"zeno_fast.plugin.{plugin.name}").log(number, "%s", message)

    def _scope(
        self,
        plugin: Manifest,
        function: str,
        given: Mapping[str, Any],
        scope: MutableMapping[str, Any] | None,
    ) -> Any:
        mode = "read" if function == "scope_get" else "write"
        permissions.check(plugin.permissions, plugin.folder, "scope", mode)
        if scope is UNKNOWN_CALL:
            raise HostRefusal(
                f"{function}: it is not known for which call; where several are pending, the host "
                "call has to name its own in call_id"
            )
        if scope is None:
            raise HostRefusal(f"{function}: the call was made without a scope")
        key = given.get("key")
        if not isinstance(key, str):
            raise HostRefusal(f"{function}: key must be a string")
        if function == "scope_get":
            return {"value": scope.get(key)}
        scope[key] = given.get("value")
        return {}
