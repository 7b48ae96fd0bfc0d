"""Plugins that run as a native process beside the host."""
