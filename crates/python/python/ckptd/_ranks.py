"""The ranks of a training: processes of one machine that each have all of the state, and make every step together.

Invariant: rank 0 alone speaks to the agent and writes. Before another rank begins a step it has told rank 0 what of its
state at the boundary is its own (random state, place in the data), so that a snapshot of that boundary needs its help no
more. No training waits here for another rank, but where a session ends: all of them then end after the same step. A rank
that is gone is noticed by the others. Deliberately not here: how ranks add their gradients (torch.distributed), what is
done with what they say (`_run`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import torch

from . import _random
from ._errors import RanksRefused, StateRefused
from ._lines import LineSocket
from ._native import CkptdError

# How long a snapshot waits for what the other ranks say of its boundary.
BOUNDARY_TIMEOUT_S = 60.0
# How long the end of a session waits for each rank's word on where it is; they answer at once.
AGREE_TIMEOUT_S = 2.0
# How often rank 0 looks whether ckptd is still there, while it waits for the others.
LOOKING_S = 0.5
# Boundaries of a rank that are kept: ranks are at most a step apart.
KEPT_BOUNDARIES = 4
# Ranks must have the same parameters after the first steps of a session, and after one step in so many.
COMPARED_FIRST, COMPARED_ONE_IN = 3, 50


@dataclasses.dataclass(frozen=True)
class RankPlace:
    """Which rank this process is, and of how many."""

    rank: int
    size: int


@dataclasses.dataclass(frozen=True)
class OwnState:
    """What of a rank's state at a boundary is its own, as text."""

    step: int
    text: str
    start: str  # the random state with which its epoch began, as text

    def settings(self) -> dict[str, Any]:
        """As it stands in a snapshot."""
        own: dict[str, Any] = json.loads(self.text)
        own["loader"]["start"] = json.loads(self.start)
        return own


def place() -> RankPlace:
    """By torch.distributed, and before that is initialised by torchrun's environment."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return RankPlace(distributed.get_rank(), distributed.get_world_size())
    return RankPlace(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def is_compared(step: int, steps_here: int) -> bool:
    """Whether the parameters after `step` are held against rank 0's."""
    return steps_here <= COMPARED_FIRST or step % COMPARED_ONE_IN == 0


def socket_path(agent: str) -> str:
    """Where rank 0 waits for the others, beside the agent's socket."""
    return os.path.join(os.path.dirname(agent), "ranks.sock")


