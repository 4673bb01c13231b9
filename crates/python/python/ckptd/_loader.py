"""Where a training is in its data, and how it gets there again.

Invariant: a resumed epoch begins with the random state with which it began, so that it is shuffled as it was; what was
drawn already is passed over, and then the random state of the boundary is put back. Deliberately not here: batches that
a script draws itself (they follow from the random state).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from . import _random
from ._random import RandomState
from ._sampler import Sampler


@dataclasses.dataclass
class LoaderPosition:
    """Epochs and batches so far."""

    epoch: int = -1  # the epoch under way, from 0; -1: none has begun
    batch: int = 0  # its batches that the script has got
    start: RandomState | None = None  # with which it began
    start_text: dict[str, Any] | None = None
    inner: Any = None  # what a loader with a state of its own says

    def written(self) -> dict[str, Any]:
        if self.start is not None and self.start_text is None:
            self.start_text = _random.texts(self.start)
        return {"epoch": self.epoch, "batch": self.batch, "start": self.start_text}


@dataclasses.dataclass
class Pass:
    """One time through a loader. Only one loader's place is in a snapshot, and each pass counts as an epoch."""

    loader: int  # its identity
    begun_at: int  # the steps that were made before
    is_other: bool  # another loader than that of the pass before
    is_resumed: bool
    drawn: int = 0
    is_open: bool = True

    def is_for_nothing(self, steps_done: int) -> bool:
        """Whether no step was made of its batches."""
        return self.drawn > 0 and not self.is_resumed and self.begun_at == steps_done


def generators_of(loader: Any) -> dict[str, torch.Generator]:
    """The generators that a loader draws from instead of torch's own."""
    sampler = getattr(loader, "sampler", None)
    holders = {"loader": loader, "sampler": sampler, "batch_sampler": getattr(loader, "batch_sampler", None)}
    found = {name: getattr(holder, "generator", None) for name, holder in holders.items()}
    return {name: generator for name, generator in found.items() if isinstance(generator, torch.Generator)}


def has_state(loader: Any) -> bool:
    """Whether a loader knows its own position, as torchdata's StatefulDataLoader does."""
    if not getattr(loader, "use_stateful_dataloader", True):
        # accelerate's has the methods in any case.
        return False
    return callable(getattr(loader, "state_dict", None)) and callable(getattr(loader, "load_state_dict", None))


def sampler_of(loader: Any) -> tuple[Sampler | None, int]:
    """A sampler of ours, and how many of its numbers make a batch."""
    if type(loader) is DataLoader:
        batches = loader.batch_sampler
        if type(batches) is BatchSampler and isinstance(batches.sampler, Sampler):
            return batches.sampler, batches.batch_size
        if batches is None and isinstance(loader.sampler, Sampler):
            return loader.sampler, 1
    return None, 0


def begin(loader: Any, epoch: int, passed: int, inner: Any) -> Iterator[Any]:
    """An iterator over `loader` that has passed over its first batches."""
    if callable(getattr(loader, "set_epoch", None)):
        # accelerate's counts its epochs itself, from 0 in each process.
        loader.set_epoch(epoch)
    sampler, per_batch = sampler_of(loader)
    if sampler is not None:
        sampler.set_epoch(epoch)
    if inner is not None and has_state(loader):
        loader.load_state_dict(inner)
        return cast(Iterator[Any], iter(loader))
    if sampler is not None and (loader.num_workers == 0 or not sampler.workers_draw):
        sampler.enter(passed * per_batch)
        return cast(Iterator[Any], iter(loader))
    iterator: Iterator[Any] = iter(loader)
    if passed == 0:
        return iterator
    indices = getattr(iterator, "_sampler_iter", None)
    if (
        type(loader) is DataLoader
        and loader.num_workers == 0
        and not isinstance(loader.dataset, IterableDataset)
        and indices
    ):
        # Nothing is loaded for what is passed over.
        for _ in range(passed):
            next(indices, None)
    else:
        # Workers have random states of their own, which only the same work brings to the same place.
        for _ in range(passed):
            next(iterator, None)
    return iterator
