"""A loop in nanoGPT's shape: batches drawn at random, AdamW in two groups, gradient accumulation, a schedule by hand.

    ckptd run -- python nanogpt.py

The lines with `ckptd` or `run` are all that ckptd needs.
"""

import math
import random

import ckptd
import numpy
import torch
import torch.nn.functional as F
from torch import nn

STEPS, MICRO_BATCHES, BATCH, LENGTH, WIDTH, VOCABULARY = 240, 2, 4, 16, 64, 64
# Everything that draws is seeded, so that two runs are the same run.
torch.manual_seed(1337)
random.seed(1337)
numpy.random.seed(1337)
# The number of threads decides how sums are split: it is part of the run.
torch.set_num_threads(1)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x):
        query, key, value = self.attention(self.ln_1(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(query, key, value, is_causal=True))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, inputs, targets):
        x = self.blocks(self.tokens(inputs) + self.places(torch.arange(inputs.shape[1])))
        return F.cross_entropy(self.head(x).flatten(0, 1), targets.flatten())


text = torch.randint(VOCABULARY, (4096,), generator=torch.Generator().manual_seed(7))


def get_batch():
    starts = torch.randint(len(text) - LENGTH, (BATCH,))
    windows = torch.stack([text[start : start + LENGTH + 1] for start in starts])
    return windows[:, :-1], windows[:, 1:]


model = GPT()
matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))

run = ckptd.attach(model, optimizer)
for iteration in range(run.steps_done, STEPS):
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * iteration / STEPS))
    total = 0.0
    for _ in range(MICRO_BATCHES):
        loss = model(*get_batch()) / MICRO_BATCHES
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    run.step(loss=total, tokens=MICRO_BATCHES * BATCH * LENGTH)
print(f"{run.steps_done} steps")
