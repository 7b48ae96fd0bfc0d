"""When a plugin that fails may be started again, on a clock of the test's own."""

from __future__ import annotations

import pytest

from zeno_fast import PluginUnavailable
from zeno_fast.sidecar import breaker as module
from zeno_fast.sidecar.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def make(clock: Clock, max_retries: int = 3, spread: float = 1.0) -> Breaker:
    return Breaker("p", max_retries, clock, lambda: spread)


def test_the_first_failure_is_followed_at_once_and_the_others_ever_later(clock):
    breaker = make(clock, max_retries=20)
    delays = []
    for _ in range(14):
        assert not breaker.failed("cause")
        delays.append(breaker.delay())
        clock.now += breaker.delay()
    expected = [0.0, *(0.1 * 2**n for n in range(9)), *[module.LONGEST_DELAY] * 4]
    assert delays == pytest.approx(expected)


def test_delays_are_spread_by_up_to_a_half(clock):
    for spread, expected in ((0.0, 0.05), (0.5, 0.075), (1.0, 0.1)):
        breaker = make(clock, spread=spread)
        breaker.failed("one")
        breaker.failed("two")
        assert breaker.delay() == pytest.approx(expected)


def test_a_number_of_retries_without_end_does_not_overflow(clock):
    breaker = make(clock, max_retries=10**6)
    for _ in range(5000):
        breaker.failed("cause")
    assert breaker.delay() == module.LONGEST_DELAY
    assert len(breaker.causes) == module.CAUSES


def test_it_opens_after_its_retries_and_says_what_to_do(clock):
    breaker = make(clock, max_retries=2)
    assert not breaker.failed("first")
    clock.now += 3
    assert not breaker.failed("second")
    assert breaker.failed("it ended with status 7")
    assert breaker.state == "open"
    with pytest.raises(PluginUnavailable) as caught:
        breaker.delay()
    text = str(caught.value)
    for words in (
        "plugin 'p' failed 3 times in a row within 3.0 s", "sidecar.max_retries (2)",
        "tried again in 30 s", "manager.reset_plugin('p')", "Last: it ended with status 7",
    ):  # fmt: skip
        assert words in text
    assert breaker.status() == {
        "state": "open", "failures": 3, "limit": 2, "next_start_in": 30.0,
    }  # fmt: skip


def test_after_its_rest_one_start_is_allowed_and_each_failure_doubles_the_rest(clock):
    breaker = make(clock, max_retries=0)
    rest = module.FIRST_REST
    for _ in range(8):
        breaker.failed("cause")
        clock.now += rest - 0.01
        assert breaker.state == "open"
        clock.now += 0.02
        assert breaker.state == "half-open"
        assert breaker.delay() == 0.0
        rest = min(2 * rest, module.LONGEST_REST)
    assert rest == module.LONGEST_REST


def test_an_answer_forgives_everything(clock):
    breaker = make(clock, max_retries=0)
    breaker.failed("cause")
    breaker.failed("cause")
    assert breaker.succeeded()
    assert not breaker.succeeded()
    assert (breaker.state, breaker.failures, breaker.delay()) == ("closed", 0, 0.0)
    breaker.failed("again")
    assert breaker.status()["next_start_in"] == module.FIRST_REST
    assert breaker.last_cause == "again"
