"""The Trainer of transformers: a small GPT-2, evaluated as it goes, with a schedule and gradient accumulation.

ckptd run -- python trainer.py
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from ckptd.transformers import Callback
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

set_seed(0)
torch.set_num_threads(1)


def drawn(count, seed):
    tokens = torch.randint(64, (count, 16), generator=torch.Generator().manual_seed(seed))
    return TensorDataset(tokens)


def collate(rows):
    tokens = torch.stack([row[0] for row in rows])
    return {"input_ids": tokens, "labels": tokens}


trainer = Trainer(
    model=GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2)),
    args=TrainingArguments(
        output_dir="out",
        num_train_epochs=4,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        warmup_steps=10,
        eval_strategy="steps",
        eval_steps=25,
        logging_steps=10,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    ),
    train_dataset=drawn(320, 1),
    eval_dataset=drawn(32, 2),
    data_collator=collate,
)
run = Callback(trainer)
trainer.train(resume_from_checkpoint=run.checkpoint())
print(f"{trainer.state.global_step} steps")
