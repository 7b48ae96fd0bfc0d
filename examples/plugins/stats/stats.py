#!/usr/bin/env python3
"""Slots about series of numbers, as a sidecar in Python with the standard library alone."""

import json
import statistics
import sys

VALUES = {"type": "list", "required": True, "description": "The numbers"}
SLOTS = [
    {
        "name": "stats.summary",
        "description": "Sum up a series of numbers",
        "example": '{"values": [3, 1, 4, 1, 5, 9, 2, 6]}',
        "inputs": {"values": VALUES},
        "outputs": {"count": {"type": "int"}, "mean": {"type": "float"}},
    },
    {
        "name": "stats.histogram",
        "description": "Count the numbers in ranges of equal width",
        "example": '{"values": [3, 1, 4, 1, 5, 9, 2, 6], "bins": 4}',
        "inputs": {
            "values": VALUES,
            "bins": {
                "type": "int",
                "required": False,
                "default": 10,
                "description": "How many ranges, 1 to 10000",
            },
        },
        "outputs": {"edges": {"type": "list"}, "counts": {"type": "list"}},
    },
    {
        "name": "stats.line",
        "description": "Fit a straight line through points, by least squares",
        "example": '{"x": [1, 2, 3, 4], "y": [2.1, 3.9, 6.2, 7.8]}',
        "inputs": {"x": VALUES, "y": VALUES},
        "outputs": {"slope": {"type": "float"}, "intercept": {"type": "float"}},
    },
]


def summary(values):
    return {
        "count": len(values),
        "mean": statistics.fmean(values),
        "median": statistics.median(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "least": min(values),
        "most": max(values),
    }


def histogram(values, bins=10):
    if not 1 <= bins <= 10_000:
        raise ValueError("bins must be 1 to 10000")
    low, high = min(values), max(values)
    width = (high - low) / bins or 1.0
    counts = [0] * bins
    for value in values:
        counts[min(int((value - low) / width), bins - 1)] += 1
    return {"edges": [low + width * i for i in range(bins + 1)], "counts": counts}


def line(x, y):
    slope, intercept = statistics.linear_regression(x, y)
    return {"slope": slope, "intercept": intercept}


FUNCTIONS = {
    "plugin_init": lambda: {"name": "stats", "version": "1.0.0", "language": "Python"},
    "plugin_register_slots": lambda: SLOTS,
    "stats.summary": summary,
    "stats.histogram": histogram,
    "stats.line": line,
}


def answer(request):
    slot = request["slot_name"]
    if slot not in FUNCTIONS:
        return {"success": False, "error": f"unknown slot {slot}"}
    try:
        data = FUNCTIONS[slot](**request.get("parameters") or {})
    except (ArithmeticError, TypeError, ValueError) as error:
        return {"success": False, "error": str(error)}
    return {"success": True, "data": data}


for text in sys.stdin:
    call = json.loads(text)
    reply = {"type": "guest_response", "id": call["id"], **answer(call)}
    print(json.dumps(reply), flush=True)
