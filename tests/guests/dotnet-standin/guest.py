#!/usr/bin/env python3
"""Answers exactly as examples/plugins/dotnet-utils does, for machines that cannot compile it.

No ids, no life-cycle slots, success whatever the slot; what is not JSON, even a blank line, is
death.
"""

import json
import os
import signal
import sys

for line in sys.stdin:
    try:
        slot = json.loads(line)["slot_name"]
    except (ValueError, KeyError, TypeError) as error:
        print(f"Unhandled exception. {error}", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)  # how .NET ends after an unhandled exception
    if slot == "dotnet.greet":
        result = {"message": "Hello from .NET NativeAOT!"}
    else:
        result = {"error": "Unknown slot"}
    print(json.dumps({"success": True, "data": result}, separators=(",", ":")), flush=True)
