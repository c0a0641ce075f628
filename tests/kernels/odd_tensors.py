"""Tensors as nobody expects them, drawn at random: every kernel of our own must take or refuse them as torch does.

`python -m tests.kernels.odd_tensors SEED COUNT` draws many and prints what differs.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ulna.blocks import nd
from ulna.kernels.convolution import convolve
from ulna.kernels.normalize import instance_norm
from ulna.kernels.points.fused_mlp import fused_mlp, fused_mlp_reference
from ulna.kernels.points.point_sample import point_sample, point_sample_reference
from ulna.kernels.sweep.dispatch import Direction, Gates, sweep, sweep_reference

Rng = np.random.Generator
Function = Callable[..., Tensor]


class Marked(Tensor):
    """A subclass that adds nothing."""


# --- the same values, lying otherwise


def _steps(x: Tensor, rng: Rng) -> Tensor:
    axis = int(rng.integers(x.ndim))
    wide = x.repeat_interleave(2, dim=axis)
    return wide.narrow(axis, int(rng.integers(2)), 2 * x.shape[axis] - 1)[
        (slice(None),) * axis + (slice(None, None, 2),)
    ]


def _turned(x: Tensor, rng: Rng) -> Tensor:
    order = rng.permutation(x.ndim).tolist()
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])


def _late(x: Tensor, rng: Rng) -> Tensor:
    start = int(rng.integers(1, 9))
    return torch.cat([x.new_full((start,), 7), x.flatten()])[start:].view(x.shape)


def _expanded(x: Tensor, rng: Rng) -> Tensor:
    axis = int(rng.integers(x.ndim))
    return x.narrow(axis, 0, 1).expand(x.shape)


def _overlapping(x: Tensor, rng: Rng) -> Tensor:
    return x.flatten().as_strided(x.shape, [int(s) for s in rng.integers(0, 2, x.ndim)])


def _reversed(x: Tensor, rng: Rng) -> Tensor:
    return x.flip(int(rng.integers(x.ndim)))


def _unaligned(x: Tensor, rng: Rng) -> Tensor:
    values = x.detach().contiguous().numpy()
    room = np.zeros(values.nbytes + 1, np.uint8)
    room[1:] = values.reshape(-1).view(np.uint8)
    return torch.frombuffer(room, dtype=x.dtype, offset=1, count=x.numel()).view(x.shape)


def _last(x: Tensor, rng: Rng) -> Tensor:
    if x.ndim not in (4, 5):
        return x
    return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)


LIE: dict[str, Callable[[Tensor, Rng], Tensor]] = {
    "as it is": lambda x, rng: x,
    "in steps": _steps,
    "axes turned": _turned,
    "channels last": _last,
    "begins late": _late,
    "expanded": _expanded,
    "overlapping": _overlapping,
    "reversed": _reversed,
    "lazily negated": lambda x, rng: torch._neg_view(x),
    "imaginary part of a conjugate": lambda x, rng: torch.complex(x, x).conj().imag,
    "a real part": lambda x, rng: torch.complex(x, -x).real,
    "unaligned": _unaligned,
    "a parameter": lambda x, rng: nn.Parameter(x.clone()),
    "a subclass": lambda x, rng: x.clone().as_subclass(Marked),
}
# --- other values, types or sizes

DIFFER: dict[str, Callable[[Tensor, Rng], Tensor]] = {
    "float64": lambda x, rng: x.double(),
    "bfloat16": lambda x, rng: x.bfloat16(),
    "float16": lambda x, rng: x.half(),
    "int32": lambda x, rng: x.int(),
    "complex": lambda x, rng: x.to(torch.complex64),
    "shorter": lambda x, rng: x.narrow(axis := int(rng.integers(x.ndim)), 0, max(0, x.shape[axis] // 2)),
    "longer": lambda x, rng: torch.cat([x, x], dim=int(rng.integers(x.ndim))),
    "one value": lambda x, rng: x.flatten()[0],
    "one of every axis": lambda x, rng: x[(slice(0, 1),) * x.ndim],
    "empty": lambda x, rng: x.narrow(int(rng.integers(x.ndim)), 0, 0),
    "an axis more": lambda x, rng: x.unsqueeze(int(rng.integers(x.ndim + 1))),
    "an axis fewer": lambda x, rng: x.select(int(rng.integers(x.ndim)), 0),
    "sparse": lambda x, rng: x.to_sparse(),
    "zeros without memory": lambda x, rng: torch._efficientzerotensor(x.shape),
}

# --- kernels, and what torch makes of the same


def _module(dims: int, groups: int, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """A block's convolution with these very tensors, whatever they are."""
    conv: Any = nd.conv(dims, 8, 8, groups=groups)
    for name, value in (("weight", w), ("bias", b)):
        del conv._parameters[name]
        setattr(conv, name, value)
    return conv(x)


