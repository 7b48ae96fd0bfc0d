"""The guest library for C#."""

from __future__ import annotations

from sidecar.ring_guest import RingGuest


class TestDotnet(RingGuest):
    name = "dotnet-ring"
