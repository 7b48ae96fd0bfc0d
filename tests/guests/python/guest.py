#!/usr/bin/env python3
"""The behaviour guest as a sidecar in Python; `--no-ids` leaves `type` and `id` out of answers."""

import json
import os
import sys
import time

NAME = os.environ.get("ZENO_PLUGIN_NAME") or "python"
WITH_IDS = "--no-ids" not in sys.argv[1:]
SLOTS = {
    "echo": ("Answer the value as it came", {"value": {"type": "any"}}),
    "size": ("Count a text's bytes", {"text": {"type": "string", "required": True}}),
    "fail": ("Fail with a message", {"message": {"type": "string", "required": True}}),
    "crash": ("End without an answer", {}),
    "sleep": ("Take a while", {"seconds": {"type": "number", "required": True}}),
    "spam": ("Print noise, then answer", {"lines": {"type": "int", "default": 10}}),
    "count": ("Count the calls so far", {}),
}
LIFE_CYCLE = {
    "plugin_init": {"name": NAME, "version": "1.0.0", "author": "tests", "language": "Python"},
    "plugin_register_slots": [
        {"name": f"{NAME}.{name}", "description": description, "inputs": inputs}
        for name, (description, inputs) in SLOTS.items()
    ],
}
calls = 0


class Refusal(Exception):
    """The slot says no."""


def spam(lines):
    for i in range(lines):
        print(f"noise {i} on stdout", flush=True)
        print(f"noise {i} on stderr", file=sys.stderr)
    print('{"level":"info","message":"JSON, but no message of the protocol"}\n[1,2]', flush=True)
    return lines


def run(slot, parameters):
    global calls  # noqa: PLW0603 - the state that `count` shows
    if slot in LIFE_CYCLE:
        return LIFE_CYCLE[slot]
    calls += 1
    name = slot.rpartition(".")[2]
    if name == "echo":
        data = parameters.get("value")
    elif name == "size":
        data = len(parameters["text"].encode())
    elif name == "fail":
        raise Refusal(parameters["message"])
    elif name == "crash":
        print("python guest: crashing as it was told", file=sys.stderr)
        sys.exit(3)
    elif name == "sleep":
        data = parameters["seconds"]
        time.sleep(data)
    elif name == "spam":
        data = spam(parameters.get("lines", 10))
    elif name == "count":
        data = calls
    else:
        raise Refusal(f"unknown slot {slot}")
    return data


def main():
    for line in sys.stdin.buffer:
        request = json.loads(line)
        try:
            data = run(request["slot_name"], request.get("parameters") or {})
            answer = {"success": True, "data": data, "error": None}
        except Refusal as refusal:
            answer = {"success": False, "data": None, "error": str(refusal)}
        if WITH_IDS:
            answer = {"type": "guest_response", "id": request["id"], **answer}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
