"""Fully connected layers at many points: a block of rows goes through all of them while it lies in the cache.

Legend: R rows (points), Cin values of a row, K outputs, W width of the hidden layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ulna.kernels import door

# rows of a block: what lies between two products, ReLU, dropout and their gradients, then finds its values in the cache
ROWS = 1024
# without gradients little lies between two products, and what a call costs counts for more
ROWS_PREDICTED = 4096
FEWEST_ROWS = 64  # of a block that is filled up
FUSED = ["X", "W", "B", "attr", "scalars", "algorithm"]  # arguments of a call of torch's own compiler
LANE = torch.int16  # a draw of 64 random bits decides on four values
LANES = 2**16
Picked = tuple[Tensor, Tensor]  # a matrix (V, C), and which of its rows are read: (R,)


def fused_mlp_reference(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    dropout: float = 0.0,
    skip_layer: int = 0,
    addend: Tensor | None = None,
) -> Tensor:
    """The definition, on any device and in any precision: hidden layers with ReLU and dropout, then a plain one.

    Source: Implicit U-Net (marimont2022), Sec. 2.

    Args:
        x: values of the points.
        weights: of every layer, the last one without ReLU; weights are (W, Cin), then (W, W), then (K, W).
        biases: of every layer.
        dropout: probability, after every hidden layer.
        skip_layer: the layer, counted from 1, that reads x a second time beside what comes in, with W + Cin columns; 0: none.
        addend: (R, W), added to the first product in place of that layer's bias.

    Shape:
        (R, Cin) -> (R, K)
    """
    y = x
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        entered = torch.cat([y, x], dim=-1) if number == skip_layer else y
        y = F.linear(entered, weight, bias) if number > 1 or addend is None else F.linear(entered, weight) + addend
        if number < len(weights):
            y = F.dropout(y.relu(), dropout)
    return y


def fused_mlp(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *,
    dropout: float = 0.0,
    skip_layer: int = 0,
    addend: Tensor | None = None,
    read: Sequence[Picked] = (),
) -> Tensor:
    """As `fused_mlp_reference`, block by block, in the precision of autocast where that is on.

    Rows that are `read` from matrices lie before x, as if they were joined with it. In training they never are, but block by
    block, and again in the backward pass, whose gradients are summed up in those of the matrices: less memory by two matrices
    of all rows.

    For the backward pass the hidden layers' outputs alone are kept: where one is 0, ReLU or dropout has made it so. Random
    bits for dropout come from torch's own generator; its probability is taken to 1 / 65,536. Second derivatives go through
    torch's operations. It is the definition that runs with gradients and an `addend`, in forward-mode derivatives, within
    torch.func, and for tensors that do not fit together.
    """
    matrices, layers = [matrix for matrix, _ in read], [*weights, *biases]
    added = [] if addend is None else [addend]
    kind = x.device.type
    casts = kind != "meta" and torch.is_autocast_enabled(kind)
    plain = (
        door.admits(x, *matrices, *layers, *added, dtypes=door.FLOATS, device=None)
        and _fit(x, weights, biases, matrices, skip_layer, addend)
        and (casts or len({t.dtype for t in (x, *layers, *added)}) == 1)
    )
    if plain and casts and x.dtype == torch.float32:
        x = x.to(torch.get_autocast_dtype(kind))
    graded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *matrices, *layers, *added))
    if plain and graded and addend is None:
        at = tuple(at for _, at in read)
        return _FusedMlp.apply(x, at, dropout, skip_layer, *matrices, *layers)  # type: ignore[no-untyped-call]
    if read:
        x = torch.cat([*(matrix.index_select(0, at).to(x.dtype) for matrix, at in read), x], dim=1)
    if not plain or graded:
        return fused_mlp_reference(x, weights, biases, dropout=dropout, skip_layer=skip_layer, addend=addend)
    return _forward(_Rows(x), _layers(layers, x), dropout, skip_layer, None, addend)


def _fit(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    matrices: Sequence[Tensor],
    skip_layer: int,
    addend: Tensor | None,
) -> bool:
    """Whether all sizes are those of the definition: blocks take it for granted."""
    if x.ndim != 2 or any(m.ndim != 2 for m in matrices) or len(weights) != len(biases) or not weights:
        return False
    enters = wide = sum(m.shape[1] for m in (*matrices, x))
    for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        reads = wide + (enters if number == skip_layer else 0)
        if weight.ndim != 2 or weight.shape[1] != reads or bias.shape != weight.shape[:1]:
            return False
        wide = len(weight)
    return addend is None or addend.shape == (len(x), len(weights[0]))


class _Rows:
    """Rows of values, those of matrices before their own, which are joined when they are asked for.

    Args:
        own: (R, Cx).
        matrices: [(V, C), ...].
        at: which row of every matrix: [(R,), ...].
    """

    def __init__(self, own: Tensor, matrices: Sequence[Tensor] = (), at: Sequence[Tensor] = ()) -> None:
        self.own, self.matrices, self.at = own, matrices, at
        self.widths = [*(matrix.shape[1] for matrix in matrices), own.shape[1]]

    def __getitem__(self, rows: slice) -> Tensor:
        own = self.own[rows]
        if not self.matrices:
            return own
        read = (
            matrix.index_select(0, at[rows]).to(own.dtype) for matrix, at in zip(self.matrices, self.at, strict=True)
        )
        return torch.cat([*read, own], dim=1)


class _Gradients:
    """Those of rows, block by block; None for what asks for none."""

    def __init__(self, rows: _Rows, asked: Sequence[bool]) -> None:
        self.rows = rows
        self.own = torch.zeros_like(rows.own) if asked[0] else None
        self.matrices = [
            # where there are fewer points than rows, few rows are summed, and the map of sums is large
            torch.zeros_like(matrix, dtype=_wide(matrix) if len(at) >= len(matrix) else matrix.dtype)
            if wanted
            else None
            for matrix, at, wanted in zip(rows.matrices, rows.at, asked[1:], strict=True)
        ]
        self.asked = any(asked)

    def add(self, rows: slice, block: Tensor) -> None:
        *parts, own = block.split(self.rows.widths, dim=1)  # type: ignore[no-untyped-call]
        if self.own is not None:
            self.own[rows] += own
        for total, at, part in zip(self.matrices, self.rows.at, parts, strict=True):
            if total is not None:
                total.index_add_(0, at[rows], part.to(total.dtype).contiguous())

    def made(self) -> list[Tensor | None]:
        """Of the own values, then of every matrix."""
        pairs = zip(self.matrices, self.rows.matrices, strict=True)
        return [self.own, *(None if total is None else total.to(matrix.dtype) for total, matrix in pairs)]


class _FusedMlp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, at: tuple[Tensor, ...], dropout: float, skip_layer: int, *tensors: Tensor
    ) -> Tensor:
        matrices, layers = tensors[: len(at)], tensors[len(at) :]
        cast = _layers(layers, x)
        # one piece of memory, which has room for large maps when it is free again
        kept = x.new_empty(len(x) * sum(len(bias) for bias in cast[1][:-1]))
        ctx.save_for_backward(x, kept, *at, *tensors)
        ctx.count, ctx.dropout, ctx.skip_layer = len(at), dropout, skip_layer
        return _forward(_Rows(x, matrices, at), cast, dropout, skip_layer, _split(kept, cast[1]))

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        own, kept, *tensors = ctx.saved_tensors
        count = ctx.count
        if door.gradient_by_torch(dout):
            definition = partial(_definition, tensors[:count], kept, ctx.dropout, ctx.skip_layer)
            asked = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
            found = door.gradients(definition, [own, *tensors[count:]], asked, dout)
            return found[0], None, None, None, *found[1:]
        x = _Rows(own, tensors[count : 2 * count], tensors[:count])
        layers = tensors[2 * count :]
        ws, bs = _layers(layers, own)
        hidden = _split(kept, bs)
        # sums over blocks are in the precision of the weights, whatever the products are in
        totals = [torch.zeros_like(t) for t in layers]
        dx = _Gradients(x, [ctx.needs_input_grad[0], *ctx.needs_input_grad[4 : 4 + count]])
        scale = 1 / (1 - ctx.dropout)
        for rows in _blocks(own):
            entered = x[rows]
            g = dout[rows].to(own.dtype).contiguous()
            for layer in reversed(range(len(ws))):
                y = hidden[layer - 1][rows] if layer else entered
                wide = y.shape[1]
                totals[layer][:, :wide].add_(g.t() @ y)
                totals[len(ws) + layer].add_(g.sum(0, dtype=layers[0].dtype))
                if layer + 1 == ctx.skip_layer:
                    totals[layer][:, wide:].add_(g.t() @ entered)
                    if dx.asked:
                        dx.add(rows, g @ ws[layer][:, wide:])
                if layer:
                    g = torch.ops.aten.threshold_backward(g @ ws[layer][:, :wide], y, 0)
                    g = g.mul_(scale) if ctx.dropout else g
                elif dx.asked:
                    dx.add(rows, g @ ws[0])
        of_x, *of_matrices = dx.made()
        return of_x, None, None, None, *of_matrices, *totals


def _definition(
    at: Sequence[Tensor], kept: Tensor, dropout: float, skip_layer: int, own: Tensor, *tensors: Tensor
) -> Tensor:
    """What `_FusedMlp` computed, in torch's operations; what it left in `kept` says what was dropped."""
    matrices, layers = tensors[: len(at)], [t.to(own.dtype) for t in tensors[len(at) :]]
    ws, bs = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    read = (matrix.index_select(0, i).to(own.dtype) for matrix, i in zip(matrices, at, strict=True))
    y = x = torch.cat([*read, own], dim=1)
    hidden = [*_split(kept, bs), None]
    for number, (weight, bias, made) in enumerate(zip(ws, bs, hidden, strict=True), start=1):
        y = F.linear(torch.cat([y, x], dim=1) if number == skip_layer else y, weight, bias)
        if made is not None:
            y = y * ((made != 0).to(y.dtype) / (1 - dropout))
    return y


