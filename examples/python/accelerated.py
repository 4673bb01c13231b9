"""A loop with accelerate: what `prepare` gives is attached.

ckptd run -- python accelerated.py
"""

import ckptd
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 4
set_seed(0)
torch.set_num_threads(1)

drawn = torch.Generator().manual_seed(1)
data = TensorDataset(torch.randn(320, 16, generator=drawn), torch.randint(4, (320,), generator=drawn))
model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, 1.0, total_iters=100)
accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
loader = DataLoader(data, batch_size=4, shuffle=True)
model, optimizer, scheduler, loader = accelerator.prepare(model, optimizer, scheduler, loader)

run = ckptd.attach(model, optimizer, scheduler=scheduler, loader=loader)
for epoch in run.epochs(EPOCHS):
    for inputs, labels in run.batches():
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(inputs), labels)
            accelerator.backward(loss)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            run.step(loss=loss)
print(f"{run.steps_done} steps")
