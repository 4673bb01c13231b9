#!/usr/bin/env bash
# DistributedDataParallel adds the gradients of its ranks in buckets. After the first backward pass it sorts the buckets
# anew, by the order in which gradients came, and the place in a bucket decides in which order gloo adds three or more
# ranks. So the same parameters and data give other gradients in the first step than in the second, and a training that
# is stopped and goes on from its exact state computes other bits than one that was not. With two ranks there is one
# order; with find_unused_parameters=True the buckets stay as they are.
#
# torch 2.11.0 from PyPI, gloo on the CPU. Seen in November 2026: the same step twice, without an update in between: with
# 2 ranks the gradients are equal, with 3 they are not, with 3 and find_unused_parameters=True they are.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 numpy
cat >show.py <<'PY'
import os
import sys

import torch
import torch.distributed as dist
from torch import nn


def gradients(model, inputs):
    model.zero_grad()
    model(inputs).square().mean().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def rank(number, ranks, find_unused):
    dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/meet-{ranks}-{find_unused}", rank=number,
                            world_size=ranks)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 8))
    model = nn.parallel.DistributedDataParallel(net, find_unused_parameters=find_unused)
    torch.manual_seed(number)
    inputs = torch.randn(16, 64)
    first, second = gradients(model, inputs), gradients(model, inputs)
    if number == 0:
        with open(f"equal-{ranks}-{find_unused}", "w") as file:
            file.write(str(all(map(torch.equal, first, second))))


if __name__ == "__main__":
    seen = []
    for ranks, find_unused in ((2, False), (3, False), (3, True)):
        torch.multiprocessing.spawn(rank, args=(ranks, find_unused), nprocs=ranks)
        seen.append(open(f"equal-{ranks}-{find_unused}").read())
        print(f"{ranks} ranks, find_unused_parameters={find_unused}: the same step twice gives equal gradients: {seen[-1]}")
    sys.exit(seen != ["True", "False", "True"])
PY
python/bin/python show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
