"""What people write and what planning fixes: Recipe, Architecture, Slot, Plan, Labels.

A recipe is data: it is written as YAML, changed from the command line by paths (`optimizer.lr=3e-4`), and stored with
every run. The JSON schema of `Recipe` documents every field. All defaults of ulna stand in this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ulna.errors import LONGEST_SHOWN, UsageError, brief, printable, unknown
from ulna.reading import parse_yaml, read_yaml


class Frozen(BaseModel):
    """Immutable, and strict about names: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def replaced(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return parse(type(self), {**self.model_dump(), **changes})


M = TypeVar("M", bound=Frozen)

# Bounds that no network or image of this world comes near: a file from a stranger must not ask for more.
MOST_LEVELS = 64
MOST_CHANNELS_AT_ALL = 1 << 16
LONGEST_AXIS = 1 << 20
LARGEST_OPTION = 1 << 20
MOST_LAYERS = 64  # of one block
_LAYER_COUNTS = ("convs", "layers", "sdn_layers", "depth")  # options that say how many layers a block has


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        values = list(value) if isinstance(value, list | tuple) else [value]
        most = MOST_LAYERS if name in _LAYER_COUNTS else LARGEST_OPTION
        if len(values) > MOST_LAYERS:
            raise ValueError(f"{printable(name)} has {len(values):,} entries; at most {MOST_LAYERS} are taken")
        for one in values:
            if isinstance(one, int | float) and not abs(one) <= most:  # NaN is not
                raise ValueError(f"{printable(name)} is {brief(one)}; numbers of at most {most:,} are taken")
    return options


Options = Annotated[dict[str, Any], AfterValidator(_check_options)]
Width = Annotated[int, Field(ge=1, le=MOST_CHANNELS_AT_ALL)]
Count = Annotated[int, Field(ge=1, le=1 << 30)]
Axis = Annotated[int, Field(ge=0, le=2)]
Step = Annotated[int, Field(ge=1, le=1 << 15)]
Steps = Annotated[tuple[Step, ...], Field(min_length=1, max_length=3)]
Length = Annotated[float, Field(gt=1e-6, lt=1e6)]  # of one step of a grid, in mm or px


class Slot(Frozen):
    """Which block fills a slot, and where: all of `levels`, `paths` and `nodes` that are given must fit a node."""

    kind: str
    levels: tuple[int, ...] | None = None  # 0 is full resolution, -1 the deepest
    paths: tuple[str, ...] | None = None  # "encoder", "decoder", "nested", ...
    nodes: tuple[str, ...] | None = None  # "x0_1", ...
    options: Options = Field(default_factory=dict)


def _as_slot(value: Any) -> Any:
    return {"kind": value} if isinstance(value, str) else value


def _as_slots(value: Any) -> Any:
    entries = [value] if isinstance(value, str | Mapping | Slot) else value
    return tuple(_as_slot(entry) for entry in entries) if isinstance(entries, Sequence) else entries


OneSlot = Annotated[Slot, BeforeValidator(_as_slot)]
Slots = Annotated[tuple[Slot, ...], BeforeValidator(_as_slots)]


def _as_strides(value: Any) -> Any:
    """One number a step stands for every axis; anything else is left for the validation to name."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return tuple((step,) if isinstance(step, int) else step for step in value)


MOST_CHANNELS = {2: 512, 3: 320}  # by spatial dimensions: the deepest levels stop widening there, as in nnU-Net


class Architecture(Frozen):
    """A network of the family, as data: a topology, four slots and a head (ARCHITECTURE: composition).

    `channels` is one width per level; left out, the widths are `base_channels` doubled at every level up to
    `max_channels` (left out: `MOST_CHANNELS`), over `levels` levels (left out: `max_levels`,
    or fewer where planning finds the images too small). `strides` is the step from each level to the next, one number
    or one per axis; left out, planning chooses, and without a plan every step is 2. `ends_at` is the head at which a pruned
    network ends: of the network that the other fields describe, it has what that head reads, and pads as that one does.
    """

    topology: str = "unet"
    levels: int | None = Field(default=None, ge=1, le=MOST_LEVELS)
    max_levels: int = Field(default=5, ge=1, le=MOST_LEVELS)
    base_channels: int = Field(default=32, ge=1, le=MOST_CHANNELS_AT_ALL)
    max_channels: int | None = Field(default=None, ge=1, le=MOST_CHANNELS_AT_ALL)
    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=MOST_LEVELS)] | None = None
    strides: Annotated[tuple[Steps, ...] | None, BeforeValidator(_as_strides)] = None
    conv: Slots = (Slot(kind="double_conv"),)
    skip: Slots = (Slot(kind="concat"),)
    up: Slots = (Slot(kind="transpose"),)
    down: Slots = (Slot(kind="max"),)
    head: OneSlot = Slot(kind="dense")
    deep_supervision: bool = False
    readout: Literal["final", "mean"] = "final"
    ends_at: str | None = None


class Loss(Frozen):
    """One criterion for every supervised head, and how the heads are weighted."""

    kind: str = "dice_ce"
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
    affine: Probability = 0.2
    degrees: float = Field(default=15.0, ge=0, le=180)
    scale: float = Field(default=0.15, ge=0, lt=1)  # 0.85 to 1.15
    shear: float = Field(default=0.0, ge=0, le=45)  # degrees, of the first two spatial axes
    intensity: Probability = 0.3  # brightness and contrast
    gamma: Probability = 0.15
    noise: Probability = 0.1
    blur: Probability = 0.1


class Training(Frozen):
    """The length, the order and the arithmetic of a training."""

    epochs: int = Field(default=100, ge=1)
    max_hours: float | None = Field(default=None, gt=0)
    patience: int = Field(default=30, ge=1)  # epochs without a better validation Dice
    fold: int | None = Field(default=None, ge=0)  # of the data set's folds
    samples_per_epoch: int | None = Field(default=None, ge=1)  # None: every case once, at least `min_steps` batches
    min_steps: int = Field(default=20, ge=1)
    clip_gradients: float | None = Field(default=12.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    seed: int = Field(default=0, ge=0)
    split_seed: int | None = Field(default=None, ge=0)  # of the split where none is given; None: `seed`
    foreground: Probability = 0.33  # share of patches placed on a structure
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: bf16 where the hardware multiplies it
    channels_last: bool = True  # in 3D only where native kernels read maps so: elsewhere it is slower
    recompute: bool = False  # compute maps within a node again in the backward pass: less memory, more time
    workers: int | None = Field(default=None, ge=0)  # None: 0 on a CPU, which computes anyway
    checkpoint_minutes: float = Field(default=1.0, ge=0)  # how much work a kill may cost


SPARSE_POINTS = 30_000  # Implicit U-Net, Sec. 2: k


class Points(Frozen):
    """Training on random points of a patch in place of all its voxels (Implicit U-Net, Sec. 2)."""

    # a number of points a patch, or below 1 a share of its voxels; None: SPARSE_POINTS for a head that reads points, else all
    count: Annotated[float, Field(gt=0)] | None = None
    alpha: Probability = 0.5  # share of them near a label boundary
    sigma: float = Field(default=5.0, ge=0)  # how far they scatter about it, in voxels


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


class Inference(Frozen):
    """How whole images are predicted."""

    overlap: float = Field(default=0.5, ge=0, lt=1)
    threshold: float = Field(default=0.5, gt=0, lt=1)  # sigmoid outputs only
    tta: bool = False  # mirror along every axis that training mirrored
    # heads that read points only (Implicit U-Net, Sec. 2): the step of the coarse mesh, 1 to ask every voxel; whether cells
    # on a boundary are asked voxel by voxel at once, as in the paper, or at half the step first; and a 3 x 3 x 3 mean of
    # the probabilities at the end
    spacing: int = Field(default=4, ge=1)
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


class Labels(Frozen):
    """The names of the classes, and whether they exclude each other.

    `names[0]` is the background unless `multilabel`; then every name is a channel of its own.
    """

    names: Annotated[tuple[str, ...], Field(min_length=1, max_length=MOST_CHANNELS_AT_ALL)] = (
        "background",
        "foreground",
    )
    multilabel: bool = False

    @property
    def foreground(self) -> tuple[str, ...]:
        """The names of the structures, in the order of their values 1..K."""
        return self.names if self.multilabel else self.names[1:]

    @property
    def outputs(self) -> int:
        """Maps of the network: 1 for one structure (sigmoid), K + 1 with background for K (softmax), K if multilabel."""
        return len(self.names) if self.multilabel or len(self.names) > 2 else 1


class Normalization(Frozen):
    """What is done to the values of one channel before the network sees them.

    zscore: minus the image's own mean, over its own standard deviation. ct: clip to [low, high], then minus `mean`, over
    `std` (of the training set's foreground). rescale: (value - low) / (high - low). none: as it is.
    """

    kind: Literal["zscore", "ct", "rescale", "none"]
    low: float = 0.0
    high: float = 1.0
    mean: float = 0.0
    std: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _has_a_range(self) -> Self:
        if self.kind in ("ct", "rescale") and self.low > self.high:
            raise ValueError(f"low {self.low:g} lies above high {self.high:g}")
        return self


class Whitening(Frozen):
    """What decorrelates the channels of a normalised image: every voxel x becomes matrix @ (x - mean)."""

    mean: tuple[float, ...]  # (C)
    matrix: tuple[tuple[float, ...], ...]  # (C, C)


def _fingerprint_faults(fingerprint: Mapping[str, Any], dims: int) -> list[str]:
    """What is wrong with those parts of a fingerprint that later steps read, where they are there."""
    faults: list[str] = []
    for group in ("spacing", "size"):
        ends = fingerprint.get(group, {})
        if not isinstance(ends, Mapping):
            faults.append(f"fingerprint.{group} is {brief(ends)}, and no minimum, median and maximum")
            continue
        for end, values in ends.items():
            if not (isinstance(values, list | tuple) and len(values) == dims and all(map(_is_length, values))):
                faults.append(
                    f"fingerprint.{group}.{printable(end)} is {brief(values)}, and no length for each of {dims} axes"
                )
    worlds = fingerprint.get("worlds")
    if worlds is not None and not (
        isinstance(worlds, list | tuple) and len(worlds) >= dims and all(type(w) is int and 0 <= w <= 2 for w in worlds)
    ):
        faults.append(f"fingerprint.worlds is {brief(worlds)}, and no axis of the patient for each of {dims} axes")
    return faults


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e12


PLAN_FORMAT = 2  # 1: axes as stored, no spacing where all images share one; see `ulna.data.format_1`


class Plan(Frozen):
    """What the data fixed, each with its reason. Stored as `plan.yaml`.

    Axes (of `spacing`, `patch`, `strides`, `mirror_axes`, `turn_axes`) are those that the network sees: the closest canonical
    ones with an `orientation`, else those of the files.
    """

    format: int = Field(default=1, ge=1, le=PLAN_FORMAT)  # a plan without it was made by an earlier ulna
    spatial_dims: Literal[2, 3]
    in_channels: int = Field(ge=1, le=MOST_CHANNELS_AT_ALL)
    channel_names: tuple[str, ...]
    labels: Labels
    orientation: Literal["RAS"] | None = None  # images are turned to it; None: the axes stay as the files store them
    spacing: (
        tuple[Length, ...] | None
    )  # of the grid the network works on, in `unit`; None (format 1): every image's own
    unit: Literal["mm", "px"]
    normalization: tuple[Normalization, ...]  # one per channel
    whitening: Whitening | None = None  # after the normalisation
    patch: tuple[Annotated[int, Field(ge=1, le=LONGEST_AXIS)], ...]
    batch: int = Field(ge=1, le=1 << 16)
    strides: Annotated[tuple[Steps, ...], Field(max_length=MOST_LEVELS - 1)]
    whole_image_limit: int = Field(ge=0)  # pixels or voxels up to which an image is predicted in one piece
    mirror_axes: tuple[Axis, ...]  # spatial axes along which flips are safe
    turn_axes: tuple[Axis, Axis] | None  # the two spatial axes that quarter turns may exchange
    reasons: dict[str, str]
    fingerprint: dict[str, Any]

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        """Every list has one entry an axis or a channel: what does not would fail far from here, or count wrong axes."""
        dims, channels = self.spatial_dims, self.in_channels
        lengths: dict[str, tuple[int, int, str]] = {
            "patch": (len(self.patch), dims, "axes"),
            "channel_names": (len(self.channel_names), channels, "channels"),
            "normalization": (len(self.normalization), channels, "channels"),
        }
        if self.spacing is not None:
            lengths["spacing"] = (len(self.spacing), dims, "axes")
        if self.whitening is not None:
            lengths["whitening.mean"] = (len(self.whitening.mean), channels, "channels")
            lengths["whitening.matrix"] = (len(self.whitening.matrix), channels, "channels")
            row = next((len(row) for row in self.whitening.matrix if len(row) != channels), channels)
            lengths["a row of whitening.matrix"] = (row, channels, "channels")
        wrong = [
            f"{name} has {has} entries, the images have {want} {what}"
            for name, (has, want, what) in lengths.items()
            if has != want
        ]
        wrong += [
            f"strides[{number}] has {len(step)} entries, the images have {dims} axes"
            for number, step in enumerate(self.strides)
            if len(step) != dims
        ]
        for name, axes in (("mirror_axes", self.mirror_axes), ("turn_axes", self.turn_axes or ())):
            if len(set(axes)) < len(axes) or any(axis >= dims for axis in axes):
                wrong.append(f"{name} is {list(axes)}; it holds axes below {dims}, each once")
        if not self.labels.foreground:
            wrong.append("labels name the background only")
        wrong += _fingerprint_faults(self.fingerprint, dims)
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    @property
    def levels(self) -> int:
        """Resolutions of the network."""
        return len(self.strides) + 1

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return self.model_dump(mode="json")


MOST_FAULTS = 20  # lines of one message


def parse(model: type[M], values: Any, source: str = "") -> M:
    """Validate `values`; every fault becomes one line that names the field and, for a wrong name, the nearest.

    Raises:
        UsageError: with all faults; of very many, the first.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        lines = [_fault(model, e["loc"], e["type"], e["msg"], e.get("input")) for e in faults[:MOST_FAULTS]]
        if len(faults) > MOST_FAULTS:
            lines.append(f"{len(faults) - MOST_FAULTS} more faults")
        head = f"{printable(source)}: " if source else ""
        raise UsageError(head + "\n".join(lines)) from None


def _fault(model: type[Frozen], loc: tuple[Any, ...], kind: str, message: str, value: Any) -> str:
    path = printable(".".join(str(part)[:LONGEST_SHOWN] for part in loc))
    if kind == "extra_forbidden":
        owner = _field_type(model, loc[:-1])
        valid = owner.model_fields if owner else ()
        return f"{path}: not a field; {str(unknown('field', loc[-1], valid)).split('; ', 1)[-1]}"
    if kind == "value_error":  # of a check that ulna makes itself: it says what came
        return (f"{path}: " if path else "") + message.removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}, got {brief(value)}"


def _field_type(model: type[Frozen], loc: Sequence[Any]) -> type[Frozen] | None:
    current: Any = model
    for part in loc:
        if isinstance(part, int):
            current = Slot
        elif isinstance(current, type) and issubclass(current, Frozen) and part in current.model_fields:
            annotation = current.model_fields[part].annotation
            current = annotation if isinstance(annotation, type) else Slot
        else:
            return None
    return current if isinstance(current, type) and issubclass(current, Frozen) else None


def set_value(recipe: Recipe, assignment: str) -> Recipe:
    """Change one field by its path: `optimizer.lr=3e-4`, `architecture.conv.double_conv.norm=instance`.

    A kind of block in the path addresses every entry of that kind; its `options` may be left out. The value is YAML.

    Raises:
        UsageError: for an assignment without "=", an unknown path (with the nearest name), or a value that does not fit.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise UsageError(f"--set {assignment}: expected KEY=VALUE, for example --set optimizer.lr=3e-4")
    try:
        value = parse_yaml(text, f"--set {assignment}")
    except UsageError:
        raise UsageError(f"--set {assignment}: {text!r} is not a YAML value") from None
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as text
        with suppress(ValueError):
            value = float(value)
    parts = path.strip().split(".")
    return parse(Recipe, _assign(recipe.model_dump(), parts, value, path, Recipe), source=f"--set {assignment}")


def _assign(values: Any, parts: list[str], new: Any, path: str, model: type[Frozen]) -> Any:
    name, rest = parts[0], parts[1:]
    if name not in model.model_fields:
        raise UsageError(f"--set {path}: {unknown('field', name, model.model_fields)}")
    current = values[name]
    slots = model is Architecture and name in ("conv", "skip", "up", "down")
    if not rest:
        return {**values, name: new}
    if slots or (model is Architecture and name == "head"):
        entries = list(current) if slots else [current]
        kind = rest[0] if rest[0] in {e["kind"] for e in entries} else None
        keys = rest[1:] if kind else rest
        if kind is None and (not slots or rest[0] not in Slot.model_fields):
            raise UsageError(f"--set {path}: {unknown('block in this slot', rest[0], {e['kind'] for e in entries})}")
        changed = [_assign_slot(e, keys, new, path) if kind in (None, e["kind"]) else e for e in entries]
        return {**values, name: changed if slots else changed[0]}
    owner = _field_type(model, [name])
    if isinstance(current, dict) and owner in (None, Slot):
        return {**values, name: {**current, ".".join(rest): new}}
    if owner is None or not isinstance(current, dict):
        raise UsageError(f"--set {path}: {name} holds one value, there is nothing below it")
    return {**values, name: _assign(current, rest, new, path, owner)}


def _assign_slot(entry: dict[str, Any], keys: list[str], new: Any, path: str) -> dict[str, Any]:
    if len(keys) == 1 and keys[0] in Slot.model_fields:
        return {**entry, keys[0]: new}
    if keys and keys[0] == "options":
        keys = keys[1:]
    if len(keys) != 1:
        raise UsageError(f"--set {path}: expected architecture.SLOT.KIND.OPTION=VALUE")
    return {**entry, "options": {**entry["options"], keys[0]: new}}


def to_yaml(model: Frozen) -> str:
    """YAML of a recipe or plan: plain values only, in the order of the fields."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def from_yaml(model: type[M], path: Path) -> M:
    """Read a recipe or plan.

    Raises:
        UsageError: if the file is missing, not YAML, or does not fit.
    """
    return parse(model, read_yaml(path), source=str(path))


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, section by section; lists and single values are replaced."""
    both = dict(base)
    if "kind" in changes:  # a section that names its kind stands for itself: no options of another kind
        both.pop("options", None)
    for name, value in changes.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


class Split(Frozen):
    """Which cases train, which choose the epoch, which are kept for the end. By case id."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _no_case_twice(self) -> Self:
        sets = {"train": set(self.train), "val": set(self.val), "test": set(self.test)}
        for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
            both = sorted(sets[a] & sets[b])
            if both:
                raise ValueError(f"{len(both)} cases stand in {a} and in {b}, for example {both[0]}")
        return self
