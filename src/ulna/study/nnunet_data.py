"""A data set in nnU-Net's layout: one NIfTI file a channel and a label map a case, dataset.json, and the split as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from numpy.typing import NDArray

from ulna.data.layout.case import Case, read_reference
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError, printable
from ulna.recipe import Plan, Split
from ulna.system.files import write_text, write_whole
from ulna.system.outputs import make_folder

ENDING = ".nii.gz"
PICTURE = 999.0  # of the one slice of a picture: coarser than its pixels, so that nnU-Net takes it for a slice
DATASET_FILE = "dataset.json"  # written last: with it, the folder is whole


def names_of(cases: Sequence[Case]) -> dict[str, str]:
    """Ids of cases -> names of files: ids may hold signs that those do not, or ends that nnU-Net reads as channels."""
    return {case.id: f"case_{number:04d}" for number, case in enumerate(sorted(cases, key=lambda case: case.id))}


def write_dataset(folder: Path, dataset: Dataset, plan: Plan, split: Split) -> None:
    """Fill a folder `DatasetNNN_...` with the cases of a split; those kept for the end lie apart, without labels.

    Raises:
        UsageError: if a case cannot be read, or the folder cannot be written.
    """
    if (folder / DATASET_FILE).exists():
        return
    names = names_of(dataset.cases)
    for case in dataset.cases_of((*split.train, *split.val)):
        volume = _write_image(case, folder / "imagesTr", names[case.id], plan)
        reference = read_reference(case, volume, plan)
        _write(folder / "labelsTr" / f"{names[case.id]}{ENDING}", reference.astype(np.uint16), volume.spacing)
    for case in dataset.cases_of(split.test or split.val):
        _write_image(case, folder / "imagesTs", names[case.id], plan)
    labels: dict[str, Any] = {name: number for number, name in enumerate(plan.labels.names)}
    if plan.labels.ignored is not None:
        labels["ignore"] = plan.labels.ignored
    told = {
        "channel_names": {str(number): name for number, name in enumerate(plan.channel_names)},
        "labels": labels,
        "numTraining": len(split.train) + len(split.val),
        "file_ending": ENDING,
    }
    write_text(folder / "cases.json", json.dumps({name: case for case, name in names.items()}, indent=1))
    write_text(folder / DATASET_FILE, json.dumps(told, indent=1))


def splits_of(split: Split, dataset: Dataset) -> list[dict[str, list[str]]]:
    """splits_final.json: the one split, as fold 0."""
    names = names_of(dataset.cases)
    return [{part: [names[case] for case in getattr(split, part)] for part in ("train", "val")}]


def read_mask(path: Path, reference: NDArray[Any]) -> NDArray[Any]:
    """A mask that nnU-Net wrote, on the grid of its reference.

    Raises:
        UsageError: if it is missing, or has another grid.
    """
    try:
        array = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
    except (OSError, ValueError, ImageFileError) as error:
        raise UsageError(
            f"{printable(path)}: nnU-Net's mask cannot be read ({printable(error)}); call compare again"
        ) from None
    array = array[..., 0] if array.ndim == reference.ndim + 1 else array
    if array.shape != reference.shape:
        raise UsageError(f"{printable(path)}: has the size {array.shape}, its reference {reference.shape}")
    return array.round().astype(reference.dtype)


def _write_image(case: Case, folder: Path, name: str, plan: Plan) -> Any:
    volume = case.read_image()
    if volume.channels != len(plan.channel_names):
        raise UsageError(
            f"case {printable(case.id)}: has {volume.channels} channels, the others {len(plan.channel_names)}"
        )
    for number, channel in enumerate(volume.array):
        _write(folder / f"{name}_{number:04d}{ENDING}", channel.astype(np.float32), volume.spacing)
    return volume


def _write(path: Path, array: NDArray[Any], spacing: Sequence[float]) -> None:
    """Along the axes of the file, with the spacing and no orientation: nnU-Net reads no more of it."""
    steps = [float(step) for step in spacing]
    if array.ndim == 2:
        array, steps = array[..., None], [*steps, PICTURE * max(steps)]
    image = nibabel.Nifti1Image(array, np.diag([*steps, 1.0]))  # type: ignore[no-untyped-call]
    make_folder(path.parent)
    write_whole(path, lambda part: nibabel.save(image, part))  # type: ignore[attr-defined]
