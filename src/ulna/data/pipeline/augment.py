"""Random changes of image and labels together, by MONAI's transforms, from a given generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ulna.recipe import Augmentation, Plan


class Augment:
    """Flips, quarter turns, small rotations, scalings and shears, and changes of intensity.

    Flips happen along the plan's `mirror_axes` only, quarter turns in its `turn_axes`.

    Shape:
        image (C, *S), labels (*S) or (K, *S) -> the same
    """

    def __init__(self, settings: Augmentation, plan: Plan) -> None:
        # imported here: MONAI takes a second to import, and prediction never needs it
        from monai import transforms as T

        self.flips = [(settings.flip, [axis + 1]) for axis in plan.mirror_axes]
        self.turn = (settings.quarter_turn, [a + 1 for a in plan.turn_axes]) if plan.turn_axes else None
        self.dims = plan.spatial_dims
        angle, slant = float(np.deg2rad(settings.degrees)), float(np.tan(np.deg2rad(settings.shear)))
        free = _free_turns(plan) if self.dims == 3 else (False, False, True)
        self.affine = T.RandAffine(
            prob=1.0,
            rotate_range=angle if self.dims == 2 else tuple(angle * about for about in free),
            shear_range=(slant * free[2],) if slant > 0 else None,
            scale_range=settings.scale,
            padding_mode="border",
        )
        self.affine_probability = settings.affine
        self.intensity: list[tuple[float, Any]] = [
            (settings.intensity, T.RandScaleIntensity(factors=0.25, prob=1.0)),
            (settings.intensity, T.RandShiftIntensity(offsets=0.2, prob=1.0)),
            (settings.gamma, T.RandAdjustContrast(gamma=(0.7, 1.5), prob=1.0)),
            (settings.noise, T.RandGaussianNoise(std=0.1, prob=1.0)),
            (settings.blur, T.RandGaussianSmooth((0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=1.0)),
        ]

    def __call__(self, image: Tensor, labels: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        both = torch.cat([image, (labels if labels.ndim == image.ndim else labels[None]).to(image.dtype)])
        for probability, axes in self.flips:
            if generator.random() < probability:
                both = both.flip(axes)
        if self.turn and generator.random() < self.turn[0]:
            both = torch.rot90(both, int(generator.integers(1, 4)), self.turn[1])
        image, maps = both[: image.shape[0]], both[image.shape[0] :]
        if generator.random() < self.affine_probability:
            image, maps = self._move(image, maps, generator)
        for probability, transform in self.intensity:
            if generator.random() < probability:
                image = _applied(transform, generator)(image)
        labels = (maps if labels.ndim == image.ndim else maps[0]).to(labels.dtype)
        return image.contiguous(), labels.contiguous()

    def _move(self, image: Tensor, maps: Tensor, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The same rotation, scaling and shear for both: linear for the image, nearest for the labels."""
        seed = int(generator.integers(2**31))
        self.affine.set_random_state(seed)
        image = _plain(self.affine(image, mode="bilinear"))
        self.affine.set_random_state(seed)
        return image, _plain(self.affine(maps, mode="nearest"))


def _free_turns(plan: Plan) -> tuple[bool, bool, bool]:
    """About which axes of a volume small turns are safe: angles are in voxels, and thick slices would be sheared."""
    spacing = plan.spacing or plan.fingerprint.spacing.median
    thick = [s > 2 * min(spacing) for s in spacing]
    return (not (thick[1] or thick[2]), not (thick[0] or thick[2]), not (thick[0] or thick[1]))


def _applied(transform: Any, generator: np.random.Generator) -> Callable[[Tensor], Tensor]:
    transform.set_random_state(int(generator.integers(2**31)))
    return lambda x: _plain(transform(x))


def _plain(x: Any) -> Tensor:
    """MONAI hands back its own tensor class, which carries a history that nobody here reads."""
    return x.as_tensor() if hasattr(x, "as_tensor") else torch.as_tensor(x)
