"""The engines that modules are compiled for and run by: few in a process, shared by its plugins."""

from __future__ import annotations

import functools
import logging
import os
from dataclasses import dataclass

import wasmtime
from wasmtime import WasmtimeError, _ffi

from zeno_fast.wasm.cache import compile_cached

log = logging.getLogger("zeno_fast.wasm")

FIRST_PROCESS = os.getpid()
POOLED_INSTANCES = 256  # of all plugins together; reserves addresses, and no memory
POOLED_TABLE_ELEMENTS = 1_000_000
MOST_TABLES = 10  # of an instance
MOST_INSTANCE_NBYTES = 16 << 20  # of what the library itself keeps of an instance
KEPT_RESIDENT = 1 << 20  # bytes of a used memory that are cleared instead of given back


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What of a plugin's options an engine has to know.

    Attributes:
        fuel: Whether instructions are counted.
        stack: Bytes that a guest's calls may nest.
        pooled: Whether instances come from memory that is kept ready, so that making one and
            throwing it away costs a few microseconds.
    """

    fuel: bool
    stack: int
    pooled: bool


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine and its options; `options.pooled` only where it really is."""

    options: EngineOptions
    engine: wasmtime.Engine

    def compile(self, code: bytes) -> wasmtime.Module:
        """Return the compiled module, from the user's cache where it is there.

        Raises WasmtimeError.
        """
        return compile_cached(self.engine, str(self.options), code)


def shared_engine(options: EngineOptions) -> Engine:
    """Return the process's engine with such options."""
    return _engine(options, os.getpid())


@functools.cache
def _engine(options: EngineOptions, process: int) -> Engine:
    if options.pooled:
        try:
            return Engine(options, wasmtime.Engine(_pooled(_config(options, process))))
        except (WasmtimeError, AttributeError) as error:
            log.warning("WASM instances are not pooled, and those of `fresh` slower: %s", error)
            options = EngineOptions(options.fuel, options.stack, False)
    return Engine(options, wasmtime.Engine(_config(options, process)))


def _config(options: EngineOptions, process: int) -> wasmtime.Config:
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.max_wasm_stack = options.stack
    if options.fuel:
        config.consume_fuel = True
    if process != FIRST_PROCESS:
        # The compiler's threads, if the parent had any, were not inherited by the fork.
        config.parallel_compilation = False
    return config


def _pooled(config: wasmtime.Config) -> wasmtime.Config:
    """Let a configuration take instances from a pool; the package has no Python for it.

    Raises AttributeError where the library has none.
    """
    pool = _ffi.wasmtime_pooling_allocation_config_new()
    try:
        for name, value in (
            ("total_core_instances", POOLED_INSTANCES),
            ("total_memories", POOLED_INSTANCES),
            ("total_tables", POOLED_INSTANCES * MOST_TABLES),
            ("max_tables_per_module", MOST_TABLES),
            ("max_core_instance_size", MOST_INSTANCE_NBYTES),
            ("table_elements", POOLED_TABLE_ELEMENTS),
            ("max_memory_size", 1 << 32),
            ("linear_memory_keep_resident", KEPT_RESIDENT),
            ("table_keep_resident", KEPT_RESIDENT),
        ):
            getattr(_ffi, f"wasmtime_pooling_allocation_config_{name}_set")(pool, value)
        _ffi.wasmtime_pooling_allocation_strategy_set(config.ptr(), pool)
    finally:
        _ffi.wasmtime_pooling_allocation_config_delete(pool)
    return config
