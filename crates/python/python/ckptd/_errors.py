"""What is refused of a state. Needs no torch."""

from __future__ import annotations

from ._native import CkptdError


class StateRefused(CkptdError):
    """A part of the state is neither a tensor nor a plain value."""


class TensorRefused(StateRefused):
    """A tensor of a kind that a snapshot cannot hold."""


class RanksRefused(CkptdError):
    """Several ranks where ckptd saves one process only, or in a way that it does not save."""


class StateChanged(StateRefused):
    """The model has other tensors than before: that snapshot is none."""


class UseRefused(CkptdError):
    """A call after which the training could not be resumed where it is."""
