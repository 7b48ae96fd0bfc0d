"""What parameters may hold: JSON, what orjson makes JSON of, and an error that names the rest."""

from __future__ import annotations

import datetime
import decimal
import uuid

import numpy as np
import pytest

from zeno_fast import InvalidParameters

ECHO = """
for request in requests():
    if not lifecycle(request, "echo"):
        answer(request, request["parameters"]["value"])
"""
ID = uuid.UUID("12345678-1234-5678-1234-567812345678")


@pytest.fixture
def echo(manager, make_plugin):
    manager.load_plugin(make_plugin(ECHO))
    return lambda value: manager.call("echo", {"value": value})


@pytest.mark.parametrize(
    ("sent", "got"),
    [
        (2**63 - 1, 2**63 - 1),
        (2**64 - 1, 2**64 - 1),
        (2**53 + 1, 2**53 + 1),
        (1e-320, 1e-320),
        (float("nan"), None),
        (datetime.date(2026, 11, 25), "2026-11-25"),
        (datetime.datetime(2026, 11, 25, 1, 2, 3), "2026-11-25T01:02:03"),
        (ID, str(ID)),
        (np.int16(-7), -7),
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (np.arange(6, dtype=np.int32).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.array([0.5, 1.5]), [0.5, 1.5]),
        ([{"deep": [np.array([1, 2])]}], [{"deep": [[1, 2]]}]),
        ((1, 2), [1, 2]),
    ],
    ids=lambda value: f"{type(value).__name__}-{value!s:.20}",
)
def test_values_go_as_orjson_sends_them(echo, sent, got):
    assert echo(sent) == got


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({1, 2}, "value"),
        ({"a": [0, object()]}, r"value\.a\[1\]"),
        (decimal.Decimal(1), "value"),
        (2**64, "value"),
        (-(2**63) - 1, "value"),
        ({"n": {3: "x"}}, r"value\.n"),
        ("\ud800", "value"),
        (np.arange(10)[::2], "value"),
        (np.array([1 + 2j]), "value"),
    ],
    ids=lambda value: f"{type(value).__name__}-{value!a:.20}",
)
def test_what_cannot_be_sent_is_named(echo, value, key):
    with pytest.raises(InvalidParameters, match=key + " cannot be sent as JSON") as caught:
        echo(value)
    assert caught.value.slot == "echo"
    assert echo({"still": "there"}) == {"still": "there"}


def test_parameters_that_hold_themselves_are_refused(echo):
    loop: list = []
    loop.append(loop)
    with pytest.raises(InvalidParameters):
        echo(loop)
