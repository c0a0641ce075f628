"""Volume: an image or a label map with its place in the world.

Axes: arrays are (C, *S) for images and (*S) for label maps. The spatial axes keep the order of the file: rows and
columns (H, W) for PNG and TIFF, the first, second and third voxel index for NIfTI, exactly as nibabel gives them. So
`affine` is the file's own affine (RAS millimetres) and `nibabel.Nifti1Image(mask, affine)` is right as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Volume:
    """Pixels or voxels, and where they lie.

    Args:
        array: (C, *S), *S of length 2 or 3.
        spacing: distance between neighbours along every spatial axis, in `unit`.
        unit: "mm", or "px" where the file states no physical size.
        affine: (4, 4), voxel index -> RAS millimetres; None where the file has none.
        path: the file it came from.
        meta: what the file format needs to write a label map back with the same geometry (header, resolution tags).
    """

    array: NDArray[Any]
    spacing: tuple[float, ...]
    unit: str = "px"
    affine: NDArray[np.float64] | None = None
    path: Path | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.array.ndim - 1 != len(self.spacing) or len(self.spacing) not in (2, 3):
            raise ValueError(f"array {self.array.shape} is not (C, *S) with 2 or 3 axes and spacing {self.spacing}")

    @property
    def size(self) -> tuple[int, ...]:
        """*S: pixels or voxels along every spatial axis."""
        return self.array.shape[1:]

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return len(self.spacing)

    @property
    def channels(self) -> int:
        """C."""
        return int(self.array.shape[0])

    def with_array(self, array: NDArray[Any]) -> Volume:
        """The same place with other values (same *S)."""
        return replace(self, array=array)


def spacing_text(spacing: Sequence[float], unit: str = "mm") -> str:
    """A spacing as messages show it.

    Example:
        >>> spacing_text((0.703125, 0.703125, 2.0))
        '0.7031 x 0.7031 x 2 mm'
    """
    return " x ".join(f"{step:.4g}" for step in spacing) + f" {unit}"


def label_dtype(highest: int) -> np.dtype[Any]:
    """The smallest unsigned integer type that holds `highest`.

    Example:
        >>> label_dtype(3), label_dtype(300)
        (dtype('uint8'), dtype('uint16'))
    """
    return np.dtype(np.min_scalar_type(max(int(highest), 0)))


def same_geometry(a: Volume, b: Volume, tolerance: float = 1e-3) -> bool:
    """Whether two volumes lie on the same grid: size, and affine (or spacing) within `tolerance` of a voxel."""
    if a.size != b.size:
        return False
    if a.affine is not None and b.affine is not None:
        return bool(np.allclose(a.affine, b.affine, rtol=1e-6, atol=tolerance * max(a.spacing)))
    return a.unit != b.unit or bool(np.allclose(a.spacing, b.spacing, rtol=tolerance, atol=0))
