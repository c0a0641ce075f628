"""Whatever predicts, by its path: run folders, cross-validations, files of `ulna export`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ulna.inference.ensemble import together
from ulna.inference.exported import ExportedSegmenter
from ulna.inference.segmenter import Segmenter
from ulna.inference.zoo import located


def load(
    run: str | Path | Sequence[str | Path],
    *,
    post_processing: bool = True,
    instances: bool = False,
    allow_code: bool = False,
) -> Segmenter:
    """Read a run folder and get a segmenter: `ulna.load("runs/a")("scan.nii.gz").mask`; several runs make an ensemble.

    So do the folds of a cross-validation. A file of `ulna export` is read too, by `ulna-runtime`, and `zoo:NAME` for one that
    comes with it. `segment.trust(result)` says how far a result can be trusted.

    Args:
        run: a run folder, that of a cross-validation, an exported file, zoo:NAME, or several.
        post_processing: False leaves masks as the network says them, see docs/trust.md.
        instances: True numbers the objects of the one structure as `result.objects`, see docs/instances.md.
        allow_code: run the code of a network of one's own (`module:FILE.py:CLASS`), which lies in the run as network.py.

    Raises:
        UsageError: if a folder holds no run, a file is damaged, they have other classes or channels, a network is
            code and not allowed, or objects of several structures are to be numbered.
    """
    named = [run] if isinstance(run, str | Path) else run
    segmenter = together([located(one) for one in named], partial(_one, allow_code=allow_code))
    segmenter = segmenter if post_processing else segmenter.unprocessed()
    return segmenter.numbering() if instances else segmenter


def _one(run: str, *, allow_code: bool) -> Segmenter:
    return ExportedSegmenter.load(run) if Path(run).is_file() else Segmenter.load(run, allow_code=allow_code)
