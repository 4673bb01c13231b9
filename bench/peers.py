"""The same training in PyTorch and transformers, and the ways to save it, under the benchmark's command.

`peers.py TOKENS FOLDER PRESET ROWS POSITIONS [attached]` answers `ready`, then obeys one line at a time on stdin:

- `train STEPS SAVE_AFTER KIND`: so many steps; after the given one (from 1; 0: none) the state is saved that way.
- `save KIND`: saves while the training rests; answers how long the training thread was blocked, and the time from the
  request until the file is durable (fsync of files and folder included, whatever the peer itself does).
- `wait KIND`: until an asynchronous save has landed; answers the time from its request until then.
- `memory STEPS KIND`: so many steps without a save and as many with one after the first; answers the peaks of both.

Kinds: torch (torch.save), torch+fsync, dcp (torch.distributed.checkpoint.async_save, its staging memory kept from one
save to the next), safetensors (save_file), hf (save_pretrained and optimizer.pt); ckptd, where the script is `attached`
and `ckptd run` has started it. Model and optimiser are the fastest eager ones there are: GPT2LMHeadModel with SDPA,
AdamW(fused=True), or the variant of AdamW that BENCH_OPTIMIZER names.
"""

import json
import os
import pathlib
import resource
import shutil
import sys
import threading
import time
import warnings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
import numpy
import torch
import torch.distributed
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

warnings.filterwarnings("ignore")
logging.set_verbosity_error()
logging.disable_progress_bar()

SHAPES = {
    "gpt2": {},
    "gpt2-mini": {
        "vocab_size": 4096, "n_positions": 256, "n_embd": 192, "n_layer": 4, "n_head": 6,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
}
# As config/ckptd.toml's defaults, which bench/run.py gives the worker, too.
LEARNING_RATE, WEIGHT_DECAY, BETAS, CLIP = 3e-4, 0.1, (0.9, 0.95), 1.0


def model_and_optimizer(preset, model=None):
    torch.manual_seed(1337)
    model = model or GPT2LMHeadModel(GPT2Config(**SHAPES[preset]))
    model.train()
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}]
    variant = {os.environ.get("BENCH_OPTIMIZER", "fused"): True}
    return model, torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, **variant)


class Trainer:
    def __init__(self, tokens, preset, rows, positions, model=None):
        self.tokens = numpy.memmap(tokens, numpy.uint16, mode="r")
        self.rows, self.positions = rows, positions
        self.model, self.optimizer = model_and_optimizer(preset, model)
        self.random = numpy.random.default_rng(1337)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / 10))

    def step(self):
        starts = self.random.integers(0, len(self.tokens) - self.positions - 1, self.rows)
        rows = [self.tokens[start : start + self.positions].astype(numpy.int64) for start in starts]
        ids = torch.from_numpy(numpy.stack(rows))
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return float(loss.detach())

    def state(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}


class AttachedTrainer(Trainer):
    """The same training with ckptd's lines in it."""

    def __init__(self, *arguments):
        import ckptd

        super().__init__(*arguments)
        began = time.perf_counter()
        self.run = ckptd.attach(self.model, self.optimizer, scheduler=self.schedule)
        self.attach_s = time.perf_counter() - began
        self.boundary_ms = []

    def step(self):
        loss = super().step()
        began = time.perf_counter()
        self.run.step(loss=loss)
        self.boundary_ms.append((time.perf_counter() - began) * 1e3)
        return loss


class KeptStager(DefaultStager):
    """DCP's default staging, whose memory async_save would give back after every save, only to fault it in again."""

    def __init__(self):
        super().__init__(StagingOptions(False, False, False, False))
        self._state_dict_stager.close = lambda: None

    def close(self):
        pass


