"""The example plugins build by the line in their manifests, and answer their own examples."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
from guests.build import EXAMPLES, GUESTS

from zeno_fast import Manifest

NAMES = sorted(name for name, guest in GUESTS.items() if guest.is_example)
TEXT_COMPILER = "0.17.1"  # of ziglang; another one makes other bytes of the same source


def test_every_example_is_built_by_a_test():
    assert {path.parent.name for path in EXAMPLES.glob("*/manifest.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_examples_manifest_is_strictly_valid(name):
    assert Manifest.load(EXAMPLES / name, strict=True).name == name


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dotnet-utils"])
def test_an_example_answers_the_examples_of_its_slots(manager, build_guest, tmp_path, name):
    plugin = manager.load_plugin(build_guest(name, tmp_path))
    assert len(plugin.slots) >= 2
    for slot, definition in plugin.slots.items():
        assert definition.description
        assert definition.inputs
        assert manager.call(slot, json.loads(definition.example)) is not None


def test_the_committed_module_is_what_its_source_builds(build_guest, tmp_path):
    folder = build_guest("text", tmp_path)
    found = version("ziglang")
    if found != TEXT_COMPILER:
        pytest.skip(f"toolchain: ziglang is {found}; `pip install ziglang=={TEXT_COMPILER}`")
    committed = (EXAMPLES / "text" / "text.wasm").read_bytes()
    assert (folder / "text.wasm").read_bytes() == committed