def _conv(dims: int, groups: int, x: Tensor, w: Tensor, b: Tensor, padding: int | None = 1) -> Tensor:
    sides = [n // 2 if padding is None else padding for n in w.shape[2:]] or 0
    return (F.conv2d if dims == 2 and w.ndim < 5 else F.conv3d)(x, w, b, padding=sides, groups=groups)


def _swept(by: Function, axis: int, x: Tensor, *gates: Tensor) -> Tensor:
    return by(x.to(gates[0].dtype), Gates(*gates), Direction(axis, True))


# the mean of a constant channel is off by a rounding, which 1 / sqrt(EPS) makes larger in a sum that is 0 otherwise: with
# 1e-2 the norm of torch differs from itself, channels last or not, by 1.3e-4
EPS = 1e-1


def _norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.leaky_relu(F.instance_norm(x, weight=w, bias=b, eps=EPS), 0.1)


def _mlp(by: Function, x: Tensor, *layers: Tensor) -> Tensor:
    return by(x, layers[:2], layers[2:])


def _points(by: Function, mode: str, x: Tensor) -> Tensor:
    at = torch.tensor([[[0, 0], [7, 7], [3, 5], [6, 1], [3, 5]]]).expand(len(x), -1, -1)
    return by(x, at, (8, 8), mode=mode)


C = 5
GATES = ((3 * C, 3 * C), (3 * C, C), (3 * C,), (3 * C,))
CONV, CONV_3D = ((2, 8, 16, 16), (9, 8, 3, 3), (9,)), ((1, 8, 3, 16, 16), (8, 8, 3, 3, 3), (8,))
KERNELS: dict[str, tuple[Function, Function, tuple[tuple[int, ...], ...]]] = {
    "convolution": (convolve, partial(_conv, 2, 1, padding=None), CONV),
    "convolution 3D": (convolve, partial(_conv, 3, 1, padding=None), CONV_3D),
    "convolution of two maps": (
        lambda a, c, w, b: convolve([a, c], w, b),
        lambda a, c, w, b: _conv(2, 1, torch.cat([a, c], 1), w, b, None),
        ((1, 3, 24, 24), (1, 6, 24, 24), (8, 9, 3, 3), (8,)),
    ),
    "block's convolution": (partial(_module, 2, 1), partial(_conv, 2, 1), ((2, 8, 16, 16), (8, 8, 3, 3), (8,))),
    "depthwise": (partial(_module, 3, 8), partial(_conv, 3, 8), ((1, 8, 3, 5, 6), (8, 1, 3, 3, 3), (8,))),
    "instance norm": (
        lambda x, w, b: instance_norm(x, w, b, eps=EPS, slope=0.1),
        _norm,
        ((2, 5, 6, 7), (5,), (5,)),
    ),
    "instance norm 3D": (
        lambda x, w, b: instance_norm(_last(x, np.random.default_rng(0)), w, b, eps=EPS, slope=0.1),
        _norm,
        ((1, 17, 3, 6, 7), (17,), (17,)),
    ),
    "sweep": (partial(_swept, sweep, 0), partial(_swept, sweep_reference, 0), ((2, C, 4, 6), *GATES)),
    "nearest points": (
        partial(_points, point_sample, "nearest"),
        partial(_points, point_sample_reference, "nearest"),
        ((2, 3, 4, 4),),
    ),
    "linear points": (
        partial(_points, point_sample, "linear"),
        partial(_points, point_sample_reference, "linear"),
        ((2, 3, 4, 4),),
    ),
    "fused MLP": (
        partial(_mlp, fused_mlp),
        partial(_mlp, fused_mlp_reference),
        ((30, 6), (7, 6), (2, 7), (7,), (2,)),
    ),
}
# of the largest value; float32 over some dozens of terms, through the transforms of the native convolution; low precisions
# round the values themselves
ROOM = {torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.float32: 1e-4, torch.complex64: 1e-4, torch.float64: 1e-4}


def _attempt(f: Function, inputs: Sequence[Tensor], grad: Callable[[Tensor], Tensor] | None) -> list[Tensor] | str:
    """The value, and the gradients of the inputs where wanted; or the kind of error."""
    try:
        leaves = [t.detach().requires_grad_() if grad and t.is_floating_point() else t for t in inputs]
        with torch.set_grad_enabled(grad is not None):
            made = f(*leaves)
        if grad is None or not made.requires_grad or made.device.type == "meta":
            return [made.detach()]
        asked = [t for t in leaves if t.requires_grad]
        found = torch.autograd.grad(made, asked, grad(made.detach()), allow_unused=True)
        return [made.detach(), *(t.new_zeros(()) if g is None else g for g, t in zip(found, asked, strict=True))]
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def _differ(ours: list[Tensor] | str, theirs: list[Tensor] | str, room: float) -> str:
    if isinstance(theirs, str) or isinstance(ours, str):
        if isinstance(theirs, str) and isinstance(ours, str):
            return ""
        told = [found if isinstance(found, str) else "answers" for found in (ours, theirs)]
        return f"ours {told[0]}, torch {told[1]}"
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device):
            return f"result {number}: {a.shape} {a.dtype}, torch {b.shape} {b.dtype}"
        if a.device.type == "meta" or not a.numel():
            continue
        a, b = a.to_dense() if a.layout != torch.strided else a, b.to_dense() if b.layout != torch.strided else b
        wide = torch.complex128 if a.is_complex() else torch.float64
        a, b = a.detach().to(wide), b.detach().to(wide)
        if not torch.equal(a.isfinite(), b.isfinite()):
            return f"result {number}: finite elsewhere"
        error, size = (a - b).abs().nan_to_num().max(), b.abs().nan_to_num(posinf=0.0, neginf=0.0).max()
        if error > room * max(1.0, float(size)):
            return f"result {number}: off by {float(error):.2g} at {float(size):.2g}"
    return ""


