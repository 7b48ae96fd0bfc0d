"""Calls into WASM guests through wasmtime's C API, without the GIL and without ctypes.

From top to bottom: host functions, answers, `Guest` (one instance), `Slot` (what callers call).
Where `_wasmtime.MISMATCH` says something, `Guest` must not be used.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stddef cimport size_t
from libc.stdint cimport UINT32_MAX, int32_t, int64_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memchr, memcpy

from zeno_fast._envelope cimport InputCheck, decode, dump_parameters, take_data, with_context
from zeno_fast._nesting cimport inherited
from zeno_fast._statistics cimport SlotStatistics
from zeno_fast._wasmtime cimport Watch, deadline_after, now_ns, pointer_of, why_ended
from zeno_fast._wasmtime cimport lib as loaded_lib
from zeno_fast.wasmtime_c cimport Extern, Func, GuestInstance, Library, Memory, Value

import ctypes

import orjson

import zeno_fast.wasm.engine
import zeno_fast.wasm.imports
from zeno_fast.errors import PluginCrashed, ProtocolError, UsageError
from zeno_fast.log import GuestLog

cdef extern from "zeno_json.h":
    size_t zj_value_end(const char *p, size_t n) nogil

cdef extern from "zeno_stack.h" nogil:
    size_t zs_stack_left() noexcept

# A copy: another module's struct is reached by a pointer, which made small calls 3 % slower.
cdef Library lib = loaded_lib

cdef enum:
    HOST_LOG = 0  # the first of NAMES
    HOST_SCOPE_GET = 3

cdef tuple NAMES = tuple(zeno_fast.wasm.imports.PROTOCOL)
cdef size_t NNAMES = len(NAMES)
cdef tuple SYSTEM_CALLS = tuple([call.function for call in zeno_fast.wasm.imports.SYSTEM])
cdef int64_t MOST_TABLES = zeno_fast.wasm.engine.MOST_TABLES


def define_host_functions(linker, functions):
    """Define what the host answers in a linker.

    Args:
        functions: The `zeno_fast.wasm.imports.HostFunction` of each.
    """
    cdef bytes module, name
    cdef void *error
    for function in functions:
        module, name, kind = function.module.encode(), function.name.encode(), function.type()
        error = lib.linker_define(
            pointer_of(linker), module, len(module), name, len(name), pointer_of(kind),
            _host_function, <void *> <uintptr_t> function.number, NULL)
        if error is not NULL:
            lib.error_delete(error)
            raise UsageError(f"{function.name} is defined already")


cdef void *_host_function(
    void *data, void *caller, Value *values, size_t nvalues
) noexcept nogil:
    """Answer a host function; a trap that is returned ends the guest's call."""
    return _answer(<uintptr_t> data, lib.caller_context(caller), caller, values)


cdef void *_answer(size_t index, void *context, void *caller, Value *values) noexcept with gil:
    cdef Guest guest = <Guest> lib.get_data(context)
    cdef bytes refusal
    try:
        return guest._serve(index, context, caller, values)
    except ProtocolError as error:
        refusal = str(error).encode()
    except BaseException as error:
        guest._watch.raised = error
        refusal = b"a host function was interrupted"
    return lib.trap_new(refusal, len(refusal))


cdef enum:
    SMALL = 2048  # answers below it are copied, and the request freed, before the GIL is back

cdef enum Outcome:
    ANSWERED
    TRAPPED
    ANSWER_NULL
    ANSWER_OUTSIDE
    # The slot was not reached:
    ALLOC_TRAPPED
    ALLOC_NULL
    ALLOC_OUTSIDE
    REQUEST_TOO_LARGE


cdef object _loads_prefix(const char *text, size_t nbytes):
    """Decode the JSON value that `text` begins with, whatever follows it."""
    cdef size_t end
    try:
        return decode(text, nbytes)
    except orjson.JSONDecodeError:
        with nogil:
            end = zj_value_end(text, nbytes)
        if end == 0 or end == nbytes:
            raise
        return decode(text, end)


def stack_left():
    """Return how many bytes of the calling thread's stack are left."""
    return zs_stack_left()


