#!/usr/bin/env python3
"""Files of other programs through ckptd: each row makes a small source with the real library, imports it, checks the
snapshot, exports it, loads that with PyTorch and holds every tensor against the source, bit for bit.

Verdicts: right; refused+ (the message names the file and prints a command, which succeeds when it is run here); refused-
(any other refusal); silent (taken, and not the same). Rows whose library cannot be imported are named as such. Writes the
table to the file that is its argument. The exit code is 1 where a row is silent or refused-."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
CKPTD = os.environ.get("CKPTD", str(Path(__file__).resolve().parents[1] / "target/release/ckptd"))
# The commands that refusals print: python with these packages, and this ckptd.
os.environ["PATH"] = f"{Path(sys.executable).parent}:{Path(CKPTD).parent}:{os.environ['PATH']}"

import numpy as np
import torch
from safetensors.torch import save_file, save_model
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

VERSIONS = ("torch", "transformers", "safetensors", "numpy", "accelerate", "peft", "lightning", "gguf", "onnx", "h5py")
LINEAR = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
ROWS = []


def row(name):
    def add(make):
        ROWS.append((name, make))
        return make

    return add


class Small:
    """The model of a row, trained for three steps."""

    def __init__(self, dtype=torch.float32, groups=None, **config):
        torch.manual_seed(1)
        shape = dict(vocab_size=512, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
        self.model = GPT2LMHeadModel(GPT2Config(**shape, **config))
        self.optimizer = torch.optim.AdamW(groups(self.model) if groups else self.model.parameters(), lr=1e-3)
        rows = torch.randint(0, 512, (4, 32))
        for _ in range(3):
            self.optimizer.zero_grad()
            self.model(rows, labels=rows).loss.backward()
            self.optimizer.step()
        self.model.to(dtype)
        self.state = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.tied = {name: t for name, t in self.state.items() if name != "lm_head.weight" or not self.model.config.tie_word_embeddings}
        self.rows = [{"input_ids": r, "labels": r} for r in rows]


def two_groups(model):
    rest = [p for p in model.parameters() if p.dim() < 2]
    return [{"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]


def config_of(small, work):
    small.model.config.save_pretrained(work / "config")


# --- folders of transformers -----------------------------------------------------------------------------------------


def pretrained(name, **options):
    @row(f"save_pretrained: {name}")
    def make(work):
        small = Small(**{key: value for key, value in options.items() if key in ("dtype", "tie_word_embeddings")})
        save = {key: value for key, value in options.items() if key in ("max_shard_size", "variant")}
        small.model.save_pretrained(work / "source", **save)
        return work / "source", small.state


pretrained("float32")
pretrained("bf16", dtype=torch.bfloat16)
pretrained("fp16", dtype=torch.float16)
pretrained("shards", max_shard_size="100KB")
pretrained("untied", tie_word_embeddings=False)
pretrained("variant fp16", dtype=torch.float16, variant="fp16")
pretrained("variant, shards", variant="mine", max_shard_size="100KB")


@row("pytorch_model.bin beside config.json")
def torch_weights(work):
    small = Small()
    small.model.config.save_pretrained(work / "source")
    torch.save(small.state, work / "source/pytorch_model.bin")
    return work / "source", small.state


@row("hub cache models--x--y")
def hub_cache(work):
    small, cache = Small(), work / "models--x--y"
    small.model.save_pretrained(cache / "snapshots/abc")
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    return cache, small.state


@row("GPT2Model without prefix")
def bare(work):
    small = Small()
    small.model.transformer.save_pretrained(work / "source")
    return work / "source", small.state


def train(work, small, **arguments):
    settings = dict(max_steps=4, save_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model=small.model, args=TrainingArguments(str(work / "out"), **(settings | arguments)), train_dataset=small.rows)
    trainer.train()
    return {name: tensor.detach().clone() for name, tensor in small.model.state_dict().items()}


@row("Trainer: checkpoint-4")
def trainer_checkpoint(work):
    small = Small()
    return work / "out/checkpoint-4", train(work, small)


@row("Trainer: output folder")
def trainer_folder(work):
    small = Small()
    return work / "out", train(work, small)


@row("Trainer: output folder, newest one cut")
def trainer_cut(work):
    small = Small()
    train(work, small)
    cut = work / "out/checkpoint-4/model.safetensors"
    cut.write_bytes(cut.read_bytes()[:1000])
    from safetensors.torch import load_file

    return work / "out", load_file(work / "out/checkpoint-2/model.safetensors")


@row("Trainer: SGD with momentum, gradient accumulation")
def trainer_sgd(work):
    small = Small()
    arguments = dict(optim="sgd", optim_args="momentum=0.9", gradient_accumulation_steps=2)
    return work / "out/checkpoint-4", train(work, small, **arguments)


@row("Trainer: Adafactor")
def trainer_adafactor(work):
    train(work, Small(), optim="adafactor")
    return work / "out/checkpoint-4", None


@row("Trainer: save_only_model")
def trainer_model(work):
    small = Small()
    return work / "out/checkpoint-4", train(work, small, save_only_model=True)


# --- single files -----------------------------------------------------------------------------------------------------


def saved(name, content, taken_as=torch.float32, **how):
    """`taken_as`: the type in which its values are expected, None where the source is to be refused."""

    @row(f"torch.save: {name}")
    def make(work):
        small = Small(groups=two_groups)
        config_of(small, work)
        torch.save(content(small), work / "x.pt", **how)
        return work / "x.pt", taken_as and {k: v.to(taken_as) for k, v in small.state.items()}


saved("state_dict", lambda s: s.model.state_dict())
saved("model, optimizer, step", lambda s: {"model": s.model.state_dict(), "optimizer": s.optimizer.state_dict(), "step": 3})
saved("DDP's module.", lambda s: {f"module.{k}": v for k, v in s.state.items()})
saved("torch.compile's _orig_mod.", lambda s: {f"_orig_mod.{k}": v for k, v in s.state.items()})
saved("named parameters", lambda s: dict(s.model.named_parameters()))


saved("state_dict in bf16", lambda s: {k: v.bfloat16() for k, v in s.state.items()}, torch.bfloat16)
saved("state_dict in half", lambda s: {k: v.half() for k, v in s.state.items()}, torch.float16)
saved("the tied matrix as lm_head alone", lambda s: {k: v for k, v in s.state.items() if k != "transformer.wte.weight"})
saved("the tied matrix as wte alone", lambda s: s.tied)
saved("keys of its own, numpy beside it", lambda s: {"net": s.state, "opt": s.optimizer.state_dict(), "rng": np.random.get_state()})
saved("a step beyond the count of AdamW's float32", lambda s: {
    "model": s.state, "optimizer": at_step(s, torch.tensor(2.0**24)), "step": 2**24 + 3})
saved("state_dict in double", lambda s: {k: v.double() for k, v in s.state.items()}, None)
saved("the whole module", lambda s: s.model, None)
saved("legacy format", lambda s: s.state, None, _use_new_zipfile_serialization=False)


def at_step(small, step):
    """The optimiser's state, with that step."""
    state = small.optimizer.state_dict()
    state["state"] = {key: {**entry, "step": step} for key, entry in state["state"].items()}
    return state


