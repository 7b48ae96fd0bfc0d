"""The envelope: parameters to bytes, bytes to data, and the check of a slot's declared inputs.

No I/O is done here; both kinds of plugins and every transport share these functions.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.float cimport PyFloat_Check
from cpython.list cimport PyList_Check
from cpython.long cimport PyLong_Check
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_Check
from cpython.unicode cimport PyUnicode_Check, PyUnicode_DecodeASCII
from libc.stdint cimport int64_t
from libc.string cimport memchr, memcmp, memcpy

import binascii
import difflib
from base64 import b64decode
from collections.abc import Mapping

import orjson

from zeno_fast._shm cimport Arena, Block, Buffer, Segment, buffer_of, find_buffer

from zeno_fast.binary_values import FORMATS as _FORMATS, dtype_of, element_type
from zeno_fast.errors import InvalidParameters, ProtocolError, SlotError

cdef extern from "Python.h":
    int PyBUF_READ
    int PyBool_Check(object)
    int PyDict_Check(object)
    ctypedef struct PyVarObject:
        pass
    void Py_SET_SIZE(PyVarObject *o, Py_ssize_t size) noexcept

cdef extern from "<string.h>" nogil:
    void *memmem(const void *text, size_t nbytes, const void *part, size_t part_nbytes)

cdef object _dumps = orjson.dumps
cdef object _loads = orjson.loads
cdef object _options = orjson.OPT_SERIALIZE_NUMPY
cdef bytes NO_PARAMETERS = b"{}"
cdef str RESERVED = "$bytes"  # names the member of an object that stands for bytes

# Below this, copying the text into a bytes object costs less than a memoryview over it.
cdef Py_ssize_t COPY_LIMIT = 2048

cdef enum:
    SCALAR_LIMIT = 64  # bytes of JSON that are looked at for whether they need a parser
    MAX_DIGITS = 18  # of a number that fits into 64 bits whatever it is
    MAX_DEPTH = 254  # what orjson encodes

cdef enum:
    ANY = 0
    STRING = 1
    INTEGER = 2
    NUMBER = 3
    BOOLEAN = 4
    OBJECT = 5
    ARRAY = 6

# The spellings that guests use; every other type name accepts anything.
cdef dict KINDS = {
    "string": STRING, "str": STRING, "text": STRING,
    "int": INTEGER, "integer": INTEGER, "int32": INTEGER, "int64": INTEGER,
    "number": NUMBER, "float": NUMBER, "double": NUMBER, "float64": NUMBER,
    "bool": BOOLEAN, "boolean": BOOLEAN,
    "object": OBJECT, "map": OBJECT, "dict": OBJECT,
    "array": ARRAY, "list": ARRAY,
}


cdef bint _fits(int kind, object value):
    """Tell whether a JSON value is of the kind; what only orjson understands is left to it."""
    if PyUnicode_Check(value):
        return kind == STRING
    if PyBool_Check(value):
        return kind == BOOLEAN
    if PyLong_Check(value):
        return kind == INTEGER or kind == NUMBER
    if PyFloat_Check(value):
        return kind == NUMBER or (kind == INTEGER and value.is_integer())
    if PyDict_Check(value):
        return kind == OBJECT
    if PyList_Check(value) or PyTuple_Check(value):
        return kind == ARRAY
    return True


def _json_type(value):
    """Name the JSON type of a Python value, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    for types, name in (
        (str, "string"), (int, "integer"), (float, "number"),
        (Mapping, "object"), ((list, tuple), "array"),
    ):
        if isinstance(value, types):
            return name
    return type(value).__name__


