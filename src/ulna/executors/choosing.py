"""Where jobs run, as a person says it: `--on local|ray[:ADDRESS]|slurm`, `--jobs` and `--slurm`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ulna.errors import DryRun, UsageError, printable
from ulna.executors.handing import Executor
from ulna.executors.job import Job
from ulna.executors.local import Local
from ulna.executors.places import Places, read_jobs
from ulna.executors.ray import OnRay
from ulna.executors.slurm import Slurm
from ulna.executors.slurm_script import Options, read_options
from ulna.system.cores import usable_cores
from ulna.system.device import Device, gpus_here

LOCAL, RAY, SLURM = "local", "ray", "slurm"
# Of each job elsewhere where nobody says how many: this machine's free cores say nothing of a node's
THREADS = 4


class On(NamedTuple):
    """Where jobs run.

    Args:
        kind: local, ray or slurm.
        address: of a Ray cluster.
        options: of sbatch.
        jobs: at once; None: as many as there is room for, or one a GPU and one on a CPU where `given` says that nobody asked.
        given: whether a person said how many.
    """

    kind: str = LOCAL
    address: str | None = None
    options: Options = {}  # noqa: RUF012 - read only
    jobs: int | None = None
    given: bool = False

    @classmethod
    def read(cls, on: str, jobs: str | int | None = None, slurm: str | Sequence[str] = ()) -> On:
        """The words of a command.

        Raises:
            UsageError: for what is none, and for options that belong elsewhere.
        """
        kind, colon, address = on.partition(":")
        words = [slurm] if isinstance(slurm, str) else list(slurm)
        if kind not in (LOCAL, RAY, SLURM) or (colon and (kind != RAY or not address)):
            raise UsageError(f"--on {printable(on)}: local, ray, ray:ADDRESS or slurm")
        if words and kind != SLURM:
            raise UsageError(f"--slurm {printable(words[0])}: belongs to --on slurm; leave it out, or run there")
        return cls(
            kind, address or None, read_options(words), None if jobs is None else read_jobs(jobs), jobs is not None
        )

    @property
    def here(self) -> bool:
        """Whether jobs run on this machine, by this command."""
        return self.kind == LOCAL

    def places(self, device: Device, threads: int | None) -> Places:
        """Of this machine: one at a time, or one a GPU, where nobody says how many."""
        wanted = self.jobs if self.given else max(1, gpus_here() if device.gpu else 1)
        return Places.of(device, wanted, threads)

    def threads(self) -> int:
        """Of each job elsewhere where nobody says how many; no more than this machine has, for nodes are like it."""
        return min(THREADS, len(usable_cores()))

    def executor(self, folder: Path, places: Places, what: str = "training") -> Executor:
        """What hands the jobs out.

        Args:
            folder: of the study: all nodes see it.
            places: of this machine.
            what: the noun for a job.
        """
        if self.kind == RAY:
            return OnRay(self.address, folder, self.jobs, what)
        if self.kind == SLURM:
            return Slurm(folder, self.options, self.jobs, what)
        return Local(places, what)

    def flags(self, jobs: str | int | None, on: str, slurm: str | Sequence[str]) -> dict[str, object]:
        """As a person types them again."""
        return {
            "--jobs": jobs,
            "--on": None if on == LOCAL else on,
            "--slurm": [slurm] if isinstance(slurm, str) else [*slurm],
        }


def dry_run(jobs: Sequence[Job], executor: Executor) -> DryRun:
    """What would be handed out of these jobs: those that are not done."""
    todo = [job for job in jobs if not job.done()]
    return DryRun(
        executor.describe(todo) if todo else "nothing is to be done: all is there", [job.name for job in todo]
    )
