"""Tensors as a snapshot has them: element type, shape, and where their bytes are.

Invariant: bytes are row-major. A type that the snapshot file does not know stands there as whole numbers, or real and
imaginary part, of the same bits; its own name stands in the settings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

from ._device import HostCopy
from ._errors import TensorRefused

# Types that the file has, by their names there.
NATIVE = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# Others, by the type of the same width under which they stand in the file.
VIEWED = {
    getattr(torch, name): like
    for name, like in {
        "uint16": torch.int16,
        "uint32": torch.int32,
        "uint64": torch.int64,
        "float8_e4m3fn": torch.uint8,
        "float8_e5m2": torch.uint8,
        "float8_e4m3fnuz": torch.uint8,
        "float8_e5m2fnuz": torch.uint8,
        "float8_e8m0fnu": torch.uint8,
        "complex32": torch.float16,
        "complex64": torch.float32,
        "complex128": torch.float64,
    }.items()
    if hasattr(torch, name)
}
DTYPE_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in [*NATIVE, *VIEWED]}
DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def plain_tensor(tensor: torch.Tensor, path: str) -> torch.Tensor:
    """`tensor`, if it is one whose elements lie in memory; else why it is refused, with its path."""
    kind = type(tensor)
    if kind.__name__ in ("DTensor", "FlatParameter", "ShardedTensor", "ShardedParameter"):
        raise TensorRefused(
            f"{path} is a {kind.__name__}: a part of a tensor that other ranks have the rest of; ckptd saves trainings "
            "whose ranks each have all of it (DDP), and not FSDP or tensor parallelism"
        )
    if kind not in PLAIN_TYPES and getattr(torch.nn, "Buffer", None) is not kind:
        raise TensorRefused(
            f"{path} is a {kind.__module__}.{kind.__qualname__}, a kind of tensor that ckptd does not know"
        )
    what = None
    if tensor.layout is not torch.strided:
        what = f"has the layout {tensor.layout}"
    elif tensor.is_quantized:
        what = f"is quantized ({tensor.dtype})"
    elif tensor.device.type == "meta":
        what = "is on the device meta, and has no values"
    elif tensor.dtype not in DTYPE_NAMES:
        what = f"is of {tensor.dtype}"
    elif tensor.is_nested:
        what = "is nested"
    elif tensor.is_inference():
        what = "was made under torch.inference_mode() (not torch.no_grad()), and does not tell of writes"
    elif 0 in tensor.stride() and any(step == 0 and size > 1 for size, step in zip(tensor.shape, tensor.stride())):
        what = "is expanded: several of its elements are one in memory (give each its own: .clone())"
    if what:
        raise TensorRefused(f"{path} {what}, which ckptd cannot save")
    return tensor


def no_copy(_: torch.Tensor) -> HostCopy | None:
    """One that is waited for is made in its place."""
    return None


@dataclasses.dataclass
class TensorItem:
    """A tensor of a snapshot."""

    role: str
    name: str
    tensor: torch.Tensor  # the training's own
    memory: torch.Tensor  # where its bytes are, contiguous and on the CPU
    live: bool  # that is the training's own memory
    copy: HostCopy | None = None  # which fills the memory, from a GPU

    @property
    def label(self) -> str:
        return f"{self.role} {self.name}"

    def settled(self) -> TensorItem:
        """The same, once its bytes are there."""
        if self.copy is not None:
            self.copy.wait()
        return self

    def given(self) -> tuple[str, str, str, list[int], int, int, bool]:
        """As the native half takes it; settled."""
        memory = self.memory
        length = memory.numel() * memory.element_size()
        dtype, shape = file_form(self.tensor)
        return (self.role, self.name, dtype, shape, memory.data_ptr(), length, self.live)


def item_of(
    role: str, name: str, tensor: torch.Tensor, begin: Callable[[torch.Tensor], HostCopy | None] = no_copy
) -> TensorItem:
    """The tensor as it is now; one that is elsewhere, or lies otherwise, is copied: by `begin`, if that takes it."""
    tensor = plain_tensor(tensor, f"{role} {name}")
    copy = begin(tensor)
    if copy is not None:
        return TensorItem(role, name, tensor, copy.memory, False, copy)
    memory = tensor.detach()
    if memory.is_conj() or memory.is_neg():
        memory = memory.resolve_conj().resolve_neg()
    here = memory.cpu().contiguous()
    return TensorItem(role, name, tensor, here, here.data_ptr() == tensor.data_ptr())


def copy_of(item: TensorItem) -> TensorItem:
    """The same with a copy of its bytes as they are now."""
    if not item.live:
        return item
    return dataclasses.replace(item, memory=item.memory.clone(), live=False)


def file_form(tensor: torch.Tensor) -> tuple[str, list[int]]:
    """Type and shape in the file."""
    shape = list(tensor.shape)
    if tensor.dtype.is_complex:
        shape.append(2)
    return NATIVE[VIEWED.get(tensor.dtype, tensor.dtype)], shape


def foreign_type(tensor: torch.Tensor) -> str | None:
    """The name of a type that the file does not have."""
    return DTYPE_NAMES[tensor.dtype] if tensor.dtype in VIEWED else None


def empty_like_file(dtype: str, shape: list[int], own_type: str | None, **where: Any) -> torch.Tensor:
    """A tensor for what the file holds under `dtype` and `shape`."""
    if own_type is None:
        native = {name: known for known, name in NATIVE.items()}[dtype]
        return torch.empty(shape, dtype=native, **where)
    wanted = DTYPES[own_type]
    return torch.empty(shape[:-1] if wanted.is_complex else shape, dtype=wanted, **where)
