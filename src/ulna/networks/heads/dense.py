"""A 1x1 convolution at every supervised node, and the one answer made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from ulna.blocks import nd
from ulna.errors import UsageError
from ulna.networks.heads.head import Head, Outputs, at_points
from ulna.networks.wiring import Wiring


class Dense(Head):
    """A 1x1 convolution at every supervised node.

    Source: UNet++ (zhou2018), Sec. 3.2: deep supervision, accurate and fast mode; UNet 3+ (huang2020), Sec. 2.2: a 3x3
    convolution, then bilinear upsampling.

    Args:
        spatial_dims: 2 or 3.
        widths: node -> channels of its map, in the order of the wiring's heads (the last is the final one).
        maps: K, number of logit maps.
        readout: "final" takes the last head; "mean" averages the heads' probabilities (accurate mode).
        exclusive: K > 1 maps exclude each other (softmax); else each map has its own sigmoid.
        bias: of the convolutions.
        kernel_size: of the convolutions, odd.
        upsample: heads of coarser levels answer at the image's own size, by bi- or trilinear interpolation of their logits.

    Shape:
        {node: (N, C, *S)} -> Outputs with (N, K, *S), or (N, K, P) at points
    """

    prunable = True

    def __init__(
        self,
        spatial_dims: int,
        widths: Mapping[str, int],
        maps: int,
        *,
        readout: str = "final",
        exclusive: bool = True,
        bias: bool = True,
        kernel_size: int = 1,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UsageError(f"kernel_size is {kernel_size}; it must be odd")
        self.convs = nn.ModuleDict(
            {
                name: nd.conv(spatial_dims, width, maps, kernel_size=kernel_size, bias=bias)
                for name, width in widths.items()
            }
        )
        self.upsample = upsample
        self.readout = readout
        self.exclusive = exclusive and maps > 1

    @staticmethod
    def reads(wiring: Wiring, *, deep_supervision: bool, readout: str) -> tuple[str, ...]:
        if not wiring.heads:
            raise UsageError(
                "this topology has no decoder to read densely; take topology unet, unetpp or omega, or head points or scores"
            )
        heads = wiring.heads if deep_supervision else wiring.heads[-1:]
        if readout == "mean" and len({wiring.node(name).level for name in heads}) > 1:
            raise UsageError(
                "readout 'mean' averages heads of one size; the heads of this topology lie at several levels: "
                "take readout='final', or topology='unetpp'"
            )
        return heads

    def forward(self, maps: dict[str, Tensor], size: Sequence[int], points: Tensor | None = None) -> Outputs:
        heads = {name: conv(maps[name]) for name, conv in self.convs.items()}
        if self.upsample:
            whole = tuple(size)
            heads = {name: z if z.shape[2:] == whole else nd.resize(z, whole) for name, z in heads.items()}
        if points is not None:
            heads = {name: at_points(logits, points, size) for name, logits in heads.items()}
        return Outputs(self.answer(list(heads.values())), heads, points)

    def answer(self, logits: list[Tensor]) -> Tensor:
        """One map of logits from those of all heads."""
        if self.readout == "final" or len(logits) == 1:
            return logits[-1]
        return mean_logits(logits, exclusive=self.exclusive)

    def only(self, name: str) -> Dense:
        """The head at one node alone; shares its weights."""
        if name not in self.convs:
            raise UsageError(f"no head at {name!r}; this network has heads at {', '.join(self.convs)}")
        head = Dense.__new__(Dense)
        nn.Module.__init__(head)
        head.convs = nn.ModuleDict({name: self.convs[name]})
        head.readout, head.exclusive, head.upsample = "final", self.exclusive, self.upsample
        return head


def mean_logits(logits: list[Tensor], *, exclusive: bool) -> Tensor:
    """Logits of the mean of the heads' probabilities, exactly and without overflow.

    Source: UNet++ (zhou2018), Sec. 3.2, averages segmentation maps, so probabilities are averaged, not logits.

    Shape:
        [(N, K, *S), ...] -> (N, K, *S)
    """
    z = torch.stack(logits)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    if exclusive:
        return z.log_softmax(dim=2).logsumexp(dim=0)
    return logsigmoid(z).logsumexp(dim=0) - logsigmoid(-z).logsumexp(dim=0)
