"""Arrays in a file: `.npz` with `images` (N, *S) or (N, *S, C) and, where they have names, `ids` (N). A row is an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna_runtime.errors import UsageError
from ulna_runtime.volume import Volume


def read_rows(path: Path, dims: int) -> dict[str, Volume]:
    """Id -> image, in pixels; `FILE_0007` where the file names none.

    Raises:
        UsageError: if it holds no images of those dimensions, or its arrays do not fit each other.
    """
    with np.load(path, allow_pickle=False) as file:
        if "images" not in file:
            raise UsageError(f"{path}: holds no `images`; save `images` (N, *S) or (N, *S, C)")
        images = file["images"]
        ids = [str(one) for one in file["ids"].ravel()] if "ids" in file else None
    if images.dtype.kind not in "iufb" or images.ndim not in (dims + 1, dims + 2) or not images.size:
        shape = f"{images.shape} and type {images.dtype}"
        raise UsageError(f"{path}: has `images` of shape {shape}; save numbers of shape (N, *S) or (N, *S, C)")
    stem = path.name[: -len(path.suffix)]
    names = [f"{stem}_{row:04d}" for row in range(len(images))] if ids is None else ids
    if len(names) != len(images) or len(set(names)) < len(names):
        raise UsageError(
            f"{path}: has {len(names)} ids for {len(images)} images, or one twice; give every image its own"
        )
    rows = images[:, None] if images.ndim == dims + 1 else np.moveaxis(images, -1, 1)
    return {
        name: Volume(np.ascontiguousarray(row), (1.0,) * dims, "px", None, path, ".npz", name)
        for name, row in zip(names, rows, strict=True)
    }


def write_rows(path: Path, masks: Sequence[NDArray[Any]], ids: Sequence[str], *, several: bool) -> None:
    """`masks` (N, *S) and `ids` (N); of `several` maps an image (N, *S, K), with a mark that says so."""
    stacked, names = np.stack(masks), np.asarray(list(ids), np.str_)
    with path.open("wb") as file:
        if several:
            np.savez_compressed(file, masks=np.moveaxis(stacked, 1, -1), ids=names, multilabel=np.True_)
        else:
            np.savez_compressed(file, masks=stacked, ids=names)
