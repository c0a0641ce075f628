"""What can be fixed in one file, and how that is told: every function returns a volume and the words of the change.

What would need a guess - a cut file, a class that nobody declared, voxels that lie elsewhere - is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from ulna.data.formats.label_maps import value_counts, without_colour
from ulna.data.formats.nifti import NiftiStored
from ulna.data.formats.palettes import Colour
from ulna.data.formats.source import data_error
from ulna.data.quality.label_values import NEARLY_WHOLE, colours, farthest_from_whole
from ulna.data.turning import UPRIGHT, exchanged, orientation_of, upright
from ulna.data.volume import Volume, label_dtype, may_lie_turned, same_geometry, turned_text
from ulna.errors import counted, listed
from ulna.recipe import Labels

_MOST_CLASSES = 32
_KEPT = 0.1  # share of the labelled volume that resampling may win or lose
_SAME_SHAPE = "save the label map on the grid of its image"

_MAGIC = (
    (rb"\x89PNG\r\n\x1a\n", ".png"),
    (rb"\xff\xd8\xff", ".jpg"),
    (rb"BM.{12}[\x0c\x28\x6c\x7c]\x00\x00\x00", ".bmp"),
    (rb"II[*+]\x00|MM\x00[*+]", ".tif"),
    (rb"\x1f\x8b", ".nii.gz"),
    (rb"NRRD000", ".nrrd"),
    (rb"\x93NUMPY", ".npy"),
)


class Change(NamedTuple):
    """One change of one file.

    Args:
        what: in words.
        values: where values were exchanged, a table from the old to the new, of those in the file.
        moved: for what a file says of its values: value -> class, of the whole data set; one without an entry is no class
            of its own any more. None where values mean what they meant.
    """

    what: str
    values: dict[str, int] | None = None
    moved: Mapping[int, int] | None = None


class Values(NamedTuple):
    """How label values and colours of a whole data set become classes 0..K.

    Args:
        numbers: stored value -> class; empty where they are classes already.
        colours: stored colour -> class.
        names: of the classes 1..K; None: as declared, or as found.
        why_not: why gaps in the values are left as they are, and what to do; None where there is no gap, or all are closed.
        ask: what only a person can say of values that were numbered anew, and how; empty for nothing.
        objects: the values number objects, which become one class.
    """

    numbers: dict[int, int]
    colours: dict[Colour, int]
    names: tuple[str, ...] | None
    why_not: tuple[str, str] | None = None
    ask: str = ""
    objects: bool = False


def choose_values(maps: Iterable[Volume], declared: Labels | None) -> Values:
    """The table for a data set, from all its label maps as read."""
    numbers: set[int] = set()
    found: set[Colour] = set()
    stretched = False
    for volume in maps:
        if _is_colour(volume):
            found |= colours(volume.array)
        elif volume.channels == 1:
            own = _whole_values(volume)
            stretched = stretched or (255 in own and own <= {0, 255})
            numbers |= own if not own <= {0, 255} else set()
    if stretched and numbers - {0, 1}:  # a class beside others; in maps of nothing else it is 1, stretched
        numbers.add(255)
    palette = {colour: number for number, colour in enumerate(sorted(found))}
    foreground = 1 if declared is None else len(declared.foreground)
    if declared is not None or numbers - {0, 1}:
        palette = palette if len(palette) == 2 and foreground == 1 and not numbers - {0, 1} else {}
    if (0, 0, 0) not in palette or len(palette) > _MOST_CLASSES:
        palette = {}
    if palette and declared is None and len(palette) > 2:
        return Values({}, palette, tuple("colour {},{},{}".format(*colour) for colour in sorted(palette)[1:]))
    ordered = sorted(numbers | {0})
    if declared is not None or ordered == list(range(len(ordered))):
        return Values({}, palette, None)
    why_not = _why_not(ordered)
    if why_not:
        return Values({}, palette, None, why_not)
    table = {value: number for number, value in enumerate(ordered)}
    return Values(table, palette, tuple(f"value {value}" for value in ordered[1:]), ask=_ask(ordered[1:]))


def _ask(drawn: list[int]) -> str:
    """Whether several grey values up to 255, as drawing programs leave them, are several classes or one."""
    if drawn[-1] != 255 or len(drawn) < 2:
        return ""
    one = json.dumps({"labels": {"object": list(range(1, len(drawn) + 1))}})
    return f"the label values {listed(drawn)} stay classes of their own; if they are one, write {one} there"


def _whole_values(volume: Volume) -> set[int]:
    """The values of a map, rounded where they are nearly whole; none where they are no classes."""
    array = volume.array
    if array.dtype.kind == "f":
        if not farthest_from_whole(array) < NEARLY_WHOLE:
            return set()
        array = np.rint(array)
    values = value_counts(array)
    return set() if min(values) < 0 else {int(value) for value in values}


def _why_not(ordered: list[int]) -> tuple[str, str] | None:
    """Why these values are not numbered anew, and what to do; None where they are."""
    if len(ordered) > _MOST_CLASSES:
        what = f"{len(ordered)} label values are too many to be classes that nobody named"
        return what, 'name them in classes.json; with "instances": true they are numbered objects of one class'
    if ordered[-1] == 255 and len(ordered) > 2 and ordered[:-1] == list(range(len(ordered) - 1)):
        what = f"255 beside 0..{ordered[-2]} may mean 'not known', and nobody has said so"
        return what, 'name the classes in classes.json, with "ignore": 255 if it does, or with {"NAME": [255]} if not'
    return None


def _is_colour(volume: Volume) -> bool:
    """Whether a label map is a picture in colour; three maps in another format are three classes."""
    array = volume.array
    return (
        (volume.meta.format == "raster" or volume.meta.colour)
        and len(array) == 3
        and not bool((array == array[:1]).all())
    )


def own_suffix(path: Path) -> str | None:
    """The extension that the first bytes of a file ask for; None where they are of no known kind.

    Only what one look can tell: PNG, JPEG, BMP, TIFF, gzip and plain NIfTI, NRRD, numpy.
    """
    with path.open("rb") as file:
        start = file.read(352)
    for magic, suffix in _MAGIC:
        if re.match(magic, start, re.DOTALL):
            return suffix
    return ".nii" if start[344:347] in (b"n+1", b"ni1") else None


def fixed_image(volume: Volume) -> tuple[Volume, list[Change]]:
    """Values that are not finite are replaced, a contradicting header is written anew."""
    changes = []
    for what, _ in volume.meta.faults:
        changes.append(Change(f"{what}: the file is written anew"))
    array = volume.array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        finite = array[np.isfinite(array)]
        if finite.size < array.size / 2:
            raise data_error(volume.path, "most of its values are not finite", "export the image again")
        bad = array.size - finite.size
        array = np.nan_to_num(array, nan=0.0, posinf=float(finite.max()), neginf=float(finite.min()))
        changes.append(
            Change(f"{bad} values that were not finite: NaN became 0, infinite ones the largest or smallest")
        )
    return _with_one_place(volume.with_array(array)), changes


def _with_one_place(volume: Volume) -> Volume:
    """The qform follows the sform, which is the one that is read."""
    stored = volume.meta.stored
    if not volume.meta.faults or not isinstance(stored, NiftiStored):
        return volume
    header = stored.header.copy()
    if int(header["sform_code"]) > 0:
        header.set_qform(header.get_sform(), code=int(header["sform_code"]), strip_shears=True)
    return replace(volume, meta=replace(volume.meta, stored=stored._replace(header=header)))


def fixed_labels(volume: Volume, image: Volume, values: Values, declared: Labels | None) -> tuple[Volume, list[Change]]:
    """Colours, gaps, rounding errors, one map per class, and another grid than the image's.

    Raises:
        DataError: if what is wrong cannot be fixed.
    """
    volume, changes = fixed_image(volume) if volume.meta.faults else (volume, [])
    array = volume.array
    multilabel = declared is not None and declared.multilabel
    if array.dtype.kind == "f":
        array, change = _rounded(volume)
        changes.append(change)
    if _is_colour(volume) and not multilabel:
        array, change = _classes_of_colours(volume, array, values.colours)
        changes.append(change)
    elif len(array) > 1 and not multilabel:
        array = without_colour(volume.with_array(array))
        if len(array) > 1:
            array, change = _joined(volume, array)
            changes.append(change)
    if values.objects and int(array.max(initial=0)) > 1:
        merged = counted(len(value_counts(array[array > 0])), "numbered object")
        changes.append(Change(f"{merged} became one class", moved={0: 0}))
        array = (array > 0).astype(np.uint8)
    if values.numbers:
        found = value_counts(array)
        moved = {value: values.numbers[int(value)] for value in found if value in values.numbers}
        if any(value != number for value, number in moved.items()) and len(moved) == len(found):
            array = np.vectorize(values.numbers.__getitem__, otypes=[label_dtype(len(values.numbers))])(array)
            table = {str(value): number for value, number in moved.items()}
            changes.append(
                Change(f"label values {listed(found)} became {listed(moved.values())}", table, values.numbers)
            )
    volume = volume.with_array(array)
    volume, turned = _turned_as(image, volume)
    changes += turned
    if not same_geometry(image, volume):
        volume, change = _on_the_grid_of(image, volume)
        changes.append(change)
    return volume, changes


def _rounded(volume: Volume) -> tuple[NDArray[Any], Change]:
    array = volume.array
    error = farthest_from_whole(array)
    if not error < NEARLY_WHOLE or float(array.min()) < -NEARLY_WHOLE:
        raise data_error(
            volume.path, "holds label values that are no whole numbers", "save the label map with whole numbers"
        )
    whole = np.abs(np.rint(array))  # -0.02 becomes 0
    what = f"label values were rounded to whole numbers (the largest change is {error:.2g})"
    return whole.astype(label_dtype(int(whole.max()))), Change(what)


def _classes_of_colours(
    volume: Volume, array: NDArray[Any], palette: Mapping[Colour, int]
) -> tuple[NDArray[Any], Change]:
    own = colours(array)
    if not own <= set(palette):
        what = f"is a colour picture, of {len(own)} colours, and nothing says which colour is which class"
        raise data_error(volume.path, what, "save one map of class numbers")
    classes = np.zeros((1, *array.shape[1:]), np.uint8)
    for colour in own:
        classes[0][(array == np.reshape(colour, (3, 1, 1))).all(axis=0)] = palette[colour]
    table = {",".join(map(str, colour)): palette[colour] for colour in sorted(own)}
    return classes, Change("colours became classes", table)


def _joined(volume: Volume, array: NDArray[Any]) -> tuple[NDArray[Any], Change]:
    """One map per class, none overlapping another, as one map."""
    inside = array > 0
    if not set(value_counts(array)) <= {0, 1, 255} or int(inside.sum(axis=0).max()) > 1:
        what = f"holds {len(array)} label maps that overlap or hold several values"
        raise data_error(volume.path, what, "save one map, or name the classes in classes.json with mode multilabel")
    joined = (inside * np.arange(1, len(array) + 1).reshape(-1, *[1] * (array.ndim - 1))).sum(axis=0)
    change = Change(f"{len(array)} maps, one per class, became one map of the classes 1..{len(array)}", moved={0: 0})
    return joined[None].astype(label_dtype(len(array))), change


def _turned_as(image: Volume, volume: Volume) -> tuple[Volume, list[Change]]:
    """A label map without an orientation tag that lies on the stored pixels of its image is given the image's tag."""
    orientation, own = orientation_of(image), orientation_of(volume)
    if own != UPRIGHT or image.size == volume.size or volume.size != exchanged(image.size, orientation):
        return volume, []
    array, spacing = upright(volume.array, orientation), exchanged(volume.spacing, orientation)
    turned = replace(volume, array=array, spacing=spacing, meta=replace(volume.meta, orientation=orientation))
    return turned, [Change(f"has the orientation tag {orientation} of its image now, on whose stored pixels it lies")]


