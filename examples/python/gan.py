"""Two models, two optimisers, a step of each: a GAN with an average of the generator's weights, under autocast to bf16.

ckptd run -- python gan.py
"""

import random

import ckptd
import numpy
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS = 240
torch.manual_seed(0)
random.seed(0)
numpy.random.seed(0)
torch.set_num_threads(1)

generator = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))
critic = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 64)), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(64, 1))
average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(0.95))
makes = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.9))
judges = torch.optim.RMSprop(critic.parameters(), lr=1e-3)

run = ckptd.attach({"generator": generator, "critic": critic}, [makes, judges], extra={"average": average})
for _ in range(run.steps_done, STEPS):
    angle = 6.28 * torch.rand(32)
    real, noise = torch.stack([angle.cos(), angle.sin()], 1), torch.randn(32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        fake = generator(noise)
        judged = F.softplus(critic(fake.detach())).mean() + F.softplus(-critic(real)).mean()
    judges.zero_grad()
    judged.backward()
    judges.step()
    with torch.autocast("cpu", torch.bfloat16):
        made = F.softplus(-critic(fake)).mean()
    makes.zero_grad()
    made.backward()
    makes.step()
    average.update_parameters(generator)
    run.step(loss=judged + made)
print(f"{run.steps_done} steps")
