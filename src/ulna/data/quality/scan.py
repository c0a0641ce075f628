"""What one reading of one case tells: geometry, values, labels, and everything that is wrong with it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.label_maps import without_colour
from ulna.data.formats.limits import holding, within_memory
from ulna.data.formats.mapping import read_or_map
from ulna.data.formats.slabs import slabs
from ulna.data.layout.case import Case
from ulna.data.pipeline.colour import is_colour
from ulna.data.pipeline.orientation import AS_STORED, to_canonical
from ulna.data.quality.intensity import Intensity, measure
from ulna.data.quality.label_values import label_values
from ulna.data.quality.needs import check_classes
from ulna.data.quality.similarity import thinned, thumbnail
from ulna.data.quality.slices import SliceCount, count_slices
from ulna.data.turning import UPRIGHT, exchanged, orientation_of
from ulna.data.volume import Volume, may_lie_turned, same_geometry, spacing_text, turned_text
from ulna.errors import DataError, Problem, UsageError
from ulna.recipe import Labels
from ulna.system.mapped import InFile

TURNED = "its label map may be rotated against the image"  # so begins a note that must be read before others
_OTHER_GRID = "resample the label map to the grid of its image, or pair the right files"
_ONE_FORMAT = "save image and label map in one format, their voxels in one order; as NIfTI, with one affine"
_MOST_SKEW = 0.01  # about half a degree; what rounding leaves is far smaller


@dataclass(frozen=True)
class CaseStats:
    """One case, read once.

    Args:
        case: its id.
        size: *S; empty where the image could not be read.
        spacing: along every spatial axis, in `unit` ("mm" or "px").
        affine: (4, 4) in rows; None where the file has none.
        label_values: class index -> pixels or voxels, after {0, 255} became {0, 1}; multilabel: 1..K and, under 0,
            those of no class. Empty without a label map.
        two_valued_255: the label map held 0 and 255.
        image: one entry per channel, over all finite values.
        foreground: the same over all labelled pixels or voxels; empty where there are none.
        foreground_values: (C, n), up to 1000 foreground values of every channel, evenly spread.
        digest: of shape, type and values of the image, hexadecimal sha256.
        thumbnail: the image on a small grid, see `ulna.data.quality.similarity`.
        palette: class -> the colour in which a palette of the label map draws it.
        problems: what is wrong.
        notes: what the reader changed or passed over.
        either: the file could be 2D or 3D, such as a volume of one slice.
        oriented: the file states its orientation, else `affine` holds what its format assumes.
        stored: the label values as stored, where several of them may be one class.
        objects: how many objects the label map numbers, where nothing declares classes; 0 where it holds none.
        slices: of a labelled volume, across every stored axis.
        colour: the image is a picture of red, green and blue.
        modality: of DICOM; empty where the file does not say.
        body_part: of DICOM; empty where the file does not say.
    """

    case: str
    size: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    unit: str = "px"
    affine: tuple[tuple[float, ...], ...] | None = None
    channels: int = 0
    dtype: str = ""
    label_values: dict[int, int] = field(default_factory=dict)
    two_valued_255: bool = False
    image: tuple[Intensity, ...] = ()
    foreground: tuple[Intensity, ...] = ()
    foreground_values: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    digest: str = ""
    thumbnail: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    palette: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    either: bool = False
    oriented: bool = True
    stored: tuple[int, ...] = ()
    objects: int = 0
    slices: tuple[SliceCount, ...] = ()
    colour: bool = False
    modality: str = ""
    body_part: str = ""

    @property
    def spatial_dims(self) -> int:
        """2 or 3; 0 where the image could not be read."""
        return len(self.size)

    @property
    def constant(self) -> bool:
        """Whether every channel holds one value only (and more than one pixel)."""
        return bool(self.image) and math.prod(self.size) > 1 and all(one.min == one.max for one in self.image)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the foreground values and the thumbnail are left out."""
        values = asdict(self)
        del values["foreground_values"], values["thumbnail"]
        values["problems"] = [problem._asdict() for problem in self.problems]
        values["slices"] = [count._asdict() for count in self.slices]
        return values


def scan_case(case: Case, labels: Labels | None) -> CaseStats:
    """Read a case to its last byte. Bad data never raise; what is wrong stands in `problems`.

    Args:
        labels: the declared classes; None: any whole numbers from 0 on will do.
    """
    problems: list[Problem] = []
    facts: dict[str, Any] = {}
    try:
        with within_memory(case.images[0]):
            _look_through(case, labels, facts, problems)
    except DataError as error:
        problems += error.problems
    return _noted_constant(CaseStats(case=case.id, problems=tuple(problems), **facts))


