"""nnU-Net itself beside the networks of a study: what its rows are called, and where its commands are.

It runs as processes of an environment of its own, and nothing of it is imported here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ulna.errors import UsageError, printable, unknown

KIND = "nnunetv2:"  # before the name of a configuration
CONFIGURATIONS = ("2d", "3d_fullres")
WHERE = "ULNA_NNUNET"  # the python of its environment
COMMANDS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")
# epochs -> the trainer class that comes with it
TRAINERS = {
    1: "nnUNetTrainer_1epoch",
    **{epochs: f"nnUNetTrainer_{epochs}epochs" for epochs in (5, 10, 20, 50, 100, 250, 500, 750)},
    1000: "nnUNetTrainer",
    **{epochs: f"nnUNetTrainer_{epochs}epochs" for epochs in (2000, 4000, 8000)},
}
STEPS = 250  # of an epoch, and a fifth as many to validate
SHARED = "nnunet"  # the folder of a study with what all its rows read
_ANSWERS_S = 60.0


class Row(NamedTuple):
    """What the name of a row says: `nnunetv2:3d_fullres`, or `nnunetv2:2d/50` with the epochs.

    Args:
        configuration: one of `CONFIGURATIONS`.
        epochs: that the name asks for.
        steps: of its one epoch, where the name asks for less than one.
    """

    configuration: str
    epochs: int | None = None
    steps: int = STEPS


def is_nnunet(model: str) -> bool:
    """Whether a model's name is a row of nnU-Net's."""
    return model.startswith(KIND)


def read_row(model: str) -> Row:
    """The parts of a name.

    Raises:
        UsageError: if it is none, or names epochs that no trainer of nnU-Net has.

    Example:
        >>> read_row("nnunetv2:3d_fullres").epochs, read_row("nnunetv2:2d/50").epochs, read_row("nnunetv2:2d/0.1").steps
        (None, 50, 25)
    """
    form = re.fullmatch(r"(\w+)(?:/(\d{1,5}|0\.\d{1,4}))?", model.removeprefix(KIND))
    if form is None:
        raise UsageError(
            f"{printable(model)}: expected nnunetv2:2d or nnunetv2:3d_fullres, or nnunetv2:2d/50 with its epochs"
        )
    if form[1] not in CONFIGURATIONS:
        raise unknown("configuration of nnunetv2", form[1], CONFIGURATIONS)
    if form[2] is None:
        return Row(form[1])
    if "." in form[2]:
        steps = round(float(form[2]) * STEPS)
        if steps < 1:
            raise UsageError(f"{model}: less than one step; an epoch of nnU-Net has {STEPS}")
        return Row(form[1], 1, steps)
    epochs = int(form[2])
    if epochs not in TRAINERS:
        raise UsageError(
            f"{model}: nnU-Net has no trainer of {epochs} epochs; it has those of {', '.join(map(str, TRAINERS))}, "
            f"and 0.1 is a tenth of one epoch"
        )
    return Row(form[1], epochs)


def trained_epochs(wanted: int) -> int:
    """As many as wanted, or the next smaller number that a trainer of nnU-Net has."""
    return max((epochs for epochs in TRAINERS if epochs <= wanted), default=1)


class Environment(NamedTuple):
    """Where nnU-Net is: the folder of its commands."""

    folder: Path

    def command(self, name: str) -> str:
        """One of `COMMANDS`."""
        return str(self.folder / name)

    def version(self) -> str:
        """Of nnU-Net; "unknown" where its python does not say."""
        code = "from importlib.metadata import version; print(version('nnunetv2'))"
        with suppress(OSError, subprocess.SubprocessError):
            words = [str(self.folder / "python"), "-c", code]
            said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=_ANSWERS_S, env=clean())
            return printable(said.stdout.strip())[:40] or "unknown"
        return "unknown"


def find() -> Environment | str:
    """The environment of nnU-Net, or why there is none: `ULNA_NNUNET` says which python has it, else the path is searched."""
    if named := os.environ.get(WHERE):
        python = Path(named)
        folder = python if python.is_dir() else python.parent
        missing = [name for name in COMMANDS if not (folder / name).is_file()]
        if missing:
            return f"{WHERE} names {printable(python)}, beside which there is no {missing[0]}"
        return Environment(folder)
    place = shutil.which(COMMANDS[1])
    if place is None:
        return f"no {COMMANDS[1]} on the path, and {WHERE} names no python that has it"
    return Environment(Path(place).parent)


def clean() -> dict[str, str]:
    """The environment variables without those that would bring modules of ours into another python."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
