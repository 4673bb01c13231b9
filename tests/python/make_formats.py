"""A small GPT-2 with AdamW's state in the containers of others, for tests/formats_in.rs. Argument: the folder to fill.
`truth` is the model as a Hugging Face folder; the other names are those of the test."""

import json
import shutil
import struct
import sys
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
