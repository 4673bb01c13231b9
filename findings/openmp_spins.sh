#!/usr/bin/env bash
# libtorch's threads wait for one another by spinning, the default of its OpenMP (libgomp): as soon as other programs
# want the processors, too, small operations on two threads become many times slower than with OMP_WAIT_POLICY=passive.
#
# torch 2.11.0 from PyPI with the libgomp that it ships. Seen in November 2026 on two cores, beside two busy programs:
#   a step of 50 products and tanh: 5323 ms; with OMP_WAIT_POLICY=passive: 141 ms (other programs were busy, too)
#
# Exit status: 0 where spinning is at least 1.5 times as slow, 1 where it is not.
# Takes 2 minutes and 540 MB from PyPI; needs g++ and python3 with venv, and is meant for a machine that is idle else.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --no-deps torch==2.11.0 "nvidia-cuda-runtime==13.0.*" "nvidia-cuda-cupti==13.0.*"
torch=$(echo "$PWD"/python/lib/python3*/site-packages/torch)
# The linker is shown the CPU half only; libtorch.so would want all of CUDA.
compile() { g++ -std=c++17 -O2 -I"$torch/include" "$1.cc" -o "$1" "$torch/lib/libtorch_cpu.so" "$torch/lib/libc10.so" \
  -Wl,--no-as-needed,--allow-shlib-undefined -Wl,-rpath,"$torch/lib" -ldl; }

cat >step.cc <<'CC'
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <chrono>
#include <cstdio>
int main() {
    at::set_num_threads(2);
    at::Tensor x = at::rand({256, 256});
    auto seconds = [] {
        return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
    };
    double begin = seconds();
    int steps = 0;
    for (; seconds() - begin < 8; steps++) {
        at::Tensor y = x;
        for (int i = 0; i < 50; i++) y = at::tanh(at::mm(y, x));
    }
    printf("%.0f\n", (seconds() - begin) / steps * 1000);
}
CC
compile step
busy() { timeout 10 sh -c 'while :; do :; done' || true; }
measure() { # the milliseconds of a step beside one busy program per processor
  for _ in $(seq "$(nproc)"); do busy & done
  env "$@" ./step
  wait
}
spinning=$(measure -u OMP_WAIT_POLICY | tail -1)
passive=$(measure OMP_WAIT_POLICY=passive | tail -1)
echo "a step of 50 products and tanh: $spinning ms; with OMP_WAIT_POLICY=passive: $passive ms"
[ "$((2 * spinning))" -ge "$((3 * passive))" ]
