"""The errors of zeno_fast, ordered by what the caller has to do about them.

ZenoError
├── fix what was passed in
│   ├── ManifestError(ValueError)       the manifest is wrong: file, line, column, key
│   ├── InvalidParameters(ValueError)   the parameters do not fit the slot's inputs
│   ├── MessageTooLarge(ValueError)     a request or an answer is above the limit
│   ├── SlotNotFound(KeyError)          no loaded plugin has that slot
│   ├── PermissionDenied(PermissionError)   the manifest does not allow it
│   └── UsageError(RuntimeError)        the API was used in a way it does not allow
├── read the plugin's log
│   └── PluginLoadError                 the plugin could not be made ready
├── carry on
│   └── SlotError                       the guest said no
└── the guest is gone or going; the host sees to it
    ├── SlotTimeout(TimeoutError)       no answer until the deadline
    ├── PluginCrashed                   the guest ended or trapped during the call
    ├── PluginUnavailable               restart limit reached, queue full, closed
    └── ProtocolError                   the guest broke the protocol
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = [
    "InvalidParameters",
    "ManifestError",
    "MessageTooLarge",
    "PermissionDenied",
    "PluginCrashed",
    "PluginLoadError",
    "PluginUnavailable",
    "ProtocolError",
    "SlotError",
    "SlotNotFound",
    "SlotTimeout",
    "UsageError",
    "ZenoError",
]


class ZenoError(Exception):
    """Everything that zeno_fast raises on purpose.

    Attributes:
        plugin: Name of the plugin concerned, or None.
        slot: Name of the slot concerned, or None.
    """

    def __init__(self, message: str, *, plugin: str | None = None, slot: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.plugin = plugin
        self.slot = slot

    def __str__(self) -> str:
        return self.message


class ManifestError(ZenoError, ValueError):
    """A manifest that cannot be used.

    Attributes:
        file: The manifest's path.
        line: 1-based line of the offending value, or None where there is none.
        column: 1-based column of it, or None.
        key: Dotted path of the key, such as `sidecar.protocol`, or None.
        expected: What should have stood there, or None.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: str | Path,
        line: int | None = None,
        column: int | None = None,
        key: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
        plugin: str | None = None,
    ) -> None:
        self.file = Path(file)
        self.line = line
        self.column = column
        self.key = key
        self.expected = expected
        self.hint = hint
        place = str(file)
        if line is not None:
            place += f":{line}"
            if column is not None:
                place += f":{column}"
        text = f"{place}: "
        if key:
            text += f"{key}: "
        text += problem
        if expected:
            text += f"; expected {expected}"
        if hint:
            text += f" ({hint})"
        super().__init__(text, plugin=plugin)


class InvalidParameters(ZenoError, ValueError):
    """Parameters that do not fit the slot's declared inputs, or that JSON cannot carry.

    Attributes:
        key: The parameter's name, or the path to the value inside it, such as `user.tags[2]`.
    """

    def __init__(
        self,
        message: str,
        *,
        key: str | None = None,
        plugin: str | None = None,
        slot: str | None = None,
    ) -> None:
        super().__init__(message, plugin=plugin, slot=slot)
        self.key = key


class MessageTooLarge(ZenoError, ValueError):
    """A request, an answer or what waits of a stream is above the plugin's limit; nothing broke.

    Attributes:
        nbytes: Its size in bytes, or None where it is not known.
        limit: What is allowed, in bytes: `sidecar.max_request` or `sidecar.max_response`.
    """

    def __init__(
        self,
        message: str,
        *,
        limit: int,
        nbytes: int | None = None,
        plugin: str | None = None,
        slot: str | None = None,
    ) -> None:
        super().__init__(message, plugin=plugin, slot=slot)
        self.nbytes = nbytes
        self.limit = limit


class SlotNotFound(ZenoError, KeyError):
    """No loaded plugin offers the slot."""


class PermissionDenied(ZenoError, PermissionError):
    """The plugin's manifest does not allow what it asked for; the message says which line would."""


class UsageError(ZenoError, RuntimeError):
    """The API was used in a way that it does not allow, such as after `close`."""


class PluginLoadError(ZenoError):
    """A plugin that could not be made ready to answer.

    Attributes:
        folder: The plugin's folder, or None.
    """

    def __init__(
        self, message: str, *, plugin: str | None = None, folder: str | Path | None = None
    ) -> None:
        super().__init__(message, plugin=plugin)
        self.folder = Path(folder) if folder is not None else None


class SlotError(ZenoError):
    """The guest answered that the slot failed; `message` is its own text.

    Attributes:
        data: What the guest sent beside the error, usually None.
    """

    def __init__(
        self,
        message: str,
        *,
        data: Any = None,
        plugin: str | None = None,
        slot: str | None = None,
    ) -> None:
        super().__init__(message, plugin=plugin, slot=slot)
        self.data = data


class SlotTimeout(ZenoError, TimeoutError):
    """The deadline passed without an answer."""


class PluginCrashed(ZenoError):
    """The guest ended, or trapped, while a call was pending.

    Attributes:
        exit_status: The process's exit status, or None for a signal or a trap.
        signal: The number of the signal that ended the process, or None.
        stderr: The last lines that the guest wrote to stderr, joined by newlines.
    """

    def __init__(
        self,
        message: str,
        *,
        exit_status: int | None = None,
        signal: int | None = None,
        stderr: str = "",
        plugin: str | None = None,
        slot: str | None = None,
    ) -> None:
        super().__init__(message, plugin=plugin, slot=slot)
        self.exit_status = exit_status
        self.signal = signal
        self.stderr = stderr


class PluginUnavailable(ZenoError):
    """The plugin takes no calls now: restart limit reached, queue full, or closed."""


class ProtocolError(ZenoError):
    """The guest broke the protocol in a way that cannot be skipped."""