def optimizer_row(name, make):
    """An optimiser that ckptd does not have: the weights alone are the way out."""

    @row(f"torch.save: {name}")
    def made(work):
        small = Small()
        config_of(small, work)
        optimizer = make(small.model.parameters())
        small.model(small.rows[0]["input_ids"][None], labels=small.rows[0]["labels"][None]).loss.backward()
        optimizer.step()
        torch.save({"model": small.model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}, work / "x.pt")
        return work / "x.pt", None


optimizer_row("AMSGrad", lambda p: torch.optim.AdamW(p, amsgrad=True))
optimizer_row("RAdam", torch.optim.RAdam)
optimizer_row("NAdam", torch.optim.NAdam)
optimizer_row("Adam with L2", lambda p: torch.optim.Adam(p, weight_decay=0.1))
optimizer_row("Adafactor", torch.optim.Adafactor)
optimizer_row("SGD with Nesterov's momentum", lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, nesterov=True))


@row("torch.save: state_dict by names (get_state_dict)")
def by_names(work):
    from torch.distributed.checkpoint.state_dict import get_state_dict

    small = Small()
    config_of(small, work)
    model, optimizer = get_state_dict(small.model, small.optimizer)
    torch.save({"model": model, "optimizer": optimizer, "step": 3}, work / "x.pt")
    return work / "x.pt", small.state


