#!/usr/bin/env bash
# A tensor's version counter (`_version`) rises with each in-place write, and who saves a model while it trains may want
# to trust it. The running mean and variance of a BatchNorm layer in training mode are written in each forward pass
# without it: the values change, the counters stand, on the CPU with the native kernel. `num_batches_tracked`, beside
# them, is counted. So a copy of the buffers that is taken anew only where a counter has moved is of another step than
# the parameters beside it.
#
# torch 2.11.0 from PyPI, on the CPU. Seen in November 2026: 3 forward passes, the counters of running_mean and
# running_var rise by 0 (their values change each time), that of num_batches_tracked by 3.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0
cat >show.py <<'PY'
import torch

torch.manual_seed(1)
seen = {}
for layer, shape in ((torch.nn.BatchNorm1d(4), (8, 4)), (torch.nn.BatchNorm2d(4), (2, 4, 5, 5))):
    layer.train()
    before = {name: (buffer._version, buffer.clone()) for name, buffer in layer.named_buffers()}
    for _ in range(3):
        layer(torch.randn(shape))
    for name, buffer in layer.named_buffers():
        rise, changed = buffer._version - before[name][0], not torch.equal(buffer, before[name][1])
        seen.setdefault(name, set()).add((rise, changed))
        print(f"{type(layer).__name__}.{name}: the counter rises by {rise}, the values {'change' if changed else 'stay'}")
raise SystemExit(seen != {"running_mean": {(0, True)}, "running_var": {(0, True)}, "num_batches_tracked": {(3, True)}})
PY
python/bin/python show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
