#!/usr/bin/env bash
# Builds the wheel, installs it into a virtual environment of its own and tests it there: the program as
# `pip install requant` brings it, the module against gguf-py. Needs Python 3.9 or later and PyPI. With --prepare,
# makes the environment and nothing else.
set -euo pipefail
cd "$(dirname "$0")"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/../target}"
environment=$CARGO_TARGET_DIR/python/environment wheels=$CARGO_TARGET_DIR/python/wheels
if [ ! -e "$environment/complete" ]; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'
  python3 -m venv --clear "$environment"
  "$environment/bin/pip" install -q --disable-pip-version-check maturin pytest numpy gguf ml_dtypes
  touch "$environment/complete"
fi
if [ "${1:-}" = --prepare ]; then exit; fi
rm -rf "$wheels"
"$environment/bin/maturin" build --release --strip --out "$wheels"
"$environment/bin/pip" install -q --force-reinstall --no-deps "$wheels"/requant-*.whl
"$environment/bin/requant" --version
"$environment/bin/pytest" -q tests
