"""A checkpoint of Trainer in and out: `bench/trainer.py [PRESET]` prints a table in Markdown.

The checkpoint is a real Trainer's of GPT-2 with random weights (PRESET: gpt2) after one step. In each round, in turn:

- ckptd imports it (verified), and exports that again with the optimiser; both are durable when they end;
- one Python process, which has the model already, does what takes the place of either: torch.load of the optimiser's
  state, save_pretrained, torch.save of it, fsync of all of it. Its start and its imports are not counted.

Files are read from the disk, not from the page cache. Memory is the most anonymous memory (RssAnon) of the process, asked
for every 5 ms; of Python all but what its imports take. Shares are medians of those of the rounds."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CKPTD = os.environ.get("CKPTD", str(ROOT / "target/release/ckptd"))
ROUNDS = 5
SAMPLES_S = 0.005
# The device is still at work on removals for a while.
SETTLES_S = 1.5
BOUNDS = {"import": 1.0, "export": 0.5, "import, memory": 0.3, "export, memory": 0.3}


def main():
    preset = sys.argv[1] if len(sys.argv) > 1 else "gpt2"
    base = ROOT / "bench/out"
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as folder:
        work = Path(folder)
        subprocess.run([sys.executable, __file__, "--make", preset, work], check=True, capture_output=True)
        source = work / "trainer/checkpoint-1"
        rounds = [one_round(work, source) for _ in range(ROUNDS)]
    size = sum(rounds[0]["written"].values())
    print(f"{preset}, a checkpoint of {size / 1e6:.0f} MB, {ROUNDS} rounds; medians\n")
    print("| what | ckptd | Python | share | at most | |\n|---|---:|---:|---:|---:|---|")
    for what, bound in BOUNDS.items():
        ours, theirs = ([r[side][what] for r in rounds] for side in ("ours", "theirs"))
        share = statistics.median(a / b for a, b in zip(ours, theirs))
        unit = "MB" if "memory" in what else "s"
        ours, theirs = (f"{statistics.median(values):.{0 if unit == 'MB' else 2}f} {unit}" for values in (ours, theirs))
        print(f"| {what} | {ours} | {theirs} | {share:.2f} | {bound} | {'yes' if share <= bound else 'NO'} |")


def one_round(work, source):
    for name in ("store", "exported", "saved"):
        shutil.rmtree(work / name, ignore_errors=True)
    ours = {}
    settle(source)
    ours["import"], ours["import, memory"] = watched([CKPTD, "import", "--from", source, work / "store"])
    settle(work / "store/snapshots")
    command = [CKPTD, "export", work / "store", "latest", "--format", "hf", "--with-optimizer", work / "exported"]
    ours["export"], ours["export, memory"] = watched(command)
    written = {path.name: path.stat().st_size for path in source.iterdir()}
    seconds, memory = python_saves(source, work / "saved")
    theirs = {"import": seconds, "export": seconds, "import, memory": memory, "export, memory": memory}
    return {"ours": ours, "theirs": theirs, "written": written}


def settle(folder):
    """Lets the disk come to rest, and the page cache forget the files of `folder`."""
    os.sync()
    time.sleep(SETTLES_S)
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class MemoryWatch:
    """The most anonymous memory of a process, in MB, from `start` on."""

    def __init__(self, pid):
        self.pid, self.most, self.ended = pid, 0.0, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def now(self):
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except OSError:
            return 0.0
        lines = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        return int(lines[0].split()[1]) / 1000 if lines else 0.0

    def run(self):
        while not self.ended.wait(SAMPLES_S):
            self.most = max(self.most, self.now())

    def stop(self):
        self.ended.set()
        self.thread.join()
        return self.most


def watched(command):
    began = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    watch = MemoryWatch(process.pid)
    watch.thread.start()
    said = process.communicate()[1]
    seconds = time.perf_counter() - began
    memory = watch.stop()
    if process.returncode:
        sys.exit(f"{command}: {said.decode()}")
    return seconds, memory


def python_saves(source, out):
    process = subprocess.Popen(
        [sys.executable, __file__, "--save", source, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    watch = MemoryWatch(process.pid)
    assert process.stdout.readline() == "imported\n"
    before = watch.now()
    watch.thread.start()
    process.stdin.write("load\n"), process.stdin.flush()
    assert process.stdout.readline() == "ready\n"
    settle(source)
    process.stdin.write("go\n"), process.stdin.flush()
    seconds = json.loads(process.stdout.readline())
    process.wait()
    return seconds, watch.stop() - before


def save(source, out):
    import torch
    from transformers import GPT2LMHeadModel

    print("imported", flush=True)
    sys.stdin.readline()
    model = GPT2LMHeadModel.from_pretrained(source)
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    state = torch.load(source / "optimizer.pt", weights_only=True)
    model.save_pretrained(out)
    torch.save(state, out / "optimizer.pt")
    for path in [*out.iterdir(), out]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    print(json.dumps(time.perf_counter() - began), flush=True)


def make(preset, work):
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    shapes = {"gpt2": {}, "small": dict(n_embd=64, n_layer=2, n_head=4, vocab_size=512, bos_token_id=0, eos_token_id=0)}
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(**shapes[preset]))
    row = torch.randint(0, model.config.vocab_size, (16,))
    arguments = TrainingArguments(
        str(work / "trainer"), max_steps=1, save_steps=1, per_device_train_batch_size=1, report_to=[], use_cpu=True, disable_tqdm=True)
    Trainer(model=model, args=arguments, train_dataset=[{"input_ids": row, "labels": row}]).train()


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
    if sys.argv[1:2] == ["--make"]:
        make(sys.argv[2], Path(sys.argv[3]))
    elif sys.argv[1:2] == ["--save"]:
        save(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        main()
