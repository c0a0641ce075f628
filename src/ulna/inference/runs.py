"""The runs that a prediction is made with: read as one, with the digest of just these weights, and their own split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError, counted, unknown
from ulna.inference.ensemble import Ensemble
from ulna.inference.levels import levels_of, named_level, pruned
from ulna.inference.loading import load
from ulna.inference.segmenter import Segmenter, read_split
from ulna.recipe import Split
from ulna.system.outputs import file_digest
from ulna.trust.calibration import CALIBRATION_FILE

MOST_LOADS = 3  # of a run whose training writes between two reads
OF_A_RUN = ("weights.safetensors", "plan.yaml", "recipe.yaml")


class Asked(NamedTuple):
    """What is asked of a network, in so far as it depends on no image.

    Args:
        runs: run folders and exported files; several make an ensemble.
        level: pruning level; None for the whole network.
        tta: average over mirrored copies.
        post_processing: False: masks as the network says them.
        instances: number the objects.
        allow_code: run the code of a network of one's own.
    """

    runs: tuple[Path, ...]
    level: int | None = None
    tta: bool = False
    post_processing: bool = True
    instances: bool = False
    allow_code: bool = False

    def load(self) -> tuple[Segmenter, str]:
        """The network, ready to predict, and the digest of its weights.

        Raises:
            UsageError: if a run cannot be read, or does not fit what is asked.
        """
        segmenter, digest = _loaded(self.runs, self.level, allow_code=self.allow_code)
        if not self.post_processing:
            segmenter = segmenter.unprocessed()
        if self.tta:
            segmenter = segmenter.mirrored()
        if self.instances or segmenter.instances is not None:
            segmenter = segmenter.numbering()
        return segmenter, digest


def _loaded(runs: Sequence[Path], level: int | None, *, allow_code: bool) -> tuple[Segmenter, str]:
    """The network of the runs and the digest of just these weights, also while a training goes on.

    Raises:
        UsageError: if a run cannot be read, or is written to again and again.
    """
    for _ in range(MOST_LOADS):
        before = _run_digest(runs)
        segmenter = (
            load(runs, allow_code=allow_code) if level is None else _at_level(runs, level, allow_code=allow_code)
        )
        if before and before == _run_digest(runs):
            return segmenter, before
    raise UsageError(f"{', '.join(map(str, runs))}: changed while it was read; predict when its training has ended")


def _run_digest(runs: Sequence[Path]) -> str:
    """Of the weights, plan, recipe and calibration (where there is one) of all runs, in their order; empty text where a file
    cannot be read."""
    try:
        return file_digest(*(file for run in dict.fromkeys(runs) for file in _files_of(run)))
    except OSError:  # what is missing is told where it is loaded
        return ""


def _files_of(run: Path) -> list[Path]:
    """What a run's answers depend on: files of its folder, or the exported file that it is."""
    if run.is_file():
        return [run]
    calibration = run / CALIBRATION_FILE
    return [*(run / name for name in OF_A_RUN), *([calibration] if calibration.exists() else [])]


def _at_level(runs: Sequence[Path], level: int, *, allow_code: bool) -> Segmenter:
    """The smaller network of every run."""
    members: dict[str, Segmenter] = {}
    for run in runs:
        if run.is_file():
            raise UsageError(
                f"{run}: is an exported file, whose level was chosen when it was exported; leave --level out"
            )
        segmenter = Segmenter.load(run, allow_code=allow_code)
        chosen = named_level(levels_of(run, segmenter.recipe), level=level, head=None)
        members[str(run)] = pruned(segmenter, chosen.head if chosen else None)
    return next(iter(members.values())) if len(members) == 1 else Ensemble(members)


def part_of(dataset: Dataset, split: Split, part: str) -> tuple[Case, ...]:
    """The cases of one part of a split: train, val or test."""
    if part not in Split.model_fields:
        raise UsageError(f"--split: {unknown('part of a split', part, Split.model_fields)}")
    wanted = set(getattr(split, part))
    cases = tuple(case for case in dataset.cases if case.id in wanted)
    if not cases:
        raise UsageError(
            f"--split {part}: none of the run's {counted(len(wanted), f'{part} case')} stands in {dataset.root}"
        )
    return cases


def common_split(runs: Sequence[Path]) -> Split:
    """The split that all runs were trained on.

    Raises:
        UsageError: where they have none, or not the same.
    """
    for run in runs:
        if run.is_file():
            raise UsageError(f"--split: {run} is an exported file, which holds no split; name the images, or the run")
    splits = {run: read_split(run) for run in runs}
    first, *others = splits
    for other in others:
        if splits[other] != splits[first]:
            raise UsageError(f"--split: {other} was trained on another split than {first}; leave --split out")
    return splits[first]
