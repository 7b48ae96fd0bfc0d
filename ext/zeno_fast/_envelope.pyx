"""The envelope: parameters to bytes, bytes to data, and the check of a slot's declared inputs.

No I/O is done here; both kinds of plugins and every transport share these functions.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItem
from cpython.float cimport PyFloat_Check
from cpython.list cimport PyList_Check
from cpython.long cimport PyLong_Check
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_Check
from cpython.unicode cimport PyUnicode_Check, PyUnicode_DecodeASCII
from libc.stdint cimport int64_t
from libc.string cimport memcmp, memcpy

import difflib
from collections.abc import Mapping

import orjson

from zeno_fast._bytes cimport (
    MAX_DEPTH, RESERVED, BinarySink, BinaryWay, is_plain, read_back, take_bytes,
)
from zeno_fast._shm cimport Arena, Segment

from zeno_fast.errors import InvalidParameters, SlotError

cdef extern from "Python.h":
    int PyBUF_READ
    int PyBool_Check(object)
    int PyDict_Check(object)
    ctypedef struct PyVarObject:
        pass
    void Py_SET_SIZE(PyVarObject *o, Py_ssize_t size) noexcept

cdef object _dumps = orjson.dumps
cdef object _loads = orjson.loads
cdef object _options = orjson.OPT_SERIALIZE_NUMPY
cdef bytes NO_PARAMETERS = b"{}"

# Below this, copying the text into a bytes object costs less than a memoryview over it.
cdef Py_ssize_t COPY_LIMIT = 2048

cdef enum:
    SCALAR_LIMIT = 64  # bytes of JSON that are looked at for whether they need a parser
    MAX_DIGITS = 18  # of a number that fits into 64 bits whatever it is

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
    if not is_plain(payload, places):
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
        if not is_plain(payload, 0):
            payload = _refuse_places(payload, 0, parameters, check)
        return with_context(payload)
    bytes_of = BinarySink(way, check.lists(parameters))
    try:
        payload = _dumps(parameters, bytes_of)
    except (TypeError, ValueError, BufferError) as error:
        raise _unsendable(parameters, str(error), check) from error
    if not is_plain(payload, bytes_of.put_count):
        payload = _refuse_places(payload, bytes_of.put_count, parameters, check)
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
    return read_back(parameters, arena) if envelope.get("binary") else parameters


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
