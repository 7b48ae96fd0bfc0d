"""The design document's C# sample, source and manifest as printed there."""

from __future__ import annotations

import re
import threading
from pathlib import Path

import pytest
from guests.build import EXAMPLES, build, missing_toolchain

GREETING = {"message": "Hello from .NET NativeAOT!"}


@pytest.fixture(scope="module")
def sample(build_guest, tmp_path_factory) -> Path:
    """The sample itself, or where it cannot be built a program that answers as it does."""
    folder = tmp_path_factory.mktemp("dotnet")
    if missing_toolchain("dotnet-utils") is None:
        return build("dotnet-utils", folder)
    return build_guest("dotnet-standin", folder)


def test_the_sample_greets_a_thousand_times(manager, sample):
    plugin = manager.load_plugin(sample)
    assert not plugin.slots
    for _ in range(1000):
        response = manager.execute_slot(plugin.name, "dotnet.greet", {})
        assert (response.success, response.data) == (True, GREETING)


def test_the_sample_greets_from_8_threads(manager, sample):
    name = manager.load_plugin(sample).name
    wrong = []

    def run(number):
        for step in range(125):
            slot = "dotnet.greet" if (number + step) % 3 else "dotnet.other"
            expected = GREETING if slot == "dotnet.greet" else {"error": "Unknown slot"}
            if manager.execute_slot(name, slot, {}).data != expected:
                wrong.append((number, step))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


def test_the_samples_manifest_and_source_are_as_printed():
    manifest = (EXAMPLES / "dotnet-utils" / "manifest.yaml").read_text()
    assert "binary: ./DotnetPlugin.exe # Compiled with NativeAOT" in manifest
    source = (EXAMPLES / "dotnet-utils" / "Program.cs").read_text()
    assert re.search(r"while \(Console\.ReadLine\(\) is \{ \} line\)", source)
