#!/usr/bin/env bash
# Builds for aarch64, and runs the kernels' tests under QEMU's user mode: the bytes that NEON and
# portable code give against the goldens, the products of the forward pass.
#   tests/aarch64/run.sh              where cargo has the target, a cross linker and qemu-aarch64
#   tests/aarch64/run.sh --chroot DIR as root, in a Debian sid made in DIR, whose packages have all
#                                     of that; dependencies come from this machine's `cargo fetch`
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
if [ "${1:-}" = --chroot ]; then
    dir=$(mkdir -p "$2" && cd "$2" && pwd)
    [ -e "$dir/etc/debian_version" ] || debootstrap --variant=minbase sid "$dir"
    registry=${CARGO_HOME:-$HOME/.cargo}/registry
    cargo fetch --locked --manifest-path "$root/Cargo.toml"
    mkdir -p "$dir/work" "$dir/target" "$dir/cargo/registry"
    # In a mount namespace of its own: nothing stays mounted, however this ends.
    exec unshare --mount bash -euc '
        mount --bind "$2" "$1/work"; mount --bind "$3" "$1/cargo/registry"
        mount --bind /dev "$1/dev"; mount -t proc proc "$1/proc"
        exec chroot "$1" /bin/bash -euc "
            export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
            if ! command -v qemu-aarch64 > /dev/null; then
                dpkg --add-architecture arm64
                apt-get update
                apt-get install -y --no-install-recommends rustc cargo rust-clippy libstd-rust-dev:arm64 \
                    gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
            fi
            CARGO_HOME=/cargo CARGO_TARGET_DIR=/target CARGO_NET_OFFLINE=true exec /work/tests/aarch64/run.sh"
    ' - "$dir" "$root" "$registry"
fi
cd "$root"
target=aarch64-unknown-linux-gnu
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu"
export CARGO_PROFILE_RELEASE_LTO=off
export PROPTEST_CASES="${PROPTEST_CASES:-20}"
options=(--locked --release --target "$target")
cargo clippy "${options[@]}" -- -D warnings
cargo test "${options[@]}" --lib -- quant:: eval::gemm eval::exponential
# At every level of the machine.
cargo test "${options[@]}" --test goldens --test formats
# The program, at the level it chooses and at the other.
cargo test "${options[@]}" --test quantize
REQUANT_SIMD=portable cargo test "${options[@]}" --test quantize
