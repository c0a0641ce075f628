"""The probabilities that `predict --probabilities` wrote beside its masks, brought onto the grid of their reference."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.onto import onto_grid
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source, data_error, is_zarr, readable
from ulna.data.turning import orientation_of, upright
from ulna.data.volume import Volume, same_geometry
from ulna.recipe import Labels

ENDINGS = ("_probabilities.nii.gz", "_probabilities.npz")


def probability_files(predictions: Path, cases: Iterable[str]) -> dict[str, Path]:
    """Case -> the file of its probabilities, of those that have one in the folder of the masks."""
    folder = predictions if predictions.is_dir() and not is_zarr(predictions) else predictions.parent
    places = {case: [folder / f"{case}{ending}" for ending in ENDINGS] for case in cases}
    found = {case: next((path for path in paths if path.is_file()), None) for case, paths in places.items()}
    return {case: path for case, path in found.items() if path is not None}


def read_probabilities(path: Path, labels: Labels, mask: Volume) -> NDArray[Any]:
    """(K, *S), the probability of every structure; the background is left out.

    Args:
        path: of `probability_files`.
        labels: the structures.
        mask: the one beside it, on the grid of its reference; an .npz lies on the stored pixels of its file.

    Raises:
        DataError: if the file is damaged, lies on another grid, or holds something else.
    """
    size, elsewhere = mask.size, False
    if path.suffix == ".npz":
        maps = upright(_array(path), orientation_of(mask))
    else:
        placed = onto_grid(_of_volume(read_image([Source(path)]), size), mask)
        maps, elsewhere = placed.array, not same_geometry(placed, mask)
    structures = len(labels.foreground)
    kinds = {structures} if labels.multilabel or structures == 1 else set()
    kinds |= set() if labels.multilabel else {structures + 1}  # a softmax has the background first
    if maps.shape[1:] != size or len(maps) not in kinds:
        what = f"holds maps of shape {maps.shape}, not one of {size} for each of {structures} structures"
        raise data_error(path, what, "predict again with --probabilities, or leave calibration out of --metrics")
    if elsewhere:
        what = "has another orientation, origin or spacing (affine) than its mask"
        raise data_error(path, what, "predict again with --probabilities, or leave calibration out of --metrics")
    maps = maps[-structures:]
    if not np.isfinite(maps).all() or maps.min(initial=0) < -1e-6 or maps.max(initial=0) > 1 + 1e-6:
        raise data_error(
            path, "holds values that are no probabilities from 0 to 1", "predict again with --probabilities"
        )
    return np.clip(maps, 0, 1)


def _array(path: Path) -> NDArray[Any]:
    try:
        with readable(path), np.load(path, allow_pickle=False) as file:
            maps = file["probabilities"]
    except (KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise data_error(path, f"holds no `probabilities` ({error})", "predict again with --probabilities") from None
    if maps.dtype.kind != "f" or maps.ndim < 3:
        raise data_error(path, f"`probabilities` are {maps.dtype} of shape {maps.shape}", "save (K, *S) as float32")
    return np.asarray(maps)


def _of_volume(volume: Volume, size: tuple[int, ...]) -> Volume:
    """Of a 2D image the file has one slice."""
    maps = volume.array
    if maps.ndim == len(size) + 1 or maps[0].size != np.prod(size):
        return volume
    return replace(volume, array=maps.reshape((len(maps), *size)), spacing=volume.spacing[: len(size)])
