import os
import re
import time
from pathlib import Path

import pytest
import yaml

from zeno_fast import yaml_source
from zeno_fast.errors import ManifestError
from zeno_fast.yaml_source import MappingNode, ScalarNode, plain, read_file, read_yaml

FILE = Path("manifest.yaml")


@pytest.fixture(params=["safe", "libyaml"], autouse=True)
def _loader(request, monkeypatch):
    """Both of PyYAML's parsers, as not every machine has the faster one."""
    if request.param == "libyaml" and not yaml.__with_libyaml__:
        pytest.skip("this PyYAML was built without libyaml")
    loader = yaml.SafeLoader if request.param == "safe" else yaml.CSafeLoader
    monkeypatch.setattr(yaml_source, "_LOADER", loader)


def read(text: str | bytes) -> MappingNode:
    return read_yaml(text.encode() if isinstance(text, str) else text, FILE)


def refuse(text: str | bytes) -> ManifestError:
    with pytest.raises(ManifestError) as caught:
        read(text)
    return caught.value


def test_keys_and_values_know_their_line_and_column():
    top = read("name: x\nsidecar:\n  env:\n    A: 1   # a comment\n")
    key, sidecar = top.entries["sidecar"]
    assert (key.line, key.column) == (2, 1)
    _, env = sidecar.entries["env"]
    key, value = env.entries["A"]
    assert (key.line, key.column, value.line, value.column) == (4, 5, 4, 8)
    assert value.text == "1"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1.10", 1.1), ("1", 1), ("-7", -7), ("0x1F", 31), ("0o17", 15), ("010", 10),
        ("1e3", 1000.0), ("true", True), ("False", False), ("yes", "yes"), ("on", "on"),
        ("~", None), ("", None),
        ("null", None), ("'null'", "null"), ('"5"', "5"), ("1:30", "1:30"),
        ("1_000", "1_000"), ("2001-01-01", "2001-01-01"), (".nan", ".nan"), ("1e999", "1e999"),
        ("9" * 400, "9" * 400), ("!!str 5", "5"), ("!!int 5", 5), ("a # b", "a"),
    ],
)  # fmt: skip
def test_plain_values_follow_the_core_schema_of_yaml_1_2(text, value):
    found = plain(read(f"key: {text}\n"))["key"]
    assert found == value
    assert type(found) is type(value)


def test_scalars_keep_the_text_as_written():
    node = read("version: 1.10\n").entries["version"][1]
    assert isinstance(node, ScalarNode)
    assert node.text == "1.10"


def test_keys_stay_text_where_yaml_1_1_would_read_booleans_and_numbers():
    assert plain(read("on: 1\nyes: 2\n1.10: 3\n2: 4\n")) == {"on": 1, "yes": 2, "1.10": 3, "2": 4}


def test_aliases_are_read_and_a_byte_order_mark_is_skipped():
    assert plain(read(b"\xef\xbb\xbfa: &x [1, 2]\nb: *x\n")) == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("a: !!python/object:os.system x\n", 1, 4, "!!python/object"),
        ("a: !!python/object/apply:os.system [id]\n", 1, 4, "not allowed"),
        ("a: 1\nb: !mine x\n", 2, 4, "`!mine`"),
        ("a: !!binary aGk=\n", 1, 4, "!!binary"),
        ("a: !!set {x: }\n", 1, 4, "!!set"),
        ("!!python/dict {a: 1}\n", 1, 1, "not allowed"),
        ("a: !!int hello\n", 1, 4, "does not fit"),
        ("a: 1\nb: 2\na: 3\n", 3, 1, "given twice"),
        ("a: 1\n'a': 3\n", 2, 1, "first in line 1"),
        ("s:\n  e: 1\n  e: 2\n", 3, 3, "s.e: the key is given twice"),
        ("? [a]\n: 1\n", 1, 3, "cannot be a key"),
        ("a: &x {k: 1}\nb:\n  <<: *x\n", 3, 3, "merge keys"),
        ("a: *nowhere\n", 1, 4, "anchor"),
        ("a: &x [*x]\n", 1, 8, "contains itself"),
        ("a: 1\n---\nb: 2\n", 2, 1, "second document"),
        ("a: [1, 2\nb: 3\n", 2, 2, "not valid YAML"),
        ("a: b: c\n", 1, 5, "not valid YAML"),
        ("a:\n\tb: 1\n", 2, 1, "not valid YAML"),
        ("a: x\x00y\n", 1, 5, "U+0000"),
        ('a: "\\ud800"\n', 1, None, ""),
        ("- a\n- b\n", 1, 1, "expected a mapping"),
        ("just text\n", 1, 1, "expected a mapping"),
    ],
)
def test_G9_what_is_not_safe_plain_yaml_is_refused_with_its_position(text, line, column, words):
    error = refuse(text)
    assert words in str(error)
    assert error.line == line
    if column is not None:
        assert error.column == column
    assert str(error).startswith(f"manifest.yaml:{line}:")


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "~\n", "---\n...\n"])
def test_an_empty_file_is_refused(text):
    assert "empty" in str(refuse(text))


def test_what_is_not_utf_8_is_refused_with_its_position():
    error = refuse(b"name: ok\nauthor: J\xfcrgen\n")
    assert (error.line, error.column) == (2, 10)
    assert "UTF-8" in str(error)
    assert "UTF-16" in str(refuse("name: x\n".encode("utf-16")))


def test_G9_a_billion_laughs_is_refused_quickly():
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for level in range(1, 40):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        lines.append(f"a{level}: &a{level} [{aliases}]")
    began = time.monotonic()
    error = refuse("\n".join(lines))
    assert time.monotonic() - began < 1  # written out it would be 10 to the 40th values
    assert "aliases" in str(error)
    assert error.line is not None


def test_G9_aliases_of_one_long_text_are_refused():
    text = "a: &x " + "y" * 500_000 + "\nb:\n" + "- *x\n" * 1000
    assert "aliases" in str(refuse(text))


def test_a_chain_of_aliases_cannot_nest_deeper_than_text():
    chain = "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 2000))
    assert "nested too deeply" in str(refuse("a0: &a0 [x]\n" + chain))


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_deep_nesting_is_refused(opening):
    began = time.monotonic()
    # libyaml has a limit of its own since 0.2.6, in words of its own.
    assert re.search("nested too deeply|nesting depth", str(refuse("a: " + opening * 100_000)))
    assert time.monotonic() - began < 1


def test_too_many_values_are_refused():
    assert "too many values" in str(refuse("a:\n" + "- 1\n" * 60_000))


def test_G9_a_huge_file_is_refused_without_being_read_whole(tmp_path):
    file = tmp_path / "manifest.yaml"
    with file.open("wb") as stream:
        stream.truncate(1 << 40)  # sparse: reading it whole would take the machine's memory
    with pytest.raises(ManifestError, match="too large"):
        read_file(file)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "manifest.yaml")
    with pytest.raises(ManifestError, match="not a regular file"):
        read_file(tmp_path / "manifest.yaml")
