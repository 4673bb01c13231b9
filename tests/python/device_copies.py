"""Copies of a GPU's tensors, made beside the training, in the order in which a GPU may do what it is given.

The GPU is a stand-in: what streams are given is done later, in any order that their events allow. Whatever that order is, a
snapshot has the state of its boundary, and nothing waits for the GPU but the thread of the snapshot. No GPU was there for
these tests: that CUDA keeps what the stand-in does is taken from its documentation.
"""

import contextlib
import random
import threading
from collections import deque

import torch
from ckptd._device import HostCopies
from ckptd._loader import LoaderPosition
from ckptd._state import TrainingState
from torch import nn


class FakeEvent:
    def __init__(self, gpu):
        self.gpu, self.is_done = gpu, True

    def record(self, stream):
        self.is_done = False
        stream.give(lambda: setattr(self, "is_done", True))

    def synchronize(self):
        assert threading.current_thread() is not self.gpu.trains or self.gpu.may_wait, "the training waits for the GPU"
        while not self.is_done:
            assert self.gpu.work(), "the streams wait for one another"


class FakeStream:
    def __init__(self):
        self.queue = deque()

    def give(self, act, after=None):
        self.queue.append((act, after))

    def wait_event(self, event):
        self.give(lambda: None, event)


class FakeGpu:
    """What `torch.cuda` has of streams and events. `work` does one thing of those that may be done now."""

    def __init__(self, rng):
        self.rng, self.trains, self.may_wait = rng, threading.current_thread(), False
        self.streams = [FakeStream()]
        self.current = self.streams[0]

    def Event(self):
        return FakeEvent(self)

    def Stream(self, _):
        self.streams.append(FakeStream())
        return self.streams[-1]

    def current_stream(self, _):
        return self.current

    @contextlib.contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def work(self):
        ready = [s for s in self.streams if s.queue and (s.queue[0][1] is None or s.queue[0][1].is_done)]
        if ready:
            act, _ = self.rng.choice(ready).queue.popleft()
            act()
        return bool(ready)


class FakeCopies(HostCopies):
    """Takes the CPU's tensors for a GPU's."""

    def takes(self, tensor):
        return True

    def _memory(self, tensor):
        return torch.full(tensor.shape, -1, dtype=tensor.dtype)

    def _move(self, tensor, memory):
        self._cuda.current.give(lambda: memory.copy_(tensor))


class FakeTraining:
    """A model whose parameters, buffer and moments all have the number of the step; a GPU is given its updates."""

    def __init__(self, gpu, copies):
        self.gpu, self.step = gpu, 0
        self.model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.fill(self.moments() + list(self.model.parameters()), 0)
        self.fill(list(self.model.buffers()), 0)
        self.state = TrainingState(self.model, [self.optimizer], [], {})
        self.state.copies = copies(gpu)

    def moments(self):
        return [value for state in self.optimizer.state.values() for value in state.values()]

    def fill(self, tensors, number):
        for tensor in tensors:
            tensor.data.fill_(number)

    def forward(self):
        number = self.step + 1
        self.gpu.current.give(lambda: self.fill(list(self.model.buffers()), number))

    def update(self):
        number = self.step = self.step + 1
        self.state.copies.hold()
        self.gpu.current.give(lambda: self.fill(self.moments() + list(self.model.parameters()), number))


def numbers(capture):
    """All that a snapshot has of the tensors: those of a file of their own, and those in the text."""
    found = [number for item in capture.items for number in item.memory.flatten().tolist()]
    text = dict(capture.settings)["python.optimizer.0"]
    steps = text.count('"$tensor":["float32",[],"')
    return found, steps, text


def one_order(seed, copies):
    rng = random.Random(seed)
    gpu = FakeGpu(rng)
    training, flights = FakeTraining(gpu, copies), []
    for _ in range(6):
        for act in (training.forward, training.update):
            act()
            for _ in range(rng.randrange(4)):
                gpu.work()
        boundary = training.state.boundary(training.step, LoaderPosition(), {})
        if rng.random() < 0.7:
            flights.append((training.step, training.state.collect(boundary)))
        for _ in range(rng.randrange(6)):
            gpu.work()
    # A snapshot's own thread waits for the GPU.
    gpu.may_wait = True
    for step, collected in flights:
        found, small, text = numbers(training.state.describe(collected, 1))
        assert set(found) == {step}, (seed, step, sorted(set(found)))
        written = torch.tensor(float(step)).numpy().tobytes().hex()
        assert small == 4 and text.count(f'[],"{written}"') == 4, (seed, step, text)
    return len(flights)


class NoHold(FakeCopies):
    """Without the order that `hold` gives: what the test is for."""

    def hold(self):
        self._begun.clear()


def main():
    made = sum(one_order(seed, FakeCopies) for seed in range(400))
    assert made > 1000, made
    torn = 0
    for seed in range(50):
        try:
            one_order(seed, NoHold)
        except AssertionError:
            torn += 1
    assert torn > 0, "the stand-in's orders tear nothing, and so show nothing"
    print(f"{made} snapshots in 400 orders, each of its boundary; without the hold {torn} of 50 are torn")


main()
