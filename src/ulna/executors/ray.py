"""Jobs as core tasks of Ray: on whichever node has room; Ray tries again what a lost worker or node has cut off."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ulna.data.formats.limits import memory as machine_memory
from ulna.errors import UsageError, counted, printable
from ulna.executors import ray_task
from ulna.executors.handing import Late, reason
from ulna.executors.job import Ended, Job, passed_variables, told_need
from ulna.system.cores import usable_cores
from ulna.system.extras import need
from ulna.system.outputs import make_folder
from ulna.system.progress import Standing

log = logging.getLogger(__name__)

HERE = "local"  # a cluster of this machine, which ends with the command
ADDRESS = "RAY_ADDRESS"
RETRIES = 5  # of a task whose process, worker or node was killed
TOKEN = ".nodes-see-this"
STORE = 80 * 2**20  # of Ray's objects: there are none
KNOCK_S = 10.0
ENDS_S = 120.0  # a task that was cancelled has ended


class OnRay:
    """An executor: tasks of a Ray cluster, whose nodes all see the folder of the study, the data, and ulna itself.

    Args:
        address: of the cluster; None: that of RAY_ADDRESS, else one of this machine, which ends with the command.
        folder: of the study.
        most: jobs at once; None: as many as the cluster holds.
        what: the noun for a job.
    """

    look_s = 0.5

    def __init__(self, address: str | None, folder: Path, most: int | None, what: str = "training") -> None:
        self.address, self.folder, self.most, self.what = address or os.environ.get(ADDRESS) or HERE, folder, most, what
        self.stopping, self.stopped = f"every {what} leaves a checkpoint", "a checkpoint is written"
        self._ray: Any = None
        self._seen: tuple[str, str, str, str] = ("", "", "", "")
        self._tasks: dict[str, Any] = {}
        self._late = Late()

    def open(self, jobs: Sequence[Job]) -> None:
        """Connect, and see that every node sees the folder and one of them has room for each job."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anybody
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a task without a GPU sees none
        self._ray = ray = need("ray", "--on ray needs", "ray")
        # the task is sent by value: nodes need not find this module where this machine has it
        ray.cloudpickle.register_pickle_by_value(ray_task)
        quiet = {"configure_logging": False, "log_to_driver": False, "include_dashboard": False}
        try:
            self._knock()
            if self.address == HERE:
                ray.init(
                    "local", **quiet, _node_ip_address="127.0.0.1", num_cpus=len(usable_cores()),
                    _memory=machine_memory(), object_store_memory=STORE,
                )  # fmt: skip
            else:
                quiet.pop("include_dashboard")
                ray.init(self.address, **quiet)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            told = " ".join(str(error).split())
            raise UsageError(f"--on ray:{printable(self.address)}: no cluster answers there ({told})") from None
        try:
            self._check_folder()
            self._check_room(jobs)
        except BaseException:
            self._leave()
            raise

    def ready(self, waiting: Sequence[Job], running: Sequence[Job]) -> list[Job]:
        """All, or as many as are wanted at once: Ray has them wait."""
        return list(waiting if self.most is None else waiting[: max(0, self.most - len(running))])

    def begin(self, jobs: Sequence[Job]) -> None:
        """Submit a task for each."""
        for job in jobs:
            log.info("%s: %s (%s)", job.name, "goes on" if job.begun() else "begins", job.folder)
            make_folder(job.output.parent)
            if job.standing is not None:
                job.standing.unlink(missing_ok=True)
            task = self._ray.remote(ray_task.run).options(
                name=job.name, max_retries=RETRIES, retry_exceptions=True, **resources(job)
            )
            variables = {**passed_variables(), **job.variables}
            self._tasks[job.name] = task.remote(list(job.argv), variables, str(job.output.absolute()), self._seen)

    def describe(self, jobs: Sequence[Job]) -> str:
        """The tasks."""
        lines = [f"# {counted(len(jobs), self.what)} as tasks of Ray ({self.address})"]
        for job in jobs:
            asked = ", ".join(f"{name}={value}" for name, value in resources(job).items())
            lines += [f"# {printable(job.name)}: {told_need(job)}", f"{asked}: {' '.join(map(printable, job.argv))}"]
        return "\n".join(lines)

    def look(self, job: Job) -> Ended | None:
        """As `Executor`."""
        task = self._tasks[job.name]
        ended, _ = self._ray.wait([task], timeout=0)
        if not ended:
            return None
        try:
            told = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            told = {"lost": _lost(error)}
        if not job.done() and told.get("code") == 0 and self._late.may_come(job):
            return None  # files of another machine are seen later than the end
        del self._tasks[job.name]
        self._late.forget(job)
        if job.done():
            return Ended()
        if "unseen" in told:
            return Ended(f"{told['unseen']}; all nodes must see the same files")
        if "lost" in told:
            return Ended(reason(job, f"{told['lost']}, {RETRIES + 1} times", with_last_line=False))
        return Ended(reason(job, f"exit code {told['code']} on {told['host']}"))

    def standing(self, job: Job) -> Standing | None:
        """It says nothing itself as long as it waits."""
        return Standing("waits for a node")

    def close(self, running: Sequence[Job]) -> None:
        """Cancel every task: its process leaves a checkpoint."""
        if self._ray is None or not self._ray.is_initialized():
            return
        tasks = [self._tasks[job.name] for job in running if job.name in self._tasks]
        for task in tasks:
            self._ray.cancel(task)
        if tasks:
            self._ray.wait(tasks, num_returns=len(tasks), timeout=ENDS_S)
        self._leave()

    def _leave(self) -> None:
        (self.folder / TOKEN).unlink(missing_ok=True)
        self._ray.shutdown()

    def _knock(self) -> None:
        """See that somebody listens at HOST:PORT: Ray itself would try for minutes.

        Raises:
            OSError: if nobody does.
        """
        host, colon, port = self.address.rpartition(":")
        if colon and port.isdecimal() and "/" not in host:
            socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()

    def _check_folder(self) -> None:
        """Have every node read a file that was just written, by a small task on each."""
        make_folder(self.folder)
        content = secrets.token_hex(8)
        token = (self.folder / TOKEN).absolute()
        token.write_text(content, encoding="utf-8")
        self._seen = (str(token), content, str(Path.cwd()), sys.executable)
        on_node = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        task = self._ray.remote(ray_task.sees)
        asked = [
            task.options(num_cpus=0, scheduling_strategy=on_node(node["NodeID"], soft=False)).remote(*self._seen)
            for node in self._nodes()
        ]
        told: list[str] = []
        for one in asked:
            with suppress(self._ray.exceptions.RayError):  # a node that was lost a moment ago is listed still
                told.append(self._ray.get(one))
        unseen = sorted({*told} - {""})
        if unseen:
            raise UsageError(
                f"--on ray: {printable('; '.join(unseen))}: jobs on Ray need one file system that all nodes see under the "
                "same names, for their folder, the data and the environment of ulna"
            )

    def _check_room(self, jobs: Sequence[Job]) -> None:
        """Refuse a job that no node ever holds: Ray would have it wait for ever."""
        nodes = [node["Resources"] for node in self._nodes()]
        wanting = [
            f"{printable(job.name)} needs {told_need(job)}"
            for job in jobs
            if not any(_holds(node, resources(job)) for node in nodes)
        ]
        if wanting:
            have = "; ".join(
                f"{node.get('CPU', 0):g} CPUs, {node.get('memory', 0) / 1e9:.1f} GB, {node.get('GPU', 0):g} GPUs"
                for node in nodes
            )
            raise UsageError(
                "\n".join([f"--on ray: no node has room for it (nodes: {have}); lower --threads", *wanting])
            )

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self._ray.nodes() if node["Alive"]]


def resources(job: Job) -> dict[str, float]:
    """What a task of Ray's asks for: threads, memory by the estimate, and a GPU where it needs one."""
    asked: dict[str, float] = {"num_cpus": job.threads, "num_gpus": int(job.need.gpu > 0)}
    if math.isfinite(job.need.machine) and job.need.machine > 0:
        asked["memory"] = int(job.need.machine)
    return asked


def _holds(node: Mapping[str, float], asked: Mapping[str, float]) -> bool:
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    return all(node.get(names[name], 0) >= amount for name, amount in asked.items())


def _lost(error: Exception) -> str:
    """Why a task was lost, in the words of the last error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return printable(lines[-1] if lines else type(error).__name__)
