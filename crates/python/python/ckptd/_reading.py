"""Snapshots to read: by name from a store, their tensors one by one or as a state dict."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ._native import CkptdError, SnapshotFile, find_snapshot

if TYPE_CHECKING:
    import torch

PATH = str | os.PathLike[str]


class Snapshot(Mapping[str, Any]):
    """A snapshot, as a mapping from names to tensors that reads a tensor when it is asked for.

    The keys are the parameters and buffers of the model. Everything else is in `tensor(role, name)` and `settings`.
    """

    def __init__(self, path: PATH) -> None:
        self.path = os.fspath(path)
        self._file = SnapshotFile(self.path)
        self.manifest: dict[str, Any] = json.loads(self._file.manifest())
        self._index = {(t["role"], t["name"]): i for i, t in enumerate(self.manifest["tensors"])}

    @property
    def step(self) -> int:
        """Optimiser steps that the state has."""
        return int(self.manifest["train"]["step"])

    @property
    def root(self) -> str:
        """The identity of the state: equal for two snapshots if and only if all that decides their future is."""
        return str(self.manifest["root"])

    @property
    def settings(self) -> dict[str, str]:
        """What of the state is no tensor, as text."""
        return dict(self.manifest["train"]["settings"])

    def tensor(self, role: str, name: str) -> torch.Tensor:
        """One tensor, by role (`param`, `buffer`, `exp_avg`, ..., `state`) and name."""
        return self._read([(role, name)])[0]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The model's parameters and buffers by name, read in parallel."""
        keys = list(self._model())
        return dict(zip([name for _, name in keys], self._read(keys)))

    def verify(self) -> None:
        """Reads all of it from the device, and checks every hash. Raises SnapshotDamaged."""
        self._file.verify()

    def _model(self) -> Iterator[tuple[str, str]]:
        return (key for key in self._index if key[0] in ("param", "buffer"))

    def _read(self, keys: list[tuple[str, str]]) -> list[torch.Tensor]:
        from ._tensors import empty_like_file

        own_types = json.loads(self.settings.get("python.types", "{}"))
        made, wanted = [], []
        for role, name in keys:
            if (role, name) not in self._index:
                raise KeyError(f"{role} {name}")
            index = self._index[role, name]
            record = self.manifest["tensors"][index]
            tensor = empty_like_file(record["dtype"], record["shape"], own_types.get(f"{role} {name}"))
            made.append(tensor)
            wanted.append((index, tensor.data_ptr(), tensor.numel() * tensor.element_size()))
        self._file.read_into(wanted)
        return made

    def __getitem__(self, name: str) -> torch.Tensor:
        for role in ("param", "buffer"):
            if (role, name) in self._index:
                return self.tensor(role, name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for _, name in self._model())

    def __len__(self) -> int:
        return sum(1 for _ in self._model())


class Store:
    """A folder of snapshots."""

    def __init__(self, path: PATH) -> None:
        self.path = os.fspath(path)

    def __getitem__(self, name: str | int) -> Snapshot:
        """The snapshot that `name` means: "latest", "best", a step or an id."""
        return Snapshot(find_snapshot(self.path, str(name)))


def open(store: PATH, cache: PATH | None = None) -> Store:
    """The store at a path, or the newest verified snapshot of the remote at a URL.

    Args:
        store: a folder, or the job's own place at a remote: `ckptd.open("s3://bucket/train")["latest"].state_dict()`.
        cache: where what is fetched stays, so that it is fetched once; by default a folder of its own below the user's
            cache. Older snapshots stay there until somebody deletes them.

    Raises:
        CkptdError: the remote cannot be read; the text has why, in the words of `ckptd fetch`.
    """
    url = os.fspath(store)
    if "://" not in url:
        return Store(store)
    if cache is None:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        cache = os.path.join(caches, "ckptd", hashlib.sha256(url.encode()).hexdigest()[:16])
    fetched = subprocess.run([_command(), "fetch", url, os.fspath(cache)], check=False, capture_output=True, text=True)
    if fetched.returncode != 0:
        raise CkptdError(fetched.stderr.strip() or f"ckptd fetch {url} ended with {fetched.returncode}")
    return Store(cache)


def _command() -> str:
    """The command that came with this package, or else the one on the path."""
    own = os.path.join(sysconfig.get_path("scripts"), "ckptd")
    found = own if os.path.exists(own) else shutil.which("ckptd")
    if found is None:
        raise CkptdError(f"there is no command ckptd, neither at {own} nor on the PATH, to fetch a snapshot with")
    return found
