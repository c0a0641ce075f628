"""Rounds of shares that this process predicts itself, as processes and SLURM would leave them to a later call."""

import json
import os
import signal
from functools import partial

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.inference.test_sharing import facts, files
from ulna.data.layout.record import Record
from ulna.errors import DryRun, Interrupted, UsageError
from ulna.executors import places
from ulna.inference import making, share_jobs, worker
from ulna.inference.share_jobs import _goes_on
from ulna.inference.shares import CASES, ENDED, TAKEN, TOLD, Queue, Task
from ulna.system.locking import locked
from ulna.system.outputs import PREDICT_FILE, SHARES

SLURM = {"on": "slurm", "jobs": 1, "threads": 1}


def work(job, *cases):
    """What the process of a share does; where cases are named, with those alone, as if it were killed after them."""
    folder, held = job.folder.parent, []
    queue = Queue(folder)
    for number in range(len(queue)):
        path = folder / "taken" / str(number)
        if cases and queue[number].case.id not in cases and not path.exists():
            path.touch()
            held.append(path)
    with locked(job.folder):
        worker._predict(Task.read(folder), folder, job.folder)
    for path in held:
        path.unlink()
    if cases:
        (job.folder / ENDED).unlink()


def tell(job, *lines):
    """As a process does that was killed or stopped meanwhile."""
    job.folder.mkdir(exist_ok=True)
    with (job.folder / TOLD).open("a") as file:
        file.writelines(f"\n{json.dumps(line)}\n" for line in lines)


@pytest.fixture
def rounds(monkeypatch):
    """What stands for the executor in each round, called with the job and what is to be called before it begins; at the end
    the share is predicted to its end."""
    acts = []

    def hand_out(jobs, executor, *, on_begin, on_look, **_):
        (job,) = jobs
        if job.done():
            return {}
        if acts:
            acts.pop(0)(job, on_begin)
        else:
            on_begin()
            work(job)
        on_look()
        return {} if job.done() else {job.name: "it was cut off"}

    monkeypatch.setattr(share_jobs, "hand_out", hand_out)
    return acts


def stopped(job, begin, *cases):
    """Predict so many cases; then the command is stopped, and the job goes on."""
    begin()
    if cases:
        work(job, *cases)
    raise Interrupted(signal.SIGTERM, "again", "the jobs of SLURM go on")


def refused(why, job, begin, *, late=False):
    if late:
        begin()
    raise UsageError(why)


def test_a_case_that_no_job_ends_before_it_is_stopped_has_failed_in_the_end(tmp_path, images, run, rounds):
    """A job of SLURM hears SIGTERM before its time ends: its case is left, by whichever job."""
    made = []
    for name in "bcd":
        (images / f"{name}.png").unlink()

    def left(job, begin):
        begin()
        made.append(job.folder.parent.name)
        tell(job, {"begun": 0}, {"left": 0})

    rounds += [left] * 9
    with pytest.raises(UsageError, match="a: the process that predicted it was killed, or stopped, or crashed, twice"):
        ulna.predict(run, images, out=tmp_path / "out", **SLURM)
    assert made == ["round_1", "round_2"]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_case_that_cost_a_process_comes_first_and_alone(tmp_path, images, run, rounds, monkeypatch, ahead):
    monkeypatch.setattr(making, "overlaps", lambda device: ahead)
    told = []

    def killed(job, begin):
        begin()
        tell(job, {"begun": 1}, {"begun": 2})

    def watched(job, begin):
        begin()
        items = [Queue(job.folder.parent)[number] for number in range(4)]
        assert [(item.case.id, item.tries) for item in items] == [("b", 1), ("c", 1), ("a", 0), ("d", 0)]
        work(job)
        lines = (job.folder / TOLD).read_text().split("\n")
        told.extend(next(iter(json.loads(line).items())) for line in lines if line)

    rounds += [killed, watched]
    made = ulna.predict(run, images, out=tmp_path / "masks", **SLURM)
    assert [row["case"] for row in made.cases] == list("abcd")
    assert told[:4] == [("begun", 0), ("ended", 0), ("begun", 1), ("ended", 1)]


