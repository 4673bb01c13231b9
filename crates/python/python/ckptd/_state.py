"""The state of a training: which tensors and values it has, how they are named, and how they are put back.

Invariant: everything that decides the future is in the tensors or in the settings, which the snapshot's root covers.
Tensors that only an optimiser's step writes are read from the training's own memory between two steps; all else is
copied at a step boundary. Deliberately not here: when that is (`_run`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from . import _random
from ._device import HostCopies, HostCopy
from ._errors import StateChanged, StateRefused
from ._loader import LoaderPosition
from ._marks import SAMPLE_BYTES, Mark, Marker
from ._native import SnapshotFile, SnapshotMismatch, copy_all, hash_all
from ._ranks import RankPlace, distributed_parts, refuse_what_ranks_divide, settings_of_rank
from ._tensors import TensorItem, copy_of, empty_like_file, file_form, foreign_type, item_of, plain_tensor
from ._values import has_parts, inline_form, is_small, read_value, refuse, text_of, write_value

# What an optimiser calls its moments, and version 1 of the snapshot file knows: tensors of the parameter's shape.
MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer")
# Buffers of up to so many bytes are copied at every boundary: a forward pass of BatchNorm writes its running mean and
# variance, and their version counters do not tell.
ALWAYS_COPIED = 256 << 10
# Where the settings of a training script begin.
PREFIX = "python."
LAYOUT = "1"


@dataclasses.dataclass
class Boundary:
    """All that is copied between two steps."""

    step: int
    texts: dict[str, Any]
    groups: list[Any]
    copies: dict[str, TensorItem]
    random: _random.RandomState
    loader: dict[str, Any]
    epoch: int
    batch: int
    mark: Mark
    tokens: int = 0


@dataclasses.dataclass
class Capture:
    """A snapshot's tensors and settings."""

    items: list[TensorItem]
    settings: list[tuple[str, str]]


@dataclasses.dataclass
class Collected:
    """A snapshot's tensors, and what its texts are made of."""

    boundary: Boundary
    items: list[TensorItem]
    listed: tuple[list[tuple[str, str, torch.Tensor]], dict[str, str]]
    optimizers: list[dict[str, Any]]


@dataclasses.dataclass
class LiveTensors:
    """What a snapshot reads in place."""

    labels: list[str]
    tensors: list[torch.Tensor]
    bytes: int
    held: list[int]  # the optimisers' state by its identities

    def versions(self) -> list[int]:
        return [tensor._version for tensor in self.tensors]

    def places(self) -> list[int]:
        return [tensor.data_ptr() for tensor in self.tensors]


@dataclasses.dataclass
class LateForm:
    """A small tensor of a GPU, which is written into the text when its copy is there."""

    tensor: torch.Tensor
    copy: HostCopy


@dataclasses.dataclass
class Slot:
    """The state of one parameter in an optimiser: what is written of it, and which tensors are read."""

    ids: list[int]
    values: list[Any]  # held, so that no other object gets these ids
    written: dict[str, Any]
    small: list[tuple[str, torch.Tensor]]
    tensors: list[tuple[str, str, torch.Tensor]]


# Role and name of a tensor that is copied at boundaries, and where it is found then.
Watched = tuple[str, str, Any, str]


