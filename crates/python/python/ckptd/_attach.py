"""How a script comes under ckptd: it connects, says what it trains, and is put where its newest snapshot is.

Invariant: a process connects once and attaches once; what fails on the way is told to the agent. Deliberately not here:
the training itself (`_run`).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from . import _ranks
from ._agent import SOCKET_VARIABLE, Agent, resume_from, told
from ._errors import RanksRefused
from ._native import CkptdError, SnapshotMismatch
from ._ranks import RankHub, RankMember, RankPlace
from ._reading import Snapshot
from ._run import Run, TrainingLink
from ._state import TrainingState, settings_of

attached: Run | None = None
_link = TrainingLink()
_asked = False


def connect() -> Agent | RankMember | None:
    """The agent that started this script, or rank 0; `None`: none did, which is said once."""
    global _link, _asked
    path = os.environ.pop(SOCKET_VARIABLE, None)
    if path is not None:
        _link, _asked = link_to(path, _ranks.place()), True
    elif not _asked:
        _asked = True
        if _ranks.place().rank > 0:
            return None
        print(
            "ckptd: this script was not started by ckptd, and nothing is saved; start it with: ckptd run -- python "
            + " ".join(sys.argv),
            file=sys.stderr,
        )
    return _link.agent


def link_to(path: str, here: RankPlace) -> TrainingLink:
    """Connects: rank 0 to the agent at `path`, the others to rank 0."""
    if here.rank > 0:
        member = RankMember(here, path)
        _ranks.outlive_the_launcher()
        return TrainingLink(member, None, here)
    agent = Agent(path)
    if here.size == 1:
        return TrainingLink(agent)
    with told(agent):
        hub = RankHub(here.size, path)
        hub.admit(agent.start, agent.is_gone)
    hub.hear(agent.send, lose)
    _ranks.outlive_the_launcher()
    return TrainingLink(agent, hub, here)


def lose(rank: int) -> None:
    """A rank is gone; before the training has begun that is noticed where it is waited for."""
    if attached is not None:
        attached._lose(rank)


@contextlib.contextmanager
def resuming(part: str, trainer: str) -> Iterator[tuple[Snapshot, dict[str, Any]] | None]:
    """The snapshot that the training goes on from, with its settings; `None`: it begins, or ckptd did not start it.

    `part` is the extra in which `trainer`, a program with a training loop of its own, keeps its state. What fails in here
    is told to the agent.
    """
    agent = connect()
    if agent is None:
        yield None
        return
    with told(agent):
        if _link.here.size > 1:
            raise RanksRefused(
                f"this is one of {_link.here.size} ranks, and trainings by {trainer} are saved on one process only; a loop of your "
                "own with DistributedDataParallel can have several (docs/python.md)"
            )
        snapshot = resume_from(agent)
        if snapshot is None:
            yield None
            return
        settings = settings_of(snapshot.settings)
        if f"extra.{part}" not in settings:
            raise SnapshotMismatch(f"{snapshot.path} is not of a training by {trainer}")
        yield snapshot, settings


def attach(model: Any, optimizer: Any, scheduler: Any, loader: Any, extra: Mapping[str, Any]) -> Run:
    global attached
    if attached is not None:
        raise CkptdError(
            "attach was called before; a script has one training, with a list of optimizers where it has several"
        )
    # MKL's vector functions are not safe when two threads make the first call together.
    torch.ones(1).exp()
    agent = connect()
    if agent is None:
        return Run(None, _link, loader)
    with told(agent):
        if _link.here != _ranks.place():
            raise RanksRefused(
                f"this process is rank {_ranks.place().rank} of {_ranks.place().size}, which it was not when ckptd "
                "connected; have ckptd start the ranks: ckptd run -- torchrun --standalone --nproc-per-node 2 train.py"
            )
        state = TrainingState(model, listed(optimizer), listed(scheduler), extra)
        run = Run(state, _link, loader)
        if isinstance(agent, Agent):
            run._open_store(agent)
        run._resume(agent)
        if isinstance(agent, Agent):
            run._boundary = state.boundary(run.steps_done, run._position, {})
        if _link.hub is not None:
            _link.hub.await_ready()
            if unsteady := _ranks.order_of_sums(state.ranked, _link.here.size):
                run._warn(unsteady)
    run._open = True
    for one in state.optimizers:
        one.register_step_pre_hook(run._before_update)
    os.register_at_fork(after_in_child=run._forked)
    atexit.register(run._finish)
    attached = run
    if isinstance(agent, RankMember):
        agent.ready()
        serve = threading.Thread(target=run._serve_as_member, args=[agent], name="ckptd commands", daemon=True)
    else:
        run._ready(agent)
        serve = threading.Thread(target=run._serve, args=[agent], name="ckptd commands", daemon=True)
    serve.start()
    return run


def listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return [inner(one) for one in (value if isinstance(value, (list, tuple)) else [value])]


def inner(value: Any) -> Any:
    """What accelerate has wrapped: hooks and state are those of the thing itself."""
    kinds = {"AcceleratedOptimizer": "optimizer", "AcceleratedScheduler": "scheduler"}
    name = kinds.get(type(value).__name__)
    return value if name is None else getattr(value, name)
