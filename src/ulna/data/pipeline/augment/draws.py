"""What happens to one training sample, in plain numbers, drawn from its own random stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ulna.recipe import Augmentation, Plan

# ranges of changes of intensity, of values that are normalised
SCALE, SHIFT, GAMMA, NOISE, BLUR = 0.25, 0.2, (0.7, 1.5), 0.1, (0.5, 1.0)
CONTROL_POINTS = 3  # an axis of the patch, that an elastic deformation is drawn at: U-Net (ronneberger2015), Sec. 3.1
THICK = 2.0  # times the smallest spacing: neighbours along such an axis lie too far apart to be mixed by a turn


@dataclass(frozen=True, eq=False)
class Draw:
    """The changes of one sample, in the order in which they happen.

    Args:
        flips: spatial axes along which the patch is mirrored, about its centre.
        quarters: turns by 90 degrees in the plan's `turn_axes`, after the flips.
        matrix: (D, D). What is seen at x, in mm from the centre, comes from `matrix @ x`; None without.
        bends: (D, 3, ..., 3), displacements in mm at points spread over the patch, added to that; None without.
        scale: values are multiplied by 1 + scale.
        shift: added to values.
        gamma: exponent of the values, shifted and scaled to 0..1 for it; None without.
        noise: the key of its random numbers, and their standard deviation; None without.
        blur: the standard deviation of a Gaussian along every axis, in voxels; None without.
    """

    flips: tuple[int, ...] = ()
    quarters: int = 0
    matrix: NDArray[np.float64] | None = None
    bends: NDArray[np.float64] | None = None
    scale: float | None = None
    shift: float | None = None
    gamma: float | None = None
    noise: tuple[int, float] | None = None
    blur: tuple[float, ...] | None = None


class Drawing:
    """Draws the changes of samples: flips along the plan's `mirror_axes` only, quarter turns in its `turn_axes`.

    Small turns are in mm, and so rigid whatever the spacing. Still no plane is turned that holds an axis of thick slices, nor
    is anything displaced along one: every voxel would become a mixture of two slices that lie far apart, in stripes, and the
    labels of one of them. nnU-Net turns such images within their slices, too. Scaling is by one factor for all axes.
    """

    def __init__(self, settings: Augmentation, plan: Plan) -> None:
        self.settings, self.dims = settings, plan.spatial_dims
        self.mirror_axes, self.turn_axes = plan.mirror_axes, plan.turn_axes
        spacing = plan.patch_spacing
        self.thin = tuple(s <= THICK * min(spacing) for s in spacing)
        self.contrast, self.brightness = (
            settings.intensity if own is None else own for own in (settings.contrast, settings.brightness)
        )
        self.angle = math.radians(settings.degrees)
        self.slant = math.tan(math.radians(settings.shear))

    def __call__(self, stream: np.random.Generator) -> Draw:
        """Draw one sample's changes."""
        s = self.settings
        flips = tuple(axis for axis in self.mirror_axes if stream.random() < s.flip)
        quarters = int(stream.integers(1, 4)) if self.turn_axes and stream.random() < s.quarter_turn else 0
        matrix = bends = None
        if stream.random() < s.affine:
            matrix = self._matrix(stream)
            if s.elastic > 0 and s.elastic_probability is None:
                bends = self._bends(stream)
        if s.elastic > 0 and s.elastic_probability is not None and stream.random() < s.elastic_probability:
            matrix, bends = np.eye(self.dims) if matrix is None else matrix, self._bends(stream)
        return Draw(
            flips,
            quarters,
            matrix,
            bends,
            scale=stream.uniform(-SCALE, SCALE) if stream.random() < self.contrast else None,
            shift=stream.uniform(-SHIFT, SHIFT) if stream.random() < self.brightness else None,
            gamma=stream.uniform(*GAMMA) if stream.random() < s.gamma else None,
            noise=(int(stream.integers(-(2**63), 2**63)), stream.uniform(0, NOISE))
            if stream.random() < s.noise
            else None,
            blur=tuple(stream.uniform(*BLUR, self.dims).tolist()) if stream.random() < s.blur else None,
        )

    def _bends(self, stream: np.random.Generator) -> NDArray[np.float64]:
        """The displacements of an elastic deformation."""
        bends = stream.normal(0, self.settings.elastic, (self.dims, *(CONTROL_POINTS,) * self.dims))
        bends[[not thin for thin in self.thin]] = 0
        return bends

    def _matrix(self, stream: np.random.Generator) -> NDArray[np.float64]:
        """Turns, a shear of the first two axes and one factor for all."""
        matrix = np.eye(self.dims)
        for a, b in ((0, 1),) if self.dims == 2 else ((1, 2), (0, 2), (0, 1)):
            angle = stream.uniform(-self.angle, self.angle)
            if self.thin[a] and self.thin[b]:
                matrix = matrix @ turn(self.dims, (a, b), angle)
        slant = stream.uniform(-self.slant, self.slant)
        if self.thin[0] and self.thin[1]:
            shear = np.eye(self.dims)
            shear[0, 1] = slant
            matrix = matrix @ shear
        return matrix * (1 + stream.uniform(-self.settings.scale, self.settings.scale))


def turn(dims: int, plane: Sequence[int], angle: float) -> NDArray[np.float64]:
    """The rotation by an angle in a plane of two axes: (D, D)."""
    (a, b), matrix = plane, np.eye(dims)
    matrix[[a, b], [a, b]] = math.cos(angle)
    matrix[a, b], matrix[b, a] = -math.sin(angle), math.sin(angle)
    return matrix