class TrainingState:
    """What a training consists of."""

    def __init__(self, model: Any, optimizers: list[Any], schedulers: list[Any], extra: Mapping[str, Any]) -> None:
        self.copies = HostCopies()
        self.modules = modules_of(model)
        self.ranked = ranked_parts(model, extra)
        self.optimizers = optimizers
        self.schedulers = schedulers
        self.extra = dict(extra)
        self.copied: set[str] = set()
        self._buffers: dict[str, tuple[int, int, TensorItem]] = {}
        self._listed: tuple[list[tuple[str, str, torch.Tensor]], dict[str, str]] | None = None
        self._items: dict[tuple[str, str], TensorItem] = {}
        self._slots: dict[tuple[int, int], Slot] = {}
        self._live: LiveTensors | None = None
        self._names: dict[int, dict[int, str]] = {}
        for index, optimizer in enumerate(optimizers):
            if not isinstance(optimizer, torch.optim.Optimizer):
                raise refuse(f"optimizer {index}", optimizer)
        for index, scheduler in enumerate(schedulers):
            if not stateful(scheduler):
                raise refuse(f"scheduler {index}", scheduler)
        for name, value in self.extra.items():
            if kind_of(value) == "unknown":
                raise refuse(f"extra[{name!r}]", value)
        refuse_what_ranks_divide(self.ranked, optimizers)
        for index, optimizer in enumerate(optimizers):
            refuse_wrapper(index, optimizer)
        self.parameter_names()
        self.watch()

    # What there is.

    def tensors(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Role, name and tensor of all but the optimisers' state."""
        for prefix, module in self.modules.items():
            for name, parameter in module.named_parameters():
                yield "param", prefix + name, parameter
            for name, buffer in module.named_buffers():
                yield "buffer", prefix + name, buffer
        for key, value in self.extra.items():
            if isinstance(value, torch.nn.Module):
                value = unwrapped(value)
                for name, tensor in [*value.named_parameters(), *value.named_buffers()]:
                    yield "state", f"extra.{key}.{name}", tensor
            elif isinstance(value, torch.Tensor):
                yield "state", f"extra.{key}", value

    def unique_tensors(self) -> tuple[list[tuple[str, str, torch.Tensor]], dict[str, str]]:
        """The same, each memory once; and what other names it has."""
        seen: dict[tuple[int, tuple[int, ...], tuple[int, ...], torch.dtype], str] = {}
        unique, aliases = [], {}
        for role, name, tensor in self.tensors():
            label = f"{role} {name}"
            plain = plain_tensor(tensor, label)
            key = (plain.data_ptr(), tuple(plain.shape), plain.stride(), plain.dtype)
            if plain.numel() > 0 and plain.device.type == "cpu" and key in seen:
                aliases[label] = seen[key]
                continue
            seen[key] = label
            unique.append((role, name, tensor))
        return unique, aliases

    def parameter_names(self) -> list[list[list[str]]]:
        """By optimiser and group."""
        names = {id(tensor): name for role, name, tensor in self.tensors() if role in ("param", "state")}
        for index, optimizer in enumerate(self.optimizers):
            for number, group in enumerate(optimizer.param_groups):
                for place, parameter in enumerate(group["params"]):
                    if id(parameter) not in names:
                        raise refuse_parameter(f"optimizer {index}, group {number}, parameter {place}")
        return [
            [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]
            for optimizer in self.optimizers
        ]

    # At a boundary.

    def boundary(self, step: int, loader: LoaderPosition, generators: dict[str, torch.Generator]) -> Boundary:
        copies: dict[str, TensorItem] = {}

        def copied(path: str, tensor: torch.Tensor) -> Any:
            copies[path] = copy_of(item_of("state", path, tensor, self.copies.in_order))
            return reference("state", path, tensor)

        self.copies.bound(self._tensors)
        texts: dict[str, Any] = {}
        for path, part in self._own_state:
            texts[path] = write_value(part.get_extra_state(), path, copied)
        for index, scheduler in enumerate(self.schedulers):
            path = f"scheduler.{index}"
            texts[path] = [type(scheduler).__name__, write_value(scheduler.state_dict(), path, copied)]
        for key, value in self.extra.items():
            if kind_of(value) not in ("module", "tensor"):
                texts[f"extra.{key}"] = write_value(extra_value(value), f"extra.{key}", copied)
        groups = []
        for index, optimizer in enumerate(self.optimizers):
            path = f"optimizer.{index}.group"
            groups.append(
                [
                    {
                        key: write_value(value, f"{path}.{number}.{key}", copied)
                        for key, value in group.items()
                        if key != "params"
                    }
                    for number, group in enumerate(optimizer.param_groups)
                ]
            )
        position = loader.written()
        if loader.inner is not None:
            position["inner"] = write_value(loader.inner, "loader", copied)
        copies.update(self.copy_buffers())
        taken = _random.take(generators)
        epoch = max(loader.epoch, 0)
        return Boundary(step, texts, groups, copies, taken, position, epoch, loader.batch, self.mark())

    def own_text(self, loader: LoaderPosition, generators: dict[str, torch.Generator]) -> tuple[str, Any]:
        """What of a rank's state is its own, but for the random state with which its epoch began, which comes second."""
        position = loader.written()
        start = position.pop("start")
        if loader.inner is not None:
            position["inner"] = write_value(loader.inner, "the loader's state", rank_tensor)
        extra = {
            key: write_value(extra_value(value), f"extra.{key}", rank_tensor)
            for key, value in self.extra.items()
            if kind_of(value) == "generator"
        }
        return text_of({"random": _random.texts(_random.take(generators)), "loader": position, "extra": extra}), start

    def rank_marks(self) -> tuple[list[str], list[int]]:
        """Names, and a few bytes of each, of what must be the same on all ranks. Buffers are rank 0's where
        DistributedDataParallel broadcasts them."""
        sent = distributed_parts(self.ranked)
        skipped = ("buffer", "state") if sent and all(part.broadcast_buffers for part in sent) else ("state",)
        unique, _ = self.unique_tensors()
        kept = [(f"{role} {name}", tensor) for role, name, tensor in unique if role not in skipped]
        return [label for label, _ in kept], [sample(tensor) for _, tensor in kept]

    def mark(self) -> Mark:
        """Of the tensors that only the optimisers may write, as they are now."""
        return self._marker.mark()

    def watch(self) -> None:
        """Lists anew what is copied at boundaries (buffers, and what is written without a word), and what is not."""
        self._watched = [*self.watched_of_modules(), *self.watched_of_extra()]
        copied = {f"{role} {name}" for role, name, _, _ in self._watched}
        named = ((f"{role} {name}", plain_tensor(tensor, f"{role} {name}")) for role, name, tensor in self.tensors())
        self._live = None
        self._tensors = [tensor for _, _, tensor in self.tensors()]
        self._own_state = list(self.parts_with_own_state())
        self._marker = Marker([(label, tensor) for label, tensor in named if label not in copied])

    def parts_with_own_state(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """The modules that have more to say than their tensors, and how that is called."""
        extra = {f"extra.{k}.": unwrapped(v) for k, v in self.extra.items() if isinstance(v, torch.nn.Module)}
        for prefix, module in [*self.modules.items(), *extra.items()]:
            for path, part in module.named_modules():
                if type(part).get_extra_state is not torch.nn.Module.get_extra_state:
                    yield f"module.{prefix}{path}.get_extra_state()", part

    def watched_of_modules(self) -> Iterator[Watched]:
        for prefix, module in self.modules.items():
            yield from self.watched_of(module, prefix, "param", "buffer")

    def watched_of_extra(self) -> Iterator[Watched]:
        for key, value in self.extra.items():
            if isinstance(value, torch.nn.Module):
                yield from self.watched_of(unwrapped(value), f"extra.{key}.", "state", "state")
            elif f"state extra.{key}" in self.copied:
                yield "state", f"extra.{key}", self.extra, key

    def watched_of(self, module: torch.nn.Module, prefix: str, param: str, buffer: str) -> Iterator[Watched]:
        for path, part in module.named_modules():
            start = f"{prefix}{path}." if path else prefix
            yield from (
                (buffer, start + key, part._buffers, key) for key, held in part._buffers.items() if held is not None
            )
            for key in part._parameters:
                if f"{param} {start}{key}" in self.copied:
                    yield param, start + key, part._parameters, key

    def copy_buffers(self) -> dict[str, TensorItem]:
        """Copies of what a forward pass may write, where that has changed since the last copy."""
        copies, moved = {}, []
        for role, name, held, key in self._watched:
            tensor = held[key]
            if tensor is None:
                continue
            label = f"{role} {name}"
            known = self._buffers.get(label)
            if known is None or known[2].tensor is not tensor:
                plain_tensor(tensor, label)
            mark = (tensor.data_ptr(), tensor._version)
            # The tensor that was copied is held, so that no other one can have its address.
            small = tensor.numel() * tensor.element_size() <= ALWAYS_COPIED
            same = known is not None and known[2].tensor is tensor and known[:2] == mark
            if known is None or not same or small or label in self.copied:
                item = item_of(role, name, tensor, self.copies.in_order)
                if item.live:
                    source, item = (
                        item.memory,
                        dataclasses.replace(item, memory=torch.empty_like(item.memory), live=False),
                    )
                    moved.append((source.data_ptr(), item.memory.data_ptr(), source.numel() * source.element_size()))
                known = (*mark, item)
                self._buffers[label] = known
            copies[label] = known[2]
        copy_all(moved)
        return copies

    def stale_copies(self, copies: Mapping[str, TensorItem], threads: int) -> list[str]:
        """Those whose tensor has other bytes by now, although nothing announced that. To be asked at the boundary."""
        items = [item.settled() for label, item in copies.items() if label == item.label]
        now = [item_of(item.role, item.name, item.tensor) for item in items]
        pairs = [(kept.memory, is_now.memory) for kept, is_now in zip(items, now)]
        hashes = hash_all([address(memory) for pair in pairs for memory in pair], threads)
        return [item.label for item, then, found in zip(items, hashes[::2], hashes[1::2]) if then != found]

    def forget_copies(self, labels: list[str]) -> None:
        """These were written without a word: they are copied at every boundary from now on."""
        self.copied.update(labels)
        self.watch()

    # A snapshot, of the last boundary; no step has been made since.

    def capture(self, boundary: Boundary, threads: int) -> Capture:
        """Tensors and settings of a snapshot."""
        return self.describe(self.collect(boundary), threads)

    def collect(self, boundary: Boundary) -> Collected:
        """The tensors, by what is known of their names and places since the last time: little work, since the training
        waits for it."""
        if self._listed is None:
            self._listed = self.unique_tensors()
        items: dict[tuple[str, str], TensorItem] = {}

        def add(item: TensorItem) -> None:
            if (item.role, item.name) in items:
                raise refuse_twice(item.label)
            items[item.role, item.name] = item

        unique, _ = self._listed
        for role, name, tensor in unique:
            add(boundary.copies.get(f"{role} {name}") or self.item(role, name, tensor))
        # What is copied in a list of its own stands there under its path.
        for path, copy in boundary.copies.items():
            if path != copy.label:
                add(copy)
        written = [self.optimizer_state(index, add, items) for index in range(len(self.optimizers))]
        collected = Collected(boundary, list(items.values()), self._listed, written)
        self._live = self.live_of(collected) if self.is_read_later(collected) else None
        return collected

    def live_of(self, collected: Collected) -> LiveTensors:
        live = [item for item in collected.items if item.live]
        length = sum(address(item.memory)[1] for item in live)
        return LiveTensors([item.label for item in live], [item.tensor for item in live], length, self.held())

    def held(self) -> list[int]:
        """Identities of all that the optimisers' state has."""
        states = (optimizer.state for optimizer in self.optimizers)
        slots = (slot for state in states for slot in state.items())
        return [found for parameter, values in slots for found in (id(parameter), *map(id, values.values()))]

    def is_read_later(self, collected: Collected) -> bool:
        """Whether nothing but version counters and places need be noted at a boundary like this one: all else stays as
        it is until the optimisers' next step."""
        copies = {id(item) for item in collected.boundary.copies.values()}
        is_known = all(slot.ids or not slot.values for slot in self._slots.values())
        return is_known and all(item.live or id(item) in copies for item in collected.items)

    def live_as_before(self) -> LiveTensors | None:
        """What the last snapshot read in place, if this one reads the same."""
        return self._live if self._live is not None and self._live.held == self.held() else None

    def collect_later(self, boundary: Boundary, live: LiveTensors, places: list[int]) -> Collected:
        """The same as `collect`, on any thread and before the optimisers' next step. Raises StateChanged where that is
        not what was read in place before."""
        collected = self.collect(boundary)
        items = [item for item in collected.items if item.live]
        if [id(item.tensor) for item in items] != [id(tensor) for tensor in live.tensors] or places != [
            item.memory.data_ptr() for item in items
        ]:
            self._live = None
            raise changed()
        return collected

    def describe(self, collected: Collected, threads: int) -> Capture:
        """The same with its texts; on any thread. Raises StateRefused where the model has other tensors by now."""
        boundary, (unique, aliases) = collected.boundary, collected.listed
        now, aliases_now = self.unique_tensors()
        if aliases != aliases_now or identities(unique, boundary) != identities(now, boundary):
            self._listed = None
            self.watch()
            raise changed()
        settings = {f"{PREFIX}{path}": text_of(written) for path, written in boundary.texts.items()}
        for index, (optimizer, state) in enumerate(zip(self.optimizers, collected.optimizers)):
            names = self.parameter_names()[index]
            groups = [{**group, "params": of_group} for group, of_group in zip(boundary.groups[index], names)]
            state = {name: {key: formed(value) for key, value in slots.items()} for name, slots in state.items()}
            settings[f"{PREFIX}optimizer.{index}"] = text_of([type(optimizer).__name__, groups, state])
        for name, value in _random.texts(boundary.random).items():
            settings[f"{PREFIX}random.{name}"] = text_of(value)
        settings[f"{PREFIX}loader"] = text_of(boundary.loader)
        settings[f"{PREFIX}layout"] = LAYOUT
        types = {item.label: own for item in collected.items if (own := foreign_type(item.tensor))}
        if types:
            settings[f"{PREFIX}types"] = text_of(types)
        if aliases:
            settings[f"{PREFIX}tied"] = text_of(aliases)
        settings.update(device=self.device(), threads=str(threads))
        return Capture([item.settled() for item in collected.items], sorted(settings.items()))

    def item(self, role: str, name: str, tensor: torch.Tensor) -> TensorItem:
        """The tensor as it is now; its description is kept for as long as it is where it was."""
        known = self._items.get((role, name))
        if known is not None and known.tensor is tensor and known.memory.data_ptr() == tensor.data_ptr():
            return known
        made = item_of(role, name, tensor, self.copies.beside)
        if made.live:
            self._items[role, name] = made
        return made

    def optimizer_state(
        self, index: int, add: Callable[[TensorItem], None], known: Mapping[tuple[str, str], TensorItem]
    ) -> dict[str, Any]:
        """The state of an optimiser by parameter; its tensors are added."""
        optimizer = self.optimizers[index]
        written: dict[str, Any] = {}
        names = self.parameter_names_of(index)
        for parameter, values in optimizer.state.items():
            name = names.get(id(parameter))
            if name is None:
                raise refuse(f"optimizer {index}: its state has the key {parameter!r}, and that", parameter)
            slot = self._slots.get((index, id(parameter)))
            if slot is None or slot.ids != [id(value) for value in values.values()]:
                slot = self.slot(index, name, parameter, values, known)
                self._slots[index, id(parameter)] = slot
            for role, own, tensor in slot.tensors:
                item = self.item(role, own, tensor)
                add(copy_of(item) if item.label in self.copied else item)
            # Small tensors are read anew.
            written[name] = {**slot.written, **{key: self.small_form(tensor) for key, tensor in slot.small}}
        # In the order of the groups, whatever the order of the first steps was.
        return {name: written[name] for name in names.values() if name in written}

    def small_form(self, tensor: torch.Tensor) -> Any:
        copy = self.copies.beside(tensor)
        return inline_form(tensor) if copy is None else LateForm(tensor, copy)

    def parameter_names_of(self, index: int) -> dict[int, str]:
        """Names by identity, for as long as the groups have the same parameters."""
        ids = [id(parameter) for group in self.optimizers[index].param_groups for parameter in group["params"]]
        known = self._names.get(index)
        if known is None or list(known) != ids:
            names = [name for group in self.parameter_names()[index] for name in group]
            self._names[index] = known = dict(zip(ids, names))
        return known

    def slot(
        self,
        index: int,
        name: str,
        parameter: torch.Tensor,
        values: Mapping[str, Any],
        known: Mapping[tuple[str, str], TensorItem],
    ) -> Slot:
        """What the state of one parameter consists of."""
        slot = Slot([id(value) for value in values.values()], list(values.values()), {}, [], [])

        def sink(path: str, tensor: torch.Tensor) -> Any:
            key = path.removeprefix(f"optimizer.{index}.").removesuffix(f".{name}")
            moment = key in MOMENTS and tensor.shape == parameter.shape and (key, name) not in known
            role, own = (key, name) if moment else ("state", path)
            slot.tensors.append((role, own, tensor))
            return reference(role, own, tensor)

        for key, value in values.items():
            slot.written[key] = write_value(value, f"optimizer.{index}.{key}.{name}", sink)
            if has_parts(value):
                # Its parts may be others without its identity.
                slot.ids = []
            elif isinstance(value, torch.Tensor) and is_small(value):
                slot.small.append((key, value))
            elif not isinstance(value, torch.Tensor) and type(value) not in (bool, int, float, str, type(None)):
                # What is in a container may change without its identity.
                slot.ids = []
        return slot

    def device(self) -> str:
        kinds = {parameter.device.type for module in self.modules.values() for parameter in module.parameters()}
        return "cuda" if "cuda" in kinds else "cpu"

    # Back.

    def restore(self, file: SnapshotFile, manifest: dict[str, Any], accept: bool, here: RankPlace) -> dict[str, Any]:
        """Puts all tensors and values back but the random state. Returns the settings, read, of the rank `here`."""
        return Restore(self, file, manifest, here).run(accept)


def settings_of(texts: Mapping[str, str]) -> dict[str, Any]:
    """What a snapshot says of a training script, parsed."""
    own = {key.removeprefix(PREFIX): text for key, text in texts.items() if key.startswith(PREFIX)}
    if own.pop("layout", None) != LAYOUT:
        raise SnapshotMismatch("the snapshot was not written by this version of the Python package ckptd")
    return {key: json.loads(text) for key, text in own.items()}


class Restore:
    """One restore: every tensor of the snapshot goes to exactly one place."""

    def __init__(self, state: TrainingState, file: SnapshotFile, manifest: dict[str, Any], here: RankPlace) -> None:
        self.state, self.file = state, file
        texts: dict[str, str] = manifest["train"]["settings"]
        settings = settings_of(texts)
        self.ranks = (int(settings.get("ranks", 1)), here.size)
        self.settings = settings_of_rank(settings, here)
        self.types: dict[str, str] = self.settings.get("types", {})
        self.then = {key: texts.get(key) for key in ("device", "threads")}
        self.left = {(t["role"], t["name"]): (i, t["dtype"], t["shape"]) for i, t in enumerate(manifest["tensors"])}
        self.wanted: list[tuple[int, torch.Tensor]] = []

    def run(self, accept: bool) -> dict[str, Any]:
        state = self.state
        self.check_settings(accept)
        unique, aliases = state.unique_tensors()
        if aliases != self.settings.get("tied", {}):
            raise SnapshotMismatch("other tensors are tied to one another than in the snapshot")
        for role, name, tensor in unique:
            self.want(role, name, tensor)
        self.count("scheduler", len(state.schedulers))
        self.count("optimizer", len(state.optimizers))
        loaded: list[Callable[[], None]] = []
        for index, scheduler in enumerate(state.schedulers):
            kind, written = self.settings[f"scheduler.{index}"]
            self.require(f"scheduler {index}", kind, type(scheduler).__name__)
            loaded.append(self.loading(scheduler.load_state_dict, written))
        for index, optimizer in enumerate(state.optimizers):
            self.optimizer(index, optimizer)
        for key, value in state.extra.items():
            if kind_of(value) not in ("module", "tensor"):
                if f"extra.{key}" not in self.settings:
                    raise SnapshotMismatch(f"the snapshot has no extra {key!r}")
                loaded.append(self.loading(functools.partial(put_extra, value), self.settings[f"extra.{key}"]))
        for path, part in state.parts_with_own_state():
            if path not in self.settings:
                raise SnapshotMismatch(f"the snapshot has no {path}")
            loaded.append(self.loading(part.set_extra_state, self.settings[path]))
        self.settings["loader"]["inner"] = self.read(self.settings["loader"].get("inner"))
        if self.left:
            role, name = next(iter(self.left))
            raise SnapshotMismatch(f"the snapshot holds {role} {name}, and this training has no such tensor")
        self.fill()
        for load in loaded:
            load()
        return self.settings

    def loading(self, load: Callable[[Any], Any], written: Any) -> Callable[[], None]:
        # Read now, so that its tensors are known; given to `load` when they are filled.
        read = self.read(written)
        return lambda: load(read)

    def check_settings(self, accept: bool) -> None:
        then, size = self.ranks
        if then != size and not accept:
            raise SnapshotMismatch(
                f"the snapshot is of {ranks_text(then)}, and this training has {ranks_text(size)}; start as many as then "
                f"(torchrun --nproc-per-node {then}), or go on with these, whose random numbers and shares of the data are "
                "others: ckptd run --accept-changes"
            )
        now = {"device": self.state.device(), "threads": str(torch.get_num_threads())}
        changed = [f"{key}: {self.then[key]} then, {now[key]} now" for key in now if self.then[key] != now[key]]
        if changed and not accept:
            raise SnapshotMismatch(
                f"the snapshot was trained with other settings ({'; '.join(changed)}), which round otherwise; put them "
                "back (torch.set_num_threads), or go on with the new ones: ckptd run --accept-changes"
            )

    def count(self, what: str, now: int) -> None:
        then = sum(1 for key in self.settings if key.startswith(f"{what}."))
        self.require(f"the number of {what}s", then, now)

    def require(self, what: str, then: Any, now: Any) -> None:
        if then != now:
            raise SnapshotMismatch(f"{what}: {then!r} in the snapshot, {now!r} in this training")

    def want(self, role: str, name: str, tensor: torch.Tensor) -> None:
        """Has a tensor that is there filled."""
        dtype, shape = file_form(tensor)
        index, *there = self.take(role, name)
        own = (dtype, shape, foreign_type(tensor))
        self.require(f"{role} {name}", (*there, self.types.get(f"{role} {name}")), own)
        self.wanted.append((index, tensor))

    def take(self, role: str, name: str) -> tuple[int, str, list[int]]:
        found = self.left.pop((role, name), None)
        if found is None:
            raise SnapshotMismatch(f"{role} {name} is not in the snapshot")
        return found

    def read(self, written: Any, device: torch.device | None = None) -> Any:
        def source(reference: Any) -> torch.Tensor:
            role, name, stride, where = reference["$ref"]
            index, dtype, shape = self.take(role, name)
            target = device if device is not None and where != "cpu" else torch.device("cpu")
            made = empty_like_file(dtype, shape, self.types.get(f"{role} {name}"), device=target)
            if stride is not None:
                made = torch.empty_strided(made.shape, stride, dtype=made.dtype, device=target)
            self.wanted.append((index, made))
            return made

        return read_value(written, source)

    def optimizer(self, index: int, optimizer: torch.optim.Optimizer) -> None:
        kind, groups, state = self.settings[f"optimizer.{index}"]
        self.require(f"optimizer {index}", kind, type(optimizer).__name__)
        names = self.state.parameter_names()[index]
        self.require(f"the parameters of optimizer {index}, by group", [group["params"] for group in groups], names)
        optimizer.state.clear()
        for group, written, group_names in zip(optimizer.param_groups, groups, names):
            group.update({key: self.read(value) for key, value in written.items() if key != "params"})
            for parameter, name in zip(group["params"], group_names):
                if name in state:
                    device = parameter.device
                    optimizer.state[parameter] = {key: self.read(value, device) for key, value in state[name].items()}

    def fill(self) -> None:
        given, later = [], []
        for index, tensor in self.wanted:
            item = item_of("", "", tensor)
            memory = item.memory if item.live else torch.empty_like(item.memory)
            given.append((index, memory.data_ptr(), memory.numel() * memory.element_size()))
            # Held until all is read.
            later.append((tensor, memory, item.live))
        self.file.read_into(given)
        with torch.no_grad():
            for tensor, memory, live in later:
                if not live:
                    tensor.copy_(memory)


def formed(value: Any) -> Any:
    return inline_form(value.tensor, value.copy) if isinstance(value, LateForm) else value


def changed() -> StateChanged:
    return StateChanged("the model has other tensors than at the last snapshot; the next one will have them")


def identities(unique: list[tuple[str, str, torch.Tensor]], boundary: Boundary) -> list[tuple[str, str, int]]:
    """What tensors there are. One that was copied may be another one by now, under the same name."""
    return [(role, name, 0 if f"{role} {name}" in boundary.copies else id(tensor)) for role, name, tensor in unique]


def address(memory: torch.Tensor) -> tuple[int, int]:
    return memory.data_ptr(), memory.numel() * memory.element_size()


def reference(role: str, name: str, tensor: torch.Tensor) -> Any:
    """Stands for a tensor in a text; with its strides, where it does not lie row by row."""
    stride = None if tensor.is_contiguous() else list(tensor.stride())
    return {"$ref": [role, name, stride, tensor.device.type]}


def unwrapped(module: torch.nn.Module) -> torch.nn.Module:
    """The module itself, behind torch.compile and DistributedDataParallel."""
    while True:
        kind = type(module).__name__
        if kind in ("FullyShardedDataParallel", "FSDPModule"):
            raise refuse("the model", module)
        inner = module._modules.get({"OptimizedModule": "_orig_mod", "DistributedDataParallel": "module"}.get(kind, ""))
        if inner is None:
            return module
        module = inner


def modules_of(model: Any) -> dict[str, torch.nn.Module]:
    if not isinstance(model, (torch.nn.Module, dict)):
        raise refuse("the model", model)
    named = {"": model} if isinstance(model, torch.nn.Module) else {f"{name}.": part for name, part in model.items()}
    for name, part in named.items():
        if not isinstance(part, torch.nn.Module):
            raise refuse(f"model {name}", part)
    return {name: unwrapped(part) for name, part in named.items()}


def ranked_parts(model: Any, extra: Mapping[str, Any]) -> list[torch.nn.Module]:
    """Modules as they were given, in which a DistributedDataParallel may be."""
    given = [*(model.values() if isinstance(model, dict) else [model]), *extra.values()]
    return [part for part in given if isinstance(part, torch.nn.Module)]


def ranks_text(count: int) -> str:
    return "1 process" if count == 1 else f"{count} ranks"


def rank_tensor(path: str, _: torch.Tensor) -> Any:
    raise StateRefused(f"{path} has a tensor, which can be saved of rank 0 only")


def sample(tensor: torch.Tensor) -> int:
    """A checksum of a few of its elements."""
    flat = tensor.detach()
    flat = flat.resolve_conj().resolve_neg().contiguous().view(-1)
    if flat.numel() == 0:
        return 0
    raw, width = flat.view(torch.uint8), SAMPLE_BYTES
    middle = raw.numel() // 2
    few = torch.cat([raw[:width], raw[middle : middle + width], raw[-width:]]).cpu()
    return zlib.crc32(_random.tensor_bytes(few))


def stateful(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None))


def is_numpy_generator(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.random.Generator)


def kind_of(value: Any) -> str:
    if isinstance(value, torch.nn.Module):
        return "module"
    if isinstance(value, torch.Tensor):
        return "tensor"
    if type(value) in (dict, list):
        return "container"
    if isinstance(value, (torch.Generator, random.Random)) or is_numpy_generator(value):
        return "generator"
    return "stateful" if stateful(value) else "unknown"


def extra_value(value: Any) -> Any:
    """What is saved of an extra that is no tensor."""
    if isinstance(value, torch.Generator):
        return _random.tensor_bytes(value.get_state())
    if isinstance(value, random.Random):
        return value.getstate()
    if is_numpy_generator(value):
        return value.bit_generator.state
    return value if type(value) in (dict, list) else value.state_dict()


def put_extra(value: Any, read: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(_random.bytes_tensor(read))
    elif isinstance(value, random.Random):
        value.setstate(read)
    elif is_numpy_generator(value):
        value.bit_generator.state = read
    elif type(value) is dict:
        value.clear()
        value.update(read)
    elif type(value) is list:
        value[:] = read
    else:
        value.load_state_dict(read)


def refuse_parameter(path: str) -> StateRefused:
    return StateRefused(f"{path} is no parameter of the model, nor of a module or tensor in extra: name it there")


def refuse_wrapper(index: int, optimizer: torch.optim.Optimizer) -> None:
    """One that leaves the update to another one, whose state it does not have."""
    for name, value in vars(optimizer).items():
        if isinstance(value, torch.optim.Optimizer):
            raise StateRefused(
                f"optimizer {index} is a {type(optimizer).__name__} around a {type(value).__name__}, whose state it does "
                f"not have: give the inner one (optimizer=optimizer.{name}); what the outer one keeps belongs into extra"
            )


def refuse_twice(label: str) -> StateRefused:
    return StateRefused(f"two tensors of this training are called {label}; rename one")
