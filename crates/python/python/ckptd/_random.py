"""The state of every random generator that a script shares with its libraries.

Invariant: taking it draws nothing. Generators of the script's own are for `extra`.
"""

from __future__ import annotations

import array
import random
import sys
from collections.abc import Mapping
from typing import Any

import torch

from ._native import bytes_at
from ._values import no_tensor, read_value, write_value

# Name in the snapshot's settings, and the generator's state.
RandomState = dict[str, Any]


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    return bytes_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def bytes_tensor(raw: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).clone()


def take(generators: dict[str, torch.Generator]) -> RandomState:
    """The state now, in a form that costs little; `texts` makes text of it. `generators`: those of a loader, by name."""
    state: RandomState = {"torch": tensor_bytes(torch.get_rng_state()), "python": random.getstate()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for device in range(torch.cuda.device_count()):
            state[f"cuda.{device}"] = tensor_bytes(torch.cuda.get_rng_state(device))
    if "numpy" in sys.modules:
        state["numpy"] = sys.modules["numpy"].random.get_state(legacy=False)
    for name, generator in generators.items():
        state[name] = tensor_bytes(generator.get_state())
    return state


def texts(state: RandomState) -> dict[str, Any]:
    """The state as plain values."""
    written: dict[str, Any] = {}
    for name, value in state.items():
        if name == "python":
            version, words, gauss = value
            packed = array.array("I", words).tobytes().hex()
            written[name] = [version, packed, write_value(gauss, "random", no_tensor)]
        elif name == "numpy":
            inner = dict(value["state"])
            inner["key"] = inner["key"].tobytes().hex()
            whole = {**value, "state": inner}
            written[name] = write_value(whole, "numpy.random", no_tensor)
        else:
            written[name] = value.hex()
    return written


def untext(written: Mapping[str, Any]) -> RandomState:
    """What `texts` was made of."""
    state: RandomState = {}
    for name, value in written.items():
        if name == "python":
            words = array.array("I")
            words.frombytes(bytes.fromhex(value[1]))
            state[name] = (value[0], tuple(words), read_value(value[2], no_source))
        elif name == "numpy":
            import numpy

            whole = read_value(value, no_source)
            whole["state"]["key"] = numpy.frombuffer(bytes.fromhex(whole["state"]["key"]), dtype=numpy.uint32).copy()
            state[name] = whole
        else:
            state[name] = bytes.fromhex(value)
    return state


def of_settings(settings: Mapping[str, Any]) -> RandomState:
    """The state of a snapshot's boundary."""
    prefix = "random."
    return untext({key.removeprefix(prefix): text for key, text in settings.items() if key.startswith(prefix)})


def put(state: RandomState, generators: dict[str, torch.Generator]) -> None:
    """Sets every generator that is there."""
    for name, value in state.items():
        if name == "torch":
            torch.set_rng_state(bytes_tensor(value))
        elif name == "python":
            random.setstate(value)
        elif name == "numpy":
            import numpy

            numpy.random.set_state(value)
        elif name.startswith("cuda."):
            torch.cuda.set_rng_state(bytes_tensor(value), int(name.removeprefix("cuda.")))
        elif name in generators:
            generators[name].set_state(bytes_tensor(value))


def no_source(written: Any) -> torch.Tensor:
    raise ValueError(f"{written} is not a plain value")
