"""One share of the cases of a prediction in a process: `python -m ulna.inference.worker ROUND NUMBER NAME`.

ROUND is the folder of the round, NAME what its task is called. It loads the network once and takes one case after the other
until none is left. It ends with what began it; a case that it had begun is then predicted by another process, and given up
where its process was killed twice. One that is begun again beside others (BESIDE) leaves it for the next, which is alone.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ulna.data.layout.case import Case
from ulna.errors import Interrupted, UsageError, printable
from ulna.executors.working import BESIDE, work
from ulna.inference.shares import ENDED, KILLED, MOST_TRIES, Item, Listener, Queue, Task, Teller, Tries
from ulna.system.files import write_text


def main(folder: Path, number: int, name: str) -> int:
    """Predict cases until none is left; returns the exit code of `ulna predict`."""
    share = folder / f"share_{number}"
    try:
        task = _task(folder, name)
    except UsageError as error:  # it was begun late, and all is done
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - what is read when this job fails
        return 2
    return work(
        task.data,
        share,
        # read again under the lock: the round may have ended meanwhile
        lambda: _predict(_task(folder, name), folder, share),
        (share / ENDED).exists,
        bounded=task.limit is not None,
    )


def _task(folder: Path, name: str) -> Task:
    """That of a round.

    Raises:
        UsageError: if the round has ended, or is another one.
    """
    task = Task.read(folder)
    if task.name != name:
        raise UsageError(f"{printable(folder)}: belongs to another call of ulna predict")
    return task


def _predict(task: Task, folder: Path, share: Path) -> None:
    from ulna.data.layout.pseudonyms import opened, texts_of
    from ulna.data.layout.record import Record
    from ulna.inference.making import Making
    from ulna.system.outputs import JOURNAL
    from ulna.system.signals import Interruption, Stopped
    from ulna.system.threads import choose_threads, computing_with

    segmenter, digest = task.asked.load()
    if digest != task.digest:
        raise UsageError("the run has changed since the command began; predict again when its training has ended")
    if task.copies:
        segmenter.with_copies()
    names = opened(task.pseudonymise, task.out)
    record = Record(task.out)
    placed = {entry.case: entry for entry in record.take_journal(share / JOURNAL)}
    shown = texts_of(names, task.data, task.out)
    making = Making(
        segmenter, record, task.probabilities, task.formats, shown=shown, strict=task.strict, limit=task.limit
    )
    queue, tries, notes = Queue(folder), Tries(), Notes()
    for told in Listener(share)():
        tries.add(told)
    tell = Teller(share)
    mine: dict[str, int] = {}  # case -> its number, of those that are under way
    left: list[int] = []  # what a process of this share was at when it was killed, where others run beside this one
    counted = vars(segmenter.tally).copy()

    def begun(number: int) -> Item:
        item = queue[number]
        tell(begun=number)
        mine[item.case.id] = number
        making.wanted[item.case.id] = item.entry
        record.know(item.known)
        return item

    def taken() -> Iterator[Case]:
        while (number := queue.take()) is not None:
            yield begun(number).case

    def ended(case: str, said: str) -> None:
        nonlocal counted
        before, counted = counted, vars(segmenter.tally).copy()
        entry = making.done.get(case)
        tell(
            ended=mine[case],
            entry=None if entry is None else entry.to_json(),
            why=making.failed.get(case),
            said=said,
            notes=notes.taken(),
            points={name: counted[name] - before[name] for name in counted},
        )
        del mine[case]  # where it could not be told, it is told that it failed

    try:
        with notes, computing_with(choose_threads()), record.sharing(share) as staging, Interruption() as interruption:
            for number, times in sorted(tries.open.items()):  # of a process of this share that is no more
                item = queue[number]
                if item.case.id in placed:
                    tell(ended=number, entry=placed[item.case.id].to_json(), why=None, said="done", notes=[], points={})
                elif item.tries + times >= MOST_TRIES:
                    tell(ended=number, entry=None, why=KILLED, said="failed", notes=[], points={})
                elif BESIDE in os.environ:
                    left.append(number)
                else:  # alone, so that what kills it is known
                    making.make_all([begun(number).case], 1, staging, interruption, ended)
            if task.careful:
                making.reads_ahead = False
            making.make_all(taken(), 0, staging, interruption, ended)
    except Stopped as stopped:
        for number in mine.values():
            tell(left=number)
        raise Interrupted(stopped.number, "the same command") from None
    finally:
        tell.close()
    if not left:
        write_text(share / ENDED, "")


class Notes(logging.Handler):
    """What is logged of cases, for the command to say."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._held: list[tuple[int, str]] = []

    def __enter__(self) -> Notes:
        logging.getLogger("ulna").addHandler(self)
        return self

    def __exit__(self, *raised: object) -> None:
        logging.getLogger("ulna").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """As `logging.Handler`."""
        self._held.append((record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[int, str]]:
        """What was logged since this was asked last."""
        held, self._held = self._held, []
        return held


if __name__ == "__main__":
    place, share_number, task_name = sys.argv[1:]
    sys.exit(main(Path(place), int(share_number), task_name))
