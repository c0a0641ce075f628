"""Maps of an explanation as files: pictures of a 2D image, volumes and a sheet of a 3D one."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.write import write_image
from ulna.data.volume import Volume
from ulna.evaluation.colours import RGB, to_rgb
from ulna.evaluation.figures import Picture, overlay, panels
from ulna.evaluation.views import view

SHEET_FILE = "contact_sheet.png"

Mask = NDArray[np.bool_]


class Panel(NamedTuple):
    """One map: (*S) on the grid of the image, or a matrix that has no place in it; drawn from 0 to `most`.

    `channel` is the name of the input channel that it is of, if it is of one.
    """

    title: str
    caption: str
    values: NDArray[np.float32]
    most: float
    in_image: bool = True
    channel: str = ""


Layers = dict[str, list[Panel]]  # name of the file -> its maps


def _write_pictures(
    out: Path, volume: Volume, mask: NDArray[Any], inside: Mask, layers: Layers, across: int | None = None
) -> dict[str, str]:
    """A PNG for every layer, and the overlay: {layer: name of the file}."""
    rows = _rows(volume, mask, inside, layers, across)
    return {name: panels(rows[name], out / f"{name}.png", legend=_legend()).name for name in rows}


def _write_volumes(
    out: Path, volume: Volume, mask: NDArray[Any], inside: Mask, layers: Layers, across: int | None = None
) -> dict[str, str]:
    """A NIfTI file for every layer, several maps on its fourth axis, and one sheet with a slice of all of them."""
    like = volume
    if volume.meta.format != "nifti":
        affine = np.diag([*volume.spacing, 1.0]) if volume.affine is None else volume.affine
        like = Volume(volume.array, volume.spacing, volume.unit, affine, volume.path)
    files = {}
    for name, layer in layers.items():
        maps = np.stack([panel.values for panel in layer if panel.in_image]).astype(np.float32)
        files[name] = write_image(out / name, like.with_array(maps)).name
    files["overlay"] = write_image(out / "overlay", like.with_array(mask.reshape(-1, *volume.size))).name
    rows = [row for some in _rows(volume, mask, inside, layers, across).values() for row in some]
    files["sheet"] = panels(rows, out / SHEET_FILE, legend=_legend()).name
    return files


WRITERS = {2: _write_pictures, 3: _write_volumes}

Rows = list[tuple[str, list[Picture]]]


def _rows(volume: Volume, mask: NDArray[Any], inside: Mask, layers: Layers, across: int | None) -> dict[str, Rows]:
    """The pictures of the overlay and of every layer, of a volume those of one slice, `across` an axis."""
    entropy = layers["uncertainty"][0]
    guide = inside if inside.any() else entropy.values >= entropy.values.max() / 2
    image, (_, labels), sides = view(volume, guide, mask, across=across)
    cut = {
        name: [
            panel._replace(values=view(volume, guide, panel.values, across=across).maps[1]) if panel.in_image else panel
            for panel in layer
        ]
        for name, layer in layers.items()
    }
    answer = [("prediction", overlay(image, labels))]
    doubt = [(panel.caption, _over(image, panel)) for panel in cut["uncertainty"]]
    if _apart(volume):
        own = [view(channel, guide, across=across).image for channel in _channels(volume)]
        images = [(panel.channel, to_rgb(one)) for panel, one in zip(cut["saliency"], own, strict=True)]
        maps = [(panel.caption, _over(one, panel)) for panel, one in zip(cut["saliency"], own, strict=True)]
        over = {"over the image": images + answer + doubt, "saliency over its channel": maps}
    else:
        maps = [(f"saliency, {panel.caption}", _over(image, panel)) for panel in cut["saliency"]]
        over = {"over the image": [("image", to_rgb(image)), *answer, *maps, *doubt]}
    plane = "" if sides is None else f", {sides.plane}"
    rows: dict[str, Rows] = {
        "overlay": [(how + plane, [Picture(*one, sides) for one in some]) for how, some in over.items()]
    }
    for name, layer in cut.items():
        rows[name] = [
            (title, [Picture(p.caption, _heat(p.values, p.most), sides if p.in_image else None) for p in group])
            for title, group in itertools.groupby(layer, key=lambda panel: panel.title)
        ]
    return rows


def _apart(volume: Volume) -> bool:
    """Whether channels are pictures of their own, such as the sequences of MRI: several that are no colour."""
    return len(volume.array) > 1 and not (volume.spatial_dims == 2 and len(volume.array) == 3)


def _channels(volume: Volume) -> list[Volume]:
    return [volume.with_array(volume.array[number : number + 1]) for number in range(len(volume.array))]


def _heat(values: NDArray[np.float32], most: float) -> RGB:
    """(H, W), from 0 (dark) to `most` (bright) -> (H, W, 3)."""
    colours = matplotlib.colormaps["inferno"](np.clip(values / (most or 1.0), 0, 1))
    return np.rint(255 * colours[..., :3]).astype(np.uint8)


def _over(image: NDArray[Any], panel: Panel) -> RGB:
    """A map over the darkened image, the more of it the higher it is."""
    grey = 0.6 * (to_rgb(image) @ (0.299, 0.587, 0.114))[..., None]
    share = np.clip(panel.values / (panel.most or 1.0), 0, 1)[..., None]
    return np.rint((1 - share) * grey + share * _heat(panel.values, panel.most)).astype(np.uint8)


def _legend() -> list[tuple[str, tuple[int, int, int]]]:
    low, high = _heat(np.array([[0.05, 1.0]], np.float32), 1.0)[0]
    return [("low", tuple(low.tolist())), ("high", tuple(high.tolist()))]
