"""The verb `plan`: how a data set would be trained on, why, and what that takes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ulna.data.formats.limits import is_memory_error
from ulna.data.formats.limits import memory as machine_memory
from ulna.data.layout.dataset import Dataset
from ulna.errors import UsageError, printable
from ulna.planning.choosing import check_words, choose
from ulna.planning.default_network import choose_network, with_reason
from ulna.planning.memory import MemoryEstimate
from ulna.planning.plan import Planned, read_training_data
from ulna.recipe import Plan, to_yaml
from ulna.system.files import write_text
from ulna.system.outputs import RUN_FILE, check_names
from ulna.system.ranks import check_batch, check_number
from ulna.system.reading import read_yaml
from ulna.training.duration import Timing, time_training
from ulna.training.preview import check_preview, draw_preview
from ulna.training.within import bytes_of, look_through, plan_within, reading_within, within

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """What `plan` tells. The fields of the plan can be read from it too: `estimate.patch`.

    Args:
        data: the data set.
        planned: the recipe as resolved, the plan, the split, the network without memory and its memory estimate.
        timing: how long it would take; None where no step was timed.
        untimed: why not.
        file: where the plan was written.
        preview: the sheet with samples of some cases; None where none was asked for.
        devices: that would train together.
    """

    data: Path
    planned: Planned
    timing: Timing | None
    untimed: str = ""
    file: Path | None = None
    preview: Path | None = None
    devices: int = 1

    def __repr__(self) -> str:
        plan, planned = self.plan, self.planned
        size = "x".join(map(str, plan.patch))
        what = f"{planned.parameters:,} parameters, {plan.spatial_dims}D, patch {size}, batch {plan.batch}"
        return printable(f"Estimate for {planned.recipe.model} on {self.data}: {what}; memory about {self.memory}")

    @property
    def plan(self) -> Plan:
        """Every choice, with its reason."""
        return self.planned.plan

    @property
    def memory(self) -> MemoryEstimate:
        """What a training takes: each GPU, or all processes of a CPU together."""
        return self.planned.memory_on(self.devices)

    def __getattr__(self, name: str) -> Any:
        if name in Plan.model_fields:
            return getattr(self.plan, name)
        raise AttributeError(f"an estimate has no {name!r}")

    def to_json(self) -> dict[str, Any]:
        """Plain values: the fields of the plan, and what the training takes."""
        planned = self.planned
        return {
            **self.plan.to_json(),
            "model": planned.recipe.model,
            "split": {name: len(cases) for name, cases in planned.split.model_dump().items()},
            "parameters": planned.parameters,
            "gmacs": round(planned.gmacs, 4),
            "memory": {"bytes": round(self.memory.total), "parts": dict(self.memory.parts)},
            "devices": self.devices,
            "time": None if self.timing is None else self.timing.to_json(),
            "untimed": self.untimed or None,
            "preview": None if self.preview is None else str(self.preview),
        }


def plan(
    data: Path | str,
    /,
    *,
    model: str | None = None,
    max_ram: float | None = None,
    recipe: Path | str | None = None,
    set: Sequence[str] = (),
    seed: int | None = None,
    fold: int | None = None,
    devices: int = 1,
    untimed: bool = False,
    out: Path | str | None = None,
    preview: Path | str | None = None,
) -> Estimate:
    """Show how a data set would be trained on, each choice with its reason, and what that takes: memory and hours.

    Parameters, GMACs and memory are counted. The hours, also those of each --budget of `ulna train`, are an estimate for this
    machine, from a few steps on made data, which take some seconds; nothing is chosen by them.

    Args:
        data: a data set in any known layout: a folder, or an .npz file.
        model: name of a network, see `ulna models`; left out, chosen by the images, and the plan says why.
        max_ram: GB that a training may take, as `ulna train --max-ram`; planning keeps to it too.
        recipe: everything else: a YAML file, or the name of one that comes with ulna, see `ulna recipes`.
        set: changes of single fields, KEY=VALUE, such as planning.batch=4.
        seed: of the split where none is given, and of the training.
        fold: which fold of the data set's folds.
        devices: that would share every batch, as in `ulna train`: the memory is that of each GPU, or of all processes of a
            CPU together; the hours are those of one device.
        untimed: leave the hours out: no step is timed.
        out: also write the plan to this YAML file, with the recipe, for `ulna train --plan`; no other file than a plan is
            replaced, and no plan of a run.
        preview: also draw some training cases and random samples of them, as the network would see them, on one sheet in this
            folder (preview.png); nothing that ulna did not write is replaced in it.

    Raises:
        UsageError: if anything about the data, the model or the file is wrong; nothing is written then.

    Example:
        ulna plan data/nuclei --model unetpp --out plan.yaml --preview look
    """
    check_number(devices)
    limit = bytes_of(max_ram)
    if out is not None:
        folder, name = Path(out).parent, Path(out).name
        of_a_run = (folder / RUN_FILE).exists()
        own = {name: lambda path: not of_a_run and {"fingerprint", "reasons"} <= read_yaml(path).keys()}
        check_names(folder, own, "choose another name for --out")
    with reading_within(limit):
        named = choose_network(data, model=model, recipe=recipe, set=set, by_headers=limit is not None)
    chosen = choose(model=named.model, recipe=recipe, seed=seed, fold=fold, max_ram=max_ram, set=set)
    check_words(chosen)
    dataset = Dataset.from_folder(data).declaring(chosen.classes)
    if preview is not None:
        check_preview(Path(preview), dataset)
    with reading_within(limit, out or preview):
        look_through(dataset, limit)
        found = read_training_data(dataset, chosen.training)
        for note in found.notes:
            log.info("note: %s", note)
        planned = with_reason(plan_within(found, chosen, limit), named.why)
        bound = None if limit is None else within(planned, found.dataset, limit)
        check_batch(devices, planned.plan.batch)
        sheet = None if preview is None else draw_preview(planned, found.dataset, Path(preview), bound)
    why = f"about {planned.memory_on(devices)}; this machine has {machine_memory() / 1e9:.1f} GB"
    if planned.device.gpu:
        why += f", its GPU {planned.device.memory_bytes / 1e9:.1f} GB"
    reasons = {**planned.plan.reasons, "length": planned.length, "memory": why}
    told = planned.plan.replaced(reasons=reasons, recipe=chosen)
    planned = replace(planned, plan=told)
    if out is not None:
        write_text(Path(out), to_yaml(planned.plan))
    timing, reason = (None, "left out, as --untimed says") if untimed else _timed(planned)
    return Estimate(Path(data), planned, timing, reason, None if out is None else Path(out), sheet, devices)


def _timed(planned: Planned) -> tuple[Timing | None, str]:
    """The time of a training, or why it cannot be told."""
    try:
        planned.memory.check("a step", "give it less to do, or take a larger machine")
        return time_training(planned), ""
    except UsageError as error:
        return None, str(error).splitlines()[0]
    except (MemoryError, RuntimeError) as error:
        if not is_memory_error(error):
            raise
        return None, "a step needs more memory than is free"