@row("safetensors: save_file")
def safe(work):
    small = Small()
    config_of(small, work)
    save_file(small.tied, work / "x.safetensors", metadata={"format": "pt"})
    return work / "x.safetensors", small.state


@row("safetensors: save_model")
def safe_model(work):
    small = Small()
    config_of(small, work)
    save_model(small.model, str(work / "x.safetensors"))
    return work / "x.safetensors", small.state


@row("numpy.savez")
def savez(work):
    small = Small()
    config_of(small, work)
    np.savez(work / "x.npz", **{k: v.numpy() for k, v in small.tied.items()})
    return work / "x.npz", small.state


@row("numpy.savez_compressed, half, Fortran's order")
def savez_compressed(work):
    small = Small(dtype=torch.float16)
    config_of(small, work)
    np.savez_compressed(work / "x.npz", **{k: np.asfortranarray(v.numpy()) for k, v in small.tied.items()})
    return work / "x.npz", small.state


@row("libtorch's tensor file (tch .ot)")
def ot(work):
    small, tensors = Small(), type("Tensors", (torch.nn.Module,), {})()
    config_of(small, work)
    for name, tensor in small.tied.items():
        tensors.register_buffer(name.replace(".", "|"), tensor)
    torch.jit.script(tensors).save(work / "x.ot")
    return work / "x.ot", small.state


@row("nanoGPT's ckpt.pt")
def nanogpt(work):
    small = Small(groups=two_groups, activation_function="gelu")
    config_of(small, work)
    turned = {k: v.t().contiguous() if k.endswith(LINEAR) else v for k, v in small.state.items()}
    arguments = dict(n_layer=2, n_head=4, n_embd=64, block_size=64, bias=True, vocab_size=512, dropout=0.0)
    torch.save({"model": turned, "model_args": arguments, "iter_num": 3, "best_val_loss": 1.0, "config": {}}, work / "ckpt.pt")
    return work / "ckpt.pt", small.state


@row("nanoGPT's ckpt.pt, bias=False")
def nanogpt_plain(work):
    small = Small(activation_function="gelu")
    turned = {k: v.t().contiguous() if k.endswith(LINEAR) else v for k, v in small.state.items() if not k.endswith(".bias")}
    arguments = dict(n_layer=2, n_head=4, n_embd=64, block_size=64, bias=False, vocab_size=512, dropout=0.0)
    torch.save({"model": turned, "model_args": arguments, "iter_num": 3, "best_val_loss": 1.0, "config": {}}, work / "ckpt.pt")
    return work / "ckpt.pt", None


@row("minGPT's state_dict: nn.Linear, masks, a head of its own")
def mingpt(work):
    small = Small(tie_word_embeddings=False)
    config_of(small, work)
    turned = {k: v.t().contiguous() if k.endswith(LINEAR) else v for k, v in small.state.items()}
    masks = {f"transformer.h.{i}.attn.bias": torch.tril(torch.ones(64, 64)).view(1, 1, 64, 64) for i in range(2)}
    torch.save(turned | masks, work / "model.pt")
    return work / "model.pt", small.state


@row("llm.c, float32")
def llmc_float32(work):
    return llmc(work, 3, torch.float32)


@row("llm.c, bf16")
def llmc_bf16(work):
    return llmc(work, 5, torch.bfloat16)


