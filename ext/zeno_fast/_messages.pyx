"""Tells messages of the protocol from whatever else a sidecar prints to stdout, and reads ids."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, strlen

from zeno_fast._envelope cimport decode

import re

cdef extern from "zeno_json.h" nogil:
    size_t zj_value_end(const char *p, size_t n)

cdef enum:
    MAX_TRIES = 16  # places in one line where a message may begin: keeps the search linear

cdef object OBJECT_START = re.compile(rb'\{\s*"')
cdef object FRAME_HEADER = re.compile(rb"content-length: *(\d{1,9})\s*", re.IGNORECASE)
cdef object ANSWER_ID = re.compile(rb'\s*\{[^{}\[\]]*?"id"\s*:\s*"([\w.]+)"')
cdef object ID = re.compile(rb'"id"\s*:\s*"([\w.]+)"')
# Members of the outermost object: before anything nested begins, or after all of it has ended.
cdef object KIND = re.compile(rb'\s*\{[^{}\[\]]*?"type"\s*:\s*"(\w*)"')
cdef object KIND_LAST = re.compile(rb'"type"\s*:\s*"(\w*)"[^{}\[\]]*\}\s*$')
cdef object HOST_CALL_ID = re.compile(
    rb'\s*\{[^{}\[\]]*?"id"\s*:\s*("(?:[^"\\]|\\.)*"|\d+)')
cdef object ID_LAST = re.compile(rb'"id"\s*:\s*("(?:[^"\\]|\\.)*"|\d+)[^{}\[\]]*\}\s*$')
cdef bytes BLANK = b"\x00\xef\xbb\xbf\t\r\n "  # white space, NUL, and the bytes of a BOM

cdef const char *ANSWER_MIDDLE = b'","success":true,"data":'
cdef const char *ANSWER_END = b',"error":null'


cdef size_t write_decimal(uint64_t number, char *digits) noexcept:
    """Write a number in decimal into MAX_DIGITS bytes; return the count of digits."""
    cdef char backwards[MAX_DIGITS]
    cdef size_t count = 0
    cdef size_t index
    while True:
        backwards[count] = <char> (48 + number % 10)
        count += 1
        number //= 10
        if not number:
            break
    for index in range(count):
        digits[index] = backwards[count - 1 - index]
    return count


cdef uint64_t _read_decimal(const char *digits, size_t nbytes, size_t *count) noexcept:
    """Read a number as `write_decimal` writes it; `count` is 0 where there is none."""
    cdef uint64_t number = 0
    cdef size_t index = 0
    while index < nbytes and index < MAX_DIGITS - 1 and 48 <= digits[index] <= 57:
        number = number * 10 + <uint64_t> (digits[index] - 48)
        index += 1
    count[0] = 0 if index and digits[0] == 48 else index
    return number


cdef uint64_t number_of(str id, str prefix) except? 0:
    """Return the number in an id of this prefix, or 0, which none has."""
    cdef bytes text
    cdef size_t count = 0
    cdef uint64_t number
    if not id.startswith(prefix):
        return 0
    text = id[len(prefix):].encode("utf-8", "surrogatepass")
    number = _read_decimal(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text), &count)
    return number if count == <size_t> PyBytes_GET_SIZE(text) else 0


cdef uint64_t first_number(const char *line, size_t nbytes, str prefix) except? 0:
    """Return the number in the id of an answer whose begin is there, though it is no JSON, or 0."""
    found = ANSWER_ID.match(PyBytes_FromStringAndSize(line, nbytes if nbytes < SHOWN else SHOWN))
    return 0 if found is None else number_of(found[1].decode(), prefix)


cdef uint64_t match_answer(
    const char *line, size_t nbytes, bytes head, const char **data, size_t *length
) noexcept:
    """Find the data in an answer that is spelt as most guests spell it.

    Args:
        head: How such an answer begins, up to the number in its id.
        data: Set to what is JSON if, and only if, the line is such an answer and valid.

    Returns the number in the id, or 0 where the line is something else.
    """
    cdef size_t skip = PyBytes_GET_SIZE(head)
    cdef size_t middle = strlen(ANSWER_MIDDLE)
    cdef size_t end = strlen(ANSWER_END)
    cdef size_t count = 0
    cdef uint64_t number
    if nbytes <= skip or line[nbytes - 1] != 125:  # }
        return 0
    if memcmp(line, PyBytes_AS_STRING(head), skip) != 0:
        return 0
    line += skip
    nbytes -= skip
    number = _read_decimal(line, nbytes, &count)
    line += count
    nbytes -= count
    if not count or nbytes < middle + 2 or memcmp(line, ANSWER_MIDDLE, middle) != 0:
        return 0
    line += middle
    nbytes -= middle + 1
    if nbytes > end and memcmp(line + nbytes - end, ANSWER_END, end) == 0:
        nbytes -= end
    data[0] = line
    length[0] = nbytes
    return number


cdef bint is_message(dict value):
    """Tell whether a JSON object is a message; guests without ids send the bare envelope."""
    kind = value.get("type")
    return (
        kind == "guest_response" or kind == "host_call" or kind == "guest_chunk"
        or (not kind and "success" in value))


cdef int64_t framed_nbytes(bytes line) except? -1:
    """Return the length in a Content-Length header, or -1 where the line is none."""
    found = FRAME_HEADER.fullmatch(line)
    return int(found[1]) if found is not None else -1


cdef uint64_t last_number(bytes end, str prefix) except? 0:
    """Return the number in the id of an answer of which only the end is there, or 0."""
    found = ID.findall(end)
    return number_of(found[len(found) - 1].decode(), prefix) if found else 0


cdef object kind_of(bytes begin, bytes end):
    """Return the type of a message of which only the begin and the end are there, or None."""
    found = KIND.match(begin) or KIND_LAST.search(end)
    return found[1].decode() if found is not None and found[1] else None


cdef object host_call_id(bytes begin, bytes end):
    """Return the id of a host call of which only the begin and the end are there, or None."""
    found = HOST_CALL_ID.match(begin) or ID_LAST.search(end)
    if found is None:
        return None
    try:
        return decode(found[1], len(found[1]))
    except ValueError:
        return None


cdef list split_damaged(bytes line):
    """Split a line into messages (dict) and noise (bytes), each with where it begins, in order.

    Text may be glued in front of a message, behind it, or between two. Behind the begin of one that
    is cut off, only a message with an id counts: one without may be a part of the other's data.
    """
    cdef list found = []
    cdef Py_ssize_t position = 0
    cdef Py_ssize_t done = 0
    cdef Py_ssize_t begin
    cdef size_t length
    cdef int _
    cdef bint suspect = False
    cdef const char *text = PyBytes_AS_STRING(line)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(line)
    for _ in range(MAX_TRIES):
        match = OBJECT_START.search(line, position)
        if match is None:
            break
        begin = match.start()
        position = begin + 1
        with nogil:  # the line may be hundreds of megabytes
            length = zj_value_end(text + begin, size - begin)
        if length == 0:
            suspect = True
            continue
        try:
            value = decode(text + begin, length)
        except ValueError:
            suspect = True
            continue
        # What is inside a whole object is its data, whatever it looks like.
        position = begin + <Py_ssize_t> length
        if not is_message(<dict> value) or (suspect and not value.get("id")):
            continue
        noise = line[done:begin].strip(BLANK)
        if noise:
            found.append((done, noise))
        found.append((begin, value))
        done = position
    noise = line[done:].strip(BLANK)
    if noise:
        found.append((done, noise))
    return found