@cython.final
cdef class InputCheck:
    """Checks parameters against one slot's declared inputs and fills in the defaults.

    Args:
        definition: The slot's `SlotDefinition`.
    """

    def __init__(self, definition):
        cdef list kinds = []
        cdef list defaults = []
        self.slot = definition.name
        self.plugin = definition.plugin
        # Of those that accept anything, and may be left out, there is nothing to check or fill in.
        self._inputs = tuple([
            declared for declared in definition.inputs.values()
            if KINDS.get(declared.type.lower(), ANY) != ANY
            or declared.required or declared.has_default
        ])
        self._declared = frozenset(definition.inputs)
        self._names = tuple(declared.name for declared in self._inputs)
        for declared in self._inputs:
            kinds.append(KINDS.get(declared.type.lower(), ANY))
            defaults.append(declared.default if declared.has_default else None)
        self._kinds = kinds
        self._defaults = defaults
        self._trivial = not self._inputs

    cdef dict check(self, object parameters):
        cdef dict given
        cdef Py_ssize_t index
        cdef PyObject *found
        cdef int kind
        cdef bint copied = False
        if type(parameters) is dict:
            given = <dict> parameters
        elif parameters is None:
            given = {}
            copied = True
        elif isinstance(parameters, Mapping):
            given = dict(parameters)
            copied = True
        else:
            raise InvalidParameters(
                f"slot {self.slot!r}: parameters must be a mapping, not {_json_type(parameters)}",
                plugin=self.plugin, slot=self.slot)
        if self._trivial:
            return given
        for index in range(len(self._names)):
            found = PyDict_GetItem(given, self._names[index])
            if found is not NULL:
                kind = self._kinds[index]
                if kind != ANY and not _fits(kind, <object> found):
                    raise self._wrong_type(index, <object> found)
                if found is <PyObject *> None and self._inputs[index].required:
                    raise self._missing(index, given)
            elif self._inputs[index].has_default:
                if not copied:
                    given = given.copy()
                    copied = True
                given[self._names[index]] = self._defaults[index]
            elif self._inputs[index].required:
                raise self._missing(index, given)
        return given

    def lists(self, parameters):
        """Return the parameters that are declared as lists."""
        return [
            parameters[name] for name, kind in zip(self._names, self._kinds)
            if kind == ARRAY and name in parameters]

    def __call__(self, parameters):
        """Return the parameters with defaults filled in.

        The caller's mapping is never changed. Raises InvalidParameters.
        """
        return self.check(parameters)

    def _wrong_type(self, index, value):
        declared = self._inputs[index]
        return InvalidParameters(
            f"slot {self.slot!r} of plugin {self.plugin!r}: parameter {declared.name!r} must be "
            f"of type {declared.type}, not {_json_type(value)}",
            key=declared.name, plugin=self.plugin, slot=self.slot)

    def _missing(self, index, given):
        declared = self._inputs[index]
        text = (
            f"slot {self.slot!r} of plugin {self.plugin!r}: parameter {declared.name!r}"
            f"{f' ({declared.type})' if declared.type else ''} is required")
        undeclared = [key for key in given if isinstance(key, str) and key not in self._declared]
        near = difflib.get_close_matches(declared.name, undeclared, 1)
        if near:
            text += f"; is {near[0]!r} a misspelling of it?"
        return InvalidParameters(text, key=declared.name, plugin=self.plugin, slot=self.slot)


# -- bytes beside the JSON ------------------------------------------------------------------------


@cython.final
cdef class BinaryWay:
    """How bytes reach one plugin's processes; its driver's to change.

    Attributes:
        arena: Where they find them, or None: then bytes go as base64.
        arrays: Whether NumPy arrays go as bytes, too, and not as lists.
        give: Gives the processes a `Buffer` if they have not got it yet, and returns whether they
            all have; or None.
    """


@cython.final
cdef class BinarySink:
    """Takes from one call what JSON has no form for; orjson calls it with each such value.

    Attributes:
        blocks: What has to be kept until the guest has answered.
    """

    def __init__(self, BinaryWay way, lists):
        self._way = way
        self._lists = {id(value) for value in lists}
        self._put_count = 0
        self.blocks = []

    def __call__(self, value):
        """Return what stands for a value. Raises TypeError where there is nothing."""
        kind = type(value).__module__
        if kind == "numpy" and hasattr(value, "dtype"):
            if (not value.ndim or id(value) in self._lists or not self._arrays()
                    or value.dtype.str[1:] not in _FORMATS):
                return orjson.Fragment(_dumps(value, None, _options))
            return self._put(value, memoryview(value)) | {
                "dtype": value.dtype.str, "shape": list(value.shape)}
        try:
            view = memoryview(value)
        except TypeError:
            raise TypeError(
                f"Type is not JSON serializable: {kind}.{type(value).__name__}") from None
        described = self._put(value, view)
        if view.format != "B" or view.ndim != 1:
            described["dtype"] = dtype_of(view.format)
            if view.ndim != 1:
                described["shape"] = list(view.shape)
        return described

    def _arrays(self):
        return self._way is not None and self._way.arrays

    cdef object _put(self, object value, object view):
        """Put bytes where the guest finds them and return where that is."""
        cdef Block block = None
        cdef Buffer buffer
        cdef Py_ssize_t nbytes = view.nbytes
        cdef const char *data
        self._put_count += 1
        if self._way is not None and self._way.give is not None and view.c_contiguous:
            data = address_of(view)
            buffer = find_buffer(data, nbytes)
            if buffer is not None and self._way.give(buffer):
                self.blocks.append(buffer)
                return {RESERVED: [data - buffer._base, nbytes, buffer.id]}
        if self._way is not None and self._way.arena is not None:
            block = self._way.arena.take(nbytes)
        if block is None:
            flat = view if view.c_contiguous else view.tobytes()
            return {RESERVED: binascii.b2a_base64(flat, newline=False).decode("ascii")}
        self.blocks.append(block)
        copy_into(block.data(), nbytes, view)
        return {RESERVED: [block.offset, nbytes]}


