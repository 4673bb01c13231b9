"""Writes, with the real PyTorch, transformers and safetensors, the files that tests/interop_read.rs reads, and beside each
the truth: `expected.json`, a map from file to {tensor: [dtype, shape, row-major bytes as hex]}."""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

out = Path(sys.argv[1])
torch.manual_seed(7)
NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}
expected = {}


def truth(tensors):
    result = {}
    for name, tensor in tensors.items():
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        result[name] = [NAMES[tensor.dtype], list(tensor.shape), data.hex()]
    return result


def folder(name, model, **how):
    model.save_pretrained(out / name, **how)
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    expected[name] = truth(state)


config = dict(vocab_size=101, n_positions=24, n_embd=32, n_layer=2, n_head=4)
tied = GPT2LMHeadModel(GPT2Config(**config))
untied = GPT2LMHeadModel(GPT2Config(**config, tie_word_embeddings=False))
folder("single", tied)
folder("sharded", tied, max_shard_size="40KB")
folder("untied", untied)
folder("half", GPT2LMHeadModel(GPT2Config(**config)).to(torch.bfloat16))
assert (out / "sharded/model.safetensors.index.json").exists()

# transformers 5 no longer writes .bin: as version 4 did, with the tied weight under both names.
for name, model, shards in [("bin", tied, 1), ("bin_sharded", untied, 3)]:
    (out / name).mkdir()
    model.config.save_pretrained(out / name)
    state = model.state_dict()
    expected[name] = truth(state)
    keys = list(state)
    weight_map = {}
    for i in range(shards):
        part = {key: state[key] for key in keys[i::shards]}
        file = "pytorch_model.bin" if shards == 1 else f"pytorch_model-{i + 1:05d}-of-{shards:05d}.bin"
        torch.save(part, out / name / file)
        weight_map.update(dict.fromkeys(part, file))
    if shards > 1:
        (out / name / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

# Every dtype, strides, shared storage, scalars and empty tensors.
base = torch.randn(6, 8)
odd = OrderedDict(
    plain=base,
    transposed=base.t(),
    row=base[2],
    column=base[:, 3],
    block=base[1:4, 2:7],
    permuted=torch.randn(2, 3, 4).permute(2, 0, 1),
    scalar=torch.tensor(2.5),
    empty=torch.zeros(0, 4),
    expanded_rows=torch.arange(5.0).expand(1, 5),
    parameter=torch.nn.Parameter(torch.randn(3)),
    **{f"of_{name}": (torch.arange(7) % 2).to(dtype) for dtype, name in NAMES.items()},
)
for protocol in (2, 3, 4, 5):
    torch.save(odd, out / f"odd{protocol}.pt", pickle_protocol=protocol)
    expected[f"odd{protocol}.pt"] = truth(odd)
save_file({k: v.contiguous().clone() for k, v in odd.items()}, out / "odd.safetensors", metadata={"format": "pt"})
expected["odd.safetensors"] = truth(odd)

# A whole checkpoint: optimiser, schedule and things that do not matter.
lin = torch.nn.Linear(3, 4)
optimizer = torch.optim.AdamW(lin.parameters(), lr=1e-3)
lin(torch.ones(2, 3)).sum().backward()
optimizer.step()
for protocol in (2, 5):
    torch.save(
        {
            "model": lin.state_dict(), "optimizer": optimizer.state_dict(), "step": 12, "loss": 0.5, "name": "é",
            "dtype": torch.bfloat16, "size": torch.Size([1, 2]), "device": torch.device("cpu"), "none": None,
            "flag": True, "big": 2**70, "negative": -(2**40), "bytes": b"abc", "complex": 1 + 2j, "set": {1}, "pair": (1, 2.0),
        },
        out / f"checkpoint{protocol}.pt",
        pickle_protocol=protocol,
    )
torch.save(lin.state_dict(), out / "legacy.pt", _use_new_zipfile_serialization=False)
torch.save(lin, out / "module.pt")
torch.jit.script(lin).save(out / "script.pt")
(out / "expected.json").write_text(json.dumps(expected))
