"""Makes cases: what guests print, right, wrong, and mixed; and changes cases into others."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

HOST_FUNCTIONS = (b'"log"', b'"db_query"', b'"no such"', b"7", b"null")
ODD_IDS = (
    b"1", b"1.0", b"-1", b"true", b"[]", b'{"a":1}', b'"1"', b'"<pre>"', b'"<pre>0"', b'"<pre>01"',
    b'"<pre>-1"', b'"<pre>1 "', b'" <pre>1"', b'"<pre>1x"', b'"<pre>\\u0031"', b'"<pre>1\\u0000"',
    b'"<pre>\xef\xbc\x91"', b'"<pre>18446744073709551617"', b'"<pre>9999999999999999999"',
    b'"<pre>99999999999999999999"', b'"z00000000.1"', b'"<fill:3000>"', b'"<pre><fill:100>"',
    b'"\\ud800"', b'"<pre>\\ud800"',
)  # fmt: skip
NOISE = (
    b"2024-01-01 INFO started", b"", b" ", b"\t", b"\r", b"\xef\xbb\xbf", b"\x00", b"\x00\x00\x00",
    b"\xff\xfe\x80", b"null", b"[]", b"{}", b"{", b"}", b'{"', b'"', b"[[[[", b'{"level":"info"}',
    b'{"type":"log","success":true}', b'{"type":"guest_chunk","id":"<id:0>","data":"c"}',
    b'{"type":"guest_call","id":"<id:0>","slot_name":"s"}', b"Content-Length: 120",
    b"content-length:7\r",
    b"<fill:70000>", b"<fill:5000>", b"<deep:3000>", b'{"a":<deep:2000>', b'{"a":' * 40, b'{"\\',
    b'{"success":', b'{"type":"guest_response"}', b'{"type":"host_call"}', b"1e400", b"NaN",
    b'[{"success":true,"data":"inside"}]', b'{"x":{"success":true,"data":"inside"}}',
    b'{"x":"{\\"success\\":true}"}', b"text { text", b"Warning: <b>x</b> in /a.php on line 3",
)  # fmt: skip
DICTIONARY = (
    b"<id:0>", b"<id:1>", b"<pre>", b"<cut>\n", b"\n", b"\r\n", b"\x00", b'"', b"\\", b"{", b"}",
    b"[", b"]", b",", b'"id":', b'"type":', b'"success":true', b'"data":', b'"error":null',
    b"guest_response", b"host_call", b"\xef\xbb\xbf", b"\xff", b'"\\ud800"', b"1e309",
    b"18446744073709551616", b"NaN",
    b"%calls 1\n", b"%calls 3\n", b"%expire 0\n", b"%abandon 0\n", b"%eof\n", b"%ids\n",
    b"%strict\n",
    b"%limit 4096\n", b"<fill:4096>", b"<fill:70000>", b"<deep:1022>", b"<deep:1023>",
    b"<shut:1023>",
    b"Content-Length: 12\r\n\r\n", b'{"type":"guest_chunk","id":"<id:0>","data":1}\n',
)  # fmt: skip


class Generator:
    """Makes the lines of one case; every answer carries a datum of its own."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._data = 0

    def case(self) -> bytes:
        """Make a case."""
        rng = self._rng
        ids = rng.random() < 0.7
        lines = [b"%ids\n"] if ids else []
        if rng.random() < 0.07:
            lines.append(b"%strict\n")
        if rng.random() < 0.05:
            lines.append(b"%%limit %d\n" % rng.choice((100, 1000, 33000, 70000)))
        calls = 0
        for _ in range(rng.randint(1, 4)):
            count = rng.randint(1, 5) if ids or rng.random() < 0.15 else 1
            lines.append(b"%%calls %d\n" % count)
            calls += count
            if rng.random() < 0.2:
                kind = rng.choice((b"expire", b"abandon"))
                lines.append(b"%%%s %d\n" % (kind, rng.randrange(calls)))
            lines += self._round(calls, count, ids)
        if rng.random() < 0.3:
            lines[-1] = lines[-1].replace(b"\n", b"<cut>\n")
            lines.append(b"%eof\n")
        return b"".join(lines)

    def _round(self, calls: int, count: int, ids: bool) -> list[bytes]:
        """Make what is printed after some calls: mostly an answer each, in any order."""
        rng = self._rng
        newest = range(calls - count, calls)
        lines = [
            self.answer(call) if ids or rng.random() < 0.05 else self.bare_answer()
            for call in newest
            if rng.random() < 0.9
        ]
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            lines.append(self._other(calls))
        rng.shuffle(lines)
        return [line + rng.choice((b"\n", b"\n", b"\n", b"\r\n", b" \n")) for line in lines]

    def _other(self, calls: int) -> bytes:
        rng = self._rng
        call = rng.randrange(calls + 2)
        kinds: Sequence[Callable[[], bytes]] = (
            lambda: rng.choice(NOISE),
            lambda: rng.choice(NOISE),
            self.host_call,
            lambda: self.answer(call),
            self.bare_answer,
            lambda: self.response(b'"id":' + rng.choice(ODD_IDS), True),
            lambda: rng.choice(NOISE) + self.answer(call),
            lambda: b"1" + self.answer(call),
            lambda: self.answer(call) + rng.choice(NOISE),
            lambda: self.answer(call) + self.answer(rng.randrange(calls + 2)),
            lambda: self._cut_off(self.answer(call)),
            lambda: self._cut_off(self.answer(call)) + self.answer(rng.randrange(calls + 2)),
            lambda: self._cut_off(self.host_call()) + self.bare_answer(),
            lambda: self._scratch(self.answer(call)),
        )
        return rng.choice(kinds)()

    def answer(self, call: int) -> bytes:
        """Answer a call by its id."""
        return self.response(b'"id":"<id:%d>"' % call, True)

    def bare_answer(self) -> bytes:
        """Answer without an id."""
        return self.response(self._rng.choice((b"", b"", b'"id":""', b'"id":null')), False)

    def response(self, id: bytes, typed: bool) -> bytes:
        """Make an answer in one of many spellings."""
        rng = self._rng
        data = b'"data":' + self.data()
        if id and typed and rng.random() < 0.4:
            end = rng.choice((b"", b"", b',"error":null', b',"extra":1', b',"error":""'))
            return b'{"type":"guest_response",' + id + b',"success":true,' + data + end + b"}"
        members = [id] if id else []
        if typed or rng.random() < 0.2:
            members.append(b'"type":"guest_response"' if typed else b'"type":""')
        members += rng.choice(
            (
                [b'"success":true', data],
                [b'"success":true', data, b'"error":null'],
                [b'"success":false', b'"error":"e%d"' % self._next()],
                [b'"success":false', b'"error":""', data],
                [b'"success":false', b'"error":{"code":%d}' % self._next(), data],
                [b'"success":null', data],
                [b'"success":1', data],
                [b'"success":true'],
                [data] if typed else [b'"success":true', data],
                [b'"success":true', data, b'"success":false'],
            )
        )
        if rng.random() < 0.3:
            rng.shuffle(members)
        comma, colon = rng.choice(((b",", b":"), (b", ", b": "), (b"\t,", b" :")))
        return b"{" + comma.join(part.replace(b'":', b'"' + colon, 1) for part in members) + b"}"

    def host_call(self) -> bytes:
        """Call a host function."""
        rng = self._rng
        id = rng.choice((b'"db1"', b'"<id:0>"', b"1", b"null", rng.choice(ODD_IDS)))
        return b'{"type":"host_call","id":%s,"function":%s,"parameters":{"n":%d}}' % (
            id, rng.choice(HOST_FUNCTIONS), self._next(),
        )  # fmt: skip

    def data(self) -> bytes:
        """Make a JSON value that says which it is."""
        n = self._next()
        if self._rng.random() < 0.6:
            return self._rng.choice((b'"t%d"', b'{"t":%d}', b"%d", b"[%d,null]")) % n
        return self._rng.choice(
            (
                b'{"t":[%d]}', b'["t%d"]', b"%d", b'{"t":%d,"id":"<id:0>"}', b"-%d.5e3",
                b'"}{\\"%d\\n\\u0000"',
                b'{"type":"guest_response","id":"<id:1>","success":true,"data":%d}',
                b'{"success":true,"data":%d}', b"9%d00000000000000000000", b"%de308", b"%de400",
                b'"%d\xff"', b'"%d\\ud800"', b"<deep:1021>%d<shut:1021>",
                b"<deep:1022>%d<shut:1022>",
                b"<deep:1023>%d<shut:1023>", b"<deep:1024>%d<shut:1024>", b'"%d<fill:9000>"',
                b'"%d<fill:20000>"', b'"%d<fill:66000>"', b"0%d", b'"%d\xc3\xa9 \xe2\x82\xac"',
                b'{"type":"host_call","id":"%d"}',
            )
        ) % n  # fmt: skip

    def _next(self) -> int:
        self._data += 1
        return self._data

    def _cut_off(self, line: bytes) -> bytes:
        return line[: self._rng.randrange(len(line))]

    def _scratch(self, line: bytes) -> bytes:
        at = self._rng.randrange(len(line))
        return line[:at] + self._rng.choice((b"\x00", b"\xff", b"'", b"", b"\\")) + line[at + 1 :]


