"""LoRA with peft: the base stands still, the adapters are trained.

ckptd run -- python lora.py
"""

import os
import random

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ckptd
import numpy
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel

EPOCHS = 4
torch.manual_seed(0)
random.seed(0)
numpy.random.seed(0)
torch.set_num_threads(1)

base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2))
model = get_peft_model(base, LoraConfig(r=4, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True))
tokens = torch.randint(64, (240, 16), generator=torch.Generator().manual_seed(1))
loader = DataLoader(TensorDataset(tokens), batch_size=4, sampler=ckptd.Sampler(tokens, seed=1))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3)

run = ckptd.attach(model, optimizer)
for epoch in run.epochs(EPOCHS):
    for (batch,) in run.batches(loader):
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        run.step(loss=loss)
print(f"{run.steps_done} steps")
