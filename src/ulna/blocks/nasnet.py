"""NASNet-A cells: the normal cell as a conv block, the reduction cell as a down op.

Source: NASNet (zoph2018), Fig. 4, with the layers of its public ports (order of ReLU, convolution and norm, eps 1e-3);
modular U-Net (laird2019), Sec. 5.3. Reading: a cell joins the two maps before it; a node has one, which stands for both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ulna.blocks import nd

EPS = 1e-3


class Separable(nn.Module):
    """Sep_k: twice ReLU, depthwise kxk convolution, 1x1 convolution, norm; the first depthwise one has the stride.

    Shape:
        (N, C, *S) -> (N, C, *S / stride)
    """

    def __init__(
        self, spatial_dims: int, channels: int, kernel_size: int, stride: int | Sequence[int] = 1, *, norm: str
    ) -> None:
        super().__init__()
        self.halves = nn.ModuleList(
            nn.Sequential(
                nd.conv(
                    spatial_dims,
                    channels,
                    channels,
                    kernel_size=kernel_size,
                    stride=step,
                    groups=channels,
                    bias=False,
                ),
                nd.conv(spatial_dims, channels, channels, kernel_size=1, bias=False),
                nd.norm(norm, spatial_dims, channels, eps=EPS),
            )
            for step in (stride, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        for half in self.halves:
            x = half(x.relu())
        return x


class Squeeze(nn.Module):
    """ReLU, 1x1 convolution, norm: to the filters of a cell.

    Shape:
        (N, Cin, *S) -> (N, f, *S)
    """

    def __init__(self, spatial_dims: int, in_channels: int, filters: int, *, norm: str) -> None:
        super().__init__()
        self.conv = nd.conv(spatial_dims, in_channels, filters, kernel_size=1, bias=False)
        self.norm = nd.norm(norm, spatial_dims, filters, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.relu()))


class NormalCell(nn.Module):
    """NASNet-A normal cell with f filters, f = Cout / 6 rounded: five sums of two branches, beside the squeezed input.

    y0 = Sep5(c) + Sep3(l), y1 = Sep5(l) + Sep3(l), y2 = avg(c) + l, y3 = avg(l) + avg(l), y4 = Sep3(c) + c, where l and
    c are two squeezed versions of the input.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout, as the level wants it.
        norm: "batch", "instance" or "none".

    Shape:
        (N, Cin, *S) -> (N, 6 f, *S)

    Example:
        >>> NormalCell(2, 3, 16)(torch.zeros(2, 3, 9, 8)).shape
        torch.Size([2, 18, 9, 8])
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int, *, norm: str = "batch") -> None:
        super().__init__()
        f = max(1, round(out_channels / 6))
        self.out_channels = 6 * f
        self.l = Squeeze(spatial_dims, in_channels, f, norm=norm)
        self.c = Squeeze(spatial_dims, in_channels, f, norm=norm)
        self.y0_c = Separable(spatial_dims, f, 5, norm=norm)
        self.y0_l = Separable(spatial_dims, f, 3, norm=norm)
        self.y1_5 = Separable(spatial_dims, f, 5, norm=norm)
        self.y1_3 = Separable(spatial_dims, f, 3, norm=norm)
        self.y4_c = Separable(spatial_dims, f, 3, norm=norm)
        self.average = nd.average_pool(spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        l, c = self.l(x), self.c(x)  # noqa: E741 - the name in the paper's drawing
        y0 = self.y0_c(c) + self.y0_l(l)
        y1 = self.y1_5(l) + self.y1_3(l)
        y2 = self.average(c) + l
        y3 = 2 * self.average(l)
        y4 = self.y4_c(c) + c
        return torch.cat([l, y0, y1, y2, y3, y4], dim=1)


class ReductionCell(nn.Module):
    """NASNet-A reduction cell with f filters, f = Cout / 4 rounded.

    y0 = Sep5(c) + Sep7(l), y1 = max3(c) + Sep7(l), y2 = avg3(c) + Sep5(l), all with the stride, then
    y3 = avg3(y0) + y1, y4 = Sep3(y0) + max3(c) with the stride; out = [y1, y2, y3, y4].

    Reading: Fig. 4 of laird2019 lists a "Conv skip 2x2" that the text does not explain. `shortcut` adds a convolution with
    kernel = stride from the input to the output; without it the cell alone is the down op, which gives the 8.5 M.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout, as the level wants it.
        stride: one number per spatial axis.
        norm: "batch", "instance" or "none".
        shortcut: add a strided convolution of the input.

    Shape:
        (N, Cin, *S) -> (N, 4 f, *S / stride)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        stride: Sequence[int],
        *,
        norm: str = "batch",
        shortcut: bool = False,
    ) -> None:
        super().__init__()
        f = max(1, round(out_channels / 4))
        self.out_channels = 4 * f
        self.l = Squeeze(spatial_dims, in_channels, f, norm=norm)
        self.c = Squeeze(spatial_dims, in_channels, f, norm=norm)
        self.y0_c = Separable(spatial_dims, f, 5, stride, norm=norm)
        self.y0_l = Separable(spatial_dims, f, 7, stride, norm=norm)
        self.y1_l = Separable(spatial_dims, f, 7, stride, norm=norm)
        self.y2_l = Separable(spatial_dims, f, 5, stride, norm=norm)
        self.y4_y0 = Separable(spatial_dims, f, 3, norm=norm)
        self.maximum = nd.max_pool(spatial_dims, stride, kernel_size=3)
        self.average_down = nd.average_pool(spatial_dims, stride)
        self.average = nd.average_pool(spatial_dims)
        self.shortcut = (
            nd.conv(spatial_dims, in_channels, 4 * f, kernel_size=stride, stride=stride) if shortcut else None
        )

    def forward(self, x: Tensor) -> Tensor:
        l, c = self.l(x), self.c(x)  # noqa: E741 - the name in the paper's drawing
        largest = self.maximum(c)
        y0 = self.y0_c(c) + self.y0_l(l)
        y1 = largest + self.y1_l(l)
        y2 = self.average_down(c) + self.y2_l(l)
        y3 = self.average(y0) + y1
        y4 = self.y4_y0(y0) + largest
        out = torch.cat([y1, y2, y3, y4], dim=1)
        return out if self.shortcut is None else out + self.shortcut(x)
