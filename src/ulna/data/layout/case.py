"""One case of a data set: its image files, its label map, and the patient it comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from ulna.data.formats import read
from ulna.data.formats.label_maps import encode_labels
from ulna.data.formats.source import Source
from ulna.data.pipeline import format_1
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.recipe import Plan


@dataclass(frozen=True)
class Case:
    """One image with, where it exists, its label map.

    Args:
        id: the file name without extension, or the id that an npz file gives.
        images: one source, or one per channel.
        label: None where the case has no reference.
        group: the patient; cases of one group are never split over two sets. None: the case is a group of its own.
        spatial_dims: of the data set or the model, for files that could be 2D or 3D; see `ulna.data.formats.read.read_image`.
    """

    id: str
    images: tuple[Source, ...]
    label: Source | None
    group: str | None = None
    spatial_dims: int | None = None

    def read_image(self) -> Volume:
        """(C, *S); see `ulna.data.formats.read.read_image`."""
        return read.read_image(self.images, self.spatial_dims)

    def read_labels(self, spatial_dims: int | None = None) -> Volume:
        """The raw label values, (1, *S) or (K, *S); see `ulna.data.formats.read.read_labels`.

        Args:
            spatial_dims: of the image, where the case does not say.
        """
        if self.label is None:
            raise UsageError(f"case {self.id}: has no label map")
        return read.read_labels(self.label, self.spatial_dims or spatial_dims)


def read_reference(case: Case, volume: Volume, plan: Plan) -> NDArray[Any]:
    """The classes of a case on the grid of its image, (*S), or (K, *S) if multilabel; as the run of the plan saw them."""
    labels = case.read_labels()
    return encode_labels(format_1.labels_of(labels, volume) if plan.format == 1 else labels, plan.labels)
