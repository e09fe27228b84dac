#!/usr/bin/env bash
# The kernels and readers under AddressSanitizer, at every level that this machine has.
# Needs the toolchain's sanitizer runtime; RUSTC_BOOTSTRAP lets a stable toolchain use it.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" ASAN_OPTIONS=detect_leaks=0
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/asan}"
host=$(rustc -vV | sed -n 's/^host: //p')
exec cargo test --release --no-default-features --target "$host" --lib --test goldens --test quantize "$@"