cdef const char *address_of(object view) except? NULL:
    """Return where a contiguous view begins."""
    cdef Py_buffer buffer
    PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE)
    PyBuffer_Release(&buffer)  # the view goes on holding it
    return <const char *> buffer.buf


cdef int copy_into(char *to, Py_ssize_t nbytes, object view) except -1:
    """Copy the bytes of a memoryview, in C order, once."""
    cdef const unsigned char[::1] flat
    if nbytes == 0:
        return 0
    if not view.c_contiguous:
        view = memoryview(view.tobytes())
    flat = view.cast("B")
    with nogil:
        memcpy(to, &flat[0], nbytes)
    return 0


cdef object _resolve(object value, Segment segment, Py_ssize_t depth=0):
    """Return data with views in the place of what stands for bytes; lists and dicts are changed.

    Raises ValueError for what stands for none.
    """
    cdef Py_ssize_t index
    if depth > MAX_DEPTH:
        return value
    if type(value) is dict:
        if RESERVED in <dict> value:
            place = (<dict> value)[RESERVED]
            dtype, shape = (<dict> value).get("dtype"), (<dict> value).get("shape")
            if type(place) is str:
                return element_type(
                    memoryview(bytearray(b64decode(<str> place, validate=True))), dtype, shape)
            if segment is None:
                raise ValueError("there is no shared memory for it to be in")
            return segment.view(place, dtype, shape)
        for key, member in (<dict> value).items():
            if type(member) is dict or type(member) is list:
                (<dict> value)[key] = _resolve(member, segment, depth + 1)
    elif type(value) is list:
        for index in range(len(<list> value)):
            member = (<list> value)[index]
            if type(member) is dict or type(member) is list:
                (<list> value)[index] = _resolve(member, segment, depth + 1)
    return value


def read_bytes(value):
    """Return JSON data with memoryviews where base64 stands for bytes; `value` is changed.

    Raises ValueError or TypeError for what stands for none.
    """
    return _resolve(value, None)


cdef object take_bytes(dict message, str plugin, str slot, Segment segment):
    """Return the `data` of a message with views in it where the guest has sent bytes.

    Raises ProtocolError where they are nowhere.
    """
    if message.get("binary") is not True:
        return message.get("data")
    try:
        return _resolve(message.get("data"), segment)
    except (ValueError, TypeError, OverflowError) as error:
        raise ProtocolError(
            f"plugin {plugin!r} answered slot {slot!r} with bytes that cannot be had: {error}",
            plugin=plugin, slot=slot) from error


cdef int release_blocks(dict message, Segment segment) except -1:
    """Let the guest have back the blocks of an answer that nobody gets."""
    if segment is not None and message.get("binary") is True:
        try:
            _resolve(message.get("data"), segment)
        except (ValueError, TypeError, OverflowError):
            pass  # what is no block need not be given back
    return 0


cdef str _RESERVED_FOR_BYTES = (
    f"the key {RESERVED!r} is for the host, which writes it where there are bytes: give those as "
    "bytes")


def _find_unsendable(value, path, depth=0):
    """Return the path and the reason of the first value that JSON cannot carry, or None."""
    if depth > MAX_DEPTH:  # compiled code is not kept from overflowing the stack
        return path[:200] + "...", f"it is nested more than {MAX_DEPTH} deep, or holds itself"
    if isinstance(value, Mapping):
        for key, member in value.items():
            if not isinstance(key, str):
                return path or "parameters", f"the key {key!r} is not a string"
            if key == RESERVED:
                return path or "parameters", _RESERVED_FOR_BYTES
            found = _find_unsendable(member, f"{path}.{key}" if path else key, depth + 1)
            if found:
                return found
        if isinstance(value, dict):
            return None
    elif isinstance(value, (list, tuple)):
        for index, member in enumerate(value):
            found = _find_unsendable(member, f"{path}[{index}]", depth + 1)
            if found:
                return found
        return None
    try:
        _dumps(value, BinarySink(None, ()), _options)
    except TypeError as error:
        return path or "parameters", f"{type(value).__name__}: {error}"
    return None


