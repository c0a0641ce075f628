"""The gated sweep of a spatial dependency layer: a recurrence that runs over a map line by line, in one direction.

Legend: N images, C state channels, *S spatial axes, L lines along the swept axis, *T the axes of one line, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from ulna.kernels import door
from ulna.kernels.pinning import Pins
from ulna.kernels.sweep import lines as sweep_lines
from ulna.kernels.sweep import native as sweep_native
from ulna.kernels.sweep import scan as sweep_scan
from ulna.kernels.sweep import triton as sweep_triton
from ulna.kernels.sweep.window import shifted, window

PATHS = ("auto", "native", "triton", "lines", "reference")
_pins = Pins(PATHS)


class Direction(NamedTuple):
    """The spatial axis that a sweep follows (0 is the first of *S), and whether it starts at its end."""

    axis: int
    reverse: bool = False


class Gates(NamedTuple):
    """The weights of one sweep, laid out as in a GRU cell: gates r, z, n below each other."""

    weight_in: Tensor  # (3C, K * C): of the neighbours on the line before, in the order of `window`
    weight_hidden: Tensor  # (3C, C): of the position itself
    bias_in: Tensor  # (3C,)
    bias_hidden: Tensor  # (3C,)

    @property
    def neighbours(self) -> int:
        """K."""
        return self.weight_in.shape[1] // self.weight_hidden.shape[1]


def sweep_reference(x: Tensor, gates: Gates, direction: Direction) -> Tensor:
    """The definition of a sweep, on any device and in any precision.

        h[0] = s[0]
        u[t] = the neighbours of every position on h[t-1], zero outside the line
        r = sigmoid(W_ir u + b_ir + W_hr s[t] + b_hr)
        z = sigmoid(W_iz u + b_iz + W_hz s[t] + b_hz)
        n = tanh(W_in u + b_in + r * (W_hn s[t] + b_hn))
        h[t] = (1 - z) * n + z * s[t]

    Source: SDU-Net (carvalho2021), Sec. 2.1; equations from the code of the layer (docs/papers/sdu_net.md, section 1).
    Reading: every axis is swept over its own length; that code takes the height for all.

    Args:
        x: s, the map before the sweep.
        gates: the weights.
        direction: the axis and the sense.

    Shape:
        (N, C, *S) -> (N, C, *S)
    """
    lines = list(x.movedim(1, -1).unbind(1 + direction.axis))  # L times (N, *T, C)
    if direction.reverse:
        lines.reverse()
    offsets = window(x.ndim - 3, gates.neighbours)
    swept = lines[:1]
    for s in lines[1:]:
        u = torch.cat([shifted(swept[-1], offset) for offset in offsets], dim=-1)
        ir, iz, i_n = linear(u, gates.weight_in, gates.bias_in).chunk(3, dim=-1)
        hr, hz, hn = linear(s, gates.weight_hidden, gates.bias_hidden).chunk(3, dim=-1)
        r, z = torch.sigmoid(ir + hr), torch.sigmoid(iz + hz)
        n = torch.tanh(i_n + r * hn)
        swept.append((1 - z) * n + z * s)
    if direction.reverse:
        swept.reverse()
    return torch.stack(swept, dim=1 + direction.axis).movedim(-1, 1)


def sweep(x: Tensor, gates: Gates, direction: Direction) -> Tensor:
    """`sweep_reference`, as fast as this machine can: the same values and gradients.

    State, gates and sums are in the precision of the weights; by matrix registers, gates are kept for the backward pass in
    float16. Under autocast, products read their operands in its precision, unless that is slower: the native kernel does so
    in bf16 where the CPU has instructions for it.

    While a network is exported, it is one loop operator (`Scan` in ONNX) if gradients are off, as `torch.no_grad()` has
    them; else the reference, every line of it written out, which can be trained. The reference runs too for second
    derivatives, forward-mode ones, torch.func, and tensors that do not fit together.

    Shape:
        (N, C, *S) -> (N, C, *S)
    """
    dtype = gates.weight_in.dtype
    x = x.to(dtype)
    if torch.compiler.is_exporting() and not torch.is_grad_enabled() and chosen() != "reference":
        return sweep_scan.forward(x.movedim(1, -1), gates, *direction).movedim(-1, 1)
    exporting = torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
    if chosen() == "reference" or exporting or door.transformed() or not _fit(x, gates, direction):
        return sweep_reference(x, gates, direction)
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *gates))
    device = x.device.type
    lowered = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    operands = torch.get_autocast_dtype(device) if lowered else dtype
    swept, _ = _sweep(x.movedim(1, -1), *gates, *direction, keep, operands)
    return swept.movedim(-1, 1)


def chosen() -> str:
    """The path that sweeps take: what `force` pins, else "auto", the fastest there is."""
    return _pins.chosen


def force(path: str) -> AbstractContextManager[None]:
    """Pin the path within a `with`: "native", "triton", "lines" (torch's own operations), "reference", or "auto".

    "native" is for CPUs, "triton" for GPUs; where they cannot be, "lines" it is.

    Raises:
        ValueError: for another path.
    """
    return _pins.force(path)


def describe(device: str = "cpu") -> str:
    """Which path a sweep takes on a device of this machine ("cpu", "cuda"), in words."""
    if chosen() == "reference":
        return "the reference loop"
    x = torch.empty(0, device=device)
    if _triton(x):
        return "a Triton kernel" + (" in Triton's interpreter" if device == "cpu" else "")
    if device != "cpu" or not _compiled(x):
        return f"torch operations, line by line (no {'native' if device == 'cpu' else 'Triton'} kernel)"
    return f"a native kernel ({'bf16' if sweep_native.multiplies_bf16() else 'still float32'} products under autocast)"


def sweep_flops(x: Any, weight_in: Any, weight_hidden: Any, *rest: Any, **_: Any) -> int:
    """Operations of one sweep, two a multiply-accumulate, from the shapes of its operands; the first line is free.

    Shape:
        x (N, *S, C), weights as in `Gates`; then biases, axis, ...
    """
    axis = rest[2]
    positions = 1
    for length in x[:-1]:
        positions *= length
    swept = positions - positions // x[1 + axis]
    return 2 * swept * (weight_in[0] * weight_in[1] + weight_hidden[0] * weight_hidden[1])


def _fit(x: Tensor, gates: Gates, direction: Direction) -> bool:
    """Whether map, weights and direction are of one size, type and device: kernels take it for granted."""
    if x.ndim not in (4, 5) or not x.numel() or not 0 <= direction.axis < x.ndim - 2:
        return False
    C, reads = x.shape[1], (1, 3) if x.ndim == 4 else (1, 5, 9)
    shapes = (gates.weight_hidden.shape, gates.bias_in.shape, gates.bias_hidden.shape)
    return (
        shapes == ((3 * C, C), (3 * C,), (3 * C,))
        and tuple(gates.weight_in.shape) in [(3 * C, K * C) for K in reads]
        and all(t.dtype == x.dtype and t.device == x.device and t.layout == torch.strided for t in gates)
        and x.layout == torch.strided
    )


def _compiled(x: Tensor) -> bool:
    return chosen() in ("auto", "native") and sweep_native.available(x)


def _finite(x: Tensor) -> bool:
    """Whether a map holds finite values alone: of others, the native kernel's bounded gates make finite ones again."""
    return bool(x.sum().isfinite()) or bool(x.isfinite().all())  # a sum of finite values may be infinite


def _triton(x: Tensor) -> bool:
    # its interpreter is so slow that a CPU takes it only when asked to
    return chosen() in (("auto", "triton") if x.is_cuda else ("triton",)) and sweep_triton.available(x)


def _tried(kernel: Callable[..., Any], *arguments: Any) -> Any:
    """What a Triton kernel answers; None if it fails where another path would do: it is then not tried again."""
    try:
        return kernel(*arguments)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # no compiler for its launcher, a version that reads the kernel otherwise, ...
        if chosen() == "triton":
            raise
        sweep_triton.give_up(error)
        return None


# Operators of torch, so that its compiler, its FLOP counter and the meta device know them by name


@torch.library.custom_op("ulna::sweep", mutates_args=())
def _sweep(
    x: Tensor,
    weight_in: Tensor,
    weight_hidden: Tensor,
    bias_in: Tensor,
    bias_hidden: Tensor,
    axis: int,
    reverse: bool,
    keep: bool,
    operands: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(N, *S, C) -> the map after the sweep, and with `keep` the gates for the backward pass."""
    x, weights = x.contiguous(), (weight_in, weight_hidden, bias_in, bias_hidden)
    if _compiled(x) and _finite(x):
        return sweep_native.forward(x, weights, axis, reverse, keep, operands)
    with torch.autocast(x.device.type, enabled=False):
        if _triton(x) and (found := _tried(sweep_triton.forward, x, weights, axis, reverse, keep, operands)):
            return cast(tuple[Tensor, Tensor], found)
        return sweep_lines.forward(x, weights, axis, reverse, keep, operands)


@_sweep.register_fake
def _(
    x: Tensor,
    weight_in: Tensor,
    weight_hidden: Tensor,
    bias_in: Tensor,
    bias_hidden: Tensor,
    axis: int,
    reverse: bool,
    keep: bool,
    operands: torch.dtype,
) -> tuple[Tensor, Tensor]:
    kept = sweep_native.kept_dtype(x, operands) if _compiled(x) else x.dtype
    return x.new_empty(x.shape), x.new_empty((*x.shape[:-1], 4 * x.shape[-1]) if keep else 0, dtype=kept)


@torch.library.custom_op("ulna::sweep_backward", mutates_args=())
def _sweep_backward(
    grad: Tensor,
    x: Tensor,
    swept: Tensor,
    gates: Tensor,
    weight_in: Tensor,
    weight_hidden: Tensor,
    axis: int,
    reverse: bool,
    operands: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the map and the four weights."""
    grad, x, weights = grad.contiguous(), x.contiguous(), (weight_in, weight_hidden)
    if gates.dtype != x.dtype or (_compiled(x) and _finite(x)):  # gates of another precision are the native kernel's
        return sweep_native.backward(grad, x, swept, gates, weights, axis, reverse, operands)
    arguments = (grad, x, swept, gates, weights, axis, reverse, operands)
    with torch.autocast(x.device.type, enabled=False):
        if _triton(x) and (found := _tried(sweep_triton.backward, *arguments)):
            return cast(tuple[Tensor, Tensor, Tensor, Tensor, Tensor], found)
        return sweep_lines.backward(*arguments)


@_sweep_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    swept: Tensor,
    gates: Tensor,
    weight_in: Tensor,
    weight_hidden: Tensor,
    axis: int,
    reverse: bool,
    operands: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    bias = x.new_empty(weight_in.shape[:1])
    return x.new_empty(x.shape), torch.empty_like(weight_in), torch.empty_like(weight_hidden), bias, bias.clone()


def _definition(direction: Direction, x: Tensor, *weights: Tensor) -> Tensor:
    return sweep_reference(x.movedim(-1, 1), Gates(*weights), direction).movedim(1, -1)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *weights, ctx.axis, ctx.reverse, _, ctx.operands = inputs
    ctx.save_for_backward(x, *weights, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 9
    x, weight_in, weight_hidden, bias_in, bias_hidden, swept, gates = ctx.saved_tensors
    if not torch.compiler.is_compiling() and door.gradient_by_torch(grad):
        inputs = [x, weight_in, weight_hidden, bias_in, bias_hidden]
        definition = partial(_definition, Direction(ctx.axis, ctx.reverse))
        return (*door.gradients(definition, inputs, ctx.needs_input_grad[:5], grad), None, None, None, None)
    found = _sweep_backward(grad, x, swept, gates, weight_in, weight_hidden, ctx.axis, ctx.reverse, ctx.operands)
    return (*found, None, None, None, None)


_sweep.register_autograd(_gradients, setup_context=_remember)
