"""From an upload to its mask, in the worker: what was sent is read, predicted, and written with what is said of it."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ulna.data.formats.dicom.choosing import Wishes, series_in
from ulna.data.formats.limits import allowing, check_pixels
from ulna.data.formats.npz import npz_contents
from ulna.data.formats.read import read_image
from ulna.data.formats.source import ARRAY_SUFFIX, DICOM_SUFFIX, Source, data_error
from ulna.data.formats.write import write_image, write_labels, write_npz_masks
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.result import check_numbered
from ulna.recipe import Plan
from ulna.serving.archive import unpack
from ulna.serving.engine import Answer, Engine
from ulna.serving.jobs import ANSWER
from ulna.system.files import write_text
from ulna.viewer.shown import OVERLAY, SHOWN, write_shown

Note = Callable[[str, float | None], object]
SERIES = "series"  # the folder that a zip is unpacked to
MASK, VIEW = "mask", "view"  # the names, without their endings, of what is handed out
NO_VIEWS = "what the page shows could not be made, for want of disk space or memory; the mask can be downloaded"


def answer_upload(
    engine: Engine, folder: Path, upload: str, format: str | None, setup: Mapping[str, Any], note: Note
) -> None:
    """Write the mask of an upload into `folder/result`, and last of all `answer.json` beside it.

    Args:
        engine: predicts.
        folder: of the job.
        upload: name of the file in it.
        format: of the mask, as of `predict --format`; None: that of the image.
        setup: the limits, as the server sends them.
        note: told the stage, and how much of it is done.

    Raises:
        UsageError: if it cannot be read, or does not fit.
    """
    began, path, result = time.monotonic(), folder / upload, folder / "result"
    result.mkdir(exist_ok=True)
    for left in result.iterdir():  # of a worker that died over it
        left.unlink()
    note("reading", None)
    with allowing(setup["pixels"], setup["ram"] / 1e9):
        if path.suffix == ARRAY_SUFFIX:
            told = _many(engine, path, format, result, setup, note)
        else:
            told = _one(engine, path, format, result, setup, note)
    shutil.rmtree(folder / SERIES, ignore_errors=True)
    told |= {"classes": list(engine.plan.labels.foreground), "seconds": round(time.monotonic() - began, 3)}
    write_text(result / ANSWER, json.dumps(told))


def _one(
    engine: Engine, path: Path, format: str | None, result: Path, setup: Mapping[str, Any], note: Note
) -> dict[str, Any]:
    sources, said = _sources(path, engine.plan, setup)
    volume = read_image(sources, engine.plan.image_dims)
    if engine.numbered:
        check_numbered(volume, format)
    note("predicting", 0.0)
    answer = engine.segment(volume, lambda share: note("predicting", share))
    note("writing", None)
    written = write_labels(
        result / MASK, answer.in_file(format), volume, engine.names, format, keep_type=engine.numbered
    )
    told: dict[str, Any] = {"file": written.name, "size": list(volume.size), "notes": [*said, *volume.meta.notes]}
    told["trust"] = answer.trust
    try:
        told["view"] = _views(result, volume, answer, engine)
    except (OSError, UsageError, MemoryError):  # a full disk, say; the mask is there, whatever a browser can be shown
        for left in (*result.glob(f"{SHOWN}.*"), *result.glob(f"{OVERLAY}.*"), *result.glob(f"{VIEW}_*")):
            left.unlink(missing_ok=True)
        told["notes"].append(NO_VIEWS)
    return told


def _views(result: Path, volume: Volume, answer: Answer, engine: Engine) -> dict[str, Any]:
    """Image and mask for the page; of DICOM also as NIfTI for viewers that read no SEG, where the page has something else."""
    stacked = answer.mask.ndim > volume.spatial_dims
    told = write_shown(result, volume, answer.mask, len(engine.plan.labels.foreground), answer.objects)
    plain = told["dims"] == 3 and volume.channels == 1 and not stacked and not engine.numbered
    if volume.meta.format != "dicom" or volume.affine is None or plain:
        return told | {"image": told[SHOWN], "mask": told[OVERLAY]}
    image = write_image(result / f"{VIEW}_image", volume)
    shown = answer.in_file("nifti")
    mask = write_labels(result / f"{VIEW}_mask", shown, volume, None, "nifti", keep_type=engine.numbered)
    return told | {"image": image.name, "mask": mask.name}


def _sources(path: Path, plan: Plan, setup: Mapping[str, Any]) -> tuple[Sequence[Source], list[str]]:
    """What an upload holds, and what is to be said of the choice."""
    wishes = Wishes(channels=tuple(plan.channel_names) if plan.in_channels > 1 else ())
    if path.suffix == DICOM_SUFFIX:
        found, said = series_in(path, wishes)
    elif path.suffix == ".zip":
        found, said = series_in(unpack(path, path.parent / SERIES, setup), wishes)
    else:
        return [Source(path)], []
    return found, [said] if said else []


def _many(
    engine: Engine, path: Path, format: str | None, result: Path, setup: Mapping[str, Any], note: Note
) -> dict[str, Any]:
    """All images of an npz, to an npz of their masks."""
    contents, dims = npz_contents(path), engine.plan.image_dims
    if contents.images is None:
        raise data_error(path, "holds no `images`", "save `images` (N, *S[, C])")
    check_pixels(path, contents.images)
    if format is not None:
        raise UsageError("masks of an .npz are written as one .npz; leave the format out")
    masks, cases = [], []
    count = len(contents.ids)
    for row, case in enumerate(contents.ids):
        volume = read_image([Source(path, row)], dims)
        note("predicting", row / count)
        answer = engine.segment(volume, lambda _: None)
        masks.append(answer.in_file(None))
        cases.append({"case": case, "size": list(volume.size), "trust": answer.trust})
    written = write_npz_masks(
        result / f"{MASK}.npz", np.stack(masks), contents.ids, multilabel=engine.plan.labels.stacked
    )
    return {"file": written.name, "notes": [], "cases": cases}
