"""Segmenter: an exported file, ready to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ulna_runtime.bundle import Bundle, read_bundle
from ulna_runtime.calibration import in_common, scaled
from ulna_runtime.cleaning import Changed, clean
from ulna_runtime.errors import UsageError
from ulna_runtime.files import DICOM, read_image, write_mask
from ulna_runtime.labels import in_file, to_labels
from ulna_runtime.network import Network
from ulna_runtime.pipeline import Labels, read_pipeline
from ulna_runtime.predicting import Compare, Slabs, mean_of
from ulna_runtime.preparing import check_fit
from ulna_runtime.seg import About
from ulna_runtime.volume import Volume
from ulna_runtime.zoo import located


@dataclass(frozen=True, eq=False)
class Result:
    """One segmented image.

    Args:
        mask: (*S), class indices in the smallest unsigned type; (K, *S) of 0 and 1 for overlapping classes.
        probabilities: (K, *S), float32, calibrated where the run was; None where they were not asked for.
        volume: the image, with its geometry.
        labels: the classes.
        changed: class -> voxels that post-processing took away and filled.
        model: what made it, for files that say so.
    """

    mask: NDArray[Any]
    probabilities: NDArray[np.float32] | None
    volume: Volume
    labels: Labels
    changed: Mapping[str, Changed] = field(default_factory=dict)
    model: str = "network"

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along every axis of `mask`."""
        return self.volume.spacing

    @property
    def affine(self) -> NDArray[np.float64] | None:
        """(4, 4), index in `mask` -> RAS mm; None where the file has none."""
        return self.volume.affine

    def save(self, path: str | Path) -> Path:
        """Write the mask in the image's own format and geometry; its ending takes the place of a known one.

        A DICOM series gives a SEG, which has a segment for every structure; elsewhere overlapping classes with an order are
        one map.
        """
        about = About(self.labels.foreground, self.model)
        return write_mask(Path(path), self.in_file(), self.volume, about)

    def in_file(self) -> NDArray[Any]:
        """The mask as its file holds it."""
        return self.mask if self.volume.suffix == DICOM else in_file(self.mask, self.labels)


class Segmenter:
    """The networks of an exported file; call it with an image."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.card, self.digest, self.path = bundle.card, bundle.digest, bundle.path
        self.members = read_pipeline(bundle.pipeline, bundle.path)
        self.calibration = in_common([member.calibration for member in self.members])
        self.networks = [Network(member, bundle.graphs, bundle.path, threads) for member in self.members]

    @property
    def labels(self) -> Labels:
        """The classes."""
        return self.members[0].plan.labels

    @property
    def dims(self) -> int:
        """Spatial dimensions of the images."""
        return self.members[0].plan.image_dims

    def __call__(
        self,
        image: Any,
        *,
        spacing: Sequence[float] | None = None,
        affine: ArrayLike | None = None,
        probabilities: bool = False,
        tta: bool = False,
        post_processing: bool = True,
    ) -> Result:
        """Segment an image.

        Args:
            image: a file, the folder of a DICOM series, the list of the channel files of a case, or an array (C, *S), (*S) or
                (*S, C).
            spacing: of an array, in mm, along its spatial axes.
            affine: (4, 4) of an array, voxel index -> RAS mm.
            probabilities: whether the result holds them: of all classes, for the whole image.
            tta: average over mirrored copies.
            post_processing: False leaves the mask as the network says it.

        Raises:
            UsageError: if the image cannot be read or does not fit.
        """
        volume = self._volume(image, spacing, affine)
        slabs = self.slabs(volume, tta=tta)
        threshold = self.members[0].settings.threshold
        maps: NDArray[np.float32] | None = None
        if probabilities:
            maps = slabs.joined(lambda part: part)
            mask = to_labels(maps, self.labels, threshold)
            self._calibrate(maps)
        else:
            mask = slabs.joined(lambda part: to_labels(part, self.labels, threshold))
        changed = self._cleaned(mask, volume) if post_processing else {}
        return Result(mask, maps, volume, self.labels, changed, str(self.card.get("model") or "network"))

    def _calibrate(self, maps: NDArray[np.float32]) -> None:
        """Make probabilities mean what they say, in place and row by row; no answer changes."""
        temperature = None if self.calibration is None else self.calibration.temperature
        if temperature is not None:
            exclusive = self.labels.outputs > 1 and not self.labels.multilabel
            for row in range(maps.shape[1]):
                maps[:, row] = scaled(maps[:, row], temperature, exclusive=exclusive)

    def _cleaned(self, mask: NDArray[Any], volume: Volume) -> Mapping[str, Changed]:
        """Apply the post-processing that the validation cases chose, in place."""
        if self.calibration is None or not self.members[0].settings.post_processing:
            return {}
        rules, voxel = self.calibration.rules_for(volume)
        return clean(mask, self.labels, rules, voxel)

    def slabs(self, volume: Volume, *, tta: bool = False, compare: Compare | None = None) -> Slabs:
        """The probabilities of a volume in slabs, computed as they are asked for; neither calibrated nor cleaned.

        Args:
            volume: the image.
            tta: average over mirrored copies.
            compare: see `mean_of`.

        Raises:
            UsageError: if it does not fit.
        """
        for member in self.members:
            check_fit(volume, member.plan)
        return mean_of(self.networks, volume, tta=tta, compare=compare)

    def _volume(self, image: Any, spacing: Sequence[float] | None, affine: ArrayLike | None) -> Volume:
        plan = self.members[0].plan
        if isinstance(image, Volume):
            return image
        if isinstance(image, str | Path):
            image = [image]
        if isinstance(image, list | tuple) and image and all(isinstance(one, str | Path) for one in image):
            if spacing is not None or affine is not None:
                raise UsageError("spacing= and affine= belong to arrays; files say themselves how they lie")
            return read_image([Path(one) for one in image], plan.image_dims)
        array, dims = np.asarray(image), plan.image_dims
        if array.dtype.kind not in "iufb" or array.ndim not in (dims, dims + 1):
            raise UsageError(f"an array of shape {array.shape} and type {array.dtype}; give numbers of shape (C, *S)")
        if array.ndim == dims:
            array = array[None]
        elif len(array) != plan.in_channels and array.shape[-1] == plan.in_channels:
            array = np.moveaxis(array, -1, 0)
        matrix = None if affine is None else np.asarray(affine, np.float64)
        if matrix is not None and matrix.shape != (4, 4):
            raise UsageError("affine=: expected a (4, 4) matrix, voxel index -> RAS mm")
        if spacing is None and matrix is not None:
            spacing = [float(f"{n:.7g}") for n in np.linalg.norm(matrix[:3, :dims], axis=0)]
        if spacing is not None and (len(spacing) != dims or not all(0 < s < np.inf for s in spacing)):
            raise UsageError(f"spacing={spacing}: expected {dims} lengths in mm, one for each spatial axis")
        volume = Volume(array, (1.0,) * dims, affine=matrix)
        return volume if spacing is None else replace(volume, spacing=tuple(map(float, spacing)), unit="mm")


def load(path: str | Path, threads: int | None = None) -> Segmenter:
    """Read an exported file and check all of it: `load("liver.ulna")("scan.nii.gz").save("mask.nii.gz")`.

    Args:
        path: a file of `ulna export`, or `zoo:NAME` for one that comes with this package.
        threads: that compute; None for all cores.

    Raises:
        UsageError: if it is damaged, was changed, or is no exported file.
    """
    return Segmenter(read_bundle(located(path)), threads)
