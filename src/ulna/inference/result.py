"""Result: one segmented image."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.about import About
from ulna.data.formats.label_maps import in_file
from ulna.data.formats.source import case_name
from ulna.data.formats.write import keeps_values, write_labels
from ulna.data.volume import Volume
from ulna.errors import printable
from ulna.recipe import Labels


@dataclass(frozen=True, eq=False)
class Result:
    """One segmented image.

    Args:
        mask: (*S), class indices in the smallest unsigned type; (K, *S) of 0 and 1 for overlapping classes.
        probabilities: (K, *S), float32; one map for a single structure. None where they were not asked for.
        volume: the image, with its geometry.
        labels: the classes.
        about: names of the classes and of the network, for files that say so.
        mask_values: what a picture of the mask holds for every class, see `Plan.mask_values`.
    """

    mask: NDArray[Any]
    probabilities: NDArray[np.float32] | None
    volume: Volume
    labels: Labels = field(default_factory=Labels)
    about: About | None = None
    mask_values: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        size = "x".join(map(str, self.volume.size))
        step = "" if self.volume.unit == "px" else f" of {' x '.join(f'{s:.3g}' for s in self.spacing)} mm"
        name = "" if self.volume.path is None else f" {self.volume.path.name}"
        structures = enumerate(self.labels.foreground)
        maps = ((one, self.mask[k] if self.labels.multilabel else self.mask == k + 1) for k, one in structures)
        shown = ", ".join(f"{one} {np.count_nonzero(inside) / inside.size:.2%}" for one, inside in maps)
        return printable(f"Result{name}: mask of {size}{step}, {shown}")

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along every axis of `mask`, in mm, or px where the file states none."""
        return self.volume.spacing

    @property
    def affine(self) -> NDArray[np.float64] | None:
        """(4, 4), index in `mask` -> RAS mm; None where the file has none."""
        return self.volume.affine

    def save(self, path: str | Path) -> Path:
        """Write the mask in the image's own format and geometry; its ending takes the place of a known one. Returns the file.

        A picture (2D PNG, TIFF) holds the values that the labels of the training had, such as 0 and 255; overlapping
        classes with an order (`Labels.order`) are one map. What follows another dot belongs to the name:
        `patient.1` becomes patient.1.nii.gz.
        """
        path = Path(path)
        return write_labels(path.with_name(case_name(path)), self.in_file(), self.volume, self.about)

    def in_file(self, format: str | None = None) -> NDArray[Any]:
        """The mask as a file of that format holds it; None is the format of the image.

        DICOM names its structures, and has a segment for each; elsewhere overlapping classes with an order are one map.
        """
        own = self.volume.meta.format == "dicom" and self.volume.affine is not None
        of_dicom = own if format is None else format in ("seg", "rtstruct")
        picture = format is None and keeps_values(self.volume)
        return self.mask if of_dicom else in_file(self.mask, self.labels, self.mask_values if picture else None)
