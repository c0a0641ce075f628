"""What one reading of one case tells: geometry, values, labels, and everything that is wrong with it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.case import Case
from ulna.data.dataset import Dataset
from ulna.data.likeness import look
from ulna.data.orientation import to_canonical
from ulna.data.read import encode_labels, value_counts, without_colour
from ulna.errors import DataError, Problem
from ulna.progress import track
from ulna.recipe import Labels
from ulna.volume import Volume, same_geometry

SAMPLES = 10_000  # values per channel that percentiles are taken from
KEPT = 1_000  # foreground values per channel that are kept, to pool over cases
_MOST_SKEW = 0.01  # about half a degree; what rounding leaves is far smaller
MOST_VALUES = 256  # label values that are counted one by one


@dataclass(frozen=True)
class Intensity:
    """The values of one channel; percentiles from at most 10 000 values, evenly spread."""

    mean: float
    std: float
    min: float
    max: float
    p00_5: float
    p50: float
    p99_5: float


@dataclass(frozen=True)
class Survey:
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
        look: what the image looks like on a small grid, see `ulna.data.likeness`.
        problems: what is wrong.
        notes: what the reader changed or passed over.
        either: the file could be 2D or 3D, such as a volume of one slice.
        oriented: the file states its orientation, else `affine` holds what its format assumes.
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
    look: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    either: bool = False
    oriented: bool = True

    @property
    def spatial_dims(self) -> int:
        """2 or 3; 0 where the image could not be read."""
        return len(self.size)

    @property
    def constant(self) -> bool:
        """Whether every channel holds one value only (and more than one pixel)."""
        return bool(self.image) and math.prod(self.size) > 1 and all(one.min == one.max for one in self.image)

    def to_json(self) -> dict[str, Any]:
        """Plain values; the foreground values and the look are left out."""
        values = asdict(self)
        del values["foreground_values"], values["look"]
        values["problems"] = [problem._asdict() for problem in self.problems]
        return values


def survey(case: Case, labels: Labels | None) -> Survey:
    """Read a case to its last byte. Bad data never raise; what is wrong stands in `problems`.

    Args:
        labels: the declared classes; None: any whole numbers from 0 on will do.
    """
    problems: list[Problem] = []
    facts: dict[str, Any] = {}
    image = _tried(case.read_image, case.images[0], problems)
    if image is not None:
        facts |= {"size": image.size, "spacing": image.spacing, "unit": image.unit, "channels": image.channels}
        facts |= {"dtype": str(image.array.dtype), "notes": image.meta.get("notes", ()), "digest": _digest(image)}
        facts["look"], facts["either"] = look(_upright(image)), bool(image.meta.get("either"))
        facts["oriented"] = bool(image.meta.get("oriented", True))
        if image.affine is not None:
            facts["affine"] = tuple(tuple(float(value) for value in row) for row in image.affine)
        facts["image"] = tuple(_intensities(case, image, problems))
        problems += _readable_faults(image, case.images[0])
    dims = None if image is None else image.spatial_dims
    reference = _tried(lambda: case.read_labels(dims), case.label, problems) if case.label is not None else None
    if reference is not None:
        values, facts["two_valued_255"], classes = _label_values(reference, labels, problems)
        facts["label_values"] = values
        facts["notes"] = (*facts.get("notes", ()), *reference.meta.get("notes", ()), *_one_class(values))
        problems += _readable_faults(reference, case.label)
        if image is not None and _same_picture(image, reference):
            remedy = "put the image in its place, or take the case out"
            problems.append(Problem(str(case.images[0]), "is its own label map, value by value", remedy))
        if image is not None and _same_grid(case, image, reference, problems) and classes is not None:
            facts["foreground"], facts["foreground_values"] = _foreground(image, classes)
    found = Survey(case=case.id, problems=tuple(problems), **facts)
    return _judged_constant(case, found) if found.constant else found


def _upright(image: Volume) -> NDArray[Any]:
    """The array along canonical axes, so that a copy stored in another orientation looks the same."""
    return image.array if image.affine is None else to_canonical(image.affine, image.spatial_dims).forward(image.array)


def _judged_constant(case: Case, found: Survey) -> Survey:
    """A blank image is common at the ends of a scan; with something labelled in it, it is a fault."""
    name = "the image" if found.channels == 1 else "every channel of the image"
    what = f"{name} is constant, every value is {found.image[0].min:g}"
    if not any(value > 0 for value in found.label_values):
        return replace(found, notes=(*found.notes, what))
    remedy = "export the image again, or take the case out"
    problem = Problem(str(case.images[0]), f"{what}, and its label map has foreground", remedy)
    return replace(found, problems=(*found.problems, problem))


def survey_all(dataset: Dataset, workers: int = 0) -> list[Survey]:
    """Read every case once, in the order of the data set; with `workers`, that many at a time.

    Files that could be 2D or 3D are what the others are: in a data set of volumes they are read again, as volumes.
    """
    found = _each(dataset.cases, dataset.labels, workers, "reading")
    again = [n for n, one in enumerate(found) if one.either and one.spatial_dims == 2]
    if again and any(one.spatial_dims == 3 for one in found):
        cases = [replace(dataset.cases[n], spatial_dims=3) for n in again]
        for n, one in zip(again, _each(cases, dataset.labels, workers, "reading volumes of few slices"), strict=True):
            found[n] = one
    return found


def _each(cases: Sequence[Case], labels: Labels | None, workers: int, what: str) -> list[Survey]:
    if workers <= 1:
        return [survey(case, labels) for case in track(cases, what)]
    with ThreadPoolExecutor(workers) as pool:  # unpacking and decoding release the interpreter
        pending = [pool.submit(survey, case, labels) for case in cases]
        return [future.result() for future in track(pending, what)]


def _tried(read: Callable[[], Volume], source: object, problems: list[Problem]) -> Volume | None:
    try:
        return read()
    except DataError as error:
        problems += error.problems
    except (OSError, MemoryError, ValueError) as error:
        what = f"cannot be read ({str(error) or type(error).__name__})"
        problems.append(Problem(str(source), what, "mend the file, or take the case out"))
    return None


def _readable_faults(volume: Volume, source: object) -> list[Problem]:
    """What is wrong with a file that can be read all the same."""
    faults = [*volume.meta.get("faults", ())]
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
    if len(labels) != 1 or image.size != reference.size or not labels.any():
        return False
    return all(np.array_equal(channel, labels[0]) for channel in image.array)


def _one_class(values: dict[int, int]) -> tuple[str, ...]:
    (only,) = values if len(values) == 1 else (0,)
    return (f"its label map is class {only} everywhere",) if only else ()


def _digest(image: Volume) -> str:
    """Of shape, type and values, so that a copy in another container is found."""
    array = np.ascontiguousarray(image.array)
    digest = hashlib.sha256(repr((array.shape, array.dtype.str)).encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _intensities(case: Case, image: Volume, problems: list[Problem]) -> list[Intensity]:
    where = str(case.images[0])
    found = []
    for number, channel in enumerate(image.array):
        values = channel.reshape(-1)
        name = f"channel {number}" if image.channels > 1 else "the image"
        if values.dtype.kind == "f":
            finite = np.isfinite(values)
            bad = values.size - int(np.count_nonzero(finite))
            if bad:
                what = f"{name} holds {bad} values that are not finite (NaN or infinite), of {values.size}"
                problems.append(Problem(where, what, "replace them, or take the case out"))
                values = values[finite]
        if not values.size:
            continue
        found.append(_intensity(values))
    return found


def _intensity(values: NDArray[Any]) -> Intensity:
    mean, std = float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64))
    low, middle, high = _percentiles(_spread(values, SAMPLES), (0.5, 50, 99.5))
    extremes = float(values.min()), float(values.max())
    return Intensity(mean, std, *extremes, float(low), float(middle), float(high))


def _percentiles(values: NDArray[Any], levels: tuple[float, ...]) -> list[float]:
    """Linear between neighbours, as numpy's; small integers are sorted by radix, which is several times as fast."""
    ordered = np.sort(values, kind="stable" if values.dtype.itemsize <= 2 else None)
    places = np.asarray(levels) / 100 * (ordered.size - 1)
    below = places.astype(np.int64)
    low = ordered[below].astype(np.float64)
    high = ordered[np.minimum(below + 1, ordered.size - 1)].astype(np.float64)
    return (low + (high - low) * (places - below)).tolist()


