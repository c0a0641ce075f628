"""Which path serves which map: the one way into this room.

| path   | device              | maps, channels last | scale and shift   | gradients       |
|--------|---------------------|---------------------|-------------------|-----------------|
| native | CPU with a compiler | float32, bf16       | float32           | first           |
| triton | NVIDIA GPU          | float32, bf16, fp16 | float32 or theirs | first           |
| torch  | any                 | any                 | any               | of any order    |

The first row that fits is taken. Second derivatives, forward-mode ones and torch.func are taken by torch's operations.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.kernels import door, faults
from ulna.kernels.normalize import native, triton
from ulna.kernels.normalize.definition import activated, last
from ulna.kernels.pinning import Pins

PATHS = ("auto", "native", "triton", "torch")
_pins = Pins(PATHS)


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float = 1.0) -> Tensor:
    """Every channel of every image gets mean 0 and deviation 1, then scale and shift, then a leaky ReLU.

    Statistics are float32 or better whatever the map's type.

    Args:
        x: more than one position a channel.
        weight: scale.
        bias: shift.
        eps: added to the variance.
        slope: of the activation below 0: 1 for none, 0 for ReLU.

    Shape:
        (N, C, *S), (C,), (C,) -> (N, C, *S)
    """
    path = path_of(x, weight, bias)
    if path == "torch":
        return activated(_by_torch(x, weight, bias, eps), slope)
    return _in_one_pass(path, x, weight, bias, eps, slope, len(x))[0]


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, *, eps: float, slope: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The same over all images of a batch together, for a map that `suits`; also the statistics.

    Shape:
        (N, C, *S), (C,), (C,) -> (N, C, *S), mean (C,), variance (C,) with N * S values as divisor
    """
    y, mean, variance = _in_one_pass(path_of(x, weight, bias), x, weight, bias, eps, slope, 1)
    return y, mean[0], variance[0]


def suits(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether a kernel of our own takes this map, this scale and this shift."""
    return path_of(x, weight, bias) != "torch"


def path_of(x: Tensor, weight: Tensor, bias: Tensor) -> str:
    """The path that a norm takes: "native", "triton", or "torch" (its own operations)."""
    pinned = _pins.chosen
    if pinned in ("auto", "native") and native.suits(x, weight, bias):
        return "native"
    # Triton's interpreter is so slow that a CPU takes it only when asked to
    if pinned in (("auto", "triton") if x.is_cuda else ("triton",)) and triton.suits(x, weight, bias):
        return "triton"
    return "torch"


def force(path: str) -> AbstractContextManager[None]:
    """Pin the path within a `with`: one of `PATHS`; where it cannot be taken, torch's operations answer.

    Raises:
        ValueError: for another path.
    """
    return _pins.force(path)


def _in_one_pass(
    path: str, x: Tensor, weight: Tensor, bias: Tensor, eps: float, slope: float, images: int
) -> tuple[Tensor, Tensor, Tensor]:
    if path == "triton":
        return triton.normalize(x, weight, bias, eps=eps, slope=slope, images=images)
    made: tuple[Tensor, Tensor, Tensor] = native.Normalize.apply(x, weight, bias, eps, slope, images)  # type: ignore[no-untyped-call]
    return made


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    if x.is_contiguous() or x.ndim not in (4, 5) or not weight.ndim == bias.ndim == 1 or not door.plain(weight):
        return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    return (image_by_image if x.device.type in ("cpu", "meta") else whole_batch)(x, weight, bias, eps)


def image_by_image(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """By batch norm of one image, which is the same, and does not copy a channels-last map to and fro: best on a CPU."""
    weight = weight.contiguous() if "scale_in_steps" in faults.HERE else weight
    images = [F.batch_norm(image, None, None, weight, bias, training=True, eps=eps) for image in torch.split(x, 1)]
    return torch.cat(images)


def whole_batch(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """By torch's instance norm, which reads one channel after the other: of a copy in that order, for all images at once.

    On a GPU two copies cost less than a launch and more for every image.
    """
    made = F.instance_norm(x.contiguous(), weight=weight, bias=bias, eps=eps)
    return made.contiguous(memory_format=last(x))