cdef object _unsendable(object parameters, str reason, InputCheck check):
    """Return an InvalidParameters that names what cannot be sent."""
    key, reason = _find_unsendable(parameters, "") or ("parameters", reason)
    return InvalidParameters(
        f"slot {check.slot!r} of plugin {check.plugin!r}: {key} cannot be sent as JSON: {reason}",
        key=key, plugin=check.plugin, slot=check.slot)


cdef bint _is_plain(bytes payload, Py_ssize_t places) noexcept:
    """Tell whether JSON text is as orjson writes it, with so many members named `$bytes`.

    What an orjson.Fragment brings may have been written by anybody: with line ends, which would
    break a message in two, or with a name behind escapes.
    """
    cdef const char *at = PyBytes_AS_STRING(payload)
    cdef const char *end = at + PyBytes_GET_SIZE(payload)
    cdef const char *begin = at
    if memchr(at, b"\n", end - at) is not NULL:
        return False
    while True:
        at = <const char *> memchr(at, b"$", end - at)
        if at is NULL:
            break
        if end - at > 7 and memcmp(at - 1, b'"$bytes"', 8) == 0 and at[-2] != b"\\":
            if at[7] == b":":
                places -= 1
            elif at[7] == b" " or at[7] == b"\t" or at[7] == b"\r":
                return False
        at += 1
    at = <const char *> memchr(begin, b"\\", end - begin)
    while at is not NULL:
        at = <const char *> memmem(at, end - at, b"\\u00", 4)
        if at is NULL:
            break
        # orjson writes only those below U+0020 so. A backslash may also be escaped itself.
        if at[4] > b"1" and not _is_escaped(begin, at):
            return False
        at += 1
    return places == 0


cdef bint _is_escaped(const char *begin, const char *at) noexcept:
    """Tell whether an odd number of backslashes stands before a place in JSON text."""
    cdef const char *before = at
    while before > begin and before[-1] == b"\\":
        before -= 1
    return (at - before) & 1


cdef bytes _refuse_places(
    bytes payload, Py_ssize_t places, object parameters, InputCheck check
):
    """Return parameters as orjson writes them. Raises InvalidParameters for a `$bytes` too many.

    A guest takes what that name stands for as a place in memory that it shares with the host, where
    bytes of other calls lie: whoever writes it has to be the host.
    """
    try:
        payload = _dumps(_loads(payload))
    except ValueError as error:
        raise _unsendable(parameters, str(error), check) from error
    if not _is_plain(payload, places):
        raise _unsendable(parameters, _RESERVED_FOR_BYTES, check)
    return payload


cdef bytes dump_parameters(object parameters, InputCheck check, BinaryWay way=None):
    """Encode checked parameters as JSON, and bytes in them in the way that is given.

    Blocks of shared memory that have to be kept are in `way.blocks` then, for the caller to take at
    once. Raises InvalidParameters, which names the key, for what cannot be sent.
    """
    cdef bytes payload
    cdef BinarySink bytes_of
    try:
        payload = _dumps(parameters, None, None if way is not None and way.arrays else _options)
    except TypeError:
        pass  # there is something in it that is no JSON
    else:
        if not _is_plain(payload, 0):
            payload = _refuse_places(payload, 0, parameters, check)
        return with_context(payload)
    bytes_of = BinarySink(way, check.lists(parameters))
    try:
        payload = _dumps(parameters, bytes_of)
    except (TypeError, ValueError, BufferError) as error:
        raise _unsendable(parameters, str(error), check) from error
    if not _is_plain(payload, bytes_of._put_count):
        payload = _refuse_places(payload, bytes_of._put_count, parameters, check)
    payload = with_context(payload) + b',"binary":true'
    if way is not None and bytes_of.blocks:
        way.blocks = bytes_of.blocks  # last: nothing else runs until the caller has it
    return payload


# Gives the `context` of the envelopes that are made, a dict or None; None where nobody does.
cdef object _context_provider = None


def set_context_provider(provider):
    """Have `provider()` called for each request: its dict becomes the envelope's `context`."""
    global _context_provider
    _context_provider = provider


def parameters_of(bytes payload, Arena arena=None):
    """Return the parameters that `dump_parameters` has encoded, without what stands behind them.

    Args:
        arena: Where their bytes were put, of which copies are returned.
    """
    envelope = _loads(b'{"parameters":' + payload + b"}")
    parameters = envelope["parameters"]
    return _read_back(parameters, arena) if envelope.get("binary") else parameters


