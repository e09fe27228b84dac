#!/usr/bin/env bash
# Builds the program and the wheel as they are handed out: in the profile `dist`, with remote reading, for an old
# enough glibc to run everywhere, with manual pages and completions. Needs zig, cargo-zigbuild and maturin
# (`pip install ziglang cargo-zigbuild maturin`) and the target (`rustup target add aarch64-unknown-linux-gnu`).
#
#     packaging/build.sh x86_64|aarch64
#
# Writes target/dist-bin/requant-VERSION-ARCH-linux.tar.gz and target/dist-bin/requant-VERSION-….whl. Pages and
# completions are the program's own words, so it has to run here: for another machine's, build this machine's first.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=${1:?x86_64 or aarch64}
target=$arch-unknown-linux-gnu
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
out=$CARGO_TARGET_DIR/dist-bin name=requant-$version-$arch-linux
program=$CARGO_TARGET_DIR/$target/dist/requant
# Where maturin looks for what a wheel installs beside the module.
share=python/requant._native.data/data/share
rustup target add "$target" 2> /dev/null || true
cargo zigbuild --profile dist --features remote --target "$target.2.28"

if "$program" --version > /dev/null 2>&1; then
  rm -rf "$share" && mkdir -p "$share"/{man/man1,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
  "$program" man "$share/man/man1"
  "$program" completions bash > "$share/bash-completion/completions/requant"
  "$program" completions zsh > "$share/zsh/site-functions/_requant"
  "$program" completions fish > "$share/fish/vendor_completions.d/requant.fish"
fi
[ -d "$share" ] || { echo "no pages and completions yet; first: packaging/build.sh $(uname -m)" >&2; exit 1; }

rm -rf "${out:?}/$name" && mkdir -p "$out/$name/bin"
cp "$program" "$out/$name/bin"
cp -r "$share" README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$out/$name"
tar -C "$out" -czf "$out/$name.tar.gz" "$name"
rm -r "${out:?}/$name"

maturin build --manifest-path python/Cargo.toml --profile dist --strip --zig --target "$target" \
  --compatibility manylinux_2_28 --out "$out"
ls -l "$out"
