"""Loads, with the real PyTorch and transformers, what ckptd exported, and compares it with the model that the snapshot was
made of; then Trainer goes on from one of them. Arguments: the folder of make_trainer.py, the folder of exports. Prints
one line per check."""

import json
import sys
import warnings
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from transformers import AutoModelForCausalLM, GPT2LMHeadModel
from transformers.trainer_utils import get_last_checkpoint

import resume_trainer

run, exports = Path(sys.argv[1]), Path(sys.argv[2])
original = run / "checkpoint-3"
transformers.logging.set_verbosity_warning()
warnings.simplefilter("error")

tokens = torch.arange(40).reshape(2, 20) % 97


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(tokens).logits


reference = GPT2LMHeadModel.from_pretrained(original)
truth = reference.state_dict()
expected = logits(reference)


def equal(state, what):
    assert list(state) == list(truth) or set(state) == set(truth) - {"lm_head.weight"}, (what, set(state) ^ set(truth))
    for name, tensor in state.items():
        assert tensor.dtype == truth[name].dtype and torch.equal(tensor, truth[name]), (what, name)


for name in ("hf", "hf_sharded", "hf_full", "unpacked_zip", "unpacked_tar"):
    model, info = AutoModelForCausalLM.from_pretrained(exports / name, output_loading_info=True)
    assert not any(info.values()), (name, info)
    equal(model.state_dict(), name)
    assert torch.equal(logits(model), expected), name
    assert model.config.tie_word_embeddings == (model.lm_head.weight is model.transformer.wte.weight)
    print("loads", name)
assert len(list((exports / "hf_sharded").glob("model-*.safetensors"))) > 2

for dtype, tolerance in (("bf16", 2**-8), ("f16", 2**-10)):
    half = AutoModelForCausalLM.from_pretrained(exports / f"hf_{dtype}")
    assert half.dtype == {"bf16": torch.bfloat16, "f16": torch.float16}[dtype], half.dtype
    for name, tensor in half.state_dict().items():
        assert torch.equal(tensor, truth[name].to(half.dtype)), name
    print("loads", dtype)

state = torch.load(exports / "model.pt", weights_only=True, map_location="cpu", mmap=True)
assert type(state).__name__ == "OrderedDict"
equal(state, "model.pt")
assert list(state) == list(truth)
assert state["lm_head.weight"].data_ptr() == state["transformer.wte.weight"].data_ptr()
fresh = GPT2LMHeadModel(reference.config)
assert fresh.load_state_dict(state, strict=True)
assert torch.equal(logits(fresh), expected)
bf16 = torch.load(exports / "model_bf16.pt", weights_only=True, map_location="cpu")
assert all(torch.equal(bf16[name], truth[name].to(torch.bfloat16)) for name in truth)
print("loads model.pt")

equal(load_file(exports / "model.safetensors"), "model.safetensors")
print("loads model.safetensors")


def groups(model):
    decay = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]


saved = torch.load(original / "optimizer.pt", weights_only=True)
full = torch.load(exports / "full.pt", weights_only=True, map_location="cpu", mmap=True)
for name, optimizer in (("full.pt", full["optimizer"]), ("hf_full", torch.load(exports / "hf_full/optimizer.pt", weights_only=True))):
    adamw = torch.optim.AdamW(groups(fresh), lr=1.0)
    adamw.load_state_dict(optimizer)
    state = adamw.state_dict()
    assert [g["params"] for g in state["param_groups"]] == [g["params"] for g in saved["param_groups"]]
    for key in ("betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay"):
        assert [g[key] for g in state["param_groups"]] == [g[key] for g in saved["param_groups"]], key
    assert state["state"].keys() == saved["state"].keys()
    for index, entry in saved["state"].items():
        assert entry.keys() == state["state"][index].keys()
        for key, tensor in entry.items():
            assert torch.equal(tensor, state["state"][index][key]), (name, index, key)
    print("optimizer of", name)
assert full["step"] == 3 and json.loads(full["config"])["model_type"] == "gpt2"
assert "step 3\n" in (exports / "hf/version.txt").read_text()

# torch.distributed warns that it is not initialised.
warnings.simplefilter("ignore")
adamw = torch.optim.AdamW(groups(fresh), lr=1.0)
fresh(tokens, labels=tokens).loss.backward()
adamw.step()
model_state, optimizer_state = get_state_dict(fresh, adamw)
dcp.load({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=exports / "deep/dcp", no_dist=True)
equal(model_state, "dcp")
names = [name for name, _ in fresh.named_parameters()]
order = sorted(range(len(names)), key=lambda i: truth[names[i]].dim() < 2)
for index, name in enumerate(names[i] for i in order):
    for key, tensor in saved["state"][index].items():
        assert torch.equal(tensor, optimizer_state["state"][name][key]), ("dcp", name, key)
alone = {"model": GPT2LMHeadModel(reference.config).state_dict()}
dcp.load(alone, checkpoint_id=exports / "dcp_model", no_dist=True)
equal(alone["model"], "dcp_model")
print("loads dcp")

# What nanoGPT's train.py and model.py take from it, with matrices as nn.Linear has them.
nano = torch.load(exports / "ckpt.pt", weights_only=True)
linear = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
assert set(nano) == {"model", "optimizer", "model_args", "iter_num", "best_val_loss", "config"}, set(nano)
assert {key: nano["model_args"][key] for key in ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size")} == {
    "n_layer": 3, "n_head": 3, "n_embd": 24, "block_size": 32, "bias": True, "vocab_size": 97}
assert nano["iter_num"] == 3 and nano["best_val_loss"] == 1e9
equal({name: t.t() if name.endswith(linear) else t for name, t in nano["model"].items()}, "nanogpt")
for index, name in enumerate(names[i] for i in order):
    for key in ("exp_avg", "exp_avg_sq"):
        tensor = nano["optimizer"]["state"][index][key]
        expected_moment = saved["state"][index][key]
        assert torch.equal(tensor, expected_moment.t() if name.endswith(linear) else expected_moment), (name, key)
print("loads nanogpt")

assert get_last_checkpoint(str(exports / "trainer")) == str(exports / "trainer/checkpoint-3")
print("loads trainer")

# Trainer warns of what is none of an export's business.
warnings.resetwarnings()
resume_trainer.resume(run, exports / "trainer")
