"""A run folder behind a server: the segmenter of `ulna predict`."""

from __future__ import annotations

from typing import Any

import torch

from ulna.data.volume import Volume
from ulna.inference.loading import load
from ulna.serving.engine import Answer, Progress, about_of
from ulna.system.threads import choose_threads

TOO_LARGE = "cut the image, or use a machine with more memory"


class TrainedEngine:
    """A run folder, or that of a cross-validation: answers as `ulna predict RUN` does.

    Args:
        run: the folder.
        threads: that compute; None: as many as are free now.

    Raises:
        UsageError: if it cannot be read.
    """

    def __init__(self, run: str, threads: int | None) -> None:
        torch.set_num_threads(choose_threads(threads))
        self.segmenter = load(run)
        self.plan, self.names = self.segmenter.plan, self.segmenter.about
        self.about: dict[str, Any] = about_of(self.plan, self.names.algorithm)

    @property
    def numbered(self) -> bool:
        """As `Engine.numbered`."""
        return self.segmenter.instances is not None

    def segment(self, volume: Volume, progress: Progress) -> Answer:
        """As `Engine.segment`; its windows are not counted, so no progress is told."""
        segmenter = self.segmenter
        volume = segmenter.as_trained(volume)
        need = segmenter.forecast(volume, probabilities=False)
        need.check(f"an image of {' x '.join(map(str, volume.size))}", TOO_LARGE)
        comparison = segmenter.compare(volume)
        result = segmenter.segment(volume)
        return Answer(result.in_file, result.mask, result.objects, segmenter.trust(result, comparison))
