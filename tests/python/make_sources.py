"""Writes sources of many kinds of one tiny GPT-2, as training scripts of the field write them, for tests/interop_sources.rs:

    OUT/NAME (a .pt file or a folder), OUT/trainers/KIND (see trainer_returns.py), OUT/config (a model folder), OUT/cases.json: {NAME: {"says": [texts of the refusal or
    of the notes], "refused": bool, "step": int, "truth": file or null}}

and for what is taken the truth, OUT/truth-N.safetensors: parameters, and moments as optimizer.<moment>.<parameter>."""

import argparse
import json
import sys
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file, save_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import trainer_returns

out = Path(sys.argv[1])
trainer_returns.leave(out / "trainers")
torch.set_num_threads(1)
SHAPE = dict(vocab_size=61, n_positions=16, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
TURNED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
cases, truths = {}, {}
rows = torch.randint(0, 61, (4, 16), generator=torch.Generator().manual_seed(2))


def model(seed=1, **more):
    torch.manual_seed(seed)
    made = GPT2LMHeadModel(GPT2Config(**{**SHAPE, **more}))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn_like(p) * 0.01)
    return made


def train(made, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        made(rows, labels=rows).loss.backward()
        optimizer.step()


def truth(made, optimizer=None):
    state = {name: p.detach().clone().contiguous() for name, p in made.named_parameters()}
    for name, p in made.named_parameters():
        for key, value in (optimizer.state.get(p, {}) if optimizer else {}).items():
            if key != "step" and value is not None:
                state[f"optimizer.{key}.{name}"] = value.clone().contiguous()
    file = f"truth-{len(truths)}.safetensors"
    truths[file] = True
    save_file(state, out / file)
    return file


def taken(name, made, optimizer=None, step=3, says=(), **options):
    cases[name] = dict(refused=False, says=list(says), step=step, truth=truth(made, optimizer), **options)


def refused(name, *says, **options):
    cases[name] = dict(refused=True, says=list(says), step=0, truth=None, **options)


def trained(groups=lambda named: [p for _, p in named], make=lambda params: torch.optim.AdamW(params, lr=1e-3), **more):
    made = model(**more)
    optimizer = make(groups(list(made.named_parameters())))
    train(made, optimizer)
    return made, optimizer


def save(name, made, optimizer, key="optimizer", **more):
    torch.save({"model": made.state_dict(), key: optimizer.state_dict(), "step": 3, **more}, out / name)


model().config.save_pretrained(out / "config")

# Layouts: nn.Linear's, moments and all, compiled.
made, optimizer = trained(lambda n: [{"params": [p for _, p in n if p.dim() >= 2], "weight_decay": 0.1},
                                     {"params": [p for _, p in n if p.dim() < 2], "weight_decay": 0.0}])
names = {id(p): n for n, p in made.named_parameters()}
turn = lambda name, t: t.t().contiguous() if name.endswith(TURNED) and t.dim() == 2 else t
state = optimizer.state_dict()
flat = [names[id(p)] for g in optimizer.param_groups for p in g["params"]]
state["state"] = {i: {k: turn(flat[i], v) for k, v in e.items()} for i, e in state["state"].items()}
weights = {f"_orig_mod.{n}": turn(n, t) for n, t in made.state_dict().items()}
arguments = dict(n_layer=2, n_head=2, n_embd=8, block_size=16, bias=True, vocab_size=61, dropout=0.0)
nano = {"model": weights, "optimizer": state, "model_args": arguments, "iter_num": 3, "best_val_loss": torch.tensor(2.0)}
torch.save(nano, out / "nanogpt.pt")
taken("nanogpt.pt", made, optimizer, says=["nn.Linear", "model_args"], own_config=True)
torch.save({**nano, "model_args": {**arguments, "bias": False}}, out / "nanogpt-no-bias.pt")
refused("nanogpt-no-bias.pt", "bias is False", own_config=True)
torch.save({n: t for n, t in weights.items() if not n.endswith(".bias")}, out / "no-bias.pt")
refused("no-bias.pt", "bias=False")
torch.save({n: t if ".h.0." in n else turn(n, t) for n, t in made.state_dict().items()}, out / "two-layouts.pt")
refused("two-layouts.pt", "one layout")

# Names: wrappers, attributes, keys of every kind.
made, optimizer = trained()
for i, name in enumerate(["net", "generator", "weights", "my_own"]):
    torch.save({name: made.state_dict(), "epoch": 2}, out / f"key-{name}.pt")
    taken(f"key-{name}.pt", made, step=0)
torch.save({"checkpoint": {"model": made.state_dict()}}, out / "key-nested.pt")
taken("key-nested.pt", made, step=0)
torch.save({"model": made.state_dict(), "ema": model(7).state_dict()}, out / "with-ema.pt")
taken("with-ema.pt", made, step=0)
torch.save({"net": made.state_dict(), "generator": model(7).state_dict()}, out / "two-models.pt")
refused("two-models.pt", "both hold a GPT-2")
wrapped = {"model.lm." + n.replace("h.1.", "h.1._checkpoint_wrapped_module."): t for n, t in made.state_dict().items()}
torch.save(wrapped, out / "wrapped.pt")
taken("wrapped.pt", made, step=0)
for key in ("opt", "optim_state_dict", "anything"):
    save(f"optimizer-{key}.pt", made, optimizer, key)
    taken(f"optimizer-{key}.pt", made, optimizer)
torch.save({"state_dict": made.state_dict(), "optimizer_states": [optimizer.state_dict()], "global_step": 3}, out / "list.pt")
taken("list.pt", made, optimizer)
torch.save({"model": made.state_dict(), "optimizers": [optimizer.state_dict()] * 2}, out / "two-optimizers.pt")
refused("two-optimizers.pt", "optimizers[0]", "optimizers[1]", "--weights-only")

# What is no GPT-2 of this config.
torch.save({n: t for n, t in made.state_dict().items() if ".h.1." not in n}, out / "layer-missing.pt")
refused("layer-missing.pt", "h.1 is missing", "config")
torch.save({**made.state_dict(), "value_head.weight": torch.zeros(1, 8)}, out / "extra.pt")
refused("extra.pt", "value_head.weight is no tensor of a GPT-2")
model(n_embd=16).save_pretrained(out / "wider")
(out / "wider/config.json").write_text(model().config.to_json_string())
refused("wider", "transformer.wte.weight has the shape [61, 16]", "[61, 8]", own_config=True)
torch.manual_seed(0)
GPT2ForSequenceClassification(model().config).save_pretrained(out / "classifier")
refused("classifier", "score.weight", own_config=True)
(out / "head-alone").mkdir()
save_model(made, str(out / "head-alone/model.safetensors"), metadata={"format": "pt"})
made.config.save_pretrained(out / "head-alone")
taken("head-alone", made, step=0, own_config=True)
plain = {n: t.clone() for n, t in made.state_dict().items() if n != "lm_head.weight"}
save_file(plain, out / "null.safetensors")
data = (out / "null.safetensors").read_bytes()
size = int.from_bytes(data[:8], "little")
header = {"__metadata__": None, **json.loads(data[8 : 8 + size])}
header["transformer.wte.weight"]["note"] = "a further key"
header = json.dumps(header).encode()
(out / "null.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
taken("null.safetensors", made, step=0)
(out / "aliases").mkdir()
made.save_pretrained(out / "aliases")
config = json.loads((out / "aliases/config.json").read_text())
other = dict(n_embd="hidden_size", n_layer="num_hidden_layers", n_head="num_attention_heads", n_positions="max_position_embeddings")
(out / "aliases/config.json").write_text(json.dumps({other.get(k, k): v for k, v in config.items()}))
taken("aliases", made, step=0, own_config=True)

# Whose moments: names, and groups without.
no_bias = lambda name: not name.endswith("bias")
linear = lambda name: name.endswith(TURNED)
halves = lambda n, first: [{"params": [p for k, p in n if first(k, p)], "weight_decay": 0.1},
                           {"params": [p for k, p in n if not first(k, p)], "weight_decay": 0.0}]
layers = lambda n: [{"params": [p for k, p in n if f".h.{i}." in k]} for i in (0, 1)] + [
    {"params": [p for k, p in n if ".h." not in k]}]
for name, groups, says in (
    ("no-trainer", lambda n: halves(n, lambda k, p: no_bias(k)), ["weight_decay = 0.1"]),
    ("matrices-last", lambda n: halves(n, lambda k, p: p.dim() < 2), []),
    ("linear-alone", lambda n: halves(n, lambda k, p: linear(k)), []),
    ("by-layer", layers, []),
    ("one-each", lambda n: [{"params": [p]} for _, p in n], []),
    ("reversed", lambda n: n[::-1], []),
    ("shuffled", lambda n: sorted(n, key=lambda item: item[0][::-1]), []),
):
    made, optimizer = trained(groups)
    save(f"groups-{name}.pt", made, optimizer)
    taken(f"groups-{name}.pt", made, optimizer, says=says)
made, optimizer = trained(lambda n: [{**g, "lr": 1e-3 * (i + 1)} for i, g in enumerate(layers(n))])
save("groups-layer-rates.pt", made, optimizer)
refused("groups-layer-rates.pt", "orders", "named_parameters", "--weights-only")
made, optimizer = trained(lambda n: [p for _, p in n[::-1]])
save("groups-unnamed.pt", made, optimizer)
refused("groups-unnamed.pt", "order", "named_parameters", "--weights-only")
made, optimizer = trained(lambda n: [p for k, p in n if "wpe" not in k])
save("groups-frozen.pt", made, optimizer)
refused("groups-frozen.pt", "27 parameters", "frozen", "--weights-only")
made, optimizer = trained()
for name, options in (("fqn", StateDictOptions()), ("flat", StateDictOptions(flatten_optimizer_state_dict=True))):
    torch.save({"model": made.state_dict(), "optim": get_optimizer_state_dict(made, optimizer, options=options), "step": 3}, out / f"{name}.pt")
    taken(f"{name}.pt", made, optimizer)
texts = optimizer.state_dict()
texts["state"] = {str(k): v for k, v in texts["state"].items()}
torch.save({"model": made.state_dict(), "optimizer": texts, "step": 3}, out / "numbers-as-text.pt")
taken("numbers-as-text.pt", made, optimizer)

# Which optimiser.
adamw = torch.optim.AdamW
for name, make, says in (
    ("radam", lambda p: torch.optim.RAdam(p), "RAdam"),
    ("nadam", lambda p: torch.optim.NAdam(p), "NAdam"),
    ("l2", lambda p: torch.optim.Adam(p, weight_decay=0.1), "L2"),
    ("amsgrad", lambda p: adamw(p, amsgrad=True), "AMSGrad"),
    ("maximize", lambda p: adamw(p, maximize=True), "maximize"),
    ("nesterov", lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True), "nesterov"),
    ("dampening", lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, dampening=0.5), "dampening"),
    ("adafactor", lambda p: torch.optim.Adafactor(p), "Adafactor"),
    ("rmsprop", lambda p: torch.optim.RMSprop(p), "RMSprop"),
    ("adagrad", lambda p: torch.optim.Adagrad(p), "Adagrad"),
    ("adamax", lambda p: torch.optim.Adamax(p), "Adamax"),
):
    made, optimizer = trained(make=make)
    save(f"other-{name}.pt", made, optimizer)
    refused(f"other-{name}.pt", says, "--weights-only")
