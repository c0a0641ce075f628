"""What a person chooses: `Recipe` and its sections, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ulna.recipe.architecture import Architecture
from ulna.recipe.bounds import LONGEST_AXIS, Options
from ulna.recipe.former import renamed
from ulna.recipe.model import Frozen


class Loss(Frozen):
    """One criterion for every supervised head, and how the heads are weighted."""

    # dice, dice_squared, generalised_dice, tversky, focal_tversky; cross_entropy, focal, topk_ce; boundary, cldice; and sums:
    # dice_ce, dice_focal, dice_topk, unetpp (docs/papers/losses_and_metrics.md, section 1)
    kind: str = "dice_ce"
    # of that loss, such as smooth, reduction ("image", "batch"), gamma, alpha, share; weights: one number a class, background
    # first (for one structure: background and structure), in cross_entropy, focal, dice_ce and dice_focal
    options: Options = Field(default_factory=dict)
    heads: Literal["equal", "halving"] | dict[str, float] = "equal"


class Optimizer(Frozen):
    """The optimiser and its numbers."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.99, ge=0, lt=1)  # sgd only, with Nesterov


class Schedule(Frozen):
    """How the learning rate falls over the training (over the epochs, or over `max_hours` where that ends first)."""

    kind: Literal["cosine", "poly", "constant"] = "cosine"
    warmup_epochs: int = Field(default=1, ge=0)
    power: float = Field(default=0.9, gt=0)  # poly only


Probability = Annotated[float, Field(ge=0, le=1)]


class Augmentation(Frozen):
    """Random changes of training samples: the probability of each, and its strength."""

    flip: Probability = 0.5  # per axis
    quarter_turn: Probability = 0.75  # 2D, or the two axes of equal spacing in 3D
    affine: Probability = 0.2  # of the next four together, in mm
    degrees: float = Field(default=15.0, ge=0, le=180)
    scale: float = Field(default=0.15, ge=0, lt=1)  # 0.85 to 1.15, the same along every axis
    shear: float = Field(default=0.0, ge=0, le=45)  # degrees, of the first two spatial axes
    # a smooth deformation: standard deviation of the displacements, in mm (of images without, in pixels), that are drawn at 3
    # points along every axis of a patch
    elastic: float = Field(default=0.0, ge=0)
    intensity: Probability = 0.3  # brightness and contrast
    gamma: Probability = 0.15
    noise: Probability = 0.1
    blur: Probability = 0.1


EPOCHS, PATIENCE = 100, 30  # of a training on a CPU, where nothing else is said


