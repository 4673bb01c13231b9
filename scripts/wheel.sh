#!/usr/bin/env bash
# The Python package `ckptd` as a wheel in dist/: the native half for CPython from 3.10 on, and the command `ckptd`.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p ckptd
data=crates/python/ckptd.data/scripts
mkdir -p "$data" dist
# Symbols of the whole workspace would make it five times as large.
strip -o "$data/ckptd" target/release/ckptd
rm -f dist/ckptd-*.whl
.cache/python/bin/maturin build --release --locked --strip --compatibility manylinux_2_34 --out dist \
  --manifest-path crates/python/Cargo.toml --interpreter .cache/python/bin/python
scripts/wheel_check.sh
