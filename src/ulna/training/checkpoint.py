"""The checkpoints of a training: the last one and the one before, so that a kill at any moment leaves a usable one."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ulna.errors import UsageError, counted, printable
from ulna.networks.weights import check_finite
from ulna.recipe import Frozen
from ulna.system.files import Tensors, move_whole, read_state, read_tensors, write_tensors
from ulna.system.threads import MOST_THREADS

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"  # the folder in that of a run
# files that only a finished epoch leaves: where they are, a training does not begin anew
FINISHED = ("weights.safetensors", "metrics.csv", "summary.json")
NEXT, LAST, PREVIOUS = "next.safetensors", "last.safetensors", "previous.safetensors"
TAKEN = "taken_over"  # names of the weights that the training began with, where its recipe says something of them
NETWORK = "network."  # what the names of weights begin with
# which samples a training draws from its seed; 1: other streams, scaled along the first axis alone, turned in voxels
TRAINING_FORMAT = 2
OF_THE_DEVICE = ("fused", "foreach", "capturable")  # how a device updates, and nothing of what


def check_unfinished(folder: Path) -> None:
    """Raise a UsageError where a run folder without a checkpoint holds what only a finished epoch leaves."""
    finished = [name for name in FINISHED if (folder / name).exists()]
    if finished:
        raise UsageError(
            f"{printable(folder / CHECKPOINTS)}: holds no checkpoint, and {printable(folder / finished[0])} is of epochs "
            "that were finished; bring the checkpoints back from a copy of the run, or train again into another folder"
        )


def save_checkpoint(folder: Path, checkpoint: Tensors) -> None:
    """Make `checkpoint` the last one, and the last one the previous one.

    It is written beside them and read back first. Whatever happens on the way, the newest whole file is the one that
    `load_checkpoint` finds.

    Raises:
        UsageError: if it cannot be written, or reads back otherwise; the older ones stay.
    """
    write_tensors(folder / NEXT, checkpoint)
    read_tensors(folder / NEXT)
    if (folder / LAST).exists():
        move_whole(folder / LAST, folder / PREVIOUS)
    move_whole(folder / NEXT, folder / LAST)


def keep_last(folder: Path) -> None:
    """Leave the last checkpoint of a finished training alone; nothing is removed unless that one is there."""
    if (folder / LAST).exists():
        for name in (NEXT, PREVIOUS):
            with suppress(OSError):  # it costs room, and nothing else
                (folder / name).unlink(missing_ok=True)


def stored_threads(folder: Path) -> int | None:
    """With how many threads the newest checkpoint that can be read was computed; None without one."""
    for name in (NEXT, LAST, PREVIOUS):
        with suppress(UsageError):
            found = read_state(folder / name).get("arithmetic", {})
            number = found.get("threads") if isinstance(found, dict) else None
            return number if isinstance(number, int) and 1 <= number <= MOST_THREADS else None
    return None


def stored_taken(folder: Path) -> list[str]:
    """Names of the weights that a training took over, as its newest checkpoint that can be read says.

    Raises:
        UsageError: if it does not say so.
    """
    for name in (NEXT, LAST, PREVIOUS):
        with suppress(UsageError):
            found = read_state(folder / name).get(TAKEN)
            if isinstance(found, list) and all(isinstance(one, str) for one in found):
                return found
    raise UsageError(
        f"{printable(folder)}: no checkpoint says which weights the training took over; bring one back from a copy of the "
        "run, or train again into another folder"
    )


def load_checkpoint(folder: Path, largest: int | None = None) -> Tensors | None:
    """The newest whole checkpoint of a folder; None if there never was one.

    Args:
        folder: `checkpoints` of a run.
        largest: bytes; a larger file is none of this training.

    Raises:
        UsageError: if there are checkpoints and none is whole: to begin anew would throw away what they stand for.
    """
    faults: list[str] = []
    for name in (NEXT, LAST, PREVIOUS):
        if not (folder / name).exists():
            continue
        try:
            saved = read_tensors(folder / name, largest)
            # as before a save: moments that overflowed stop no training, and one that goes on has them too
            check_finite(folder / name, {n: t for n, t in saved.tensors.items() if n.startswith(NETWORK)})
            return saved
        except UsageError as error:
            faults.append(str(error))
            log.warning("skipped a damaged checkpoint: %s", error)
    if [path.name for path in sorted(folder.glob("*.safetensors"))] == [NEXT]:
        return None  # the first one was never whole
    if faults:
        raise UsageError(
            f"{printable(folder)}: no checkpoint is whole; bring one back from a copy of the run, or train again into "
            "another folder\n" + "\n".join(f"  {fault}" for fault in faults)
        )
    return None


def begun_format(folder: Path) -> int | None:
    """The training format of the newest checkpoint that can be read; None without one."""
    for name in (NEXT, LAST, PREVIOUS):
        with suppress(UsageError):  # damaged, or none: `load_checkpoint` says so
            found = read_state(folder / name).get("format", 1)
            return found if isinstance(found, int) else 1
    return None


# the columns of metrics.csv; no times: a training that was stopped and went on writes the same file to the byte
METRICS = ("epoch", "lr", "train_loss", "val_dice", "val_iou")


class Spent(Frozen):
    """Seconds by phase, those of `PHASES`; all or none."""

    data: float = Field(default=0.0, ge=0)
    steps: float = Field(default=0.0, ge=0)
    validation: float = Field(default=0.0, ge=0)
    writing: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.model_fields_set and len(self.model_fields_set) < len(type(self).model_fields):
            raise ValueError(f"seconds of {', '.join(sorted(self.model_fields_set))} alone")
        return self


class Progress(Frozen):
    """What a checkpoint says about the loop; see `State` there."""

    monitor: Literal["dice", "iou"] = "dice"  # checkpoints of earlier versions do not say it
    epoch: int = Field(ge=0)
    rows: tuple[dict[str, int | float | None], ...]  # None: an epoch that was not validated
    best_dice: float
    best_epoch: int = Field(ge=-1)
    patience_from: int = Field(ge=0)
    elapsed_s: float = Field(ge=0)
    step: int = Field(ge=0)
    losses: tuple[float, ...]
    step_s: float = Field(ge=0)
    peak_mb: float = Field(ge=0)
    # checkpoints of earlier versions have none of these
    reading_s: float = Field(default=0.0, ge=0)
    final_s: float = Field(default=0.0, ge=0)
    case_s: float = Field(default=0.0, ge=0)
    last_step: int | None = Field(default=None, ge=1)
    val_cases: int | None = Field(default=None, ge=1)
    time_is_up: bool = False
    extended_epoch: int = Field(default=0, ge=0)
    extended_s: float = Field(default=0.0, ge=0)
    seconds: Spent = Spent()  # checkpoints of earlier versions have none
    epoch_seconds: Spent = Spent()

    @model_validator(mode="after")
    def _fits_itself(self) -> Self:
        if len(self.rows) != self.epoch or any(not {*METRICS} <= set(row) for row in self.rows):
            raise ValueError(f"{counted(len(self.rows), 'row of measures')} against {counted(self.epoch, 'epoch')}")
        if self.best_epoch >= self.epoch or (self.best_epoch >= 0 and None in self.rows[self.best_epoch].values()):
            raise ValueError(f"epoch {self.best_epoch + 1}, the best one, is none of those that were validated")
        if len(self.losses) != self.step:
            raise ValueError(f"{counted(len(self.losses), 'loss')} against {counted(self.step, 'step')}")
        return self


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's state as named tensors and plain values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    state = optimizer.state_dict()
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                values.setdefault(str(index), {})[key] = value
    groups = [
        {k: float(v) if isinstance(v, Tensor) else v for k, v in group.items() if k != "params"}
        for group in state["param_groups"]
    ]
    return tensors, {"values": values, "groups": groups}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
    """Put back what `pack_optimizer` took."""
    state: dict[int, dict[str, Any]] = {int(i): dict(entries) for i, entries in plain["values"].items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            parameter = parameters[int(index)]
            if tensor.shape == parameter.shape:
                # fused optimisers pair values by their place in memory: channels-last weights need channels-last moments
                tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
            state.setdefault(int(index), {})[key] = tensor
    current = optimizer.state_dict()["param_groups"]
    groups = [
        {**mine, **saved, **{k: mine[k] for k in OF_THE_DEVICE if k in mine}}
        for mine, saved in zip(current, plain["groups"], strict=True)
    ]
    for mine, group in zip(current, groups, strict=True):
        if isinstance(mine["lr"], Tensor):
            group["lr"] = torch.full_like(mine["lr"], group["lr"])
    optimizer.load_state_dict({"state": state, "param_groups": groups})