def _look_through(case: Case, labels: Labels | None, facts: dict[str, Any], problems: list[Problem]) -> None:
    image = _tried(lambda: read_or_map(case.images, case.spatial_dims), case.images[0], problems)
    if image is not None:
        facts |= {"size": image.size, "spacing": image.spacing, "unit": image.unit, "channels": image.channels}
        facts |= {"dtype": str(image.array.dtype), "notes": image.meta.notes, "digest": _digest(image)}
        facts["thumbnail"], facts["either"] = thumbnail(_upright(image)), image.meta.either
        facts["oriented"], facts["colour"] = image.meta.oriented, len(case.images) == 1 and is_colour(image)
        facts |= {"modality": image.meta.modality, "body_part": image.meta.body_part}
        if image.affine is not None:
            facts["affine"] = tuple(tuple(float(value) for value in row) for row in image.affine)
        facts["image"] = tuple(_intensities(case, image, problems))
        problems += _readable_faults(image, case.images[0])
    with holding(0 if image is None or isinstance(image.array, InFile) else image.array.nbytes):
        _look_at_labels(case, labels, image, facts, problems)


def _look_at_labels(
    case: Case, labels: Labels | None, image: Volume | None, facts: dict[str, Any], problems: list[Problem]
) -> None:
    dims = None if image is None else image.spatial_dims
    reference = _tried(lambda: case.read_labels(dims), case.label, problems) if case.label is not None else None
    if reference is None:
        return
    check_classes(reference, labels)
    held = label_values(reference, labels, problems)
    values, classes = held.counts, held.classes
    facts |= {
        "label_values": values,
        "two_valued_255": held.stretched or reference.meta.drawn == 255,
        "stored": held.stored,
        "objects": held.objects,
    }
    facts["palette"] = dict(reference.meta.palette)
    facts["notes"] = (*facts.get("notes", ()), *reference.meta.notes, *_one_class(values))
    problems += _readable_faults(reference, case.label)
    if image is None:
        return
    facts["notes"] += _turned(image, reference)
    if _same_picture(image, reference):
        remedy = "put the image in its place, or take the case out"
        problems.append(Problem(str(case.images[0]), "is its own label map, value by value", remedy))
    if _same_grid(case, image, reference, problems) and classes is not None:
        facts["foreground"], facts["foreground_values"] = _foreground(image, classes)
        facts["slices"] = count_slices(image.array, classes, held.known)


def _upright(image: Volume) -> NDArray[Any]:
    """The array along canonical axes, so that a copy stored in another orientation looks the same; what a thumbnail needs."""
    turn = AS_STORED if image.affine is None else to_canonical(image.affine, image.spatial_dims)
    return thinned(image.array, turn) if isinstance(image.array, InFile) else turn.forward(image.array)


def _noted_constant(found: CaseStats) -> CaseStats:
    """A blank image is common at the ends of a scan; the network sees zeros."""
    if not found.constant:
        return found
    name = "the image" if found.channels == 1 else "every channel of the image"
    what = f"{name} is constant, every value is {found.image[0].min:g}"
    if any(value > 0 for value in found.label_values):
        what += ", though its label map has foreground"
    return replace(found, notes=(*found.notes, what))


def _turned(image: Volume, reference: Volume) -> tuple[str, ...]:
    """Whether the label map was drawn on the upright image or on its stored pixels, nothing in its file may tell."""
    of_image, of_labels = orientation_of(image), orientation_of(reference)
    if of_image == of_labels or image.size != reference.size:
        return ()
    what = "the image has an orientation tag, the label map none" if of_labels == UPRIGHT else "their tags differ"
    return (
        f"{TURNED}: {what}. It is read as drawn on the picture as viewers show it; if it was drawn on the stored pixels, "
        "give it the tag of the image",
    )


def _tried(read: Callable[[], Volume], source: object, problems: list[Problem]) -> Volume | None:
    try:
        return read()
    except DataError as error:
        problems += error.problems
    except UsageError:  # of the disk that it is unpacked onto, not of the file
        raise
    except (OSError, ValueError) as error:
        what = f"cannot be read ({str(error) or type(error).__name__})"
        problems.append(Problem(str(source), what, "repair the file, or take the case out"))
    return None