def outlive_the_launcher() -> None:
    """What ends a whole job sends SIGTERM to every process of it; a rank ends when its state is safe, or rank 0 is gone.

    Processes that the script starts end at a SIGTERM as ever.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        # A handler, which no program that is started inherits, as it does a signal that is ignored.
        signal.signal(signal.SIGTERM, _outlive)
        signal.siginterrupt(signal.SIGTERM, False)
        os.register_at_fork(after_in_child=_end_as_ever)


def _outlive(_signal: int, _frame: object) -> None: ...


def _end_as_ever() -> None:
    if signal.getsignal(signal.SIGTERM) is _outlive:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class RankHub:
    """At rank 0: the connections to all other ranks, and what they have said last."""

    def __init__(self, size: int, agent: str) -> None:
        self.size = size
        self._changed = threading.Condition()
        self._lines: dict[int, LineSocket] = {}
        self._told: dict[int, deque[OwnState]] = {}
        self._marks: dict[int, dict[int, list[int]]] = {}
        self._names: list[str] = []
        self._at: dict[int, int] = {}
        self._ready: set[int] = set()
        self._ended: set[int] = set()
        self._gone: set[int] = set()
        self._fault: str | None = None
        self._path = socket_path(agent)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", str(size)))
        if local != size:
            raise RanksRefused(
                f"of {size} ranks {local} are on this machine; ckptd saves trainings whose ranks are all on one machine"
            )
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(self._path)
        except OSError as error:
            raise CkptdError(
                f"{self._path}: {error}: the ranks were started anew by their launcher; leave that to ckptd, which starts "
                "them from the newest snapshot (torchrun --max-restarts 0)"
            ) from error
        self._listener.listen(size)

    def admit(self, start: dict[str, Any], is_over: Callable[[], bool]) -> None:
        """Waits for the other ranks, and gives them the agent's first command."""
        self._listener.settimeout(LOOKING_S)
        while len(self._lines) + 1 < self.size:
            try:
                connection, _ = self._listener.accept()
            except TimeoutError as error:
                if is_over():
                    raise CkptdError("ckptd is gone before all ranks have called ckptd.attach") from error
                continue
            connection.settimeout(None)
            line = LineSocket(connection)
            hello = line.receive()
            if hello is None:
                continue
            rank, size = hello["rank"], hello["size"]
            if size != self.size or rank in self._lines or not 0 < rank < size:
                raise CkptdError(f"a process says that it is rank {rank} of {size}, and rank 0 is one of {self.size}")
            line.send({"command": "start", "start": start})
            self._lines[rank], self._told[rank] = line, deque(maxlen=KEPT_BOUNDARIES)
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)

    def hear(self, send: Callable[..., None], lost: Callable[[int], None]) -> None:
        """Hears all ranks from now on. `send` says to the agent what they have to say; `lost` is told of one that is gone."""
        for rank, line in self._lines.items():
            hear = threading.Thread(
                target=self._hear, args=[rank, line, send, lost], name=f"ckptd rank {rank}", daemon=True
            )
            hear.start()

    def _hear(self, rank: int, line: LineSocket, send: Callable[..., None], lost: Callable[[int], None]) -> None:
        start = "null"
        while (said := line.receive()) is not None:
            what = said["said"]
            if what in ("failed", "log"):
                send(what, **said["fields"])
            with self._changed:
                if what == "boundary":
                    start = said.get("start", start)
                    self._told[rank].append(OwnState(said["step"], said["own"], start))
                    if "marks" in said:
                        self._mark(said["step"], rank, said["marks"])
                elif what == "at":
                    self._at[rank] = said["step"]
                elif what == "ready":
                    self._ready.add(rank)
                elif what == "ended":
                    self._ended.add(rank)
                self._changed.notify_all()
        with self._changed:
            self._gone.add(rank)
            self._changed.notify_all()
        if rank not in self._ended:
            lost(rank)

    def _mark(self, step: int, rank: int, marks: list[int]) -> None:
        of_step = self._marks.setdefault(step, {})
        of_step[rank] = marks
        if len(of_step) < self.size or self._fault is not None:
            return
        del self._marks[step]
        ours = of_step[0]
        for other in range(1, self.size):
            theirs = of_step[other]
            if len(theirs) != len(ours):
                self._fault = f"rank {other} has {len(theirs)} tensors and rank 0 has {len(ours)}"
            elif theirs != ours:
                name = next(name for name, a, b in zip(self._names, ours, theirs) if a != b)
                self._fault = f"after step {step} {name} is not the same on rank {other} as on rank 0"

    def compare(self, step: int, names: list[str], marks: list[int]) -> None:
        """Holds rank 0's parameters against the others', as soon as these are told."""
        with self._changed:
            self._names = names
            self._mark(step, 0, marks)
            self._changed.notify_all()

    def check(self) -> None:
        """Raises StateRefused if ranks have different parameters."""
        if self._fault is not None:
            raise StateRefused(
                f"{self._fault}: ckptd saves trainings whose ranks have all of the state, and the same "
                "(DistributedDataParallel, its buffers broadcast)"
            )

    def await_ready(self) -> None:
        """Waits until all ranks have loaded their state."""
        with self._changed:
            self._changed.wait_for(lambda: self._gone or len(self._ready) + 1 == self.size)
            if self._gone:
                raise CkptdError(f"rank {min(self._gone)} is gone before its first step; its own output says why")

    def own_states(self, step: int) -> dict[int, OwnState]:
        """What the other ranks have told of the boundary after `step`."""

        def found() -> dict[int, OwnState | None]:
            return {rank: next((own for own in told if own.step == step), None) for rank, told in self._told.items()}

        with self._changed:
            self._changed.wait_for(
                lambda: all(own or rank in self._gone for rank, own in found().items()), BOUNDARY_TIMEOUT_S
            )
            states = found()
            late = next((rank for rank, own in states.items() if own is None), None)
        self.check()
        if late is not None:
            stands = self._told[late][-1].step if self._told[late] else "none"
            raise CkptdError(
                f"rank {late} has told nothing of step {step}, its last one is {stands}; every rank must make the same "
                "steps, and call run.step() after each"
            )
        return {rank: own for rank, own in states.items() if own is not None}

    def agree(self, at: int) -> int:
        """The step after which all ranks end: the first one that none of them has gone beyond."""
        self._say("hold")
        with self._changed:
            self._changed.wait_for(
                lambda: all(rank in self._at or rank in self._gone for rank in self._lines), AGREE_TIMEOUT_S
            )
            # A rank that does not answer is ended by the end of the others.
            leave_at = max([at, *self._at.values()])
        self._say("leave", step=leave_at)
        return leave_at

    def over(self, is_session: bool) -> None:
        """The state is safe, and every rank ends (`is_session`); or rank 0 has nothing more to do."""
        self._say("over" if is_session else "end")

    def _say(self, command: str, **fields: Any) -> None:
        for line in self._lines.values():
            line.send({"command": command, **fields})


