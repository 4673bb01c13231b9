"""A small ResNet with BatchNorm: SGD with momentum, a step schedule by epoch, a shuffled DataLoader.

ckptd run -- python resnet.py
"""

import random

import ckptd
import numpy
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 6
torch.manual_seed(0)
random.seed(0)
numpy.random.seed(0)
torch.set_num_threads(1)


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.norm_1, self.norm_2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x):
        return F.relu(x + self.norm_2(self.second(F.relu(self.norm_1(self.first(x))))))


model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    Residual(8),
    Residual(8),
    nn.AdaptiveAvgPool2d(2),
    nn.Flatten(),
    nn.Dropout(0.1),
    nn.Linear(32, 10),
).to(memory_format=torch.channels_last)
drawn = torch.Generator().manual_seed(3)
images, labels = torch.randn(320, 1, 8, 8, generator=drawn), torch.randint(10, (320,), generator=drawn)
loader = DataLoader(TensorDataset(images, labels), batch_size=8, shuffle=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 4], gamma=0.3)

run = ckptd.attach(model, optimizer, scheduler=scheduler)
for epoch in run.epochs(EPOCHS):
    for inputs, targets in run.batches(loader):
        loss = F.cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss=loss)
    scheduler.step()
print(f"{run.steps_done} steps in {EPOCHS} epochs")
