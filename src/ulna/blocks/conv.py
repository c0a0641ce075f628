"""Conv blocks: what a node computes from its fused map."""

from __future__ import annotations

from torch import Tensor, nn

from ulna.blocks import nd
from ulna.errors import UsageError


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, activation, dropout, in this order.

    Shape:
        (N, Cin, *S) -> (N, Cout, *S / stride)
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        kernel_size: int = 3,
        stride: int | tuple[int, ...] = 1,
        groups: int = 1,
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nd.conv(
            spatial_dims, in_channels, out_channels, kernel_size=kernel_size, stride=stride, groups=groups, bias=bias
        )
        self.norm = nd.norm(norm, spatial_dims, out_channels)
        self.activation = nd.activation(activation)
        self.dropout = nd.dropout(spatial_dims, dropout)
        self.slope = nd.slope_of(self.activation)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        y: Tensor = self.conv(x)
        if nd.in_one_pass(self.norm, self.slope, y):
            return self.dropout(self.norm(y, self.slope))
        return self.dropout(self.activation(self.norm(y)))


class ConvBlock(nn.Module):
    """`convs` times convolution, normalisation, activation, dropout; with `residual`, plus a shortcut from the input.

    Source: UNet++ (zhou2018), Sec. 3.1 (H), with norm "none" and, in the authors' code, dropout 0.5; U-Net
    (ronneberger2015) with norm "batch".
    Reading: the shortcut of `residual` is the input itself, or its 1x1 convolution and norm where the widths differ; it
    is added before the last activation.

    Args:
        spatial_dims: 2 or 3.
        in_channels: Cin.
        out_channels: Cout.
        convs: how many convolutions.
        norm: "batch", "instance" or "none".
        activation: "relu", "leaky_relu", "silu" or "none".
        dropout: probability, after every activation.
        keep_width: Cout is Cin, whatever the level wants, as in the decoder of UNet 3+ (huang2020).

    Shape:
        (N, Cin, *S), or without `residual` several maps whose channels add up to Cin -> (N, Cout, *S)

    Raises:
        UsageError: for a norm or activation that does not exist, or fewer than one convolution.

    Example:
        >>> import torch
        >>> ConvBlock(2, 3, 16)(torch.zeros(2, 3, 9, 8)).shape
        torch.Size([2, 16, 9, 8])
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        out_channels: int,
        *,
        convs: int = 2,
        kernel_size: int = 3,
        norm: str = "batch",
        activation: str = "relu",
        dropout: float = 0.0,
        bias: bool = True,
        residual: bool = False,
        keep_width: bool = False,
    ) -> None:
        super().__init__()
        if keep_width:
            out_channels = in_channels
        if convs < 1 or kernel_size % 2 == 0:
            raise UsageError(
                f"a conv block has at least one convolution of odd size; got convs={convs}, kernel_size={kernel_size}"
            )
        self.out_channels = out_channels
        widths = [in_channels] + [out_channels] * convs
        last = "none" if residual else activation
        self.layers = nn.Sequential(
            *(
                ConvNormAct(
                    spatial_dims,
                    widths[i],
                    widths[i + 1],
                    kernel_size=kernel_size,
                    norm=norm,
                    activation=last if i == convs - 1 else activation,
                    dropout=0.0 if residual and i == convs - 1 else dropout,
                    bias=bias,
                )
                for i in range(convs)
            )
        )
        self.takes_maps = not residual
        self.shortcut: nn.Module | None = None
        if residual:
            self.shortcut = nn.Identity()
            if in_channels != out_channels:
                self.shortcut = ConvNormAct(
                    spatial_dims, in_channels, out_channels, kernel_size=1, norm=norm, activation="none", bias=bias
                )
            self.final = nn.Sequential(nd.activation(activation), nd.dropout(spatial_dims, dropout))

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        if self.shortcut is None:
            return self.layers(x)
        return self.final(self.layers(x) + self.shortcut(x))


class Identity(nn.Identity):
    """No convolution: a node whose down op has done the work.

    Shape:
        (N, Cin, *S) -> (N, Cin, *S)
    """

    def __init__(self, spatial_dims: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.out_channels = in_channels
