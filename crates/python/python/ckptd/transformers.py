"""ckptd in the Trainer of transformers:

    run = ckptd.transformers.Callback(trainer)
    trainer.train(resume_from_checkpoint=run.checkpoint())

Invariant: a boundary is where the Trainer itself goes on: after a step's logging, evaluation and saving, with the random
state that it puts back there. Tensors come from the snapshot; the folder that the Trainer is given has only what it
reads of its own accord. Deliberately not here: its log, which `ckptd history` has.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from . import _attach, _random, _run
from ._native import CkptdError

# Nothing of the future depends on them, and a training that was resumed has others.
NOT_STATE = ("log_history", "total_flos")


class Callback(TrainerCallback):
    """Saves what a Trainer trains, and lets it go on where its newest verified snapshot is.

    It adds itself to the Trainer, whose own saving may be off (`save_strategy="no"`). Other callbacks come back as they
    were if they are an `ExportableState`, as EarlyStoppingCallback is.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._run: _run.Run | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._loss: Any = 0.0
        self._tokens = 0
        self._is_stepped = False
        train = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = train(*args, **kwargs)
            self._loss = self._loss + loss.detach()
            return loss

        trainer.training_step = training_step
        trainer.add_callback(self)

    def checkpoint(self) -> str | None:
        """The folder for `train(resume_from_checkpoint=...)`; `None`: the training begins.

        It has the Trainer's own state and the random states, and is deleted when the training has begun.
        """
        with _attach.resuming("trainer", "the Trainer of transformers") as found:
            if found is None:
                return None
            _, settings = found
            self._folder = tempfile.TemporaryDirectory(prefix="ckptd-trainer-")
            folder = Path(self._folder.name)
            state = {**json.loads(settings["extra.trainer"]["state"]), "log_history": [], "total_flos": 0.0}
            (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
            torch.save(random_file(_random.of_settings(settings)), folder / "rng_state.pth")
        # The Trainer would want the weights in there.
        self._trainer._load_from_checkpoint = lambda *_args, **_kwargs: None
        return self._folder.name

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        trainer = self._trainer
        extra = {"trainer": TrainerParts(trainer)}
        if trainer.accelerator.scaler is not None:
            extra["scaler"] = trainer.accelerator.scaler
        self._run = _attach.attach(trainer.model, trainer.optimizer, trainer.lr_scheduler, None, extra)
        if _attach.connect() is not None and self._run.steps_done != state.global_step:
            raise CkptdError(
                f"the snapshot is of step {self._run.steps_done}, and the Trainer begins at step {state.global_step}; "
                "write trainer.train(resume_from_checkpoint=run.checkpoint())"
            )
        self._tokens = state.num_input_tokens_seen

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bound(state)
        if self._run is not None:
            self._run._enter_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        self._bound(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        # What belongs to the step is not over: its evaluation, for one.
        self._is_stepped = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "train_runtime" in (logs or {}) and self._run is not None:
            # The end; the best weights may be loaded next.
            self._bound(state)
            self._run.save()

    def _bound(self, state: Any) -> None:
        if self._is_stepped and self._run is not None:
            self._is_stepped = False
            loss, self._loss = self._loss, 0.0
            tokens, self._tokens = state.num_input_tokens_seen - self._tokens, state.num_input_tokens_seen
            self._run._position.batch += 1
            self._run.step(loss, tokens)


class TrainerParts:
    """A Trainer's own state, as an extra of the snapshot."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, str]:
        state = self._trainer.state
        names = [field.name for field in dataclasses.fields(state) if field.name not in NOT_STATE]
        fields = {name: getattr(state, name) for name in names}
        fields["stateful_callbacks"] = {
            name: [callback.state() for callback in callbacks] for name, callbacks in self._exportable().items()
        }
        return {"state": json.dumps(fields, sort_keys=True)}

    def load_state_dict(self, read: dict[str, str]) -> None:
        """The Trainer has read the rest from its folder."""
        saved = json.loads(read["state"])["stateful_callbacks"]
        for name, callbacks in self._exportable().items():
            for callback, state in zip(callbacks, saved.get(name, [])):
                for attribute, value in state["attributes"].items():
                    setattr(callback, attribute, value)

    def _exportable(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for callback in self._trainer.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                found.setdefault(type(callback).__name__, []).append(callback)
        return found


def random_file(state: _random.RandomState) -> dict[str, Any]:
    """What the Trainer reads in rng_state.pth: tensors and plain values."""
    numpy_state = state.get("numpy", numpy.random.get_state(legacy=False))
    inner = numpy_state["state"]
    gauss = (numpy_state["has_gauss"], numpy_state["gauss"])
    found: dict[str, Any] = {
        "python": state["python"],
        "numpy": (numpy_state["bit_generator"], inner["key"], inner["pos"], *gauss),
        "cpu": _random.bytes_tensor(state["torch"]),
    }
    if "cuda.0" in state:
        found["cuda"] = _random.bytes_tensor(state["cuda.0"])
    return found
