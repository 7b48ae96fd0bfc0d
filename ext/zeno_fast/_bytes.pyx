"""Bytes beside the JSON of an envelope: where they are put, and what stands for them in it.

In JSON that is an object `{"$bytes": place}`, whose place is text in base64, or an offset and a
length in shared memory, with a buffer's id where it lies in one; see docs/shared-memory.md.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memchr, memcmp, memcpy

import binascii
from base64 import b64decode

import orjson

from zeno_fast._shm cimport Arena, Block, Buffer, Segment, buffer_of, find_buffer

from zeno_fast.binary_values import FORMATS as _FORMATS, dtype_of, element_type
from zeno_fast.errors import ProtocolError

cdef extern from "<string.h>" nogil:
    void *memmem(const void *text, size_t nbytes, const void *part, size_t part_nbytes)

cdef object _dumps = orjson.dumps
cdef object _options = orjson.OPT_SERIALIZE_NUMPY
cdef str RESERVED = "$bytes"  # names the member of an object that stands for bytes


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
        put_count: How many values it has put somewhere.
    """

    def __init__(self, BinaryWay way, lists):
        self._way = way
        self._lists = {id(value) for value in lists}
        self.put_count = 0
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
        self.put_count += 1
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


cdef object read_back(object value, Arena arena):
    """Return sent parameters with bytes where those were."""
    if isinstance(value, list):
        return [read_back(member, arena) for member in value]
    if not isinstance(value, dict):
        return value
    if RESERVED not in value:
        return {key: read_back(member, arena) for key, member in value.items()}
    place = value[RESERVED]
    if isinstance(place, str):
        data = b64decode(place)
    elif len(place) == 2:
        data = arena.read(*place)
    else:
        data = memoryview(buffer_of(place[2]))[place[0]:place[0] + place[1]]
    return element_type(memoryview(data), value.get("dtype"), value.get("shape"))


cdef bint is_plain(bytes payload, Py_ssize_t places) noexcept:
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
