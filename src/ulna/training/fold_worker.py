"""One fold of a cross-validation in a process: `python -m ulna.training.fold_worker DATA FOLDER NUMBER OPTIONS`.

FOLDER has the recipe of all folds; OPTIONS is JSON: what else the command that trains them was given. It ends with what
began it, and leaves a checkpoint; of two processes of one fold the second waits for the lock of the first.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

from ulna.executors.working import work
from ulna.recipe import Recipe, from_yaml
from ulna.system.outputs import FOLDS_FILE, RUN_FILE


def main(data: Path, folder: Path, number: int, options: str) -> int:
    """Train a fold, or go on; returns the exit code of `ulna train`."""
    from ulna.data.layout.pseudonyms import opened
    from ulna.networks.foreign import permit
    from ulna.system.threads import choose_threads, computing_with
    from ulna.system.trackers import open_tracker
    from ulna.training.folds import finished, other_limits
    from ulna.training.same_command import same_threads
    from ulna.training.single import train_into

    given, run = json.loads(options), folder / f"fold_{number}"

    @cache
    def of_all() -> Recipe:
        return from_yaml(Recipe, folder / FOLDS_FILE)

    def training() -> None:
        recipe = of_all()
        if given["allow_code"]:
            permit(recipe.architecture.foreign, run)
        begun = (run / RUN_FILE).exists()
        own = recipe.replaced(training=recipe.training.replaced(fold=number))
        key = given["pseudonymise"]
        with computing_with(choose_threads(same_threads(run, None) if begun else None)):
            train_into(
                data,
                run,
                None if begun else own,
                model_because=given["because"],
                names=opened(None if key is None else Path(key), run),
                tracker=open_tracker(given["track"]),
                shared=True,
                limit=given.get("limit"),
                **(other_limits(run, recipe) if begun else {}),
            )

    bounded = given.get("limit") is not None
    return work(data, run, training, lambda: finished(run, of_all()), bounded=bounded)


if __name__ == "__main__":
    place, together, fold, words = sys.argv[1:]
    sys.exit(main(Path(place), Path(together), int(fold), words))
