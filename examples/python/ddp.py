"""DistributedDataParallel: every rank draws its own noise and dropout, and reads its own share of the data.

ckptd run -- torchrun --standalone --nproc-per-node 2 ddp.py
"""

import random

import ckptd
import numpy
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

EPOCHS = 5
dist.init_process_group("gloo")
rank = dist.get_rank()
# DistributedDataParallel gives all ranks the parameters of rank 0; what a rank draws is its own.
torch.manual_seed(rank)
random.seed(rank)
numpy.random.seed(rank)
torch.set_num_threads(1)

drawn = torch.Generator().manual_seed(1)
data = TensorDataset(torch.randn(642, 1, 12, 12, generator=drawn), torch.randint(4, (642,), generator=drawn))
sampler = DistributedSampler(data, shuffle=True, seed=7)
loader = DataLoader(data, batch_size=8, sampler=sampler)
net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(800, 4))
model = DistributedDataParallel(net)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)

run = ckptd.attach(model, optimizer, scheduler=scheduler, loader=loader)
for epoch in run.epochs(EPOCHS):
    sampler.set_epoch(epoch)
    for images, labels in run.batches():
        loss = F.cross_entropy(model(images + 0.1 * torch.randn_like(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        run.step(loss=loss, tokens=len(images) * dist.get_world_size())
print(f"rank {rank}: {run.steps_done} steps")
