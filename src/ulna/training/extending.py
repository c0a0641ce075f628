"""More epochs, or hours, for a run: where its extension begins."""

from __future__ import annotations

from pathlib import Path

from ulna.recipe import Recipe
from ulna.system.reading import read_json_object
from ulna.training.state import State
from ulna.training.summary import limits_of

SUMMARY = "summary.json"


def extend(state: State, folder: Path, before: Recipe, recipe: Recipe) -> None:
    """Note where an extension began, if limits of a run were raised; rate, patience and choice of the epoch follow.

    A finished run is known by its summary, which names the limits that it was finished with until the extension is. So an
    extension that was stopped goes on as one.

    Args:
        state: as its checkpoint has it.
        folder: of the run.
        before: its recipe so far.
        recipe: that from now on.
    """
    changed = before.training != recipe.training
    over = _finished(folder, recipe)
    begins = over is not None and state.extended_epoch != over[0] <= state.epoch
    if over is not None and begins:
        state.extend(*over)
    elif changed and state.finished(before):
        state.extend(state.epoch, state.elapsed_s)
    elif changed:
        state.patience_from = state.epoch
        state.time_is_up, state.last_step = False, None
    if (begins or changed) and state.val_cases is not None and not state.finished(recipe):
        state.forget_choice()


def _finished(folder: Path, recipe: Recipe) -> tuple[int, float] | None:
    """The epochs and seconds after which a run was finished with other limits than these; None for one that was not."""
    if not (folder / SUMMARY).exists():
        return None
    summary = read_json_object(folder / SUMMARY)
    epoch, seconds, limits = (summary.get(name) for name in ("epochs", "training_seconds", "limits"))
    if limits in (None, limits_of(recipe.training)):  # earlier versions named none
        return None
    if isinstance(epoch, int) and epoch > 0 and isinstance(seconds, int | float):
        return epoch, float(seconds)
    return None
