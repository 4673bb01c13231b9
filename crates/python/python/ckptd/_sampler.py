"""An order of the data that can be entered anywhere at once.

Invariant: which number comes at which place of an epoch is a function of length, seed and epoch alone; nothing is drawn.
Deliberately not here: the order itself (the native half; the GPT-2 worker has the same).
"""

from __future__ import annotations

from collections.abc import Iterator, Sized

import torch.utils.data

from . import _ranks
from ._native import CkptdError, epoch_order

# Numbers that are made at a time.
BLOCK = 1024


class Sampler(torch.utils.data.Sampler[int]):
    """The numbers below a length in a random order, another one in each epoch.

        loader = DataLoader(data, batch_size=32, sampler=ckptd.Sampler(data, seed=1))

    `Run.batches` says which epoch it is, and where in it the training goes on: that costs the same at any place. Of several
    ranks each gets its share: rank r of n the places r, r + n, r + 2n and so on.

    Args:
        data: what is sampled, or its length.
        seed: of the order, below 2 ** 64; the same on all ranks.
        rank, ranks: which share this is of how many; without them, that of this process in torch.distributed.
        drop_last: what does not go round is left out. Else the first ones are given again, so that all ranks get as many.
        workers_draw: whether the data set draws random numbers in the processes of a loader with workers, as to augment. Their
            random states come back by the same work alone, so that what an epoch has had is then loaded again; without, it
            is passed over.
    """

    def __init__(
        self,
        data: Sized | int,
        *,
        seed: int = 0,
        rank: int | None = None,
        ranks: int | None = None,
        drop_last: bool = False,
        workers_draw: bool = True,
    ) -> None:
        self.length = data if isinstance(data, int) else len(data)
        if self.length < 1:
            raise CkptdError("a Sampler needs something to sample, and the data is empty")
        if (rank is None) != (ranks is None) or (rank is not None and ranks is not None and not 0 <= rank < ranks):
            raise CkptdError(f"rank {rank} of {ranks} is no share: give both, from 0 on, or none")
        self.seed, self.drop_last, self.workers_draw = seed, drop_last, workers_draw
        self.epoch = 0
        self._share = None if rank is None or ranks is None else _ranks.RankPlace(rank, ranks)
        self._entered = 0

    def set_epoch(self, epoch: int) -> None:
        """The order is that of this epoch, from 0, from the next `iter` on. `Run.batches` calls it."""
        self.epoch = epoch

    def enter(self, position: int) -> None:
        """The next `iter` begins after so many numbers of its epoch. `Run.batches` calls it."""
        self._entered = position

    def __len__(self) -> int:
        ranks = self._place().size
        return self.length // ranks if self.drop_last else -(-self.length // ranks)

    def __iter__(self) -> Iterator[int]:
        # Not a generator itself: the place is that of this moment, and for one iteration.
        entered, self._entered = self._entered, 0
        return self._from(entered, self.epoch, self._place())

    def _from(self, position: int, epoch: int, place: _ranks.RankPlace) -> Iterator[int]:
        count = len(self)
        while position < count:
            block = min(BLOCK, count - position)
            first = place.rank + position * place.size
            yield from epoch_order(self.length, self.seed, epoch, first, place.size, block)
            position += block

    def _place(self) -> _ranks.RankPlace:
        return self._share or _ranks.place()
