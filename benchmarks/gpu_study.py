"""Trains the studies of docs/studies on a GPU in calls of a few minutes, and keeps the figures as one small archive.

    python benchmarks/gpu_study.py DATA --out FOLDER                  # DATA holds nuclei96/ and hippocampus/
    python benchmarks/gpu_study.py DATA --out FOLDER --archive FOLDER/gpu_study.tar.gz     # goes on from there
    python benchmarks/gpu_study.py --tiny --out FOLDER                # does the program itself work? on a CPU too

Nuclei: six networks, three seeds, by the SDU-Net paper's recipe, to early stopping. Then, if minutes are left, hippocampus:
three networks, three seeds, as many minutes each. Trainings run side by side, placed by their memory estimates
(`ulna compare --jobs auto`). A call ends within --minutes. What is finished then lies in FOLDER/gpu_study.tar.gz, figures
without weights, rewritten whenever a training ends; a call that is given it skips those trainings. What was cut off goes on
where --work is still there, and else starts again. Exit code 0: all is done; 3: call again; 1: a training failed.

From a checkout, installed or not. Nothing is fetched.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = "gpu_study.tar.gz"
STOP_S = 40.0  # of a call: until trainings have stopped and the archive is written
LEAST_S = 60.0  # with less a study does not begin
LOOK_S = 2.0  # how often finished trainings are looked for
# of a study, and of each training
OF_STUDY = (
    "study.json",
    "costs.json",
    "outcome.json",
    "results.csv",
    "table.md",
    "table.tex",
    "report.html",
    "figures",
)
OF_RUN = ("summary.json", "cases.csv", "metrics.csv", "recipe.yaml", "plan.yaml", "splits.json", "data.json", "log.txt")


class Study(NamedTuple):
    """One call of `ulna compare`.

    Args:
        name: of its folder.
        data: the data set below DATA; empty: it is drawn.
        models: to train.
        seeds: of each.
        options: further keywords of `compare`.
    """

    name: str
    data: str
    models: Sequence[str]
    seeds: int
    options: dict[str, object]


def recipe(name: str) -> str:
    """A recipe of the checkout, or by the name that the package has it under."""
    file = ROOT / "recipes" / f"{name}.yaml"
    return str(file) if file.exists() else name


NUCLEI = (
    "carvalho/unet_nuclei", "carvalho/unetpp_nuclei", "carvalho/sdu_net_nuclei", "carvalho/sdnu_net_nuclei",
    "zhou/unetpp_ds", "nnunet",
)  # fmt: skip
STUDIES = (
    Study("nuclei", "nuclei96", NUCLEI, 3, {"recipe": recipe("carvalho_nuclei"), "jobs": "auto"}),
    # all nine at once: what runs beside a training takes of its minutes, and should be the same for all
    Study("hippocampus", "hippocampus", ("nnunet", "implicit_unet", "unet"), 3, {"max_hours": 0.04, "jobs": 9}),
)
FEW = (
    "architecture.channels=[4, 8, 16]", "planning.batch=2", "training.steps=40", "training.min_steps=4",
    "training.checkpoint_minutes=0",
)  # fmt: skip
TINY = (Study("tiny", "", ("unet", "unetpp"), 1, {"set": FEW, "jobs": 1}),)


class TimeIsUp(BaseException):
    """The minutes of a call are over, or a person stops it; nothing on the way takes it for a failure."""


def main() -> int:
    """Read the flags, go on with the studies until the minutes are over; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="a folder with nuclei96/ and hippocampus/")
    parser.add_argument("--out", type=Path, default=Path("gpu-study"), help=f"where {ARCHIVE} is written")
    parser.add_argument("--archive", type=Path, help="of an earlier call: its trainings are skipped")
    parser.add_argument("--minutes", type=float, default=8.0, help="of this call")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-study"), help="where trainings run")
    parser.add_argument(
        "--tiny", action="store_true", help="two networks, forty steps of drawn images: figures mean nothing"
    )
    flags = parser.parse_args()
    end = time.monotonic() + 60 * flags.minutes
    if flags.data is None and not flags.tiny:
        parser.error("DATA is missing: a folder with nuclei96/ and hippocampus/ (or --tiny)")
    if flags.archive is not None and not flags.archive.is_file():
        parser.error(f"--archive {flags.archive}: no such file; leave it out in the first call")
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # of the trainings, which are processes of their own
    sys.path.insert(0, str(ROOT / "src"))
    for file in (flags.archive, flags.out / ARCHIVE):
        if file is not None and file.is_file():
            unpack(file, flags.work)
    prepare()
    studies = TINY if flags.tiny else STUDIES
    left = [study.name for study in studies]
    code = 3
    with packing(flags.work, flags.out / ARCHIVE):
        try:
            with until(end - min(STOP_S, 20 * flags.minutes)):
                for study in studies:
                    if study is not studies[0] and end - time.monotonic() < STOP_S + LEAST_S:
                        break
                    run(study, flags.data, flags.work)
                    left.remove(study.name)
            code = 3 if left else 0
        except TimeIsUp:
            print("the minutes of this call are over")
        except StudyFailed as failed:
            print(failed)
            code = 1
    done = len(finished(flags.work))
    wanted = sum(len(study.models) * study.seeds for study in studies)
    print(f"{done} of {wanted} trainings are done; {flags.out / ARCHIVE}")
    if code == 3:
        print(f"not all: {', '.join(left)}; call again with --archive {flags.out / ARCHIVE}")
    return code


