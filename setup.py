"""Build the extensions and the launcher; everything else is in pyproject.toml."""

import os
import sys
from glob import glob

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

DEBUG = os.environ.get("ZENO_FAST_DEBUG") == "1"
SANITIZE = os.environ.get("ZENO_FAST_SANITIZE", "")  # for example "address,undefined"
TRACE = os.environ.get("ZENO_FAST_TRACE") == "1"
PROCESSORS = os.cpu_count() or 1

compile_args = ["-O0", "-g"] if DEBUG else ["-O2"]
link_args = []
if SANITIZE:
    compile_args += [f"-fsanitize={SANITIZE}", "-fno-omit-frame-pointer", "-g"]
    link_args += [f"-fsanitize={SANITIZE}"]

extensions = [
    Extension(
        f"zeno_fast.{name}",
        [f"ext/zeno_fast/{name}.pyx"],
        include_dirs=["ext/include"],
        depends=[*glob("ext/include/*.h"), *glob("ext/zeno_fast/*.pxd")],
        extra_compile_args=compile_args,
        extra_link_args=link_args,
        define_macros=[("CYTHON_TRACE_NOGIL", "1")] if TRACE else [],
    )
    for name in (
        "_bytes",
        "_envelope",
        "_statistics",
        "_shm",
        "_guest_ring",
        "_memory",
        "_posix",
        "_ring_end",
        "_pipe",
        "_nesting",
        "_call",
        "_pending",
        "_output",
        "_messages",
        "_correlator",
        "_listener",
        "_leadership",
        "_channel",
        "_slot",
        "_pipeline",
        "_guest_output",
        "_wasmtime",
        "_wasm",
    )
]

# Plain Python that is compiled all the same; its own docstring says why.
extensions.append(Extension("zeno_fast.wasm.pool", ["zeno_fast/wasm/pool.py"]))


class BuildAll(build_ext):
    """Build the extensions, and beside them the program that starts sidecars."""

    def finalize_options(self):
        """Compile several at once, as there are processors, unless told otherwise."""
        super().finalize_options()
        self.parallel = self.parallel or PROCESSORS

    def run(self):
        """Build all."""
        super().run()
        if sys.platform == "linux":
            self.build_launcher("ext/launcher/launcher_linux.c")

    def get_outputs(self):
        """Return the files that were built."""
        return [*super().get_outputs(), *([self.launcher()] if sys.platform == "linux" else [])]

    def launcher(self):
        """Return where the launcher is built: in the package, next to the extensions."""
        return os.path.join(os.path.dirname(self.get_ext_fullpath("zeno_fast._call")), "_launcher")

    def build_launcher(self, source):
        """Build the launcher, without what the extensions are instrumented with."""
        objects = self.compiler.compile(
            [source], output_dir=self.build_temp, extra_postargs=["-O2", "-std=gnu11"]
        )
        os.makedirs(os.path.dirname(self.launcher()), exist_ok=True)
        try:
            # Without the dynamic loader's share a launcher keeps a third of the memory.
            self.compiler.link_executable(
                objects, self.launcher(), extra_postargs=["-static", "-s"]
            )
        except CCompilerError:  # this system has no static C library
            self.compiler.link_executable(objects, self.launcher(), extra_postargs=["-s"])


setup(
    cmdclass={"build_ext": BuildAll},
    # The examples are plugins for `zeno-fast demo`, too; which files go along is in pyproject.toml.
    packages=[
        *find_packages(include=["zeno_fast", "zeno_fast.*"]),
        "zeno_fast._examples",
        "zeno_fast._include",
        "zeno_fast._guests",
    ],
    package_dir={
        "zeno_fast._examples": "examples/plugins",
        "zeno_fast._include": "ext/include",
        "zeno_fast._guests": "ext/guests",
    },
    ext_modules=cythonize(
        extensions,
        include_path=["ext"],
        build_dir="build/cython",
        nthreads=PROCESSORS if sys.platform == "linux" else 0,  # by forking
        language_level=3,
        compiler_directives={"embedsignature": True, "linetrace": TRACE},
    ),
)
