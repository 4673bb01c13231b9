#!/usr/bin/env bash
# Fuzzes every reader of files and messages from strangers: `fuzz.sh [SECONDS for each target] [TARGET...]`.
# It starts from fuzz/seeds; what it finds of new paths stays in fuzz/corpus (git-ignored), what breaks in fuzz/artifacts.
# A finding becomes a file in fuzz/regressions/TARGET, which tests/fuzz_inputs.rs runs ever after.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
tools=$PWD/.cache/cargo-tools
if [ ! -x "$tools/bin/cargo-fuzz" ]; then
  echo "fuzz: installing cargo-fuzz into $tools (once)" >&2
  cargo install cargo-fuzz --locked --quiet --root "$tools"
fi
export PATH=$tools/bin:$PATH
# The instrumentation is an unstable option of the compiler, which the stable one has, too.
export RUSTC_BOOTSTRAP=1
# Only C code could go wrong in ways that the AddressSanitizer sees and Rust does not; zstd is fuzzed by its own project.
export CARGO_TARGET_DIR=fuzz/target
sanitizer=(--sanitizer none)

triple=$(rustc -vV | sed -n 's/^host: //p')

cargo fuzz build "${sanitizer[@]}" --target "$triple"
targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(cargo fuzz list)
for target in "${targets[@]}"; do
  echo "fuzz: $target for $seconds s" >&2
  mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
  inputs=("fuzz/corpus/$target")
  for folder in "fuzz/seeds/$target" "fuzz/regressions/$target"; do [ ! -d "$folder" ] || inputs+=("$folder"); done
  log=fuzz/artifacts/$target.log
  # A finding ends the run, with what broke in the log and the input in fuzz/artifacts.
  "$CARGO_TARGET_DIR/$triple/release/$target" "${inputs[@]}" -artifact_prefix="fuzz/artifacts/$target/" \
    -max_total_time="$seconds" -timeout=5 -rss_limit_mb=512 -max_len=65536 -print_final_stats=1 >"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; echo "fuzz: $target: a finding, see $log" >&2; exit 1; }
  grep -E '^Done|number_of_executed|slowest_unit|peak_rss' "$log" >&2
done
echo "fuzz: no finding" >&2
