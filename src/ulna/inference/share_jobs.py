"""The cases of one prediction as jobs: processes that take one case after the other, on this machine or elsewhere.

What a process had begun when it was killed is predicted by the same job where its executor begins it again, else in a further
round. On this machine it begins again at once, and the case that it was at comes last, alone: the memory may have been short.
A case whose process was killed twice has failed. The masks, and all that is told of them, are those of one process.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ulna.data.formats.limits import allowing
from ulna.data.layout.case import Case
from ulna.data.layout.record import Entry
from ulna.data.pipeline.colour import as_trained
from ulna.errors import DryRun, Interrupted, UsageError, counted
from ulna.executors.choosing import SLURM, On, dry_run
from ulna.executors.handing import Executor, hand_out
from ulna.executors.job import Job, Need
from ulna.executors.places import Places, need_of
from ulna.executors.working import python_module, standing_file
from ulna.inference.making import Making
from ulna.inference.outcomes import file_bytes
from ulna.inference.segmenter import LIKE_IT
from ulna.inference.shares import ENDED, KILLED, MOST_TRIES, TOLD, Item, Listener, Queue, Task, Tries, write_cases
from ulna.planning.bounded import LIBRARIES, WORKING
from ulna.planning.memory import program_bytes
from ulna.system.device import find_device
from ulna.system.outputs import JOURNAL, SHARES, make_folder
from ulna.system.signals import Stopped
from ulna.system.threads import choose_threads

log = logging.getLogger(__name__)

SHARE = "share"
FEWEST = 4  # cases a process, where nobody says how many processes: one takes seconds to begin
EACH, MOST = 50, 64  # cases a job elsewhere, and jobs, where nobody says how many
LOOKED_AT = 3  # of the largest images, to know what memory the cases take
IDLE_ROUNDS = 2  # in which no process came to any case
CUTS, CASES_A_CUT = 2, 10  # kills after which a process begins again at once, and one more for so many cases done


class Division(NamedTuple):
    """How cases are divided.

    Args:
        processes: that take them.
        threads: of each.
        need: of each.
        limit: bytes of memory of each; None for what the machine has.
        places: of this machine.
    """

    processes: int
    threads: int
    need: Need
    limit: float | None
    places: Places


def nothing_to_share() -> DryRun:
    """What would be begun where this process predicts all that is to be done."""
    return DryRun("nothing is handed out: the process of the command predicts what is to be done", [])


class Sharing:
    """What hands out the cases of one call.

    Args:
        on: where processes run.
        threads: of each, where a person said how many.
        task: of each.
        making: what is known of the cases, and what would make their masks here.
        todo: the cases.
        again: the command that goes on.
    """

    def __init__(
        self, on: On, threads: int | None, task: Task, making: Making, todo: Sequence[Case], again: str
    ) -> None:
        self.on, self.task, self.making, self.todo, self.again = on, task, making, list(todo), again
        self.begun = False  # something was handed out
        self.beside = ""  # what is to be said of processes that outlive the command
        self.settled = True  # no process of this call writes any more
        self.division = self._divide(threads)
        self._waiting = {case.id: case for case in self.todo}
        self._noted: set[str] = set()

    @property
    def needed(self) -> bool:
        """Whether there are several processes, or one elsewhere: else this one does it all."""
        return bool(self.todo) and (not self.on.here or self.division.processes > 1)

    @property
    def goes_on(self) -> bool:
        """Whether jobs that SLURM still may have are of these very masks: they are waited for."""
        return self._going_on() is not None

    def predict(self, on_begin: Callable[[], None], ended: Callable[[str, str], None]) -> None:
        """Have the masks made.

        Args:
            on_begin: called once, before anything is handed out.
            ended: called with a case that is done or has failed, and what is said of it.

        Raises:
            UsageError: if the executor cannot run; nothing is begun then.
            Stopped: after a signal.
        """
        tries: Counter[str] = Counter()
        idle = 0
        while self._waiting:
            going = None if self.begun else self._going_on()
            came, why = self._round(going or self._write(tries), going is None, tries, on_begin, ended)
            idle = 0 if came else idle + 1
            for case in list(self._waiting):
                if tries[case] >= MOST_TRIES:
                    self._fail(case, f"{KILLED} ({why})" if why else KILLED, ended)
                elif idle >= IDLE_ROUNDS:
                    self._fail(case, f"not begun: {why or 'its processes ended without a word'}", ended)
            if self._waiting:
                log.info(
                    "%s left by processes that have ended; another takes over", counted(len(self._waiting), "case")
                )

    def dry_run(self) -> DryRun:
        """What would be begun or submitted."""
        folder = self._folder(1 + len(self._rounds()))
        return dry_run(self._jobs(folder, "NAME", self._shares), self._executor(folder))

    def _divide(self, threads: int | None) -> Division:
        device, limit = find_device(), self.task.limit
        places = self.on.places(device, threads)
        if not self.on.here:
            need = self._need() if limit is None else Need(limit, float(device.gpu))
            count = self.on.jobs or min(MOST, math.ceil(len(self.todo) / EACH))
            return Division(min(count, len(self.todo)), threads or self.on.threads(), need, limit, places)
        auto = self.on.jobs is None
        # of a limit each has its part, which is what it takes; with auto the part has to hold the largest image whole
        need = self._need() if limit is None or auto else Need(0.0, float(device.gpu))
        if auto and device.gpu:
            places = dataclasses.replace(places, most=min(places.most, places.gpus))
        count = places.at_once([need] * len(self.todo)) if self.todo else 1
        if auto:
            count = max(1, min(count, len(self.todo) // FEWEST))
        if limit is not None:
            program = program_bytes()
            rest = limit - program  # the command itself holds the network
            while auto and count > 1 and rest / count < need.machine:
                count -= 1
            if count > 1:
                if rest / count <= (each := program + LIBRARIES + WORKING):
                    least = math.ceil((program + count * each) / 1e7) / 100
                    raise UsageError(
                        f"--max-ram {limit / 1e9:g}: the command and {count} processes take {least:.2f} GB before they hold "
                        "any image; raise it, or take fewer --jobs"
                    )
                limit = rest / count
                need = need._replace(machine=limit)
        return Division(count, threads or max(1, choose_threads() // count), need, limit, places)

    def _need(self) -> Need:
        """What a process takes at its peak, by the largest image; of the machine nothing where none of the largest can be
        read, and more than there is where a limit does not hold it."""
        segmenter, limit, device = self.making.segmenter, self.task.limit, find_device()
        for case in sorted(self.todo, key=file_bytes, reverse=True)[:LOOKED_AT]:
            with (
                suppress(Exception),  # what is wrong with it is told when it is predicted
                nullcontext() if limit is None else allowing(None, limit / 1e9, program_bytes() / 1e9),
            ):
                volume, _ = as_trained(case.read_image(), segmenter.plan)
                return need_of(segmenter.forecast(volume, probabilities=self.making.probabilities), device)
            if limit is not None:
                break
        return Need(0.0 if limit is None else math.inf, float(device.gpu))

    def _folder(self, number: int) -> Path:
        return self.making.out / SHARES / f"round_{number}"

    def _rounds(self) -> list[Path]:
        """Those that are there, the newest last."""
        numbers = [path.name.rpartition("_")[2] for path in (self.making.out / SHARES).glob("round_*")]
        return [self._folder(number) for number in sorted(int(text) for text in numbers if text.isdecimal())]

    def _going_on(self) -> Path | None:
        """The round whose jobs SLURM may still have, where it is of these masks."""
        rounds = self._rounds() if self.on.kind == SLURM else []
        with suppress(UsageError):
            if rounds and Task.read(rounds[-1]).about == self.task.about:
                return rounds[-1]
        return None

    def _write(self, tries: Mapping[str, int]) -> Path:
        """A new round, of all cases that wait."""
        rounds = self._rounds()
        folder = self._folder(1 + max((int(path.name.rpartition("_")[2]) for path in rounds), default=0))
        making = self.making

        def item(case: Case) -> Item:
            entry = making.wanted[case.id]
            return Item(case, entry, making.record.known(entry.files), tries.get(case.id, 0))

        # those that cost a process first: what ends each job after a while ends none of them by chance again
        first = sorted(self._waiting.values(), key=lambda case: -tries.get(case.id, 0))
        task = dataclasses.replace(
            self.task,
            limit=self.division.limit,
            shares=self._shares,
            careful=any(tries.values()),
            name=secrets.token_hex(4),
        )
        try:
            make_folder(folder)
            write_cases(folder, map(item, first))
            task.write(folder)  # last: a round without it is none
        except BaseException:
            _remove(folder)
            raise
        return folder

    @property
    def _shares(self) -> int:
        """Of a new round."""
        return min(self.division.processes, len(self._waiting))

    def _jobs(self, folder: Path, name: str, shares: int) -> list[Job]:
        made, further = [], "" if folder.name == "round_1" else f" of {folder.name.replace('_', ' ')}"
        for number in range(shares):
            share = folder / f"share_{number}"
            made.append(
                Job(
                    f"{SHARE} {number + 1}{further}",
                    python_module("ulna.inference.worker", folder, number, name),
                    folder=share,
                    output=folder / f"share_{number}.txt",
                    done=(share / ENDED).exists,
                    begun=(share / TOLD).exists,
                    goes_on=partial(_goes_on, folder, share),
                    need=self.division.need,
                    threads=self.division.threads,
                    standing=standing_file(share),
                )
            )
        return made

    def _executor(self, folder: Path) -> Executor:
        return self.on.executor(folder, self.division.places, SHARE)

    def _round(
        self,
        folder: Path,
        fresh: bool,
        tries: Counter[str],
        on_begin: Callable[[], None],
        ended: Callable[[str, str], None],
    ) -> tuple[bool, str]:
        """Hand out shares until their processes have ended; whether any came to a case, and why one failed.

        Args:
            folder: of the round.
            fresh: it is of this call; else an earlier one has begun it.
            tries: case -> how often a process was killed or stopped while it predicted the case.
            on_begin: as `predict`.
            ended: as `predict`.
        """
        queue = Queue(folder)
        cases = [(item.case.id, item.tries) for item in map(queue.__getitem__, range(len(queue)))]
        task = Task.read(folder)
        jobs = self._jobs(folder, task.name, task.shares)
        ears = [(Listener(job.folder), Tries()) for job in jobs]
        ends, before = self.on.kind != SLURM, self.begun  # ends: with the command
        handed_out = refused = False

        def listen(*, earlier: bool = False) -> None:
            for listener, tally in ears:
                for told in listener():
                    tally.add(told)
                    case = cases[int(told["ended"])][0] if "ended" in told else ""
                    # an image may have been replaced or repaired since an earlier call, a mask removed
                    if case in self._waiting and (fresh or self._still_holds(case, told, failed=not earlier)):
                        self._note(case, told, ended)

        def begins() -> None:
            nonlocal handed_out
            if not self.begun:
                on_begin()
            self.begun, self.settled, handed_out = True, False, True

        failed: dict[str, str] = {}
        if not fresh:
            listen(earlier=True)
        try:
            failed = hand_out(
                jobs,
                self._executor(folder),
                resume_command=self.again,
                what=SHARE,
                on_begin=begins,
                on_look=listen,
                stopping="what is done stays" if ends else "",
            )
            begins()  # also where all had ended already
            self.settled = True
        except Interrupted as stopped:
            self.settled, self.beside = ends, "" if ends else stopped.done
            raise Stopped(stopped.signal) from None
        except UsageError:
            refused = True
            raise
        finally:
            came = any((job.folder / TOLD).exists() for job in jobs)
            if fresh and not came and (refused or not handed_out):  # an earlier call's is that of jobs which may run
                _remove(folder)
                self.begun, self.settled = before, True
            listen()
            for job in jobs:  # in place, but killed before it was told
                for entry in self.making.record.take_journal(job.folder / JOURNAL, self._waiting.keys()):
                    if self._of_this_image(entry):
                        self._place(entry)
                        ended(entry.case, "done")
        for number, (case, so_far) in enumerate(cases):
            if case in self._waiting:
                # one that was left, by a process that was stopped from outside, cost a try as well: else it may never end
                tries[case] = so_far + sum(max(1, tally.open[number]) for _, tally in ears if number in tally.open)
        return any(tally.open or tally.ended for _, tally in ears), next(iter(failed.values()), "")

    def _of_this_image(self, entry: Entry) -> bool:
        """Whether a mask is of the image as it is now, in so far as that had to be known."""
        return self.making.wanted[entry.case].input in ("", entry.input)

    def _still_holds(self, case: str, told: Mapping[str, Any], *, failed: bool) -> bool:
        """Whether what a process of an earlier call tells of a case is so now; `failed`: where it failed."""
        if told["entry"] is None:
            return failed
        entry = Entry.parse(told["entry"])
        return self._of_this_image(entry) and self.making.record.holds(entry)

    def _note(self, case: str, told: Mapping[str, Any], ended: Callable[[str, str], None]) -> None:
        """What a process tells of a case that waits."""
        for level, text in told["notes"]:
            once = text.rpartition(": ")[2] if text.endswith(LIKE_IT) else text
            if once not in self._noted:  # what is noted once is noted once by every process
                self._noted.add(once)
                log.log(level, "%s", text)
        tally = self.making.segmenter.tally
        for name, more in told["points"].items():
            setattr(tally, name, getattr(tally, name) + more)
        if told["entry"] is None:
            self._fail(case, str(told["why"]), ended)
            return
        entry = Entry.parse(told["entry"])
        self.making.record.take([entry])
        self._place(entry)
        ended(case, str(told["said"]))

    def _place(self, entry: Entry) -> None:
        self.making.done[entry.case] = entry
        self._waiting.pop(entry.case, None)

    def _fail(self, case: str, why: str, ended: Callable[[str, str], None]) -> None:
        self.making.failed[case] = why
        self._waiting.pop(case, None)
        ended(case, "failed")


def _goes_on(folder: Path, share: Path, times: int) -> bool:
    """Whether the process of a share that was killed so many times is begun again beside others: there are cases to be taken,
    and kills are rare; else memory is short most likely, and it waits until it is alone."""
    done = sum("ended" in told for told in Listener(share)())
    return times <= CUTS + done // CASES_A_CUT and Queue(folder).left()


def _remove(folder: Path) -> None:
    """A round of which nothing was handed out."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # earlier rounds stay
        folder.parent.rmdir()
