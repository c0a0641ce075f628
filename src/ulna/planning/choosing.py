"""The recipe of a command: what a model recommends, then what a person states, and whether its words mean anything."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from ulna.data.layout.declared import recipe_classes
from ulna.data.pipeline.points import count_points
from ulna.errors import UsageError, printable
from ulna.losses import make_loss
from ulna.networks.build import named, recommends, validate
from ulna.networks.catalog.marimont import POINTWISE
from ulna.networks.foreign import check_named, check_options, permit, permit_named
from ulna.networks.heads import HEADS
from ulna.planning.grid import check_grid
from ulna.planning.length import STATED, check_budget
from ulna.planning.memory import MEMORY_GB
from ulna.planning.normalising import check_normalization
from ulna.recipe import Architecture, Recipe, merged, parse, read_shares, set_value, stated
from ulna.system.device import find_device


def choose(
    *,
    model: str | None,
    recipe: Path | str | None,
    epochs: int | None = None,
    max_hours: float | None = None,
    budget: str | None = None,
    seed: int | None = None,
    fold: int | None = None,
    folds: int | None = None,
    split: str | None = None,
    init: str | None = None,
    architecture: Architecture | None = None,
    max_ram: float | None = None,
    set: Sequence[str] = (),
    planned: Recipe | None = None,
    allow_code: bool = False,
) -> Recipe:
    """The recipe of a command: what the model recommends, then the file, then the flags, then --set.

    Left out, the model is that of the file, else unet (`choose_network` looks at the data before); `max_ram` is GB that
    a training may take: they lower `planning.memory_gb`, and never raise it; `architecture` stands in place of the
    model's. What was `planned` stands in place of model and file where neither is given. A `budget` takes the place of
    what all of these say of the length. The code of a network that a file names runs with `allow_code` only; who names
    it as the model allows it.

    Raises:
        UsageError: for a name, key or value that does not exist, with the nearest.
    """
    check_budget(budget)
    check_division(split=split, fold=fold, folds=folds)
    own = stated(recipe)
    if model is not None:
        own.pop("architecture", None)  # a model named in the command replaces the file's network
        permit_named(model)
    name = model or own.get("model", Recipe().model)
    base = recommended(str(name)).model_dump()
    chosen = parse(Recipe, merged(base, {**own, "model": name}), source=str(recipe or ""))
    if planned is not None and model is None and recipe is None:
        chosen = planned
    if architecture is not None:
        chosen = chosen.replaced(architecture=architecture)
    if allow_code:
        permit(chosen.architecture.foreign, *([] if recipe is None else [Path(recipe).parent]))
    check_named(chosen.architecture.foreign, recipe or "the plan")
    if budget is not None:
        open_length = dict.fromkeys(STATED)
        chosen = chosen.replaced(training=chosen.training.replaced(**open_length, budget=budget))
    flags = {
        "epochs": epochs, "max_hours": max_hours, "seed": seed, "fold": fold, "folds": folds, "split": split,
        "init": init,
    }  # fmt: skip
    changes: dict[str, object] = {flag: value for flag, value in flags.items() if value is not None}
    if epochs is not None:
        changes["steps"] = None  # epochs in place of the steps of a file
    if changes:
        chosen = chosen.replaced(training=chosen.training.replaced(**changes))
    for assignment in [set] if isinstance(set, str) else set:
        if assignment.partition("=")[0].strip() == "model":
            raise UsageError(f"--set {assignment}: choose the network with --model")
        chosen = set_value(chosen, assignment)
    if max_ram is not None:
        chosen = _bounded(chosen, max_ram)
    keys = [one.partition("=")[0].strip() for one in ([set] if isinstance(set, str) else set)]
    if any(key.startswith("architecture.head") for key in keys):  # a file says all that it wants
        said = {key.split(".")[1] for key in keys if key.startswith("loss.")}
        chosen = fitted_to_head(chosen, said | {*(own.get("loss") or {})})
    return chosen


def _bounded(recipe: Recipe, max_ram: float) -> Recipe:
    """A step takes no more than a limit, and no more than it would without one."""
    if not 0 < max_ram < math.inf:
        raise UsageError(f"--max-ram {max_ram:g}: must be above 0")
    stated = recipe.planning.memory_gb
    if max_ram >= ((math.inf if find_device().gpu else MEMORY_GB) if stated is None else stated):
        return recipe
    return recipe.replaced(planning=recipe.planning.replaced(memory_gb=max_ram))


def check_division(*, split: str | None, fold: int | None, folds: int | None) -> None:
    """Refuse flags that say how cases are divided and do not go together, or make no sense.

    Raises:
        UsageError: with what is wrong.
    """
    if fold is not None and folds is not None:
        raise UsageError(
            f"--fold {fold} and --folds {folds}: --fold trains one fold, --folds all of them; give one of them"
        )
    if folds is not None and folds < 2:
        raise UsageError(f"--folds {folds}: two or more, or leave it out")
    if split is None:
        return
    if fold is not None or folds is not None:
        raise UsageError(f"--split {split} and --fold{'' if folds is None else 's'}: give one of them")
    try:
        read_shares(split)
    except ValueError as error:
        raise UsageError(f"--split {printable(error)}") from None


def check_words(recipe: Recipe) -> None:
    """Build a network and its loss without memory, so that a wrong name, or sizes that contradict, cost no reading of data.

    What a model recommends for itself holds no wrong name.

    Raises:
        UsageError: for a name, an option or a number that fits no network.
    """
    _check_beginning(recipe)
    check_grid(recipe.planning)
    check_normalization(recipe.planning)
    if recipe.classes is not None:
        recipe_classes(recipe.classes)
    if recipe.augmentation.elastic_probability and not recipe.augmentation.elastic:
        raise UsageError(
            f"augmentation.elastic_probability={recipe.augmentation.elastic_probability:g}, but augmentation.elastic, the "
            "strength of the deformation in mm, is 0; set it too, for example to 2"
        )
    if recipe.architecture.foreign is not None:
        check_options(recipe.architecture.foreign)
        make_loss(recipe.loss.kind, options=recipe.loss.options, heads=recipe.loss.heads, multilabel=False)
        return
    own = recommended(recipe.model)
    if (recipe.architecture, recipe.loss) == (own.architecture, own.loss):
        return
    strides = recipe.architecture.strides or ()
    dims = 3 if any(len(step) == 3 for step in strides) else 2
    network = validate(recipe.architecture, in_channels=1, classes=1, spatial_dims=dims)
    loss = make_loss(recipe.loss.kind, options=recipe.loss.options, heads=recipe.loss.heads, multilabel=False)
    with torch.device("meta"), torch.no_grad():
        voxels = math.prod(network.divisor)
        count = count_points(recipe.points, voxels, sparse=network.head.sparse)
        points = None if count is None else torch.zeros(1, count, dims, dtype=torch.long)
        loss.weights_for(network.eval().outputs(torch.zeros(1, 1, *network.divisor), points))


def _check_beginning(recipe: Recipe) -> None:
    """Refuse what is said of weights that a training takes over where it takes none."""
    training, foreign = recipe.training, recipe.architecture.foreign
    if training.init is not None or (foreign is not None and foreign.encoder_weights is not None):
        return
    for name in ("frozen_epochs", "init_lr_factor"):
        value = getattr(training, name)
        if value != type(training).model_fields[name].default:
            raise UsageError(
                f"training.{name}={value:g}: is of weights that a training begins with, and it begins with none; name them "
                f"with --init, or leave it out"
            )


def recommended(model: str) -> Recipe:
    """The default recipe with a named network and what that network needs to train as meant."""
    recipe = Recipe(model=model, architecture=named(model))
    for path, value in recommends(model).items():
        recipe = set_value(recipe, f"{path}={value}")
    return recipe


def fitted_to_head(recipe: Recipe, stated: Collection[str]) -> Recipe:
    """With another head than the model's own, what the model recommends for its heads gives way.

    Heads that are gone have no weight, and a head that reads points pools Dice over a batch, as that of the Implicit U-Net
    does.

    Args:
        recipe: as it was chosen.
        stated: the fields of the loss that a person stated, which stay: "heads", "options".
    """
    if recipe.architecture.foreign is not None:
        return recipe
    own, kind = recommended(recipe.model), recipe.architecture.head.kind
    if kind == own.architecture.head.kind or kind not in HEADS:  # an unknown one is refused where the network is built
        return recipe
    loss = recipe.loss
    if "heads" not in stated:
        loss = loss.replaced(heads="equal")
    if "options" not in stated and HEADS[kind].sparse and loss.kind == own.loss.kind:
        loss = loss.replaced(options=POINTWISE["loss.options"])
    return recipe.replaced(loss=loss)
