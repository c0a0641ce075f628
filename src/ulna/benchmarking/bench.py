"""The verb `bench`: a measurement by its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulna.benchmarking import implicit
from ulna.errors import PartialFailure, unknown
from ulna.executors.choosing import On
from ulna.system.files import write_text
from ulna.system.threads import check_threads
from ulna.verbs import command, to_argv

# name -> what it measures; each is called with the data, the folder, the flags of a training and the command to go on with
BENCHMARKS: dict[str, Callable[..., dict[str, Any]]] = {"implicit": implicit.measure}
RESULT = "bench.json"
HOURS = 0.1  # of a training, where nothing else is said
LIMITS = ("training.epochs", "training.max_hours", "training.budget")


@dataclass(frozen=True)
class Bench:
    """What a benchmark found.

    Args:
        name: of the benchmark.
        folder: bench.json, curves.png, and the study behind them.
        facts: conditions and rows.
    """

    name: str
    folder: Path
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "folder": str(self.folder), **self.facts}


def bench(
    name: str = "implicit",
    data: Path | str | None = None,
    /,
    *,
    out: Path | str | None = None,
    epochs: int | None = None,
    max_hours: float | None = None,
    seeds: int = 1,
    set: Sequence[str] = (),
    jobs: str | int | None = None,
    on: str = "local",
    slurm: Sequence[str] = (),
    threads: int | None = None,
) -> Bench:
    """Measure what the choices of a network cost, and what they gain, on this machine.

    `implicit`: points a patch, width of the decoder, share and scatter of the boundary points, and the mesh of prediction,
    one at a time around the recommended Implicit U-Net, against Dice, time and memory. Thirteen trainings a seed; stopped,
    or killed, it does what is missing when it is called again.

    Args:
        name: which benchmark; implicit.
        data: a data set of volumes in any known layout; left out, a small synthetic one that ulna draws.
        out: the folder for bench.json, curves.png and the trainings; runs/bench-NAME by default.
        epochs: at most so many a training.
        max_hours: at most so long a training; 0.1 where neither this nor epochs is given.
        seeds: trainings of every choice.
        set: changes of single fields for all, KEY=VALUE.
        jobs: trainings at once, as in `ulna compare`; what is measured of time is measured one at a time, here.
        on: where trainings run, as in `ulna compare`: local, ray, ray:ADDRESS or slurm.
        slurm: an option of sbatch, KEY=VALUE.
        threads: of each training, as in `ulna compare`.

    Raises:
        UsageError: for an unknown name, or if anything about the data or the folder is wrong; nothing is lost then.
        PartialFailure: if some trainings failed; the others are in the table.

    Example:
        ulna bench implicit data/hippocampus --out bench-implicit
    """
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    folder = Path("runs") / f"bench-{name}" if out is None else Path(out)
    where = On.read(on, jobs, slurm)  # what is wrong is said before data are drawn
    check_threads(threads)
    changes = [set] if isinstance(set, str) else list(set)
    flags: dict[str, object] = {
        "--epochs": epochs, "--max-hours": max_hours, "--seeds": None if seeds == 1 else seeds, "--set": changes,
        **where.flags(jobs, on, slurm), "--threads": threads,
    }  # fmt: skip
    given = [] if data is None else [data]
    again = command(["bench", name, *given, *to_argv(flags), "--out", folder])
    if epochs is None and max_hours is None and not any(change.strip().startswith(LIMITS) for change in changes):
        max_hours = HOURS
    facts = BENCHMARKS[name](
        None if data is None else Path(data),
        folder,
        seeds=seeds,
        changes=changes,
        again=again,
        epochs=epochs,
        max_hours=max_hours,
        jobs=jobs,
        on=on,
        slurm=slurm,
        threads=threads,
    )
    made = Bench(name, folder, facts)
    write_text(folder / RESULT, json.dumps(facts, indent=1, allow_nan=False))
    if facts["failed"]:
        raise PartialFailure(facts["failed"], facts["trainings"] - len(facts["failed"]), "trainings", made)
    return made
