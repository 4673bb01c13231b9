"""An all-Python run of transformers' Trainer on given batches, for crates/gpt2/tests/trainer_run.rs:

    trainer_curve.py whole FOLDER             trains all steps on FOLDER/rows.json ([step][row][position + 1]), saves a
                                              checkpoint after SAVED steps, writes FOLDER/losses.json
    trainer_curve.py resume FOLDER EXPORTED NAME
                                              goes on from the exported checkpoint as NAME, writes FOLDER/resumed.json"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

SAVED = 8
mode, folder = sys.argv[1], Path(sys.argv[2])
batches = torch.tensor(json.loads((folder / "rows.json").read_text()))
steps, rows, _ = batches.shape

# Nothing predicts the first token of a row; Trainer would count it among those that the loss is the mean of.
labels = batches.clone()
labels[:, :, 0] = -100
data = [{"input_ids": row, "labels": label} for row, label in zip(batches.flatten(0, 1), labels.flatten(0, 1))]


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(model, out):
    args = TrainingArguments(
        str(out), max_steps=steps, per_device_train_batch_size=rows, learning_rate=2e-3, weight_decay=0.1, save_steps=SAVED,
        logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, seed=5, adam_beta2=0.95, max_grad_norm=1.0,
    )
    return InOrder(model=model, args=args, train_dataset=data)


def losses(run):
    return {entry["step"]: entry["loss"] for entry in run.state.log_history if "loss" in entry}


torch.manual_seed(3)
if mode == "whole":
    config = dict(vocab_size=97, n_positions=33, n_embd=24, n_layer=3, n_head=3, bos_token_id=0, eos_token_id=0)
    config |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    run = trainer(GPT2LMHeadModel(GPT2Config(**config)), folder / "python")
    run.train()
    (folder / "losses.json").write_text(json.dumps(losses(run)))
else:
    # Trainer looks for the step in the name of the folder.
    checkpoint = folder / "resumed" / sys.argv[4]
    shutil.copytree(sys.argv[3], checkpoint)
    run = trainer(GPT2LMHeadModel.from_pretrained(checkpoint), folder / "resumed")
    run.train(resume_from_checkpoint=str(checkpoint))
    (folder / "resumed.json").write_text(json.dumps(losses(run)))
