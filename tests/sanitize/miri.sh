#!/usr/bin/env bash
# The portable path of the block formats under Miri. Needs a nightly toolchain with Miri:
#   rustup toolchain install nightly --component miri
set -euo pipefail
cd "$(dirname "$0")/../.."
export MIRIFLAGS="-Zmiri-disable-isolation" PROPTEST_CASES="${PROPTEST_CASES:-2}"
exec cargo +nightly miri test --no-default-features --lib quant:: "$@"
