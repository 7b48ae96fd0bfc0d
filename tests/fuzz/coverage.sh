#!/usr/bin/env bash
# Fuzz the channel, led by what its compiled code has covered, under AddressSanitizer.
#
#     tests/fuzz/coverage.sh --seconds 600 [--seed N] [--corpus DIR] [--failures DIR]
#
# Needs clang with its runtime (Debian: clang libclang-rt-14-dev) and a wheel of atheris for the
# version of PYTHON. Builds in a copy of the tree and in an environment of its own. Cases that reach
# new code are kept in build/fuzz/found; a case that fails ends the run and is kept in build/fuzz.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/zeno-coverage.XXXXXX")
tree=$work/tree
trap 'rm -rf "$work"' EXIT

mkdir "$tree"
cd "$root"
git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
    tar --create --null --files-from=- | tar --extract --directory="$tree"

"${PYTHON:-python}" -m venv "$work/venv"
"$work/venv/bin/pip" --quiet install 'setuptools>=77' 'cython>=3.1' atheris orjson pyyaml wasmtime
cd "$tree"
CC=clang CXX=clang++ LDSHARED='clang -shared' ZENO_FAST_SANITIZE=address,fuzzer-no-link \
    "$work/venv/bin/python" setup.py --quiet build_ext --inplace --parallel "$(nproc)" \
    >"$work/build.log" 2>&1 || { tail -50 "$work/build.log"; exit 1; }

cd "$root"
runtime=$("$work/venv/bin/python" -c 'import atheris; print(atheris.path())')/asan_with_fuzzer.so
env LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc PYTHONPATH="$tree" \
    "$work/venv/bin/python" tests/fuzz/fuzz_channel.py --coverage "$@"
