"""Segmenter: what a run folder holds, ready to predict; and the verb that predicts a folder."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ulna.blocks import nd
from ulna.data.case import Case
from ulna.data.dataset import Dataset
from ulna.data.read import Source, case_name, read_image, suffix_of, write_labels, write_npz_masks, write_probabilities
from ulna.errors import PartialFailure, UsageError, unknown
from ulna.files import read_tensors, write_text
from ulna.inference.arithmetic import choose_precision, default_device
from ulna.inference.predict import predict_volume, to_labels
from ulna.networks.build import from_architecture
from ulna.networks.network import Network
from ulna.progress import track
from ulna.recipe import Plan, Recipe, Split, from_yaml, parse
from ulna.volume import Volume

log = logging.getLogger(__name__)

PREDICT_FILE = "predict.json"


@dataclass(frozen=True, eq=False)
class Result:
    """One segmented image.

    Args:
        mask: (*S), class indices in the smallest unsigned type; (K, *S) of 0 and 1 for overlapping classes.
        probabilities: (K, *S), float32; one map for a single structure.
        volume: the image, with its geometry.
    """

    mask: NDArray[Any]
    probabilities: NDArray[np.float32]
    volume: Volume

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along every axis of `mask`, in mm, or px where the file states none."""
        return self.volume.spacing

    @property
    def affine(self) -> NDArray[np.float64] | None:
        """(4, 4), index in `mask` -> RAS mm; None where the file has none."""
        return self.volume.affine

    def save(self, path: str | Path) -> Path:
        """Write the mask in the image's own format and geometry; the ending is added. Returns the file."""
        path = Path(path)
        return write_labels(path.with_name(case_name(path)), self.mask, self.volume)


class Segmenter:
    """A trained network with the plan and the recipe that it needs.

    Example:
        segment = ulna.load("runs/a")
        segment("scan.nii.gz").save("scan_mask")
    """

    def __init__(self, network: Network, plan: Plan, recipe: Recipe, device: torch.device | None = None) -> None:
        self.device = device or default_device()
        self.network = network.eval().to(self.device)
        self.network.to(memory_format=nd.layout(plan.spatial_dims, channels_last=True))  # type: ignore[call-overload]
        self.plan, self.recipe = plan, recipe
        self.precision = choose_precision(recipe.training.precision, self.device)

    @classmethod
    def load(cls, run: str | Path) -> Segmenter:
        """Read a run folder; no code in it is ever run.

        Raises:
            UsageError: if the folder is not a finished or started run, or is damaged.
        """
        run = Path(run)
        if not (run / "recipe.yaml").exists():
            raise UsageError(f"{run}: not a run folder (no recipe.yaml); give the folder that `ulna train` wrote")
        recipe, plan = from_yaml(Recipe, run / "recipe.yaml"), from_yaml(Plan, run / "plan.yaml")
        if not (run / "weights.safetensors").exists():
            raise UsageError(
                f"{run}: holds no weights yet; wait for the first epoch, or go on with ulna train --resume"
            )
        network = network_for(recipe, plan)
        weights = read_tensors(run / "weights.safetensors").tensors
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise UsageError(
                f"{run}: weights.safetensors does not fit recipe.yaml ({str(error).splitlines()[1].strip()})"
            ) from None
        return cls(network, plan, recipe)

    def __call__(self, image: str | Path | NDArray[Any] | Volume | Sequence[Any]) -> Any:
        """Segment a file, an array (C, *S) (or (*S), or (H, W, C) colour), a volume, or a list of these.

        Returns:
            A Result; a list of them for a list.

        Raises:
            UsageError: if an image cannot be read or does not fit the plan.
        """
        if isinstance(image, list | tuple):
            return [self(one) for one in image]
        volume = self._volume(image)
        probabilities = self.probabilities(volume)
        mask = to_labels(probabilities, self.plan.labels, self.recipe.inference.threshold)
        return Result(mask, probabilities.numpy(), volume)

    def probabilities(self, volume: Volume) -> Tensor:
        """Volume (C, *S) -> probabilities (K, *S), float32, on the volume's grid."""
        return predict_volume(
            self.network,
            self.plan,
            volume,
            settings=self.recipe.inference,
            device=self.device,
            precision=self.precision,
        )

    def _volume(self, image: Any) -> Volume:
        if isinstance(image, Volume):
            return image
        if isinstance(image, str | Path) and suffix_of(image) == ".npz":
            raise UsageError(f"{image}: holds many images; predict it with `ulna predict`, or give one as an array")
        if isinstance(image, str | Path):
            return read_image([Source(Path(image))])
        array, dims, channels = np.asarray(image), self.plan.spatial_dims, self.plan.in_channels
        if array.ndim == dims and channels == 1:
            array = array[None]
        elif array.ndim == dims + 1 and array.shape[0] != channels and array.shape[-1] == channels:
            array = np.moveaxis(array, -1, 0)
        if array.ndim != dims + 1:
            raise UsageError(
                f"an array of shape {np.shape(image)}; this model reads (C, *S) with C = {channels} and {dims} spatial axes"
            )
        return Volume(array, self.plan.spacing or (1.0,) * dims, self.plan.unit)


def load(run: str | Path) -> Segmenter:
    """Read a run folder and get a segmenter: `ulna.load("runs/a")("scan.nii.gz").mask`."""
    return Segmenter.load(run)


