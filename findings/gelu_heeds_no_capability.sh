#!/usr/bin/env bash
# ATEN_CPU_CAPABILITY=default has torch compute by kernels without vector instructions, so that two processors give the
# same bits. The exact gelu of float32 (approximate="none", what transformers calls "gelu") does not heed it: oneDNN
# computes it, with the instructions that it finds, and its error function for AVX2 rounds otherwise than the one for
# SSE 4.1. ONEDNN_MAX_CPU_ISA=SSE41 is the way out. The gelu by tanh, GPT-2's own, is torch's, and heeds it.
#
# torch 2.11.0 from PyPI, on x86-64 with AVX2 or later. Seen in November 2026: with the same capability and both limits of
# oneDNN, gelu of the same numbers differs, and gelu by tanh is equal. Without the limit gelu is as with AVX2, or of a kind
# of its own where there is AVX-512.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 numpy
cat >show.py <<'PY'
import hashlib
import sys

import torch

torch.set_num_threads(1)
numbers = torch.linspace(-6, 6, 100_000)
result = torch.nn.functional.gelu(numbers, approximate=sys.argv[1])
print(hashlib.sha256(result.numpy().tobytes()).hexdigest()[:16])
PY
hash_of() { # the kind of gelu, the limit of oneDNN
  ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=$2 python/bin/python show.py "$1" 2>errors.txt || cat errors.txt >&2
}
for kind in none tanh; do
  for limit in SSE41 AVX2; do echo "gelu, approximate=$kind, ONEDNN_MAX_CPU_ISA=$limit: $(hash_of $kind $limit)"; done
done | tee seen.txt
mapfile -t seen < <(sed 's/.*: //' seen.txt)
[ -n "${seen[0]}" ] && [ "${seen[0]}" != "${seen[1]}" ] && [ "${seen[2]}" = "${seen[3]}" ]
