"""What a guest prints that is no message: lines under its name in the host's log."""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeno_fast._guest_output import GuestOutput

MAX_LINE = 8192  # bytes of one line that are kept
TAIL_LINES = 20
BURST = 500  # lines at once, and
MOST_LINES = 4096  # in one go: of more only the first and the last are looked at
RATE = 200.0  # lines a second after that; the rest is counted

LEVEL = re.compile(
    r"^[\W\d]{0,40}\b(trace|debug|info|notice|warn|warning|error|err|fatal|critical|panic)\b",
    re.IGNORECASE,
)
LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "err": logging.ERROR,
    "fatal": logging.CRITICAL,
    "critical": logging.CRITICAL,
    "panic": logging.CRITICAL,
}


def plugin_logger(plugin: str) -> logging.Logger:
    """Return the logger that carries everything said by, or about, one plugin."""
    return logging.getLogger(f"zeno_fast.plugin.{plugin}")


class GuestLog:
    """Logs a guest's free text line by line, bounded in memory and in rate.

    Args:
        plugin: The plugin's name.
        stream: `stdout` or `stderr`; a prefix of every line logged.
    """

    def __init__(self, plugin: str, stream: str) -> None:
        self._logger = plugin_logger(plugin)
        self._stream = stream
        self._partial = b""
        self._allowance = float(BURST)
        self._refilled = time.monotonic()
        self._suppressed = 0
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the stream, cut anywhere."""
        if len(data) > MOST_LINES and data.count(b"\n") > MOST_LINES:
            data = self._thin(data)
        *lines, rest = data.split(b"\n")
        for line in lines:
            self.line(self._partial + line)
            self._partial = b""
        self._partial = (self._partial + rest)[: MAX_LINE + 1]

    def _thin(self, data: bytes) -> bytes:
        """Count what is too much to be logged, and leave the first lines of it and the last."""
        *first, rest = data.split(b"\n", BURST)
        end = max(0, rest.rfind(b"\n", 0, max(0, len(rest) - MAX_LINE)))
        self._suppressed += rest.count(b"\n", 0, end)
        return b"\n".join((*first, rest[end:].removeprefix(b"\n")))

    def take(self, output: GuestOutput, number: int) -> None:
        """Take what one of a guest's streams has printed meanwhile: 0 is stdout, 1 stderr."""
        text, lost = output.take(number)
        if lost:
            self._partial = b""
            self._logger.warning("%s: %d bytes were not logged", self._stream, lost)
        if text:
            self.feed(text)

    def finish(self) -> None:
        """Log a last line that has no end."""
        if self._partial:
            self.line(self._partial)
            self._partial = b""
        self._report_suppressed()

    def line(self, line: bytes) -> None:
        """Log one line."""
        text = line[:MAX_LINE].decode("utf-8", "replace").rstrip("\r\n \x00")
        if not text:
            return
        self.tail.append(text)
        if not self._allowed():
            self._suppressed += 1
            return
        if self._suppressed:
            self._report_suppressed()
        found = LEVEL.match(text)
        level = LEVELS.get(found[1].lower(), logging.INFO) if found else logging.INFO
        if len(line) > MAX_LINE:
            text += " ..."
        self._logger.log(level, "%s: %s", self._stream, text)

    def _allowed(self) -> bool:
        now = time.monotonic()
        self._allowance = min(float(BURST), self._allowance + (now - self._refilled) * RATE)
        self._refilled = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True

    def _report_suppressed(self) -> None:
        if self._suppressed:
            self._logger.warning(
                "%s: %d lines were not logged, more than %d a second",
                self._stream, self._suppressed, int(RATE),
            )  # fmt: skip
            self._suppressed = 0
