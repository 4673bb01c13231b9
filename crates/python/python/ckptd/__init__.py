"""ckptd's promises for any PyTorch training: whole, verified snapshots that do not stop it, and an exact resume.

    run = ckptd.attach(model, optimizer, scheduler=scheduler, loader=loader)
    for epoch in run.epochs(10):
        for batch in run.batches(loader):
            loss = train_step(batch)
            run.step(loss=loss)

The script is started as `ckptd run -- python train.py`. docs/python.md has the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ._errors import StateRefused
from ._native import VERSION as __version__
from ._native import CkptdError, SnapshotDamaged, SnapshotMismatch, StoreLocked
from ._reading import Snapshot, Store, open

if TYPE_CHECKING:
    from ._run import Run
    from ._sampler import Sampler

__all__ = [
    "CkptdError",
    "Run",
    "Sampler",
    "Snapshot",
    "SnapshotDamaged",
    "SnapshotMismatch",
    "StateRefused",
    "Store",
    "StoreLocked",
    "__version__",
    "attach",
    "open",
]


def attach(
    model: Any,
    optimizer: Any,
    *,
    scheduler: Any = None,
    loader: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> Run:
    """Takes charge of a training, and puts it where its newest verified snapshot is.

    To be called once, when model, optimiser and schedulers are complete and before the first batch is drawn; by every
    rank, where DistributedDataParallel has several.

    Args:
        model: a module, or a dict of modules by name.
        optimizer: a `torch.optim.Optimizer`, or a list of them; each of their parameters is one of `model` or `extra`.
        scheduler: one or a list of what has `state_dict()` and `load_state_dict()`.
        loader: the data that `Run.batches` goes through, unless it is given there.
        extra: what else decides how the training goes on, by name: modules (an EMA), tensors, generators of random
            numbers, a GradScaler or anything else with `state_dict()` and `load_state_dict()`, and dicts and lists of
            plain values, which are filled in place.

    Raises:
        StateRefused: something is neither a tensor nor a plain value; the text has its path.
        SnapshotMismatch: the snapshot is of another model, optimiser, number of threads or of ranks.
    """
    from ._attach import attach as attach_run

    return attach_run(model, optimizer, scheduler, loader, extra or {})


def __getattr__(name: str) -> Any:
    # torch is imported when a training needs it, and not to read a manifest.
    if name == "Run":
        from ._run import Run

        return Run
    if name == "Sampler":
        from ._sampler import Sampler

        return Sampler
    raise AttributeError(name)