def _spread(values: NDArray[Any], most: int) -> NDArray[Any]:
    """At most `most` of the values, evenly spread. The step is odd, lest it fall in step with rows of even length."""
    step = -(-values.size // most)
    return values[:: step | 1] if step > 1 else values


def _label_values(
    reference: Volume, labels: Labels | None, problems: list[Problem]
) -> tuple[dict[int, int], bool, NDArray[Any] | None]:
    """Counts per class index, whether it held {0, 255}, and the class indices (None where they do not fit)."""
    array = reference.array
    stretched = array.dtype.kind in "iu" and int(array.max()) == 255 and set(value_counts(array)) <= {0, 255}
    if labels is not None:
        stretched = stretched and (labels.multilabel or len(labels.foreground) == 1)
        classes = _tried_encoding(reference, labels, problems)
        if classes is None:
            return {}, False, None
        if labels.multilabel:
            counts = {0: int(np.count_nonzero(~classes.any(axis=0)))}
            counts |= {k + 1: int(np.count_nonzero(one)) for k, one in enumerate(classes)}
            return {value: count for value, count in counts.items() if count}, stretched, classes
        return {int(value): count for value, count in value_counts(classes).items()}, stretched, classes
    where, array = str(reference.path), without_colour(reference)
    if array.shape[0] != 1:
        problems.append(Problem(where, *_several_maps(reference)))
        return {}, False, None
    if stretched:
        array = (array == 255).astype(np.uint8)
    fault = _value_fault(array)
    if fault:
        problems.append(Problem(where, *fault))
        return {}, False, None
    return {int(value): count for value, count in value_counts(array).items()}, stretched, array[0]


def _several_maps(reference: Volume) -> tuple[str, str]:
    array = reference.array
    if reference.spatial_dims == 2 and len(array) == 3:
        count = len(np.unique(array.reshape(3, -1), axis=1).T)
        remedy = "save one map of class numbers; check --fix does so where every colour is a class"
        return f"is a colour picture, of {count} colours", remedy
    return f"holds {len(array)} label maps", "save one map, or name the classes in classes.json with mode multilabel"


def _tried_encoding(reference: Volume, labels: Labels, problems: list[Problem]) -> NDArray[Any] | None:
    fault = _value_fault(reference.array)
    if fault:
        problems.append(Problem(str(reference.path), *fault))
        return None
    try:
        return encode_labels(reference, labels)
    except DataError as error:
        problems += error.problems
        return None


def _value_fault(array: NDArray[Any]) -> tuple[str, str] | None:
    """What no set of classes can fit: values that are not finite, not whole, or negative; or far too many."""
    if array.dtype.kind == "f":
        bad = int(np.count_nonzero(~np.isfinite(array)))
        if bad:
            return f"holds {bad} label values that are not finite", "save the label map with whole numbers"
        broken = array[array != np.rint(array)]
        if broken.size:
            shown = ", ".join(f"{value:.4g}" for value in np.unique(broken)[:4])
            what = f"holds {broken.size} fractional label values, such as {shown}"
            return what, "save the label map with whole numbers; resample label maps by nearest neighbour only"
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        return (
            f"holds negative label values, down to {int(array.min())}",
            "remap them; 0 is background, 1..K the classes",
        )
    if array.dtype.kind == "f" or len(value_counts(array)) > MOST_VALUES:
        return (
            f"holds more than {MOST_VALUES} label values",
            "give a label map of classes, not of objects or grey values",
        )
    return None


def _same_grid(case: Case, image: Volume, reference: Volume, problems: list[Problem]) -> bool:
    where = str(case.label)
    if image.size != reference.size:
        what = f"has the size {reference.size}, its image {image.size}"
        problems.append(
            Problem(where, what, "resample the label map to the grid of its image, or pair the right files")
        )
        return False
    if same_geometry(image, reference):
        return True
    if np.allclose(image.spacing, reference.spacing, rtol=1e-3) and image.affine is not None:
        what = "has another orientation or origin (affine) than its image"
    else:
        what = f"has the spacing {_numbers(reference.spacing)} {reference.unit}, its image {_numbers(image.spacing)}"
    problems.append(
        Problem(where, what, "copy the geometry of the image if the voxels agree, or resample the label map")
    )
    return False


def _numbers(values: tuple[float, ...]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)


def _foreground(image: Volume, classes: NDArray[Any]) -> tuple[tuple[Intensity, ...], NDArray[np.float32] | None]:
    inside = classes > 0 if classes.ndim == image.spatial_dims else classes.any(axis=0)
    if not inside.any():
        return (), None
    values = [channel[inside] for channel in image.array]
    if any(not np.isfinite(one).all() for one in values):
        return (), None
    kept = np.stack([_spread(one, KEPT) for one in values]).astype(np.float32)
    return tuple(_intensity(one) for one in values), kept