made, optimizer = trained()
whole = optimizer.state_dict()
for name, change, says in (
    ("lion", lambda g: {k: g[k] for k in ("lr", "betas", "weight_decay", "params")}, "Lion"),
    ("schedule-free", lambda g: {**g, "train_mode": True, "weight_lr_power": 2.0}, "schedule-free"),
    ("muon", lambda g: {**g, "ns_steps": 5}, "Muon"),
    ("fused", lambda g: {**g, "bias_correction": True}, "FusedAdam"),
    ("older-adamw", lambda g: {k: v for k, v in g.items() if k != "decoupled_weight_decay"}, "--optimizer adamw"),
):
    state = {**whole, "param_groups": [change(g) for g in whole["param_groups"]]}
    torch.save({"model": made.state_dict(), "optimizer": state, "step": 3}, out / f"other-{name}.pt")
    refused(f"other-{name}.pt", says, "--weights-only")
torch.save({"model": made.state_dict(), "optimizer": state, "step": 3}, out / "older-adamw-said.pt")
taken("older-adamw-said.pt", made, optimizer, asked="adamw")
made, optimizer = trained(make=lambda p: torch.optim.Adam(p))
save("adam-without-decay.pt", made, optimizer)
taken("adam-without-decay.pt", made, optimizer)
made, optimizer = trained(make=lambda p: torch.optim.SGD(p, lr=1e-3))
save("plain-sgd.pt", made, optimizer)
taken("plain-sgd.pt", made, optimizer, says=['optimizer = "sgd"'])
made, optimizer = trained(make=lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9))
save("momentum.pt", made, optimizer)
taken("momentum.pt", made, optimizer)

