"""How a WASM guest's host calls look: the bytes it passes, and the bytes it is answered with."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import orjson

from zeno_fast.host.context import HostCall, current_host_call
from zeno_fast.host.functions import LOG_LEVELS, HostFunctions, HostRefusal
from zeno_fast.log import plugin_logger
from zeno_fast.manifest import Manifest

_LEVELS = {name.encode(): number for name, number in LOG_LEVELS.items()}
# Those that are passed a bare string, and the parameter that it is.
BARE = {"host_scope_get": "key", "host_file_read": "path", "host_env_get": "name"}
# Those that are answered with 1 or 0.
YES_OR_NO = frozenset({"host_scope_set", "host_file_write"})


class HostCalls:
    """Answers the host calls of one plugin; safe from any thread.

    Args:
        manifest: Of the plugin that asks.
        host: What it may ask for.

    Attributes:
        is_logged: Whether messages of a level go to the log.
        pool: The instances of the plugin, set once they are there.
    """

    def __init__(self, manifest: Manifest, host: HostFunctions) -> None:
        self._manifest = manifest
        self._host = host
        self._logger = plugin_logger(manifest.name)
        self.is_logged = self._logger.isEnabledFor
        self.pool: object = None
        self._reads_scope = "read" in manifest.permissions.scope

    def level(self, name: bytes) -> int:
        """Return the number of a level that a guest names."""
        found = _LEVELS.get(name) or _LEVELS.get(name.lower())
        return LOG_LEVELS["info"] if found is None else found

    def log(self, level: int, message: bytes) -> None:
        """Answer `host_log`."""
        self._logger.log(level, "%s", message.decode("utf-8", "replace"))

    def plain_value(self, key: bytes, scope: dict[str, Any]) -> bytes | None:
        """Answer `host_scope_get` out of a plain dict; None where that is for `answer` to do.

        No foreign code runs, so that nothing of what else surrounds a host call is needed.
        """
        if not self._reads_scope:
            return None
        try:
            return orjson.dumps({"success": True, "data": {"value": scope.get(key.decode())}})
        except (UnicodeDecodeError, TypeError):
            return None

    def answer(
        self,
        name: str,
        argument: bytes,
        scope: MutableMapping[str, Any] | None,
        deadline_ns: int,
    ) -> bytes | bool:
        """Answer any import but `host_log`, for a call that expires at `deadline_ns`.

        Returns the text to hand over, without a terminator, or whether it was done.
        """
        try:
            data = self._ask(name, argument, scope, deadline_ns)
        except HostRefusal as refusal:
            self._logger.warning("%s was refused: %s", name, refusal)
            if name in YES_OR_NO:
                return False
            return b"" if name == "host_env_get" else _failure(str(refusal))
        if name in YES_OR_NO:
            return True
        if name == "host_env_get":
            return _env_value(data)
        try:
            return orjson.dumps({"success": True, "data": data})
        except TypeError as error:
            self._logger.error("%s: its result is no JSON: %s", name, error)  # noqa: TRY400
            return _failure(f"{name}: its result is no JSON")

    def _ask(
        self,
        name: str,
        argument: bytes,
        scope: MutableMapping[str, Any] | None,
        deadline_ns: int,
    ) -> Any:
        parameters: Any
        if name in BARE:
            try:
                parameters = {BARE[name]: argument.decode()}
            except UnicodeDecodeError as error:
                raise HostRefusal(f"{name}: the {BARE[name]} is not UTF-8") from error
        else:
            try:
                parameters = orjson.loads(argument)
            except orjson.JSONDecodeError as error:
                raise HostRefusal(f"{name}: the parameters are not JSON: {error}") from error
            if not isinstance(parameters, dict):
                raise HostRefusal(f"{name}: the parameters are not an object")
        function = name.removeprefix("host_")
        host_call = HostCall(
            self._manifest.name, function, deadline_ns, current_host_call(), self.pool
        )
        return self._host.call(self._manifest, parameters, scope, host_call)


def _failure(error: str) -> bytes:
    return orjson.dumps({"success": False, "error": error})


def _env_value(data: Any) -> bytes:
    value = data.get("value") if isinstance(data, Mapping) else data
    return b"" if value is None else str(value).encode("utf-8", "replace")
