"""An exported file behind a server: ulna-runtime computes, ulna reads and writes; no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.about import About
from ulna.data.pipeline.colour import as_trained
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.inference.instances import number_objects
from ulna.inference.result import Beside, Result
from ulna.inference.spread import MOST_CLASSES, Agreement
from ulna.inference.trusting import Comparing, clean_up, compares
from ulna.recipe import Labels, Plan, Recipe, parse
from ulna.serving.engine import Answer, Progress, about_of, runtime
from ulna.trust.calibration import of_exported
from ulna.version import version


class ExportedEngine(Comparing):
    """A file of `ulna export`: answers as `ulna predict FILE` does.

    Args:
        run: the file, or zoo:NAME.
        threads: that compute; None for all cores.

    Raises:
        UsageError: if it cannot be read.
    """

    def __init__(self, run: str, threads: int | None) -> None:
        self._refusal = runtime("errors").UsageError
        try:
            bundle = runtime("bundle").read_bundle(runtime("zoo").located(run))
            self.segmenter = runtime("segmenter").Segmenter(bundle, threads)
        except self._refusal as error:
            raise UsageError(str(error)) from None
        members = bundle.pipeline["members"]
        self.plan = parse(Plan, members[0]["plan"], source=f"{run}: plan")
        self.recipe = parse(Recipe, members[0].get("recipe"), source=f"{run}: recipe")
        self.calibration = of_exported(members, f"{run}: calibration")
        self.compares = compares(self.recipe, self.plan, self.calibration)
        if len(members) > 1:
            self.compares = "folds" if len(self.plan.labels.foreground) <= MOST_CLASSES else None
        name = self.recipe.model or "network"
        self.names = About(self.plan.labels.foreground, name, version("ulna"))
        self.about: dict[str, Any] = {**about_of(self.plan, name), "digest": bundle.digest}

    @property
    def numbered(self) -> bool:
        """As `Engine.numbered`."""
        return self.recipe.inference.instances is not None

    def segment(self, volume: Volume, progress: Progress) -> Answer:
        """As `Engine.segment`."""
        volume, _ = as_trained(volume, self.plan)
        given = runtime("volume").Volume(volume.array, volume.spacing, volume.unit, volume.affine, volume.path)
        agreement = None if self.compares is None else Counted(self.plan.labels, copies=self.compares == "copies")
        try:
            for member in self.segmenter.members:
                runtime("preparing").check_fit(given, member.plan)
            comparison = self.compare(volume)
            mask = self._mask(given, agreement, progress)
        except self._refusal as error:
            raise UsageError(str(error)) from None
        changed = clean_up(mask, volume, self) if self.recipe.inference.post_processing else {}
        beside = Beside(agreement, changed)
        settings = self.recipe.inference.instances
        objects = None if settings is None else number_objects(mask, settings, volume.spacing)
        result = Result(mask, None, volume, self.plan.labels, self.names, self.plan.mask_values, beside, objects)
        return Answer(result.in_file, result.mask, result.objects, self.trust(result, comparison))

    def _mask(self, given: Any, agreement: Counted | None, progress: Progress) -> NDArray[Any]:
        """As the networks say it."""
        compare = None if agreement is None else runtime("predicting").Compare(agreement.count, agreement.copies)
        slabs = self.segmenter.slabs(given, tta=self.recipe.inference.tta, compare=compare)
        to_labels, labels = runtime("labels").to_labels, self.segmenter.labels
        threshold = self.segmenter.members[0].settings.threshold
        rows, done = slabs.size[slabs.axis], 0

        def convert(part: NDArray[np.float32]) -> Any:
            nonlocal done
            done += part.shape[1 + slabs.axis]
            progress(min(1.0, done / rows))
            return to_labels(part, labels, threshold)

        mask: NDArray[Any] = slabs.joined(convert)
        return mask


class Counted(Agreement):
    """Agreement of answers that are arrays."""

    def __init__(self, labels: Labels, *, copies: bool = False) -> None:
        super().__init__(labels, copies=copies)
        self._common = np.zeros((2, len(labels.foreground)))

    def count(self, first: NDArray[np.float32], second: NDArray[np.float32]) -> None:
        """Add what two answers have in common: (K, *S) probabilities each."""
        for number, (a, b) in enumerate(zip(self._classes(first), self._classes(second), strict=True)):
            self._common[:, number] += 2 * np.count_nonzero(a & b), np.count_nonzero(a) + np.count_nonzero(b)
        self._compared = True

    _compared = False

    def by_class(self) -> dict[str, float]:
        """As `Agreement.by_class`."""
        if not self._compared:
            return {}
        common, total = self._common
        values = np.divide(common, total, out=np.full(len(total), np.nan), where=total > 0)
        return dict(zip(self.labels.foreground, values.tolist(), strict=True))

    def _classes(self, maps: NDArray[np.float32]) -> list[NDArray[np.bool_]]:
        """Where every structure is."""
        if self.labels.multilabel or len(maps) == 1:
            return list(maps > 0.5)
        chosen = maps.argmax(0)
        return [chosen == number for number in range(1, len(maps))]
