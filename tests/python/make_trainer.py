"""A run of transformers' Trainer on a tiny GPT-2, saved after 3 of its 6 steps, as tests/interop_roundtrip.rs imports it.
Writes OUT/checkpoint-3, OUT/untied (a model without an optimiser) and OUT/losses.json (the losses of all 6 steps)."""

import json
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

out = Path(sys.argv[1])
torch.manual_seed(3)
config = dict(vocab_size=97, n_positions=32, n_embd=24, n_layer=3, n_head=3, bos_token_id=0, eos_token_id=0)
config |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
rows = torch.randint(0, 97, (48, 32))
data = [{"input_ids": row, "labels": row} for row in rows]
args = TrainingArguments(
    str(out), max_steps=6, per_device_train_batch_size=4, learning_rate=1e-3, weight_decay=0.1, save_steps=3,
    logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, seed=11, adam_beta2=0.95, max_grad_norm=1.0,
)
trainer = Trainer(model=GPT2LMHeadModel(GPT2Config(**config)), args=args, train_dataset=data)
trainer.train()
(out / "losses.json").write_text(json.dumps([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))
GPT2LMHeadModel(GPT2Config(**config, tie_word_embeddings=False)).save_pretrained(out / "untied")
GPT2LMHeadModel(GPT2Config(**config)).to(torch.bfloat16).save_pretrained(out / "half")
torch.save(rows, out / "rows.pt")