def llmc(work, version, kind):
    small = Small(dtype=kind)
    header = np.zeros(256, dtype=np.int32)
    header[:8] = [20240326, version, 64, 512, 2, 4, 64, 640]
    embedding = torch.cat([small.state["transformer.wte.weight"], torch.zeros(128, 64, dtype=kind)])
    parts = [embedding, small.state["transformer.wpe.weight"]]
    for kind in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        for end in ("weight", "bias"):
            blocks = [small.state[f"transformer.h.{i}.{kind}.{end}"] for i in range(2)]
            parts += [b.t().contiguous() if b.dim() == 2 else b for b in blocks]
    parts += [small.state["transformer.ln_f.weight"], small.state["transformer.ln_f.bias"]]
    (work / "model.bin").write_bytes(header.tobytes() + b"".join(p.contiguous().view(torch.uint8).numpy().tobytes() for p in parts))
    return work / "model.bin", small.state


def gguf_row(name, convert):
    @row(f"GGUF: {name}")
    def make(work):
        import gguf

        small = Small()
        writer = gguf.GGUFWriter(work / "x.gguf", "gpt2")
        for key, value in (("block_count", 2), ("context_length", 64), ("embedding_length", 64), ("feed_forward_length", 256)):
            getattr(writer, f"add_{key}")(value)
        writer.add_head_count(4)
        writer.add_layer_norm_eps(1e-5)
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, 2)
        for name, tensor in small.tied.items():
            stem, end = name.rsplit(".", 1)
            tensor = tensor.t().contiguous() if name.endswith(LINEAR) else tensor
            small.state[name], array, kind = convert(small.state[name], tensor)
            writer.add_tensor(f"{names.get_name(stem)}.{end}", array, raw_dtype=kind)
        small.state["lm_head.weight"] = small.state["transformer.wte.weight"]
        writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
        return work / "x.gguf", small.state


gguf_row("F32", lambda state, tensor: (state, tensor.numpy(), None))
gguf_row("F16, vectors F32", lambda s, t: (s.half(), t.half().numpy(), None) if t.dim() == 2 else (s, t.numpy(), None))


# --- frameworks -------------------------------------------------------------------------------------------------------


@row("torch.distributed.checkpoint: model")
def dcp_model(work):
    from torch.distributed import checkpoint

    small = Small()
    config_of(small, work)
    checkpoint.save({"model": small.model.state_dict()}, checkpoint_id=work / "dcp", no_dist=True)
    return work / "dcp", small.state


@row("torch.distributed.checkpoint: model and optimizer")
def dcp_all(work):
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict

    small = Small()
    config_of(small, work)
    model, optimizer = get_state_dict(small.model, small.optimizer)
    checkpoint.save({"model": model, "optimizer": optimizer, "step": 3}, checkpoint_id=work / "dcp", no_dist=True)
    return work / "dcp", small.state


@row("FSDP2: full state dicts of model and optimizer")
def fsdp(work):
    from torch import distributed
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    from torch.distributed.fsdp import fully_shard

    small = Small()
    config_of(small, work)
    distributed.init_process_group("gloo", store=distributed.FileStore(str(work / "rendezvous"), 1), rank=0, world_size=1)
    try:
        mesh = distributed.init_device_mesh("cpu", (1,))
        fully_shard(small.model, mesh=mesh)
        optimizer = torch.optim.AdamW(small.model.parameters(), lr=1e-3)
        small.model(small.rows[0]["input_ids"][None], labels=small.rows[0]["labels"][None]).loss.backward()
        optimizer.step()
        model, states = get_state_dict(small.model, optimizer, options=StateDictOptions(full_state_dict=True))
        torch.save({"model": model, "optimizer": states, "step": 1}, work / "x.pt")
        return work / "x.pt", model
    finally:
        distributed.destroy_process_group()


