#!/usr/bin/env bash
# The command line's tests on Windows, or built with MinGW and run under Wine.
#   tests/windows/run.sh              on Windows; elsewhere where cargo has the target
#                                     (`rustup target add x86_64-pc-windows-gnu`), MinGW and Wine
#                                     (`apt-get install gcc-mingw-w64-x86-64-posix wine64`)
set -euo pipefail
cd "$(dirname "$0")/../.."
options=(--locked --release)
if [ "${OS:-}" != Windows_NT ]; then
    target=x86_64-pc-windows-gnu
    options+=(--target "$target")
    wine=${WINE:-$(command -v wine64 || echo /usr/lib/wine/wine64)}
    # Not by a variable: tests would start the program by it, while within Wine it starts as it is.
    options+=(--config "target.$target.runner = '$wine'")
    export WINEDEBUG=-all
    export WINEPREFIX="${CARGO_TARGET_DIR:-$PWD/target}/$target/wine"
    mkdir -p "$WINEPREFIX" && "$wine" wineboot --init
    # Rust's standard library takes random numbers from a library that Wine has from 9 on.
    library=$WINEPREFIX/drive_c/windows/system32/bcryptprimitives.dll
    if [ ! -e "$library" ]; then
        x86_64-w64-mingw32-gcc -shared -o "$library" tests/windows/random.c -ladvapi32
    fi
fi
cargo test "${options[@]}" --no-fail-fast --test cli --test json --test options --test quantize --test ladder \
    --test resume --test tools --test verify