class Saver:
    """Saves to a fresh place each time, and removes what was there before the clock runs."""

    def __init__(self, trainer, folder):
        self.trainer, self.folder = trainer, folder
        self.stager, self.future, self.flight, self.asked, self.landed = None, None, None, 0.0, None

    def begin(self, kind):
        """Seconds that the training thread is blocked."""
        self.landed = None
        if kind == "ckptd":
            return self.attached_save()
        name = kind.replace("+", "-")
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        sync(self.folder)
        self.asked = time.perf_counter()
        if kind == "dcp":
            self.async_save(place)
        else:
            getattr(self, kind.split("+")[0])(place)
            if kind.endswith("+fsync"):
                sync(place)
        return time.perf_counter() - self.asked

    def finish(self, kind):
        """Seconds from the request until it is durable."""
        if kind == "ckptd":
            self.flight.over.wait()
            self.noting.join()
            return self.landed
        place = self.folder / kind.replace("+", "-")
        if self.future is not None:
            self.future.result()
            self.future = None
        began = time.perf_counter()
        sync(place)
        synced = time.perf_counter()
        # What landed while the training went on was not waited for.
        return synced - self.asked if self.landed is None else self.landed + synced - began

    def attached_save(self):
        """As ckptd's daemon asks for it at a step boundary."""
        self.asked = time.perf_counter()
        self.flight = self.trainer.run._begin("bench", hurried=False)
        blocked = time.perf_counter() - self.asked

        def note():
            self.flight.over.wait()
            self.landed = time.perf_counter() - self.asked

        self.noting = threading.Thread(target=note)
        self.noting.start()
        return blocked

    def stall_ms(self):
        """What the training was held up at the next update, besides."""
        return self.flight.stall_ms if self.flight else 0.0

    def torch(self, place):
        torch.save(self.trainer.state(), place / "state.pt")

    def async_save(self, place):
        self.stager = self.stager or KeptStager()
        self.future = dcp.async_save(self.trainer.state(), checkpoint_id=str(place), async_stager=self.stager)

        def note(_future):
            self.landed = time.perf_counter() - self.asked

        self.future.add_done_callback(note)

    def safetensors(self, place):
        tensors = {f"param.{name}": p.detach() for name, p in self.trainer.model.named_parameters()}
        for name, parameter in self.trainer.model.named_parameters():
            for key, moment in self.trainer.optimizer.state[parameter].items():
                tensors[f"{key}.{name}"] = moment
        save_file(tensors, place / "state.safetensors")

    def hf(self, place):
        self.trainer.model.save_pretrained(place)
        torch.save(self.trainer.optimizer.state_dict(), place / "optimizer.pt")


def sync(folder):
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


def usage():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_minflt


def peak_while(work):
    """Bytes that the process held at most, resident, while it worked."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    work()
    status = pathlib.Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def memory(trainer, saver, steps, kind):
    without = peak_while(lambda: train(trainer, saver, steps, 0, kind))

    def saved():
        train(trainer, saver, steps, 1, kind)
        saver.finish(kind)

    state = sum(t.numel() * t.element_size() for t in trainer.model.parameters())
    moments = (t for held in trainer.optimizer.state.values() for t in held.values())
    state += sum(t.numel() * t.element_size() for t in moments)
    return {"without": without, "with": peak_while(saved), "state": state}


def train(trainer, saver, steps, save_after, kind):
    (cpu, faults), began = usage(), time.perf_counter()
    blocked, losses, step_ms = None, [], []
    for index in range(1, steps + 1):
        step_began = time.perf_counter()
        losses.append(trainer.step())
        step_ms.append((time.perf_counter() - step_began) * 1e3)
        if index == save_after:
            blocked = saver.begin(kind)
    wall = time.perf_counter() - began
    cpu_after, faults_after = usage()
    return {
        "wall_s": wall, "cpu_s": cpu_after - cpu, "faults": faults_after - faults, "blocked_s": blocked,
        "step_ms": step_ms, "boundary_ms": getattr(trainer, "boundary_ms", [])[-steps:], "loss": losses[-1] if losses else None,
    }  # fmt: skip


def main():
    tokens, folder, preset, rows, positions = sys.argv[1:6]
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", RANK="0", WORLD_SIZE="1")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    kind = AttachedTrainer if sys.argv[6:] == ["attached"] else Trainer
    trainer = kind(tokens, preset, int(rows), int(positions))
    saver = Saver(trainer, pathlib.Path(folder))
    print(json.dumps({"reply": "ready"}), flush=True)
    for line in sys.stdin:
        words = line.split()
        if words[0] == "train":
            reply = train(trainer, saver, int(words[1]), int(words[2]), words[3])
        elif words[0] == "save":
            blocked = saver.begin(words[1])
            reply = {"blocked_s": blocked, "durable_s": saver.finish(words[1])}
        elif words[0] == "memory":
            reply = memory(trainer, saver, int(words[1]), words[2])
        else:
            reply = {"durable_s": saver.finish(words[1]), "stall_ms": saver.stall_ms()}
        print(json.dumps({"reply": words[0], **reply}), flush=True)


if __name__ == "__main__":
    main()