def _forward(
    x: _Rows,
    layers: tuple[Sequence[Tensor], Sequence[Tensor]],
    dropout: float,
    skip_layer: int,
    hidden: Sequence[Tensor] | None,
    addend: Tensor | None = None,
) -> Tensor:
    """All rows, block by block; the outputs of the hidden layers go to `hidden` where that is given."""
    ws, bs = layers
    own = x.own
    out = own.new_empty(len(own), len(bs[-1]))
    if hidden is None and not dropout and not skip_layer and _fuses(own):
        for rows in _blocks(own, ROWS_PREDICTED):
            some = x[rows]
            made = _fused(_filled(some), ws, bs, None if addend is None else _filled(addend[rows]))
            out[rows] = made[: len(some)]
        return out
    for rows in _blocks(own):
        y = entered = x[rows]
        for layer, (weight, bias) in enumerate(zip(ws, bs, strict=True)):
            wide = y.shape[1]
            last = layer + 1 == len(ws)
            room = out[rows] if last else hidden[layer][rows] if hidden else own.new_empty(len(y), len(bias))
            torch.addmm(bias if layer or addend is None else addend[rows], y, weight[:, :wide].t(), out=room)
            if layer + 1 == skip_layer:
                room.addmm_(entered, weight[:, wide:].t())
            if not last:
                room.relu_()
                if dropout:
                    room.mul_(_kept(room, dropout)).mul_(1 / (1 - dropout))
            y = room
    return out


