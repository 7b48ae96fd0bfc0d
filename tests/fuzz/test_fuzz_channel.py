"""The channel holds its promises whatever a guest prints; B9, B10 and B13 in small."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzz.check import check
from fuzz.fuzz_channel import CORPUS, fuzz, read_corpus
from fuzz.generate import Generator
from fuzz.guest import FuzzFailure
from fuzz.harness import Run
from fuzz.owner import Owner, Watcher

SECONDS = 5.0
SEED = 20_240_101

TWO_ANSWERS = (
    b"%ids\n%calls 2\n"
    b'{"type":"guest_response","id":"<id:1>","success":true,"data":"second"}\n'
    b'{"type":"host_call","id":"1","function":"log"}\n'
    b'{"type":"guest_response","id":"<id:0>","success":true,"data":"first","error":null}\n'
    b"noise\n"
)

STREAMS = (
    b"%ids\n%features\n%streams 2\n%calls 1\n%abandon 2\n"
    b'{"type":"guest_chunk","id":"<id:1>","data":1}\n'
    b'{"type":"guest_chunk","id":"<id:0>","data":2}\n'
    b'{"type":"guest_chunk","id":"<id:1>","data":3}\n'
    b'{"type":"guest_response","id":"<id:2>","success":true,"data":4}\n'
    b"%soon\n"
    b'{"type":"guest_response","id":"<id:3>","success":true,"data":5}\n'
)


@pytest.mark.parametrize("case", sorted(CORPUS.glob("*.case")), ids=lambda path: path.stem)
def test_b13_a_case_of_the_corpus_ends_as_the_protocol_says(case: Path, no_leaks: None) -> None:
    check(case.read_bytes())


def test_b13_nothing_a_guest_prints_breaks_the_channel(tmp_path: Path, no_leaks: None) -> None:
    cases, _, failed = fuzz(SECONDS, SEED, read_corpus(CORPUS), tmp_path)
    # What failed was printed, and is kept for a replay.
    assert not failed, f"see {tmp_path}"
    assert cases > 20


def test_a_case_is_made_again_by_its_seed() -> None:
    first, second = (Generator(random.Random(7)).case() for _ in range(2))
    assert first == second


def swap_expected(run: Run) -> None:
    run.model.entries.reverse()


def swap_given(run: Run) -> None:
    run.outcomes.reverse()


def lose_an_answer(run: Run) -> None:
    run.outcomes[0] = ("error", "Lost")


def lose_a_host_call(run: Run) -> None:
    run.events[:] = [event for event in run.events if event[0] != "host_call"]


def repeat_a_host_call(run: Run) -> None:
    run.events.extend([event for event in run.events if event[0] == "host_call"])


def count_wrong(run: Run) -> None:
    run.counts["noise"] += 1


def depend_on_the_cut(run: Run) -> None:
    run.events.append(("stray", b"%d" % id(run)))
    run.counts["stray"] += 1


def swap_chunks(run: Run) -> None:
    run.sinks[1].chunks.reverse()


def give_another_stream_its_chunk(run: Run) -> None:
    run.sinks[0].chunks.append(run.sinks[1].chunks.pop())


def show_a_chunk_twice(run: Run) -> None:
    run.loop_watcher.shown.append(run.sinks[1])


def cancel_twice(run: Run) -> None:
    run.guest.cancels *= 2


def cancel_another_call(run: Run) -> None:
    run.guest.cancels[:] = [run.guest.ids[1]]


def take_a_late_answer_for_a_stray_one(run: Run) -> None:
    run.counts["late"] -= 1
    run.counts["stray"] += 1


def lose_what_was_answered_at_once(run: Run) -> None:
    run.outcomes[3] = ("error", "Lost")


@pytest.mark.parametrize(
    "spoil",
    [
        swap_chunks,
        give_another_stream_its_chunk,
        show_a_chunk_twice,
        cancel_twice,
        cancel_another_call,
        take_a_late_answer_for_a_stray_one,
        lose_what_was_answered_at_once,
    ],
)
def test_a_wrong_stream_or_cancel_is_noticed(spoil) -> None:
    check(STREAMS)
    with pytest.raises(FuzzFailure):
        check(STREAMS, spoil=spoil)


@pytest.mark.parametrize(
    "spoil",
    [
        swap_expected,
        swap_given,
        lose_an_answer,
        lose_a_host_call,
        repeat_a_host_call,
        count_wrong,
        depend_on_the_cut,
    ],
)
def test_a_wrong_result_is_noticed(spoil) -> None:
    check(TWO_ANSWERS)
    with pytest.raises(FuzzFailure):
        check(TWO_ANSWERS, spoil=spoil)


def test_a_call_that_is_finished_twice_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def deliver_twice(watcher: Watcher, call: object) -> None:
        watcher.delivered += [call, call]

    monkeypatch.setattr(Watcher, "deliver", deliver_twice)
    with pytest.raises(FuzzFailure, match="2 times"):
        check(TWO_ANSWERS)


def test_an_error_that_is_not_accepted_is_noticed_and_kept_for_a_replay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(owner: Owner, text: bytes) -> None:
        raise RuntimeError("an error of the host")

    monkeypatch.setattr(Owner, "noise", refuse, raising=False)
    _, _, failed = fuzz(0.5, SEED, [TWO_ANSWERS], tmp_path)
    kept = sorted(tmp_path.glob("*.case"))
    assert failed == len(kept) > 0
    assert f"--replay {kept[0].parent}" in capfd.readouterr().out
    with pytest.raises(RuntimeError, match="an error of the host"):
        check(TWO_ANSWERS)
