#!/usr/bin/env bash
# Version: torch 2.11.0 (wheel for x86-64) from PyPI, one thread. Seen in November 2026 on an AMD EPYC with AVX2.
#
# Behaviour: torch has oneDNN compute products of bf16 matrices only where the processor has AVX-512, and else falls back to
# loops of its own, although the same product in float32 goes to a tuned library. The worst is the one of a backward pass,
# gradient [rows, out] times weight [out, in], both as they lie in memory. Training "in bf16" is then far slower than in
# float32, without a word. Operands that are widened to float32, and a result that is rounded, give the same but for the
# order of sums, in nearly float32's time. The script switches oneDNN off, so that a processor with AVX-512 takes the same
# way; there it was not tried.
#
# Output, of the times only their size is expected again:
#   x W^T: 8.0 times float32's time in bf16
#   gradient W: 176.2 times float32's time in bf16
#   gradient^T x: 11.9 times float32's time in bf16
#   gradient W, widened: 2.0 times float32's time in bf16
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
