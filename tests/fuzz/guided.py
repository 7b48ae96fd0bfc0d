"""Fuzzing that is led by coverage of the compiled code; needs atheris, see `coverage.sh`."""

from __future__ import annotations

import zlib
from pathlib import Path

from fuzz.check import check
from fuzz.words import DICTIONARY

MAX_NBYTES = 20_000
TIMEOUT = 60  # seconds in one case


def fuzz_guided(seconds: float, seed: int, corpus: Path, found: Path, failures: Path) -> None:
    """Run cases until the time is over or one fails, and do not return.

    Args:
        corpus: Cases to begin with; not changed.
        found: Where cases that reach new code are kept, for the next time.
    """
    import atheris

    def run(text: bytes) -> None:
        check(text, zlib.crc32(text))

    found.mkdir(parents=True, exist_ok=True)
    failures.mkdir(parents=True, exist_ok=True)
    # A mutator of our own is not found by a libFuzzer that was loaded first; words are.
    dictionary = failures / "dictionary.txt"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in DICTIONARY))
    options = [
        f"-max_total_time={seconds:.0f}",
        f"-seed={seed % (1 << 32) or 1}",
        f"-max_len={MAX_NBYTES}",
        f"-timeout={TIMEOUT}",
        f"-artifact_prefix={failures}/",
        f"-dict={dictionary}",
        str(found),
        str(corpus),
    ]
    atheris.Setup(["fuzz_channel", *options], run)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02X}" for byte in word)
