#!/usr/bin/env bash
# A training with the Trainer of transformers that goes on from one of its own checkpoints ends in the bits of the run
# that was not interrupted, on the CPU, with dropout. Not so where the collator draws from torch's generator, as one that
# masks tokens does: batches are fetched ahead of the steps, and the random state that a checkpoint holds is put back at
# another place between these draws than that at which it was saved. The run goes on without a word, with other batches.
#
# transformers 5.23.0, accelerate 1.15.0, torch 2.11.0, from PyPI, on the CPU. Seen in November 2026: without draws equal
# from steps 15 and 20 of 40 (10 in an epoch); with draws neither from step 15, in the middle of an epoch, nor from step
# 20, at the end of one.
#
# Exit status: 0 where it behaves so, 1 where it does not. Takes some minutes; needs python3 with venv and 6 GB in TMPDIR.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT; cd "$work"
python3 -m venv python
python/bin/pip install --quiet --disable-pip-version-check torch==2.11.0 transformers==5.23.0 accelerate==1.15.0
cat >train.py <<'PY'
import hashlib
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
import torch
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

draws, start = sys.argv[1] == "draws", sys.argv[2] if len(sys.argv) > 2 else None
set_seed(0)
torch.set_num_threads(1)


def collate(rows):
    tokens = torch.stack([row[0] for row in rows])
    inputs = torch.where(torch.rand(tokens.shape) < 0.2, 0, tokens) if draws else tokens
    return {"input_ids": inputs, "labels": tokens}


trainer = Trainer(
    model=GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2)),
    args=TrainingArguments(
        output_dir=f"out-{sys.argv[1]}", num_train_epochs=4, per_device_train_batch_size=4, save_strategy="steps",
        save_steps=5, report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    ),
    train_dataset=TensorDataset(torch.randint(64, (40, 16), generator=torch.Generator().manual_seed(1))),
    data_collator=collate,
)
trainer.train(resume_from_checkpoint=start)
print("state", hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in trainer.model.parameters())).hexdigest()[:16])
PY
state() { python/bin/python train.py "$@" 2>errors.txt | sed -n 's/^state //p'; }
seen=
for kind in plain draws; do
  whole=$(state "$kind"); [ -n "$whole" ] || { cat errors.txt >&2; exit 1; }
  for step in 15 20; do
    resumed=$(state "$kind" "out-$kind/checkpoint-$step")
    equal=$([ "$whole" = "$resumed" ] && echo equal || echo other)
    echo "$kind, from step $step: $equal ($whole, $resumed)"
    seen="$seen $equal"
  done
done
[ "$seen" = " equal equal other other" ]