def loads_prefix(bytes text):
    """Decode the JSON value that `text` begins with. Raises orjson.JSONDecodeError."""
    return _loads_prefix(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))


cdef object _read(const char *text, size_t nbytes, object failures, Slot slot):
    """Return the data of an answer. Raises SlotError or ProtocolError."""
    try:
        message = _loads_prefix(text, nbytes)
    except orjson.JSONDecodeError as error:
        start = PyBytes_FromStringAndSize(text, min(nbytes, <size_t> 80))
        raise failures.not_json(slot.name, start, error) from error
    if type(message) is not dict:
        raise failures.not_an_object(slot.name, message)
    return take_data(<dict> message, slot.plugin, slot.name)


def read_answer(bytes text, failures, Slot slot):
    """Return the data of a copied answer. Raises SlotError or ProtocolError."""
    return _read(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), failures, slot)


@cython.final
cdef class Guest:
    """One instance of a plugin's module, with a memory of its own.

    One call at a time; the pool sees to that. When `broken` is set nothing may be called any more.

    Args:
        program: The compiled module and its limits.
        pre: The module, linked.
        engine_address: What `keep_engine` returned for the program's engine.
        host_calls: Answers what the guest asks of the host.
    """

    cdef object _program, _pre, _failures, _host_calls, _scope, __weakref__
    cdef object _output  # a GuestOutput where the library writes what the guest prints, or None
    cdef void *_store
    cdef void *_context
    cdef Watch _watch
    cdef GuestInstance _instance
    cdef Func _alloc, _execute, _free
    cdef Memory _memory
    cdef bint _linked, _frees, _packed
    cdef bint _asked  # whether the guest has called the host since its call began
    cdef uint64_t _fuel, _bound
    cdef size_t _stack
    cdef void *_trap
    cdef void *_error
    cdef const char *_answer
    cdef size_t _nanswer
    cdef uint32_t _request
    cdef char _small[SMALL]
    cdef tuple _streams
    cdef readonly bint broken  # it trapped, overran or was interrupted
    cdef readonly bint worn  # its memory has grown past its bound
    cdef readonly bint unreached  # the slot was not reached; a fresh guest may serve the call
    cdef readonly bint interrupted
    cdef readonly long owner  # the thread that runs it, 0 for none
    cdef readonly uint64_t served

    def __init__(self, program, pre, uintptr_t engine_address, host_calls):
        cdef void *wasi
        cdef void *error
        cdef uintptr_t address
        if self._store is not NULL:
            raise UsageError("a guest is made once")
        self._program = program
        self._pre = pre
        self._failures = program.failures
        self._host_calls = host_calls
        self._fuel = program.fuel or 0
        self._stack = program.stack
        world = program.world
        if world.folders or world.variables:
            config, self._output = world.new_wasi()
            address = ctypes.cast(config._consume(), ctypes.c_void_p).value
            wasi = <void *> address
        else:
            wasi = lib.wasi_new()  # no files, no environment, no arguments
        self._store = lib.store_new(<void *> engine_address, <void *> self, NULL)
        self._context = lib.store_context(self._store)
        lib.store_limiter(self._store, program.memory, program.table, 1, MOST_TABLES, 1)
        error = lib.set_wasi(self._context, wasi)
        if error is not NULL:
            lib.error_delete(error)
            raise UsageError("the library refused the guest's WASI")
        self._watch = Watch(<uintptr_t> self._store, engine_address)

    def __dealloc__(self):
        if self._store is not NULL:
            lib.store_delete(self._store)

    @property
    def streams(self):
        """Two GuestLog, for what the guest writes to stdout and to stderr."""
        if self._streams is None:
            self._streams = (
                GuestLog(self._program.plugin, "stdout"), GuestLog(self._program.plugin, "stderr"))
        return self._streams

    def instantiate(self, int64_t deadline):
        """Make the instance; this runs the module's start section. Raises what `run` raises."""
        cdef void *pre = pointer_of(self._pre)
        self._begin(deadline, now_ns())
        try:
            with nogil:
                self._error = lib.instantiate(pre, self._context, &self._instance, &self._trap)
            if self._error is not NULL:
                self._refuse_exhausted()
            self._check("its start")
        finally:
            self._end()
        self._alloc = self._export(b"alloc").of.func
        self._execute = self._export(b"plugin_execute").of.func
        self._memory = self._export(b"memory").of.memory
        if self._program.frees:
            self._free = self._export(b"free").of.func
            self._frees = True
        self._packed = "plugin_execute" in self._program.packed
        self._linked = True

    cdef int _refuse_exhausted(self) except -1:
        """Raise PluginUnavailable where all instances that a process may have are in use."""
        message, _, _ = why_ended(NULL, self._error)
        exhausted = self._failures.exhausted(message)
        if exhausted is not None:
            self.broken = True
            raise exhausted
        return 0

    def run(self, str name, int64_t deadline, bint may_exit=False):
        """Run an exported function without parameters; return its result, unsigned.

        Args:
            may_exit: Whether `proc_exit(0)` is an ordinary end.

        Raises SlotTimeout, PluginCrashed, or what a signal handler or a host function raised.
        """
        cdef Func function = self._export(name.encode()).of.func
        cdef Value values[1]
        cdef int status = 0
        values[0].i64 = 0
        self._begin(deadline, now_ns())
        try:
            with nogil:
                self._error = lib.func_call_unchecked(
                    self._context, &function, values, 1, &self._trap)
            if may_exit and self._error is not NULL and self._watch.raised is None:
                if lib.error_exit_status(self._error, &status) and status == 0:
                    return 0
            self._check(name)
        finally:
            self._end()
        return <uint64_t> values[0].i64 if name in self._program.packed else (
            <uint32_t> values[0].i32)

    def settle(self):
        """Note how much memory the guest takes before its first call; much more makes it worn."""
        cdef uint64_t nbytes = self.memory_size
        self._bound = nbytes + max(0, self._program.memory - nbytes) // 2

    def text_of(self, str name, uint64_t answer):
        """Return the bytes that a function's result stands for. Raises ProtocolError.

        Those from an address to the next NUL or the end of memory; or as many as are said.
        """
        self._need_memory()
        cdef int outcome = self._find_answer(answer, name in self._program.packed)
        if outcome != ANSWERED:
            raise self._misplaced(outcome, "a life-cycle function")
        return PyBytes_FromStringAndSize(self._answer, self._nanswer)

    @property
    def deadline(self):
        """Of the running call."""
        return self._watch.deadline() if self._watch is not None else 0

    @property
    def memory_size(self):
        """Bytes of linear memory."""
        return lib.memory_data_size(self._context, &self._memory) if self._linked else 0

    def interrupt(self):
        """End the running call, if there is one, and let no other begin; from any thread."""
        self.interrupted = True
        if self.owner:
            self._watch.expire()

    def close(self):
        """Free the instance; not while a call runs. May be repeated."""
        cdef void *store = self._store
        self.broken = True
        self._context = self._store = NULL
        self._linked = False
        if store is not NULL:
            with nogil:
                lib.store_delete(store)

    cdef int _need_memory(self) except -1:
        if self._context is NULL or self._memory.store_id == 0:
            raise UsageError("a guest's memory was used when there was none")
        return 0

    cdef Extern _export(self, bytes name) except *:
        cdef Extern found
        if self._context is NULL or not lib.export_get(
                self._context, &self._instance, PyBytes_AS_STRING(name), len(name), &found):
            raise UsageError(f"there is no export {name.decode()!r}")
        return found

    cdef int _begin(self, int64_t deadline, int64_t now) except -1:
        """Let the next call run until `deadline`."""
        if self.broken or self.interrupted:
            raise self._failures.closed()
        if self._output is not None:
            self._program.world.check_process()
        if zs_stack_left() < self._stack:
            raise self._failures.no_stack(zs_stack_left())
        self._asked = False
        if self._fuel:
            lib.set_fuel(self._context, self._fuel)
        cdef long thread = PyThread_get_thread_ident()
        self._watch.begin(self._context, thread, now, deadline)
        self.owner = thread
        return 0

    cdef void _end(self) noexcept:
        self._watch.end()
        self.owner = 0
        self._scope = None
        if self._trap is not NULL:
            lib.trap_delete(self._trap)
        if self._error is not NULL:
            lib.error_delete(self._error)
        self._trap = self._error = NULL

    cdef object execute(
        self, Slot slot, bytes text, int64_t now, int64_t deadline, double seconds, object scope
    ):
        """Call the slot with encoded parameters and return its data."""
        cdef const char *parameters = PyBytes_AS_STRING(text)
        cdef size_t nparameters = PyBytes_GET_SIZE(text)
        cdef int outcome
        self.unreached = False
        self._begin(deadline, now)
        try:
            self._scope = scope
            with nogil:
                outcome = self._exchange(slot, parameters, nparameters)
            if outcome == TRAPPED or outcome == ALLOC_TRAPPED:
                self.broken = True
            if self._output is not None:
                self._log_output()
            if self._asked and outcome == ANSWERED and now_ns() >= deadline:
                raise self._failures.timed_out(f"slot {slot.name!r}", slot.name, seconds)
            if outcome != ANSWERED or self._watch.raised is not None:
                raise self._outcome(outcome, slot.name, seconds, nparameters)
            self.served += 1
            try:
                return _read(self._answer, self._nanswer, self._failures, slot)
            finally:
                if self._request:
                    with nogil:
                        self._free_request()
        finally:
            self._end()

    cdef int _exchange(self, Slot slot, const char *text, size_t ntext) noexcept nogil:
        """Copy the request in, run the slot, find its answer.

        A small answer is copied out and the request freed at once; a large one stays in place,
        and `_request` says what is still to be freed.
        """
        cdef Value values[4]
        cdef uint64_t total = slot._nhead + ntext + slot._ntail
        cdef uint32_t request
        cdef char *base
        cdef int outcome
        self._request = 0
        if total > UINT32_MAX:
            return REQUEST_TOO_LARGE
        values[0].i64 = 0
        values[0].i32 = <int32_t> <uint32_t> total
        self._error = lib.func_call_unchecked(
            self._context, &self._alloc, values, 1, &self._trap)
        if self._error is not NULL or self._trap is not NULL:
            return ALLOC_TRAPPED
        request = <uint32_t> values[0].i32
        if request == 0:
            return ALLOC_NULL
        if request + total > lib.memory_data_size(self._context, &self._memory):
            return ALLOC_OUTSIDE
        base = lib.memory_data(self._context, &self._memory) + request
        memcpy(base, slot._head, slot._nhead)
        memcpy(base + slot._nhead, text, ntext)
        memcpy(base + slot._nhead + ntext, slot._tail, slot._ntail)
        values[0].i32 = <int32_t> <uint32_t> (request + slot._nhead + ntext + 2)
        values[1].i32 = <int32_t> <uint32_t> slot._nname
        values[2].i32 = <int32_t> request
        values[3].i32 = <int32_t> <uint32_t> (slot._nhead + ntext + 1)
        self._error = lib.func_call_unchecked(
            self._context, &self._execute, values, 4, &self._trap)
        if self._error is not NULL or self._trap is not NULL:
            return TRAPPED
        if self._frees:
            self._request = request
        if self._packed:
            outcome = self._find_answer(<uint64_t> values[0].i64, True)
        else:
            outcome = self._find_answer(<uint32_t> values[0].i32, False)
        if self._request and (outcome != ANSWERED or self._nanswer <= SMALL):
            if outcome == ANSWERED:
                memcpy(self._small, self._answer, self._nanswer)
                self._answer = self._small
            self._free_request()
        return outcome

    cdef int _find_answer(self, uint64_t answer, bint packed) noexcept nogil:
        """Find the bytes of an answer: an address, or that above the number of bytes."""
        cdef size_t size = lib.memory_data_size(self._context, &self._memory)
        cdef uint64_t address = answer >> 32 if packed else answer
        cdef uint64_t nbytes = answer & UINT32_MAX if packed else 0
        cdef const char *start
        cdef const char *end
        if self._bound and size > self._bound:
            self.worn = True
        if address == 0:
            return ANSWER_NULL
        if address >= size or nbytes > size - address:
            return ANSWER_OUTSIDE
        start = lib.memory_data(self._context, &self._memory) + address
        if packed:
            self._answer = start
            self._nanswer = nbytes
            return ANSWERED
        end = <const char *> memchr(start, 0, size - address)
        self._answer = start
        self._nanswer = end - start if end is not NULL else size - address
        return ANSWERED

    cdef void _free_request(self) noexcept nogil:
        """Give the request's memory back; a trap in there ends the guest but not the call."""
        cdef Value values[1]
        values[0].i64 = 0
        values[0].i32 = <int32_t> self._request
        self._request = 0
        self._error = lib.func_call_unchecked(self._context, &self._free, values, 1, &self._trap)
        if self._error is not NULL or self._trap is not NULL:
            self.broken = True

    cdef int _log_output(self) except -1:
        """Log what the library has written for the guest meanwhile."""
        for number, stream in enumerate(self.streams):
            stream.take(self._output, number)
        return 0

    cdef int _check(self, str what) except -1:
        if self._error is not NULL or self._trap is not NULL:
            self.broken = True
        if self._output is not None:
            self._log_output()
        if self._error is not NULL or self._trap is not NULL or self._watch.raised is not None:
            raise self._failure(what, None, 0.0)
        return 0

    cdef object _outcome(self, int outcome, str slot, double seconds, size_t nbytes):
        """Return the exception for a call that gave no answer."""
        if outcome == ANSWERED or outcome == TRAPPED or outcome == ALLOC_TRAPPED:
            self.unreached = outcome == ALLOC_TRAPPED and self.served > 0
            return self._failure(f"slot {slot!r}", slot, seconds)
        if outcome == ANSWER_NULL or outcome == ANSWER_OUTSIDE:
            return self._misplaced(outcome, f"slot {slot!r}", slot)
        self.broken = outcome != REQUEST_TOO_LARGE
        self.unreached = outcome == ALLOC_NULL and self.served > 0
        return self._failures.no_room(slot, nbytes, self.memory_size, outcome == ALLOC_OUTSIDE)

    cdef object _misplaced(self, int outcome, str what, str slot=None):
        if outcome == ANSWER_NULL:
            return self._failures.null_answer(what, slot)
        self.broken = True
        return self._failures.outside_answer(what, slot, self.memory_size)

    cdef object _failure(self, str what, str slot, double seconds):
        """Return the exception for the trap, error or Python exception that ended a call."""
        self.broken = True
        raised = self._watch.raised
        if raised is not None:
            self._watch.raised = None
            return raised
        if self._watch.has_expired():
            if self.interrupted:
                return self._failures.closed(slot)
            return self._failures.timed_out(what, slot, seconds)
        message, status, code = why_ended(self._trap, self._error)
        return self._failures.crashed(
            what, slot, message, self.streams[1], status, code, self.memory_size)

    cdef void *_serve(
        self, size_t index, void *context, void *caller, Value *values
    ) except? NULL:
        """Answer a host function; return the trap that `alloc` ended with, if it did."""
        cdef str function
        cdef Extern found
        self._asked = True
        if self._output is not None:
            self._log_output()  # in the order in which it was printed
        if not self._linked:  # the module's start section runs: ask for the caller's exports
            if not lib.caller_export_get(caller, b"memory", 6, &found):
                raise ProtocolError("a host function was called without a memory")
            self._memory = found.of.memory
            if not lib.caller_export_get(caller, b"alloc", 5, &found):
                raise ProtocolError("a host function was called without an alloc")
            self._alloc = found.of.func
        if index >= NNAMES:
            values[0].i32 = SYSTEM_CALLS[index - NNAMES](
                self, <uint32_t> values[0].i32, <uint32_t> values[1].i32,
                <uint32_t> values[2].i32, <uint32_t> values[3].i32)
            return NULL
        function = <str> NAMES[index]
        first = self._argument(function, values)
        if index == HOST_LOG:
            level = self._host_calls.level(first)
            text = self._argument_at(function, values + 2)
            if self._host_calls.is_logged(level):
                self._host_calls.log(
                    level, PyBytes_FromStringAndSize(text, <uint32_t> values[3].i32))
            return NULL
        answer = None
        if index == HOST_SCOPE_GET and type(self._scope) is dict:
            answer = self._host_calls.plain_value(first, self._scope)
        if answer is None:
            answer = self._host_calls.answer(function, first, self._scope, self.deadline)
        if type(answer) is bool:
            values[0].i32 = answer
            return NULL
        return self._hand_over(function, context, answer, values)

    def read(self, uint32_t address, uint32_t nbytes):
        """Return bytes of memory; for host functions. Raises ProtocolError."""
        return PyBytes_FromStringAndSize(self._bytes_at(address, nbytes), nbytes)

    def write(self, uint32_t address, bytes data):
        """Change bytes of memory; for host functions. Raises ProtocolError."""
        memcpy(
            self._bytes_at(address, PyBytes_GET_SIZE(data)), PyBytes_AS_STRING(data),
            PyBytes_GET_SIZE(data))

    cdef char *_bytes_at(self, uint32_t address, size_t nbytes) except NULL:
        """Return where bytes of the guest's memory are, until it runs again."""
        cdef size_t size
        self._need_memory()
        size = lib.memory_data_size(self._context, &self._memory)
        if address > size or nbytes > size - address:
            raise ProtocolError(f"{nbytes} bytes at {address:#x} are outside of the guest's memory")
        return lib.memory_data(self._context, &self._memory) + address

    cdef char *_argument_at(self, str function, Value *values) except NULL:
        """Return where the bytes are that a pair of pointer and length stands for."""
        try:
            return self._bytes_at(<uint32_t> values[0].i32, <uint32_t> values[1].i32)
        except ProtocolError as error:
            raise ProtocolError(f"{function} was called with nonsense: {error}") from None

    cdef bytes _argument(self, str function, Value *values):
        """Return the bytes that a pair of pointer and length stands for. Raises ProtocolError."""
        cdef const char *begin = self._argument_at(function, values)
        return PyBytes_FromStringAndSize(begin, <uint32_t> values[1].i32)

    cdef void *_hand_over(
        self, str function, void *context, bytes answer, Value *values
    ) except? NULL:
        """Write an answer into memory taken from the guest, and its address into `values`."""
        cdef size_t nbytes = PyBytes_GET_SIZE(answer) + 1  # bytes end with a NUL
        cdef void *trap = NULL
        cdef void *error
        cdef uint32_t address
        values[0].i64 = 0
        values[0].i32 = <int32_t> <uint32_t> nbytes
        with nogil:
            error = lib.func_call_unchecked(context, &self._alloc, values, 1, &trap)
        if trap is not NULL:
            return trap
        if error is not NULL:
            lib.error_delete(error)
            raise ProtocolError(f"alloc ended the guest while {function} was answered")
        address = <uint32_t> values[0].i32
        if address != 0:  # which the guest would take for a refusal
            memcpy(self._bytes_at(address, nbytes), PyBytes_AS_STRING(answer), nbytes)
        return NULL