class RankMember:
    """At another rank than 0: what it hears and says instead of the agent's messages."""

    def __init__(self, here: RankPlace, agent: str) -> None:
        self.here = here
        self._start_text: dict[str, Any] | None = None
        path, folder = socket_path(agent), os.path.dirname(agent)
        while True:
            try:
                self._line = LineSocket.connect(path)
                break
            except OSError as error:
                if not os.path.exists(folder):
                    raise CkptdError(
                        f"rank {here.rank} does not find rank 0 ({error}): it is gone, or this is another machine, and "
                        "ckptd saves trainings whose ranks are all on one"
                    ) from error
                time.sleep(0.05)
        self._line.send({"rank": here.rank, "size": here.size})
        heard = self._line.receive()
        if heard is None:
            raise CkptdError(f"rank {here.rank} was not let in by rank 0, whose own output says why")
        self.start: dict[str, Any] = heard["start"]

    def command(self) -> dict[str, Any] | None:
        """What rank 0 says next; `None`: it is gone."""
        return self._line.receive()

    def send(self, event: str, **fields: Any) -> None:
        """Has rank 0 say `event` to the agent; most are its own to say."""
        for key in {"failed": ["what"], "log": ["message"]}.get(event, []):
            told = {**fields, key: f"rank {self.here.rank}: {fields[key]}"}
            self._say(event, fields=told)

    def boundary(self, step: int, own: str, start: dict[str, Any] | None, marks: list[int] | None) -> None:
        """Tells what of the state after `step` is this rank's own."""
        said: dict[str, Any] = {"step": step, "own": own}
        if start is not self._start_text:
            self._start_text, said["start"] = start, json.dumps(start)
        if marks is not None:
            said["marks"] = marks
        self._say("boundary", **said)

    def at(self, step: int) -> None:
        """That this rank goes on from no later boundary than that of `step`, until it hears where all end."""
        self._say("at", step=step)

    def ready(self) -> None:
        self._say("ready")

    def ended(self) -> None:
        """That this rank's script is complete."""
        self._say("ended")

    def _say(self, what: str, **fields: Any) -> None:
        self._line.send({"said": what, **fields})


def rank_settings(own: Mapping[int, OwnState]) -> dict[str, Any]:
    """What a snapshot says of the ranks beside rank 0."""
    return {"ranks": len(own) + 1, **{f"rank.{rank}": state.settings() for rank, state in own.items()}}


def settings_of_rank(settings: dict[str, Any], here: RankPlace) -> dict[str, Any]:
    """A snapshot's settings as they are for this rank. Of another number of ranks those that were there keep their random
    state, others begin with the one they have, and the place in the data is the one after as many samples."""
    then = int(settings.get("ranks", 1))
    own = settings.get(f"rank.{here.rank}")
    ours = {key: value for key, value in settings.items() if key != "ranks" and not key.startswith("rank.")}
    if here.rank > 0:
        ours = {key: value for key, value in ours.items() if not key.startswith("random.")}
        if own is not None:
            ours.update({f"random.{name}": value for name, value in own["random"].items()})
            ours.update({f"extra.{name}": value for name, value in own["extra"].items()})
            ours["loader"] = own["loader"]
        else:
            now = _random.texts(_random.take({}))
            ours.update({f"random.{name}": value for name, value in now.items()})
            ours["loader"] = {**ours["loader"], "start": now if ours["loader"]["start"] is not None else None}
    if then != here.size:
        ours["loader"] = {**ours["loader"], "batch": ours["loader"]["batch"] * then // here.size, "inner": None}
    return ours


def distributed_parts(modules: list[torch.nn.Module]) -> list[torch.nn.parallel.DistributedDataParallel]:
    parts = [part for module in modules for part in module.modules()]
    return [part for part in parts if isinstance(part, torch.nn.parallel.DistributedDataParallel)]


def refuse_what_ranks_divide(modules: list[torch.nn.Module], optimizers: list[torch.optim.Optimizer]) -> None:
    """State that a rank has for itself, beyond what is told at boundaries."""
    for index, optimizer in enumerate(optimizers):
        if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
            raise StateRefused(f"optimizer {index} is a ZeroRedundancyOptimizer, of whose state each rank has a part")
    for part in distributed_parts(modules):
        for hook, state in part._comm_hooks:
            if state is not None and not isinstance(state, torch.distributed.ProcessGroup):
                name = getattr(hook, "__name__", str(hook))
                raise StateRefused(f"the communication hook {name} has a state of its own, which is in no snapshot")


def order_of_sums(modules: list[torch.nn.Module], size: int) -> str | None:
    """Why a resume is not exact: after the first backward pass DistributedDataParallel puts gradients into other buckets,
    and the place in a bucket decides in which order more than two ranks are added."""
    if size > 2 and any(not part.find_unused_parameters for part in distributed_parts(modules)):
        return (
            f"DistributedDataParallel adds the gradients of {size} ranks in another order in the first step after a start "
            "than in all others, so a resume is not exact; with find_unused_parameters=True it is"
        )
    return None
