"""Segmenter: what a run folder holds, ready to predict."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ulna.blocks import nd
from ulna.data.formats.dicom.about import About
from ulna.data.pipeline.colour import as_trained
from ulna.data.pipeline.orientation import Turn, turn_of
from ulna.data.pipeline.preprocess import Prepared, check_fit, differences, prepare
from ulna.data.volume import Volume
from ulna.errors import UsageError, counted, listed, printable
from ulna.inference.fold_runs import is_cross_validation
from ulna.inference.folding import fuse_batchnorm
from ulna.inference.forward import Forward
from ulna.inference.inputs import as_volume, is_case
from ulna.inference.instances import number_objects
from ulna.inference.result import Beside, Result
from ulna.inference.sparse import PointCounts
from ulna.inference.spread import Agreement
from ulna.inference.trusting import Comparing, clean_up, compares
from ulna.inference.volume import Slabs, axis_of_slabs, predict_slabs, to_labels
from ulna.networks.build import from_architecture
from ulna.networks.foreign import note_version, permit_stored
from ulna.networks.network import Network
from ulna.networks.weights import load_network
from ulna.planning.memory import MemoryEstimate, maps_per_voxel, prediction_memory
from ulna.recipe import PLAN_FORMAT, Instances, Plan, Recipe, Split, check_one_structure, from_yaml, parse
from ulna.system.device import choose_precision, default_device
from ulna.system.order import not_a_run
from ulna.system.reading import read_json
from ulna.trust.calibration import Calibration, read_calibration
from ulna.trust.temperature import scaled
from ulna.version import version

log = logging.getLogger(__name__)

LIKE_IT = "(and so with others like it)"  # ends a note that is said of the first image alone


class Segmenter(Comparing):
    """A trained network with the plan and the recipe that it needs; predicts with a copy of the network in which
    batch norm is fused.

    The copy is made at the first prediction: load other weights into a new segmenter.

    Example:
        segment = ulna.load("runs/a")
        segment("scan.nii.gz").save("scan_mask")
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        recipe: Recipe,
        device: torch.device | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.device = device or default_device()
        self.network = network.eval().to(self.device)
        self.plan, self.recipe, self.calibration = plan, recipe, calibration
        self.compares = compares(recipe, plan, calibration)  # which answers are compared beside the prediction
        self.precision = choose_precision(recipe.training.precision, self.device)
        layout = nd.layout(plan.spatial_dims, True, self.device, self.precision)
        self.network.to(memory_format=layout)  # type: ignore[call-overload]
        self._noted: set[str] = set()
        self._beside = Beside()  # what the last mask left beside it
        self.tally = PointCounts()  # what a head that reads points was asked for so far

    def __repr__(self) -> str:
        plan = self.plan
        size, classes = "x".join(map(str, plan.patch)), listed(plan.labels.foreground, 6)
        channels = counted(plan.in_channels, "channel")
        return printable(f"Segmenter {self.recipe.model}: {classes} in {plan.image_dims}D, {channels}, patch {size}")

    @classmethod
    def load(cls, run: str | Path, *, allow_code: bool = False) -> Segmenter:
        """Read a run folder; no code in it is ever run, but that of a network of one's own with `allow_code`.

        Raises:
            UsageError: if the folder is not a finished or started run, is damaged, or its network is code and not allowed.
        """
        run = Path(run)
        if is_cross_validation(run):
            raise UsageError(
                f"{run}: is a cross-validation, whose folds are runs of their own; name one, such as {run / 'fold_0'}"
            )
        if not (run / "recipe.yaml").exists():
            raise not_a_run(run)
        recipe, plan = from_yaml(Recipe, run / "recipe.yaml"), from_yaml(Plan, run / "plan.yaml")
        if not (run / "weights.safetensors").exists():
            raise UsageError(
                f"{run}: holds no weights yet; wait for the first epoch, or go on with ulna train --resume"
            )
        foreign = recipe.architecture.foreign
        permit_stored(foreign, run, allow_code=allow_code)
        note_version(foreign)
        if plan.format < PLAN_FORMAT:
            _note_format(plan.format)
        network = load_network(lambda: network_for(recipe, plan), run / "weights.safetensors")
        return cls(network, plan, recipe, calibration=read_calibration(run))

    def __call__(self, image: Any, *, spacing: Sequence[float] | None = None, affine: ArrayLike | None = None) -> Any:
        """Segment a file, an array, a volume, or a list of these.

        Args:
            image: a path; an array or tensor (C, *S) (or (*S), or (*S, C)); a volume; or a list of images. A list in that
                list holds the channel files of one case: `segment([["a_0000.nii.gz", "a_0001.nii.gz"]])`.
            spacing: of an array, in mm, along its spatial axes.
            affine: (4, 4) of an array, voxel index -> RAS mm. Without either an array is taken to lie on the grid that the
                network was trained on, and a note says so.

        Returns:
            A Result; a list of them for a list.

        Raises:
            UsageError: if an image cannot be read or does not fit the plan.
        """
        if isinstance(image, list | tuple):
            return [self._result(one, spacing, affine) for one in image]
        return self._result(image, spacing, affine)

    def _result(self, image: Any, spacing: Sequence[float] | None, affine: ArrayLike | None) -> Any:
        if isinstance(image, list | tuple) and not is_case(image):
            return self(image, spacing=spacing, affine=affine)
        return self.segment(self._volume(image, spacing, affine), probabilities=True)

    def _volume(self, image: Any, spacing: Sequence[float] | None = None, affine: ArrayLike | None = None) -> Volume:
        return self.as_trained(as_volume(image, self.plan, spacing, affine))

    def as_trained(self, volume: Volume) -> Volume:
        """A picture with the channels of the training: grey from colour and the reverse, which is noted once."""
        volume, done = as_trained(volume, self.plan)
        if done and done not in self._noted:
            self._noted.add(done)
            log.warning("note: %s: %s %s", volume.path or "the image", done, LIKE_IT)
        return volume

    def segment(self, volume: Volume, *, probabilities: bool = False) -> Result:
        """Segment one volume, with the probabilities where they are asked for.

        Raises:
            UsageError: if it does not fit the plan.
        """
        self._beside = Beside()
        maps = self.probabilities(volume) if probabilities else None
        mask = self.mask(volume) if maps is None else self.cleaned(self.label_map(maps), volume)
        shown = None if maps is None else self._calibrated(maps).numpy()
        objects = None if self.instances is None else number_objects(mask, self.instances, volume.spacing)
        return Result(mask, shown, volume, self.plan.labels, self.about, self.plan.mask_values, self._beside, objects)

    @property
    def instances(self) -> Instances | None:
        """How objects are numbered; None where they are not."""
        return self.recipe.inference.instances

    @property
    def about(self) -> About:
        """What a file says of the masks."""
        return About(self.plan.labels.foreground, self.recipe.model or "network", version("ulna"))

    def mask(self, volume: Volume) -> NDArray[Any]:
        """The mask alone, (*S), or (K, *S) if multilabel: never holds the probabilities of all classes everywhere."""
        self.check(volume)
        mask = self._watched(volume).label_map(self.plan.labels, self.recipe.inference.threshold)
        return self.cleaned(mask, volume)

    def _watched(self, volume: Volume) -> Slabs:
        """Slabs of which it is counted how much several answers agree, where the run has a use for it."""
        agreement = None if self.compares is None else Agreement(self.plan.labels, copies=self.compares == "copies")
        self._beside = self._beside._replace(agreement=agreement)
        return self.slabs(volume, agreement)

    def cleaned(self, mask: NDArray[Any], volume: Volume) -> NDArray[Any]:
        """A mask after the post-processing of the run; the same array."""
        if self.recipe.inference.post_processing:
            self._beside = self._beside._replace(changed=clean_up(mask, volume, self))
        return mask

    def _calibrated(self, maps: Tensor) -> Tensor:
        found = None if self.calibration is None else self.calibration.temperature
        exclusive = self.plan.labels.outputs > 1 and not self.plan.labels.multilabel
        return maps if found is None else scaled(maps, found.value, exclusive=exclusive)

    def probabilities(self, volume: Volume) -> Tensor:
        """Volume (C, *S) -> probabilities (K, *S), float32, on the volume's grid; not calibrated."""
        self.check(volume)
        return self._watched(volume).maps()

    def label_map(self, probabilities: Tensor) -> NDArray[Any]:
        """What probabilities of all classes say: (K, *S) -> (*S), or (K, *S) if multilabel; without post-processing."""
        return to_labels(probabilities, self.plan.labels, self.recipe.inference.threshold)

    def turn(self, volume: Volume) -> Turn:
        """How a volume is turned for the network."""
        return turn_of(volume, self.plan)

    def slab_axis(self, volume: Volume) -> int:
        """The axis, turned, that the slabs of an answer lie along."""
        return axis_of_slabs(self.turn(volume).order(volume.size), self.plan)

    def _plans(self) -> tuple[Plan, ...]:
        """Of all networks that answer."""
        return (self.plan,)

    def check(self, volume: Volume) -> None:
        """Refuse a volume that fits no plan; what is odd about it is noted once."""
        for plan in self._plans():
            check_fit(volume, plan)
            for note in differences(volume, plan):
                if note not in self._noted:
                    self._noted.add(note)
                    log.warning("note: %s", note)

    def forecast(self, volume: Volume, *, probabilities: bool) -> MemoryEstimate:
        """The memory that predicting a volume takes at its peak; `probabilities`: of all classes, for the whole volume.

        Raises:
            UsageError: if the volume does not fit the plan.
        """
        check_fit(volume, self.plan)
        return prediction_memory(
            self.plan, volume, self.network, maps_per_voxel=self.maps_per_voxel, probabilities=probabilities
        )

    def unprocessed(self) -> Segmenter:
        """The same, whose masks are as the network says them; this segmenter itself is changed."""
        self.recipe = self.recipe.replaced(inference=self.recipe.inference.replaced(post_processing=False))
        for member in getattr(self, "members", ()):
            member.unprocessed()
        return self

    def numbering(self) -> Segmenter:
        """The same, which numbers the objects of its structure, as its recipe says or by default; it is changed itself.

        Raises:
            UsageError: if there are several structures.
        """
        check_one_structure(self.plan.labels, "instances")
        if self.instances is None:
            self.recipe = self.recipe.replaced(inference=self.recipe.inference.replaced(instances=Instances()))
        return self

    def mirrored(self) -> Segmenter:
        """The same, averaging over mirrored copies of every image."""
        recipe = self.recipe.replaced(inference=self.recipe.inference.replaced(tta=True))
        return Segmenter(self.network, self.plan, recipe, self.device, self.calibration)

    def slabs(self, volume: Volume, agreement: Agreement | None = None) -> Slabs:
        """The probabilities in slabs, computed as they are asked for; see `predict_slabs`."""
        return predict_slabs(
            self.forward.network,
            self.plan,
            self._prepared(volume),
            settings=self.recipe.inference,
            device=self.device,
            precision=self.precision,
            tally=self.tally,
            forward=self.forward,
            agreement=agreement,
        )

    def _prepared(self, volume: Volume) -> Prepared:
        """Where it is predicted, unless the memory there does not hold what resampling takes."""
        try:
            return prepare(volume, self.plan, self.device)
        except torch.cuda.OutOfMemoryError:
            log.info("%s: too large to be prepared on the GPU; the CPU does it", volume.path or "the image")
        return prepare(volume, self.plan)

    @cached_property
    def maps_per_voxel(self) -> float:
        """Bytes that the maps of a window take."""
        return maps_per_voxel(self.network, self.plan, bf16=self.precision == "bf16")

    @cached_property
    def forward(self) -> Forward:
        """How the network is run; kept from image to image."""
        heads = self.compares == "heads"
        return Forward(fuse_batchnorm(self.network), self.plan, self.device, self.precision, heads=heads)


def network_for(recipe: Recipe, plan: Plan, generator: torch.Generator | None = None) -> Network:
    """The network of a resolved recipe."""
    return from_architecture(
        recipe.architecture,
        in_channels=plan.inputs,
        classes=plan.labels.outputs,
        spatial_dims=plan.spatial_dims,
        multilabel=plan.labels.multilabel,
        generator=generator,
    )


@cache
def _note_format(format: int) -> None:
    """Once a process."""
    log.warning(
        "note: trained by an earlier ulna (plan format %d): images are not turned to one orientation, and not resampled "
        "where all training images shared a spacing; train again for that",
        format,
    )


def read_split(run: Path) -> Split:
    """The split of a run.

    Raises:
        UsageError: if splits.json is missing or damaged.
    """
    path = run / "splits.json"
    if not path.exists():
        raise UsageError(f"{printable(path)}: no such file; the run folder is not complete")
    return parse(Split, read_json(path), source=str(path))
