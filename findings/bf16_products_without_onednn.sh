#!/usr/bin/env bash
# Products of bf16 matrices on a processor without AVX-512: torch has oneDNN compute them only where the processor has it,
# and falls back to loops of its own, although the same product in float32 goes to a tuned library. The worst is the one
# of a backward pass, gradient [rows, out] times weight [out, in], both as they lie in memory: some hundred times slower
# than in float32. Training "in bf16" is then far slower than in float32, without a word. Operands that are widened to
# float32, and a result that is rounded, give the same but for the order of sums, in nearly float32's time.
#
# torch 2.11.0 (wheel for the CPU and CUDA, x86-64) from PyPI, one thread. Seen in November 2026 on an AMD EPYC with AVX2,
# GFLOP/s in float32 and in bf16: x W^T 12 to 39 and 1.1 to 3.8, gradient times weight 15 to 52 and 0.2 to 1.3, gradient^T
# times x 13 to 33 and 1.7 to 8.1. The script switches oneDNN off, so that a processor with AVX-512 takes the same way.
#
# Exit status: 0 where gradient times weight takes over 5 times as long in bf16, and under 3 times as long widened; 1 where
# it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 numpy
cat >show.py <<'PY'
import sys
import time

import torch

ROWS, INNER, OUT = 256, 768, 3072
torch.set_num_threads(1)


def fastest(work):
    times = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def products(kind):
    x, weight, gradient = (torch.randn(shape).to(kind) for shape in ((ROWS, INNER), (OUT, INNER), (ROWS, OUT)))
    return {
        "x W^T": lambda: x @ weight.t(),
        "gradient W": lambda: gradient @ weight,
        "gradient^T x": lambda: gradient.t() @ x,
        "gradient W, widened": lambda: (gradient.float() @ weight.float()).to(kind),
    }


with torch.backends.mkldnn.flags(enabled=False):
    whole, rounded = ({name: fastest(work) for name, work in products(kind).items()} for kind in (torch.float32, torch.bfloat16))
ratio = {name: rounded[name] / whole[name] for name in whole}
for name in ratio:
    print(f"{name}: {ratio[name]:.1f} times float32's time in bf16")
sys.exit(not (ratio["gradient W"] > 5 and ratio["gradient W, widened"] < 3))
PY
python/bin/python show.py
