"""Writes what transformers and PyTorch compute, for crates/gpt2/tests/parity.rs: `parity.py FOLDER`.

FOLDER/<case>/ is a Hugging Face folder (config.json, model.safetensors) with case.json beside them: the tokens, the
loss before each of 20 steps of SGD with momentum and of AdamW, in float32 and under autocast in bf16, and how they were
trained; and logits.f32 and logits-bf16.f32, the logits of the first sequences in both.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

STEPS = 20

CASES = {
    # name: (config, how it is trained)
    "odd-heads": (
        dict(vocab_size=101, n_positions=32, n_embd=60, n_layer=3, n_head=3),
        dict(rows=4, positions=24, accumulation=1, clip=0.0, decay=0.0),
    ),
    "inner": (
        dict(vocab_size=97, n_positions=40, n_embd=70, n_layer=2, n_head=5, n_inner=96, layer_norm_epsilon=1e-6,
             scale_attn_by_inverse_layer_idx=True),
        dict(rows=3, positions=17, accumulation=2, clip=0.5, decay=0.1),
    ),
    "long-context": (
        dict(vocab_size=211, n_positions=1024, n_embd=64, n_layer=2, n_head=1, reorder_and_upcast_attn=True),
        dict(rows=1, positions=1024, accumulation=1, clip=1.0, decay=0.1, sgd_lr=0.1),
    ),
    "short-context": (
        dict(vocab_size=1009, n_positions=5, n_embd=84, n_layer=4, n_head=7, scale_attn_weights=False,
             activation_function="gelu"),
        dict(rows=8, positions=5, accumulation=3, clip=0.0, decay=0.1, base=True),
    ),
    "untied": (
        dict(vocab_size=61, n_positions=16, n_embd=72, n_layer=1, n_head=9, n_inner=33, activation_function="silu",
             tie_word_embeddings=False),
        dict(rows=5, positions=16, accumulation=2, clip=0.7, decay=0.2),
    ),
    "narrow-weights": (
        dict(vocab_size=127, n_positions=64, n_embd=48, n_layer=2, n_head=6, activation_function="relu"),
        dict(rows=2, positions=33, accumulation=1, clip=0.0, decay=0.0, dtype="bfloat16"),
    ),
}


def make(config):
    model = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **config))
    with torch.no_grad():
        for parameter in model.parameters():  # biases and layer norms that matter
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.eval()  # no dropout


def rounding(precision):
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")


def train(folder, tokens, how, optimizer, precision="float32"):
    """The loss of each step before its update; tokens: [step][micro-batch][row][position + 1]."""
    model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [dict(params=matrices, weight_decay=how["decay"]), dict(params=vectors, weight_decay=0.0)]
    if optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=how["sgd_lr"], momentum=how["momentum"])
    else:
        optimizer = torch.optim.AdamW(groups, lr=how["adamw_lr"], betas=how["betas"], eps=how["eps"])
    losses = []
    for step in tokens:
        optimizer.zero_grad()
        total = 0.0
        for batch in step:
            batch = torch.tensor(batch)
            with rounding(precision):
                logits = model(batch[:, :-1]).logits.float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
            (loss / len(step)).backward()
            total += loss.item() / len(step)
        if how["clip"] > 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), how["clip"])
        optimizer.step()
        losses.append(total)
    return losses


def main():
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for index, (name, (config, how)) in enumerate(CASES.items()):
        torch.manual_seed(index)
        folder = Path(sys.argv[1]) / name
        model = make(config).to(getattr(torch, how.get("dtype", "float32")))
        model.save_pretrained(folder)
        model = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
        if how.get("base"):  # GPT2Model's names, without "transformer."
            model.transformer.save_pretrained(folder)
        # Two steps' tokens in turn, low ids more often: the loss falls far, and a wrong update shows in it.
        shape = (2, how["accumulation"], how["rows"], how["positions"] + 1)
        tokens = (config["vocab_size"] * torch.rand(shape) ** 3).long().tolist() * (STEPS // 2)
        for precision, name in (("float32", "logits.f32"), ("bf16", "logits-bf16.f32")):
            with torch.no_grad(), rounding(precision):
                logits = model(torch.tensor(tokens[0][0])[:, :-1]).logits
            (folder / name).write_bytes(logits.float().contiguous().numpy().tobytes())
        how = dict(sgd_lr=0.05) | how | dict(momentum=0.9, adamw_lr=5e-3, betas=(0.9, 0.95), eps=1e-8)
        case = dict(how, tokens=tokens, sgd=train(folder, tokens, how, "sgd"), adamw=train(folder, tokens, how, "adamw"))
        case |= {f"{rule}_bf16": train(folder, tokens, how, rule, "bf16") for rule in ("sgd", "adamw")}
        (folder / "case.json").write_text(json.dumps(case))


main()
