"""How a training keeps to a number of bytes: which cases memory holds, which are prepared by slabs, and what is refused.

What every part of a training takes of a case is counted from the header of its image, before anything is read; what cannot
be kept to is refused then, with the least that works.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulna.data.formats.limits import allowing
from ulna.data.layout.classes import summarise_ids
from ulna.data.layout.dataset import Dataset, split
from ulna.data.pipeline.preprocess import check_fit
from ulna.data.streaming import streams
from ulna.errors import DataError, Problem, UsageError, counted, printable
from ulna.kernels.allocator import give_back_memory
from ulna.planning.bounded import MARGIN
from ulna.planning.memory import MEMORY_GB, maps_per_voxel
from ulna.planning.plan import Planned, TrainingData, division, plan_training
from ulna.recipe import Recipe, Split
from ulna.system.progress import track
from ulna.training.needs import (
    COMPARED,
    MAPPED,
    PARTS,
    REFERENCED,
    SCORED,
    answering_bytes,
    base_bytes,
    finishing_bytes,
    maps_of,
    prepared_bytes,
    program_at_work,
    remembering,
    seen,
    slab_bytes,
    step_bytes,
    structures_bytes,
    whole_bytes,
)
from ulna.training.spool import SHARE

HARDER = 0.7  # of the memory that a step was planned for, where it does not fit
LEAST_STEP_GB = 0.05
KEPT_FOR_STRUCTURES = 0.1  # of what is left
KEPT_FOR_VALIDATION = 0.25  # of what is left for cases


@dataclass(frozen=True)
class Within:
    """What a training within a limit does.

    Args:
        limit: bytes of the process.
        peak: of them that will be taken, if no case is kept.
        keep_train, keep_val: bytes of cases that are kept in memory.
        structures: bytes of where structures lie that are kept; those of other cases are found again.
        on_disk: bytes that certainly lie on the disk of the run, of training and of validation cases.
        lean: ids of cases that are prepared by slabs.
        readers: threads that draw samples.
        fewer: than the recipe, or the device, has them.
        apart: ids of cases that the end of the training does not look at for calibration.json.
    """

    limit: float
    peak: float
    keep_train: int
    keep_val: int
    structures: int
    on_disk: tuple[float, float]
    lean: frozenset[str]
    readers: int
    fewer: int
    apart: frozenset[str]

    def of_val(self, folder: Path) -> dict[str, Any]:
        """How the validation cases of a run in `folder` are kept: words of `PreparedCases`."""
        return {"keep_bytes": self.keep_val, "lean": self.lean, "bounded": True, "folder": folder}

    def check_disk(self, folder: Path) -> None:
        """Refuse a disk that does not hold what memory does not.

        Args:
            folder: of the run.

        Raises:
            UsageError: with what it takes.
        """
        at = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
        free, need = shutil.disk_usage(at).free, 2 * max(self.on_disk) / SHARE
        if need > free:
            raise UsageError(
                f"{printable(folder)}: the disk needs {need / 1e9:.2f} GB free for prepared cases that --max-ram "
                f"{self.limit / 1e9:g} keeps out of memory, and has {free / 1e9:.2f} GB; free some of it, or raise --max-ram"
            )

    def words(self, cases: int) -> str:
        """What it costs, in a line."""
        kept = (self.keep_train + self.keep_val) / 1e9
        said = [
            f"about {self.peak / 1e9:.2f} GB are taken, and {kept:.2f} GB keep prepared cases; those beyond lie on the disk, "
            "and patches are read from there"
        ]
        if self.lean:
            said.append(
                f"{counted(len(self.lean), 'case')} of {cases} {'is' if len(self.lean) == 1 else 'are'} prepared by slabs, "
                "anew in every training"
            )
        if self.fewer:
            said.append(f"{counted(self.readers, 'thread')} in place of {self.readers + self.fewer} read ahead")
        if self.apart:
            said.append(f"calibration leaves out {counted(len(self.apart), 'case')} too large for it")
        said.append("freed memory is given back at once, which makes steps slower")
        return f"--max-ram {self.limit / 1e9:g}: {'; '.join(said)}"


def bytes_of(max_ram: float | None) -> float | None:
    """A limit in GB as bytes, for which freed memory is given back from now on; None for none.

    Raises:
        UsageError: if it is not above 0.
    """
    if max_ram is None:
        return None
    if not 0 < max_ram < math.inf:
        raise UsageError(f"--max-ram {max_ram:g}: must be above 0")
    give_back_memory()
    return 1e9 * max_ram


@contextmanager
def reading_within(limit: float | None, out: Path | str | None = None) -> Iterator[None]:
    """Whatever is read whole inside leaves room for what is made of it.

    Args:
        limit: bytes; None for none.
        out: what is written in the end; images that are gone through are mapped from its disk. Left out, from the folder of
            the system for such files, which may lie in memory.
    """
    if limit is None:
        yield
        return
    at = None if out is None else next(one for one in Path(out).absolute().parents if one.is_dir())
    with allowing(None, limit / 1e9, program_at_work() / 1e9, mapped_from=MAPPED, scratch=at), remembering():
        yield


def look_through(dataset: Dataset, limit: float | None) -> None:
    """Refuse a data set of which a case cannot be read within a limit, before any is.

    Raises:
        UsageError: if not even the program is held.
        DataError: with all such cases, and the least that works.
    """
    if limit is None:
        return
    base = program_at_work()
    problems: list[Problem] = []
    if MARGIN * (base + PARTS) > limit:
        least = _up(MARGIN * (base + PARTS))
        raise UsageError(
            f"without any image it takes {least} GB at least, more than --max-ram {limit / 1e9:g} allows; raise it"
        )
    for case in track(dataset.cases, "comparing sizes"):
        try:
            one = seen(case)
        except DataError as error:
            problems += error.problems
            continue
        if (need := MARGIN * (base + one.reading)) > limit:
            what = f"takes {_up(need)} GB at least to look through, more than --max-ram {limit / 1e9:g} allows"
            problems.append(Problem(str(case.images[0]), what, "raise it, or cut the image into smaller ones"))
    if problems:
        raise DataError(problems)


def plan_within(found: TrainingData, recipe: Recipe, limit: float | None, **how: object) -> Planned:
    """`plan_training`, of a step that a limit leaves room for.

    Args:
        found: read and divided.
        recipe: as it was chosen.
        limit: bytes; None for none.
        how: as for `plan_training`.
    """
    if limit is None or how.get("given") is not None:
        return plan_training(found, recipe, **how)  # type: ignore[arg-type]
    planned = plan_training(found, recipe, **{**how, "whiten": False})  # type: ignore[arg-type]
    asked = min(recipe.planning.memory_gb or MEMORY_GB, limit / 1e9)
    while MARGIN * (base_bytes(planned) + step_bytes(planned, 0)) > limit and asked > LEAST_STEP_GB:
        asked = round(HARDER * asked, 3)
        recipe = recipe.replaced(planning=recipe.planning.replaced(memory_gb=asked))
        planned = plan_training(found, recipe, **{**how, "whiten": False})  # type: ignore[arg-type]
    if _reads_again(recipe):
        within(planned, found.dataset, limit)  # what is read again is read whole
        planned = plan_training(found, recipe, **how)  # type: ignore[arg-type]
    return planned


def splits_of(dataset: Dataset, recipe: Recipe, folds: Sequence[int]) -> list[Split]:
    """Of some folds of a cross-validation; copies of a case, which only reading finds, may lie in others."""
    training = recipe.training
    seed = training.seed if training.split_seed is None else training.split_seed
    return [split(dataset, seed, wanted=division(training.replaced(fold=number))) for number in folds]


def within(planned: Planned, dataset: Dataset, limit: float, to_come: Sequence[Split] = ()) -> Within:
    """How a training keeps to a limit.

    Args:
        planned: the training.
        dataset: with the dimensions that were found.
        limit: bytes.
        to_come: further trainings, which must keep to it as well: other splits of the same cases.

    Raises:
        UsageError: with the least that works.
    """
    own, plan = planned.split, planned.plan
    each = maps_per_voxel(planned.network, plan, bf16=False)
    parts = {name: [seen(case) for case in dataset.cases_of(ids)] for name, ids in own.model_dump().items()}
    kept, room = [*parts["train"], *parts["val"]], limit / MARGIN - base_bytes(planned)
    sampled = sum(structures_bytes(one, planned) for one in parts["train"])
    room -= sampled
    sparse = planned.network.head.sparse
    can_be_lean = streams(plan) and plan.slices is None and not sparse and not _reads_again(planned.recipe)
    lean = set()
    preparing: dict[str, float] = {}
    answering: dict[str, float] = {}
    needs: dict[str, list[tuple[str, float]]] = {"a step of the training": [("", step_bytes(planned, 0))]}
    for divided in [own, *to_come]:
        of_it = {name: [seen(case) for case in dataset.cases_of(ids)] for name, ids in divided.model_dump().items()}
        for one in [*of_it["train"], *of_it["val"], *of_it["test"]]:
            check_fit(one.volume, plan)
        for one in [*of_it["train"], *of_it["val"]]:
            by_slabs = can_be_lean and one.by_slabs and whole_bytes(one, plan) > room
            preparing[one.case.id] = slab_bytes(one, plan) if by_slabs else whole_bytes(one, plan)
            lean |= {one.case.id} if by_slabs else set()
        answering |= {one.case.id: answering_bytes(one, planned, each) for one in of_it["val"]}
        found = {
            "preparing": [(one, preparing[one.case.id]) for one in [*of_it["train"], *of_it["val"]]],
            "validating": [(one, answering[one.case.id]) for one in of_it["val"]],
            "the final evaluation of": [
                (one, finishing_bytes(one, planned, each, SCORED)) for one in of_it["test"] or of_it["val"]
            ],
        }
        for what, some in found.items():
            named = {str(one.case.images[0]): need for one, need in some}
            needs[what] = [*({**dict(needs.get(what, [])), **named}).items()]
    short = [(what, name, need) for what, some in needs.items() for name, need in some if need > room]
    peak = max(need for some in needs.values() for _, need in some)
    if short:
        raise _refused(short, planned, limit, peak, sampled, slabs=can_be_lean)
    most = max(preparing.values())
    readers = _readers(planned)
    while readers and max((readers + 1) * most, step_bytes(planned, readers)) > room:
        readers -= 1
    during = max((readers + 1) * most, step_bytes(planned, readers), *answering.values(), 0.0)
    left = max(0.0, room - during)
    structures = sampled + KEPT_FOR_STRUCTURES * left
    left -= KEPT_FOR_STRUCTURES * left
    keep_train, keep_val = (1 - KEPT_FOR_VALIDATION) * left, KEPT_FOR_VALIDATION * left
    uncached = planned.recipe.training.cache is False and not planned.device.gpu  # else others may lie elsewhere
    on_disk = [
        max(sum(prepared_bytes(one, plan) for one in some) - keep, 0.0)
        if uncached
        else sum(prepared_bytes(one, plan) for one in some if one.case.id in lean)
        for some, keep in ((parts["train"], keep_train), (parts["val"], keep_val))
    ]
    apart = {one.case.id for one in parts["val"] if finishing_bytes(one, planned, each, COMPARED, prepared=2) > room}
    apart |= {one.case.id for one in parts["train"] if one.map_bytes + REFERENCED * maps_of(plan) * one.voxels > room}
    return Within(
        limit,
        MARGIN * (base_bytes(planned) + sampled + peak),
        int(keep_train),
        int(keep_val),
        int(structures),
        (on_disk[0], on_disk[1]),
        frozenset(one.case.id for one in kept if one.case.id in lean),
        readers,
        _readers(planned) - readers,
        frozenset(apart),
    )


def _refused(
    short: Sequence[tuple[str, str, float]], planned: Planned, limit: float, peak: float, sampled: float, *, slabs: bool
) -> UsageError:
    """What takes more than a limit, by what most of it takes, and the least limit that works."""
    lines, remedies, base = [], ["raise it"], base_bytes(planned) + sampled
    for what in dict.fromkeys(what for what, _, _ in short):
        names = [name for part, name, _ in short if part == what and name]
        most = max(need for part, _, need in short if part == what)
        of = f" {summarise_ids(names)}" if names else ""
        lines.append(f"{what}{of} needs {_up(MARGIN * (base + most))} GB")
    if any(what == "a step of the training" for what, _, _ in short):
        remedies.append("set planning.batch=1 or a smaller planning.patch")
    if any(what == "preparing" for what, _, _ in short) and slabs:
        remedies.append("convert images that are read whole (ulna convert), see docs/large-images.md")
    least = _up(MARGIN * (base + peak))
    return UsageError(
        f"this training needs {least} GB at least, more than --max-ram {limit / 1e9:g} allows: {'; '.join(lines)}; "
        + ", or ".join(remedies)
    )


def _up(need: float) -> str:
    """GB, rounded up to 10 MB, and as much for what differs from call to call."""
    return f"{math.ceil(need / 1e7 + 2) / 100:.2f}"


def _reads_again(recipe: Recipe) -> bool:
    return recipe.planning.whitening is not None or recipe.planning.cap is not None


def _readers(planned: Planned) -> int:
    wanted = planned.recipe.training.workers
    return (4 if planned.device.gpu else 0) if wanted is None else wanted
