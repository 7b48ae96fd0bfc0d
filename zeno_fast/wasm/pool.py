"""The instances of one plugin: lent one call at a time, made when needed, replaced when broken.

This module is compiled, as it stands. Python runs signal handlers between any two instructions of
its own, and an exception that one raises must not come between a count and what it counts.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from zeno_fast import _wasm, _wasmtime
from zeno_fast.errors import PluginUnavailable, SlotTimeout, UsageError, ZenoError
from zeno_fast.host.context import HostCall, current_host_call
from zeno_fast.plugin import GuestDescription
from zeno_fast.wasm.failures import Failures
from zeno_fast.wasm.guest import Guest
from zeno_fast.wasm.startup import GuestMaker

Started = TypeVar("Started")

_pools: weakref.WeakSet[InstancePool] = weakref.WeakSet()
_left_behind: list[Guest] = []


def _forget_threads() -> None:
    """Let go, in the child of a fork, of what was in the hands of threads that are not there."""
    for pool in _pools:
        pool.forget_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


class _Waiter:
    """A caller that waits for an instance; `guest` stays None where it is to make its own.

    Or where it is to go to another driver: then `moved` is set.
    """

    def __init__(self) -> None:
        self.wake = threading.Lock()
        self.wake.acquire()
        self.guest: Guest | None = None
        self.moved = False


class InstancePool:
    """Lends instances; safe from any thread.

    Slots take from `idle` and give back to it themselves while `attention` is empty: this costs no
    lock. Whoever waits puts itself into `attention` first and looks at `idle` again then.

    Args:
        limit: How many instances there may be.
        fresh: Whether each call gets an instance of its own.
    """

    def __init__(self, maker: GuestMaker, failures: Failures, limit: int, fresh: bool) -> None:
        self.idle = _wasm.IdleGuests(limit)
        self.attention: list[object] = ["fresh"] if fresh else []
        self.limit = limit
        self._maker = maker
        self._failures = failures
        self._fresh = fresh
        # Reentrant: the garbage collector may close a forgotten manager at any moment.
        self._lock = threading.RLock()
        self._guests: set[Guest] = set()
        self._count = 0
        self._waiters: deque[_Waiter] = deque()
        self._closed = False
        self._superseded = False
        self._emptied = threading.Event()  # after it was superseded
        self._retired: list[Guest] = []  # idle when the pool was closed, still to be freed
        self._served = 0
        self._broken = 0
        self._recycled = 0
        _pools.add(self)

    def open(self, deadline: int) -> GuestDescription:
        """Make the first instance and return what it says of itself.

        Raises what GuestMaker.start raises.
        """
        with self._lock:
            self._count += 1
        guest, description = self._make(lambda guest: self._maker.start_first(guest, deadline))
        self.release(guest)
        return description

    def acquire(self, slot: str, deadline: int, seconds: float) -> Guest | None:
        """Return an instance for the caller alone; wait for one until `deadline`.

        Returns None once the pool is superseded: the driver says who answers the call.

        Args:
            slot: For messages.
            seconds: How far away the deadline was; for messages.

        Raises SlotTimeout, PluginUnavailable, PluginCrashed or UsageError.
        """
        with self._lock:
            if self._superseded:
                return None
            if self._closed:
                raise self._failures.closed(slot)
            guest = self.idle.take()
            if guest is not None:
                return guest
            waiter = None
            if self._count < self.limit:
                self._count += 1
            else:
                self.refuse_waiting_for_itself(slot, current_host_call())
                waiter = _Waiter()
                self._waiters.append(waiter)
                self.attention.append(waiter)
                guest = self.idle.take()
                if guest is not None:
                    self._forget(waiter)
                    return guest
        if waiter is not None:
            guest = self._wait(waiter, slot, deadline, seconds)
            if guest is not None or waiter.moved:
                return guest
        try:
            return self._make(lambda guest: self._maker.start(guest, deadline))[0]
        except (PluginUnavailable, UsageError):
            raise
        except ZenoError as error:
            if _wasmtime.now_ns() >= deadline:
                raise self._failures.timed_out("a fresh instance", slot, seconds) from error
            raise self._failures.not_started(slot, error) from error

    def refuse_waiting_for_itself(self, slot: str, within: HostCall | None) -> None:
        """Raise PluginUnavailable where all instances wait for the host call that is named.

        Or where this thread runs them all, and a log handler, say, asks for one more.
        """
        thread = threading.get_ident()
        running = sum(guest.owner == thread for guest in self._guests)
        held = 0
        while within is not None:
            held += within.channel is self
            within = within.outer
        if max(held, running) >= self.limit:
            raise self._failures.reentered(slot, self.limit)

    def expired(self, slot: str, seconds: float) -> SlotTimeout:
        """Return the exception for a call whose deadline passed before it was begun."""
        return self._failures.queued_too_long(slot, seconds, self.limit)

    def release(self, guest: Guest) -> None:
        """Take an instance back; replace it where it cannot serve again."""
        with self._lock:
            fit = not (
                guest.broken or guest.worn or self._fresh or self._closed or self._superseded
            )
            if fit and self._waiters:
                self._offer(self._waiters[0], guest)
                return
            if fit:
                self.idle.put(guest)
                return
            self._discard(guest)
            self._broken += guest.broken
            self._recycled += guest.worn
        try:
            self._maker.retire(guest)
        finally:
            with self._lock:
                self._give_up_place()

    def forget_threads(self) -> None:
        """Begin anew with the instances that were idle; only in the child of a fork."""
        self._lock = threading.RLock()
        idle = self.idle.guests()
        # The others were in the middle of a call, and are not fit to be freed either.
        _left_behind.extend(guest for guest in self._guests if guest not in idle)
        self._guests = set(idle)
        self._count = len(idle)
        for waiter in self._waiters:
            if waiter in self.attention:
                self.attention.remove(waiter)
        self._waiters.clear()

    def supersede(self) -> None:
        """Lend no more: who asks, or waits, is sent away. Calls in flight go on."""
        with self._lock:
            if self._closed or self._superseded:
                return
            self._superseded = True
            self.attention.append("superseded")
            self._retire_idle()
            while self._waiters:
                self._waiters[0].moved = True
                self._offer(self._waiters[0], None)
            if self._count == 0:
                self._emptied.set()
        self._free_retired()

    def drain(self, grace: float) -> None:
        """Wait until no call is in flight, or `grace` seconds after the last deadline, or `close`.

        Only after `supersede`.
        """
        began = _wasmtime.now_ns()
        while not (self._emptied.wait(0.05) or self._closed):
            with self._lock:
                last = max((guest.deadline for guest in self._guests), default=0)
            if _wasmtime.now_ns() > max(began, last) + grace * 1e9:
                return

    def begin_close(self) -> None:
        """End calls in flight and lend no more; never blocks, `close` must follow."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.attention.append("closed")
            self._retire_idle()
            for running in self._guests:
                running.interrupt()
            while self._waiters:
                self._offer(self._waiters[0], None)
            if self._count == 0:
                self._maker.close()

    def close(self) -> None:
        """End all instances; whoever still runs one frees it. May be repeated."""
        self.begin_close()
        self._free_retired()

    def _retire_idle(self) -> None:
        while (guest := self.idle.take()) is not None:
            self._discard(guest)
            self._retired.append(guest)

    def _free_retired(self) -> None:
        while self._retired:
            try:
                guest = self._retired.pop()
            except IndexError:  # another thread closes as well
                return
            try:
                self._maker.retire(guest)
            finally:
                with self._lock:
                    self._give_up_place()

    def status(self) -> dict[str, Any]:
        """Say how many instances there are and what became of them."""
        with self._lock:
            guests = list(self._guests)
            return {
                "instances": len(guests),
                "busy": len(guests) - len(self.idle),
                "limit": self.limit,
                "waiting": len(self._waiters),
                "served": self._served + sum(guest.served for guest in guests),
                "broken": self._broken,
                "recycled": self._recycled,
                # Only of those that no other thread is using.
                "memory": sum(guest.memory_size for guest in self.idle.guests()),
            }

    def _make(self, start: Callable[[Guest], Started]) -> tuple[Guest, Started]:
        """Make and start an instance; a place for it is counted already."""
        guest = None
        try:
            guest = self._maker.new()
            self._admit(guest)
            return guest, start(guest)
        except BaseException:
            if guest is not None:
                guest.close()
            with self._lock:
                if guest is not None:
                    self._discard(guest)
                self._give_up_place()
            raise

    def _admit(self, guest: Guest) -> None:
        with self._lock:
            if self._closed:
                raise self._failures.closed()
            self._guests.add(guest)

    def _wait(self, waiter: _Waiter, slot: str, deadline: int, seconds: float) -> Guest | None:
        """Wait to be offered an instance, or None: a place for one."""
        try:
            left = (deadline - _wasmtime.now_ns()) / 1e9
            waiter.wake.acquire(timeout=min(max(left, 0.0), threading.TIMEOUT_MAX))
        except BaseException:
            if not self._forget_locked(waiter):
                self._pass_on(waiter)
            raise
        if self._forget_locked(waiter):
            raise self._failures.queued_too_long(slot, seconds, self.limit)
        if waiter.guest is None and self._closed and not waiter.moved:
            raise self._failures.closed(slot)
        return waiter.guest

    def _pass_on(self, waiter: _Waiter) -> None:
        """Give back what a caller was offered just as it went away."""
        if waiter.guest is not None:
            self.release(waiter.guest)
        elif not waiter.moved:
            with self._lock:
                self._give_up_place()

    def _offer(self, waiter: _Waiter, guest: Guest | None) -> None:
        self._forget(waiter)
        waiter.guest = guest
        waiter.wake.release()

    def _give_up_place(self) -> None:
        """Let the next who waits make an instance of its own; free the module after the last."""
        if self._waiters and not self._closed:
            self._offer(self._waiters[0], None)
            return
        self._count -= 1
        if self._superseded and self._count == 0:
            self._emptied.set()
        if self._closed and self._count == 0:
            self._maker.close()

    def _forget_locked(self, waiter: _Waiter) -> bool:
        with self._lock:
            return self._forget(waiter)

    def _forget(self, waiter: _Waiter) -> bool:
        """Strike a waiter off; False where it was offered something already."""
        if waiter not in self._waiters:
            return False
        self._waiters.remove(waiter)
        self.attention.remove(waiter)
        return True

    def _discard(self, guest: Guest) -> None:
        if guest in self._guests:
            self._guests.remove(guest)
            self._served += guest.served
