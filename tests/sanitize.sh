#!/usr/bin/env bash
# Run tests with the extensions built for AddressSanitizer and UndefinedBehaviorSanitizer.
#
#     tests/sanitize.sh                     # what is worth it, in some minutes
#     tests/sanitize.sh tests/wasm -k pool  # or what pytest is given
#
# Builds in a copy of the tree, never in the tree. Fails where a test fails or a sanitizer reports
# anything, in whichever process. Last, two faults put into the copy have to be found: a run that
# cannot fail proves nothing. PYTHON is an interpreter that has what the tests need; KEEP=1 keeps
# the copy. GCC only, whose runtimes can be loaded into an interpreter that was built without.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python}
work=$(mktemp -d "${TMPDIR:-/tmp}/zeno-sanitize.XXXXXX")
tree=$work/tree
trap '[[ ${KEEP:-} == 1 ]] && echo "kept: $work" || rm -rf "$work"' EXIT

# What is left out of a run without arguments:
left_out=(
    # Have sanitizers of their own, also one that excludes ours, or need none.
    --ignore=tests/unit/test_c_headers.py
    --ignore=tests/unit/test_ring.py
    --ignore=tests/unit/test_ring_model.py
    # What they test beside what test_shared_memory.py does is in other processes.
    --ignore=tests/sidecar/test_dotnet_ring.py
    --ignore=tests/sidecar/test_go_ring.py
    --ignore=tests/sidecar/test_rust_ring.py
    # Nothing compiled is in what these test, or it is only run in other processes, and slowly.
    --ignore=tests/unit/test_cli.py
    --ignore=tests/unit/test_readme.py
    --ignore=tests/unit/test_yaml_source.py
    # PHP loads its modules in a way that a sanitizer's runtime refuses.
    "--deselect=tests/unit/test_binary.py::test_every_kind_of_script_runs_with_and_without_a_digest"
    # Bounds of time and memory that hold for a build that does not watch every access.
    --deselect=tests/sidecar/test_hostile.py::test_c3
    --deselect=tests/fault/test_b_sizes.py::test_b5_time_and_memory
    --deselect=tests/fault/test_b_sizes.py::test_b5_an_answer_beyond_the_limit_takes_no_memory
    # Preload a library of their own, which has to come before the runtime.
    --ignore=tests/sidecar/test_copies.py
    --ignore=tests/fault/test_c7_syscalls.py
    --ignore=tests/fault/test_syscalls.py
)
if (($# == 0)); then
    set -- tests/sidecar tests/fuzz tests/unit tests/fault/test_b_answers.py \
        tests/test_binary.py::test_bytes_come_back_as_they_were \
        tests/test_binary.py::test_s2_a_guest_cannot_point_outside_of_its_arena \
        tests/test_binary.py::test_views_stay_valid_and_differ_however_many_are_held \
        tests/test_binary.py::test_buffers_that_are_gone_are_forgotten_everywhere \
        tests/test_binary.py::test_a_guest_cannot_answer_with_a_buffer_that_it_was_not_given \
        tests/fault/test_b_protocol.py tests/fault/test_b_sizes.py tests/fault/test_d6_giving_up.py \
        tests/wasm/test_calls.py tests/fault/test_f_pointers.py \
        "${left_out[@]}"
fi

mkdir "$tree"
cd "$root"
git -c safe.directory='*' ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
    tar --create --null --files-from=- | tar --extract --directory="$tree"
cd "$tree"

# The tools of the build in an environment of their own, as pip would have them.
"$python" -m venv "$work/tools"
"$work/tools/bin/pip" --quiet install 'setuptools>=77' 'cython>=3.1'

build() {
    ZENO_FAST_SANITIZE=address,undefined "$work/tools/bin/python" setup.py --quiet \
        build_ext --inplace --parallel "$(nproc)" >"$work/build.log" 2>&1 ||
        { tail -50 "$work/build.log"; return 1; }
}

# sanitized REPORTS COMMAND...: run it with the runtimes loaded; reports go to REPORTS.PID.
#
# Only those of the first: beside another runtime UBSan's own option is without effect, and it
# writes to stderr, from where the callers of this take it.
#
# CPython leaves much unfreed on purpose, so leaks are not looked for; its own allocator would hide
# most faults. Segmentation faults are left to wasmtime, which makes traps of those in guests.
# Children of Python inherit all of this, as they need to; sidecars get a clean
# environment from zeno_fast anyway.
sanitized() {
    local reports=$1
    shift
    env LD_PRELOAD="$(gcc -print-file-name=libasan.so):$(gcc -print-file-name=libubsan.so)" \
        ASAN_OPTIONS="detect_leaks=0:handle_segv=0:halt_on_error=1:abort_on_error=1:log_path=$reports" \
        UBSAN_OPTIONS="halt_on_error=1:abort_on_error=1:print_stacktrace=1" \
        PYTHONMALLOC=malloc PYTHONPATH="$tree" "$@"
}

# fault MODULE RIGHT WRONG REPORT: with RIGHT made WRONG in the module, a replay of the corpus ends in
# REPORT.
fault() {
    local source=ext/zeno_fast/$1.pyx right=$2 wrong=$3 report=$4 text
    text=$(<"$source")
    [[ $text == *"$right"* ]] || { echo "no '$right' to put a fault into"; return 1; }
    printf '%s\n' "${text/"$right"/"$wrong"}" >"$source"
    build
    printf '%s\n' "$text" >"$source"
    if sanitized "$work/fault" "$python" tests/fuzz/fuzz_channel.py \
        --replay tests/fuzz/corpus/*.case >"$work/fault.log" 2>&1; then
        echo "=== FAILED: '$wrong' was not noticed"
        return 1
    fi
    grep -qs -e "$report" "$work"/fault.* ||
        { cat "$work"/fault.*; echo "=== FAILED: '$wrong' was not reported as $report"; return 1; }
    rm -f "$work"/fault.*
    echo "a fault was put in and found: $report"
}

echo "building in $tree"
build

status=0
# Descriptor 2 is not captured: what UBSan wrote before it ended the process would be lost.
sanitized "$work/report" "$python" -m pytest -p no:cacheprovider --capture=sys "$@" 2>&1 |
    tee "$work/pytest.log" || status=$?
if compgen -G "$work/report.*" >/dev/null || grep -q ': runtime error: ' "$work/pytest.log"; then
    cat "$work"/report.* 2>/dev/null || true
    echo "=== FAILED: the sanitizers reported something"
    exit 1
fi
((status == 0)) || exit "$status"

# Last, so that nothing has to be built again without them.
fault _memory 'realloc(memory[0], wanted)' 'realloc(memory[0], wanted - 64)' heap-buffer-overflow
fault _pipe 'self._capacity * 2)' 'self._capacity << (self._capacity & 65536))' 'shift exponent'