@row("accelerate: save_state")
def accelerate_state(work):
    from accelerate import Accelerator

    small = Small()
    config_of(small, work)
    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(small.model, small.optimizer)
    accelerator.save_state(work / "state")
    return work / "state", small.state


@row("Lightning: .ckpt")
def lightning_file(work):
    import lightning

    small = Small()
    config_of(small, work)

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = small.model

        def training_step(self, batch, _):
            return self.net(batch, labels=batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    data = torch.utils.data.DataLoader(torch.stack([r["input_ids"] for r in small.rows]), batch_size=2)
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, default_root_dir=work)
    trainer.fit(Module(), data)
    trainer.save_checkpoint(work / "x.ckpt")
    return work / "x.ckpt", {k: v.detach().clone() for k, v in small.model.state_dict().items()}


def adapter_row(name, base=None, adapter_dtype=None, refused=False, **settings):
    """An adapter of PEFT with every one of its tensors random; expected is what its own merge_and_unload makes."""

    @row(f"PEFT: {name}")
    def make(work):
        import peft

        small = Small(**(base or {}))
        small.model.save_pretrained(work / "base")
        model = GPT2LMHeadModel.from_pretrained(work / "base", dtype=torch.float32)
        settings.setdefault("target_modules", ["c_attn"])
        wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.05)
        if adapter_dtype:
            wrapped.to(adapter_dtype)
        wrapped.save_pretrained(work / "adapter")
        if refused:
            return work / "adapter", None
        return work / "adapter", peft_merges(work / "base", work / "adapter")


def peft_merges(base, adapter):
    import peft

    model = GPT2LMHeadModel.from_pretrained(base, dtype=torch.float32)
    return dict(peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())


adapter_row("LoRA")
adapter_row("LoRA, rslora, all linear layers", use_rslora=True, r=6, lora_alpha=17, target_modules="all-linear")
adapter_row("LoRA, rank_pattern and alpha_pattern", r=4, target_modules=["c_attn", "c_proj", "c_fc"],
            rank_pattern={"h.0.attn.c_attn": 2, ".*mlp.c_proj": 7}, alpha_pattern={"h.1.*c_fc": 3})
adapter_row("LoRA, modules_to_save", modules_to_save=["ln_f", "wpe"])
adapter_row("LoRA, modules_to_save of the head", modules_to_save=["lm_head"])
adapter_row("LoRA, bias all", bias="all", modules_to_save=["ln_f"])
adapter_row("LoRA, bias lora_only, lora_bias", bias="lora_only", lora_bias=True)
adapter_row("LoRA, embeddings and head, tied", target_modules=["wte", "wpe", "lm_head", "c_attn"])
adapter_row("LoRA, embeddings and head, untied", base={"tie_word_embeddings": False}, target_modules=["wte", "lm_head"])
adapter_row("LoRA, layers_to_transform", target_modules=["c_fc"], layers_to_transform=[1])
adapter_row("LoRA, in bf16, base in bf16", base={"dtype": torch.bfloat16}, adapter_dtype=torch.bfloat16)
adapter_row("DoRA", refused=True, use_dora=True)
adapter_row("LoRA, PiSSA", refused=True, init_lora_weights="pissa")


@row("PEFT: IA3")
def ia3(work):
    import peft

    Small().model.save_pretrained(work / "base")
    model = GPT2LMHeadModel.from_pretrained(work / "base")
    settings = peft.IA3Config(task_type="CAUSAL_LM", target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True)
    peft.get_peft_model(model, settings).save_pretrained(work / "adapter")
    return work / "adapter", None


