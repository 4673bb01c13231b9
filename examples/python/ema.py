"""An average of the weights beside them, a schedule by step, batches that two forked workers augment at random.

ckptd run -- python ema.py
"""

import random

import ckptd
import numpy
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset

EPOCHS = 4
torch.manual_seed(0)
random.seed(0)
numpy.random.seed(0)
torch.set_num_threads(1)


class Noisy(Dataset):
    """Each worker draws from a generator of its own."""

    def __len__(self):
        return 320

    def __getitem__(self, index):
        return torch.full((16,), index / 320) + 0.1 * torch.randn(16), torch.tensor(float(index % 7))


model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 1))
average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, amsgrad=True)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=EPOCHS * 40)
loader = DataLoader(Noisy(), batch_size=8, shuffle=True, num_workers=2)
best = {"loss": float("inf")}

run = ckptd.attach(model, optimizer, scheduler=scheduler, extra={"ema": average, "best": best})
for epoch in run.epochs(EPOCHS):
    for inputs, targets in run.batches(loader):
        loss = F.mse_loss(model(inputs).squeeze(1), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        average.update_parameters(model)
        best["loss"] = min(best["loss"], loss.item())
        run.step(loss=loss)
print(f"{run.steps_done} steps, best loss {best['loss']:.4f}")
