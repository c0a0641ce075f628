"""Whatever predicts, by its path: run folders, cross-validations, files of `ulna export`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ulna.inference.exported import ExportedSegmenter
from ulna.inference.segmenter import Segmenter, together
from ulna.inference.zoo import located


def load(run: str | Path | Sequence[str | Path]) -> Segmenter:
    """Read a run folder and get a segmenter: `ulna.load("runs/a")("scan.nii.gz").mask`; several runs make an ensemble.

    So do the folds of a cross-validation. A file of `ulna export` is read too, by `ulna-runtime`, and `zoo:NAME` for one that
    comes with it.

    Raises:
        UsageError: if a folder holds no run, a file is damaged, or they have other classes or channels.
    """
    return together([located(one) for one in ([run] if isinstance(run, str | Path) else run)], _one)


def _one(run: str) -> Segmenter:
    return ExportedSegmenter.load(run) if Path(run).is_file() else Segmenter.load(run)