@cython.final
cdef class IdleGuests:
    """The instances that wait for a call; the one that was given back last is taken first.

    Nothing is allocated for that: a list gives its memory back whenever it has become empty.

    Args:
        limit: How many there may be.
    """

    cdef list _guests
    cdef Py_ssize_t _count

    def __init__(self, Py_ssize_t limit):
        self._guests = [None] * limit
        self._count = 0

    def __len__(self):
        return self._count

    def guests(self):
        """Return a list of them."""
        return self._guests[:self._count]

    cpdef object take(self):
        """Return one for the caller alone, None where there is none."""
        if self._count == 0:
            return None
        self._count -= 1
        guest = self._guests[self._count]
        self._guests[self._count] = None
        return guest

    cpdef int put(self, object guest) except -1:
        """Give one back."""
        self._guests[self._count] = guest
        self._count += 1
        return 0


cdef class Slot:
    """One slot of one WASM plugin, ready to be called; safe from any thread.

    Args:
        definition: The slot's `SlotDefinition`.
        pool: Lends guests; has `idle`, an IdleGuests, and the list `attention`. While that is
            empty, a guest that is fit goes straight back to `idle`, without asking the pool.
        timeout: The limit of a call that names none, in seconds.
        direct: Whether the guests are `Guest`, or else speak to the package's public API.
        statistics: Counts the calls.
    """

    cdef InputCheck _check
    cdef IdleGuests _idle
    cdef list _attention
    cdef object _pool
    cdef double _timeout
    cdef bint _direct
    cdef const char *_head
    cdef const char *_tail
    cdef size_t _nhead, _ntail, _nname
    cdef readonly object definition
    cdef SlotStatistics _statistics
    cdef readonly str name, plugin
    cdef readonly bytes head, tail  # what stands around the parameters in a request's memory

    def __init__(
        self, definition, pool, double timeout, bint direct, SlotStatistics statistics
    ):
        cdef bytes name = definition.name.encode()
        self.definition = definition
        self._statistics = statistics
        self.name = definition.name
        self.plugin = definition.plugin
        self.head = b'{"slot_name":' + orjson.dumps(self.name) + b',"parameters":'
        self.tail = b"}\0" + name + b"\0"
        self._head = PyBytes_AS_STRING(self.head)
        self._nhead = len(self.head)
        self._tail = PyBytes_AS_STRING(self.tail)
        self._ntail = len(self.tail)
        self._nname = len(name)
        self._check = InputCheck(definition)
        self._pool = pool
        self._idle = pool.idle
        self._attention = pool.attention
        self._timeout = timeout
        self._direct = direct

    def call(self, parameters, timeout, scope):
        """Call the slot and return its data; see `zeno_fast.driver.BoundSlot`."""
        cdef double seconds = self._timeout if timeout is None else timeout
        cdef int64_t now = now_ns()
        cdef int64_t deadline = inherited(deadline_after(now, seconds))
        return self._call(self._encode(parameters), now, deadline, seconds, scope)

    def forward(self, bytes text, int64_t deadline, scope):
        """Make a call that the pool has no more instances for, as it is superseded."""
        raise UsageError(f"nobody answers slot {self.name!r} of plugin {self.plugin!r} any more")

    def encode(self, parameters):
        """Check parameters and encode them for `call_encoded`. Raises InvalidParameters."""
        return self._encode(parameters)

    def call_encoded(self, bytes text, int64_t deadline, double seconds, scope):
        """Call the slot with encoded parameters until a deadline that was `seconds` away."""
        cdef int64_t now = now_ns()
        if now >= deadline:
            raise self._pool.expired(self.name, seconds)
        return self._call(text, now, deadline, seconds, scope)

    cdef bytes _encode(self, object parameters):
        cdef dict checked
        if self._check is None:
            raise UsageError("a slot was used before it was made")
        checked = self._check.check(parameters)
        if not checked:
            return with_context(b"{}")
        return dump_parameters(checked, self._check)

    cdef object _call(
        self, bytes text, int64_t now, int64_t deadline, double seconds, object scope
    ):
        cdef object data
        try:
            data = self._execute(text, now, deadline, seconds, scope)
        except BaseException as error:
            self._statistics.failed(error, now_ns() - now)
            raise
        self._statistics.record(now_ns() - now)
        return data

    cdef object _execute(
        self, bytes text, int64_t now, int64_t deadline, double seconds, object scope
    ):
        cdef object guest
        while True:
            guest = self._idle.take()
            if guest is None:
                guest = self._pool.acquire(self.name, deadline, seconds)
                if guest is None:
                    return self.forward(text, deadline, scope)
            try:
                if self._direct:
                    return (<Guest> guest).execute(self, text, now, deadline, seconds, scope)
                return guest.execute(self, text, deadline, seconds, scope)
            except PluginCrashed:
                # A guest that others have worn out may have had no room where a fresh one has.
                if not guest.unreached:
                    raise
            finally:
                self._give_back(guest)

    cdef int _give_back(self, object guest) except -1:
        cdef bint fit
        if self._direct:
            fit = not ((<Guest> guest).broken or (<Guest> guest).worn)
        else:
            fit = not (guest.broken or guest.worn)
        if fit and not self._attention:
            self._idle.put(guest)
        else:
            self._pool.release(guest)
        return 0
