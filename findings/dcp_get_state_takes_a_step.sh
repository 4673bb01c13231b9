#!/usr/bin/env bash
# torch.distributed.checkpoint.state_dict: get_optimizer_state_dict and get_state_dict are asked for a state, and make one
# where there is none yet. To that end they call the optimizer's step() with gradients of zero and a learning rate of
# zero, and leave what that did to the optimizer: Adam's count of steps is then 1. So a training whose state is asked for
# before its first step, to save a checkpoint of step 0 or to have the keys that shall be loaded, computes its first update
# with the corrections of the second, and goes on to other weights than one that was not asked. Nothing is said of it.
# After the first step nothing happens, and to clear the state afterwards (optimizer.state.clear()) undoes it.
#
# torch 2.11.0 from PyPI, on the CPU, one process. Seen in November 2026, after 6 steps: Adam, AdamW and SGD with dampening
# have other weights when asked before the first step, SGD with plain momentum has not; Adam and AdamW count 7 steps.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 numpy
cat >show.py <<'PY'
import sys

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

torch.set_num_threads(1)
OPTIMIZERS = {
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "SGD, momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9),
    "SGD, momentum, dampening": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, dampening=0.1),
}


def train(make, asked):
    """The weights after 6 steps, and the count of steps that the optimizer has."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = make(model.parameters())
    inputs, targets = torch.randn(32, 8), torch.randn(32, 1)
    if asked in ("before the first step", "before the first step, then cleared"):
        get_optimizer_state_dict(model, optimizer)
    if asked == "before the first step, then cleared":
        optimizer.state.clear()
    for step in range(6):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
        if step == 0 and asked == "after the first step":
            get_optimizer_state_dict(model, optimizer)
    count = optimizer.state[model[0].weight].get("step")
    return nn.utils.parameters_to_vector(model.parameters()).detach(), None if count is None else int(count)


seen = {}
for name, make in OPTIMIZERS.items():
    weights, _ = train(make, "never")
    for asked in ("before the first step", "before the first step, then cleared", "after the first step"):
        others, count = train(make, asked)
        seen[name, asked] = torch.equal(weights, others), count
        difference = (weights - others).abs().max().item()
        print(f"{name}, asked {asked}: weights {'equal' if seen[name, asked][0] else f'other by {difference:.0e}'}"
              + ("" if count is None else f", {count} steps counted"))
changed = {key for key, (equal, _) in seen.items() if not equal}
counts = {count for key, (_, count) in seen.items() if key in changed}
sys.exit(changed != {(name, "before the first step") for name in ("Adam", "AdamW", "SGD, momentum, dampening")}
         or counts != {7, None})
PY
python/bin/python show.py 2>errors.txt || { cat errors.txt >&2; exit 1; }
