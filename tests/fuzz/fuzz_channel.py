"""Fuzz the framing and the protocol of a sidecar's channel.

    python tests/fuzz/fuzz_channel.py --seconds 60 --seed 1
    python tests/fuzz/fuzz_channel.py --replay build/fuzz/1-2345.case --cut 2345

A run is made again by its seed: the N-th case follows from the seed and N alone. Every case is
written to a file before it is run, so that one which ends the process is kept, too.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import random
import sys
import time
import traceback
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fuzz.check import check
from fuzz.generate import Generator, mutate

CORPUS = Path(__file__).parent / "corpus"
COMMAND = "python tests/fuzz/fuzz_channel.py"
REARM_EVERY = 16  # cases; the clock of a hang is not free
HANG = 60.0  # seconds in so many cases after which the process says where it is, and ends


def read_corpus(folder: Path) -> list[bytes]:
    """Read the cases of a folder, in the order of their names."""
    return [path.read_bytes() for path in sorted(folder.glob("*.case"))]


def make_case(seed: int, number: int, corpus: list[bytes]) -> bytes:
    """Make the case of a seed with this number."""
    rng = random.Random(f"{seed}/{number}")
    if not corpus or rng.random() < 0.5:
        case = Generator(rng).case()
        return mutate(rng, case, corpus or [case]) if rng.random() < 0.4 else case
    return mutate(rng, rng.choice(corpus), corpus)


def fuzz(seconds: float, seed: int, corpus: list[bytes], failures: Path) -> tuple[int, int, int]:
    """Run cases for a while; return the number of cases, of runs of them, and of failures."""
    cases = runs = failed = 0
    failures.mkdir(parents=True, exist_ok=True)
    current = failures / f"current-{os.getpid()}.case"
    fd = os.open(current, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            text = make_case(seed, cases, corpus)
            os.pwrite(fd, text, 0)
            os.ftruncate(fd, len(text))
            if cases % REARM_EVERY == 0:
                faulthandler.dump_traceback_later(HANG, exit=True, file=sys.__stderr__)
            try:
                runs += check(text, cases)
            except Exception:  # noqa: BLE001 - whatever it is, it is what is looked for
                failed += 1
                path = failures / f"{seed}-{cases}.case"
                path.write_bytes(text)
                traceback.print_exc(limit=-3)
                print(f"replay with: {COMMAND} --replay {path} --cut {cases}", flush=True)
            cases += 1
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(fd)
        current.unlink()
    return cases, runs, failed


def main() -> int:
    """Run from the command line; the status is 1 where a case failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None, help="by default another each time")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="cases to begin with")
    parser.add_argument("--failures", type=Path, default=Path("build/fuzz"))
    parser.add_argument("--replay", type=Path, nargs="+", help="run these cases only")
    parser.add_argument("--coverage", action="store_true", help="see coverage.sh, which starts it")
    parser.add_argument("--cut", type=int, help="the one way in which a replay cuts")
    options = parser.parse_args()
    if options.replay:
        for path in options.replay:
            check(path.read_bytes(), options.cut)
        print(f"{len(options.replay)} cases are right")
        return 0
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    if options.coverage:
        from fuzz.guided import fuzz_guided

        found = options.failures / "found"
        fuzz_guided(options.seconds, seed, options.corpus, found, options.failures)
    cases, runs, failed = fuzz(options.seconds, seed, read_corpus(options.corpus), options.failures)
    print(f"{cases} cases in {runs} runs, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
