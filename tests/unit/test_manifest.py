import dataclasses
import json
import sys
from pathlib import Path
from random import Random

import pytest
import yaml

from zeno_fast import manifest
from zeno_fast._envelope import InputCheck
from zeno_fast.errors import InvalidParameters, ManifestError, PluginLoadError
from zeno_fast.manifest import ConfigParameter, Manifest, Permissions, SidecarOptions, WasmOptions
from zeno_fast.platforms import Machine, normal_key, this_machine
from zeno_fast.plugin import InputDefinition, SlotDefinition

LINUX = Machine("linux", "x86_64", "gnu")
SIDECAR = "name: p\ntype: sidecar\nbinary: worker\n"
DIGEST = "0123456789abcdef" * 4
OTHER = "f" * 64


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Load a manifest from its text, as on a Linux machine unless another is given."""

    def load(text: str, machine: Machine = LINUX, **options) -> Manifest:
        monkeypatch.setattr(manifest, "this_machine", lambda: machine)
        (tmp_path / "manifest.yaml").write_text(text, encoding="utf-8")
        return Manifest.load(tmp_path, **options)

    return load


@pytest.fixture
def refuse(load):
    def refuse(text: str, **options) -> ManifestError:
        with pytest.raises(ManifestError) as caught:
            load(text, **options)
        return caught.value

    return refuse


def test_the_php_manifest_of_the_design_document_loads_as_printed(load):
    loaded = load("""\
name: php-high-speed
version: 1.2.0
type: sidecar          # Options: wasm (default), sidecar
binary: php-worker.exe # For WASM: .wasm file | For Sidecar: Native executable

# Sidecar-specific configuration
sidecar:
  protocol: json-rpc   # Options: json-rpc (stdin/stdout), fastcgi, http
  auto_start: true
  keep_alive: true
  max_retries: 3

permissions:
  network: ["*"]
  filesystem: ["./storage"]
""", strict=True)  # fmt: skip
    assert (loaded.name, loaded.version, loaded.type) == ("php-high-speed", "1.2.0", "sidecar")
    assert loaded.binary == "php-worker.exe"
    assert loaded.binary_path == loaded.folder / "php-worker.exe"
    assert loaded.sidecar == SidecarOptions()
    assert loaded.permissions == Permissions(network=("*",), filesystem=("./storage",))
    assert loaded.slots is None
    assert loaded.warnings == ()


def test_the_dotnet_manifest_of_the_design_document_loads_as_printed(load):
    loaded = load("""\
name: dotnet-utils
type: sidecar
binary: ./DotnetPlugin.exe # Compiled with NativeAOT
sidecar:
  protocol: json-rpc
""", strict=True)  # fmt: skip
    assert loaded.binary_path == loaded.folder / "DotnetPlugin.exe"


EVERYTHING = f"""\
name: all.keys_1
version: 1.10
type: sidecar
binary: ./bin/worker
binaries:
  linux-amd64: bin/linux64
  linux: bin/linux
  wasm: bin/universal.wasm
author: 42
description: yes
license: MIT
homepage: https://example.com   # a comment
requires:
  engine: ">=1.0"
  php: 8.2
config:
  api_key: {{type: string, required: true, env: API_KEY, description: The key}}
  limit: {{type: int, default: 010}}
  release: {{default: 1.10}}
  nothing:
sidecar:
  protocol: json-rpc
  auto_start: no
  keep_alive: off
  max_retries: 0
  env: {{PORT: 8080, DEBUG: true, EMPTY: "", RATIO: 1.50}}
  transport: shm
  ring_size: 100KiB
  arena_size: 2MiB
  args: [--port, 8080]
  workers: 2..8
  max_jobs: 100
  ttl: 1h
  idle_ttl: 60
  max_memory: 512MiB
  timeout: 500ms
  stop_timeout: 0
  max_queue: 10
  strict: true
