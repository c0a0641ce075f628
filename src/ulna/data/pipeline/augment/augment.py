"""Draws the changes of a sample, and makes those of a batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ulna.data.pipeline.augment import intensity
from ulna.data.pipeline.augment.draws import Draw, Drawing
from ulna.data.pipeline.augment.spatial import Piece, Spatial
from ulna.recipe import Augmentation, Plan


class Augment:
    """Random samples of images: patches that are flipped, turned, scaled, sheared and deformed, with changed intensities.

    What is drawn for a sample is plain numbers. What is made of it depends on no other sample of its batch; on another device
    it differs by rounding alone.
    """

    def __init__(self, settings: Augmentation, plan: Plan) -> None:
        self._drawing, self._spatial = Drawing(settings, plan), Spatial(plan)

    def draw(self, stream: np.random.Generator) -> Draw:
        """The changes of one sample."""
        return self._drawing(stream)

    def cut(self, image: Tensor, labels: Tensor, start: Sequence[int], draw: Draw) -> Piece:
        """What of an image a sample needs, as views: (C, *S), (*S) or (K, *S) -> (C, *B), (*B) or (K, *B).

        Args:
            image: of a case.
            labels: of a case.
            start: the first voxel of the patch; below 0 where the image is smaller.
            draw: the changes.
        """
        return self._spatial.cut(image, labels, start, draw)

    def apply(self, pieces: Sequence[Piece], draws: Sequence[Draw]) -> tuple[Tensor, Tensor]:
        """The samples of a batch, on the device of their pieces: (N, C, *patch), and (N, *patch) or (N, K, *patch)."""
        images, labels = self._spatial.sample(pieces, draws)
        return intensity.change(images, draws), labels
