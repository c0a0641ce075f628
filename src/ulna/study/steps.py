"""A hundred training steps in a process of their own: `python -m ulna.study.steps RUN` prints seconds, MB and steps made.

As the Implicit U-Net paper (marimont2022), Table 1, has them: time and peak memory of 100 steps, without reading data and
without validation. The samples are made, of the patch's size; where steps are slow, fewer are made and stand for 100.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

MANY = 100
LONGEST_S = 30.0  # no step begins after so long


class HundredSteps(NamedTuple):
    """What a hundred steps take.

    Args:
        seconds: of all of them.
        mb: peak memory of the process; of the GPU where one is used.
        made: how many were made.
    """

    seconds: float
    mb: float
    made: int


def hundred_steps(run: Path) -> HundredSteps | None:
    """Of the training of a run folder, in a fresh process; None where that failed."""
    command = [sys.executable, "-P", "-m", "ulna.study.steps", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        seconds, mb, made = done.stdout.split()[-3:]
        return HundredSteps(float(seconds), float(mb), int(made))
    except ValueError:
        return None


def main(run: Path) -> None:
    """Make the steps, and print what they took."""
    from ulna.inference.segmenter import read_split
    from ulna.kernels.allocator import peak_memory_mb, tune_memory
    from ulna.networks.foreign import permit_stored
    from ulna.planning.plan import planned_by
    from ulna.recipe import Plan, Recipe, from_yaml
    from ulna.system import progress
    from ulna.training.duration import time_steps

    progress.quiet(True)
    tune_memory()
    recipe, plan = from_yaml(Recipe, run / "recipe.yaml"), from_yaml(Plan, run / "plan.yaml")
    permit_stored(recipe.architecture.foreign, run, allow_code=True)  # the study, which asks, has trained it
    seconds, made = time_steps(planned_by(plan, recipe, read_split(run)), most=MANY, longest_s=LONGEST_S)
    print(seconds / made * MANY, peak_memory_mb(), made)  # noqa: T201 - what the study reads


if __name__ == "__main__":
    main(Path(sys.argv[1]))