def _read_back(value, arena):
    """Return sent parameters with bytes where those were."""
    if isinstance(value, list):
        return [_read_back(member, arena) for member in value]
    if not isinstance(value, dict):
        return value
    if RESERVED not in value:
        return {key: _read_back(member, arena) for key, member in value.items()}
    place = value[RESERVED]
    if isinstance(place, str):
        data = b64decode(place)
    elif len(place) == 2:
        data = arena.read(*place)
    else:
        data = memoryview(buffer_of(place[2]))[place[0]:place[0] + place[1]]
    return element_type(memoryview(data), value.get("dtype"), value.get("shape"))


cdef bytes with_context(bytes payload):
    """Return encoded parameters with the member `context` behind them, where there is one."""
    if _context_provider is None:
        return payload
    context = _context_provider()
    return payload + b',"context":' + _dumps(context) if context else payload


# Small texts are copied into one object again and again, which nobody else ever sees: orjson reads
# it and lets go. To make one for each costs more than the copy.
cdef bytes _scratch = b"\0" * COPY_LIMIT
cdef bint _scratch_in_use = False


cdef object _OTHER = object()


cdef object _decode_scalar(const char *text, Py_ssize_t nbytes):
    """Decode what many slots answer and what needs no parser; _OTHER for all else.

    That is null, a boolean, an integer without a sign, and ASCII text without escapes. To call
    orjson takes longer than any of them.
    """
    cdef Py_ssize_t index
    cdef int64_t number = 0
    cdef unsigned char first = <unsigned char> text[0] if nbytes else 0
    if first == 34:  # "
        if nbytes < 2 or text[nbytes - 1] != 34:
            return _OTHER
        for index in range(1, nbytes - 1):
            if not 32 <= text[index] <= 126 or text[index] == 34 or text[index] == 92:
                return _OTHER
        return PyUnicode_DecodeASCII(text + 1, nbytes - 2, NULL)
    if 48 <= first <= 57:
        if first == 48 and nbytes > 1 or nbytes > MAX_DIGITS:
            return _OTHER
        for index in range(nbytes):
            if not 48 <= text[index] <= 57:
                return _OTHER
            number = number * 10 + text[index] - 48
        return number
    if nbytes == 4 and memcmp(text, b"null", 4) == 0:
        return None
    if nbytes == 4 and memcmp(text, b"true", 4) == 0:
        return True
    if nbytes == 5 and memcmp(text, b"false", 5) == 0:
        return False
    return _OTHER


cdef object decode(const char *text, Py_ssize_t nbytes):
    """Decode JSON text that is borrowed for the call. Raises orjson.JSONDecodeError."""
    global _scratch_in_use
    if nbytes <= SCALAR_LIMIT:
        value = _decode_scalar(text, nbytes)
        if value is not _OTHER:
            return value
    if nbytes < COPY_LIMIT:
        if _scratch_in_use:  # by a call from which the garbage collector has come here
            return _loads(PyBytes_FromStringAndSize(text, nbytes))
        _scratch_in_use = True
        try:
            memcpy(PyBytes_AS_STRING(_scratch), text, nbytes)
            PyBytes_AS_STRING(_scratch)[nbytes] = 0
            Py_SET_SIZE(<PyVarObject *> _scratch, nbytes)
            return _loads(_scratch)
        finally:
            Py_SET_SIZE(<PyVarObject *> _scratch, COPY_LIMIT)
            _scratch_in_use = False
    return _loads(PyMemoryView_FromMemory(<char *> text, nbytes, PyBUF_READ))


cdef object take_data(dict message, str plugin, str slot, Segment segment=None):
    """Return the `data` of a response envelope, or raise its error as a SlotError.

    Bytes in it come as memoryviews, over shared memory where they lie there. Raises ProtocolError
    where they are nowhere.
    """
    success = message.get("success")
    if "binary" in message:
        message["data"] = take_bytes(message, plugin, slot, segment)
    if success is True:
        return message.get("data")
    error = message.get("error")
    if success is None and not error:
        return message.get("data")
    if not isinstance(error, str):
        try:
            error = "" if error is None else _dumps(error).decode()
        except TypeError:  # it is nested more deeply than can be written
            error = "the guest reported a failure whose reason cannot be shown"
    raise SlotError(
        error or "the guest reported a failure without a reason",
        data=message.get("data"), plugin=plugin, slot=slot)
