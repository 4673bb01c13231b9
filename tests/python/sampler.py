"""`ckptd.Sampler`: a permutation for every length, shares of ranks, and the same order wherever it is entered."""

import os

import ckptd
from ckptd import _loader
from torch.utils.data import BatchSampler, DataLoader, Dataset


class Counted(Dataset):
    """Numbers, and which of them were loaded in this process."""

    def __init__(self, length):
        self.length, self.loaded = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.loaded.append(index)
        return index


def permutations():
    for length in range(1, 2001):
        sampler = ckptd.Sampler(length, seed=length)
        sampler.set_epoch(3)
        assert sorted(sampler) == list(range(length)), length
    # That of the GPT-2 worker, computed by a separate implementation.
    assert list(ckptd.Sampler(10, seed=1337)) == [8, 9, 0, 6, 2, 4, 7, 5, 1, 3]
    first, second = ckptd.Sampler(1000), ckptd.Sampler(1000)
    second.set_epoch(1)
    assert list(first) != list(second) and list(first) == list(first)
    assert list(first) != list(ckptd.Sampler(1000, seed=1))


def shares():
    for length in (1, 2, 5, 64, 1000):
        order = list(ckptd.Sampler(length, seed=2))
        for ranks in range(1, 6):
            whole, dropped = (
                [list(ckptd.Sampler(length, seed=2, rank=r, ranks=ranks, drop_last=d)) for r in range(ranks)]
                for d in (False, True)
            )
            assert {len(share) for share in whole} == {-(-length // ranks)}
            mixed = [number for numbers in zip(*whole) for number in numbers]
            assert mixed[:length] == order and mixed[length:] == (order * ranks)[: len(mixed) - length]
            assert [n for numbers in zip(*dropped) for n in numbers] == order[: length // ranks * ranks]
    os.environ.update(RANK="1", WORLD_SIZE="2")
    assert list(ckptd.Sampler(7)) == list(ckptd.Sampler(7, rank=1, ranks=2))
    del os.environ["RANK"], os.environ["WORLD_SIZE"]


def rest(loader, passed):
    batches = _loader.begin(loader, 4, passed, None)
    return [batch.tolist() if hasattr(batch, "tolist") else batch for batch in batches]


def resumes():
    for arguments in (
        {"batch_size": 8},
        {"batch_size": 8, "drop_last": True},
        {"batch_size": None},
        {"batch_size": 8, "num_workers": 2},
        {"batch_size": 8, "num_workers": 2, "workers_draw": True},
    ):
        draws = arguments.pop("workers_draw", False)
        data = Counted(100)
        loader = DataLoader(data, sampler=ckptd.Sampler(data, seed=5, workers_draw=draws), **arguments)

        whole = rest(loader, 0)
        for passed in (1, 5, len(whole) - 1, len(whole)):
            data.loaded.clear()
            assert rest(loader, passed) == whole[passed:], (arguments, passed)
            # Nothing is loaded for what is passed over.
            flat = [n for batch in whole[passed:] for n in (batch if isinstance(batch, list) else [batch])]
            assert data.loaded == ([] if "num_workers" in arguments else flat)
        assert rest(loader, 0) == whole
    batches = BatchSampler(ckptd.Sampler(100, seed=5), 7, False)
    loader = DataLoader(Counted(100), batch_sampler=batches)
    assert [b.tolist() for b in _loader.begin(loader, 0, 3, None)] == [b.tolist() for b in loader][3:]


def is_entered_at_once():
    sampler = ckptd.Sampler(10**15, seed=1)
    sampler.enter(10**15 - 3)
    # `list` would make room for all of them.
    assert sum(1 for _ in sampler) == 3


def refused():
    for arguments in ({"data": 0}, {"data": 5, "rank": 1}, {"data": 5, "rank": 2, "ranks": 2}):
        try:
            ckptd.Sampler(arguments.pop("data"), **arguments)
        except ckptd.CkptdError:
            continue
        raise AssertionError(arguments)


for check in (permutations, shares, resumes, is_entered_at_once, refused):
    check()
print("every order is a permutation, and goes on where it is entered")