def test_a_slurm_that_does_not_answer_takes_nothing_from_the_round_that_goes_on(tmp_path, images, run, rounds):
    out = tmp_path / "masks"
    rounds += [lambda job, begin: stopped(job, begin, "a")]
    with pytest.raises(Interrupted, match=r"1 of 4 cases are done, as .*predict\.json says; the jobs of SLURM go on"):
        ulna.predict(run, images, out=out, **SLURM)
    jobs = []

    def silent(job, begin):
        work(job, "b")  # by the job that goes on
        jobs.append(job)
        refused("squeue does not answer", job, begin)

    rounds.append(silent)
    with pytest.raises(UsageError, match="squeue does not answer"):
        ulna.predict(run, images, out=out, **SLURM)
    assert (out / "b.png").exists() and (out / SHARES / "round_1" / "task.json").exists()
    work(jobs[0], "c")
    ulna.predict(run, images, out=out, **SLURM)
    ulna.predict(run, images, out=tmp_path / "one", threads=1)
    assert files(out) == files(tmp_path / "one") and facts(out) == facts(tmp_path / "one")
    assert not (out / SHARES).exists()


def test_what_could_not_be_handed_out_leaves_nothing(tmp_path, images, run, rounds):
    """Nor where the executor refuses it late, as sbatch does, or a signal comes before."""
    out = tmp_path / "masks"

    def early(job, begin):
        raise Interrupted(signal.SIGTERM, "again", "nothing was submitted")

    for late in (False, True):
        rounds.append(partial(refused, "sbatch refuses", late=late))
        with pytest.raises(UsageError, match="sbatch refuses"):
            ulna.predict(run, images, out=out, **SLURM)
        assert not out.exists()
    rounds.append(early)
    with pytest.raises(Interrupted) as signalled:
        ulna.predict(run, images, out=out, **SLURM)
    assert "0 of 4 cases are done" in str(signalled.value) and PREDICT_FILE not in str(signalled.value)
    assert not out.exists()


def test_masks_that_jobs_put_in_place_while_a_command_looks_are_known(tmp_path, images, run, rounds, monkeypatch):
    """The journals were read already."""
    out, read, jobs = tmp_path / "masks", Record.read, []

    def begun(job, begin):
        jobs.append(job)
        stopped(job, begin, "a")

    def late(folder):
        record = read(folder)
        work(jobs[0], "b", "c")
        return record

    rounds.append(begun)
    with pytest.raises(Interrupted):
        ulna.predict(run, images, out=out, **SLURM)
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(Record, "read", late)
        assert ulna.predict(run, images, out=out, **SLURM).skipped == ("a", "b", "c")
    (out / "e.png").write_bytes(b"of somebody else")
    Image.fromarray(np.zeros((24, 32), np.uint8)).save(images / "e.png")
    with pytest.raises(UsageError, match=r"e\.png: not written by ulna"):
        ulna.predict(run, images, out=out, **SLURM)


def test_a_round_without_a_case_that_waits_is_followed_by_another(tmp_path, images, run, rounds):
    out = tmp_path / "masks"
    ulna.predict(run, images, out=out, threads=1)
    for name in "cd":
        (out / f"{name}.png").unlink()
    rounds.append(stopped)
    with pytest.raises(Interrupted):
        ulna.predict(run, images, out=out, **SLURM)
    (out / "a.png").unlink()
    ulna.predict(run, images, out=out, **SLURM)
    ulna.predict(run, images, out=tmp_path / "one", threads=1)
    assert files(out) == files(tmp_path / "one") and facts(out) == facts(tmp_path / "one")


