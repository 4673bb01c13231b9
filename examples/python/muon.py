"""Two optimisers for one model: Muon for the matrices, AdamW for the rest, each with its schedule.

ckptd run -- python muon.py
"""

import random

import ckptd
import numpy
import torch
import torch.nn.functional as F
from torch import nn

STEPS = 240
torch.manual_seed(0)
random.seed(0)
numpy.random.seed(0)
torch.set_num_threads(1)

model = nn.Sequential(
    nn.Embedding(64, 32), nn.Flatten(), nn.Linear(256, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 64)
)
matrices = [parameter for name, parameter in model.named_parameters() if name in ("2.weight", "5.weight")]
others = [parameter for name, parameter in model.named_parameters() if name not in ("2.weight", "5.weight")]
optimizers = [torch.optim.Muon(matrices, lr=2e-2), torch.optim.AdamW(others, lr=1e-3)]
schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS) for optimizer in optimizers]

run = ckptd.attach(model, optimizers, scheduler=schedulers)
for _ in range(run.steps_done, STEPS):
    inputs = torch.randint(64, (16, 8))
    loss = F.cross_entropy(model(inputs), inputs.sum(1) % 64)
    model.zero_grad()
    loss.backward()
    for optimizer, scheduler in zip(optimizers, schedulers):
        optimizer.step()
        scheduler.step()
    run.step(loss=loss)
print(f"{run.steps_done} steps")
