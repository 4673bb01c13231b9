"""A small GPT-2 with AdamW's state in the containers of others, for tests/formats_in.rs. Argument: the folder to fill.
`truth` is the model as a Hugging Face folder; the other names are those of the test."""

import json
import shutil
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict
from transformers import GPT2Config, GPT2LMHeadModel

out = Path(sys.argv[1])
torch.manual_seed(5)
model = GPT2LMHeadModel(GPT2Config(vocab_size=61, n_positions=16, n_embd=12, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
rows = torch.randint(0, 61, (2, 16))
for _ in range(3):
    optimizer.zero_grad()
    model(rows, labels=rows).loss.backward()
    optimizer.step()
model.save_pretrained(out / "truth")
state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
tied = {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}

model_state, optimizer_state = get_state_dict(model, optimizer)
dcp.save({"model": model_state, "optimizer": optimizer_state, "step": 3}, checkpoint_id=out / "dcp", no_dist=True)
dcp.save({"model": model_state}, checkpoint_id=out / "dcp_model", no_dist=True)

np.savez(out / "plain.npz", **{name: tensor.numpy() for name, tensor in tied.items()})
np.savez_compressed(out / "packed.npz", **{name: np.asfortranarray(tensor.numpy()) for name, tensor in tied.items()})


class Tensors(torch.nn.Module):
    """What libtorch saves of named tensors: a module that has them and nothing to run."""


tensors = Tensors()
for name, tensor in tied.items():
    tensors.register_buffer(name.replace(".", "|"), tensor)
torch.jit.script(tensors).save(out / "rust.ot")
torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(2)).save(out / "traced.pt")

cache = out / "models--someone--small"
for name, source in (("aaaa", None), ("bbbb", "truth")):
    (cache / "snapshots" / name).mkdir(parents=True)
    if source:
        shutil.copytree(out / source, cache / "snapshots" / name, dirs_exist_ok=True)
(cache / "refs").mkdir()
(cache / "refs/main").write_text("bbbb")

(out / "variant").mkdir()
shutil.copy(out / "truth/config.json", out / "variant")
shutil.copy(out / "truth/model.safetensors", out / "variant/model.fp32.safetensors")

(out / "accelerate").mkdir()
save_file(tied, out / "accelerate/model.safetensors", metadata={"format": "pt"})
torch.save(optimizer.state_dict(), out / "accelerate/optimizer.bin")

for step in (2, 3, 10):
    folder = out / f"trainer/checkpoint-{step}"
    shutil.copytree(out / "truth", folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": 3, "log_history": []}))
whole = (out / "trainer/checkpoint-10/model.safetensors").read_bytes()
(out / "trainer/checkpoint-10/model.safetensors").write_bytes(whole[: len(whole) // 2])

with zipfile.ZipFile(out / "mac.zip", "w") as bundle:
    for name in ("truth/config.json", "truth/model.safetensors"):
        bundle.write(out / name, name)
        bundle.writestr(f"__MACOSX/truth/._{Path(name).name}", b"\0\5\x16\7")
    bundle.writestr("truth/.DS_Store", b"\0\0\0\1Bud1")

# llm.c: 256 numbers, then all parameters; matrices as nn.Linear has them, the vocabulary padded to 64 rows.
header = np.zeros(256, dtype=np.int32)
header[:8] = [20240326, 3, 16, 61, 2, 2, 12, 64]
embedding = torch.cat([tied["transformer.wte.weight"], torch.full((3, 12), 7.0)])
parts = [embedding, tied["transformer.wpe.weight"]]
for kind in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
    for end in ("weight", "bias"):
        blocks = [tied[f"transformer.h.{i}.{kind}.{end}"] for i in range(2)]
        parts += [block.t().contiguous() if block.dim() == 2 else block for block in blocks]
parts += [tied["transformer.ln_f.weight"], tied["transformer.ln_f.bias"]]
(out / "llmc.bin").write_bytes(header.tobytes() + b"".join(part.numpy().tobytes() for part in parts))


def lora(name, base, config, modules, other=None):
    """An adapter of PEFT as its save_pretrained writes it, and `<name>_truth`: the base model merged as its
    merge_and_unload computes that. `modules` has rank, alpha, whether the base's weight is [in, out], dtype."""
    folder, merged, tensors = out / name, {k: v.clone() for k, v in state.items()}, dict(other or {})
    for module, (rank, scale, turned, kind) in modules.items():
        rows, columns = merged[f"{module}.weight"].shape
        into, outof = (rows, columns) if turned else (columns, rows)
        down, up = (torch.randn(rank, into) / 4).to(kind), (torch.randn(outof, rank) / 4).to(kind)
        ends = ("lora_embedding_A", "lora_embedding_B") if module.endswith("wte") else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"base_model.model.{module}.{end}": t for end, t in zip(ends, (down, up))}
        product = up.float() @ down.float()
        merged[f"{module}.weight"] += (product.T if turned else product) * scale
        bias = tensors.get(f"base_model.model.{module}.base_layer.bias")
        if bias is not None:
            merged[f"{module}.bias"] = bias.clone()
        if config.get("lora_bias"):
            tensors[f"base_model.model.{module}.lora_B.bias"] = torch.randn(outof)
            merged[f"{module}.bias"] += tensors[f"base_model.model.{module}.lora_B.bias"] * scale
    for key, tensor in tensors.items():
        plain = key.removeprefix("base_model.model.")
        if plain in merged and plain != "transformer.wte.weight":
            merged[plain] = tensor.clone()
    if "lm_head" not in (config.get("modules_to_save") or []):
        merged["lm_head.weight"] = merged["transformer.wte.weight"]
    folder.mkdir()
    written = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "base_model_name_or_path": str(out / base), **config}
    (folder / "adapter_config.json").write_text(json.dumps(written))
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    again = GPT2LMHeadModel(GPT2Config(**model.config.to_dict() | {"tie_word_embeddings": "lm_head" not in (config.get("modules_to_save") or [])}))
    again.load_state_dict(merged)
    again.save_pretrained(out / f"{name}_truth")


with torch.no_grad():
    blocks = [f"transformer.h.{i}." for i in range(2)]
    f32, f16 = torch.float32, torch.float16
    lora(
        "adapter",
        "truth",
        {"r": 3, "lora_alpha": 7, "use_rslora": True, "target_modules": ["c_attn", "mlp.c_proj", "wte"],
         "rank_pattern": {"h.1.attn.c_attn": 2}, "alpha_pattern": {"^transformer\\.h\\.0\\..*c_proj": 5},
         "modules_to_save": ["ln_f"], "lora_dropout": 0.1, "fan_in_fan_out": False, "peft_version": "0.21.2"},
        {"transformer.wte": (3, 7 / 3**0.5, True, f32), blocks[0] + "attn.c_attn": (3, 7 / 3**0.5, True, f32),
         blocks[1] + "attn.c_attn": (2, 7 / 2**0.5, True, f16), blocks[0] + "mlp.c_proj": (3, 5 / 3**0.5, True, f32),
         blocks[1] + "mlp.c_proj": (3, 7 / 3**0.5, True, f32)},
        {f"base_model.model.transformer.ln_f.{leaf}": torch.randn(12) for leaf in ("weight", "bias")},
    )
    attention = [block + "attn.c_attn" for block in blocks]
    lora(
        "adapter_biases",
        "nowhere",
        {"r": 2, "lora_alpha": 6, "target_modules": ".*attn.c_attn", "bias": "lora_only", "lora_bias": True},
        {module: (2, 3.0, True, f32) for module in attention},
        {f"base_model.model.{module}.base_layer.bias": torch.randn(36) for module in attention},
    )
    lora(
        "adapter_head",
        "truth",
        {"r": 2, "lora_alpha": 2, "target_modules": ["c_fc"], "modules_to_save": ["lm_head"], "layers_to_transform": [1]},
        {blocks[1] + "mlp.c_fc": (2, 1.0, True, f32)},
        {"base_model.model.lm_head.weight": torch.randn(61, 12)},
    )
