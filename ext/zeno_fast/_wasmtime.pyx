"""The loaded wasmtime library as C code calls it, and the clock that ends calls into it.

The `wasmtime` package has loaded the library already; this module takes the addresses of the few
functions that a call needs out of it, once, and compares the sizes of their arguments and structs
with what it was written for. Where they differ, `MISMATCH` says so and nothing else here but the
time must be used.
"""

cimport cython
from cpython.exc cimport PyErr_CheckSignals
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc

from zeno_fast._nesting cimport inherited
from zeno_fast.wasmtime_c cimport Extern, Func, GuestInstance, Memory, Text, Value
from zeno_fast.watch cimport (
    ZW_NEVER, zw_add, zw_arm, zw_load, zw_now, zw_start, zw_store, zw_swap, zw_ticker, zw_wake,
    zw_watch,
)

import atexit
import ctypes
import os
import threading

from wasmtime import _ffi

from zeno_fast.errors import UsageError
from zeno_fast.wasm.library import addresses, find_mismatch

STRUCT_SIZES = {
    "wasmtime_func_t": sizeof(Func),
    "wasmtime_memory_t": sizeof(Memory),
    "wasmtime_val_raw_t": sizeof(Value),
    "wasmtime_instance_t": sizeof(GuestInstance),
    "wasmtime_extern_t": sizeof(Extern),
    "wasm_byte_vec_t": sizeof(Text),
}
MISMATCH = find_mismatch(_ffi, STRUCT_SIZES)


cdef int _load() except -1:
    """Fill in `lib`, member after member."""
    cdef void **member = <void **> &lib
    cdef uintptr_t address
    for address in addresses(_ffi):
        member[0] = <void *> address
        member += 1
    return 0

if not MISMATCH:
    _load()


cdef void *pointer_of(object managed) except NULL:
    """Return the address that an object of the package stands for."""
    cdef uintptr_t address = ctypes.cast(managed.ptr(), ctypes.c_void_p).value
    return <void *> address


cdef tuple why_ended(void *trap, void *error):
    """Say what ended a call: the library's text, the exit status or None, the trap's code or None.

    Args:
        trap: Borrowed; NULL where it was the error.
        error: Borrowed; not looked at where there is a trap.
    """
    cdef Text text
    cdef uint8_t code = 0
    cdef int status = 0
    if trap is not NULL:
        coded = lib.trap_code(trap, &code)
        lib.trap_message(trap, &text)
        return _take_text(&text), None, code if coded else None
    exited = lib.error_exit_status(error, &status)
    lib.error_message(error, &text)
    return _take_text(&text), status if exited else None, None


cdef str _take_text(Text *text):
    """Decode and free a text of the library's."""
    try:
        return text.data[:text.size].decode("utf-8", "replace").rstrip("\0 \n")
    finally:
        lib.text_delete(text)


cpdef int64_t now_ns() noexcept nogil:
    """Return the time by the clock that deadlines are measured with."""
    return zw_now()


def deadline_ns(double seconds):
    """Return the time `seconds` from now, by the clock of `now_ns`."""
    return inherited(deadline_after(zw_now(), seconds))


cdef int64_t deadline_after(int64_t now, double seconds) noexcept nogil:
    if seconds > 1e9:
        return ZW_NEVER - 1
    if not seconds > 0:
        return now
    return now + <int64_t> (seconds * 1e9)


# A guest is interrupted by raising its engine's epoch; every store in there then asks `_on_epoch`
# whether its own call is due. Nothing ticks while guests answer in time.

cdef enum:
    POLL_NS = 100_000_000  # how often a guest in the main thread lets Python look for signals

cdef zw_ticker ticker
cdef zw_watch *free_watches = NULL
cdef bint ticking = False
cdef long main_thread = threading.main_thread().ident
ticker.next = ZW_NEVER
ticker.interrupt = lib.increment_epoch


cdef int _start_ticker() except -1:
    global ticking
    if zw_start(&ticker) != 0:
        raise RuntimeError("the thread that interrupts WASM guests cannot be started")
    ticking = True
    return 0


def _stop_ticker():
    """Let the ticker's thread end; a later call starts it anew."""
    global ticking
    if ticking:
        ticking = False
        zw_swap(&ticker.stopping, 1)
        zw_wake(&ticker)


