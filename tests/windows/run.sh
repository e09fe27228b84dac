#!/usr/bin/env bash
# The command line's tests on Windows, or built with MinGW and run under Wine.
#   tests/windows/run.sh              on Windows; elsewhere where cargo has the target
#                                     (`rustup target add x86_64-pc-windows-gnu`), MinGW and Wine
#                                     (`apt-get install gcc-mingw-w64-x86-64-posix wine64`)
set -euo pipefail
cd "$(dirname "$0")/../.."
export PROPTEST_CASES="${PROPTEST_CASES:-20}"
options=(--locked --release)
if [ "${OS:-}" != Windows_NT ]; then
    target=x86_64-pc-windows-gnu
    options+=(--target "$target")
    export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER="${WINE:-/usr/lib/wine/wine64}"
    export WINEDEBUG=-all WINEPREFIX="${CARGO_TARGET_DIR:-$PWD/target}/$target/wine"
    mkdir -p "$WINEPREFIX"
fi
cargo test "${options[@]}" --lib -- io:: gguf:: convert:: quant::
cargo test "${options[@]}" --test cli --test json --test options --test quantize --test ladder --test resume \
    --test tools --test verify