def mutate(rng: random.Random, case: bytes, others: Sequence[bytes]) -> bytes:
    """Change a case a little, or a little more; `others` may lend their lines."""
    for _ in range(rng.choice((1, 1, 2, 3, 6))):
        case = _mutate_lines(rng, case, others) if rng.random() < 0.5 else _mutate_bytes(rng, case)
    return case[:20_000]


def _mutate_lines(rng: random.Random, case: bytes, others: Sequence[bytes]) -> bytes:
    lines = case.splitlines(keepends=True) or [b"\n"]
    at = rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        lines.insert(rng.randrange(len(lines) + 1), lines[at])
    elif kind == 1:
        del lines[at]
    elif kind == 2:
        other = rng.randrange(len(lines))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == 3:
        lent = rng.choice(others).splitlines(keepends=True) or [b"\n"]
        lines.insert(at, rng.choice(lent))
    elif kind == 4:
        lines.insert(at, Generator(rng).answer(rng.randrange(4)) + b"\n")
    else:
        lines[at] = lines[at].rstrip(b"\r\n")
    return b"".join(lines)


def _mutate_bytes(rng: random.Random, case: bytes) -> bytes:
    at = rng.randrange(len(case) + 1)
    kind = rng.randrange(5)
    if kind == 0:
        return case[:at] + rng.choice(DICTIONARY) + case[at:]
    if kind == 1:
        return case[:at] + case[at + rng.choice((1, 2, 8, 30)) :]
    if kind == 2 and at < len(case):
        return case[:at] + bytes([case[at] ^ (1 << rng.randrange(8))]) + case[at + 1 :]
    if kind == 3 and at < len(case):
        return case[:at] + bytes([rng.randrange(256)]) + case[at + 1 :]
    size = rng.randrange(1, 60)
    return case[:at] + case[at : at + size] * 2 + case[at + size :]
