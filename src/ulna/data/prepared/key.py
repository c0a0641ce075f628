"""What an entry stands for: a digest of all that a prepared case is made from, and of nothing else.

That are the bytes of its files, how they are read, what a plan says of preparing, and which code does it. What is not known
to be all of it has no key, and is not kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import tifffile
import torch

import ulna
from ulna.data.formats.source import TIFF_SUFFIXES, Source, is_zarr, suffix_of
from ulna.data.layout.case import Case
from ulna.data.prepared.contents import Contents, members
from ulna.recipe import Plan
from ulna.version import version

FORMAT = 1  # of entries; a digest of the code that reads and prepares stands beside it
Form = tuple[int, ...]  # empty: the image as a whole; (axis, neighbours): a stack of its slices

# of `ulna`: whatever the values of a prepared case go through
_CODE = (
    "data/formats", "data/pipeline", "data/volume.py", "data/turning.py", "data/layout/case.py", "data/prepared",
    "recipe/labels.py", "training/samples.py", "training/slices.py",
)  # fmt: skip
_LIBRARIES = (
    "torch",
    "numpy",
    "scipy",
    "nibabel",
    "pillow",
    "tifffile",
    "pydicom",
    "highdicom",
    "pylibjpeg",
    "pylibjpeg-openjpeg",
    "zarr",
    "numcodecs",
)


def key_of(case: Case, plan: Plan, form: Form, contents: Contents) -> str | None:
    """The name of the entry of a case; None for what has none: a case without a reference, a folder that may hold more.

    Raises:
        UsageError: if a file cannot be read.
    """
    if case.label is None or not all(map(_all_is_known, (*case.images, case.label))):
        return None
    facts = {
        "format": FORMAT,
        "code": _code(),
        "form": form,
        "case": {
            "dims": case.spatial_dims,
            "images": [_of_source(source, contents) for source in case.images],
            "label": _of_source(case.label, contents),
        },
        "plan": _of_plan(plan),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:40]


def files_of(case: Case) -> tuple[Path, ...]:
    """All files that a case is read from."""
    sources = (*case.images, *((case.label,) if case.label else ()))
    grids = (file for source in sources if source.series is not None for file in source.series.grid)
    return tuple(dict.fromkeys((*(file for source in sources for file in source.files), *grids)))


def _all_is_known(source: Source) -> bool:
    """Whether no file is read but those that the source names, or that lie in its folder of masks."""
    path = source.path
    if source.series is not None:
        return True
    if is_zarr(path):
        return True
    if path.is_dir():
        return all(one.is_file() and _is_alone(one) for one in path.iterdir())
    return _is_alone(path)


def _is_alone(path: Path) -> bool:
    """Whether a file holds its own values: an OME-TIFF may name others that hold a part of them."""
    if suffix_of(path) not in TIFF_SUFFIXES:
        return True
    try:
        with tifffile.TiffFile(path) as file:
            said = (file.ome_metadata or "") if file.is_ome else ""
    except Exception:  # tifffile raises nearly every type on damaged files; the reader says what is wrong
        return False
    return "MetadataFile=" not in said and {*re.findall(r'FileName="([^"]*)"', said)} <= {path.name}


def _of_source(source: Source, contents: Contents) -> dict[str, Any]:
    series = source.series
    # readers go by the ending
    files = [[suffix_of(path), _endings(path), contents.of(path)] for path in source.files]
    if series is None:
        return {"files": files, "row": source.row}
    grid = [contents.of(path) for path in series.grid]
    return {"files": files, "grid": grid, "read": [series.fixes, series.structures, series.overlapping]}


def _endings(path: Path) -> list[str]:
    return [] if is_zarr(path) else [suffix_of(one) for one in members(path)]


def _of_plan(plan: Plan) -> dict[str, Any]:
    """What preparing reads of a plan."""
    own = plan.fingerprint.spacing
    return {
        "format": plan.format,
        "dims": plan.image_dims,
        "channels": plan.in_channels,
        "labels": plan.labels.model_dump(mode="json"),
        "orientation": plan.orientation,
        "spacing": plan.spacing,
        "unit": plan.unit,
        "kept": plan.kept_axes,
        "size": plan.size,
        "crop": plan.crop,
        "normalization": [one.model_dump(mode="json") for one in plan.normalization],
        "whitening": None
        if plan.whitening is None
        else [plan.whitening.model_dump(mode="json"), torch.get_num_threads()],
        # whether an image without a spacing is refused
        "one spacing": own.min == own.max,
    }


@cache
def _code() -> list[str]:
    """Which code prepares: its own, that of the libraries, and the instructions of the processor, which change last bits."""
    root, whole = Path(ulna.__file__).parent, hashlib.sha256()
    for place in _CODE:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            if file.is_file():  # an installation without its sources goes by the version alone
                whole.update(f"{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    versions = []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {version_of(name)}")
        except PackageNotFoundError:
            versions.append(f"{name} -")
    return [version("ulna"), whole.hexdigest(), torch.backends.cpu.get_cpu_capability(), *versions]
