"""What is told of a case when it is done, or has failed."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ulna.data.formats.dicom.verified import LEAST_DICE
from ulna.data.formats.limits import is_memory_error
from ulna.data.formats.npz import npz_contents
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.data.layout.case import Case
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.result import Result
from ulna.system.trees import stamp

log = logging.getLogger(__name__)


def verified(masks: Mapping[str | None, Path], volume: Volume) -> dict[str, str]:
    """File -> how it was compared with the mask after it was written, for those that were."""
    own = "seg" if volume.meta.format == "dicom" else ""
    how = {
        "seg": "read again, equal voxel by voxel",
        "rtstruct": f"read again, Dice at least {LEAST_DICE:g} and equal volume",
    }
    return {path.name: how[kind] for format, path in masks.items() if (kind := format or own) in how}


def row_of(path: Path, case: str, multilabel: bool) -> NDArray[Any]:
    """The mask of a case in an npz that `predict` wrote: (*S), or (K, *S) where classes overlap."""
    array = read_labels(Source(path, npz_contents(path).ids.index(case))).array
    return array if multilabel else array[0]


def reason(error: Exception) -> str:
    """Why a case failed. What is not the user's doing is a defect, unless it is the memory that ran out."""
    text = str(error)
    if isinstance(error, UsageError):
        return text
    if is_memory_error(error):
        return "out of memory; predict on a machine with more, or train with a smaller planning.patch"
    log.error("%s", traceback.format_exc())
    return f"a defect of ulna, please report it ({type(error).__name__}: {text})"


def bytes_of(result: Result) -> int:
    """Of a result, its image included."""
    maps = 0 if result.probabilities is None else result.probabilities.nbytes
    return result.mask.nbytes + maps + result.volume.array.nbytes


def file_bytes(case: Case) -> int:
    """Of its images; 0 where one cannot be seen, which is told when it is read."""
    try:
        return sum(stamp(file)[1] for source in case.images for file in source.files)
    except OSError:
        return 0
