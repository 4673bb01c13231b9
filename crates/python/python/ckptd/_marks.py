"""Whether tensors were written since a moment: by address, version counter and a few bytes of each.

Invariant: a mark costs little, so that one can be made at every step; it holds what it looks at, so that its addresses
stay valid on any thread. Deliberately not here: what follows from a write (`_run`).
"""

from __future__ import annotations

import dataclasses

import torch

from ._native import bytes_at

# What is looked at of a tensor, at its begin, in its middle and at its end.
SAMPLE_BYTES = 64


@dataclasses.dataclass(frozen=True)
class Places:
    """Where tensors lie."""

    labels: list[str]
    tensors: list[torch.Tensor]
    memories: list[torch.Tensor]  # which keep what lies there, whatever the tensors become
    addresses: list[int]
    ranges: list[tuple[int, int]]  # the bytes that are looked at, of all of them
    owners: list[int]  # whose each range is

    @classmethod
    def of(cls, labels: list[str], tensors: list[torch.Tensor]) -> Places:
        memories = [tensor.detach() for tensor in tensors]
        ranges, owners = [], []
        for index, memory in enumerate(memories):
            found = sample_ranges(memory)
            ranges += found
            owners += [index] * len(found)
        return cls(labels, tensors, memories, [memory.data_ptr() for memory in memories], ranges, owners)

    def samples(self) -> list[bytes]:
        return [bytes_at(address, length) for address, length in self.ranges]


@dataclasses.dataclass(frozen=True)
class Mark:
    """What tensors were at one moment."""

    places: Places
    versions: list[int]
    samples: list[bytes]

    def written(self) -> list[str]:
        """The labels of those that are others by now."""
        places = self.places
        if (
            [tensor.data_ptr() for tensor in places.tensors] == places.addresses
            and [tensor._version for tensor in places.tensors] == self.versions
            and places.samples() == self.samples
        ):
            return []
        found = {index for index, tensor in enumerate(places.tensors) if tensor.data_ptr() != places.addresses[index]}
        found.update(index for index, tensor in enumerate(places.tensors) if tensor._version != self.versions[index])
        samples = zip(places.owners, self.samples, places.samples())
        found.update(index for index, then, now in samples if then != now)
        return [places.labels[index] for index in sorted(found)]


class Marker:
    """Makes marks of the same tensors."""

    def __init__(self, named: list[tuple[str, torch.Tensor]]) -> None:
        self._labels = [label for label, _ in named]
        self._tensors = [tensor for _, tensor in named]
        self._places = Places.of(self._labels, self._tensors)

    def mark(self) -> Mark:
        if [tensor.data_ptr() for tensor in self._tensors] != self._places.addresses:
            self._places = Places.of(self._labels, self._tensors)
        return Mark(self._places, [tensor._version for tensor in self._tensors], self._places.samples())


def sample_ranges(memory: torch.Tensor) -> list[tuple[int, int]]:
    """Address and length of what is looked at; of a tensor on another device nothing."""
    if memory.device.type != "cpu" or memory.layout is not torch.strided or memory.numel() == 0:
        return []
    start, width = memory.data_ptr(), memory.element_size()
    extent = width * (1 + sum((size - 1) * step for size, step in zip(memory.shape, memory.stride())))
    if extent <= 3 * SAMPLE_BYTES:
        return [(start, extent)]
    return [(start + place, SAMPLE_BYTES) for place in (0, extent // 2, extent - SAMPLE_BYTES)]