@row("PEFT: Trainer's output folder")
def adapter_trainer(work):
    import peft

    small = Small()
    small.model.save_pretrained(work / "base")
    small.model = peft.get_peft_model(
        GPT2LMHeadModel.from_pretrained(work / "base"), peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"]))
    train(work, small)
    return work / "out", peft_merges(work / "base", work / "out/checkpoint-4")


@row("ONNX")
def onnx_file(work):
    import onnx

    tensor = onnx.numpy_helper.from_array(np.ones((2, 2), dtype=np.float32), "w")
    graph = onnx.helper.make_graph([], "g", [], [], initializer=[tensor])
    onnx.save(onnx.helper.make_model(graph), work / "x.onnx")
    return work / "x.onnx", None


@row("HDF5")
def hdf5(work):
    import h5py

    with h5py.File(work / "x.h5", "w") as file:
        file["a/w"] = np.ones(3)
    return work / "x.h5", None


@row("torch.export: .pt2")
def pt2(work):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),))
    torch.export.save(program, work / "x.pt2")
    return work / "x.pt2", None


@row("TorchScript")
def script(work):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(work / "x.pt")
    return work / "x.pt", None


@row("gzip of a .pt file")
def gzipped(work):
    torch.save(Small().state, work / "x.pt")
    subprocess.run(["gzip", work / "x.pt"], check=True)
    return work / "x.pt.gz", None


@row("zip")
def zipped(work):
    small = Small()
    small.model.save_pretrained(work / "model")
    shutil.make_archive(str(work / "x"), "zip", work, "model")
    return work / "x.zip", small.state


