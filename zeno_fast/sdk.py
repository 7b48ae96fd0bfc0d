"""The sources that guests are built with: where they are, and copies of them."""

from __future__ import annotations

import shutil
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
HEADERS = ("zeno_ring.h", "zeno_shm.h", "zeno_guest.h", "zeno_guest.c")
LOOPS = ("guest_json.h", "guest_sidecar.h", "guest_wasm.h")  # over them, for guests in C
LIBRARIES = ("go/zeno", "rust", "csharp")


def _find(installed: str, in_tree: str, file: str) -> Path:
    """Return a folder of the package, or of the tree that an editable install runs from."""
    for folder in (PACKAGE / installed, PACKAGE.parent / in_tree):
        if (folder / file).is_file():
            return folder
    raise FileNotFoundError(f"{file} is missing from this installation ({PACKAGE})")


def get_include() -> str:
    """Return the folder of the C headers `zeno_guest.h`, `zeno_shm.h` and `zeno_ring.h`."""
    return str(_find("_include", "ext/include", HEADERS[0]))


def copy_sdk(target: Path) -> list[Path]:
    """Copy all that guests are built with into a folder, which is made; return the files.

    A folder for each language: `c` (C and C++, and `zeno_guest.c` for other languages' linkers),
    `python`, `go/zeno`, `rust`, `csharp`. What was copied before is replaced.
    """
    include = Path(get_include())
    loops = _find("_examples", "examples/plugins", LOOPS[0])
    guests = _find("_guests", "ext/guests", "rust/zeno.rs")
    files = {Path("c") / name: include / name for name in HEADERS}
    files |= {Path("c") / name: loops / name for name in LOOPS}
    files[Path("python") / "guest.py"] = PACKAGE / "guest.py"
    for library in LIBRARIES:
        for source in sorted((guests / library).iterdir()):
            if source.is_file() and not source.name.endswith("_test.go"):
                files[Path(library) / source.name] = source
    for name, source in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / name)
    return [target / name for name in files]
