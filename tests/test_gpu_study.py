"""`benchmarks/gpu_study.py`: what is finished is kept without weights, killed in the middle it is taken up again."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time

import pytest

from tests.places import ROOT
from ulna.networks.catalog import NAMED
from ulna.recipe import Recipe, parse, stated

PROGRAM = ROOT / "benchmarks" / "gpu_study.py"


@pytest.fixture(scope="module")
def program():
    """The program as a module; it needs nothing but Python."""
    specification = importlib.util.spec_from_file_location("gpu_study", PROGRAM)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def training(work, name, *, done=True):
    run = work / "nuclei" / "runs" / name / "seed0"
    run.mkdir(parents=True)
    for file in ("recipe.yaml", "weights.safetensors", "metrics.csv", *(["summary.json", "cases.csv"] if done else [])):
        (run / file).write_text(f"{name} {file}")
    return run


def test_the_archive_has_the_figures_of_what_is_finished_and_no_weights(program, tmp_path):
    work = tmp_path / "work"
    training(work, "a/unet"), training(work, "unetpp", done=False)
    (work / "nuclei" / "study.json").write_text("{}")
    (work / "nuclei" / "figures").mkdir()
    (work / "nuclei" / "figures" / "curves.png").write_bytes(b"png")
    program.pack(work, tmp_path / "out" / "kept.tar.gz")
    with tarfile.open(tmp_path / "out" / "kept.tar.gz") as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    inside = {
        f"nuclei/runs/a/unet/seed0/{name}" for name in ("recipe.yaml", "metrics.csv", "summary.json", "cases.csv")
    }
    assert names == {*inside, "nuclei/study.json", "nuclei/figures/curves.png"}
    other = tmp_path / "other"
    begun = training(other, "unetpp", done=False)
    (other / "nuclei" / "study.json").write_text("newer")
    program.unpack(tmp_path / "out" / "kept.tar.gz", other)
    assert (other / "nuclei" / "study.json").read_text() == "newer" and (begun / "weights.safetensors").exists()
    assert [run.relative_to(other).as_posix() for run in program.finished(other)] == ["nuclei/runs/a/unet/seed0"]


def test_the_archive_follows_what_is_finished(program, tmp_path, monkeypatch):
    monkeypatch.setattr(program, "LOOK_S", 0.01)
    work, archive = tmp_path / "work", tmp_path / "kept.tar.gz"
    with program.packing(work, archive):
        training(work, "unet")
        until = time.monotonic() + 20
        while not archive.exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert archive.exists(), "before the call has ended"
    with tarfile.open(archive) as whole:
        assert "nuclei/runs/unet/seed0/summary.json" in whole.getnames()


def test_time_that_is_up_stops_what_runs(program):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(program.TimeIsUp), program.until(time.monotonic() + 0.05):
        threading.Event().wait(20)
    assert signal.getsignal(signal.SIGTERM) == before
    with program.until(time.monotonic() + 60):
        pass


def test_the_studies_name_networks_and_recipes_that_there_are(program):
    for study in program.STUDIES:
        assert {*study.models} <= {*NAMED} and study.seeds == 3
        parse(Recipe, stated(study.options.get("recipe")))
    assert {*program.OF_RUN} & {"summary.json", "cases.csv", "recipe.yaml", "plan.yaml"}
    assert not any("safetensors" in name for name in (*program.OF_RUN, *program.OF_STUDY))


def call(tmp_path, name, *flags):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    words = ["--tiny", "--out", f"out {name}", "--work", f"work {name}", *flags]
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *words], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_in_the_middle_it_is_taken_up_again(tmp_path):
    killed = call(tmp_path, "a", "--minutes", "15")
    second = tmp_path / "work a" / "tiny" / "runs" / "unetpp" / "seed0"
    while not (second / "metrics.csv").exists():
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.1)
    killed.kill()
    killed.communicate()
    archive = tmp_path / "out a" / "gpu_study.tar.gz"
    with tarfile.open(archive) as whole:
        assert [name for name in whole.getnames() if name.endswith("summary.json")] == [
            "tiny/runs/unet/seed0/summary.json"
        ]
    elsewhere = call(tmp_path, "b", "--archive", str(archive), "--minutes", "15")
    said, _ = elsewhere.communicate()
    assert elsewhere.returncode == 0, said
    assert "unet seed 0: begins" not in said and "unetpp seed 0: begins" in said and "2 of 2 trainings are done" in said
    studies = tmp_path / "work b" / "tiny"
    assert not (studies / "runs" / "unet" / "seed0" / "weights.safetensors").exists()
    costs = json.loads((studies / "outcome.json").read_text())["costs"]
    assert costs["models"]["unet"]["wall_ms"] is None and costs["models"]["unet"]["parameters"] > 0
    assert costs["models"]["unetpp"]["wall_ms"][0] > 0 and costs["conditions"]["untimed"] == ["unet"]
    assert "not timed, for their weights are gone: unet" in (studies / "table.md").read_text()
    same = call(tmp_path, "a", "--minutes", "15")  # where it was killed
    said, _ = same.communicate()
    assert same.returncode == 0, said
    assert "unetpp seed 0: goes on" in said
    tables = [(tmp_path / f"work {name}" / "tiny" / "results.csv").read_text() for name in "ab"]
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_call_ends_with_its_minutes_and_says_how_to_go_on(tmp_path):
    short = call(tmp_path, "a", "--minutes", "0.02")
    said, _ = short.communicate()
    assert short.returncode == 3, said
    assert "not all: tiny; call again with --archive" in said
    missing = subprocess.run([sys.executable, str(PROGRAM)], capture_output=True, text=True)
    assert missing.returncode == 2 and "DATA is missing" in missing.stderr
