"""What a validated module imports and exports, read from its bytes.

The library's own lists abort the process where a function takes or returns a type that its C API
does not know, such as `v128`. The format: WebAssembly core specification 3.0, chapter 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FUNCTION, TABLE, MEMORY, GLOBAL, TAG = range(5)
TYPES, IMPORTS, FUNCTIONS, TABLES, MEMORIES, EXPORTS = 1, 2, 3, 4, 5, 7
NAMES = {
    0x7F: "i32", 0x7E: "i64", 0x7D: "f32", 0x7C: "f64", 0x7B: "v128", 0x70: "funcref",
    0x6F: "externref",
}  # fmt: skip
FUNC, STRUCT, ARRAY, SUB, SUB_FINAL, REC = 0x60, 0x5F, 0x5E, 0x50, 0x4F, 0x4E
REF, REF_NULL = 0x64, 0x63
WITH_INIT = 0x40  # in place of a table's element type
SHARED, IS_64 = 2, 4  # flags of limits
PAGE = 65536


@dataclass(frozen=True, slots=True)
class Signature:
    """The type of a function; a value type that has no short name is shown by its number."""

    parameters: tuple[str, ...] = ()
    results: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"({', '.join(self.parameters)}) -> {', '.join(self.results) or 'nothing'}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of a memory, in pages, or of a table, in elements."""

    least: int
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """Something that is imported or exported; its type where it is a function or has bounds."""

    kind: int
    type: Signature | Bounds | None = None


@dataclass(slots=True)
class Interface:
    """What a module needs and what it offers.

    Attributes:
        imports: In their order, with module and name.
        exports: By name.
        memories: All that it has, imported ones first.
        tables: Likewise.
    """

    imports: list[tuple[str, str, Item]] = field(default_factory=list)
    exports: dict[str, Item] = field(default_factory=dict)
    memories: list[Bounds] = field(default_factory=list)
    tables: list[Bounds] = field(default_factory=list)


def read_interface(code: bytes) -> Interface:
    """Read a module that the library has compiled: nothing of its format is checked again."""
    reader = _Reader(code, 8)
    sections = {
        TYPES: reader.read_types,
        IMPORTS: reader.read_imports,
        FUNCTIONS: reader.read_functions,
        TABLES: reader.read_tables,
        MEMORIES: reader.read_memories,
        EXPORTS: reader.read_exports,
    }
    while reader.at < len(code):
        section, size = reader.byte(), reader.number()
        end = reader.at + size
        if section in sections:
            sections[section]()
        reader.at = end
    return reader.found


class _Reader:
    def __init__(self, code: bytes, at: int) -> None:
        self.found = Interface()
        self.at = at
        self._code = code
        self._types: list[Signature | None] = []
        self._functions: list[Signature | None] = []

    def read_types(self) -> None:
        for _ in range(self.number()):
            self._types += self.recursive_types()

    def read_imports(self) -> None:
        for _ in range(self.number()):
            module, name, item = self.text(), self.text(), self.item()
            self.found.imports.append((module, name, item))
            if item.kind == FUNCTION:
                self._functions.append(item.type if isinstance(item.type, Signature) else None)
            elif item.kind == MEMORY and isinstance(item.type, Bounds):
                self.found.memories.append(item.type)
            elif item.kind == TABLE and isinstance(item.type, Bounds):
                self.found.tables.append(item.type)

    def read_functions(self) -> None:
        self._functions += [self._types[self.number()] for _ in range(self.number())]

    def read_tables(self) -> None:
        for _ in range(self.number()):
            with_init = self._code[self.at] == WITH_INIT
            if with_init:
                self.at += 2
            self.found.tables.append(self.table())
            if with_init:
                return  # an expression follows, and no more is needed of what is behind it

    def read_memories(self) -> None:
        self.found.memories += [self.bounds() for _ in range(self.number())]

    def read_exports(self) -> None:
        for _ in range(self.number()):
            name, kind, index = self.text(), self.byte(), self.number()
            type_: Signature | Bounds | None = None
            if kind == FUNCTION:
                type_ = self._functions[index]
            elif kind == MEMORY:
                type_ = self.found.memories[index]
            self.found.exports[name] = Item(kind, type_)

    def byte(self) -> int:
        self.at += 1
        return self._code[self.at - 1]

    def number(self) -> int:
        """Read an unsigned number in LEB128."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    def text(self) -> str:
        size = self.number()
        self.at += size
        return self._code[self.at - size : self.at].decode()

    def value_type(self) -> str:
        code = self.byte()
        if code in (REF, REF_NULL):
            return f"{'ref' if code == REF else 'ref null'} {self.number()}"
        return NAMES.get(code, f"type {code:#x}")

    def value_types(self) -> tuple[str, ...]:
        return tuple(self.value_type() for _ in range(self.number()))

    def recursive_types(self) -> list[Signature | None]:
        """Read types that may refer to each other, or one; None for what is no function's."""
        if self._code[self.at] != REC:
            return [self.sub_type()]
        self.at += 1
        return [self.sub_type() for _ in range(self.number())]

    def sub_type(self) -> Signature | None:
        code = self.byte()
        if code in (SUB, SUB_FINAL):
            for _ in range(self.number()):
                self.number()
            code = self.byte()
        if code == FUNC:
            return Signature(self.value_types(), self.value_types())
        if code not in (STRUCT, ARRAY):
            raise ValueError(f"the module has a type of the unknown kind {code:#x}")
        for _ in range(self.number() if code == STRUCT else 1):
            self.value_type()
            self.byte()  # whether it changes
        return None

    def bounds(self) -> Bounds:
        flags, least = self.byte(), self.number()
        if flags & 1:
            self.number()
        return Bounds(least, flags)

    def table(self) -> Bounds:
        self.value_type()
        return self.bounds()

    def item(self) -> Item:
        kind = self.byte()
        if kind == FUNCTION:
            return Item(kind, self._types[self.number()])
        if kind == TABLE:
            return Item(kind, self.table())
        if kind == MEMORY:
            return Item(kind, self.bounds())
        if kind == GLOBAL:
            self.value_type()
            self.byte()  # whether it changes
        else:
            self.byte()  # of a tag: always zero
            self.number()
        return Item(kind)
