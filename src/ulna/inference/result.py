"""Result: one segmented image, and how it is saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ulna.data.as_format import array_as
from ulna.data.formats.dicom.about import About
from ulna.data.formats.label_maps import in_file
from ulna.data.formats.source import case_name
from ulna.data.formats.write import keeps_values, write_labels
from ulna.data.volume import Volume
from ulna.errors import UsageError, counted, printable
from ulna.inference.spread import Agreement
from ulna.recipe import Labels
from ulna.trust.cleaning import Changed

NO_DICOM = "numbered objects are not written as DICOM; write them with --format nifti, or leave instances out"


class Beside(NamedTuple):
    """What is known of a mask beside it.

    Args:
        agreement: of several answers; None where none were compared.
        changed: class -> what post-processing took away and filled.
    """

    agreement: Agreement | None = None
    changed: Mapping[str, Changed] = MappingProxyType({})


def is_for_dicom(volume: Volume, format: str | None) -> bool:
    """Whether the mask of an image becomes DICOM in that format; None is the format of the image."""
    own = volume.meta.format == "dicom" and volume.affine is not None
    return own if format is None else format in ("seg", "rtstruct")


def check_numbered(volume: Volume, format: str | None) -> None:
    """Refuse to write numbers of objects as DICOM.

    Raises:
        UsageError: if the mask of that image becomes DICOM in that format.
    """
    if is_for_dicom(volume, format):
        raise UsageError(f"{volume.path or 'the image'}: {NO_DICOM}")


@dataclass(frozen=True, eq=False)
class Result:
    """One segmented image.

    Args:
        mask: (*S), class indices in the smallest unsigned type; (K, *S) of 0 and 1 for overlapping classes.
        probabilities: (K, *S), float32; one map for a single structure; calibrated where the run is. None where they were
            not asked for.
        volume: the image, with its geometry.
        labels: the classes.
        about: names of the classes and of the network, for files that say so.
        mask_values: what a picture of the mask holds for every class, see `Plan.mask_values`.
        beside: what was seen on the way to the mask.
        objects: (*S), the number of the object that every voxel of the one structure belongs to, uint16 or uint32; 0 outside.
            None where objects were not asked for.
    """

    mask: NDArray[Any]
    probabilities: NDArray[np.float32] | None
    volume: Volume
    labels: Labels = field(default_factory=Labels)
    about: About | None = None
    mask_values: tuple[int, ...] | None = None
    beside: Beside = field(default_factory=Beside)
    objects: NDArray[Any] | None = None

    def __repr__(self) -> str:
        size = "x".join(map(str, self.volume.size))
        step = "" if self.volume.unit == "px" else f" of {' x '.join(f'{s:.3g}' for s in self.spacing)} mm"
        name = "" if self.volume.path is None else f" {self.volume.path.name}"
        structures = enumerate(self.labels.foreground)
        maps = ((one, self.mask[k] if self.labels.multilabel else self.mask == k + 1) for k, one in structures)
        shown = ", ".join(f"{one} {np.count_nonzero(inside) / inside.size:.2%}" for one, inside in maps)
        numbered = "" if self.objects is None else f", {counted(int(self.objects.max(initial=0)), 'object')}"
        return printable(f"Result{name}: mask of {size}{step}, {shown}{numbered}")

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
        classes with an order (`Labels.order`) are one map. Where objects are numbered, it holds their numbers. What follows
        another dot belongs to the name: `patient.1` becomes patient.1.nii.gz.

        Raises:
            UsageError: if it cannot be written, or holds numbers of objects and the image is of DICOM.
        """
        path = Path(path)
        return self.write(path.with_name(case_name(path)))

    def write(self, stem: Path, format: str | None = None) -> Path:
        """The same under this very name, in a format of `ulna.data.formats.write.FORMATS`."""
        numbered = self.objects is not None
        like, mask = array_as(self.volume, self.in_file(format), format)
        return write_labels(stem, mask, like, self.about, format, keep_type=numbered)

    def in_file(self, format: str | None = None) -> NDArray[Any]:
        """The mask as a file of that format holds it; None is the format of the image.

        DICOM names its structures, and has a segment for each; elsewhere overlapping classes with an order are one map.

        Raises:
            UsageError: if objects are numbered, which DICOM is not written with.
        """
        of_dicom = is_for_dicom(self.volume, format)
        if self.objects is not None:
            check_numbered(self.volume, format)
            return self.objects
        picture = keeps_values(self.volume, format)
        return self.mask if of_dicom else in_file(self.mask, self.labels, self.mask_values if picture else None)