def _forget_ticker():
    """Note, in the child of a fork, that the ticker's thread has stayed behind."""
    global ticking, main_thread
    ticking = False
    main_thread = PyThread_get_thread_ident()


atexit.register(_stop_ticker)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_ticker)


def keep_engine(engine):
    """Return the address of an engine for `Watch`; it is kept alive, for the ticker, for good."""
    return <uintptr_t> lib.engine_clone(pointer_of(engine))


@cython.final
cdef class Watch:
    """Ends the calls of one guest at their deadline.

    Only `expire` may be called from any thread; all else is up to whoever makes the calls.

    Args:
        store_address: Of the guest's store; used only here, never kept.
        engine_address: What `keep_engine` returned for the store's engine.
    """

    def __init__(self, uintptr_t store_address, uintptr_t engine_address):
        if MISMATCH:
            raise UsageError(MISMATCH)
        if self._watch is not NULL:
            raise UsageError("a watch watches one store")
        cdef zw_watch *watch = _new_watch()
        self._watch = watch
        watch.engine = <void *> engine_address
        watch.owner = <void *> self
        lib.epoch_callback(<void *> store_address, _on_epoch, watch, NULL)

    def __dealloc__(self):
        global free_watches
        cdef zw_watch *watch = <zw_watch *> self._watch
        if watch is not NULL:
            zw_store(&watch.due, ZW_NEVER)
            watch.next_free = free_watches
            free_watches = watch

    cdef int begin(self, void *context, long thread, int64_t now, int64_t deadline) except -1:
        """Let the next call, in this thread, run until `deadline`."""
        cdef zw_watch *watch = <zw_watch *> self._watch
        if not ticking:
            _start_ticker()
        watch.in_main_thread = thread == main_thread
        zw_store(&watch.expired, 0)
        zw_store(&watch.deadline, deadline)
        # In this order: the epoch cannot be raised for this call before it is compared with.
        lib.set_epoch_deadline(context, 1)
        if watch.in_main_thread:
            deadline = min(deadline, now + POLL_NS)
        zw_arm(&ticker, watch, deadline)
        return 0

    cdef void end(self) noexcept:
        zw_store(&(<zw_watch *> self._watch).due, ZW_NEVER)

    cdef void expire(self) noexcept:
        """End the running call."""
        cdef zw_watch *watch = <zw_watch *> self._watch
        zw_swap(&watch.deadline, 0)
        zw_arm(&ticker, watch, 0)

    cdef bint has_expired(self) noexcept:
        """Tell whether the deadline ended the last call."""
        return zw_load(&(<zw_watch *> self._watch).expired) != 0

    cdef int64_t deadline(self) noexcept:
        """Return that of the running call."""
        return zw_load(&(<zw_watch *> self._watch).deadline)


cdef zw_watch *_new_watch() except NULL:
    global free_watches
    cdef zw_watch *watch = free_watches
    if watch is not NULL:
        free_watches = watch.next_free
        return watch
    watch = <zw_watch *> calloc(1, sizeof(zw_watch))
    if watch is NULL:
        raise MemoryError
    zw_add(&ticker, watch)
    return watch


cdef void *_on_epoch(void *context, void *data, uint64_t *delta, uint8_t *kind) noexcept nogil:
    """Decide whether a guest may go on; called by the library in the guest's thread."""
    cdef zw_watch *watch = <zw_watch *> data
    cdef int64_t now = zw_now()
    cdef int64_t deadline = zw_load(&watch.deadline)
    if now >= deadline:
        zw_swap(&watch.expired, 1)
        return lib.error_new(b"the deadline has passed")
    delta[0] = 1
    kind[0] = 0  # go on
    if watch.in_main_thread:
        if _signal_raised(watch.owner):
            return lib.error_new(b"a signal handler raised an exception")
        deadline = min(deadline, now + POLL_NS)
    zw_arm(&ticker, watch, deadline)
    if zw_load(&watch.deadline) < deadline:
        zw_arm(&ticker, watch, 0)  # `expire` has come between
    return NULL


cdef bint _signal_raised(void *watch) noexcept with gil:
    try:
        PyErr_CheckSignals()
    except BaseException as error:
        (<Watch> watch).raised = error
        return True
    return False