@row("zip as macOS makes it: __MACOSX, .DS_Store")
def mac(work):
    import zipfile

    small = Small()
    small.model.save_pretrained(work / "model")
    with zipfile.ZipFile(work / "x.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("model/", "")
        bundle.writestr("model/.DS_Store", b"\0\0\0\1Bud1")
        for file in sorted((work / "model").iterdir()):
            bundle.write(file, f"model/{file.name}")
            bundle.writestr(f"__MACOSX/model/._{file.name}", b"\0\5\x16\7")
    return work / "x.zip", small.state


@row("tar.zst")
def tar_zst(work):
    small = Small()
    small.model.save_pretrained(work / "model")
    subprocess.run("tar --format=ustar -cf - model | zstd -q -o x.tar.zst", shell=True, cwd=work, check=True)
    return work / "x.tar.zst", small.state


@row("tar")
def tar(work):
    Small().model.save_pretrained(work / "model")
    subprocess.run(["tar", "cf", "x.tar", "model"], cwd=work, check=True)
    return work / "x.tar", None


@row("tar.gz")
def tar_gz(work):
    Small().model.save_pretrained(work / "model")
    subprocess.run(["tar", "czf", "x.tar.gz", "model"], cwd=work, check=True)
    return work / "x.tar.gz", None


# --- and back ---------------------------------------------------------------------------------------------------------


def export_row(name, load, *options):
    @row(f"export {name}")
    def make(work):
        small = Small(groups=two_groups)
        config_of(small, work)
        torch.save({"model": small.model.state_dict(), "optimizer": small.optimizer.state_dict(), "step": 3}, work / "x.pt")
        code, said = ckptd("import", "--from", work / "x.pt", "--model", work / "config", work / "first")
        assert code == 0, said
        code, said = ckptd("export", work / "first", "latest", "--format", name, *options, work / f"out.{name}")
        assert code == 0, said
        same(load(work / f"out.{name}", small), small.state)
        return None, None


def load_dcp(out, small):
    from torch.distributed import checkpoint

    state = {"model": GPT2LMHeadModel(small.model.config).state_dict()}
    checkpoint.load(state, checkpoint_id=out, no_dist=True)
    return state["model"]


def load_gguf(out, small):
    import gguf  # noqa: F401

    return GPT2LMHeadModel.from_pretrained(out.parent, gguf_file=out.name, config=small.model.config).state_dict()


def load_nanogpt(out, _):
    model = torch.load(out, weights_only=True)["model"]
    return {name: t.t() if name.endswith(LINEAR) else t for name, t in model.items()}


def load_bundle(unpack):
    def load(out, _):
        folder = out.parent / f"{out.name}-unpacked"
        folder.mkdir()
        subprocess.run([*unpack(out, folder)], check=True, capture_output=True)
        return GPT2LMHeadModel.from_pretrained(folder).state_dict()

    return load


def load_safetensors(out, _):
    from safetensors.torch import load_file

    return load_file(out)


export_row("safetensors", load_safetensors)
export_row("zip", load_bundle(lambda out, folder: (sys.executable, "-m", "zipfile", "-e", out, folder)))
export_row("tar.zst", load_bundle(lambda out, folder: ("tar", "--zstd", "-xf", out, "-C", folder)))
export_row("hf", lambda out, _: GPT2LMHeadModel.from_pretrained(out).state_dict())
export_row("pt", lambda out, _: torch.load(out, weights_only=True))
export_row("trainer", lambda out, _: GPT2LMHeadModel.from_pretrained(out / "checkpoint-3").state_dict())
export_row("dcp", load_dcp, "--with-optimizer")
export_row("gguf", load_gguf)
export_row("nanogpt", load_nanogpt)


# --- the run ----------------------------------------------------------------------------------------------------------


def ckptd(*arguments):
    run = subprocess.run([CKPTD, *map(str, arguments)], capture_output=True, text=True)
    return run.returncode, (run.stdout + run.stderr).strip()


def same(got, expected):
    for name, tensor in expected.items():
        if name == "lm_head.weight" and name not in got:
            continue
        assert torch.equal(got[name].float(), tensor.float()), f"{name} differs"


def verdict(make, work):
    source, expected = make(work)
    if source is None:
        return "right", "loaded by its library, bit for bit"
    model = ["--model", work / "config"] if (work / "config").exists() else []
    code, said = ckptd("import", "--from", source, *model, work / "store")
    if code:
        commands = re.findall(r"`([^`]+)`", said)
        if not commands or source.name not in said:
            return "refused-", said
        run = subprocess.run(["bash", "-c", commands[-1]], capture_output=True, text=True, cwd=work)
        return ("refused+", commands[-1].split(" -c ")[0].replace(f"{work}/", "")) if run.returncode == 0 else ("refused-", said + run.stderr[-300:])
    if expected is None:
        return "silent", f"taken: {said}"
    code, said = ckptd("check", work / "store", "latest", "--json")
    if code:
        return "silent", said[-300:]
    code, said = ckptd("export", work / "store", "latest", "--format", "pt", work / "back.pt")
    if code:
        return "refused-", said
    try:
        same(torch.load(work / "back.pt", weights_only=True), expected)
    except (AssertionError, KeyError) as wrong:
        return "silent", str(wrong)
    return "right", "every tensor bit for bit"


def main():
    results, only = [], os.environ.get("ROWS", "")
    for name, make in (chosen for chosen in ROWS if only in chosen[0]):
        work = Path(tempfile.mkdtemp())
        try:
            results.append((name, *verdict(make, work)))
        except ImportError as missing:
            results.append((name, "not run", f"{missing.name} cannot be imported"))
        except Exception as wrong:  # a row that cannot be made is no verdict on ckptd
            results.append((name, "not run", "".join(traceback.format_exception_only(wrong)).strip()[-200:]))
        finally:
            shutil.rmtree(work, ignore_errors=True)
        print(*results[-1], sep=" | ", flush=True)
    counts = {kind: sum(result[1] == kind for result in results) for kind in ("right", "refused+", "refused-", "silent", "not run")}
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]), results, counts)
    print(json.dumps(counts))
    return 1 if counts["silent"] or counts["refused-"] else 0


def write(path, results, counts):
    versions = []
    for package in VERSIONS:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            pass
    lines = ["# The matrix of formats", "", "Made by `make formats`; do not edit. Each row was made by the real library, imported, checked, exported and held",
             "against its source. Versions: " + ", ".join(versions) + ".", "", ", ".join(f"{n} {kind}" for kind, n in counts.items()) + ".", "",
             "| source | verdict | seen |", "|---|---|---|"]
    clean = lambda text: " ".join(text.split()).replace("|", "\\|")[:160]
    lines += [f"| {name} | {kind} | {clean(seen)} |" for name, kind, seen in results]
    path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
