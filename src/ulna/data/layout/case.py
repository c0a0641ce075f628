"""One case of a data set: its image files, its label map, and the patient it comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from ulna.data.formats import read
from ulna.data.formats.dicom.naming import plain
from ulna.data.formats.dicom.onto import onto
from ulna.data.formats.dicom.series import stack_of
from ulna.data.formats.label_maps import encode_labels
from ulna.data.formats.source import Source, Structure
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.recipe import Labels, Plan


@dataclass(frozen=True)
class Case:
    """One image with, where it exists, its label map.

    Args:
        id: the file name without extension, or the id that an npz file gives.
        images: one source, or one per channel.
        label: None where the case has no reference.
        group: the patient; cases of one group are never split over two sets. None: the case is a group of its own.
        spatial_dims: of the data set or the model, for files that could be 2D or 3D; see `ulna.data.formats.read.read_image`.
        fields: (field, group) of groups.json by which scores are told apart, such as ("site", "A").
    """

    id: str
    images: tuple[Source, ...]
    label: Source | None
    group: str | None = None
    spatial_dims: int | None = None
    fields: tuple[tuple[str, str], ...] = ()

    def of_classes(self, labels: Labels) -> Case:
        """The same, its DICOM labels read as these classes, by their names; other labels are numbers."""
        return self if self.label is None else replace(self, label=of_classes(self.label, labels))

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
        labels = read.read_labels(self.label, self.spatial_dims or spatial_dims)
        image = self.images[0]
        if image.series is None or self.label.series is not None:
            return labels
        return onto(labels, stack_of(image.path, image.series))


def of_classes(label: Source, labels: Labels) -> Source:
    """A DICOM label source whose structures are these classes; any other as it is."""
    series = label.series
    if series is None or not series.structures:
        return label
    known = {plain(one.name): one for one in series.structures}
    wanted = tuple(known.get(plain(name), Structure(name, ())) for name in labels.foreground)
    return label._replace(series=series._replace(structures=wanted, overlapping=labels.multilabel))


def read_reference(case: Case, volume: Volume, plan: Plan) -> NDArray[Any]:
    """The classes of a case on the grid of its image, (*S), or (K, *S) if multilabel; as the run of the plan saw them."""
    labels = case.of_classes(plan.labels).read_labels()
    if plan.format == 1:
        from ulna.data.pipeline import format_1  # torch, without which folders are looked through in half a second

        labels = format_1.labels_of(labels, volume)
    return encode_labels(labels, plan.labels)
