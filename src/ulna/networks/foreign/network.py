"""A network of others as `Network`: one node whose map is its answer, padded outside to the sizes that it takes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ulna.networks.foreign.outputs import ANSWER, read_maps
from ulna.networks.heads import Head, Outputs
from ulna.networks.heads.head import at_points
from ulna.networks.network import Network, crop, pad_to_multiple
from ulna.networks.wiring import Node, Wiring

OF_OTHERS = f"stages.{ANSWER}."  # what the names of weights begin with


class AsGiven(Head):
    """The maps as they are: the answer, and what is supervised beside it."""

    @staticmethod
    def reads(wiring: Wiring, *, deep_supervision: bool, readout: str) -> tuple[str, ...]:
        return wiring.heads

    def forward(self, maps: dict[str, Tensor], size: Sequence[int], points: Tensor | None = None) -> Outputs:
        if points is not None:
            maps = {name: at_points(logits, points, size) for name, logits in maps.items()}
        return Outputs(maps[ANSWER], maps, points)


class ForeignNetwork(Network):
    """A module of others in the place of all nodes.

    Args:
        module: (N, C, *S) -> logits, in one of the forms that `read_maps` understands.
        in_channels: C.
        classes: K.
        divisor: sides are padded to multiples of it.
        least: and to no less than this.
        answer: which of several maps of the size of the image is the answer.
        source: its name, for messages.
    """

    def __init__(
        self,
        module: nn.Module,
        in_channels: int,
        classes: int,
        *,
        divisor: tuple[int, ...],
        least: tuple[int, ...],
        answer: str | None = None,
        source: str = "the network",
    ) -> None:
        wiring = Wiring((Node(ANSWER, 0, "foreign", None),), (ANSWER,))
        super().__init__(wiring, {ANSWER: module}, AsGiven(), in_channels, divisor)
        self.classes, self.least, self.answer, self.source = classes, least, answer, source

    @property
    def module(self) -> nn.Module:
        """What others wrote."""
        return self.stages[ANSWER]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As of any module, but weights that it knows by several names are there once, as files hold them."""
        state, again = super().state_dict(*args, **kwargs), self._again()
        for name in again:
            state.pop(kwargs.get("prefix", "") + name, None)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """What `state_dict` gave."""
        again = {name: state_dict[first] for name, first in self._again().items() if first in state_dict}
        return super().load_state_dict({**state_dict, **again}, strict=strict, assign=assign)

    def _again(self) -> dict[str, str]:
        """Further names of weights and statistics -> the first one of each."""
        first: dict[int, str] = {}
        named = itertools.chain(
            self.named_parameters(remove_duplicate=False), self.named_buffers(remove_duplicate=False)
        )
        return {name: kept for name, one in named if (kept := first.setdefault(id(one), name)) != name}

    def features(self, image: Tensor) -> dict[str, Tensor]:
        """The maps by name, of an image of a size that the module takes."""
        return read_maps(self.module(image), image.shape[2:], self.classes, answer=self.answer, who=self.source)

    def encode(self, image: Tensor) -> tuple[dict[str, Tensor], torch.Size]:
        """As in `Network`; small images are padded to the least size, too."""
        self._check(image)
        padded = pad_to_multiple(image, self.divisor)
        missing = [max(0, most - n) for n, most in zip(padded.shape[2:], self.least, strict=True)]
        if any(missing):
            widths = [width for m in reversed(missing) for width in (0, m)]
            padded = nn.functional.pad(padded, widths, mode="replicate")
        return self.features(padded), padded.shape[2:]

    def _crop_head(self, name: str, logits: Tensor, size: torch.Size) -> Tensor:
        sides = zip(size, self.divisor, self.least, logits.shape[2:], strict=True)
        strides = [max(1, max(-(-n // d) * d, least) // own) for n, d, least, own in sides]
        return crop(logits, [-(-n // s) for n, s in zip(size, strides, strict=True)])
