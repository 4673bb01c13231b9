"""What exporting GPT-2 costs, beside transformers doing the same: `bench/formats.py [PRESET]` prints a table in Markdown.

The model is GPT-2 with 124 M parameters and AdamW's state after a few steps on synthetic tokens (PRESET: gpt2). Each time
is the median of RUNS; sizes are of what was written. Set-up is the Makefile's."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = 3
ROUNDS = 7
SETTLES_S = 1.5
STEPS = 4


def ckptd(*arguments):
    done = subprocess.run([ROOT / "target/release/ckptd", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"ckptd {' '.join(map(str, arguments))}: {done.stderr}")
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


def timed(run):
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - began)
    return statistics.median(times), result


def train(work, preset):
    """A job of a few steps; returns its store."""
    import numpy

    numpy.random.default_rng(1).zipf(1.3, 200_000).clip(max=4000).astype("<u2").tofile(work / "tokens.bin")
    (work / "job.toml").write_text(
        f'[job]\nstore = "store"\n[model]\npreset = "{preset}"\ndropout = 0.0\n[data]\ntokens = "tokens.bin"\n'
        f"[snapshot]\nevery_steps = {STEPS}\n"
        f"[train]\nsteps = {STEPS}\nbatch_size = 2\nsequence_length = 64\nwarmup_steps = 1\neval_every = 0\n"
    )
    ckptd("run", work / "job.toml", "--quiet")
    return work / "store"


def size(bytes):
    return f"{bytes / 1e6:.0f} MB"


def row(what, seconds, written, note=""):
    print(f"| {what} | {'' if seconds is None else f'{seconds:.2f} s'} | {size(written)} | {note} |", flush=True)


def decode(store):
    """The time to read and check the whole snapshot, and what is in it."""
    found = ckptd("check", store, "latest", "--json")
    began = time.perf_counter()
    ckptd("verify", store, "latest", "--json")
    return time.perf_counter() - began, found


def main():
    preset = sys.argv[1] if len(sys.argv) > 1 else "gpt2"
    base = ROOT / "bench/out"
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as folder:
        work = Path(folder)
        store = train(work, preset)
        decode_seconds, checked = decode(store)
        raw = checked["raw_bytes"]
        print(f"{preset}: {checked['parameters']:,} parameters, 4 P = {size(checked['parameter_bytes'])}, "
              f"state with AdamW's moments {size(raw)}\n")
        print("| what | time | written | r and remarks |\n|---|---|---|---|")
        row("snapshot", None, checked["file_bytes"], f"r = {checked['r']:.4f} of the whole state")
        row("read and check all of it", decode_seconds, checked["file_bytes"], "`ckptd verify`, past the page cache")

        for name, options in {
            "hf": ["--format", "hf"],
            "hf with optimizer": ["--format", "hf", "--with-optimizer"],
            "pt": ["--format", "pt"],
            "pt, bf16": ["--format", "pt", "--dtype", "bf16"],
            "safetensors": ["--format", "safetensors"],
            "zip": ["--format", "zip"],
            "tar.zst": ["--format", "tar.zst"],
        }.items():
            out = work / name.replace(" ", "-")
            seconds, report = timed(lambda: ckptd("export", store, "latest", *options, out, "--force", "--json"))
            packed = report["bytes"] != report["raw_bytes"]
            note = f"r = {report['r']:.4f} of {size(report['raw_bytes'])}" if packed else ""
            row(f"export {name}", seconds, report["bytes"], note)
        for name in ("zip", "tar.zst"):
            out = work / f"un-{name}"
            seconds, report = timed(lambda: ckptd("unpack", work / name, out, "--force", "--json"))
            row(f"unpack {name}", seconds, report["raw_bytes"])
        model = transformers(work)
        side_by_side(work, store, model, checked["parameter_bytes"] / raw)


def side_by_side(work, store, model, share):
    """An export to hf and what it takes the place of, in turn, each to a name that is free."""
    rounds = []
    for _ in range(ROUNDS):
        for name in ("hf-side", "saved-side"):
            shutil.rmtree(work / name, ignore_errors=True)
        os.sync()
        # The device is still at work on the removals for a while.
        time.sleep(SETTLES_S)
        began = time.perf_counter()
        ckptd("export", store, "latest", "--format", "hf", work / "hf-side", "--json")
        ours = time.perf_counter() - began
        began = time.perf_counter()
        # Exports of the model read its parameters alone.
        ckptd("verify", store, "latest", "--json")
        decoded = (time.perf_counter() - began) * share
        began = time.perf_counter()
        model.save_pretrained(work / "saved-side")
        saved = time.perf_counter() - began
        sync(work / "saved-side")
        rounds.append((ours, decoded, saved, time.perf_counter() - began))
    ours, decoded, saved, synced = (statistics.median(times) for times in zip(*rounds))

    def verdict(theirs):
        return f"{theirs + decoded:.2f} s. No slower: {'yes' if ours <= theirs + decoded else 'NO'}"

    print(f"\nIn turn, {ROUNDS} times: export hf, durable, {ours:.2f} s; reading the parameters {decoded:.2f} s and\n"
          f"save_pretrained {saved:.2f} s, not durable: {verdict(saved)}; with fsync {synced:.2f} s: {verdict(synced)}.")


def sync(folder):
    # An export is on the disk when it is done; this has to be, too.
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def transformers(work):
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    model = AutoModelForCausalLM.from_pretrained(work / "hf")
    out = work / "saved"

    def save():
        model.save_pretrained(out)
        sync(out)

    synced, _ = timed(save)
    row("transformers save_pretrained", synced, sum(p.stat().st_size for p in out.iterdir()), "and fsync")
    plain, _ = timed(lambda: model.save_pretrained(out))
    row("transformers save_pretrained", plain, sum(p.stat().st_size for p in out.iterdir()), "without fsync")
    seconds, _ = timed(lambda: torch.save(model.state_dict(), work / "saved.pt"))
    row("torch.save of the state dict", seconds, (work / "saved.pt").stat().st_size, "without fsync")
    return model


main()
