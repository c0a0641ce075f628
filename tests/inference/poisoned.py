"""The process of a share, with cases that kill it (POISON, ids; POISON_BESIDE, while the other of two shares has not ended),
one that waits until all are taken (LAST, an id) and a pause before each image (PAUSE_S); with AHEAD it reads the next image
while it computes one, as beside a GPU.

`python -m tests.inference.poisoned predict ...` is the command whose shares are such processes.
"""

import os
import signal
import sys
import time
from pathlib import Path

from ulna.executors.working import python_module


def of_share(_, *words):
    """The argv of such a process, in place of that of a share."""
    return python_module("tests.inference.poisoned", *words)


def share(folder, number, name):
    from ulna.data.layout.case import Case
    from ulna.inference import making
    from ulna.inference.shares import ENDED
    from ulna.inference.worker import main

    beside = os.environ.get("POISON_BESIDE", "").split()
    read, poison, pause = Case.read_image, os.environ.get("POISON", "").split(), float(os.environ.get("PAUSE_S", 0))

    def poisoned(case):
        time.sleep(pause)
        if case.id == os.environ.get("LAST"):
            all_taken(Path(folder))
        crowded = case.id in beside and not (Path(folder) / f"share_{1 - int(number)}" / ENDED).exists()
        if case.id in poison or crowded:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(case)

    if "AHEAD" in os.environ:
        making.overlaps = lambda device: True
    Case.read_image = poisoned
    return main(Path(folder), int(number), name)


def all_taken(folder):
    """Wait until every case of a round is taken."""
    from ulna.inference.shares import Queue

    queue, end = Queue(folder), time.monotonic() + 120
    while queue.left():
        if time.monotonic() > end:
            raise AssertionError("nobody else takes the other cases")
        time.sleep(0.05)


def command(words):
    from ulna.cli import main as cli
    from ulna.inference import share_jobs

    share_jobs.python_module = of_share
    return cli.run(words)


if __name__ == "__main__":
    sys.exit(command(sys.argv[1:]) if sys.argv[1] == "predict" else share(*sys.argv[1:]))
