"""Volume: an image or a label map with its place in the world.

Axes: arrays are (C, *S) for images and (*S) for label maps. The spatial axes keep the order of the file: rows and
columns (H, W) for PNG and TIFF, the first, second and third voxel index for NIfTI, exactly as nibabel gives them. So
`affine` is the file's own affine (RAS millimetres) and `nibabel.Nifti1Image(mask, affine)` is right as it stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Format = Literal["nifti", "itk", "tiff", "raster", "npy", "npz", "dicom", "zarr"]


@dataclass(frozen=True, kw_only=True)
class Meta:
    """What a file says beside its values and their place.

    Args:
        format: what kind of file it is; None for an array that came from no file.
        suffix: the ending of its name, such as ".nii.gz".
        notes: what its reader changed or took for granted, one sentence each, for a person to see.
        faults: what is wrong with a file that can be read all the same, and what to do about it.
        too_large: how many values float32 does not hold, and the largest of them; None for none.
        either: whether the file could be read as 2D and as 3D.
        oriented: False where the file states no orientation, so that `affine` is an assumption.
        orientation: the tag of a picture, from 1 (upright) to 8; see `ulna.data.turning`.
        palette: class -> the colour in which the file draws it.
        white: the largest stored value of a TIFF in which white is zero, whose values were inverted; None for all others.
        colour: whether the file says that its three channels are red, green and blue.
        drawn: the value of an object in the files of a folder of masks, which are united to a map of 0 and 1.
        stored: what the writer of this format needs to write a map in the same geometry, in a type of its own.
        modality: of DICOM, such as CT; empty where the file does not say.
        body_part: of DICOM, such as ABDOMEN; empty where the file does not say.
    """

    format: Format | None = None
    suffix: str = ""
    notes: tuple[str, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()
    too_large: tuple[int, float] | None = None
    either: bool = False
    oriented: bool = True
    orientation: int = 1
    palette: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    white: int | None = None
    colour: bool = False
    drawn: int = 1
    stored: object = None
    modality: str = ""
    body_part: str = ""


@dataclass(frozen=True, eq=False)
class Volume:
    """Pixels or voxels, and where they lie.

    Args:
        array: (C, *S), *S of length 2 or 3.
        spacing: distance between neighbours along every spatial axis, in `unit`.
        unit: "mm", or "px" where the file states no physical size.
        affine: (4, 4), voxel index -> RAS millimetres; None where the file has none.
        path: the file it came from.
        meta: what the file says beside that.
    """

    array: NDArray[Any]
    spacing: tuple[float, ...]
    unit: str = "px"
    affine: NDArray[np.float64] | None = None
    path: Path | None = None
    meta: Meta = field(default_factory=Meta)

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


def may_lie_turned(a: Volume, b: Volume) -> bool:
    """Whether one of two volumes has an affine and the other none: nothing says that their voxels are in the same order.

    Files without an affine (TIFF, `.npy`, OME-Zarr of other programs) hold z, y, x as often as x, y, z, and mirrored ones.
    """
    return a.spatial_dims == b.spatial_dims == 3 and (a.affine is None) != (b.affine is None)


def turned_text(volume: Volume, other: str) -> str:
    """What is wrong with a volume that `may_lie_turned` against another one, named `other`."""
    states = "states no orientation, and {} does" if volume.affine is None else "states an orientation, and {} none"
    return f"{states.format(other)}: its voxels may lie turned or mirrored against those"


def same_geometry(a: Volume, b: Volume, tolerance: float = 1e-3) -> bool:
    """Whether two volumes lie on the same grid: size, and affine (or spacing) within `tolerance` of a voxel."""
    if a.size != b.size or may_lie_turned(a, b):
        return False
    if a.affine is not None and b.affine is not None:
        return bool(np.allclose(a.affine, b.affine, rtol=1e-6, atol=tolerance * max(a.spacing)))
    return a.unit != b.unit or bool(np.allclose(a.spacing, b.spacing, rtol=tolerance, atol=0))
