"""Which path serves which convolution: the one way into this room.

| path      | precision     | kernel            | stride | groups        | trains | maps                                   |
|-----------|---------------|-------------------|--------|---------------|--------|----------------------------------------|
| chunked   | bf16, fp16    | any               | any    | 1             | yes    | large, or few rows in large planes     |
| winograd  | fp32          | 3x3, 3x3x3, 1x3x3 | 1      | 1             | either | of pixels and channels enough          |
| depthwise | fp32, bf16    | odd               | any    | one a channel | yes    | volumes; with kernels above 3, of bf16 |
| torch     | any           | any               | any    | any           | either | any                                    |

The first row that fits is taken; "trains": a gradient of the weights is wanted; depthwise serves fp16 too where autocast asks
for it. All but the last are for plain tensors on a CPU (`door.py`), without dilation. The layout of a map decides nothing:
paths that read channels last order it themselves.
`workarounds.py` says what torch's library must not be given, whatever the path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.kernels import door, native
from ulna.kernels.convolution import chunked, depthwise, winograd, workarounds
from ulna.kernels.convolution.definition import Convolution, joined, precision
from ulna.kernels.pinning import Pins


class Path(NamedTuple):
    """A way to compute convolutions, and when it is taken: the questions are asked in this order."""

    suits: Callable[[Convolution], bool]  # by types, kernel and settings: cheap, and no word about the size of a map
    pays: Callable[[Convolution], bool]  # by sizes, of what fits together
    available: Callable[[Convolution], bool]  # on this machine, with what is switched on
    run: Callable[[Convolution], Tensor]


PATHS = {
    "chunked": Path(chunked.suits, chunked.pays, chunked.available, chunked.run),
    "winograd": Path(winograd.suits, winograd.pays, winograd.available, winograd.run),
    "depthwise": Path(depthwise.suits, depthwise.pays, depthwise.available, depthwise.run),
}
_pins = Pins(("auto", *PATHS, "torch"))


def convolve(
    x: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """A convolution as torch has it, by the path that is fastest for it.

    Args:
        x: a map, or several whose channels together are the input.
        weight: the kernel.
        bias: or None.
        stride: of every axis; None: 1.
        padding: zeros at both ends of every axis; None: half the kernel, so that an odd one keeps the size at stride 1.
        dilation: of every axis; None: 1.
        groups: that share the channels.

    Shape:
        (N, C, *S) or [(N, Ci, *S), ...], (K, C / groups, *kernel), (K,) -> (N, K, *S')

    The answer has the precision of the convolution; but under autocast, where a workaround asks for float32, it is float32.
    Second derivatives, forward-mode ones and torch.func are taken by torch's operations.
    """
    asked = _asked(x, weight, bias, stride, padding, dilation, groups)
    if not asked.regular():
        return asked.by_torch()
    if not workarounds.stays_float32(asked):
        return _padded(asked)
    casts = torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False):
        made = _padded(asked.in_float32())
    return made if casts else made.to(asked.maps[0].dtype)


def convolve_transposed(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Sequence[int]) -> Tensor:
    """A transposed convolution whose kernel is its stride, as torch has it: no pixel is written twice.

    Shape:
        (N, C, *S), (C, K, *stride), (K,) -> (N, K, *S * stride)
    """
    low = precision(x)
    same = all(precision(t) == low for t in (weight, bias) if t is not None)
    if same and workarounds.transposed_stays_float32(x, stride=stride):
        with torch.autocast("cpu", enabled=False):
            return _transposed(x.float(), weight.float(), None if bias is None else bias.float(), stride).to(low)
    axis = workarounds.axis_to_turn(x, weight, stride=stride)
    if not axis:
        return _transposed(x, weight, bias, stride)
    order = list(stride)
    order[0], order[axis] = order[axis], order[0]
    turned, kernel = (t.transpose(2, 2 + axis).contiguous(memory_format=torch.channels_last_3d) for t in (x, weight))
    return _transposed(turned, kernel, bias, order).transpose(2, 2 + axis)


def path_of(x: Tensor | Sequence[Tensor], weight: Tensor, bias: Tensor | None = None, **settings: Any) -> str:
    """The path that `convolve` takes for a convolution that no workaround changes: a name of `PATHS`, or "torch".

    Args:
        x: as of `convolve`, like all that follows.
        weight: the kernel.
        bias: or None.
        settings: stride, padding, dilation, groups.
    """
    return _path(_asked(x, weight, bias, **settings))


def force(path: str) -> AbstractContextManager[None]:
    """Pin the path within a `with`: one of `PATHS`, "torch" (its own operation), or "auto".

    A pinned path is taken wherever it can be, whether it pays or not; where it cannot, torch's operation answers.

    Raises:
        ValueError: for another path.
    """
    return _pins.force(path)


def preferred_layout(
    spatial_dims: int, device: torch.device | str = "cpu", precision: str = "fp32"
) -> torch.memory_format:
    """How maps should lie in memory: channels last, of volumes only where kernels read them so.

    On a CPU those are our own. On a GPU they are the tensor cores' in bf16: torch's library copies a bf16 volume of any other
    layout to channels last and back, which took 10 to 15 % of a training step, and our norm reads channels last. That the
    whole step is faster so, and one in float32 is not, is not measured yet on a GPU.
    """
    if spatial_dims == 2:
        return torch.channels_last
    kind = torch.device(device).type
    fast = precision == "bf16" if kind == "cuda" else kind == "cpu" and native.available()
    return torch.channels_last_3d if fast else torch.contiguous_format


def _asked(
    x: Tensor | Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
) -> Convolution:
    maps, kernel = [x] if isinstance(x, Tensor) else list(x), weight.shape[2:]
    if len({precision(m) for m in maps}) > 1:
        maps = [joined(maps)]  # of the type that torch gives them together
    ones, half = (1,) * len(kernel), tuple(n // 2 for n in kernel)
    step, gap = (ones if given is None else tuple(given) for given in (stride, dilation))
    return Convolution(maps, weight, bias, step, half if padding is None else tuple(padding), gap, groups)


def _path(asked: Convolution) -> str:
    pinned = _pins.chosen
    names = [name for name, path in PATHS.items() if pinned in ("auto", name) and path.suits(asked)]
    if not names or not door.admits(*asked.maps, asked.weight, asked.bias, dtypes=door.FLOATS) or not asked.fits():
        return "torch"
    taken = (name for name in names if (pinned == name or PATHS[name].pays(asked)) and PATHS[name].available(asked))
    return next(taken, "torch")


def _padded(asked: Convolution) -> Tensor:
    """Small maps get zeros behind their ends where a workaround asks for it, and what comes of these is cut off."""
    asked = workarounds.only_what_is_read(asked)
    zeros = workarounds.extra_padding(asked)
    if not any(zeros):
        return _run(asked)
    made = _run(asked._replace(maps=[workarounds.pad_end(m, zeros) for m in asked.maps]))
    sizes = zip(asked.maps[0].shape[2:], asked.reach, asked.stride, asked.padding, strict=True)
    for axis, (n, k, s, p) in enumerate(sizes, start=2):
        made = made.narrow(axis, 0, (n + 2 * p - k) // s + 1)
    return made


def _run(asked: Convolution) -> Tensor:
    name = _path(asked)
    return asked.by_torch() if name == "torch" else PATHS[name].run(asked)


def _transposed(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    call: Any = F.conv_transpose2d if x.ndim == 4 else F.conv_transpose3d
    made: Tensor = call(x, weight, bias, stride)
    return made