def _readable_faults(volume: Volume, source: object) -> list[Problem]:
    """What is wrong with a file that can be read all the same."""
    faults = [*volume.meta.faults]
    if volume.affine is not None:
        skew = _skew(volume.affine, volume.spatial_dims)
        if skew > _MOST_SKEW:
            what = f"has axes that are not perpendicular (off by {math.degrees(math.asin(skew)):.2g} degrees)"
            faults.append((what, "resample it to a rectangular grid: lengths and volumes would be wrong"))
    return [Problem(str(source), *fault) for fault in faults]


def _skew(affine: NDArray[np.float64], dims: int) -> float:
    """The largest cosine between two axes."""
    axes = affine[:3, :dims] / np.linalg.norm(affine[:3, :dims], axis=0)
    return float(min(np.abs(axes.T @ axes - np.eye(dims)).max(), 1.0))


def _same_picture(image: Volume, reference: Volume) -> bool:
    labels = without_colour(reference)
    if len(labels) != 1 or image.size != reference.size:
        return False
    drawn = False
    for channel in image.array:
        for one, other in slabs(channel, labels[0]):
            if not np.array_equal(one, other):
                return False
            drawn = drawn or bool(other.any())
    return drawn


def _one_class(values: dict[int, int]) -> tuple[str, ...]:
    if values == {0: 0}:
        return ("its label map is ignored everywhere",)
    (only,) = values if len(values) == 1 else (0,)
    return (f"its label map is class {only} everywhere",) if only else ()


def _digest(image: Volume) -> str:
    """Of shape, type and values, so that a copy in another container is found."""
    digest = hashlib.sha256(repr((image.array.shape, image.array.dtype.str)).encode())
    for channel in image.array:
        for (values,) in slabs(channel):
            digest.update(np.ascontiguousarray(values).view(np.uint8).data)
    return digest.hexdigest()


def _intensities(case: Case, image: Volume, problems: list[Problem]) -> list[Intensity]:
    where = str(case.images[0])
    large, largest = image.meta.too_large or (0, 0.0)
    if large:
        what = f"holds {large} values beyond what float32 holds, up to {largest:.3g}"
        problems.append(Problem(where, what, "scale the values down, or replace them where they stand for nothing"))
    found = []
    for number, channel in enumerate(image.array):
        name = f"channel {number}" if image.channels > 1 else "the image"
        intensity, _, bad = measure(channel)
        large, bad = max(large - bad, 0), max(bad - large, 0)
        if bad:
            what = f"{name} holds {bad} values that are not finite (NaN or infinite), of {channel.size}"
            problems.append(Problem(where, what, "replace them, or take the case out"))
        if intensity is not None:
            found.append(intensity)
    return found


def _same_grid(case: Case, image: Volume, reference: Volume, problems: list[Problem]) -> bool:
    where = str(case.label)
    if image.size != reference.size:
        what, remedy = f"has the size {reference.size}, its image {image.size}", _OTHER_GRID
        orientation = orientation_of(image)
        if reference.size == exchanged(image.size, orientation):
            what += f": it lies on the stored pixels of an image with the orientation tag {orientation}"
            remedy = "give the label map the same tag, or turn it; check --fix does so"
        problems.append(Problem(where, what, remedy))
        return False
    if same_geometry(image, reference):
        return True
    if may_lie_turned(image, reference):
        problems.append(Problem(where, turned_text(reference, "its image"), _ONE_FORMAT))
        return False
    if np.allclose(image.spacing, reference.spacing, rtol=1e-3) and image.affine is not None:
        what = "has another orientation or origin (affine) than its image"
    else:
        own, other = (spacing_text(one.spacing, one.unit) for one in (reference, image))
        what = f"has the spacing {own}, its image {other}"
    problems.append(
        Problem(where, what, "copy the geometry of the image if the voxels agree, or resample the label map")
    )
    return False


def _foreground(image: Volume, classes: NDArray[Any]) -> tuple[tuple[Intensity, ...], NDArray[np.float32] | None]:
    inside = classes if classes.ndim == image.spatial_dims else np.asarray(classes.any(axis=0))
    measured = [measure(channel, inside) for channel in image.array]
    known = [one.intensity for one in measured if one.intensity is not None]
    if len(known) < len(measured) or any(one.bad for one in measured):
        return (), None
    return tuple(known), np.stack([one.kept for one in measured]).astype(np.float32)