def network_for(recipe: Recipe, plan: Plan, generator: torch.Generator | None = None) -> Network:
    """The network of a resolved recipe."""
    return from_architecture(
        recipe.architecture,
        in_channels=plan.in_channels,
        classes=plan.labels.outputs,
        spatial_dims=plan.spatial_dims,
        multilabel=plan.labels.multilabel,
        generator=generator,
    )


@dataclass(frozen=True)
class Predictions:
    """What `predict` wrote: the folder, and a row for every case."""

    folder: Path
    cases: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": str(self.folder), "cases": self.cases}


def predict(
    run: Path | str,
    data: Path | str,
    /,
    *,
    out: Path | str,
    split: str | None = None,
    tta: bool = False,
    probabilities: bool = False,
) -> Predictions:
    """Segment images with a trained run; masks come back in the input's own format, geometry and name.

    Args:
        run: a run folder of `ulna train`.
        data: an image, a folder of images, a data set, or an .npz file.
        out: folder for the masks and predict.json.
        split: only the cases of this part of the run's own split: train, val or test.
        tta: average over mirrored copies of every image: slower, sometimes better.
        probabilities: also write the probabilities.

    Raises:
        UsageError: if the run or the input cannot be used.
        PartialFailure: if some cases failed; the others are written.

    Example:
        ulna predict runs/nuclei-unetpp data/new --out masks
    """
    run, data, out = Path(run), Path(data), Path(out)
    segmenter = Segmenter.load(run)
    if tta:
        changed = segmenter.recipe.inference.replaced(tta=True)
        segmenter.recipe = segmenter.recipe.replaced(inference=changed)
    dataset = Dataset.from_folder(data, need_labels=False, channels=segmenter.plan.in_channels)
    cases = dataset.cases if split is None else _part(dataset, read_split(run), split)
    _make_folder(out, cases)

    rows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    arrays: dict[Path, list[tuple[str, NDArray[Any]]]] = {}
    try:
        for case in track(cases, "predicting"):
            start = time.perf_counter()
            try:
                result = segmenter(case.read_image())
                file = _write(case, result, out, arrays, probabilities)
            except (UsageError, MemoryError, RuntimeError) as error:
                failed[case.id] = _reason(error)
                continue
            seconds = round(time.perf_counter() - start, 3)
            rows.append({"case": case.id, "file": file, "size": list(result.volume.size), "seconds": seconds})
    finally:  # what is done is kept, also when a person stops the rest
        for source, masks in arrays.items():
            ids, stacked = [name for name, _ in masks], np.stack([mask for _, mask in masks])
            write_npz_masks(out / source.name, stacked, ids, multilabel=segmenter.plan.labels.multilabel)
        facts = {
            "model": segmenter.recipe.model,
            "run": run.resolve().name,
            "labels": segmenter.plan.labels.model_dump(mode="json"),
            "tta": tta,
            "asked": [case.id for case in cases],
            "cases": rows,
            "failed": failed,
        }
        write_text(out / PREDICT_FILE, json.dumps(facts, indent=1))
    if failed and not rows:
        raise UsageError("no case could be predicted\n" + "\n".join(f"  {c}: {why}" for c, why in failed.items()))
    if failed:
        raise PartialFailure(failed, len(rows))
    return Predictions(out, rows)


def read_split(run: Path) -> Split:
    """The split of a run.

    Raises:
        UsageError: if splits.json is missing or damaged.
    """
    path = run / "splits.json"
    try:
        return parse(Split, json.loads(path.read_text(encoding="utf-8")), source=str(path))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; the run folder is not complete") from None
    except ValueError as error:
        raise UsageError(f"{path}: damaged ({error}); restore it or train again") from None


def _part(dataset: Dataset, split: Split, part: str) -> tuple[Case, ...]:
    if part not in Split.model_fields:
        raise UsageError(f"--split: {unknown('part of a split', part, Split.model_fields)}")
    wanted = set(getattr(split, part))
    cases = tuple(case for case in dataset.cases if case.id in wanted)
    if not cases:
        raise UsageError(f"--split {part}: none of the run's {len(wanted)} {part} cases stand in {dataset.root}")
    return cases


def _make_folder(out: Path, cases: Sequence[Case]) -> None:
    """Make the folder for the masks; never one that holds the images, the references or a run."""
    taken = {source.path.resolve().parent for case in cases for source in (*case.images, case.label) if source}
    if out.resolve() in taken or (out / "recipe.yaml").exists():
        raise UsageError(
            f"{out}: holds the images, the references or a run, which masks could replace; choose another --out"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out}: cannot be made ({error.strerror}); choose another --out") from None


def _reason(error: Exception) -> str:
    """Why a case failed. A RuntimeError of torch counts only where it is the memory that ran out."""
    text = str(error)
    if isinstance(error, MemoryError) or "memory" in text.lower():
        return "out of memory; predict on a machine with more, or train with a smaller planning.patch"
    if not isinstance(error, UsageError):
        raise error
    return text


def _write(
    case: Case, result: Result, out: Path, arrays: dict[Path, list[tuple[str, NDArray[Any]]]], probabilities: bool
) -> str:
    """Write one mask, or keep it for the npz that its image came from."""
    source = case.images[0]
    if probabilities:
        write_probabilities(out / f"{case.id}_probabilities", result.probabilities, result.volume)
    if source.row is not None:
        arrays.setdefault(source.path, []).append((case.id, result.mask))
        return source.path.name
    return write_labels(out / case.id, result.mask, result.volume).name