def _filled(rows: Tensor) -> Tensor:
    """The rows, and rows of zeros up to a power of two.

    The library keeps a program for every number of rows that it has met, a thousand of them, each up to a megabyte. A
    prediction asks about another number of points every time: two gigabytes after 45 epochs.
    """
    count = max(FEWEST_ROWS, 1 << (len(rows) - 1).bit_length())
    return rows if count == len(rows) else F.pad(rows, (0, 0, 0, count - len(rows)))


def _fuses(x: Tensor) -> bool:
    """Whether torch's library has the product, the bias and ReLU in one call for these rows."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu" or not x.numel():
        return False
    packet = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if packet is None or not torch.backends.mkldnn.enabled or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    return [argument.name for argument in packet.default._schema.arguments] == FUSED


def _fused(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], addend: Tensor | None) -> Tensor:
    y, call = x, torch.ops.mkldnn._linear_pointwise
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        last = layer + 1 == len(weights)
        if layer or addend is None:
            y = call(y, weight, bias, "none" if last else "relu", [], "")
        else:
            y = torch.addmm(addend, y, weight.t())
            y = y if last else y.relu_()
    return y


def _wide(x: Tensor) -> torch.dtype:
    """A precision in which many values may be summed."""
    return torch.promote_types(x.dtype, torch.float32)


def _split(kept: Tensor, biases: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of the hidden layers, one behind the other: [(R, W), ...]."""
    widths = [len(bias) for bias in biases[:-1]]
    rows = len(kept) // max(1, sum(widths))
    parts = torch.split(kept, [rows * width for width in widths])
    return [part.view(rows, width) for part, width in zip(parts, widths, strict=True)]


def _blocks(x: Tensor, most: int = ROWS) -> Iterator[slice]:
    """Rows that go through the layers together; a GPU takes all of them, small products would leave it idle."""
    step = most if x.device.type == "cpu" else max(1, len(x))
    return (slice(start, start + step) for start in range(0, len(x), step))


def _kept(like: Tensor, dropout: float) -> Tensor:
    """1 for every value that is kept, 0 for one that is dropped: as many as `like` has, of its kind."""
    bits = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    lanes = bits.view(LANE)[: like.numel()].view(like.shape)
    return torch.ge(lanes, round(dropout * LANES) - LANES // 2, out=torch.empty_like(like))


def _layers(layers: Sequence[Tensor], x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases, in the precision of the rows."""
    cast = [t.detach().to(x.dtype) for t in layers]
    return cast[: len(cast) // 2], cast[len(cast) // 2 :]
