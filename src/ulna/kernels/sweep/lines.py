"""The sweep with torch's own operations, line by line, with a backward pass written by hand: any device.

What autograd would do with the loop of the reference costs most of its time: a tape of a dozen small operations a line.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear

from ulna.kernels.sweep.window import window


class _Line:
    """The neighbours of every position of a line, side by side, from a buffer with a margin of zeros.

    Shape:
        (N, *T, C) -> (N * positions, K * C)
    """

    def __init__(self, like: Tensor, neighbours: int) -> None:
        batch, *size, channels = like.shape
        self.padded = like.new_zeros((batch, *(n + 2 for n in size), channels))
        self.near = like.new_empty((batch, *size, neighbours, channels))
        self.offsets = window(len(size), neighbours)
        self.size = size

    def _seen(self, offset: tuple[int, ...]) -> Tensor:
        seen = self.padded
        for axis, (step, length) in enumerate(zip(offset, self.size, strict=True), start=1):
            seen = seen.narrow(axis, 1 + step, length)
        return seen

    def gather(self, line: Tensor) -> Tensor:
        """What every position reads."""
        self._seen((0,) * len(self.size)).copy_(line)
        for j, offset in enumerate(self.offsets):
            self.near[..., j, :] = self._seen(offset)
        return self.near.view(-1, self.near.shape[-2] * self.near.shape[-1])

    def scatter(self, near: Tensor) -> Tensor:
        """The transpose of `gather`: what every position is given."""
        parts = near.view(self.near.shape)
        self.padded.zero_()
        for j, offset in enumerate(self.offsets):
            self._seen(offset).add_(parts[..., j, :])
        return self._seen((0,) * len(self.size))


def forward(
    x: Tensor, weights: tuple[Tensor, ...], axis: int, reverse: bool, keep: bool, operands: torch.dtype
) -> tuple[Tensor, Tensor]:
    """As `forward` of `native.py`, with the precision in which products read their operands."""
    w_in, w_hidden, b_in, b_hidden = weights
    C = x.shape[-1]
    swept, gates = torch.empty_like(x), x.new_empty((*x.shape[:-1], 4 * C) if keep else 0)
    hidden = linear(x.to(operands), w_hidden.to(operands)).to(x.dtype).add_(b_hidden)  # of all lines in one product
    s, h, side = (m.movedim(1 + axis, 0) for m in (x, swept, hidden))
    kept = gates.movedim(1 + axis, 0) if keep else gates
    w = w_in.T.to(operands)
    order = _order(len(s), reverse)
    line = _Line(s[0], w_in.shape[1] // C)
    h[order[0]] = s[order[0]]
    if keep:
        kept[order[0]] = 0
    for before, t in pairwise(order):
        near = line.gather(h[before])
        given = (near.to(operands) @ w).to(x.dtype).add_(b_in).view(side[t].shape)
        rz = torch.sigmoid(given[..., : 2 * C] + side[t][..., : 2 * C])
        share = side[t][..., 2 * C :]
        n = torch.addcmul(given[..., 2 * C :], rz[..., :C], share).tanh_()
        h[t] = n.lerp(s[t], rz[..., C:])
        if keep:
            kept[t] = torch.cat((rz, n, share), dim=-1)
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
    """As `backward` of `native.py`, with the precision in which products read their operands."""
    w_in, w_hidden = (w.to(operands) for w in weights)
    C = x.shape[-1]
    dx = torch.empty_like(x)
    d_in, d_hidden = (torch.zeros_like(w) for w in weights)
    b_in, b_hidden = x.new_zeros(2, 3 * C).unbind()
    s, h, kept, upper, down = (m.movedim(1 + axis, 0) for m in (x, swept, gates, grad, dx))
    order = _order(len(s), reverse)
    reads, gives = _Line(s[0], w_in.shape[1] // C), _Line(s[0], w_in.shape[1] // C)
    carry = torch.zeros_like(s[0])
    for before, t in reversed(list(pairwise(order))):
        r, z, n, share = kept[t].chunk(4, dim=-1)
        g = upper[t] + carry
        dn = g * (1 - z) * (1 - n * n)
        dr, dz = dn * share * r * (1 - r), g * (s[t] - n) * z * (1 - z)
        slopes_in = torch.cat((dr, dz, dn), dim=-1).view(-1, 3 * C)
        slopes_hidden = torch.cat((dr, dz, dn * r), dim=-1).view(-1, 3 * C)
        b_in += slopes_in.sum(0)
        b_hidden += slopes_hidden.sum(0)
        low_in, low_hidden = slopes_in.to(operands), slopes_hidden.to(operands)
        d_in += low_in.T @ reads.gather(h[before]).to(operands)
        d_hidden += low_hidden.T @ s[t].reshape(-1, C).to(operands)
        down[t] = g * z + (low_hidden @ w_hidden).to(x.dtype).view(g.shape)
        carry = gives.scatter((low_in @ w_in).to(x.dtype))
    down[order[0]] = upper[order[0]] + carry
    return dx, d_in, d_hidden, b_in.clone(), b_hidden.clone()


def _order(length: int, reverse: bool) -> list[int]:
    """The lines in the order in which a sweep visits them."""
    return list(reversed(range(length))) if reverse else list(range(length))
