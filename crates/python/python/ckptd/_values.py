"""Plain values and tensors as JSON and back, bit for bit.

Invariant: what is neither is refused by its path; nothing is pickled, and reading runs nothing. JSON has a form of its
own for what it cannot say: an object with one key that begins with "$".
"""

from __future__ import annotations

import json
import math
import struct
import sys
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

import torch

from ._device import HostCopy
from ._errors import StateRefused
from ._native import SnapshotMismatch, bytes_at
from ._tensors import DTYPE_NAMES, DTYPES, plain_tensor

# Tensors of so many bytes stand in the text, such as an optimiser's `step`.
INLINE_BYTES = 64
# Tensors that consist of others, and are put together of them again; of modules that the script has imported itself.
PART_TYPES = {
    f"torchao.optim.subclass_{kind}.OptimState{name}"
    for kind, name in {"8bit": "8bit", "4bit": "4bit", "fp8": "Fp8"}.items()
}

TensorSink = Callable[[str, torch.Tensor], Any]
TensorSource = Callable[[Any], torch.Tensor]


def refuse(path: str, value: object) -> StateRefused:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return StateRefused(
        f"{path} is a {kind}, which is neither a tensor nor a plain value (None, bool, int, float, str, bytes, list, "
        "tuple, dict); ckptd pickles nothing: keep it out of the state, or say it in plain values"
    )


def write_value(value: Any, path: str, tensor: TensorSink) -> Any:
    """`value` as what json can write. Tensors beyond INLINE_BYTES go to `tensor`, with their path."""
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"$float": struct.pack("<d", value).hex()}
    if isinstance(value, torch.Tensor):
        return write_tensor(value, path, tensor)
    if kind in (list, tuple, torch.Size, deque):
        items = [write_value(item, f"{path}[{index}]", tensor) for index, item in enumerate(value)]
        if kind is list:
            return items
        return (
            {"$deque": [items, value.maxlen]} if kind is deque else {"$size" if kind is torch.Size else "$tuple": items}
        )
    if kind is dict and all(type(key) is str and not key.startswith("$") for key in value):
        return {key: write_value(item, f"{path}[{key!r}]", tensor) for key, item in value.items()}
    if kind in (dict, OrderedDict, Counter):
        name = {dict: "$dict", OrderedDict: "$ordered", Counter: "$counter"}[kind]
        return {
            name: [[write_key(key, path), write_value(item, f"{path}[{key!r}]", tensor)] for key, item in value.items()]
        }
    if kind is bytes:
        return {"$bytes": value.hex()}
    if kind is torch.dtype:
        return {"$dtype": str(value).removeprefix("torch.")}
    if kind is torch.device:
        return {"$device": str(value)}
    return write_numpy(value, path, tensor)


def write_key(key: Any, path: str) -> Any:
    if type(key) in (bool, int, str, float) or key is None:
        return write_value(key, path, no_tensor)
    raise refuse(f"the key {key!r} of {path}", key)


def type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def has_parts(value: object) -> bool:
    return type_name(value) in PART_TYPES


def write_parts(value: Any, path: str, sink: TensorSink) -> Any:
    names, rest = value.__tensor_flatten__()
    # Never in the text: a part may be written in place.
    parts = {name: sink(f"{path}.{name}", plain_tensor(getattr(value, name), f"{path}.{name}")) for name in names}
    return {"$parts": [type_name(value), parts, write_value(rest, path, no_tensor)]}


def read_parts(written: list[Any], tensor: TensorSource) -> Any:
    name, parts, rest = written
    module, _, kind = name.rpartition(".")
    if name not in PART_TYPES or module not in sys.modules:
        raise SnapshotMismatch(f"the snapshot has a {name}, and this script has not imported {module}")
    made = {key: read_value(part, tensor) for key, part in parts.items()}
    return getattr(sys.modules[module], kind).__tensor_unflatten__(made, read_value(rest, tensor))


def write_tensor(value: torch.Tensor, path: str, sink: TensorSink) -> Any:
    if has_parts(value):
        return write_parts(value, path, sink)
    value = plain_tensor(value, path)
    return inline_form(value) if is_small(value) else sink(path, value)