def draw(rng: Rng) -> str:
    """One call with odd tensors, of a kernel drawn at random: what differs from torch, or an empty string."""
    name = list(KERNELS)[int(rng.integers(len(KERNELS)))]
    ours, theirs, shapes = KERNELS[name]
    inputs = [torch.from_numpy(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes]
    if rng.integers(2):
        inputs[0] = _last(inputs[0], rng)
    told: list[str] = []
    if rng.integers(20) == 0:  # all of them: torch takes no notice of one alone, and reads what is not there
        inputs, told = [t.to("meta") for t in inputs], ["meta"]
    for _ in range(0 if told else int(rng.integers(1, 4))):
        at = int(rng.integers(len(inputs)))
        kinds = DIFFER if rng.integers(3) == 0 else LIE
        kind = list(kinds)[int(rng.integers(len(kinds)))]
        try:
            inputs[at] = kinds[kind](inputs[at], rng)
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError):
            continue  # torch itself does not make such a tensor of what has become odd before
        told.append(f"{at} {kind}")
    lies = list(LIE)[int(rng.integers(len(LIE)))]
    seed = int(rng.integers(2**31))

    def grad(made: Tensor) -> Tensor:
        own = np.random.default_rng(seed)
        values = torch.from_numpy(own.standard_normal(tuple(made.shape), dtype=np.float32)).to(made.dtype)
        try:
            return LIE[lies](values, own)
        except (RuntimeError, ValueError, TypeError):
            return values

    wanted = grad if rng.integers(2) else None
    room = max(ROOM.get(t.dtype, 0.0) for t in inputs)
    found = _differ(_attempt(ours, inputs, wanted), _attempt(theirs, inputs, wanted), room)
    return found and f"{name} ({', '.join(told)}{f'; gradient {lies}' if wanted else ''}): {found}"


def differences(seed: int, count: int) -> list[str]:
    """What differs from torch in many calls."""
    rng = np.random.default_rng(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own about types that few operations know
        return [found for _ in range(count) if (found := draw(rng))]


if __name__ == "__main__":
    told = differences(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write("".join(f"{line}\n" for line in (*told, f"{len(told)} of {sys.argv[2]} differ")))
    sys.exit(bool(told))
