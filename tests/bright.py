"""A segmenter made by hand: what is brighter than a value, on the grid of the image itself, so that the answer is known."""

from __future__ import annotations

from types import SimpleNamespace

from torch import nn

from tests.plans import make
from ulna.data.pipeline.orientation import to_canonical
from ulna.data.volume import Volume
from ulna.inference.segmenter import Segmenter
from ulna.recipe import Normalization, Recipe, Training


class Brighter(nn.Module):
    """The logit of a voxel is how far it is above the value."""

    def __init__(self, than: float):
        super().__init__()
        self.than, self.head = than, SimpleNamespace(sparse=False)

    def forward(self, x):
        return x - self.than


def brighter(volume: Volume, than: float) -> Segmenter:
    """A segmenter for images as that one: nothing is resampled (planned for its spacing), but turned to RAS and back."""
    turn = to_canonical(volume.affine, volume.spatial_dims)
    plan = make(
        spatial_dims=volume.spatial_dims, spacing=turn.order(volume.spacing), unit="mm", orientation="RAS",
        normalization=(Normalization(kind="none"),), whole_image_limit=10**9,
    )  # fmt: skip
    return Segmenter(Brighter(than), plan, Recipe(training=Training(precision="fp32")))