def is_small(value: torch.Tensor) -> bool:
    """Whether a tensor stands in the text."""
    return value.numel() * value.element_size() <= INLINE_BYTES


def inline_form(value: torch.Tensor, copy: HostCopy | None = None) -> Any:
    """A tensor in the text, as it is now, or as it was copied."""
    if copy is not None:
        here = copy.wait()
    else:
        here = value.detach().cpu().contiguous() if value.device.type != "cpu" or not value.is_contiguous() else value
    raw = bytes_at(here.data_ptr(), here.numel() * here.element_size())
    written = [DTYPE_NAMES[value.dtype], list(value.shape), raw.hex()]
    return {"$tensor": written if value.device.type == "cpu" else [*written, str(value.device)]}


def write_numpy(value: Any, path: str, sink: TensorSink) -> Any:
    if type(value).__module__ == "numpy":
        import numpy

        if isinstance(value, numpy.generic) and value.dtype.kind in "biufc":
            return {"$numpy": [value.dtype.str, value.tobytes().hex()]}
        if type(value) is numpy.ndarray and value.dtype.kind in "biufc":
            small = value.nbytes <= INLINE_BYTES
            whole = numpy.ascontiguousarray(value)
            raw = whole.tobytes().hex() if small else sink(path, torch.from_numpy(whole.reshape(-1).view("u1").copy()))
            return {"$array": [value.dtype.str, list(value.shape), raw]}
    raise refuse(path, value)


def no_tensor(path: str, _: torch.Tensor) -> Any:
    raise StateRefused(f"{path}: a tensor cannot stand here")


def read_value(written: Any, tensor: TensorSource) -> Any:
    """The value that `write_value` has written; what its sink returned is given to `tensor`."""
    if isinstance(written, list):
        return [read_value(item, tensor) for item in written]
    if not isinstance(written, dict):
        return written
    if len(written) != 1 or not next(iter(written)).startswith("$"):
        return {key: read_value(item, tensor) for key, item in written.items()}
    ((kind, value),) = written.items()

    def pairs() -> Iterable[tuple[Any, Any]]:
        return ((read_value(key, tensor), read_value(item, tensor)) for key, item in value)

    simple: dict[str, Callable[[], Any]] = {
        "$float": lambda: struct.unpack("<d", bytes.fromhex(value))[0],
        "$tuple": lambda: tuple(read_value(item, tensor) for item in value),
        "$size": lambda: torch.Size(value),
        "$deque": lambda: deque((read_value(item, tensor) for item in value[0]), value[1]),
        "$dict": lambda: dict(pairs()),
        "$ordered": lambda: OrderedDict(pairs()),
        "$counter": lambda: Counter(dict(pairs())),
        "$bytes": lambda: bytes.fromhex(value),
        "$dtype": lambda: DTYPES[value],
        "$device": lambda: torch.device(value),
        "$tensor": lambda: read_tensor(value),
        "$numpy": lambda: read_numpy(value[0], [], bytes.fromhex(value[1]))[()],
        "$array": lambda: read_array(value, tensor),
        "$parts": lambda: read_parts(value, tensor),
    }
    return simple[kind]() if kind in simple else tensor(written)


def read_tensor(written: list[Any]) -> torch.Tensor:
    dtype, shape, raw = DTYPES[written[0]], written[1], bytearray.fromhex(written[2])
    device = written[3] if len(written) > 3 else "cpu"
    flat = torch.frombuffer(raw, dtype=torch.uint8).clone() if raw else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape).to(device)


def read_numpy(dtype: str, shape: list[int], raw: bytes) -> Any:
    import numpy

    return numpy.frombuffer(raw, dtype=dtype).reshape(shape).copy()


def read_array(written: list[Any], tensor: TensorSource) -> Any:
    dtype, shape, raw = written
    if isinstance(raw, str):
        return read_numpy(dtype, shape, bytes.fromhex(raw))
    held = LaterArray(dtype, shape, tensor(raw))
    return held.array


class LaterArray:
    """An array over a tensor's memory, which may be filled after this."""

    def __init__(self, dtype: str, shape: list[int], memory: torch.Tensor) -> None:
        self.array = memory.numpy().view(dtype).reshape(shape)


def text_of(written: Any) -> str:
    """What enters the root: the same for the same value."""
    return json.dumps(written, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
