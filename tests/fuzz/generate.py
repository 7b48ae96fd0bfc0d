"""Makes cases: what guests print, right, wrong, and mixed; and changes cases into others."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from fuzz.words import DICTIONARY, HOST_FUNCTIONS, NOISE, ODD_IDS


class Generator:
    """Makes the lines of one case; every answer carries a datum of its own."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._data = 0
        self._calls = 0
        self._limit = 0

    def case(self) -> bytes:
        """Make a case."""
        rng = self._rng
        ids = rng.random() < 0.7
        lines = [b"%ids\n"] if ids else []
        if rng.random() < 0.07:
            lines.append(b"%strict\n")
        if rng.random() < 0.3:
            lines.append(b"%features\n")
        if rng.random() < 0.1:
            self._limit = rng.choice((512, 513, 1000, 4096, 33000, 70000))
            lines.append(b"%%limit %d\n" % self._limit)
        self._calls = 0
        for _ in range(rng.randint(1, 4)):
            lines += self._asking_round() if ids and rng.random() < 0.3 else self._round(ids)
        if rng.random() < 0.3:
            lines[-1] = lines[-1].replace(b"\n", b"<cut>\n")
            lines.append(b"%eof\n")
        return b"".join(lines)

    def _round(self, ids: bool) -> list[bytes]:
        """Start calls and print: mostly an answer each, in any order."""
        rng = self._rng
        count = rng.randint(1, 5) if ids or rng.random() < 0.15 else 1
        kind = rng.choices((b"calls", b"streams", b"ping"), (70, 25, 3 if ids else 0))[0]
        count = 1 if kind == b"ping" else count
        begin = [b"%ping\n" if kind == b"ping" else b"%%%s %d\n" % (kind, count)]
        newest = range(self._calls, self._calls + count)
        self._calls += count
        if rng.random() < 0.2:
            begin.append(self._give_up())
        lines = [
            self.answer(call) if ids or rng.random() < 0.05 else self.bare_answer()
            for call in newest
            if rng.random() < 0.9
        ]
        if kind == b"streams":
            lines += [self.chunk(rng.choice(newest), ids) for _ in range(rng.choice((0, 1, 3, 7)))]
        return begin + self._mix(lines)

    def _asking_round(self) -> list[bytes]:
        """Make a call that finds its answer there, alone or behind others of it, or does not."""
        rng = self._rng
        kind = rng.choices((b"%call\n", b"%soon\n", b"%last\n"), (6, 5, 1))[0]
        lines = [self.answer(self._calls)] if rng.random() < 0.9 else []
        self._calls += 1
        if rng.random() < 0.4:
            return [kind, *(line + b"\n" for line in lines)]
        return [kind, *self._mix(lines)]

    def _give_up(self) -> bytes:
        kind = self._rng.choice((b"expire", b"abandon"))
        return b"%%%s %d\n" % (kind, self._rng.randrange(self._calls))

    def _mix(self, lines: list[bytes]) -> list[bytes]:
        """Put other things between some lines, and give each an end."""
        rng = self._rng
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            lines.append(self._other(self._calls))
        rng.shuffle(lines)
        ends = (b"\n", b"\n", b"\n", b"\n", b"\r\n", b" \n", b"<cut>\n" if self._limit else b"\n")
        found = [line + rng.choice(ends) for line in lines]
        if rng.random() < 0.1:
            found.insert(rng.randrange(len(found) + 1), self._give_up())
        return found

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
            lambda: self.chunk(call, rng.random() < 0.7),
            lambda: self.chunk(call, True) + self.answer(call),
            lambda: self.answer(call) + self.chunk(call, True) + rng.choice(NOISE),
        )
        if self._limit and rng.random() < 0.5:
            return self.long_line(call)
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

    def chunk(self, call: int, named: bool) -> bytes:
        """Make a partial result."""
        id = b'"id":"<id:%d>",' % call if named else self._rng.choice((b"", b'"id":"",'))
        return b'{"type":"guest_chunk",' + id + b'"data":' + self.data() + b"}"

    def long_line(self, call: int) -> bytes:
        """Make a line about as long as the limit, whose id may be where it is looked for."""
        rng = self._rng
        pad = b"<pad:%d>" % (self._limit + rng.choice((-1, 0, 1, 1, 2, 100, 40_000)))
        near = b'"x":"<fill:%d>",' % rng.choice((0, 200, 440, rng.randrange(420, 520)))
        id = rng.choice((b'"id":"<id:%d>"' % call, b'"id":"db%d"' % call, b'"id":%d' % call))
        kind = rng.choice((b"guest_response", b"host_call", b"guest_chunk"))
        head = b'{"type":"' + kind + b'",'
        return rng.choice(
            (
                head + id + b',"success":true,"data":"' + pad + b'"}',
                head + near + id + b',"success":true,"data":"' + pad + b'"}',
                head + b'"data":"' + pad + b'",' + id + b"}",
                head + b'"data":"' + pad + b'",' + id + b"," + near[:-1] + b"}",
                head + b'"parameters":{"a":"' + pad + b'"},' + id + b"}",
                b'{"success":true,"data":"' + pad + b'"}',
                b"log: " + head + id + b',"data":"' + pad + b'"}',
                b" " + head + id + b',"data":"' + pad + b'"}',
                pad + self.answer(call),
                pad,
            )
        )

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
