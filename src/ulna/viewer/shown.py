"""An image and its mask as a browser shows them: PNG in 2D, NIfTI in 3D; without torch and without matplotlib."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ulna.data.formats.nifti_writing import write_nifti
from ulna.data.volume import Meta, Volume, label_dtype
from ulna.evaluation.colours import CLASS_COLOURS, to_rgb
from ulna.evaluation.views import view
from ulna.system.files import write_whole
from ulna.trust.windows import ct_window
from ulna.viewer.sets import joined

SHOWN, OVERLAY = "shown", "overlay"  # names of the files, without their endings
MOST_PIXELS = 24_000_000  # of a picture: what a browser holds several times over
SAMPLED = 1 << 20  # values that a window is found by
PLAIN = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "float32")  # NIfTI types that every viewer reads


def write_shown(
    folder: Path, volume: Volume, mask: NDArray[Any] | None, count: int, objects: NDArray[Any] | None = None
) -> dict[str, Any]:
    """Write image and mask for the page, and say how they are to be shown.

    Of a volume's channels the first is shown; a picture of more than `MOST_PIXELS` in every n-th pixel.

    Args:
        folder: for `shown` and `overlay`.
        volume: the image.
        mask: class indices (*S), or (K, *S) of overlapping classes; None shows the image alone.
        count: of classes.
        objects: (*S), numbers of the objects of the one class.

    Returns:
        Plain values: `dims`; `shown` and `overlay`, names of the files; `values`, the classes (from 0) of every value of the
        overlay, as they are drawn one over the other; `objects`, whether values tell objects apart and not classes;
        `sides`, the letters around a picture; `aspect`, how high its pixels are as a multiple of their width; `step`;
        `oriented`, whether the file says how it lies, so that letters may stand at the sides; `radiological`, whether it
        has a place, stated or assumed, and is turned as other pictures of ulna are; `window`, from which value (black) to
        which (white) a volume is shown; `ct`.
    """
    overlay, values = _overlay(mask, volume.spatial_dims, count, objects)
    told: dict[str, Any] = {"dims": volume.spatial_dims, "values": values, "objects": objects is not None}
    window = ct_window(volume, np.zeros(volume.size, np.uint8) if mask is None else mask)
    placed = volume.affine is not None
    told |= {"ct": window is not None, "oriented": placed and volume.meta.oriented, "radiological": placed}
    if volume.spatial_dims == 2:
        return told | _flat(folder, volume, overlay, window)
    return told | _deep(folder, volume, overlay, window)


def _overlay(
    mask: NDArray[Any] | None, dims: int, count: int, objects: NDArray[Any] | None
) -> tuple[NDArray[Any] | None, list[list[int]]]:
    if objects is not None:  # as many colours as there are
        colours = len(CLASS_COLOURS)
        shown = np.where(objects == 0, 0, 1 + (objects.astype(np.int64) - 1) % colours).astype(np.uint8)
        return shown, [[], *([0] for _ in range(colours))]
    if mask is None:
        return None, [[]]
    if mask.ndim > dims:
        return joined(mask)
    return mask, [[], *([number] for number in range(count))]


def _flat(folder: Path, volume: Volume, overlay: NDArray[Any] | None, window: Any) -> dict[str, Any]:
    seen = view(volume, *(() if overlay is None else (overlay,)))
    height, width = seen.image.shape[-2:]
    step = max(1, math.ceil(math.sqrt(height * width / MOST_PIXELS)))
    image = to_rgb(
        seen.image[..., ::step, ::step] if window is None else np.clip(seen.image, *window)[..., ::step, ::step]
    )
    _write_picture(folder / f"{SHOWN}.png", image)
    told: dict[str, Any] = {SHOWN: f"{SHOWN}.png", OVERLAY: None, "step": step}
    if overlay is not None:
        _write_picture(folder / f"{OVERLAY}.png", np.ascontiguousarray(seen.maps[0][::step, ::step]))
        told[OVERLAY] = f"{OVERLAY}.png"
    if seen.sides is None:
        return told | {"sides": None, "aspect": volume.spacing[0] / volume.spacing[1]}
    sides = seen.sides._asdict() if volume.meta.oriented else None
    return told | {"sides": sides, "aspect": seen.sides.aspect}


def _write_picture(path: Path, pixels: NDArray[Any]) -> None:
    write_whole(path, lambda file: Image.fromarray(pixels).save(file, format="PNG", compress_level=1))


def _deep(folder: Path, volume: Volume, overlay: NDArray[Any] | None, window: Any) -> dict[str, Any]:
    like, turn = _placed(volume)
    image = _plain(turn(volume.array[0]))
    told: dict[str, Any] = {SHOWN: f"{SHOWN}.nii.gz", OVERLAY: None, "step": 1}
    write_whole(folder / told[SHOWN], lambda file: write_nifti(file, image, like))
    if overlay is not None:
        told[OVERLAY] = f"{OVERLAY}.nii.gz"
        smallest = overlay.astype(label_dtype(int(overlay.max(initial=0))), copy=False)
        write_whole(folder / f"{OVERLAY}.nii.gz", lambda file: write_nifti(file, turn(smallest), like))
    return told | {"window": _window(image) if window is None else list(window), "sides": None, "aspect": 1.0}


def _placed(volume: Volume) -> tuple[Volume, Any]:
    """The volume with a place, and how its arrays are turned: without one, the last axis is across, the second down."""
    if volume.affine is not None:
        return replace(volume, meta=Meta()), lambda array: array
    affine = np.diag([volume.spacing[2], -volume.spacing[1], volume.spacing[0], 1.0])
    size, spacing = volume.size[::-1], volume.spacing[::-1]
    like = Volume(np.broadcast_to(np.zeros((), np.uint8), (1, *size)), spacing, "mm", affine)
    return like, lambda array: array.transpose(2, 1, 0)


def _plain(image: NDArray[Any]) -> NDArray[Any]:
    """Values of a type that every viewer reads, all of them finite."""
    if image.dtype.name in PLAIN[:-1]:
        return image
    with np.errstate(over="ignore"):
        values = image.astype(np.uint8 if image.dtype == bool else np.float32)
    finite = np.isfinite(values)
    if finite.all():
        return values
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    return np.nan_to_num(values, nan=low, posinf=high, neginf=low, copy=False)


def _window(image: NDArray[Any]) -> list[float]:
    """As other pictures are stretched: from 1 % to 99 % of the values; from the least to the largest where these are one."""
    step = max(1, round((image.size / SAMPLED) ** (1 / 3)))
    values = image[::step, ::step, ::step].astype(np.float64)
    low, high = np.percentile(values, (1, 99))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    return [float(low), float(high) if high > low else float(low) + 1.0]
