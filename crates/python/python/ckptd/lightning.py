"""ckptd in the Trainer of Lightning:

    run = ckptd.lightning.Callback()
    trainer = lightning.Trainer(callbacks=[run])
    trainer.fit(model, run.loader(loader), ckpt_path=run.checkpoint())

Invariant: a boundary is a place at which Lightning itself saves and goes on: the end of a batch, of a validation, of an
epoch, whichever of these is the last for that step. Tensors come from the snapshot; the file that Lightning is given has
the counters of its loops and its callbacks' states. Deliberately not here: what it logs, which `ckptd history` has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint

from . import _attach, _run
from ._agent import told
from ._errors import UseRefused
from ._native import CkptdError
from ._values import read_value


class Callback(Checkpoint):
    """Saves what a Trainer trains, and lets it go on where its newest verified snapshot is.

    It is a checkpoint callback, which comes after the others, and without which Lightning would add its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self._run: _run.Run | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._strict: Any = None
        self._seen = 0
        self._loss: Any = None
        self._is_stepped = False

    def checkpoint(self) -> str | None:
        """The file for `fit(ckpt_path=...)`; `None`: the training begins. It is deleted when the training has begun."""
        with _attach.resuming("lightning", "Lightning") as found:
            if found is None:
                return None
            snapshot, settings = found
            own = read_value(settings["extra.lightning"], lambda written: snapshot.tensor(*written["$ref"][:2]))
            self._folder = tempfile.TemporaryDirectory(prefix="ckptd-lightning-")
            path = Path(self._folder.name, "loops.ckpt")
            # Weights, optimisers and schedules are put back when the training begins.
            empty: dict[str, Any] = {"state_dict": {}, "optimizer_states": [], "lr_schedulers": []}
            torch.save({**own, **empty, "pytorch-lightning_version": lightning.__version__}, path)
        return str(path)

    def loader(self, loader: Any) -> Loader:
        """`loader`, as one that goes on in the middle of an epoch. It needs a length: of another one Lightning draws a
        batch ahead of each step, and before the training has begun."""
        agent = _attach.connect()
        if agent is not None:
            with told(agent):
                refuse_without_length(loader)
        return Loader(self, loader)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if self._folder is not None:
            self._strict, pl_module.strict_loading = pl_module.strict_loading, False

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        if self._run is None:
            # All was done before.
            self.on_train_start(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self._folder is not None:
            pl_module.strict_loading = self._strict
            self._folder.cleanup()
            self._folder = None
        extra: dict[str, Any] = {"lightning": LightningParts(trainer)}
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            extra["scaler"] = scaler
        schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._run = _attach.attach(pl_module, list(trainer.optimizers), schedulers, None, extra)
        if _attach.connect() is not None and bool(self._run.steps_done) != bool(trainer.global_step):
            raise CkptdError(
                f"the snapshot is of step {self._run.steps_done}, and Lightning begins at step {trainer.global_step}; "
                "write trainer.fit(model, run.loader(loader), ckpt_path=run.checkpoint())"
            )
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self._seen:
            return
        self._seen, self._is_stepped = trainer.global_step, True
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._loss = loss.detach() if isinstance(loss, torch.Tensor) else None
        loop = trainer.fit_loop.epoch_loop
        if not loop.batch_progress.is_last_batch and not loop._should_check_val_fx(trainer.fit_loop._data_fetcher):
            self._bound()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._bound()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._bound()

    def _bound(self) -> None:
        if self._is_stepped and self._run is not None:
            self._is_stepped = False
            self._run.step(self._loss)


class Loader:
    """A loader that passes over what a resumed epoch has seen; from `Callback.loader`."""

    def __init__(self, callback: Callback, loader: Any) -> None:
        self._callback, self._loader = callback, loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        # Lightning makes the first iterator before the training has begun, and draws from it after.
        run = self._callback._run
        if run is None:
            yield from self._loader
            return
        run._pass_whole_epoch(self._loader)
        yield from run.batches(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the snapshot has it. That it is here tells Lightning that the middle of an epoch is found again."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing."""


class LightningParts:
    """The counters of Lightning's loops and its callbacks' states, as an extra of the snapshot."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        trainer = self._trainer
        states = ((callback.state_key, callback.state_dict()) for callback in trainer.callbacks)
        return {
            "epoch": trainer.current_epoch,
            "global_step": trainer.global_step,
            "loops": {"fit_loop": trainer.fit_loop.state_dict()},
            "callbacks": {key: state for key, state in states if state},
        }

    def load_state_dict(self, read: dict[str, Any]) -> None:
        """Lightning has read them from its file."""


def refuse_without_length(loader: Any) -> None:
    try:
        len(loader)
    except (TypeError, NotImplementedError) as error:
        raise UseRefused(
            f"the loader has no length ({error}), and so its place is in no snapshot: give its data set a __len__"
        ) from error
