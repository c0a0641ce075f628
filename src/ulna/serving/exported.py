"""An exported file behind a server: ulna-runtime computes, ulna reads and writes; no torch."""

from __future__ import annotations

from typing import Any

from ulna.data.formats.dicom.about import About
from ulna.data.formats.label_maps import in_file
from ulna.data.formats.write import keeps_values
from ulna.data.pipeline.colour import as_trained
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.recipe import Plan, Recipe, parse
from ulna.serving.engine import Answer, Progress, about_of, runtime
from ulna.trust.comparing import compare_case
from ulna.trust.report import trust_json
from ulna.trust.structures import find_structures, unit_of
from ulna.version import version


class ExportedEngine:
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
        first = bundle.pipeline["members"][0]
        self.plan = parse(Plan, first["plan"], source=f"{run}: plan")
        self.recipe = parse(Recipe, first.get("recipe"), source=f"{run}: recipe")
        name = self.recipe.model or "network"
        self.names = About(self.plan.labels.foreground, name, version("ulna"))
        self.about: dict[str, Any] = {**about_of(self.plan, name), "digest": bundle.digest}

    def segment(self, volume: Volume, progress: Progress) -> Answer:
        """As `Engine.segment`."""
        volume, _ = as_trained(volume, self.plan)
        given = runtime("volume").Volume(volume.array, volume.spacing, volume.unit, volume.affine, volume.path)
        try:
            for member in self.segmenter.members:
                runtime("preparing").check_fit(given, member.plan)
            comparison = compare_case(volume, self.plan)
            mask = self._mask(given, progress)
        except self._refusal as error:
            raise UsageError(str(error)) from None
        unit, voxel = unit_of(volume)
        found = find_structures(mask, self.plan.labels, voxel)
        left_out = {
            "structures": "the run holds no calibration.json for its weights",
            "predicted Dice": "no answers were compared, or the run was not calibrated for them",
        }
        trust = trust_json(comparison, found, unit, (), None, {}, left_out)
        own = volume.meta.format == "dicom" and volume.affine is not None

        def stored(format: str | None) -> Any:
            of_dicom = own if format is None else format in ("seg", "rtstruct")
            picture = format is None and keeps_values(volume)
            return mask if of_dicom else in_file(mask, self.plan.labels, self.plan.mask_values if picture else None)

        return Answer(stored, trust)

    def _mask(self, given: Any, progress: Progress) -> Any:
        slabs = self.segmenter.slabs(given, tta=self.recipe.inference.tta)
        to_labels, labels = runtime("labels").to_labels, self.segmenter.labels
        threshold = self.segmenter.members[0].settings.threshold
        rows, done = slabs.size[slabs.axis], 0

        def convert(part: Any) -> Any:
            nonlocal done
            done += part.shape[1 + slabs.axis]
            progress(min(1.0, done / rows))
            return to_labels(part, labels, threshold)

        return slabs.joined(convert)
