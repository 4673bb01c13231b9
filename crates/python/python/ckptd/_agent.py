"""The other end of the socket: ckptd's agent, which started this script. Of several ranks rank 0 alone speaks to it, and
says what the others have to say."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any

from ._errors import RanksRefused, StateRefused, UseRefused
from ._lines import LineSocket
from ._native import CkptdError, SnapshotDamaged, SnapshotMismatch
from ._ranks import RankMember
from ._reading import Snapshot

# Names the socket in the environment of a script.
SOCKET_VARIABLE = "CKPTD_SOCKET"


class Agent:
    """A connection, after the agent's first command."""

    def __init__(self, path: str) -> None:
        try:
            self._line = LineSocket.connect(path)
        except OSError as error:
            raise CkptdError(
                f"the ckptd that started this script is gone ({error}); start both again: ckptd run -- python train.py (if "
                "its launcher has started it again, leave that to ckptd: torchrun --max-restarts 0)"
            ) from error
        start = self.command()
        if start is None or start.get("command") != "start" or start.get("protocol") != 1:
            raise CkptdError(f"this package does not understand its ckptd ({start}); install the two of one release")
        self.start: dict[str, Any] = start

    def command(self) -> dict[str, Any] | None:
        """The next command; `None`: the agent is gone."""
        return self._line.receive()

    def is_gone(self) -> bool:
        return self._line.is_gone()

    def send(self, event: str, **fields: Any) -> None:
        """Says `event`; a float that is none in JSON is null."""
        plain = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in fields.items()
        }
        self._line.send({"event": event, **plain})


def failure_of(error: Exception) -> str:
    """What the agent is to do about an error of `attach`."""
    kinds: dict[str, tuple[type[Exception], ...]] = {
        "damaged": (SnapshotDamaged,),
        "mismatch": (SnapshotMismatch,),
        "config": (StateRefused, RanksRefused, UseRefused),
    }
    return next((kind for kind, errors in kinds.items() if isinstance(error, errors)), "other")


@contextlib.contextmanager
def told(agent: Agent | RankMember) -> Iterator[None]:
    """What fails in here is told to the agent, which knows by its kind whether a restart may help."""
    try:
        yield
    except Exception as error:
        agent.send("failed", failure=failure_of(error), what=str(error))
        raise


def resume_from(agent: Agent | RankMember) -> Snapshot | None:
    """The snapshot that the training goes on from."""
    path = agent.start["resume"]
    return None if path is None else Snapshot(path)


def has_failed() -> bool:
    """Whether the script ends by an exception."""
    return getattr(sys, "last_type", None) is not None
