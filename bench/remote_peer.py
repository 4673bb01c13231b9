"""PyTorch's side of `bench/remote.py`, with no import that it does not need.

`remote_peer.py save FILE PRESET TOKENS`: one step from random weights, then torch.save of the whole state.
`remote_peer.py resume FILE PRESET TOKENS`: torch.load of it, and one step more."""

import os
import sys

import numpy
import torch
from transformers import GPT2Config, GPT2LMHeadModel

MINI = {"vocab_size": 4096, "n_positions": 256, "n_embd": 192, "n_layer": 4, "n_head": 6}
POSITIONS = 128


def main():
    action, file, preset, tokens = sys.argv[1:5]
    torch.set_num_threads(int(os.environ["BENCH_THREADS"]))
    config = GPT2Config(**(MINI if preset == "gpt2-mini" else {}))
    if action == "save":
        model = GPT2LMHeadModel(config)
    else:
        # Weights that are replaced at once need not be drawn.
        with torch.device("meta"):
            model = GPT2LMHeadModel(config)
        state = torch.load(file, weights_only=True, mmap=True)
        model.load_state_dict(state["model"], assign=True)
        model.tie_weights()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    if action == "resume":
        optimizer.load_state_dict(state["optimizer"])
    rows = numpy.memmap(tokens, numpy.uint16, mode="r")[:POSITIONS].astype(numpy.int64)
    ids = torch.from_numpy(rows[None])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    if action == "save":
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)


main()
