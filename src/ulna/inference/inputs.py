"""What a person hands to a segmenter, as a volume: files, arrays and tensors, with what they say about their place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ulna.data.formats.dicom.choosing import Wishes, series_in
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source, is_zarr, suffix_of
from ulna.data.pipeline.orientation import DIRECTIONS
from ulna.data.volume import Volume, spacing_text
from ulna.errors import UsageError, counted
from ulna.recipe import Plan

log = logging.getLogger("ulna")

_NUMBERS = "iufb"


def is_case(image: object) -> bool:
    """Whether a list holds the channel files of one case."""
    return isinstance(image, list | tuple) and bool(image) and all(isinstance(one, str | Path) for one in image)


def as_volume(
    image: Any, plan: Plan, spacing: Sequence[float] | None = None, affine: ArrayLike | None = None
) -> Volume:
    """One image for a plan.

    Args:
        image: a file, a folder of a DICOM series, the list of the channel files of one case, an array or a tensor
            ((*S), (C, *S) or (*S, C)), a volume.
        plan: of the run.
        spacing: of an array, in mm, along its spatial axes.
        affine: (4, 4) of an array, voxel index -> RAS mm.

    Raises:
        UsageError: if it cannot be read, is no image, or its place is stated twice in two ways.
    """
    if isinstance(image, Volume):
        return _placed(image, spacing, affine)
    if isinstance(image, str | Path) or is_case(image):
        files = [image] if isinstance(image, str | Path) else list(image)
        volume = _read(files, plan)
        return _placed(volume, spacing, affine)
    array = _channels_first(_numbers(image), plan)
    dims = plan.image_dims
    unplaced = Volume(array, (1.0,) * dims, "px")
    if spacing is not None or affine is not None:
        placed = _placed(unplaced, spacing, affine)
        if plan.orientation is not None and placed.affine is None:
            _note(f"an array without affine=: its axes are taken to run as {_axes(plan)}")
            return replace(placed, affine=assumed_affine(plan, placed.spacing))
        return placed
    if plan.format == 1:  # as it was
        return replace(unplaced, spacing=plan.spacing or (1.0,) * dims, unit=plan.unit)
    sized = len(plan.sized_axes) == dims and plan.orientation is None  # only its voxels count
    if plan.unit == "px" or plan.spacing is None or sized:
        return unplaced
    on_grid = "an array without spacing= or affine= is taken to lie on the grid of the training"
    along = f", its axes along {_axes(plan)}" if plan.orientation else ""
    _note(f"{on_grid}, {spacing_text(plan.spacing)}{along}")
    grid = assumed_affine(plan, plan.spacing) if plan.orientation else None
    return Volume(array, plan.spacing, plan.unit, grid)


def _note(text: str) -> None:
    log.warning("note: %s", text)


def assumed_affine(plan: Plan, spacing: Sequence[float]) -> NDArray[np.float64]:
    """The affine (4, 4) of an array with this spacing whose axes run as the network sees them."""
    worlds, affine = _worlds(plan), np.eye(4)
    affine[:, :3] = affine[:, [*worlds, *(set(range(3)) - set(worlds))]]  # a slice is flat along the last one
    return affine @ np.diag([*(*spacing, 1.0)[:3], 1.0])


def _worlds(plan: Plan) -> list[int]:
    """The world axes that the axes which the network sees go along."""
    return list(plan.fingerprint.worlds or range(3))[: plan.image_dims]


def _axes(plan: Plan) -> str:
    """The axes that the network sees, in words."""
    return ", ".join(DIRECTIONS[world] for world in _worlds(plan))


def _read(files: Sequence[str | Path], plan: Plan) -> Volume:
    for file in files:
        if suffix_of(file) == ".npz":
            raise UsageError(f"{file}: holds many images; predict it with `ulna predict`, or give one as an array")
    sources = [source for file in files for source in _sources(Path(file), plan)]
    volume = read_image(sources, plan.image_dims)
    if len(sources) == 1 and volume.channels == 1 < plan.in_channels and not plan.colour:
        raise UsageError(
            f"{files[0]}: 1 channel; this model reads {plan.in_channels} ({', '.join(plan.channel_names)}); give the channel "
            "files of a case as a list in the list: segment([[file_0, file_1]])"
        )
    return volume


def channels_of(plan: Plan) -> tuple[str, ...]:
    """What the DICOM series of a case are called that are the channels of a training; nothing for one channel."""
    return tuple(plan.channel_names) if plan.in_channels > 1 else ()


def _sources(path: Path, plan: Plan) -> list[Source]:
    """A file, or OME-Zarr; or the series of a folder of DICOM files: those that are the channels of a run of several."""
    if not path.is_dir() or is_zarr(path):
        return [Source(path)]
    found, said = series_in(path, Wishes(channels=channels_of(plan)))
    if said:
        _note(said)
    return found


def _placed(volume: Volume, spacing: Sequence[float] | None, affine: ArrayLike | None) -> Volume:
    """The volume where it is said to lie; a file that says so itself is not overruled."""
    if spacing is None and affine is None:
        return volume
    name = volume.path or "image"
    if volume.unit != "px":
        own = spacing_text(volume.spacing)
        raise UsageError(f"{name}: states its own spacing, {own}; leave spacing= and affine= out")
    dims = volume.spatial_dims
    given = None if spacing is None else _lengths(spacing, dims)
    if affine is None:
        assert given is not None
        return replace(volume, spacing=given, unit="mm")
    matrix = np.asarray(affine, dtype=np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-12:
        raise UsageError("affine=: expected a regular (4, 4) matrix, voxel index -> RAS mm")
    lengths = tuple(float(f"{n:.7g}") for n in np.linalg.norm(matrix[:3, :dims], axis=0))
    if given is not None and not np.allclose(given, lengths, rtol=1e-3):
        raise UsageError(f"spacing= says {spacing_text(given)}, affine= {spacing_text(lengths)}; give one of them")
    return replace(volume, spacing=lengths, unit="mm", affine=matrix)


def _lengths(spacing: Sequence[float], dims: int) -> tuple[float, ...]:
    try:
        lengths = tuple(float(length) for length in np.atleast_1d(np.asarray(spacing, dtype=np.float64)))
    except (TypeError, ValueError):
        lengths = ()
    if len(lengths) != dims or not all(0 < length < np.inf for length in lengths):
        raise UsageError(f"spacing={spacing}: expected {dims} lengths in mm, one for each spatial axis")
    return lengths


def _numbers(image: Any) -> NDArray[Any]:
    """An array of numbers; tensors are detached, and types that numpy lacks become float32."""
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise UsageError("a tensor of another layout than strided; give a dense one")
        array = tensor.resolve_conj().resolve_neg().numpy()
    else:
        array = np.asarray(image)
    if array.dtype.kind not in _NUMBERS:
        raise UsageError(f"an array of type {array.dtype}; give integers or real numbers")
    return array


def _channels_first(array: NDArray[Any], plan: Plan) -> NDArray[Any]:
    """(C, *S) of an array with its channels first, last, or none; the alpha of a colour picture is dropped, as for files."""
    dims, channels = plan.image_dims, plan.in_channels
    if array.ndim == dims and channels == 1:
        return array[None]
    if array.ndim == dims + 1:
        if array.shape[0] == channels:
            return array
        if array.shape[-1] == channels:
            return np.moveaxis(array, -1, 0)
        if dims == 2 and channels == 3 and array.shape[-1] == 4:
            _note(f"an array of shape {array.shape}: its fourth channel is taken for alpha and dropped")
            return np.moveaxis(array[..., :3], -1, 0)
        found = min(array.shape[0], array.shape[-1])
        raise UsageError(
            f"an array of shape {array.shape}: {counted(found, 'channel')}; this model reads {channels} "
            f"({', '.join(plan.channel_names)}), and arrays are (C, *S) or (*S, C){_how(array, plan)}"
        )
    raise UsageError(
        f"an array of shape {array.shape}; this model reads (C, *S) with C = {channels} and {dims} spatial axes"
        f"{_how(array, plan)}"
    )


def _how(array: NDArray[Any], plan: Plan) -> str:
    """How a grey array is given to a network of colour pictures, and the reverse; empty for other arrays."""
    if plan.image_dims != 2:
        return ""
    if plan.in_channels == 3 and (array.ndim == 2 or (array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]))):
        return "; a grey picture is given as colour by numpy.stack([grey] * 3)"
    if plan.in_channels == 1 and array.ndim == 3 and array.shape[-1] == 3:
        return "; a picture in colour is given as grey by picture @ [0.299, 0.587, 0.114]"
    return ""
