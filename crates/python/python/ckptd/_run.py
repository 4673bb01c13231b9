"""A training under ckptd, step by step.

Invariant: a snapshot is a step boundary's state. From `step` to the first `optimizer.step()` after it nobody writes what
a snapshot reads in place; before that update what is not encoded yet is waited for, or copied. A snapshot gets its name
only after the version of each such tensor was found unchanged. Deliberately not here: what a state is (`_state`), what
is said over the socket (`_agent`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import operator
import os
import secrets
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from . import _loader, _random, _ranks
from ._agent import Agent, has_failed, resume_from, told
from ._errors import UseRefused
from ._loader import LoaderPosition, Pass
from ._marks import Mark
from ._native import (
    CkptdError,
    SnapshotFlight,
    SnapshotWriter,
    StoreLocked,
    hash_all,
    spare_bytes,
)
from ._ranks import RankHub, RankMember, RankPlace
from ._state import PREFIX, Boundary, Collected, LiveTensors, TrainingState, address
from ._tensors import TensorItem
from ._values import text_of

# A training on one process.
ALONE = RankPlace(0, 1)
# The first snapshots, and of the others one in so many, are held against hashes that were made at the boundary.
CHECKED_FIRST, CHECKED_ONE_IN = 3, 50
# How long another script may still write to the store.
WRITER_TIMEOUT_S = 60.0
# How long the last state is waited for when another rank is gone; the launcher ends this one 30 s later.
LOSS_TIMEOUT_S = 10.0
# How long a script that was told to end may take for its own clean-up.
LEAVE_TIMEOUT_S = 3.0
# How long one more step is waited for where the agent, which would say so, is gone.
STEP_TIMEOUT_S = 30.0
# How many steps a session may make beyond its end, where the model was written since the one before.
MORE_STEPS = 3
#: What the threads that encode and write a snapshot are called.
FLIGHT_THREADS = "ckptd\n"
NO_STEPS_OF_IT = (
    "batches() was given a loader of whose batches no step was made, and would count it as an epoch of the training: "
    "iterate over a validation loader directly (for batch in loader)"
)
WRITTEN = "the model was written since, and it is no step's state"
TWO_AT_ONCE = (
    "batches() is under way already, and only one loader's place is in a snapshot: draw from one loader (a data set of "
    "pairs, instead of zip), and iterate over a validation loader directly (for batch in loader)"
)


@dataclasses.dataclass
class Flight:
    """A snapshot under way."""

    step: int
    mark: Mark  # of the boundary
    live: LiveTensors
    versions: list[int]  # of what is read in place, at the boundary
    places: list[int]
    about: dict[str, Any]
    is_awaited: bool  # the training's own memory is read after the boundary: an update waits for that
    is_watched: bool = True  # nobody may write before the next update has begun
    checked: list[tuple[TensorItem, str]] = dataclasses.field(default_factory=list)  # with hashes at the boundary
    go: threading.Event = dataclasses.field(default_factory=threading.Event)  # the training does not wait any more
    has_thread: bool = False
    native: SnapshotFlight | None = None  # once it has begun
    begun: threading.Event = dataclasses.field(default_factory=threading.Event)
    capture_ms: float = 0.0
    stall_ms: float = 0.0
    judged: bool = False
    verdict: str | None = None  # why it must not be kept, once judged
    closing: bool = False
    saved: bool = False
    failure: str | None = None
    over: threading.Event = dataclasses.field(default_factory=threading.Event)


@dataclasses.dataclass
class TrainingLink:
    """Who a training speaks to: the agent, or rank 0; at rank 0 of several also the other ranks."""

    agent: Agent | RankMember | None = None
    hub: RankHub | None = None
    here: RankPlace = ALONE


class Run:
    """A training that `attach` has taken charge of."""

    def __init__(self, state: TrainingState | None, link: TrainingLink, loader: Any) -> None:
        self.steps_done = 0  #: Optimiser steps completed, over all sessions.
        self._state, self._agent, self._loader = state, link.agent, loader
        # At rank 0 of several, and at another one.
        self._hub, self._here = link.hub, link.here
        self._member = link.agent if isinstance(link.agent, RankMember) else None
        self._begun_at = 0
        self._at = 0  # the step of the last boundary
        self._leave_at: int | None = None  # the step after which a session that is over ends
        self._exit_code = 0
        self._tokens = 0
        self._position = LoaderPosition()
        self._generators: dict[str, torch.Generator] = {}
        self._pending: _random.RandomState | None = None
        self._pass: Pass | None = None
        self._counted: int | None = None  # the epoch under way in `epochs`
        self._changed = threading.Condition()
        self._boundary: Boundary | None = None
        self._open = False
        self._flight: Flight | None = None
        self._begun = 0
        self._saved_step: int | None = None
        self._wanted: str | None = None
        self._every_steps: int | None = None
        self._stopping = self._over = self._ended = False
        self._losses: deque[tuple[dict[str, Any], torch.Tensor]] = deque()
        self._last_loss: float | None = None
        self._step_began = time.monotonic()
        self._pid = os.getpid()

    @property
    def epoch(self) -> int:
        """The epoch under way, from 0, as `batches` counts them."""
        return max(self._position.epoch, 0)

    def epochs(self, count: int) -> Iterator[int]:
        """The epochs of a training of `count`, from the one under way on."""
        begun = self._position.epoch
        try:
            for epoch in range(begun if self._pending else begun + 1, count):
                self._counted = epoch
                yield epoch
        finally:
            self._counted = None

    def batches(self, loader: Any = None) -> Iterator[Any]:
        """One epoch of the loader, or what is left of it where the training goes on in its middle."""
        loader = self._loader if loader is None else loader
        if loader is None:
            raise CkptdError("batches() needs a loader, here or in attach(loader=...)")
        position, here = self._position, self._begin_pass(loader)
        self._generators = _loader.generators_of(loader)
        pending, self._pending = self._pending, None
        if pending is None:
            position.epoch, position.batch, position.inner = position.epoch + 1, 0, None
            position.start, position.start_text = _random.take(self._generators), None
            iterator = _loader.begin(loader, position.epoch, 0, None)
        else:
            _random.put(position.start or {}, self._generators)
            iterator = _loader.begin(loader, position.epoch, position.batch, position.inner)
            _random.put(pending, self._generators)
        try:
            for batch in iterator:
                if here is not self._pass and self._agent is not None:
                    raise self._refusal(TWO_AT_ONCE)
                position.batch, here.drawn = position.batch + 1, here.drawn + 1
                if _loader.has_state(loader):
                    position.inner = loader.state_dict()
                yield batch
        finally:
            here.is_open = False
        if self._agent is not None and here.is_other and here.is_for_nothing(self.steps_done):
            raise self._refusal(NO_STEPS_OF_IT)

    def _begin_pass(self, loader: Any) -> Pass:
        """Refuses what the place in the data could not be told of."""
        before = self._pass
        is_other = before is not None and before.loader != id(loader)
        if before is not None and is_other and self._agent is not None:
            if before.is_open:
                raise self._refusal(TWO_AT_ONCE)
            if before.is_for_nothing(self.steps_done):
                raise self._refusal(NO_STEPS_OF_IT)
        self._pass = Pass(id(loader), self.steps_done, is_other, self._pending is not None)
        return self._pass

    def _refusal(self, what: str) -> UseRefused:
        """The error to raise, of which the agent is told."""
        error = UseRefused(what)
        if self._agent is not None:
            self._agent.send("failed", failure="config", what=what)
        return error

    def _pass_whole_epoch(self, loader: Any) -> None:
        """Where the snapshot is of an epoch's end, the next one begins."""
        length = len(loader) if hasattr(loader, "__len__") else None
        if self._pending is not None and length is not None and self._position.batch >= length:
            _random.put(self._pending, _loader.generators_of(loader))
            self._pending = None

    def _enter_epoch(self, epoch: int) -> None:
        """For a loop that draws its batches itself, and that shuffles an epoch by the random state of its begin."""
        position = self._position
        pending, self._pending = self._pending, None
        if pending is not None and position.epoch == epoch:
            _random.put(position.start or {}, {})
            return
        if pending is not None:
            _random.put(pending, {})
        position.epoch, position.batch = epoch, 0
        position.start, position.start_text = _random.take({}), None

    def step(self, loss: torch.Tensor | float | None = None, tokens: int = 0) -> None:
        """A step boundary: the optimiser's step is done, and so is all that follows on it (schedulers, an EMA).

        Args:
            loss: of the step, for the history; a CUDA tensor is not waited for.
            tokens: that entered it, for the speed.
        """
        self.steps_done += 1
        if self._agent is None or self._state is None:
            return
        with told(self._agent):
            self._check_epoch()
            tokens = whole("tokens", tokens)
            self._tokens += tokens
            if isinstance(self._agent, RankMember):
                self._bound_as_member(self._agent, self._state)
            else:
                self._bound(self._agent, self._state, loss, tokens)

    def _check_epoch(self) -> None:
        """An epoch of `epochs` is one of `batches`, or a resume would begin another one."""
        if self._counted is not None and self._counted != self._position.epoch:
            raise UseRefused(
                f"a step in epoch {self._counted} of run.epochs(), and batches() is at epoch {self._position.epoch}: "
                "draw each epoch's batches once, from run.batches(loader), or count steps instead: for step in "
                "range(run.steps_done, steps)"
            )

    def _bound(self, agent: Agent, state: TrainingState, loss: torch.Tensor | float | None, tokens: int) -> None:
        boundary = state.boundary(self.steps_done, self._position, self._generators)
        boundary.tokens = self._tokens
        if self._hub is not None:
            if _ranks.is_compared(self.steps_done, self.steps_done - self._begun_at):
                self._hub.compare(self.steps_done, *state.rank_marks())
            self._hub.check()
        self._open_window(boundary)
        self._tell(agent, state, loss, tokens)
        if self._stopping and self._hub is None:
            self._leave_if_last()
        reason, self._wanted = self._wanted, None
        if self._every_steps and self.steps_done % self._every_steps == 0:
            reason = reason or "interval"
        if reason:
            self._begin(reason, hurried=False)

    def _bound_as_member(self, member: RankMember, state: TrainingState) -> None:
        """Rank 0 has the same state but for what it is told here."""
        own, start = state.own_text(self._position, self._generators)
        is_compared = _ranks.is_compared(self.steps_done, self.steps_done - self._begun_at)
        member.boundary(self.steps_done, own, start, state.rank_marks()[1] if is_compared else None)
        self._open_window(None)

    def _open_window(self, boundary: Boundary | None) -> None:
        with self._changed:
            self._boundary, self._open, self._at = boundary, True, self.steps_done
            self._changed.notify_all()

    def save(self) -> None:
        """Makes the state of the last boundary durable, and waits for it.

        For a script that changes the model after its last step, for example to load its best weights; otherwise the last
        state is saved when the script ends. Of several ranks rank 0 does so.

        Raises:
            CkptdError: the optimiser has begun a step since, or the state could not be saved.
        """
        if self._agent is None or self._member is not None:
            return
        if not self._open:
            raise CkptdError("no boundary to save: call run.step() first, after the optimizer's step")
        if self._stopping:
            self._leave_if_last()
        with told(self._agent):
            why = self._secure("asked", lambda: None)
        if why is not None:
            raise CkptdError(f"step {self.steps_done} is not saved: {why}")

    # The history.

    def _tell(self, agent: Agent, state: TrainingState, loss: torch.Tensor | float | None, tokens: int) -> None:
        now = time.monotonic()
        took, self._step_began = (now - self._step_began) * 1e3, now
        fields: dict[str, Any] = {
            "given": loss is not None,
            "step": self.steps_done,
            "learning_rate": learning_rate(state.optimizers),
            "step_ms": took,
            "tokens": tokens,
        }
        if isinstance(loss, torch.Tensor):
            value = loss.detach()
            if value.is_cuda:
                host = torch.empty((), dtype=value.dtype, pin_memory=True)
                value = host.copy_(value.reshape(()), non_blocking=True)
                fields["event"] = torch.cuda.Event()  # type: ignore[no-untyped-call]
                fields["event"].record()
            self._losses.append((fields, value))
        else:
            self._losses.append((fields, torch.tensor(float("nan") if loss is None else float(loss))))
        self._flush_losses(agent)

    def _flush_losses(self, agent: Agent) -> None:
        while self._losses:
            fields, value = self._losses[0]
            event = fields.get("event")
            if event is not None and not event.query():
                return
            self._losses.popleft()
            fields.pop("event", None)
            loss = float(value)
            self._last_loss = loss if fields.pop("given") else None
            agent.send("step", loss=loss, **fields)

    # Snapshots.

    def _begin(self, reason: str, hurried: bool, is_flown_here: bool = False) -> Flight | None:
        """Captures the last boundary, while no update has begun since. `is_flown_here`: on this thread, to its end, as
        when the interpreter ends, which then starts no thread any more."""
        began = time.perf_counter()
        with self._changed:
            state, boundary, agent = self._state, self._boundary, self._agent
            if not self._open or boundary is None or state is None or not isinstance(agent, Agent):
                return None
            if self._flight is not None and not self._flight.over.is_set():
                agent.send("snapshot_skipped", step=self.steps_done, reason=reason)
                return None
            checked = not hurried and (self._begun < CHECKED_FIRST or secrets.randbelow(CHECKED_ONE_IN) == 0)
            self._begun += 1
            if checked:
                self._refresh_copies(state, boundary)
            # What is noted here is all that the training waits for; a thread does the rest.
            live = None if checked else state.live_as_before()
            collected = None
            if live is None:
                collected = state.collect(boundary)
                live = state.live_of(collected)
            flight = Flight(
                step=boundary.step,
                mark=boundary.mark,
                live=live,
                versions=live.versions(),
                places=live.places(),
                about={"reason": reason, "hurried": hurried, "hashes": [], "loss": self._last_loss},
                is_awaited=collected is None or bool(live.tensors),
            )
            if checked and collected is not None:
                self._hash(flight, collected)
            rest = (flight, boundary, collected, state, agent)
            if not is_flown_here:
                is_flown_here = not self._start(*rest) and hurried
            self._flight = flight
        flight.capture_ms = (time.perf_counter() - began) * 1e3
        flight.go.set()
        if is_flown_here:
            self._fly(*rest)
        elif not flight.has_thread:
            self._fail(flight, "no thread could be started for it")
            flight.begun.set()
            flight.over.set()
        return flight

    def _hash(self, flight: Flight, collected: Collected) -> None:
        live = [(index, item) for index, item in enumerate(collected.items) if item.live]
        made = hash_all([address(item.memory) for _, item in live], os.cpu_count() or 1)
        flight.about["hashes"] = [(index, found) for (index, _), found in zip(live, made)]
        flight.checked = [(item, found) for (_, item), found in zip(live, made)]

    def _start(self, flight: Flight, *rest: Any) -> bool:
        fly = threading.Thread(target=self._fly, args=[flight, *rest], name="ckptd snapshot", daemon=True)
        # It raises where there are too many, or when the interpreter ends.
        with contextlib.suppress(RuntimeError):
            fly.start()
            flight.has_thread = True
        return flight.has_thread

    def _fail(self, flight: Flight, what: str, disk_full: bool = False) -> None:
        flight.failure = what
        if self._agent is not None:
            self._agent.send("snapshot_failed", step=flight.step, what=what, disk_full=disk_full)

    def _fly(
        self, flight: Flight, boundary: Boundary, collected: Collected | None, state: TrainingState, agent: Agent
    ) -> None:
        """The rest of a snapshot, beside the training: its tensors, if they are those of the one before; its texts, its
        file, its end."""
        # A thread that is started has the interpreter first.
        flight.go.wait()
        try:
            reason = flight.about["reason"]
            agent.send("snapshot_started", step=flight.step, reason=reason, capture_ms=flight.capture_ms)
            if collected is None:
                collected = state.collect_later(boundary, flight.live, flight.places)
            capture = state.describe(collected, torch.get_num_threads())
            settings = capture.settings
            if self._hub is not None:
                said = _ranks.rank_settings(self._hub.own_states(flight.step))
                settings = sorted([*settings, *((PREFIX + key, text_of(value)) for key, value in said.items())])
            about = {
                **flight.about,
                "step": boundary.step,
                "epoch": boundary.epoch,
                "position": boundary.batch,
                "tokens": boundary.tokens,
                "settings": settings,
                "host": socket.gethostname(),
                "device": state.device(),
                "torch": torch.__version__,
            }
            native = self._writer.begin([item.given() for item in capture.items], capture.items, about)
            with self._changed:
                flight.native, judged = native, flight.judged
            if judged:
                native.judge(flight.verdict)
            flight.begun.set()
            self._conclude(flight, native, agent)
        except Exception as error:  # noqa: BLE001
            # The model was changed meanwhile, for example: the training goes on, and the agent knows.
            self._fail(flight, f"{type(error).__name__}: {error}")
        finally:
            if flight.native is not None and not flight.saved:
                flight.native.cancel()
            flight.begun.set()
            flight.over.set()

    def _refresh_copies(self, state: TrainingState, boundary: Boundary) -> None:
        stale = state.stale_copies(boundary.copies, os.cpu_count() or 1)
        if stale:
            state.forget_copies(stale)
            boundary.copies.update(state.copy_buffers())
            self._warn(
                f"{', '.join(stale)}: written without a word (as through .data); copied at every step from now on"
            )

    def _before_update(self, optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        """Hook of an optimiser's step. Those of torch call their closure, forward and backward, before they write."""
        arguments = {**dict(enumerate(args)), **kwargs}
        place = "closure" if "closure" in kwargs else 1
        closure = arguments.get(place)
        if not callable(closure) or not type(optimizer).__module__.startswith("torch.optim."):
            self._close()
            return None

        def closed(*inner_args: Any, **inner_kwargs: Any) -> Any:
            result = closure(*inner_args, **inner_kwargs)
            self._close()
            return result

        if place == "closure":
            return args, {**kwargs, "closure": closed}
        return (args[0], closed, *args[2:]), kwargs

    def _close(self) -> None:
        """The optimiser is about to write: nothing may be read from its tensors after this."""
        if self._agent is None or os.getpid() != self._pid:
            return
        with self._changed:
            # Between two optimisers' steps there is no state to save: the next boundary is waited for.
            if self._stopping and self._open:
                self._leave_if_last()
            self._open = False
            flight = self._flight
            if flight is None:
                return
            if self._state is not None:
                self._state.copies.hold()
            flight.closing = not flight.judged
        self._compare(flight)
        if flight.judged:
            # It was whole before they were written; the next one may not be.
            self._distrust(self._written(flight))
            flight.is_watched = False
            return
        began = time.perf_counter()
        if flight.is_awaited:
            flight.begun.wait()
        if flight.native is not None and not flight.native.is_released():
            flight.native.hurry()
            flight.native.release(spare_bytes(self._memory, flight.live.bytes))
        flight.stall_ms += (time.perf_counter() - began) * 1e3
        self._judge(flight)
        flight.is_watched = False

    def _compare(self, flight: Flight) -> None:
        """At the end of its window a checked snapshot's tensors must hash to what they did at its begin. What does not
        has a writer that nobody announces, and that may come earlier the next time."""
        checked, flight.checked = flight.checked, []
        if not checked:
            return
        began = time.perf_counter()
        hashes = hash_all([address(item.memory) for item, _ in checked], os.cpu_count() or 1)
        self._distrust([item.label for (item, then), now in zip(checked, hashes) if then != now])
        flight.stall_ms += (time.perf_counter() - began) * 1e3

    def _judge(self, flight: Flight) -> None:
        """Whether all that was read in place is as it was; what was not loses its trust."""
        with self._changed:
            if flight.judged:
                return
            flight.judged = True
            torn = self._written(flight)
            if torn:
                flight.verdict = f"{', '.join(torn[:3])} was written before the optimiser's step"
            native = flight.native
        self._distrust(torn)
        if native is not None:
            native.judge(flight.verdict)

    def _written(self, flight: Flight) -> list[str]:
        """What was written since the boundary, or is elsewhere."""
        if not flight.is_watched:
            return []
        live, written = flight.live, flight.mark.written()
        versions, places = live.versions(), live.places()
        if versions == flight.versions and places == flight.places:
            return written
        now = zip(live.labels, zip(versions, places), zip(flight.versions, flight.places))
        return list(dict.fromkeys([*(label for label, found, then in now if found != then), *written]))

    def _distrust(self, labels: list[str]) -> None:
        """These are copied at boundaries from now on."""
        if self._state is None:
            return
        labels = [label for label in labels if label not in self._state.copied]
        if not labels:
            return
        self._state.forget_copies(labels)
        self._warn(
            f"{', '.join(labels[:3])}{' and others' if len(labels) > 3 else ''}: written between a step boundary and the "
            "optimiser's step; a snapshot that has such bytes is discarded, and these are copied at each step from now on"
        )

    def _conclude(self, flight: Flight, native: SnapshotFlight, agent: Agent) -> None:
        """Waits for a snapshot's end, and tells it."""
        native.wait_encoded(None)
        with self._changed:
            # No update can begin before the marks are looked at; one that has begun looks at them itself.
            if not flight.closing:
                self._judge(flight)
        said = native.wait(None) or {}
        if "path" in said:
            flight.saved = True
            self._saved_step = flight.step
            agent.send(
                "committed",
                step=flight.step,
                seq=native.seq,
                path=said["path"],
                bytes=said["bytes"],
                raw_bytes=said["raw_bytes"],
                capture_ms=flight.capture_ms,
                write_ms=said["write_ms"],
                stall_ms=flight.capture_ms + flight.stall_ms,
            )
        else:
            if said.get("torn"):
                self._distrust(list(said["torn"]))
            self._fail(flight, said.get("what", "?"), bool(said.get("disk_full")))

    def _take_last(self, reason: str, within: float | None) -> None:
        """Makes the newest completed state durable; if the model was written since, the one after another step."""
        until = None if within is None else time.monotonic() + within

        def left() -> float | None:
            return None if until is None else max(until - time.monotonic(), 0.0)

        for _ in range(MORE_STEPS):
            with self._changed:
                self._changed.wait_for(
                    lambda: (self._open and self._at >= (self._leave_at or 0)) or self._ended, left()
                )
                at, ended = self._at, self._ended
            why = self._secure(reason, left, is_end=True)
            if why is None:
                return
            if self._flight is None or why != self._flight.failure:
                self._warn(f"step {self.steps_done} is not saved: {why}")
            is_written = self._is_written()
            if ended or self._hub is not None or left() == 0.0 or not (is_written or why == WRITTEN):
                return
            if until is None:
                until = time.monotonic() + STEP_TIMEOUT_S
            # Where all has been put back meanwhile, it is a step's state again.
            if is_written:
                self._decide_end(at + 1)

    def _secure(self, reason: str, left: Callable[[], float | None], is_end: bool = False) -> str | None:
        """Makes the last boundary durable, in the seconds that are left. Returns why not, if it is not. `is_end`: what
        the script computes meanwhile is not needed any more."""
        flight = self._flight
        if flight is not None and not flight.over.is_set():
            if is_end:
                yield_processors()
            self._hasten(flight, left)
        if self._saved_step == self.steps_done or self.steps_done == 0:
            return None
        if self._is_written():
            return WRITTEN
        if is_end:
            yield_processors()
        last = self._begin(reason, hurried=True, is_flown_here=left() is None)
        if last is None:
            return "the step after it was under way" if not self._open else "another snapshot was under way"
        return last.failure if last.over.wait(left()) else "the time was over"

    def _hasten(self, flight: Flight, left: Callable[[], float | None]) -> None:
        """Waits for a snapshot that is under way; one of an older step gets half of the time."""
        flight.begun.wait(left())
        if flight.native is not None:
            flight.native.hurry()
        same, seconds = flight.step == self.steps_done, left()
        if not flight.over.wait(seconds if same or seconds is None else seconds / 2) and not same:
            if flight.native is not None:
                flight.native.cancel()
            flight.over.wait(left())

    # The end.

    def _serve(self, agent: Agent) -> None:
        """Obeys the agent, until it says stop or is gone."""
        stop = self._obey(agent)
        at = self._claim_end(0)
        if at is None:
            return
        try:
            self._decide_end(self._hub.agree(at) if self._hub is not None else 0)
            if stop.get("snapshot", True):
                within = stop.get("within_ms")
                self._take_last(stop.get("reason", "the agent is gone"), None if within is None else within / 1e3)
        except Exception as error:  # noqa: BLE001
            self._warn(f"the last state is not saved: {type(error).__name__}: {error}")
        try:
            self._flush_losses(agent)
            agent.send("done", step=self.steps_done, finished=False)
            if self._hub is not None:
                self._hub.over(is_session=True)
        finally:
            self._end()

    def _obey(self, agent: Agent) -> dict[str, Any]:
        """Does what the agent says. Returns its command to stop; nothing: it is gone, or not understood."""
        try:
            while (command := agent.command()) is not None:
                kind = command.get("command")
                if kind == "snapshot":
                    self._wanted = command["reason"]
                elif kind == "configure":
                    self._every_steps = command["every_steps"]
                    self._writer.configure(command["level"], command["encode_threads"])
                elif kind == "stop":
                    return command
        except Exception as error:  # noqa: BLE001
            self._warn(f"a command of the agent was not understood ({error!r}), and so the session is over")
        return {}

    def _serve_as_member(self, member: RankMember) -> None:
        """Obeys rank 0, until it says that all is over or is gone."""
        exit_code = 1
        while (command := member.command()) is not None:
            kind = command["command"]
            if kind == "hold" and (at := self._claim_end(0)) is not None:
                member.at(at)
            elif kind == "leave":
                self._decide_end(command["step"])
            elif kind == "end":
                return
            elif kind == "over":
                exit_code = 0
                break
        # If it was not told to end before, it ends now.
        self._claim_end(exit_code)
        if self._leave_at is None:
            self._decide_end(0)
        self._end()

    def _lose(self, rank: int) -> None:
        """Another rank is gone, and no step can be made without it."""
        if self._claim_end(1) is None:
            return
        self._warn(f"rank {rank} is gone, and so the others end")
        self._decide_end(0)
        try:
            self._take_last("a rank is gone", LOSS_TIMEOUT_S)
        except Exception as error:  # noqa: BLE001
            self._warn(f"the last state is not saved: {type(error).__name__}: {error}")
        finally:
            self._end()

    def _claim_end(self, exit_code: int) -> int | None:
        """The script is to end, if it is not ending already: with the boundary that it cannot go back behind. Until
        `_decide_end` no update begins."""
        with self._changed:
            if self._stopping or self._over:
                return None
            self._stopping, self._exit_code = True, exit_code
            self._changed.notify_all()
            return self._at if self._open or self._ended else self._at + 1

    def _decide_end(self, leave_at: int) -> None:
        with self._changed:
            self._leave_at = leave_at
            self._changed.notify_all()

    def _end(self) -> None:
        """All is safe; the script ends by itself, or is ended."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        time.sleep(LEAVE_TIMEOUT_S)
        os._exit(self._exit_code)

    def _leave_if_last(self) -> None:
        """The session is over: waits until the state is safe, and ends the script, unless a step is left to make."""
        with self._changed:
            self._changed.wait_for(lambda: self._over or (self._leave_at is not None and self._at < self._leave_at))
            if self._over:
                raise SystemExit(self._exit_code)

    def _finish(self) -> None:
        """At the end of the script."""
        agent = self._agent
        if os.getpid() != self._pid or agent is None:
            return
        with self._changed:
            self._ended = True
            self._changed.notify_all()
            if self._stopping:
                self._changed.wait_for(lambda: self._over)
                return
            self._over = True
            complete = self._open
        if isinstance(agent, RankMember):
            if not has_failed():
                agent.ended()
            return
        self._save_as_left(agent, complete)
        if self._hub is not None and not has_failed():
            self._hub.over(is_session=False)

    def _save_as_left(self, agent: Agent, complete: bool) -> None:
        self._flush_losses(agent)
        if not complete or self._saved_step == self.steps_done:
            return
        if self._is_written() and self._state is not None:
            # Its best weights were loaded, for example; buffers are to be of the same moment.
            self._warn(
                f"the model was written after step {self.steps_done}, and is saved as the script leaves it; call "
                "run.save() after the last step to keep that step's state"
            )
            boundary = self._state.boundary(self.steps_done, self._position, self._generators)
            boundary.tokens, self._boundary = self._tokens, boundary
        self._secure("final", lambda: None)

    def _is_written(self) -> bool:
        """Whether somebody wrote the model since the last boundary."""
        return self._boundary is not None and bool(self._boundary.mark.written())

    def _warn(self, message: str) -> None:
        if self._agent:
            self._agent.send("log", level="warn", message=message)

    def _forked(self) -> None:
        # A loader's worker, or another process of the script's own: it saves nothing.
        self._agent = self._member = self._hub = None

    # The beginning.

    def _open_store(self, agent: Agent) -> None:
        start = agent.start
        snapshot = start["config"]["snapshot"]
        self._memory = snapshot.get("memory", "auto")
        store, until = start["config"]["job"]["store"], time.monotonic() + WRITER_TIMEOUT_S
        while True:
            try:
                self._writer = SnapshotWriter(
                    store, start["run_id"], start["next_seq"], snapshot["level"], snapshot["encode_threads"]
                )
                break
            except StoreLocked:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        self._every_steps = snapshot["every_steps"]

    def _resume(self, agent: Agent | RankMember) -> None:
        snapshot, state = resume_from(agent), self._state
        if snapshot is None or state is None:
            return
        agent.send("progress", stage="loading the snapshot", fraction=None)
        accept = bool(agent.start["accept_changes"])
        settings = state.restore(snapshot._file, snapshot.manifest, accept, self._here)
        if self._member is None:
            self._writer.follow(snapshot.root)
        self._begun_at = self._at = snapshot.step
        self.steps_done = self._saved_step = snapshot.step
        self._tokens = int(snapshot.manifest["train"]["tokens_seen"])
        written = settings["loader"]
        position = self._position
        position.epoch, position.batch, position.inner = written["epoch"], written["batch"], written["inner"]
        position.start_text = written["start"]
        here = _random.of_settings(settings)
        if position.start_text is not None:
            position.start = _random.untext(position.start_text)
            self._pending = here
        _random.put(here, {})

    def _ready(self, agent: Agent) -> None:
        state = self._state
        assert state is not None
        unique, _ = state.unique_tensors()
        sizes = {role: 0 for role, _, _ in unique}
        for role, _, tensor in unique:
            sizes[role] += tensor.numel() * tensor.element_size()
        parameters = sum(tensor.numel() for role, _, tensor in unique if role == "param")
        moments = sum(moments_of(optimizer) for optimizer in state.optimizers)
        agent.send(
            "ready",
            step=self.steps_done,
            total_steps=0,
            parameters=parameters,
            state_bytes=sum(sizes.values()) + moments,
            resumed=f"step {self.steps_done}" if self.steps_done else None,
            device=state.device(),
            threads=torch.get_num_threads(),
        )


def yield_processors() -> None:
    """Leaves them to this thread, to those that it starts and to a snapshot under way, for good: a backward pass under way
    on all of them would have the last state wait for it."""
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if int(thread.name) != threading.get_native_id() and (thread / "comm").read_text() != FLIGHT_THREADS:
                os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


def moments_of(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimiser's own tensors. Before its first step it has none yet: then as many as Adam's, which are the
    most that is usual."""
    held = sum(
        value.numel() * value.element_size() for state in optimizer.state.values() for value in tensors_in(state)
    )
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return held or 2 * sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def tensors_in(state: Any) -> list[torch.Tensor]:
    return [value for value in state.values() if isinstance(value, torch.Tensor)] if isinstance(state, dict) else []


def whole(name: str, number: Any) -> int:
    try:
        return operator.index(number)
    except TypeError as error:
        raise UseRefused(
            f"{name} is {number!r}, a {type(number).__name__}: give a whole number, int({name})"
        ) from error


def learning_rate(optimizers: list[torch.optim.Optimizer]) -> float:
    """Of the first optimiser's first group; 0 where it has none."""
    rate = optimizers[0].param_groups[0].get("lr") if optimizers else None
    found = 0.0 if rate is None else float(rate)
    if not math.isfinite(found):
        raise UseRefused(
            f"the learning rate of optimizer 0, group 0 is {found}: no training goes on from there; mend its schedule"
        )
    return found