wasm: {{memory: 64MiB, timeout: 5m, fuel: 1000000, instances: 2, fresh: true}}
permissions:
  network: https://api.example.com/*
  filesystem: [./storage, /data]
  env: [API_KEY]
  database: main
  scope: read
slots:
  - name: all.run
    inputs: {{x: {{type: int, required: true}}}}
sha256: {{linux-x86_64: "sha256:{DIGEST.upper()}"}}
"""


def test_every_key_is_read(load):
    loaded = load(EVERYTHING, strict=True)
    assert (loaded.name, loaded.version, loaded.author) == ("all.keys_1", "1.10", "42")
    assert (loaded.description, loaded.license) == ("yes", "MIT")
    assert loaded.homepage == "https://example.com"
    assert loaded.requires == {"engine": ">=1.0", "php": 8.2}
    assert loaded.config == {
        "api_key": ConfigParameter("string", True, "API_KEY", None, "The key"),
        "limit": ConfigParameter("int", default=10),
        "release": ConfigParameter("string", default="1.10"),
        "nothing": ConfigParameter(),
    }
    env = {"PORT": "8080", "DEBUG": "true", "EMPTY": "", "RATIO": "1.50"}
    assert loaded.sidecar == SidecarOptions(
        auto_start=False,
        keep_alive=False,
        max_retries=0,
        env=env,
        transport="shm",
        ring_size=131072,
        arena_size=2097152,
        args=("--port", "8080"),
        workers=(2, 8),
        max_jobs=100,
        ttl=3600.0,
        idle_ttl=60.0,
        max_memory=512 << 20,
        timeout=0.5,
        stop_timeout=0.0,
        max_queue=10,
        strict=True,
    )
    assert loaded.wasm == WasmOptions(64 << 20, 300.0, 1_000_000, 2, True)
    assert loaded.permissions == Permissions(
        network=("https://api.example.com/*",),
        filesystem=("./storage", "/data"),
        env=("API_KEY",),
        database=("main",),
        scope=frozenset({"read"}),
    )
    assert [slot.name for slot in loaded.slots or ()] == ["all.run"]
    assert loaded.binaries["linux-amd64"] == "bin/linux64"
    assert loaded.binary_path == loaded.folder / "bin" / "linux64"
    assert loaded.sha256 == DIGEST


def test_the_raw_data_hold_all_of_the_file_and_texts_as_written(load):
    raw = load(EVERYTHING).raw
    assert raw["version"] == "1.10"
    assert raw["sidecar"]["env"]["RATIO"] == "1.50"
    assert raw["sidecar"]["max_retries"] == 0
    assert list(raw) == [
        line.split(":")[0] for line in EVERYTHING.splitlines() if line[0].isalpha()
    ]
    json.dumps(dict(raw))


def test_type_is_wasm_where_it_is_not_stated(load):
    loaded = load("name: p\nbinary: p.wasm\n")
    assert loaded.type == "wasm"
    assert loaded.wasm == WasmOptions()


def test_a_value_shared_by_an_alias_is_read_by_each_field_as_it_needs_it(load):
    loaded = load(SIDECAR + "version: &n 3\nsidecar: {max_retries: *n}\n")
    assert (loaded.version, loaded.sidecar.max_retries) == ("3", 3)


def test_keys_with_an_empty_value_count_as_absent(load):
    loaded = load("name: p\ntype:\nbinary: p.wasm\nauthor:\npermissions:\n  network:\nslots:\n")
    assert (loaded.type, loaded.author, loaded.permissions) == ("wasm", "", Permissions())
    assert loaded.slots is None


@pytest.mark.parametrize(
    ("text", "place", "key", "words"),
    [
        ("binary: x\n", (1, 1), "name", "is missing"),
        ("name:\nbinary: x\n", (1, None), "name", "is empty"),
        ("name: ''\nbinary: x\n", (1, 7), "name", "is empty"),
        ("name: my plugin\nbinary: x\n", (1, 7), "name", "for example `my-plugin`"),
        ("name: ../x\nbinary: x\n", (1, 7), "name", "letters, digits"),
        (f"name: {'x' * 129}\nbinary: x\n", (1, 7), "name", "at most 128"),
        ("name: [p]\nbinary: x\n", (1, 7), "name", "found a list; expected a string"),
        ("name: p\n", (1, 1), "binary", "is missing"),
        ("name: p\nbinary: ' '\n", (2, 9), "binary", "is empty"),
        ('name: p\nbinary: "a\\0b"\n', (2, 9), "binary", "NUL"),
        ("name: p\ntype: sidcar\nbinary: x\n", (2, 7), "type", "did you mean `sidecar`?"),
        ("name: p\ntype: Sidecar\nbinary: x\n", (2, 7), "type", "did you mean `sidecar`?"),
        ("name: p\ntype: true\nbinary: x\n", (2, 7), "type", "one of `wasm`, `sidecar`"),
        (SIDECAR + "version: [1]\n", (4, 10), "version", "a list"),
        (SIDECAR + "sidecar: yes\n", (4, 10), "sidecar", "a mapping of keys to values"),
        (SIDECAR + "permissions: [network]\n", (4, 14), "permissions", "a mapping"),
        (SIDECAR + "config: [a]\n", (4, 9), "config", "a mapping"),
        (SIDECAR + "config:\n  a: string\n", (5, 6), "config.a", "found `string`"),
        (
            SIDECAR + "config: {a: {required: maybe}}\n",
            (4, 24),
            "config.a.required",
            "true or false",
        ),
        (SIDECAR + "slots: 5\n", (4, 8), "slots", "a list of slots"),
        (SIDECAR + "slots: hello\n", (4, 8), "slots", "a list of slots"),
        (SIDECAR + "slots:\n  - name: a\n  - inputs: {}\n", (6, 5), "slots[1]", "no `name`"),
        (SIDECAR + "slots:\n  - name: a\n  - name: a\n", (6, 5), "slots[1]", "twice"),
        (SIDECAR + "slots: [{name: a, inputs: {x: 5}}]\n", (4, 31), "slots[0].inputs.x", "found 5"),
        (SIDECAR + "sha256: abc\n", (4, 9), "sha256", "64 hex digits"),
        (SIDECAR + f"sha256: {{windows: {OTHER}}}\n", (4, 9), "sha256", "no digest"),
        (SIDECAR + "sha256: {linux: abc}\n", (4, 17), "sha256.linux", "64 hex digits"),
        (
            SIDECAR + "permissions: {network: {a: b}}\n",
            (4, 24),
            "permissions.network",
            "list of str",
        ),
        (SIDECAR + "permissions: {network: true}\n", (4, 24), "permissions.network", "`true`"),
        (SIDECAR + "permissions: {env: [A, '']}\n", (4, 24), "permissions.env[1]", "empty"),
        (SIDECAR + "permissions: {env: [[A]]}\n", (4, 21), "permissions.env[0]", "a list"),
        (
            SIDECAR + "permissions: {scope: [read, wrte]}\n",
            (4, 29),
            "permissions.scope",
            "`write`?",
        ),
    ],
)
def test_a_wrong_manifest_names_line_column_key_and_what_was_expected(
    refuse, text, place, key, words
):
    error = refuse(text)
    assert words in str(error)
    line, column = place
    assert (error.line, error.key) == (line, key)
    if column is not None:
        assert error.column == column
    assert error.expected
    assert error.file.is_absolute()
    assert str(error).startswith(f"{error.file}:{line}:")


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("sidecar", "protocol", "jsonrpc", "did you mean `json-rpc`?"),
        ("sidecar", "protocol", "[http]", "a list"),
        ("sidecar", "auto_start", "maybe", "true or false"),
        ("sidecar", "auto_start", "'true'", "true or false"),
        ("sidecar", "keep_alive", "1", "true or false"),
        ("sidecar", "max_retries", "-1", "at least 0"),
        ("sidecar", "max_retries", "'3'", "a whole number"),
        ("sidecar", "max_retries", "3.0", "a whole number"),
        ("sidecar", "max_retries", "true", "a whole number"),
        ("sidecar", "env", "[A=1]", "a mapping"),
        ("sidecar", "env", "{'A=B': x}", "not a name for a variable"),
        ("sidecar", "env", "{A: [1]}", "a string"),
        ("sidecar", "transport", "pipes", "one of `auto`, `stdio`, `shm`"),
        ("sidecar", "args", "{a: b}", "a list of strings"),
        ("sidecar", "workers", "many", "a whole number"),
        ("sidecar", "workers", "0", "at least 1"),
        ("sidecar", "workers", "1025", "at most 1024"),
        ("sidecar", "workers", "4..2", "`1..4`"),
        ("sidecar", "workers", "0..0", "`1..4`"),
        ("sidecar", "workers", "1..2000", "at most 1024"),
        ("sidecar", "workers", "1..", "a whole number"),
        ("sidecar", "max_memory", "1000", "bytes"),
        ("sidecar", "max_jobs", "x", "a whole number"),
        ("sidecar", "ttl", "soon", "seconds"),
        ("sidecar", "timeout", "0", "more than 0"),
        ("sidecar", "timeout", "-1", "more than 0"),
        ("sidecar", "timeout", "5 parsecs", "`500ms`, `30s`"),
        ("sidecar", "timeout", "1e300", "at most a year"),
        ("sidecar", "timeout", ".inf", "seconds"),
        ("sidecar", "stop_timeout", "-1", "0 or more"),
        ("sidecar", "max_memory", "lots", "`256MiB`"),
        ("sidecar", "max_queue", "0", "at least 1"),
        ("sidecar", "strict", "very", "true or false"),
        ("wasm", "memory", "1", "65536"),
        ("wasm", "memory", "5GiB", "4294967296"),
        ("wasm", "memory", "256 megs", "`256MiB`"),
        ("wasm", "timeout", "0s", "more than 0"),
        ("wasm", "fuel", "0", "at least 1"),
        ("wasm", "instances", "0", "at least 1"),
        ("wasm", "fresh", "2", "true or false"),
    ],
)
def test_wrong_options_are_refused_with_their_key(refuse, section, key, value, words):
    error = refuse(f"{SIDECAR}{section}:\n  {key}: {value}\n")
    assert words in str(error)
    assert error.line == 5
    assert error.key is not None
    assert error.key.startswith(f"{section}.{key}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("protocol", "fastcgi"),
        ("protocol", "http"),
    ],
)
def test_protocol_and_other_keys_are_never_read_and_then_not_used(refuse, key, value):
    """Protocol.md, section 5: `protocol` was read and never used, FastCGI and HTTP never built."""
    error = refuse(f"{SIDECAR}sidecar:\n  {key}: {value}\n")
    assert "not available in this version" in str(error)
    assert (error.line, error.column, error.key) == (5, 5 + len(key), f"sidecar.{key}")


@pytest.mark.parametrize(
    ("text", "expected"), [("4", (4, 4)), ("0..1", (0, 1)), ("2 .. 1024", (2, 1024))]
)
def test_the_number_of_workers_is_one_or_a_range(load, text, expected):
    assert load(f"{SIDECAR}sidecar:\n  workers: {text}\n").sidecar.workers == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("65536", 65536), ("64KiB", 65536), ("64 kib", 65536), ("1MB", 10**6), ("1.5MiB", 3 << 19),
     ("4GiB", 1 << 32), ("70000B", 70000)],
)  # fmt: skip
def test_sizes(load, text, expected):
    assert load(f"name: p\nbinary: p.wasm\nwasm: {{memory: {text}}}\n").wasm.memory == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1", 1.0), ("0.25", 0.25), ("500ms", 0.5), ("30s", 30.0), ("1.5m", 90.0), ("1h", 3600.0)],
)
def test_durations(load, text, expected):
    assert load(f"{SIDECAR}sidecar: {{timeout: {text}}}\n").sidecar.timeout == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("read", {"read"}), ("[read, write]", {"read", "write"}), ("true", {"read", "write"}),
     ("false", set()), ("[]", set())],
)  # fmt: skip
def test_scopes(load, text, expected):
    assert load(f"{SIDECAR}permissions: {{scope: {text}}}\n").permissions.scope == expected


ODD = [
    ("tpye: sidecar\n", (4, 1), "tpye", "did you mean `type`?"),
    ("max_retries: 3\n", (4, 1), "max_retries", "did you mean `sidecar.max_retries`?"),
    ("zzz: 1\n", (4, 1), "zzz", "unknown key"),
    ("sidecar:\n  autostart: true\n", (5, 3), "sidecar.autostart", "`auto_start`?"),
    ("permissions:\n  networks: ['*']\n", (5, 3), "permissions.networks", "`network`?"),
    ("config:\n  a: {typ: int}\n", (5, 7), "config.a.typ", "`type`?"),
    ("slots:\n  - name: a\n    input: {}\n", (6, 5), "slots[0].input", "`inputs`?"),
    (
        "slots:\n  - {name: a, inputs: {x: {typ: int}}}\n",
        (5, 28),
        "slots[0].inputs.x.typ",
        "`type`?",
    ),
    (
        "slots:\n  - {name: a, inputs: {x: {type: strng}}}\n",
        (5, 34),
        "slots[0].inputs.x.type",
        "did you mean `string`?",
    ),
    ("slots:\n  - {name: a, inputs: {x: integr}}\n", (5, 27), "slots[0].inputs.x", "`integer`?"),
    (
        "slots:\n  - {name: a, inputs: [{name: x, requierd: true}]}\n",
        (5, 34),
        "slots[0].inputs[0].requierd",
        "`required`?",
    ),
    ("slots:\n  a: {idempotnt: true}\n", (5, 7), "slots.a.idempotnt", "`idempotent`?"),
    (
        "slots:\n  - name: a\n    inputs:\n      type: object\n"
        "      properties: {x: {type: strng, minLength: 1}}\n",
        (8, 30),
        "slots[0].inputs.properties.x.type",
        "`string`?",
    ),
    ("config:\n  a: {type: strng}\n", (5, 13), "config.a.type", "`string`?"),
    ("permissions: {network: ['https://']}\n", (4, 24), "permissions.network", "nothing"),
    ("wasm: {fuel: 5}\n", (4, 1), "wasm", "has no effect"),
]


ODD_DEFAULTS = [
    ("int", "five"), ("int", "1.5"), ("int", "true"), ("string", "5"), ("string", "1.10"),
    ("number", "'1'"), ("bool", "1"), ("object", "[]"), ("list", "{}"), ("TEXT", "false"),
]  # fmt: skip
DEFAULTS = [
    ("int", "5"), ("int64", "2.0"), ("number", "5"), ("double", "1.5"), ("str", "'5'"),
    ("boolean", "false"), ("map", "{a: 1}"), ("array", "[1]"), ("any", "5"), ("''", "x"),
    ("int", "null"), ("colour", "x"),
]  # fmt: skip


def declare(kind: str, default: str) -> str:
    return (
        f"{SIDECAR}slots:\n  - {{name: a, inputs: {{x: {{type: {kind}, default: {default}}}}}}}\n"
    )


@pytest.mark.parametrize(("kind", "default"), ODD_DEFAULTS)
def test_a_default_that_does_not_fit_its_declared_type_is_an_error(refuse, kind, default):
    error = refuse(declare(kind, default))
    assert (error.line, error.column) == (5, 45 + len(kind))
    assert error.key == "slots[0].inputs.x.default"
    assert "does not fit the type" in str(error)


@pytest.mark.parametrize(("kind", "default"), DEFAULTS)
def test_a_default_that_fits_or_has_no_known_type_is_good(load, kind, default):
    assert load(declare(kind, default)).slots


@pytest.mark.parametrize(("kind", "default"), [*ODD_DEFAULTS, *DEFAULTS])
def test_the_types_of_defaults_are_those_that_calls_are_checked_by(load, kind, default):
    word, value = yaml.safe_load(f"[{kind}, {default}]")
    check = InputCheck(SlotDefinition("a", inputs={"x": InputDefinition("x", word)}))
    if (kind, default) in DEFAULTS:
        assert check({"x": value}) == {"x": value}
    else:
        with pytest.raises(InvalidParameters):
            check({"x": value})


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("type: sidecar\nnmae: a\n", "did you mean `nmae` on line 2?"),
        ("Name: a\n", "did you mean `Name` on line 1?"),
    ],
)
def test_a_misspelt_name_is_pointed_at(refuse, text, hint):
    error = refuse(text)
    assert (error.key, error.hint) == ("name", hint)


def test_a_manifest_is_shown_in_one_short_line(load, tmp_path):
    assert (
        repr(load("name: p\nversion: 1.2\nbinary: p.wasm\n"))
        == f"<Manifest p 1.2, wasm, {tmp_path}>"
    )


@pytest.mark.parametrize(("text", "place", "key", "words"), ODD)
def test_what_is_odd_warns(load, text, place, key, words):
    loaded = load(SIDECAR + text)
    (warning,) = loaded.warnings
    assert warning.startswith(f"{loaded.file}:{place[0]}:{place[1]}: {key}: ")
    assert words in warning


@pytest.mark.parametrize(("text", "place", "key", "words"), ODD)
def test_what_is_odd_is_an_error_where_strict(refuse, text, place, key, words):
    error = refuse(SIDECAR + text, strict=True)
    assert (error.line, error.column) == place
    assert error.key == key
    assert words in str(error)


def test_a_sidecar_section_without_the_type_warns(load):
    (warning,) = load("name: p\nbinary: x\nsidecar: {max_retries: 1}\n").warnings
    assert "did you mean to add `type: sidecar`?" in warning


ARM = Machine("linux", "arm64", "gnu")
MUSL = Machine("linux", "x86_64", "musl")
MAC = Machine("darwin", "arm64")
WINDOWS = Machine("windows", "x86_64")


@pytest.mark.parametrize(
    ("offered", "machine", "chosen", "kind"),
    [
        ("windows: w, linux: l, wasm: u", LINUX, "l", "sidecar"),
        ("windows: w, linux: l, wasm: u", WINDOWS, "w", "sidecar"),
        ("windows: w, linux: l, wasm: u", MAC, "u", "wasm"),
        ("linux: l, linux-x86_64: lx, linux-arm64: la", LINUX, "lx", "sidecar"),
        ("linux: l, linux-amd64: lx, linux-aarch64: la", LINUX, "lx", "sidecar"),
        ("linux: l, linux-amd64: lx, linux-aarch64: la", ARM, "la", "sidecar"),
        ("linux: l, linux-x86_64: lx, linux-x86_64-musl: lm", LINUX, "lx", "sidecar"),
        ("linux: l, linux-x86_64: lx, linux-x86_64-musl: lm", MUSL, "lm", "sidecar"),
        ("linux-arm64: la, wasm: u", LINUX, "u", "wasm"),
        ("darwin-arm64: d, linux: l", MAC, "d", "sidecar"),
    ],
)
def test_R5_binaries_choose_the_most_exact_key_then_wasm(load, offered, machine, chosen, kind):
    """Protocol.md, section 5: `binaries` was never built."""
    loaded = load(f"name: p\ntype: sidecar\nbinaries: {{{offered}}}\n", machine)
    assert loaded.binary_path == loaded.folder / chosen
    assert loaded.type == kind


def test_R5_a_stated_wasm_takes_wasm_and_binary_is_the_fallback(load):
    offered = "binaries: {linux: l, wasm: u}\n"
    loaded = load(f"name: p\ntype: wasm\n{offered}")
    assert (loaded.type, loaded.binary_path) == ("wasm", loaded.folder / "u")
    loaded = load("name: p\ntype: sidecar\nbinary: b\nbinaries: {windows: w}\n")
    assert (loaded.type, loaded.binary_path) == ("sidecar", loaded.folder / "b")
    loaded = load("name: p\ntype: sidecar\nbinary: b\nbinaries: {linux: l}\n")
    assert loaded.binary_path == loaded.folder / "l"


def test_R5_where_nothing_fits_the_error_lists_what_is_offered_and_this_machine(load):
    text = "name: p\ntype: sidecar\nbinaries: {windows: w.exe, linux-arm64: la}\n"
    with pytest.raises(PluginLoadError) as caught:
        load(text)
    message = str(caught.value)
    for words in ("`windows` (w.exe)", "`linux-arm64` (la)", "linux-x86_64", "`wasm`"):
        assert words in message
    assert caught.value.plugin == "p"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type: sidecar\nbinaries: {macos: x}", "did you mean `darwin`?"),
        ("type: sidecar\nbinaries: {linux-x8664: x}", "did you mean `linux-x86_64`?"),
        ("type: sidecar\nbinaries: {plan9: x}", "no such platform"),
        ("type: sidecar\nbinaries: {linux-x86_64-uclibc: x}", "no such platform"),
        ("type: sidecar\nbinaries: {linux-amd64: x, linux-x86_64: y}", "the same"),
        ("type: sidecar\nbinaries: {linux: ''}", "is empty"),
        ("type: sidecar\nbinaries: [x]", "a mapping"),
        ("binaries: {linux: x}", "`type: sidecar`"),
    ],
)
def test_wrong_binaries_are_refused(refuse, text, words):
    assert words in str(refuse(f"name: p\n{text}\n"))


def test_platform_keys_have_one_spelling():
    assert normal_key("linux-amd64") == "linux-x86_64"
    assert normal_key("darwin-aarch64") == "darwin-arm64"
    assert normal_key("linux-x64-musl") == "linux-x86_64-musl"
    assert normal_key("windows-x86_64-musl") is None
    assert normal_key("wasm-x86_64") is None
    assert normal_key("") is None
    assert this_machine().keys()[-1] == this_machine().system


def test_a_digest_is_taken_for_the_binary_that_was_chosen(load, refuse):
    digests = f"sha256: {{linux: {DIGEST}, wasm: {OTHER}}}\n"
    text = "name: p\ntype: sidecar\nbinaries: {linux: l, wasm: u}\n" + digests
    assert load(text).sha256 == DIGEST
    assert load(text, MAC).sha256 == OTHER
    assert load(f"{SIDECAR}sha256: sha256:{DIGEST.upper()}\n").sha256 == DIGEST
    assert load(f"{SIDECAR}sha256: {{linux: {DIGEST}}}\n").sha256 == DIGEST
    partly = text.replace(f"linux: {DIGEST}, ", "")
    assert "no digest for the binary" in str(refuse(partly))  # never silently unchecked


@pytest.mark.parametrize("path", ["../worker", "bin/../../worker", "/bin/sh", "/"])
def test_a_binary_outside_the_folder_is_refused(refuse, path):
    error = refuse(f"name: p\ntype: sidecar\nbinary: {path}\n")
    assert "outside" in str(error) or "out of" in str(error)
    assert (error.line, error.column, error.key) == (3, 9, "binary")


def test_a_binary_reached_by_a_link_that_leads_out_is_refused(refuse, load, tmp_path):
    (tmp_path / "inside").write_text("x")
    (tmp_path / "good").symlink_to("inside")
    (tmp_path / "bad").symlink_to("/bin/sh")
    (tmp_path / "folder").symlink_to("/bin")
    assert "leads out" in str(refuse("name: p\ntype: sidecar\nbinary: bad\n"))
    assert "leads out" in str(refuse("name: p\ntype: sidecar\nbinaries: {linux: folder/sh}\n"))
    assert "leads out" in str(
        refuse("name: p\ntype: sidecar\nbinary: bad\n", allow_absolute_binary=True)
    )
    loaded = load("name: p\ntype: sidecar\nbinary: good\n")
    assert loaded.binary_path == loaded.folder / "inside"


def test_an_absolute_binary_is_taken_only_where_the_host_allows_it(load, tmp_path):
    text = "name: p\ntype: sidecar\nbinary: /bin/sh\n"
    assert load(text, allow_absolute_binary=True).binary_path == Path("/bin/sh").resolve()
    inside = f"name: p\ntype: sidecar\nbinary: {tmp_path}/worker\n"
    assert load(inside).binary_path == tmp_path.resolve() / "worker"


def test_a_folder_that_is_a_link_is_the_folder_it_leads_to(tmp_path):
    real = tmp_path / "real"
    real.mkdir()
    (real / "manifest.yaml").write_text(SIDECAR)
    (tmp_path / "link").symlink_to(real)
    assert Manifest.load(tmp_path / "link").folder == real.resolve()


def test_a_relative_folder_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "manifest.yaml").write_text(SIDECAR)
    monkeypatch.chdir(tmp_path)
    assert Manifest.load(".").folder == tmp_path.resolve()
    assert Manifest.load("manifest.yaml").folder == tmp_path.resolve()


def test_no_folder_and_no_manifest_say_so(tmp_path):
    with pytest.raises(PluginLoadError, match="no such folder"):
        Manifest.load(tmp_path / "nowhere")
    with pytest.raises(PluginLoadError, match=r"holds no `manifest\.yaml`"):
        Manifest.load(tmp_path)
    (tmp_path / "manifest.yml").write_text(SIDECAR)
    with pytest.raises(PluginLoadError, match=r"found `manifest\.yml`: rename it"):
        Manifest.load(tmp_path)


def test_a_manifest_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "manifest.yaml").mkdir()
    with pytest.raises(ManifestError, match="not a regular file"):
        Manifest.load(tmp_path)


def test_a_manifest_without_the_right_to_read_says_why(tmp_path, monkeypatch):
    def refuse(file):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(manifest, "read_file", refuse)  # root may read every file
    (tmp_path / "manifest.yaml").touch()
    with pytest.raises(PluginLoadError, match="Permission denied"):
        Manifest.load(tmp_path)


def test_G9_a_damaged_manifest_is_loaded_or_refused_and_nothing_else(tmp_path):
    random = Random(2)
    whole = EVERYTHING.encode()
    pieces = [b"[", b"]", b"{", b"}", b": ", b"- ", b"&a ", b"*a", b"!!int ", b"'", b'"',
              b"\x00", b"\xff", b"~", b"\t", b"|", b"? ", b"<<: ", b"9" * 30,
              b"\\ud800", b"\n"]  # fmt: skip
    refused = 0
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(random.randint(1, 4)):
            at = random.randrange(len(data))
            data[at : at + random.choice((0, 0, 1, 5, 40))] = random.choice(pieces)
        (tmp_path / "manifest.yaml").write_bytes(data)
        try:
            Manifest.load(tmp_path)
        except (ManifestError, PluginLoadError):
            refused += 1
    assert 100 < refused < 600


def test_a_manifest_cannot_be_changed(load):
    loaded = load(EVERYTHING)
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        loaded.sidecar.env["A"] = "b"  # type: ignore[index]
    with pytest.raises(TypeError):
        loaded.raw["name"] = "other"  # type: ignore[index]


@pytest.mark.skipif(sys.platform == "win32", reason="such a path is good on Windows")
def test_a_path_of_windows_is_named_as_one(refuse):
    assert "a path of Windows" in str(refuse("name: p\ntype: sidecar\nbinary: C:\\x\\y.exe\n"))
