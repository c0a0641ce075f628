"""The sweep in C++, on a CPU in float32 and float64 (sweep.cpp), and with products of bf16 operands: those of vectors
there, those of whole matrices, where the processor has registers for them, in sweep_matrices.cpp."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ulna.kernels import native
from ulna.kernels.sweep.window import window

NAMES = {torch.float32: "f32", torch.float64: "f64"}


def available(x: Tensor) -> bool:
    """Whether C++ can sweep this map."""
    return x.device.type == "cpu" and x.dtype in NAMES and native.library("sweep") is not None


def multiplies_bf16() -> bool:
    """Whether that C++ has products of bf16 operands: compiler and processor both know the instruction."""
    return _matrices() is not None or hasattr(native.library("sweep"), "sweep_forward_bf16")


def _matrices() -> ctypes.CDLL | None:
    """The sweep by matrix registers, where processor, compiler and system offer them."""
    library = native.library("sweep_matrices")
    return library if library is not None and _permits(library) else None


@cache
def _permits(library: ctypes.CDLL) -> bool:
    return bool(library.sweep_permits())


def kept_dtype(x: Tensor, operands: torch.dtype) -> torch.dtype:
    """The precision of the gates that `forward` keeps for the backward pass of a map."""
    return torch.float16 if available(x) and _lowers(x.dtype, operands) and _matrices() is not None else x.dtype


def forward(
    x: Tensor, weights: tuple[Tensor, ...], axis: int, reverse: bool, keep: bool, operands: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Sweep; returns the map and what the backward pass needs.

    Args:
        x: contiguous, channels last.
        weights: weight_in, weight_hidden, bias_in, bias_hidden.
        axis: the spatial axis that is swept.
        reverse: from its end.
        keep: whether there will be a backward pass.
        operands: the precision in which products read: bfloat16 where it can be, for a map in float32; else the map's.

    Shape:
        (N, *S, C) -> (N, *S, C), gates r, z, n and the hidden share of n (N, *S, 4C) or (0,),
        in an order that `backward` knows
    """
    weights = tuple(w.contiguous() for w in weights)
    swept = torch.empty_like(x)
    gates = x.new_empty((*x.shape[:-1], 4 * x.shape[-1]) if keep else 0, dtype=kept_dtype(x, operands))
    function = _function("forward", x.dtype, operands, by_matrices=gates.dtype != x.dtype)
    _call(function, x, *weights, swept, gates if keep else None, shape=_shape(x, weights, axis, reverse))
    return swept, gates


def backward(
    grad: Tensor,
    x: Tensor,
    swept: Tensor,
    gates: Tensor,
    weights: tuple[Tensor, Tensor],
    axis: int,
    reverse: bool,
    operands: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of map, weight_in, weight_hidden, bias_in and bias_hidden.

    Args:
        grad: of the swept map; all maps are contiguous, channels last.
        x: the map before the sweep.
        swept: the map after it.
        gates: from the forward pass.
        weights: weight_in and weight_hidden.
        axis: the spatial axis that was swept.
        reverse: from its end.
        operands: as in `forward`.
    """
    weights = (weights[0].contiguous(), weights[1].contiguous())
    function = _function("backward", x.dtype, operands, by_matrices=gates.dtype != x.dtype)
    results = (torch.empty_like(x), *(torch.empty_like(w) for w in weights), *x.new_empty(2, 3 * x.shape[-1]).unbind())
    _call(function, grad, x, swept, gates, *weights, *results, shape=_shape(x, weights, axis, reverse))
    dx, d_in, d_hidden, b_in, b_hidden = results
    return dx, d_in, d_hidden, b_in.clone(), b_hidden.clone()


def _shape(x: Tensor, weights: tuple[Tensor, ...], axis: int, reverse: bool) -> list[int]:
    """What sweep.cpp calls the geometry of lines; a line of a 2D map has one row."""
    size, steps, channels = list(x.shape[1:-1]), list(x.stride()[1:-1]), x.shape[-1]
    length, step = size.pop(axis), steps.pop(axis)
    offsets = window(len(size), weights[0].shape[1] // channels)
    rows = [(1, 0)] * (2 - len(size)) + list(zip(size, steps, strict=True))
    flat = [(0,) * (2 - len(size)) + offset for offset in offsets]
    return [
        *(x.shape[0], length, rows[0][0], rows[1][0], channels, len(offsets)),
        *(x.stride(0), -step if reverse else step, rows[0][1], rows[1][1]),
        *((length - 1) * step if reverse else 0, torch.get_num_threads()),
        *(offset[0] for offset in flat),
        *(offset[1] for offset in flat),
    ]


def _lowers(dtype: torch.dtype, operands: torch.dtype) -> bool:
    return dtype == torch.float32 and operands == torch.bfloat16 and multiplies_bf16()


def _function(what: str, dtype: torch.dtype, operands: torch.dtype, *, by_matrices: bool) -> Any:
    """The kernel of a pass; that of the backward pass is the one that reads the gates as they were kept."""
    if by_matrices:
        return getattr(_matrices(), f"sweep_{what}_bf16")
    library = native.library("sweep")
    lowered = _lowers(dtype, operands) and hasattr(library, f"sweep_{what}_bf16")
    return getattr(library, f"sweep_{what}_{'bf16' if lowered else NAMES[dtype]}")


def _call(function: Any, *tensors: Tensor | None, shape: list[int]) -> None:
    pointers = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]
    if function(*pointers, (ctypes.c_int64 * len(shape))(*shape)):
        raise MemoryError(f"no memory for the buffers of a sweep over {shape[0]} maps of {shape[4]} channels")
