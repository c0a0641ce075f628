"""Many cases that processes share: random kills, corrupt files, all kinds of input, and processes that are elsewhere."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

import ulna
from tests.dicom_series import write_series
from tests.executors.conftest import slurm  # noqa: F401 - a fixture
from tests.inference.poisoned import of_share
from tests.inference.test_predict import run_folder
from tests.inference.test_sharing import TWO, facts, files, poisoned  # noqa: F401 - a fixture
from tests.places import ROOT
from tests.share import ALL
from ulna.errors import Interrupted, PartialFailure
from ulna.executors.slurm import Slurm
from ulna.inference import share_jobs
from ulna.system.locking import LOCK
from ulna.system.outputs import PREDICT_FILE, SHARES

pytestmark = pytest.mark.slow
KILLS = 15 if ALL else 3
MANY = 1000 if ALL else 60


def small_images(folder, count, size=(16, 16)):
    """So many pictures of noise, n000.png, ..."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(folder / f"n{number:03}.png")
    return folder


def processes_of(out):
    """Those that hold a share."""
    found = set()
    for lock in (out / SHARES).glob(f"*/share_*/{LOCK}"):
        with suppress(OSError, ValueError):
            found.add(int(json.loads(lock.read_text())["pid"]))
    return found


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_random_kills_cost_time_and_nothing_else(tmp_path, run, monkeypatch):
    images, out = small_images(tmp_path / "images", 40), tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "PAUSE_S": "0.2"}
    words = [sys.executable, "-m", "tests.inference.poisoned", "predict", run, images, "--out", out, "--quiet"]
    words += ["--jobs", "2", "--threads", "1"]
    chance, driver, killed, seen = random.Random(0), None, [], set()
    end = time.monotonic() + 250
    while len(killed) < KILLS and time.monotonic() < end and (driver is None or driver.poll() != 0):
        if driver is None or driver.poll() is not None:
            with (tmp_path / "driver.txt").open("ab") as told:
                driver = subprocess.Popen([*map(str, words)], env=environment, cwd=ROOT, stdout=told, stderr=told)
        time.sleep(chance.uniform(0.2, 1.5))
        seen |= (held := processes_of(out))
        if not held:
            continue
        what = chance.choice(["command", "process", "process"])
        with suppress(ProcessLookupError):
            os.kill(driver.pid if what == "command" else chance.choice(sorted(held)), signal.SIGKILL)
            killed.append(what)
    assert len(killed) >= 2, (killed, (tmp_path / "driver.txt").read_text())
    assert driver.wait(200) in (0, 3, -signal.SIGKILL)  # 3: two kills met one case
    with (tmp_path / "driver.txt").open("ab") as told:
        last = subprocess.run([*map(str, words)], env=environment, cwd=ROOT, stdout=told, stderr=told, timeout=200)
    assert last.returncode == 0, (tmp_path / "driver.txt").read_text()
    assert len(ulna.predict(run, images, out=out).skipped) == 40  # nothing was left to this process
    ulna.predict(run, images, out=tmp_path / "whole")
    assert facts(out) == facts(tmp_path / "whole") and files(out) == files(tmp_path / "whole")
    assert not (out / SHARES).exists()
    end = time.monotonic() + 20
    while (left := [process for process in seen if alive(process)]) and time.monotonic() < end:
        time.sleep(0.1)
    assert not left


def test_of_many_cases_those_that_are_corrupt_are_listed_and_the_others_written(tmp_path, run, poisoned):  # noqa: F811
    """Also by processes that read ahead, one of which is killed: nothing is lost with it but time."""
    poisoned.setenv("AHEAD", "1")
    poisoned.setenv("POISON", "n007")
    images, out = small_images(tmp_path / "images", MANY), tmp_path / "out"
    corrupt = sorted(images.iterdir())[::20]
    for number, path in enumerate(corrupt):
        path.write_bytes([path.read_bytes()[:60], b"", b"not a picture"][number % 3])
    with pytest.raises(PartialFailure) as failed:
        ulna.predict(run, images, out=out, **TWO)
    expected = sorted([*(path.stem for path in corrupt), "n007"])
    assert sorted(failed.value.failed) == expected == list(facts(out)["failed"])
    assert failed.value.done == MANY - len(expected) == len(list(out.glob("*.png")))


def test_pseudonyms_objects_and_exported_files_go_the_same_way(tmp_path, caplog):
    images, how = small_images(tmp_path / "images", 4, (64, 64)), {"pseudonymise": tmp_path / "names.json"}
    for name, jobs in (("one", {"threads": 1}), ("two", TWO)):
        ulna.predict("zoo:nuclei", images, out=tmp_path / name, instances=True, **how, **jobs)
    assert facts(tmp_path / "two") == facts(tmp_path / "one") and files(tmp_path / "two") == files(tmp_path / "one")
    assert caplog.text.count("(and so with others like it)") == 2  # once a call, whoever read the image
    assert "n00" not in (tmp_path / "two" / PREDICT_FILE).read_text()


def test_series_of_a_tree_go_the_same_way_within_a_limit_of_memory(tmp_path):
    plan = {"spatial_dims": 3, "strides": ((2, 2, 2),), "unit": "mm", "spacing": (1.0, 1.0, 2.0)}
    run, rng = run_folder(tmp_path / "run", 0, **plan), np.random.default_rng(0)
    for name in "abc":
        values = rng.integers(0, 500, (8, 18, 20)).astype(np.int16)
        write_series(tmp_path / "tree" / name, values, series=name, study=name)
    for name, jobs in (("one", {"threads": 1}), ("two", TWO)):
        ulna.predict(run, tmp_path / "tree", out=tmp_path / name, max_ram=8, format=["nifti"], tta=True, **jobs)
    assert facts(tmp_path / "two") == facts(tmp_path / "one") and files(tmp_path / "two") == files(tmp_path / "one")
    assert len(files(tmp_path / "two")) == 3


def test_jobs_of_slurm_outlive_a_command_and_the_next_one_waits_for_them(tmp_path, images, run, slurm, poisoned):  # noqa: F811
    poisoned.setattr(share_jobs, "python_module", of_share)
    poisoned.setenv("PAUSE_S", "1")
    out, look, sent = tmp_path / "masks", Slurm.look, []

    def looked(one, job):
        if not sent and list(out.glob("?.png")):
            sent.append(os.kill(os.getpid(), signal.SIGTERM))
        return look(one, job)

    poisoned.setattr(Slurm, "look", looked)
    how = {"on": "slurm", "jobs": 2, "threads": 1}
    with pytest.raises(Interrupted, match=r"the jobs of SLURM go on; `scancel"):
        ulna.predict(run, images, out=out, **how)
    assert len(facts(out)["cases"]) < 4
    ulna.predict(run, images, out=out, **how)
    assert len(list(slurm.glob("*.array"))) == 1  # nothing was submitted again
    ulna.predict(run, images, out=tmp_path / "one")
    assert facts(out) == facts(tmp_path / "one") and files(out) == files(tmp_path / "one")
    assert not (out / SHARES).exists()


def test_tasks_of_ray_share_cases_too(tmp_path, images, run):
    pytest.importorskip("ray", reason="the extra ray is not installed: too large for every run of the tests")
    ulna.predict(run, images, out=tmp_path / "ray", on="ray", **TWO)
    ulna.predict(run, images, out=tmp_path / "one", threads=1)
    assert facts(tmp_path / "ray") == facts(tmp_path / "one") and files(tmp_path / "ray") == files(tmp_path / "one")
    assert not (tmp_path / "ray" / SHARES).exists()
