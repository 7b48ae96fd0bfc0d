"""The guest library for Rust."""

from __future__ import annotations

from sidecar.ring_guest import RingGuest


class TestRust(RingGuest):
    name = "rust-ring"
