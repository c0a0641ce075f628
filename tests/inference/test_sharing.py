"""Cases that processes share: the same masks and record as of one, whatever is killed and whatever fails."""

import json
import os
import signal
import threading
import time
from types import SimpleNamespace

import pytest

import ulna
from tests.inference.poisoned import of_share
from tests.inference.test_predict import run_folder
from tests.places import ROOT
from ulna.data.layout.case import Case
from ulna.data.layout.record import Record
from ulna.errors import DryRun, Interrupted, PartialFailure, UsageError
from ulna.executors import choosing, places
from ulna.executors.choosing import On
from ulna.executors.job import Need
from ulna.inference import share_jobs
from ulna.inference.share_jobs import Sharing
from ulna.pages.sealing import PAGE_FILE
from ulna.planning.memory import GPU_SHARE
from ulna.system.device import Device
from ulna.system.outputs import JOURNAL, PREDICT_FILE, SHARES

TWO = {"jobs": 2, "threads": 1}


@pytest.fixture
def poisoned(monkeypatch):
    """Processes of shares do as they are told by POISON and PAUSE_S."""
    monkeypatch.setattr(share_jobs, "python_module", of_share)
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    return monkeypatch


def facts(folder):
    """predict.json, without the times."""
    found = json.loads((folder / PREDICT_FILE).read_text())
    for row in found["cases"]:
        row.pop("seconds")
    return found


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != PREDICT_FILE}


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path, images, run, caplog):
    """An ensemble, probabilities, a page, and an image that is cut short."""
    caplog.set_level("INFO")
    (images / "c.png").write_bytes((images / "c.png").read_bytes()[:60])
    runs = [run, run_folder(tmp_path / "other", 1)]
    for name, how in (("one", {"threads": 1}), ("two", TWO)):
        with pytest.raises(PartialFailure, match=r"c: .*c\.png") as failed:
            ulna.predict(runs, images, out=tmp_path / name, probabilities=True, report=True, **how)
        assert failed.value.done == 3
    assert "2 shares to be done" in caplog.text
    assert facts(tmp_path / "two") == facts(tmp_path / "one")
    assert files(tmp_path / "two") == files(tmp_path / "one") and PAGE_FILE in files(tmp_path / "two")
    assert not (tmp_path / "two" / SHARES).exists()
    (images / "c.png").unlink()
    again = ulna.predict(runs, images, out=tmp_path / "two", probabilities=True, **TWO)
    assert again.skipped == ("a", "b", "d")


@pytest.mark.slow
def test_a_case_that_kills_its_process_twice_has_failed_and_no_other(tmp_path, images, run, poisoned):
    """What was killed goes on at once: it takes the cases behind b while the other process is at a."""
    poisoned.setenv("POISON", "b")
    poisoned.setenv("LAST", "a")
    with pytest.raises(
        PartialFailure, match="b: the process that predicted it was killed, or stopped, or crashed, twice"
    ) as failed:
        ulna.predict(run, images, out=tmp_path / "masks", **TWO)
    assert (failed.value.done, list(failed.value.failed)) == (3, ["b"])
    assert [row["case"] for row in facts(tmp_path / "masks")["cases"]] == ["a", "c", "d"]
    assert not (tmp_path / "masks" / SHARES).exists() and not (tmp_path / "masks" / JOURNAL).exists()


@pytest.mark.slow
def test_a_case_that_costs_a_process_beside_others_is_left_until_they_have_ended(
    tmp_path, images, run, poisoned, caplog
):
    """As one that finds no memory beside them: b kills its process as long as the other share, at a, has not ended."""
    caplog.set_level("INFO")
    poisoned.setenv("POISON_BESIDE", "b")
    poisoned.setenv("LAST", "a")
    made = ulna.predict(run, images, out=tmp_path / "masks", **TWO)
    assert [row["case"] for row in made.cases] == list("abcd") and (tmp_path / "masks" / "b.png").exists()
    assert "leaves what it was at for the end" in caplog.text and "it is begun once more, alone" in caplog.text


@pytest.mark.slow
def test_a_stop_keeps_what_is_done_and_another_call_does_the_rest(tmp_path, images, run, poisoned):
    poisoned.setenv("PAUSE_S", "1")
    out = tmp_path / "masks"

    def stop():
        end = time.monotonic() + 120
        while not list(out.glob("?.png")) and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    watch = threading.Thread(target=stop)
    watch.start()
    with pytest.raises(Interrupted, match=r"of 4 cases .*ulna predict .* --jobs 2") as stopped:
        ulna.predict(run, images, out=out, **TWO)
    watch.join()
    assert stopped.value.signal == signal.SIGTERM
    done = sorted(path.stem for path in out.glob("?.png"))
    assert 0 < len(done) < 4 and [row["case"] for row in facts(out)["cases"]] == done
    assert ulna.predict(run, images, out=out).skipped == tuple(done)
    ulna.predict(run, images, out=tmp_path / "one")
    assert files(out) == files(tmp_path / "one")


