"""Plugins that run as WASM inside the host."""
