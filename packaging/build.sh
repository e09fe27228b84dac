#!/usr/bin/env bash
# Builds the program as it is handed out: in the profile `dist`, with remote reading, for an old enough glibc to
# run everywhere. Needs zig and cargo-zigbuild (`pip install ziglang cargo-zigbuild`) and the target
# (`rustup target add aarch64-unknown-linux-gnu`).
#
#     packaging/build.sh x86_64|aarch64
#
# Writes target/dist-bin/requant-VERSION-ARCH-linux.tar.gz with the program, manual pages and completions.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=${1:?x86_64 or aarch64}
target=$arch-unknown-linux-gnu
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
rustup target add "$target" 2> /dev/null || true
cargo zigbuild --profile dist --features remote --target "$target.2.28"
program=${CARGO_TARGET_DIR:-target}/$target/dist/requant
folder=target/dist-bin/requant-$version-$arch-linux
rm -rf "$folder" && mkdir -p "$folder/man" "$folder/completions"
cp "$program" README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$folder"
# What the program writes about itself, where it runs here.
if "$program" --version > /dev/null 2>&1; then
  "$program" man "$folder/man"
  for shell in bash zsh fish; do "$program" completions "$shell" > "$folder/completions/$shell"; done
fi
tar -C target/dist-bin -czf "$folder.tar.gz" "${folder##*/}"
rm -r "$folder"
ls -l "$folder.tar.gz"