# Steps in other types, and of other files.
made, optimizer = trained()
for name, step, count in (("bf16", torch.tensor(3, dtype=torch.bfloat16), 3), ("i32", torch.tensor(3, dtype=torch.int32), 3), ("large", 2**24 + 3, 2**24 + 3)):
    state = optimizer.state_dict()
    state["state"] = {k: {**v, "step": step} for k, v in state["state"].items()}
    torch.save({"model": made.state_dict(), "optimizer": state, "step": count}, out / f"step-{name}.pt")
    taken(f"step-{name}.pt", made, optimizer, step=count)
for name, step in (("mixed", 7), ("agreeing", 3)):
    made.save_pretrained(out / name)
    torch.save(optimizer.state_dict(), out / name / "optimizer.pt")
    log = [{"loss": 2.5, "grad_norm": float("nan"), "step": 3}, {"grad_norm": float("inf"), "step": 3}]
    (out / name / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))
refused("mixed", "step 7", "step 3", "--mixed-steps", "--weights-only", own_config=True)
taken("agreeing", made, optimizer, own_config=True)

# What lies beside the weights.
for name, value in (
    ("scalar", numpy.float64(1.5)), ("array", numpy.arange(5)), ("random", numpy.random.get_state()), ("path", Path("a")),
    ("arguments", argparse.Namespace(lr=1, inner={"a": [1, 2]})),
):
    torch.save({"model_state_dict": made.state_dict(), "extra": value}, out / f"beside-{name}.pt")
    taken(f"beside-{name}.pt", made, step=0, says=[] if name in ("random", "path") else ["extra"])
torch.save({"model_state_dict": made.state_dict(), "extra": torch.nn.Linear(2, 2)}, out / "beside-module.pt")
refused("beside-module.pt", "refusing global torch.nn.modules.linear.Linear", 'the entry "extra"')
order = torch.randperm(3_000_000).tolist()
torch.save({"model": made.state_dict(), "order": order, "losses": [0.5] * 200_000}, out / "beside-order.pt")
taken("beside-order.pt", made, step=0)
expanded = {**made.state_dict(), "transformer.ln_f.bias": torch.tensor([0.5]).expand(8)}
torch.save(expanded, out / "expanded.pt")
refused("expanded.pt", "transformer.ln_f.bias", "expand()")
torch.save({"model": made.state_dict(), "mask": torch.ones(1).expand(9, 9)}, out / "beside-expanded.pt")
taken("beside-expanded.pt", made, step=0)
torch.save(made, out / "whole-module.pt")
refused("whole-module.pt", "save model.state_dict(), not the model")

(out / "cases.json").write_text(json.dumps(cases))
