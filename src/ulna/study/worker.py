"""One training of a study in a process: `python -m ulna.study.worker DATA RECIPE RUN [KEY] [--allow-code]`.

It ends with what began it: where that was killed, it leaves a checkpoint at its next step. Two workers never write one
run folder: the second waits for the lock of the first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from ulna.data.prepared.store import SWITCH as CACHE_SWITCH
from ulna.executors import working

# The last word of a command whose network is code that a person named.
ALLOW = "--allow-code"


def is_done(run: Path) -> bool:
    """Whether a training has its figures."""
    return (run / "summary.json").exists() and (run / "cases.csv").exists()


def main(data: Path, recipe: Path, run: Path, key: Path | None = None, *, allow_code: bool = False) -> int:
    """Train, or go on; returns the exit code of `ulna train`. `allow_code`: a person named the code of the network."""
    # the other trainings of the study find the cases that this one prepares
    os.environ.setdefault(CACHE_SWITCH, "1")

    def training() -> None:
        from ulna.training.train import train

        if (run / "recipe.yaml").exists():
            train(data, out=run, resume=True, pseudonymise=key, allow_code=allow_code)
        else:
            train(data, out=run, recipe=recipe, pseudonymise=key, allow_code=allow_code)

    return work(data, run, training)


def work(data: Path, run: Path, training: Callable[[], None]) -> int:
    """Do a training of a study; returns the exit code of `ulna train`."""
    return working.work(data, run, training, lambda: is_done(run))


if __name__ == "__main__":
    paths = sys.argv[1:]
    allowed = paths[-1:] == [ALLOW]
    sys.exit(main(*map(Path, paths[: len(paths) - allowed]), allow_code=allowed))
