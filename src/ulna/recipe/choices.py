"""What a person chooses: `Recipe` and its sections, with their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ulna.recipe.architecture import Architecture
from ulna.recipe.bounds import MOST_NEIGHBOURS, Axis, Options, Voxels
from ulna.recipe.former import renamed
from ulna.recipe.instances import Instances
from ulna.recipe.model import Frozen
from ulna.recipe.protocol import Classes, Protocol, Requires
from ulna.recipe.shares import read_shares


class Loss(Frozen):
    """One criterion for every supervised head, and how the heads are weighted."""

    # dice, dice_squared, generalised_dice, tversky, focal_tversky; cross_entropy, focal, topk_ce; boundary, cldice; and sums:
    # dice_ce, dice_focal, dice_topk, unetpp (docs/papers/losses_and_metrics.md, section 1)
    kind: str = "dice_ce"
    # of that loss, such as smooth, reduction ("image", "batch"), gamma, alpha, share; weights: one number a class, background
    # first (for one structure: background and structure), or auto, in cross_entropy, focal, topk_ce and their sums with dice
    options: Options = Field(default_factory=dict)
    heads: Literal["equal", "halving"] | dict[str, float] = "equal"


class Optimizer(Frozen):
    """The optimiser and its numbers."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)  # adamw without one is adam; torch's own default there is 0.01
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
    # of the deformation alone; None: with the turns and scaling of `affine`
    elastic_probability: Probability | None = None
    intensity: Probability = 0.3  # brightness and contrast, each by itself unless the next two say another
    brightness: Probability | None = None  # values plus -0.2 to 0.2; None: as `intensity`
    contrast: Probability | None = None  # values times 0.75 to 1.25; None: as `intensity`
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
    steps: int | None = Field(default=None, ge=1)  # of the whole training; with `epochs`: what ends first
    patience: int | None = Field(default=None, ge=1)  # validations without a better `monitor`
    monitor: Literal["dice", "iou"] = "dice"  # on whole validation images: chooses the best epoch
    validate_every: int = Field(default=1, ge=1)  # epochs; the last one is always validated
    steps_per_epoch: int | None = Field(default=None, ge=1)
    fold: int | None = Field(default=None, ge=0)  # of the data set's folds
    folds: int | None = Field(default=None, ge=2)  # how many are made where the data set brings none; None: 5
    split: str | None = None  # shares where the data set brings no split: 80/10/10, or 80/20 without test cases
    # ids of cases that are kept for the end where the data set brings no split, with * and ? and [0-9] for what varies;
    # `split` divides the others in two
    test: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=1000)
    # None, without `steps_per_epoch`: every case once, at least `min_steps` batches, and of slices no more than 250; all:
    # every slice once, however many there are
    samples_per_epoch: Annotated[int, Field(ge=1)] | Literal["all"] | None = None
    min_steps: int = Field(default=20, ge=1)
    clip_gradients: float | None = Field(default=12.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    # where several devices share a batch: batch norm by all its samples, as one device has it; false: by those of each device
    sync_batchnorm: bool = True
    init: str | None = None  # the weights to begin with: a run, a file with weights, or zoo:NAME
    # of weights that were taken from `init`, or from `architecture.foreign.encoder_weights`: so many epochs at the beginning
    # those of the encoder stay as they are
    frozen_epochs: int = Field(default=0, ge=0)
    # and their learning rate is this share of that of the others, all along
    init_lr_factor: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)
    split_seed: int | None = Field(default=None, ge=0)  # of the split where none is given; None: `seed`
    foreground: Probability = 0.33  # share of patches placed on a structure
    # anywhere: such a patch holds a voxel of the structure at a random place, the others lie anywhere; centred: it has that
    # voxel in its middle, and the others a voxel of background
    placement: Literal["anywhere", "centred"] = "anywhere"
    # what patches on a structure show. case: a random class of the case whose turn it is; class: every class of the data set
    # as often, of a random case that holds it; lesion: so, and every connected component of a class as often, large or small
    sampling: Literal["case", "class", "lesion"] = "case"
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware multiplies it
    channels_last: bool = True  # in 3D only where kernels read maps so: elsewhere it is slower
    # compute maps within a node again in the backward pass: less memory, more time
    activation_checkpointing: bool = False
    compile: bool | Literal["auto"] = "auto"  # by torch, which takes minutes; auto: not so far (training/compiling.py)
    workers: int | None = Field(default=None, ge=0)  # threads that draw and read ahead; None: 0 on a CPU, 4 with a GPU
    checkpoint_minutes: float = Field(default=1.0, ge=0)  # how much work a kill may cost
    # prepared cases on this disk, for this training and later ones (`ulna cache`): true: of all cases; false: none; auto: of
    # those that the memory has no room for, and in studies and cross-validations of all
    cache: bool | Literal["auto"] = "auto"

    @field_validator("split")
    @classmethod
    def _shares(cls, text: str | None) -> str | None:
        if text is not None:
            read_shares(text)
        return text

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        if self.test is not None and self.shares is not None and self.shares[2]:
            raise ValueError(
                f"test says which cases are kept for the end, and split {self.split} keeps a share too; write two shares, of "
                "train and val"
            )
        return self

    @model_validator(mode="after")
    def _sampled(self) -> Self:
        if self.sampling != "case" and not self.foreground:
            raise ValueError(
                f"sampling is {self.sampling} and foreground is 0, so that no patch is placed on a structure; give "
                "foreground a share above 0, or leave sampling out"
            )
        return self

    @property
    def shares(self) -> tuple[float, float, float] | None:
        """Of train, val and test, as `split` says."""
        return None if self.split is None else read_shares(self.split)

    @property
    def most_epochs(self) -> int:
        """`epochs`, or as many as without a plan for them."""
        return EPOCHS if self.epochs is None else self.epochs

    @property
    def most_patience(self) -> int:
        """`patience`, or as much as without a plan for it."""
        return PATIENCE if self.patience is None else self.patience

    @property
    def measure(self) -> str:
        """What `monitor` is called."""
        return {"dice": "Dice", "iou": "IoU"}[self.monitor]

    @property
    def length(self) -> float:
        """In epochs; of a length in steps the last one may be a part."""
        if self.steps is None or self.steps_per_epoch is None:
            return self.most_epochs
        return min(self.most_epochs, self.steps / self.steps_per_epoch)

    def steps_of(self, epoch: int, most: int) -> int:
        """Steps of an epoch, from 0, that has at most so many: fewer where the training ends within it."""
        return most if self.steps is None else min(most, self.steps - epoch * most)

    def samples_of_epoch(self, cases: int, batch: int, most_steps: int | None = None) -> int:
        """How many samples an epoch takes of so many training cases, or slices; at most `most_steps`, if nothing is said."""
        if isinstance(self.samples_per_epoch, int):
            return self.samples_per_epoch
        if self.steps_per_epoch is not None:
            return self.steps_per_epoch * batch
        count = max(cases, self.min_steps * batch)
        if most_steps is None or self.samples_per_epoch == "all":
            return count
        return min(count, max(most_steps, self.min_steps) * batch)


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

    `spacing`, `size`, `crop` and `patch` go along the axes that the network sees: right-left, back-front and foot-head where
    the files state an orientation, whatever the order in a file; else along the axes of the files (rows, columns).
    docs/preparing.md has examples.
    """

    # of the network's grid, in mm (of images without, in pixels); null along an axis: every image keeps its own there
    spacing: tuple[float | None, ...] | None = None
    # voxels that every image is resampled to, whatever its spacing; null along an axis: as `spacing` says
    size: tuple[Voxels | None, ...] | None = None
    # voxels of that grid which are kept about the middle of an image, or padded to; null along an axis: all of them
    crop: tuple[Voxels | None, ...] | None = None
    patch: tuple[Voxels, ...] | None = None
    # of the network. 2 for volumes: it is trained on their slices, and predicts volumes (docs/slices.md); `size`, `crop` and
    # `patch` have two sides then, and `spacing` three, or two where every volume keeps its own distance between slices
    spatial_dims: Literal[2, 3] | None = None  # None: of the images, and 2 for a network that can be built in 2D alone
    slice_axis: Axis | None = None  # that slices lie across; None: that of the largest spacing
    neighbours: int = Field(
        default=0, ge=0, le=MOST_NEIGHBOURS
    )  # slices on each side that are read as further channels
    # share of the slices without a structure that an epoch draws; None: so that `training.foreground` of all hold one
    empty_slices: Probability | None = None
    batch: int | None = Field(default=None, ge=1, le=1 << 16)
    # zscore: every channel of every image alone; zscore_joint: the channels of an image together
    normalization: Literal["zscore", "zscore_joint", "ct", "rescale", "none"] | None = None
    window: tuple[float, float] | None = None  # values are clipped to it first; alone: then rescaled from it to 0..1
    # a percentile of all values of the training cases, by channel: larger ones count as it; alone: then zscore
    cap: float | None = Field(default=None, gt=0, le=100)
    whitening: Literal["zca"] | None = None  # of the channels, fitted on the training cases
    parameters: int | None = Field(default=None, ge=1)  # every width is scaled by one factor to come close to it
    memory_gb: float | None = Field(default=None, gt=0)
    # of a GPU, planned for at most, as the presets of nnU-Net's residual encoder are; on a CPU it changes nothing
    gpu_memory_gb: float | None = Field(default=None, gt=0)

    @field_validator("window")
    @classmethod
    def _has_a_width(cls, window: tuple[float, float] | None) -> tuple[float, float] | None:
        if window is not None and not window[0] < window[1]:
            raise ValueError(f"{list(window)} has no width; give the lowest value first, then a higher one")
        return window


class Inference(Frozen):
    """How whole images are predicted."""

    overlap: float = Field(default=0.5, ge=0, lt=1)
    threshold: float = Field(default=0.5, gt=0, lt=1)  # sigmoid outputs only
    tta: bool = False  # mirror along every axis that training mirrored
    post_processing: bool = True  # of masks, as the validation cases chose it (docs/trust.md); false: none
    # of a run with one structure: masks hold the numbers of its objects (docs/instances.md); true, or what it takes
    instances: Instances | None = None
    # heads that read points only (marimont2022, Sec. 2): the step of the coarse mesh, 1 to ask every voxel; whether cells
    # on a boundary are asked voxel by voxel at once, as in the paper, or at half the step first; and a 3 x 3 x 3 mean of
    # the probabilities at the end
    mesh_step: int = Field(default=4, ge=1)  # voxels
    refine: Literal["halving", "once"] = "halving"
    smooth: bool = True

    @field_validator("instances", mode="before")
    @classmethod
    def _by_default(cls, value: Any) -> Any:
        return {True: {}, False: None}[value] if isinstance(value, bool) else value


class Scoring(Frozen):
    """What is scored, and how cases without a structure count."""

    # Dice and IoU of a class that neither reference nor prediction holds, 1 in many papers; None: such a case is left out
    empty_score: float | None = Field(default=None, ge=0, le=1)
    # slice: every slice of a volume counts as an image of its own, across the slice axis of the plan (else the coarsest)
    by: Literal["case", "slice"] = "case"
    # families of measures beside overlap; auto: those that apply, by the rule of docs/metrics.md
    metrics: tuple[Literal["auto", "all", "overlap", "surface", "volume", "lesions", "cldice", "boundary"], ...] = (
        "auto",
    )


class Recipe(Frozen):
    """Everything a person chooses. Stored, fully resolved, as `recipe.yaml` in a run folder."""

    model: str = "unet"
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
    # what the values of label maps stand for, written as in classes.json; one beside the data must say the same
    classes: Classes | None = None
    requires: Requires = Requires()  # of the data; others are refused
    study: Protocol = Protocol()  # for `ulna compare`

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, values: Any) -> Any:
        return renamed(values) if isinstance(values, Mapping) else values
