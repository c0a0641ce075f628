"""The implicit head: reads every level of a pyramid at single points, so that few points cost little."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ulna.errors import UsageError, unknown
from ulna.kernels.gather import MODES
from ulna.kernels.gather import gather as read_at
from ulna.networks.heads.decoder import PointDecoder, encode
from ulna.networks.heads.head import Head, Outputs
from ulna.networks.wiring import Wiring

CHUNK = 16384  # points decoded at once: without gradients, memory stays bounded at any number of them


class Points(Head):
    """Gather the vector of every level that lies where a point lies, add the point's place, decode.

    Coordinates are those of the patch that the network sees: it is trained on patches of one size, and predicts by them.

    Source: Implicit U-Net, Sec. 2. Reading: the gathered features are the outputs of the blocks, after norm and
    activation; choices that the paper leaves open are options, with the defaults of specs, Implicit U-Net 3.

    Args:
        spatial_dims: 2 or 3.
        widths: node -> channels of its map, finest first.
        maps: K, number of logit maps.
        width: of the decoder's hidden layers.
        depth: number of hidden layers; 7 is the reading in which the printed eight include the output layer.
        dropout: probability, after every hidden layer.
        frequencies: L of the encoding.
        gather: "nearest" as in the paper, or "linear" between the vectors around a point.
        reinject: the hidden layer that reads the input a second time; 0: none.

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
        reinject: int = 0,
    ) -> None:
        super().__init__()
        if gather not in MODES:
            raise unknown("gather", gather, MODES)
        if frequencies < 0:
            raise UsageError(f"frequencies is {frequencies}; 0 or more are possible")
        self.nodes, self.frequencies, self.mode = tuple(widths), frequencies, gather
        entered = sum(widths.values()) + 2 * frequencies * spatial_dims
        self.decoder = PointDecoder(entered, maps, width=width, depth=depth, dropout=dropout, reinject=reinject)

    @staticmethod
    def reads(wiring: Wiring, *, deep_supervision: bool, readout: str) -> tuple[str, ...]:
        return wiring.pyramid

    def forward(self, maps: dict[str, Tensor], size: Sequence[int], points: Tensor | None = None) -> Outputs:
        weights = self.decoder.weights()
        parts = [self._at(some, maps, size, weights) for some in self._chunks(maps, size, points)]
        logits = torch.cat(parts, dim=2)
        if points is None:
            logits = logits.reshape(*logits.shape[:2], *size)
        return Outputs(logits, {"points": logits}, points)

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

    def _at(self, points: Tensor, maps: dict[str, Tensor], size: Sequence[int], weights: Sequence[Tensor]) -> Tensor:
        vectors = [read_at(maps[name], points, size, mode=self.mode) for name in self.nodes]
        vectors.append(encode(points, size, self.frequencies).to(vectors[0].dtype))
        return self.decoder(torch.cat(vectors, dim=-1), weights).transpose(1, 2)
