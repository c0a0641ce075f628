"""Whether a CPU gains by reading the next case and writing the last one while one is computed: `many_cases.py --overlap`.

Both ways are calls of `ulna.predict` in this process, in turn, each into a new folder, with the same masks. Images are made,
and lie in the page cache: nothing is told of slow or remote disks. Where Linux tells it, a further table says of the way one
by one where the time of a case goes, in the thread that does it: on a processor, in waiting for one (which other work on the
machine causes), and in neither. For reading and writing the last is the disk, which side by side may hide; for computing it
is the network's other threads, which this one waits for.
"""

from __future__ import annotations

import functools
import logging
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from measure import interleaved, ratio

import ulna
from ulna.inference import making
from ulna.inference.segmenter import Segmenter
from ulna.system.outputs import PREDICT_FILE

SCHEDULED = Path("/proc/thread-self/schedstat")
STAGES = {"read": (making.Making, "_read"), "compute": (Segmenter, "segment"), "write": (making.Making, "_write")}
WAYS = {"one by one": False, "side by side": True}


def measure(run: str, images: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Seconds of both ways in every round, how many times faster the second is, and where the time of the first goes."""
    cases = len(list(images.iterdir()))
    with tempfile.TemporaryDirectory() as place:
        outs = {name: Path(place) / name for name in WAYS}

        def predict(name: str) -> None:
            before, making.overlaps = making.overlaps, lambda device: WAYS[name]
            try:
                ulna.predict(run, images, out=outs[name], threads=threads)
            finally:
                making.overlaps = before

        logging.getLogger("ulna").setLevel(logging.ERROR)
        contenders: dict[str, Callable[[], object]] = {name: functools.partial(predict, name) for name in WAYS}
        taken = interleaved(contenders, rounds, 1, lambda name: shutil.rmtree(outs[name], ignore_errors=True))
        first, second = (masks(out) for out in outs.values())
        assert len(first) == cases and first == second, "masks differ"
        shutil.rmtree(outs["one by one"])
        with stages() as found:
            predict("one by one")
    return {
        "threads": threads,
        "ms_a_case": {name: round(1000 * statistics.median(seconds) / cases, 1) for name, seconds in taken.items()},
        "times_faster": ratio(*taken.values()),
        "stages_ms_a_case": {
            stage: {what: round(1000 * seconds / cases, 2) for what, seconds in spent.items()}
            for stage, spent in found.items()
        },
        "same_masks": True,
    }


def masks(out: Path) -> dict[str, bytes]:
    """Name -> bytes of every mask."""
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != PREDICT_FILE}


@contextmanager
def stages() -> Iterator[dict[str, dict[str, float]]]:
    """What each stage of a case takes within: stage -> seconds on a processor, waiting for one, and neither;
    empty where the system does not tell."""
    spent: dict[str, dict[str, float]] = {}
    before = {stage: getattr(*where) for stage, where in STAGES.items()}

    def watched(stage: str) -> Callable[..., Any]:
        @functools.wraps(before[stage])
        def act(*given: Any, **named: Any) -> Any:
            start, (on, queued) = time.perf_counter(), scheduled()
            try:
                return before[stage](*given, **named)
            finally:
                after, then = scheduled(), time.perf_counter()
                on, queued = after[0] - on, after[1] - queued
                parts = {"processor": on, "queued": queued, "waiting": then - start - on - queued}
                sums = spent.setdefault(stage, dict.fromkeys(parts, 0.0))
                for name, seconds in parts.items():
                    sums[name] += seconds

        return act

    try:
        for stage, (owner, name) in STAGES.items() if SCHEDULED.exists() else ():
            setattr(owner, name, watched(stage))
        yield spent
    finally:
        for stage, (owner, name) in STAGES.items():
            setattr(owner, name, before[stage])


def scheduled() -> tuple[float, float]:
    """Seconds that this thread was on a processor, and that it waited for one."""
    return time.thread_time(), int(SCHEDULED.read_text().split()[1]) / 1e9