class Training(Frozen):
    """How long a training is, in which order it takes its samples, and in which precision."""

    # how long; what is left open is planned (`ulna.planning.length`), and a run has it in full
    budget: Literal["quick", "standard", "full"] | None = None
    epochs: int | None = Field(default=None, ge=1)
    max_hours: float | None = Field(default=None, gt=0)
    patience: int | None = Field(default=None, ge=1)  # epochs without a better validation Dice
    steps_per_epoch: int | None = Field(default=None, ge=1)
    fold: int | None = Field(default=None, ge=0)  # of the data set's folds
    # None, without `steps_per_epoch`: every case once, at least `min_steps` batches
    samples_per_epoch: int | None = Field(default=None, ge=1)
    min_steps: int = Field(default=20, ge=1)
    clip_gradients: float | None = Field(default=12.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    split_seed: int | None = Field(default=None, ge=0)  # of the split where none is given; None: `seed`
    foreground: Probability = 0.33  # share of patches placed on a structure
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware multiplies it
    channels_last: bool = True  # in 3D only where kernels read maps so: elsewhere it is slower
    # compute maps within a node again in the backward pass: less memory, more time
    activation_checkpointing: bool = False
    compile: bool | Literal["auto"] = "auto"  # by torch, which takes minutes; auto: not so far (training/compiling.py)
    workers: int | None = Field(default=None, ge=0)  # threads that draw and read ahead; None: 0 on a CPU, 4 with a GPU
    checkpoint_minutes: float = Field(default=1.0, ge=0)  # how much work a kill may cost

    @property
    def most_epochs(self) -> int:
        """`epochs`, or as many as without a plan for them."""
        return EPOCHS if self.epochs is None else self.epochs

    @property
    def most_patience(self) -> int:
        """`patience`, or as much as without a plan for it."""
        return PATIENCE if self.patience is None else self.patience

    def samples_of_epoch(self, cases: int, batch: int) -> int:
        """How many samples an epoch takes of so many training cases."""
        if self.samples_per_epoch is not None:
            return self.samples_per_epoch
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch * batch
        return max(cases, self.min_steps * batch)


SPARSE_POINTS = 30_000  # Implicit U-Net (marimont2022), Sec. 2: k


class Points(Frozen):
    """Training on random points of a patch in place of all its voxels (marimont2022, Sec. 2)."""

    # of a patch: how many points, or which share of its voxels; neither: SPARSE_POINTS for a head that reads points, else all
    count: int | None = Field(default=None, ge=1)
    fraction: float | None = Field(default=None, gt=0, le=1)
    alpha: Probability = 0.5  # share of them near a label boundary
    sigma: float = Field(default=5.0, ge=0)  # how far they scatter about it, in voxels

    @model_validator(mode="after")
    def _one_number(self) -> Self:
        if self.count is not None and self.fraction is not None:
            raise ValueError(f"count is {self.count} and fraction is {self.fraction}; give one of them")
        return self


class Planning(Frozen):
    """What a person fixes instead of the planner; None leaves it to the planner.

    `spacing` and `patch` go along the axes that the network sees: right-left, back-front and foot-head where the files state
    an orientation, whatever the order in a file; else along the axes of the files.
    """

    spacing: tuple[float, ...] | None = None
    patch: tuple[Annotated[int, Field(ge=1, le=LONGEST_AXIS)], ...] | None = None
    batch: int | None = Field(default=None, ge=1, le=1 << 16)
    normalization: Literal["zscore", "ct", "rescale", "none"] | None = None
    whitening: Literal["zca"] | None = None  # of the channels, fitted on the training cases
    parameters: int | None = Field(default=None, ge=1)  # every width is scaled by one factor to come close to it
    memory_gb: float | None = Field(default=None, gt=0)
    # of a GPU, planned for at most, as the presets of nnU-Net's residual encoder are; on a CPU it changes nothing
    gpu_memory_gb: float | None = Field(default=None, gt=0)


class Inference(Frozen):
    """How whole images are predicted."""

    overlap: float = Field(default=0.5, ge=0, lt=1)
    threshold: float = Field(default=0.5, gt=0, lt=1)  # sigmoid outputs only
    tta: bool = False  # mirror along every axis that training mirrored
    # heads that read points only (marimont2022, Sec. 2): the step of the coarse mesh, 1 to ask every voxel; whether cells
    # on a boundary are asked voxel by voxel at once, as in the paper, or at half the step first; and a 3 x 3 x 3 mean of
    # the probabilities at the end
    mesh_step: int = Field(default=4, ge=1)  # voxels
    refine: Literal["halving", "once"] = "halving"
    smooth: bool = True


class Scoring(Frozen):
    """How cases without a structure count."""

    # Dice and IoU of a class that neither reference nor prediction holds, 1 in many papers; None: such a case is left out
    empty_score: float | None = Field(default=None, ge=0, le=1)


class Recipe(Frozen):
    """Everything a person chooses. Stored, fully resolved, as `recipe.yaml` in a run folder."""

    model: str = "unetpp"
    architecture: Architecture = Architecture()
    planning: Planning = Planning()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    augmentation: Augmentation = Augmentation()
    training: Training = Training()
    points: Points = Points()
    inference: Inference = Inference()
    evaluation: Scoring = Scoring()

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        return renamed(values) if isinstance(values, Mapping) else values
