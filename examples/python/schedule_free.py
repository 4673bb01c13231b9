"""Schedule-free AdamW, which holds other weights while it evaluates.

ckptd run -- python schedule_free.py
"""

import random

import ckptd
import numpy
import schedulefree
import torch
import torch.nn.functional as F
from torch import nn

STEPS = 240
torch.manual_seed(0)
random.seed(0)
numpy.random.seed(0)
torch.set_num_threads(1)

model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Dropout(0.1), nn.Linear(64, 1))
optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=1e-2, warmup_steps=20)
inputs = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))

run = ckptd.attach(model, optimizer)
optimizer.train()
for step in range(run.steps_done, STEPS):
    batch = torch.randn(16, 16)
    loss = F.mse_loss(model(batch).squeeze(1), batch.sin().sum(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 40 == 39:
        model.eval()
        optimizer.eval()
        with torch.no_grad():
            print(f"validation {F.mse_loss(model(inputs).squeeze(1), inputs.sin().sum(1)):.4f}")
        optimizer.train()
        model.train()
    # The weights of the training are back: a boundary.
    run.step(loss=loss)
print(f"{run.steps_done} steps")
