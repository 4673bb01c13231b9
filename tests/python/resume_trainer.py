"""transformers' Trainer resumes from an exported output folder, in which it finds the checkpoint itself: the losses of
steps 4 to 6 must be those of the run that was never interrupted."""

import json
import shutil
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, Trainer, TrainingArguments


def resume(run: Path, exported: Path):
    """`run` is the folder of make_trainer.py, `exported` what `--format trainer` wrote, which becomes the output folder."""
    shutil.copytree(exported, run / "again")
    rows = torch.load(run / "rows.pt")
    data = [{"input_ids": row, "labels": row} for row in rows]
    args = TrainingArguments(
        str(run / "again"), max_steps=6, per_device_train_batch_size=4, learning_rate=1e-3, weight_decay=0.1, save_steps=300,
        logging_steps=1, report_to=[], use_cpu=True, disable_tqdm=True, seed=11, adam_beta2=0.95, max_grad_norm=1.0,
    )
    trainer = Trainer(model=GPT2LMHeadModel.from_pretrained(run / "again/checkpoint-3"), args=args, train_dataset=data)
    trainer.train(resume_from_checkpoint=True)
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    expected = json.loads((run / "losses.json").read_text())
    assert trainer.state.global_step == 6
    for step in (4, 5, 6):
        print("step", step, losses[step], expected[step - 1])
        assert losses[step] == expected[step - 1], (step, losses[step], expected[step - 1])
