#!/usr/bin/env bash
# libtorch on the CPU takes the memory of tensors from malloc, and glibc's malloc asks the kernel for each that is larger
# than 32 MiB and gives it back at its end: a training step pays a page fault per 4 KiB of all its large intermediate
# tensors. Three settings of malloc end that, without a change of the program.
#
# torch 2.11.0 from PyPI, glibc 2.36. Seen in November 2026 on two cores:
#   page faults per step: 58383; with malloc tuned: 0
#
# Exit status: 0 where it behaves so, 1 where it does not.
# Takes a minute and 540 MB from PyPI; needs g++ and python3 with venv.
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
#include <cstdio>
#include <sys/resource.h>
static long faults() {
    rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_minflt;
}
int main() {
    at::set_num_threads(2);
    at::Tensor x = at::rand({1024, 768}), in = at::rand({768, 12288}), out = at::rand({12288, 768});
    long before = 0;
    for (int step = 0; step < 15; step++) {
        if (step == 5) before = faults();
        // What a feed-forward layer computes, forwards and backwards.
        at::Tensor hidden = at::mm(x, in), active = at::gelu(hidden), y = at::mm(active, out);
        at::Tensor back = at::mm(y, out.t()), through = at::gelu_backward(back, hidden), weights = at::mm(x.t(), through);
    }
    printf("%ld\n", (faults() - before) / 10);
}
CC
compile step
default=$(./step)
tuned=$(MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_TOP_PAD_=67108864 ./step)
echo "page faults per step: $default; with malloc tuned: $tuned"
[ "$default" -ge 1000 ] && [ "$tuned" -lt 100 ]
