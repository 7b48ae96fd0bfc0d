"""The memory that one sidecar process shares with the host: its rings, and buffers it is given."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterable, MutableMapping
from typing import TYPE_CHECKING, Any

import orjson

from zeno_fast._shm import Arena, Buffer, Segment

if TYPE_CHECKING:
    from zeno_fast._channel import Channel
    from zeno_fast.manifest import SidecarOptions

BUFFER = struct.Struct("<QQ")  # id and size, with which a buffer's descriptor comes
STANDARD_FDS = 2  # the last of a program's own descriptors


class Sharing:
    """What a process may share, offered in its environment; taken up once its guest says so.

    Attributes:
        why_lines: Why it is spoken to in lines; empty where it is not.
        environment: What the process finds in its environment.
        pass_fds: The descriptors that it inherits; `started` closes them, but for the arena's.

    Args:
        options: The manifest's.
        arena: Of the plugin, for the bytes that calls come with; None where there is none.
        silent: Whether the guest does not answer `plugin_init`, and so cannot take anything up.
    """

    def __init__(self, options: SidecarOptions, arena: Arena | None, silent: bool) -> None:
        self.environment: dict[str, str] = {}
        self.pass_fds: tuple[int, ...] = ()
        self._lock = threading.Lock()
        self._segment: Segment | None = None
        self._socket: socket.socket | None = None
        self._theirs: socket.socket | None = None
        self._given: MutableMapping[int, Buffer] | None = None  # None where it takes no buffers
        self._given_ids: set[int] = set()
        self.why_lines = self._offer(options, arena, silent)

    def _offer(self, options: SidecarOptions, arena: Arena | None, silent: bool) -> str:
        """Make what is offered; return why there is nothing."""
        if options.transport == "stdio":
            return "the manifest says `transport: stdio`"
        if silent:
            return "the guest does not answer plugin_init"
        try:
            segment = Segment(options.ring_size, options.arena_size)
        except OSError as error:
            return f"the system gave no shared memory: {error.strerror}"
        if segment.fd <= STANDARD_FDS:  # one that the host has closed; it will be the guest's own
            segment.close_fd()
            return "the host has closed one of its standard streams"
        self._segment = segment
        self.environment["ZENO_SHM"] = segment.announcement
        self.pass_fds = (segment.fd,)
        if arena is not None:
            self.environment["ZENO_ARENA"] = arena.announcement
            self.pass_fds += (arena.fd,)
            with contextlib.suppress(OSError):  # then buffers are copied
                self._socket, self._theirs = socket.socketpair(
                    socket.AF_UNIX, socket.SOCK_SEQPACKET
                )
                self._socket.setblocking(False)
                self.environment["ZENO_BUFFERS"] = str(self._theirs.fileno())
                self.pass_fds += (self._theirs.fileno(),)
        return ""

    def started(self) -> None:
        """Let go of what is the process's now. Idempotent."""
        if self._segment is not None:
            self._segment.close_fd()
        if self._theirs is not None:
            self._theirs.close()

    def take_up(self, channel: Channel, features: list[Any], buffers: Iterable[Buffer]) -> None:
        """Have a channel use the rings if the guest has said that it reads them.

        Args:
            features: What the guest has said that it understands, when it was greeted.
            buffers: Those that calls may refer to already.
        """
        segment, self._segment = self._segment, None  # the channel keeps what it uses
        if segment is None:
            return
        if "shm" not in features:
            self.why_lines = "the guest did not announce `shm` among its features"
        elif not channel.returns_ids:
            self.why_lines = "the guest announced `shm`, but returns no ids"
        else:
            channel.use_ring(segment)
            if "buffers" in features and self._socket is not None:
                self._given = segment.given
                for buffer in buffers:
                    self.give(buffer, channel)

    def give(self, buffer: Buffer, channel: Channel) -> bool:
        """Let the process have a buffer; return whether it has it now."""
        given = self._given
        if given is None:
            return False
        if given.get(buffer.id) is buffer:
            return True
        self.forget_buffers(channel)
        with self._lock:  # or another descriptor might have its number
            if self._socket is None:
                return False
            try:
                socket.send_fds(self._socket, [BUFFER.pack(buffer.id, buffer.nbytes)], [buffer.fd])
            except OSError:  # it is ending, or takes none out
                return False
            given[buffer.id] = buffer
            self._given_ids.add(buffer.id)
        return True

    def forget_buffers(self, channel: Channel) -> None:
        """Have the process let go of buffers that nobody has any more."""
        given = self._given
        if given is None or len(self._given_ids) <= len(given):
            return
        with self._lock:
            gone = [id for id in self._given_ids if id not in given]
            self._given_ids.difference_update(gone)
        channel.send(b'{"type":"forget_buffers","buffers":%b}\n' % orjson.dumps(gone))

    def close(self) -> None:
        """Let go of all of it; what calls have brought stays. Idempotent."""
        self.started()
        self._segment = None
        with self._lock:
            ours, self._socket = self._socket, None
        if ours is not None:
            ours.close()
