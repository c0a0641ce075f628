"""The implicit head: reads every level of a pyramid at single points, so that few points cost little."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ulna.errors import UsageError, unknown
from ulna.kernels.points.fused_mlp import Picked
from ulna.kernels.points.point_sample import MODES, nearest_rows
from ulna.kernels.points.point_sample import point_sample as read_at
from ulna.networks.heads.decoder import PointDecoder, encode
from ulna.networks.heads.head import Head, Outputs, Reader
from ulna.networks.wiring import Wiring

CHUNK = 16384  # points decoded at once: without gradients, memory stays bounded at any number of them
COARSE = 32  # a map with this many times fewer vectors than the image has voxels, or more


class Points(Head):
    """Gather the vector of every level that lies where a point lies, add the point's place, decode.

    Coordinates are those of the patch that the network sees: it is trained on patches of one size, and predicts by them.

    Source: Implicit U-Net (marimont2022), Sec. 2. Reading: the gathered features are the outputs of the blocks, after norm
    and activation; choices that the paper leaves open are options (docs/papers/implicit_unet.md, section 2 and section 3).

    Args:
        spatial_dims: 2 or 3.
        widths: node -> channels of its map, finest first.
        maps: K, number of logit maps.
        width: of the decoder's hidden layers.
        depth: number of hidden layers; 7 is the reading in which the printed eight include the output layer.
        dropout: probability, after every hidden layer.
        frequencies: L of the encoding.
        gather: "nearest" as in the paper, or "linear" between the vectors around a point.
        skip_layer: the hidden layer that reads the input a second time; 0: none.

    Shape:
        {node: (N, C, *S / stride)}, (N, P, D) -> Outputs with (N, K, P), or with (N, K, *S) without points

    Raises:
        UsageError: for options outside their range.
    """

    sparse = True

    def __init__(
        self,
        spatial_dims: int,
        widths: Mapping[str, int],
        maps: int,
        *,
        width: int = 512,
        depth: int = 8,
        dropout: float = 0.2,
        frequencies: int = 10,
        gather: str = "nearest",
        skip_layer: int = 0,
    ) -> None:
        super().__init__()
        if gather not in MODES:
            raise unknown("gather", gather, MODES)
        if frequencies < 0:
            raise UsageError(f"frequencies is {frequencies}; 0 or more are possible")
        self.nodes, self.frequencies, self.mode = tuple(widths), frequencies, gather
        entered = sum(widths.values()) + 2 * frequencies * spatial_dims
        self.decoder = PointDecoder(entered, maps, width=width, depth=depth, dropout=dropout, skip_layer=skip_layer)

    @staticmethod
    def reads(wiring: Wiring, *, deep_supervision: bool, readout: str) -> tuple[str, ...]:
        return wiring.pyramid

    def forward(self, maps: dict[str, Tensor], size: Sequence[int], points: Tensor | None = None) -> Outputs:
        return self.reader(maps, size)(points)

    def reader(self, maps: dict[str, Tensor], size: Sequence[int]) -> Reader:
        # symbols of an export: voxels would be counted for its example alone
        if not all(isinstance(n, int) for n in size):
            raise UsageError(
                "a head that reads points cannot be exported for images of any size: it goes by the place in a patch, and is "
                "trained on patches of one size; export it by torch.export, or the ONNX exporter that uses it, for that size "
                "alone"
            )
        weights, graded = self.decoder.weights(), torch.is_grad_enabled()
        folded = self._fold(maps, size, weights[0])

        def read(points: Tensor | None = None) -> Outputs:
            with torch.set_grad_enabled(torch.is_grad_enabled() and graded):
                parts = [self._at(some, maps, size, weights, folded) for some in self._chunks(maps, size, points)]
                logits = torch.cat(parts, dim=2)
            if points is None:
                logits = logits.reshape(*logits.shape[:2], *size)
            return Outputs(logits, {"points": logits}, points)

        return read

    def _fold(self, maps: dict[str, Tensor], size: Sequence[int], weight: Tensor) -> _Folded | None:
        """The products of coarse maps with the first layer, once a vector of theirs in place of once a point of the image.

        In prediction, where a vector of a coarse map is read at many points. It is the same sum in another order; in low
        precision the products of every map are rounded first. Which maps are coarse depends on their sizes alone, so that a
        point has one answer however many are asked beside it.
        """
        finest = maps[self.nodes[0]]
        coarse = [name for name in self.nodes if COARSE * maps[name][0, 0].numel() <= math.prod(size)]
        if (
            not coarse
            or torch.is_grad_enabled()
            or self.mode != "nearest"
            or self.decoder.skip_layer
            or not _real(finest)
        ):
            return None
        grid = maps[coarse[0]].shape[2:]  # of the finest of them
        if any(n % m for name in coarse for n, m in zip((*size, *grid), (*grid, *maps[name].shape[2:]), strict=True)):
            return None
        widths = [maps[name].shape[1] for name in self.nodes]
        columns = dict(
            zip(self.nodes, torch.split(weight, [*widths, weight.shape[1] - sum(widths)], dim=1), strict=False)
        )
        total: Tensor | None = None
        for name in coarse:
            product = linear(maps[name].movedim(1, -1), columns[name]).movedim(-1, 1)
            for axis, (n, m) in enumerate(zip(grid, product.shape[2:], strict=True), start=2):
                product = product.repeat_interleave(n // m, dim=axis)
            wide = product.to(torch.promote_types(product.dtype, torch.float32))
            total = wide if total is None else total + wide
        assert total is not None
        total = total + self.decoder.first_bias()[:, None].reshape(-1, *(1 for _ in size))
        fine = [name for name in self.nodes if name not in coarse]
        rest = torch.cat([*(columns[name] for name in fine), weight[:, sum(widths) :]], dim=1)
        layout = torch.channels_last if len(size) == 2 else torch.channels_last_3d  # whole vectors are read
        return _Folded(tuple(fine), rest, total.to(product.dtype).contiguous(memory_format=layout))

    def _chunks(self, maps: dict[str, Tensor], size: Sequence[int], points: Tensor | None) -> Iterator[Tensor]:
        """The points, or all voxels in the order of memory, a few at a time: (N, P, D).

        With gradients, all at once: the backward pass would make a gradient of every whole map for each portion.
        """
        first = maps[self.nodes[0]]
        images, voxels = first.shape[0], math.prod(size)
        most = voxels if points is None else points.shape[1]
        step = max(1, most if torch.is_grad_enabled() else CHUNK // images)
        if points is not None:
            yield from torch.split(points, step, dim=1)
            return
        for start in range(0, voxels, step):
            flat = torch.arange(start, min(start + step, voxels), device=first.device)
            yield torch.stack(torch.unravel_index(flat, tuple(size)), dim=-1).expand(images, -1, -1)

    def _at(
        self,
        points: Tensor,
        maps: dict[str, Tensor],
        size: Sequence[int],
        weights: Sequence[Tensor],
        folded: _Folded | None,
    ) -> Tensor:
        nodes = self.nodes if folded is None else folded.fine
        dtype = maps[self.nodes[0]].dtype
        wide = torch.promote_types(dtype, torch.float32)  # angles are large
        place = encode(points, size, self.frequencies, dtype=wide).to(dtype)
        read = self._unread(points, maps, size)
        if read:
            return self.decoder(place, weights, read=read).transpose(1, 2)
        vectors = [*(read_at(maps[name], points, size, mode=self.mode) for name in nodes), place]
        del place
        x = torch.cat(vectors, dim=-1)
        del vectors  # as much memory as x, which the decoder needs
        if folded is None:
            return self.decoder(x, weights).transpose(1, 2)
        addend = read_at(folded.product, points, size)
        return self.decoder(x, [folded.weight, *weights[1:]], addend).transpose(1, 2)

    def _unread(self, points: Tensor, maps: dict[str, Tensor], size: Sequence[int]) -> list[Picked]:
        """With gradients, where every map has its channels last: what is to be read of each, for the decoder to do so."""
        if not torch.is_grad_enabled() or self.mode != "nearest" or not all(_real(maps[name]) for name in self.nodes):
            return []
        picked = [nearest_rows(maps[name], points, size) for name in self.nodes]
        return [one for one in picked if one is not None] if all(one is not None for one in picked) else []


class _Folded(NamedTuple):
    """The first layer of the decoder, with coarse maps multiplied already.

    Args:
        fine: the nodes that are still read point by point.
        weight: (W, their channels and those of the place).
        product: (N, W, *S / stride of the finest coarse map), the bias included.
    """

    fine: tuple[str, ...]
    weight: Tensor
    product: Tensor


def _real(x: Tensor) -> bool:
    """Values in memory, of no trace."""
    return (
        type(x) is Tensor
        and x.device.type != "meta"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    )