def _on_the_grid_of(image: Volume, volume: Volume) -> tuple[Volume, Change]:
    """Every voxel of the image takes the label of the nearest voxel in space; nothing may get lost on the way."""
    if may_lie_turned(image, volume):
        raise data_error(volume.path, turned_text(volume, "its image"), "save both in one format, such as NIfTI")
    if image.affine is None or volume.affine is None or image.spatial_dims != volume.spatial_dims:
        what = f"has the size {volume.size}, its image {image.size}, and nothing says where its pixels lie"
        raise data_error(volume.path, what, _SAME_SHAPE)
    dims = image.spatial_dims
    step = np.linalg.inv(volume.affine) @ image.affine
    if dims == 2 and not np.allclose(step[2, :2], 0, atol=1e-6):
        raise data_error(volume.path, "lies in another plane than its image", _SAME_SHAPE)
    matrix, offset = step[:dims, :dims], step[:dims, 3]
    moved = np.stack(
        [
            affine_transform(one, matrix, offset, output_shape=image.size, order=0, mode="constant")
            for one in volume.array
        ]
    )
    before = int(np.count_nonzero(volume.array)) * abs(np.linalg.det(volume.affine[:3, :3]))
    after = int(np.count_nonzero(moved)) * abs(np.linalg.det(image.affine[:3, :3]))
    if before and abs(after / before - 1) > _KEPT:
        what = f"lies beside its image: on the grid of the image {after / before:.0%} of the labelled volume is left"
        raise data_error(volume.path, what, "pair the right files")
    made = replace(image, array=moved, path=volume.path)
    return made, Change("resampled to the grid of its image by position in space, nearest neighbour")