def prepare() -> None:
    """Import what takes long, before a signal could cut an import off."""
    import logging

    import ulna.study.compare  # noqa: F401
    from ulna.kernels.allocator import tune_memory

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    tune_memory()  # as the command line does


class StudyFailed(Exception):
    """Some trainings of a study failed, or it could not begin."""


def run(study: Study, data: Path | None, work: Path) -> None:
    """Do what is missing of a study, and show its table.

    Raises:
        TimeIsUp: if it was stopped.
        StudyFailed: with the reasons.
    """
    from ulna.errors import Interrupted, UlnaError
    from ulna.study.compare import compare

    folder = work / "data" if data is None or not study.data else data / study.data
    if not study.data and not folder.exists():
        discs(folder)
    print(f"\n## {study.name}: {', '.join(study.models)}; {study.seeds} seeds\n", flush=True)
    try:
        made = compare(folder, models=study.models, seeds=study.seeds, out=work / study.name, **study.options)
    except Interrupted:
        raise TimeIsUp from None
    except UlnaError as error:
        raise StudyFailed(f"{study.name}: {error}") from None
    print((made.folder / "table.md").read_text(encoding="utf-8"))


@contextmanager
def until(end: float) -> Iterator[None]:
    """Stop what stands in the block at a time of the monotonic clock, as SIGTERM does at any time.

    Raises:
        TimeIsUp: where nothing else listens to the signal.
    """

    def stop(number: int, frame: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGTERM, stop)
    # a signal to the process, as a person's would be: `compare` hears it, and has every training leave a checkpoint
    timer = threading.Timer(max(0.0, end - time.monotonic()), os.kill, (os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGTERM, before)


def finished(work: Path) -> list[Path]:
    """The run folders of trainings that have their figures."""
    return sorted(path.parent for path in work.glob("*/runs/**/summary.json") if (path.parent / "cases.csv").exists())


@contextmanager
def packing(work: Path, archive: Path) -> Iterator[None]:
    """Keep an archive up to date in a thread, and write it once more in the end."""
    over = threading.Event()

    def look() -> None:
        known: list[Path] = []
        while not over.wait(LOOK_S):
            found = finished(work)
            if found != known:
                pack(work, archive)
                known = found

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        pack(work, archive)


def pack(work: Path, archive: Path) -> None:
    """Figures of finished trainings, and of studies, into one file: it is there whole, or as it was before."""
    files = [run / name for run in finished(work) for name in OF_RUN]
    files += [study.parent / name for study in sorted(work.glob("*/study.json")) for name in OF_STUDY]
    archive.parent.mkdir(parents=True, exist_ok=True)
    unfinished = archive.with_name(f".{archive.name}")
    with tarfile.open(unfinished, "w:gz") as whole:
        for file in files:
            if file.exists():
                whole.add(file, file.relative_to(work).as_posix())
    unfinished.replace(archive)


def unpack(archive: Path, work: Path) -> None:
    """What an earlier call kept; files that are there stay, and so does a training that goes on."""
    with tarfile.open(archive) as whole:
        for member in whole.getmembers():
            if member.isfile() and not (work / member.name).exists():
                whole.extract(member, work, filter="data")


def discs(folder: Path) -> None:
    """A tiny data set: bright discs on noise."""
    import numpy as np
    from PIL import Image

    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:32, :32]
    for number in range(8):
        mask = (rows - rng.integers(12, 20)) ** 2 + (columns - rng.integers(12, 20)) ** 2 < 64
        image = np.clip(80 + 90 * mask + rng.normal(0, 15, mask.shape), 0, 255)
        for kind, values in (("images", image), ("labels", mask * 255)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / kind / f"disc{number}.png")


if __name__ == "__main__":
    raise SystemExit(main())
