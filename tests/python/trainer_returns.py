"""transformers' Trainer leaves a checkpoint, and comes back from what ckptd has made of it, for tests/interop_sources.rs:

    leave(FOLDER)                        trains all STEPS, saves after LEFT of them, writes FOLDER/KIND/curve.json
    trainer_returns.py FOLDER EXPORTED   goes on from EXPORTED/KIND, and compares with the run that never left"""

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

LEFT, STEPS = 5, 15
KINDS = {
    "linear": dict(lr_scheduler_type="linear", warmup_steps=2, optim="adamw_torch"),
    "cosine": dict(lr_scheduler_type="cosine", adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-6, gradient_accumulation_steps=2),
    "restarts": dict(lr_scheduler_type="cosine_with_restarts", lr_scheduler_kwargs={"num_cycles": 2}, warmup_steps=7),
    "sgd": dict(lr_scheduler_type="constant_with_warmup", warmup_steps=3, optim="sgd", optim_args="momentum=0.9"),
}
SHAPE = dict(vocab_size=61, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
SHAPE |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
# More threads wait for one another longer than they compute, at this size.
torch.set_num_threads(1)
rows = torch.randint(0, 61, (80, 16), generator=torch.Generator().manual_seed(4))
data = [{"input_ids": row, "labels": row} for row in rows]


def trainer(out, kind, model):
    args = dict(
        max_steps=STEPS, per_device_train_batch_size=2, learning_rate=1e-3, weight_decay=0.05, save_steps=LEFT, logging_steps=1,
        report_to=[], use_cpu=True, disable_tqdm=True, seed=3,
    )
    return Trainer(model=model, args=TrainingArguments(str(out), **args, **KINDS[kind]), train_dataset=data)


def curve(run):
    return [[e["step"], e["learning_rate"], e["loss"]] for e in run.state.log_history if "loss" in e]


def leave(folder):
    for kind in KINDS:
        torch.manual_seed(3)
        run = trainer(folder / kind, kind, GPT2LMHeadModel(GPT2Config(**SHAPE)))
        run.train()
        (folder / kind / "curve.json").write_text(json.dumps(curve(run)))


def come_back(folder, exported, kind):
    torch.manual_seed(3)
    left = folder / kind / f"checkpoint-{LEFT}"
    back = folder / kind / "back" / f"checkpoint-{LEFT}"
    shutil.copytree(exported / kind, back)
    for name in ("optimizer.pt", "scheduler.pt"):
        theirs, ours = (torch.load(dir / name, weights_only=True) for dir in (left, back))
        groups = theirs.get("param_groups", [theirs])
        assert ours.get("param_groups", [ours]) == groups, (kind, name, ours.get("param_groups", ours), groups)
        for index, entry in theirs.get("state", {}).items():
            assert entry.keys() == ours["state"][index].keys(), (kind, index)
            for key, value in entry.items():
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(ours["state"][index][key])), (kind, index, key)
    theirs, ours = (json.loads((dir / "trainer_state.json").read_text()) for dir in (left, back))
    for state in (theirs, ours):
        state.pop("log_history")
    assert theirs == ours, (kind, theirs, ours)
    run = trainer(folder / kind / "back", kind, GPT2LMHeadModel.from_pretrained(back))
    run.train(resume_from_checkpoint=str(back))
    expected = [entry for entry in json.loads((folder / kind / "curve.json").read_text()) if entry[0] > LEFT]
    went_on = [entry for entry in curve(run) if entry[0] > LEFT]
    assert len(went_on) == STEPS - LEFT and went_on == expected, (kind, went_on, expected)
    assert (folder / kind / "back" / f"checkpoint-{2 * LEFT}").is_dir(), "it saves when the source did"
    print("returned", kind)


if __name__ == "__main__":
    for kind in KINDS:
        come_back(Path(sys.argv[1]), Path(sys.argv[2]), kind)
