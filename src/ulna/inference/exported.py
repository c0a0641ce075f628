"""A file of `ulna export` as a segmenter: its graphs and its numpy code predict, ulna reads images and writes masks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ulna.data.pipeline.orientation import Turn
from ulna.data.pipeline.preprocess import check_fit
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.segmenter import Segmenter
from ulna.inference.spread import MOST_CLASSES, Agreement, count_agreement
from ulna.inference.volume import Slabs
from ulna.planning.memory import MemoryEstimate, prediction_memory
from ulna.recipe import Plan, Recipe, parse
from ulna.trust.calibration import Calibration, of_exported


class ExportedSegmenter(Segmenter):
    """An exported file, used like a run.

    Args:
        exported: a segmenter of `ulna_runtime`.
        plan: of the first network.
        recipe: of the first network.
        pipeline: what the file says, for what is not of the first network.
        calibration: of the network, or what several have in common.
    """

    def __init__(
        self, exported: Any, plan: Plan, recipe: Recipe, pipeline: dict[str, Any], calibration: Calibration | None
    ) -> None:
        super().__init__(nn.Identity(), plan, recipe, torch.device("cpu"), calibration)  # type: ignore[arg-type]
        self.exported, self._pipeline = exported, pipeline
        if len(exported.members) > 1:
            self.compares = "folds" if len(plan.labels.foreground) <= MOST_CLASSES else None

    @classmethod
    def load(cls, run: str | Path, *, allow_code: bool = False) -> ExportedSegmenter:
        """Read an exported file and check all of it.

        Raises:
            UsageError: if it is damaged, was changed, or `ulna-runtime` is not installed.
        """
        try:
            from ulna_runtime.bundle import read_bundle
            from ulna_runtime.errors import UsageError as RuntimeUsageError
            from ulna_runtime.segmenter import Segmenter as RuntimeSegmenter
        except ImportError as error:
            raise UsageError(
                f"{run}: an exported file is read by ulna-runtime, and {error.name} is not installed; "
                "pip install ./packages/runtime"
            ) from None
        try:
            bundle = read_bundle(run)
            exported = RuntimeSegmenter(bundle, threads=torch.get_num_threads())
        except RuntimeUsageError as error:
            raise UsageError(str(error)) from None
        first = bundle.pipeline["members"][0]
        plan = parse(Plan, first["plan"], source=f"{run}: plan")
        recipe = parse(Recipe, first.get("recipe"), source=f"{run}: recipe")
        calibration = of_exported(bundle.pipeline["members"], f"{run}: calibration")
        return cls(exported, plan, recipe, bundle.pipeline, calibration)

    def _plans(self) -> tuple[Plan, ...]:
        return tuple(parse(Plan, member["plan"]) for member in self._pipeline["members"])

    def mirrored(self) -> Segmenter:
        recipe = self.recipe.replaced(inference=self.recipe.inference.replaced(tta=True))
        return ExportedSegmenter(self.exported, self.plan, recipe, self._pipeline, self.calibration)

    def slabs(self, volume: Volume, agreement: Agreement | None = None) -> Slabs:
        from ulna_runtime.errors import UsageError as RuntimeUsageError
        from ulna_runtime.predicting import Compare
        from ulna_runtime.volume import Volume as RuntimeVolume

        def add(*answers: NDArray[np.float32]) -> None:
            first, second = (torch.from_numpy(np.ascontiguousarray(maps))[None] for maps in answers)
            if agreement is not None:
                agreement.add(count_agreement(first, second, self.plan.labels))

        given = RuntimeVolume(volume.array, volume.spacing, volume.unit, volume.affine, volume.path)
        compare = None if agreement is None else Compare(add, agreement.copies)
        try:
            slabs = self.exported.slabs(given, tta=self.recipe.inference.tta, compare=compare)
        except RuntimeUsageError as error:
            raise UsageError(str(error)) from None

        def parts() -> Iterator[Tensor]:
            try:
                for part in slabs.parts:
                    yield torch.from_numpy(np.ascontiguousarray(part))
            except RuntimeUsageError as error:
                raise UsageError(str(error)) from None

        return Slabs(parts(), slabs.size, slabs.axis, Turn(*slabs.turn))

    def forecast(self, volume: Volume, *, probabilities: bool) -> MemoryEstimate:
        for plan in self._plans():
            check_fit(volume, plan)
        sparse: Any = SimpleNamespace(head=SimpleNamespace(sparse=self.exported.networks[0].by_patches))
        most = max(float(member.get("maps_per_voxel") or 0.0) for member in self._pipeline["members"])
        return prediction_memory(self.plan, volume, sparse, maps_per_voxel=most, probabilities=probabilities)
