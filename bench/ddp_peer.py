"""One rank of a PyTorch training, as torchrun's environment places it: gloo, one thread.

`ddp_peer.py train TOKENS PRESET POSITIONS MICRO_BATCHES STEPS`: GPT-2 under DistributedDataParallel, which exchanges with
the last micro-batch of a step; rank 0 prints the seconds of each step. `ddp_peer.py allreduce VALUES ROUNDS`: the sum of
as many float32 values; rank 0 prints the seconds of each round.
"""

import contextlib
import json
import sys
import time

import numpy
import peers
import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel


def train(tokens, preset, positions, micro_batches, steps):
    tokens = numpy.memmap(tokens, numpy.uint16, mode="r")
    model, optimizer = peers.model_and_optimizer(preset)
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    random, share, seconds = numpy.random.default_rng(rank), micro_batches // ranks, []
    for _ in range(steps):
        torch.distributed.barrier()
        began = time.perf_counter()
        for index in range(share):
            start = random.integers(0, len(tokens) - positions)
            ids = torch.from_numpy(tokens[start : start + positions].astype(numpy.int64))[None]
            with contextlib.nullcontext() if index == share - 1 else parallel.no_sync():
                (parallel(input_ids=ids, labels=ids).loss / share).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), peers.CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        torch.distributed.barrier()
        seconds.append(time.perf_counter() - began)
    return seconds


def allreduce(values, rounds):
    own, seconds = torch.ones(values), []
    for round_number in range(rounds + 1):
        own.fill_(1.0)
        torch.distributed.barrier()
        began = time.perf_counter()
        torch.distributed.all_reduce(own)
        torch.distributed.barrier()
        # The first one finds connections and memory that were not used before.
        if round_number:
            seconds.append(time.perf_counter() - began)
    return seconds


def main():
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    kind, *rest = sys.argv[1:]
    if kind == "train":
        tokens, preset, *numbers = rest
        seconds = train(tokens, preset, *map(int, numbers))
    else:
        seconds = allreduce(*map(int, rest))
    if torch.distributed.get_rank() == 0:
        print(json.dumps({"seconds": seconds}), flush=True)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
