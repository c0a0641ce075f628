"""How long a training is: a budget with a name, in steps and hours, unless a recipe says epochs or hours itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from ulna.errors import UsageError, counted, printable, unknown
from ulna.recipe import Recipe, Training
from ulna.system.device import Device


class Budget(NamedTuple):
    """The length that a name stands for.

    Args:
        epochs: at most.
        steps: of an epoch, however many cases there are: each epoch shows the next ones of a shuffled order.
        patience: epochs without a better Dice on the whole validation images that end the training.
        max_hours: at most, for machines on which so many steps take long.
    """

    epochs: int
    steps: int
    patience: int
    max_hours: float | None


BUDGETS = {
    "quick": Budget(epochs=25, steps=100, patience=10, max_hours=0.25),
    "standard": Budget(epochs=100, steps=250, patience=30, max_hours=2.0),
    # 250,000 steps, as nnU-Net makes (isensee2021), which never ends sooner
    "full": Budget(epochs=1000, steps=250, patience=200, max_hours=None),
}
ON_A_GPU = "standard"  # where nothing is said; on a CPU it is epochs over the cases
# Of an epoch of slices where nothing is said: volumes have thousands of them, and neighbours are alike
MOST_SLICE_STEPS = 250
# What a budget says, where the recipe does not.
FIELDS = ("epochs", "steps_per_epoch", "patience", "max_hours")
STATED = (*FIELDS, "samples_per_epoch", "steps")  # what a recipe says of the length, which a budget takes the place of


def check_budget(name: str | None) -> None:
    """Refuse a budget that there is not.

    Raises:
        UsageError: with the nearest.
    """
    if name is not None and name not in BUDGETS:
        raise UsageError(f"--budget {printable(name)}: {unknown('budget', name, BUDGETS)!s}")


def resolve_length(recipe: Recipe, device: Device, *, slices: bool = False) -> tuple[Recipe, str]:
    """The recipe with its length in numbers, so that it trains alike anywhere, and where they come from.

    A number that the recipe states takes the place of the budget's. `slices`: samples are slices of volumes; an epoch
    takes no more than `MOST_SLICE_STEPS` batches where nothing is said.
    """
    training = recipe.training
    name: str | None = training.budget
    why = ""
    if name is None and device.gpu and training.epochs is None and training.steps is None:
        name = ON_A_GPU if training.max_hours is None else "full"  # the hours end it
        why = f"what a GPU is given where {'nothing' if training.max_hours is None else 'only hours'} is said, "
    if name is None:
        numbers: dict[str, Any] = {"epochs": training.most_epochs, "patience": training.most_patience}
        if training.steps is not None:
            numbers["epochs"] = training.epochs
    else:
        budget = BUDGETS[name]
        stated = {field: value for field in FIELDS if (value := getattr(training, field)) is not None}
        numbers = {**dict(zip(FIELDS, budget, strict=True)), **stated}
        if training.samples_per_epoch is not None:
            numbers["steps_per_epoch"] = training.steps_per_epoch
        if training.steps is not None:
            numbers["epochs"] = training.epochs
    resolved = training.replaced(**numbers, budget=None)
    return recipe.replaced(training=resolved), (f"{name}, {why}" if name else "") + _said(resolved, slices)


def _said(training: Training, slices: bool) -> str:
    if isinstance(training.samples_per_epoch, int):
        epoch = f"{counted(training.samples_per_epoch, 'sample')}"
    elif training.steps_per_epoch is not None:
        epoch = f"{counted(training.steps_per_epoch, 'step')}"
    elif training.samples_per_epoch == "all":
        epoch = f"every {'slice' if slices else 'training case'} once, at least {counted(training.min_steps, 'step')}"
    elif slices:
        epoch = f"every slice once, at least {training.min_steps} and at most {MOST_SLICE_STEPS} steps"
    else:
        epoch = f"every training case once, at least {counted(training.min_steps, 'step')}"
    hours = "" if training.max_hours is None else f", {training.max_hours:g} h at most"
    many = (
        counted(training.epochs, "epoch")
        if training.epochs is not None
        else f"{counted(training.steps or 0, 'step')}, in epochs"
    )
    if training.epochs is not None and training.steps is not None:
        many = f"{counted(training.steps, 'step')} at most, in {many}"
    every = training.validate_every
    waited = (
        f"{training.patience}"
        if every == 1
        else f"{counted(training.most_patience, 'validation')}, one every {every} epochs,"
    )
    return f"{many} of {epoch}{hours}; {waited} without a better {training.measure} on whole validation images end it"


def in_epochs(training: Training, cases: int, batch: int, *, slices: bool = False) -> Training:
    """A length in steps in epochs too, of which the last may be shorter; any other length as it is.

    Args:
        training: with its length in numbers.
        cases: that train, or slices of an epoch.
        batch: of a step.
        slices: an epoch takes no more than `MOST_SLICE_STEPS` batches where nothing is said.
    """
    if training.steps is None:
        return training
    steps = -(-training.samples_of_epoch(cases, batch, MOST_SLICE_STEPS if slices else None) // batch)
    epochs = -(-training.steps // steps)
    if training.epochs is not None:
        epochs = min(epochs, training.epochs)
    return training.replaced(epochs=epochs, steps_per_epoch=steps, samples_per_epoch=None)
