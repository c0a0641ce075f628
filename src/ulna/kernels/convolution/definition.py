"""A convolution as torch's operations define it, and in which precision it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

LOW = (torch.bfloat16, torch.float16)


class Convolution(NamedTuple):
    """A convolution that is asked for: all that its path is chosen by."""

    maps: Sequence[Tensor]  # (N, Ci, *S) each, whose channels together are the input
    weight: Tensor  # (K, C / groups, *kernel)
    bias: Tensor | None  # (K,)
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def precision(self) -> torch.dtype | None:
        """That of all its tensors; None where they differ: torch's operations answer, or raise."""
        found = {precision(t) for t in (*self.maps, self.weight, self.bias) if t is not None}
        return found.pop() if len(found) == 1 else None

    @property
    def trains(self) -> bool:
        """Whether a gradient of the weights is wanted."""
        return torch.is_grad_enabled() and self.weight.requires_grad

    @property
    def reach(self) -> list[int]:
        """How many pixels of a map an output spans, along every axis."""
        return [d * (k - 1) + 1 for d, k in zip(self.dilation, self.weight.shape[2:], strict=True)]

    def regular(self) -> bool:
        """Whether maps, weights and settings have as many axes; torch also takes a map without N, and one number for all."""
        axes = self.weight.ndim - 2
        given = (self.stride, self.padding, self.dilation)
        fits = all(m.ndim == axes + 2 for m in self.maps) and all(len(numbers) == axes for numbers in given)
        return axes in (2, 3) and fits

    def fits(self) -> bool:
        """Whether its maps differ in their channels alone, and have as many together as the weights read."""
        first = self.maps[0]
        return (
            all(m.shape[0] == first.shape[0] and m.shape[2:] == first.shape[2:] for m in self.maps)
            and sum(m.shape[1] for m in self.maps) == self.weight.shape[1] * self.groups
            and (self.bias is None or self.bias.shape == self.weight.shape[:1])
        )

    def in_float32(self) -> Convolution:
        """The same of float32 tensors."""
        bias = None if self.bias is None else self.bias.float()
        return self._replace(maps=[m.float() for m in self.maps], weight=self.weight.float(), bias=bias)

    def by_torch(self) -> Tensor:
        """The answer of torch's operation: (N, K, *S')."""
        settings = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}
        return defined(self.weight, self.bias, *self.maps, **settings)


def defined(weight: Tensor, bias: Tensor | None, *maps: Tensor, **settings: Any) -> Tensor:
    """The definition of a convolution of joined maps, with the settings of `torch.nn.functional.conv2d`."""
    made: Tensor = (F.conv2d if weight.ndim == 4 else F.conv3d)(joined(maps), weight, bias, **settings)
    return made


def joined(maps: Sequence[Tensor]) -> Tensor:
    """Several maps as one: [(N, Ci, *S), ...] -> (N, C, *S); a single one as it is."""
    return maps[0] if len(maps) == 1 else torch.cat(list(maps), dim=1)


def precision(x: Tensor) -> torch.dtype:
    """The precision in which a convolution on a CPU reads a tensor: that of autocast where it casts it, else its own."""
    casts = torch.is_autocast_enabled("cpu") and x.is_floating_point() and x.dtype != torch.float64
    return torch.get_autocast_dtype("cpu") if casts else x.dtype


def layout_of(x: Tensor) -> torch.memory_format:
    """Channels last, for a map of 2 or 3 axes."""
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d
