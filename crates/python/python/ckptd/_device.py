"""Copies of a GPU's tensors in the host's memory, made beside the training.

Invariant: a copy has what its tensor was at the last boundary. It begins after all that the GPU was given before that, and
what the GPU is given after `hold` begins after the copy. Nothing here waits for a GPU but a copy's `wait`. Deliberately not
here: when a boundary is (`_run`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch


@dataclasses.dataclass
class HostCopy:
    """Memory that the GPU fills."""

    memory: torch.Tensor  # pinned, row by row
    done: Any  # an event

    def wait(self) -> torch.Tensor:
        """The memory, once it is filled."""
        self.done.synchronize()
        return self.memory


class HostCopies:
    """Makes them. `bound`, `in_order` and `hold` are called by the thread that trains."""

    def __init__(self, cuda: Any = torch.cuda) -> None:
        self._cuda = cuda
        self._sides: dict[torch.device, Any] = {}
        self._bounds: dict[torch.device, Any] = {}
        self._begun: dict[torch.device, Any] = {}

    def takes(self, tensor: torch.Tensor) -> bool:
        """Whether it is on a GPU whose streams are known."""
        return tensor.is_cuda

    def bound(self, tensors: Iterable[torch.Tensor]) -> None:
        """A step boundary: what the GPU was given until now is the state."""
        self._bounds = {device: self._mark(device) for device in {t.device for t in tensors if self.takes(t)}}

    def in_order(self, tensor: torch.Tensor) -> HostCopy | None:
        """A copy in the training's own stream, if it is on a GPU: of what the next forward pass may write."""
        if not self.takes(tensor):
            return None
        return self._copy(tensor, self._cuda.current_stream(tensor.device))

    def beside(self, tensor: torch.Tensor) -> HostCopy | None:
        """A copy in a stream of its own, if it is on a GPU, on any thread: of what nobody writes before `hold`."""
        if not self.takes(tensor):
            return None
        device = tensor.device
        side = self._sides.get(device)
        if side is None:
            side = self._sides[device] = self._cuda.Stream(device)
        # A GPU that has nothing but an optimiser's state had no mark at the boundary.
        side.wait_event(self._bounds.get(device) or self._mark(device))
        made = self._copy(tensor, side)
        self._begun[device] = made.done
        return made

    def hold(self) -> None:
        """What the training gives the GPU from now on waits there for the copies that were begun."""
        for device, done in self._begun.items():
            self._cuda.current_stream(device).wait_event(done)
        self._begun.clear()

    def _mark(self, device: torch.device) -> Any:
        event = self._cuda.Event()
        event.record(self._cuda.current_stream(device))
        return event

    def _copy(self, tensor: torch.Tensor, stream: Any) -> HostCopy:
        memory, done = self._memory(tensor), self._cuda.Event()
        with self._cuda.stream(stream):
            self._move(tensor.detach(), memory)
            done.record(stream)
        return HostCopy(memory, done)

    def _memory(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)

    def _move(self, tensor: torch.Tensor, memory: torch.Tensor) -> None:
        memory.copy_(tensor.resolve_conj().resolve_neg(), non_blocking=True)
        # Its memory is no other tensor's before the copy is over.
        tensor.record_stream(self._cuda.current_stream(tensor.device))