def test_what_an_earlier_call_was_told_counts_as_far_as_it_is_so_still(tmp_path, images, run, rounds):
    """Since: a mask removed, an image replaced, and one repaired that could not be read."""
    out, whole = tmp_path / "masks", (images / "c.png").read_bytes()
    (images / "c.png").write_bytes(whole[:60])
    rounds.append(lambda job, begin: stopped(job, begin, "a", "b", "c"))
    with pytest.raises(Interrupted):
        ulna.predict(run, images, out=out, **SLURM)
    (out / "a.png").unlink()
    (images / "b.png").write_bytes((images / "d.png").read_bytes())
    (images / "c.png").write_bytes(whole)
    ulna.predict(run, images, out=out, overwrite=True, **SLURM)
    ulna.predict(run, images, out=tmp_path / "one", threads=1)
    assert files(out) == files(tmp_path / "one") and facts(out) == facts(tmp_path / "one")


def test_other_jobs_do_not_take_over_a_round(tmp_path, images, run, rounds):
    out, seen = tmp_path / "masks", []
    rounds += [lambda job, begin: stopped(job, begin, "a"), lambda job, begin: seen.append(job.folder) or work(job)]
    with pytest.raises(Interrupted):
        ulna.predict(run, images, out=out, **SLURM)
    ulna.predict(run, images, out=out, on="slurm", jobs="auto", threads=1)
    assert seen == [out / SHARES / "round_2" / "share_0"]


def test_paths_with_bytes_that_are_no_text_go_the_same_way(tmp_path, images, run, rounds):
    try:
        odd = images.rename(tmp_path / os.fsdecode(b"images-\xff"))
    except OSError:
        pytest.skip("this file system has no such names")
    ulna.predict(run, odd, out=tmp_path / "one", threads=1)
    ulna.predict(run, odd, out=tmp_path / "two", **SLURM)
    assert files(tmp_path / "two") == files(tmp_path / "one") and facts(tmp_path / "two") == facts(tmp_path / "one")


def test_what_is_killed_goes_on_at_once_while_kills_are_rare_and_cases_are_left(tmp_path):
    folder, share = tmp_path, tmp_path / "share_0"
    (folder / CASES).write_text("{}\n" * 12)
    share.mkdir()
    assert not _goes_on(folder, share, 1)  # nobody can take what has no place to be taken
    (folder / TAKEN).mkdir()
    assert _goes_on(folder, share, 2) and not _goes_on(folder, share, 3)
    (share / TOLD).write_text("".join(f'{{"begun": {n}}}\n{{"ended": {n}}}\n' for n in range(9)))
    assert not _goes_on(folder, share, 3)
    with (share / TOLD).open("a") as file:
        file.write('{"ended": 9}\n')
    assert _goes_on(folder, share, 3) and not _goes_on(folder, share, 4)
    for number in range(12):
        (folder / TAKEN / str(number)).touch()
    assert not _goes_on(folder, share, 1)


def test_a_limit_of_memory_is_divided(tmp_path, images, run, monkeypatch):
    """Each has its part of what the command leaves, whatever the images; too small a part is refused before any work."""
    monkeypatch.setattr(share_jobs, "program_bytes", lambda: 1e9)
    monkeypatch.setattr(places.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(places, "machine_memory", lambda: 64e9)
    would = partial(ulna.predict, run, images, out=tmp_path / "masks", threads=1, dry_run=True)
    with pytest.raises(DryRun, match="4 shares on this machine, 4 at once") as divided:
        would(max_ram=9, jobs=4)
    assert "1 thread, 2.0 GB of memory" in divided.value.text
    with pytest.raises(
        UsageError, match=r"--max-ram 5: the command and 4 processes take 6\.20 GB .* or take fewer --jobs"
    ):
        would(max_ram=5, jobs=4)
    with pytest.raises(DryRun, match="2 shares on this machine, 2 at once"):
        would(max_ram=5, jobs=2)
    monkeypatch.setattr(share_jobs, "FEWEST", 1)
    with pytest.raises(DryRun, match="4 shares on this machine, 4 at once"):
        would(max_ram=9, jobs="auto")
    with pytest.raises(DryRun, match="the process of the command predicts"):
        would(max_ram=1.0005, jobs="auto")  # which holds no image whole
    assert not (tmp_path / "masks").exists()
