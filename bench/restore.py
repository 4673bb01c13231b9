"""Restores a training in PyTorch and trains one step: `restore.py KIND FOLDER PRESET ROWS POSITIONS TOKENS BEGAN`.

Prints the seconds since BEGAN, the time of its start: when the imports were done, the file was loaded, the state was in place, the
first step was done. Kinds: torch (torch.load of a state.pt), hf (from_pretrained and torch.load of optimizer.pt), ckptd
(`attach`, the script started by `ckptd run`; its load is all that it does, into the model and the optimiser).
"""

import json
import os
import pathlib
import sys
import time

#: When the process was started, as whoever started it saw it.
began = float(sys.argv[7])

import peers
import torch


def main():
    kind, folder, preset, rows, positions, tokens = sys.argv[1:7]
    folder = pathlib.Path(folder)
    torch.set_num_threads(int(os.environ.get("BENCH_THREADS", "2")))
    times = {"imported_s": time.time() - began}
    load_began = time.time()
    if kind == "torch":
        state = torch.load(folder / "state.pt", weights_only=True)
        times["load_s"] = time.time() - load_began
        trainer = peers.Trainer(tokens, preset, int(rows), int(positions))
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
    elif kind == "ckptd":
        trainer = peers.AttachedTrainer(tokens, preset, int(rows), int(positions))
        times["load_s"] = trainer.attach_s
        if trainer.run.steps_done == 0:
            sys.exit("ckptd has not resumed")
    else:
        model = peers.GPT2LMHeadModel.from_pretrained(folder)
        optimizer = torch.load(folder / "optimizer.pt", weights_only=True)
        times["load_s"] = time.time() - load_began
        trainer = peers.Trainer(tokens, preset, int(rows), int(positions), model)
        trainer.optimizer.load_state_dict(optimizer)
    times["in_place_s"] = time.time() - began
    trainer.step()
    times["first_step_s"] = time.time() - began
    print(json.dumps({"reply": "restored", **times}), flush=True)


main()