def test_what_would_be_handed_out_is_told_and_nothing_written(tmp_path, images, run):
    with pytest.raises(DryRun) as would:
        ulna.predict(run, images, out=tmp_path / "masks", on="slurm", jobs=2, slurm=["partition=gpu"], dry_run=True)
    assert would.value.jobs == ["share 1", "share 2"]
    assert "#SBATCH --partition=gpu" in would.value.text and "-m ulna.inference.worker" in would.value.text
    assert not (tmp_path / "masks").exists()
    with pytest.raises(UsageError, match="--dry-run: prints what --jobs or --on would hand out"):
        ulna.predict(run, images, out=tmp_path / "masks", dry_run=True)


def test_where_nothing_can_be_handed_out_nothing_is_written(tmp_path, images, run, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match="there is no sbatch"):
        ulna.predict(run, images, out=tmp_path / "masks", on="slurm")
    assert not (tmp_path / "masks").exists()


@pytest.mark.parametrize(
    ("words", "device", "expected"),
    [
        ({"jobs": "auto"}, "cpu", (3, 2)),  # as the memory holds
        ({"jobs": "auto", "need": Need(1e9)}, "cpu", (6, 1)),  # 24 cases, at least four each
        ({"jobs": "auto", "need": Need(1e9), "threads": 4}, "cpu", (2, 4)),
        ({"jobs": 2}, "cpu", (2, 4)),
        ({"jobs": 99, "need": Need(1e9)}, "cpu", (8, 1)),
        ({"jobs": "auto", "need": Need(1e9, 1e9)}, "cuda", (2, 4)),  # one a GPU
        ({"jobs": 4, "need": Need(1e9, 3e9)}, "cuda", (4, 2)),
        ({"on": "slurm"}, "cpu", (1, 4)),
        ({"on": "ray", "jobs": 5, "threads": 3}, "cpu", (5, 3)),
        ({"jobs": "auto", "limit": 7e9}, "cpu", (2, 4)),
        ({"jobs": 3, "limit": 7e9}, "cpu", (3, 2)),
    ],
)
def test_how_cases_are_divided(monkeypatch, words, device, expected):
    """Eight cores, 10 GB, two GPUs of 10 GB; the command itself holds 0.5 GB."""
    given = {"jobs": None, "on": "local", "need": Need(3e9), "threads": None, "limit": None, **words}
    for room in (places, choosing):
        monkeypatch.setattr(room, "gpus_here", lambda: 2)
    monkeypatch.setattr(places, "machine_memory", lambda: 10e9)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr(choosing, "usable_cores", lambda: range(8))
    for name, value in {
        "find_device": lambda: Device(device, 10e9 / GPU_SHARE),
        "choose_threads": lambda: 8,
        "program_bytes": lambda: 0.5e9,
    }.items():
        monkeypatch.setattr(share_jobs, name, value)
    monkeypatch.setattr(Sharing, "_need", lambda self: given["need"])
    cases = [Case(str(number), (), None) for number in range(24)]
    task, on = SimpleNamespace(limit=given["limit"]), On.read(given["on"], given["jobs"])
    found = Sharing(on, given["threads"], task, SimpleNamespace(), cases, "").division
    assert (found.processes, found.threads) == expected
    assert found.limit == (None if given["limit"] is None else 6.5e9 / found.processes)


def test_masks_that_killed_processes_have_noted_are_known(tmp_path, images, run):
    """The command and all its processes are gone: what is in place counts, what is not may be made again."""
    out = tmp_path / "masks"
    ulna.predict(run, images, out=out)
    share = out / SHARES / "round_1" / "share_0"
    share.mkdir(parents=True)
    rows = [entry.to_json() for entry in Record.read(out).entries]
    (share / JOURNAL).write_text("".join(f"\n{json.dumps([row])}\n" for row in rows) + '\n[{"case": "e", "fi')
    (out / PREDICT_FILE).unlink()
    (out / "d.png").unlink()
    with pytest.raises(UsageError, match="was not finished"):
        ulna.evaluate(out, images)
    assert ulna.predict(run, images, out=out).skipped == ("a", "b", "c")
    assert not (out / SHARES).exists()
