"""Memory of this process: what is freed is room for the next map of the same size. In processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ulna.cli import main as cli
from ulna.executors import working
from ulna.kernels.allocator import peak_memory_mb
from ulna.kernels.native import library
from ulna.study import worker
from ulna.verbs import VERBS

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def run(code, *arguments, **environment):
    """What a fresh interpreter prints."""
    command, settings = [sys.executable, "-c", code, *arguments], {**os.environ, **environment}
    made = subprocess.run(command, capture_output=True, text=True, env=settings, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout.split()


HOLE = """
import torch
from ulna.kernels.allocator import tune_memory
kept = tune_memory()
first = torch.empty(150 * 2**20, dtype=torch.uint8)
beside = torch.empty(2**20, dtype=torch.uint8)
place = first.data_ptr()
del first
second = torch.empty(150 * 2**20, dtype=torch.uint8)
print(kept, second.data_ptr() == place, second.data_ptr() % 64)
"""


@glibc
def test_the_hole_of_a_map_is_room_for_the_next_one():
    if library("allocator", with_torch=True) is None:
        pytest.skip("there is no compiler, or torch has no headers")
    assert run(HOLE) == ["True", "True", "0"]


@glibc
def test_without_native_kernels_freed_memory_is_kept_nevertheless():
    assert run(HOLE, ULNA_NATIVE="0")[0] == "True"


WHOSE = """
import ctypes, pathlib, sys, torch, ulna
import numpy as np
core = ctypes.CDLL(str(pathlib.Path(torch.__file__).parent / "lib/libc10.so"))
allocator = core._ZN3c1015GetCPUAllocatorEv
allocator.restype = ctypes.c_void_p
own = allocator()
places = [allocator() == own]
ulna.build("unet", channels=(4, 8))(torch.zeros(1, 1, 16, 16)).sum().backward()
places.append(allocator() == own)
data = pathlib.Path(sys.argv[1]) / "d.npz"
images = np.random.default_rng(0).integers(0, 255, (6, 16, 16), np.uint8)
np.savez(data, images=images, masks=(images > 99).astype(np.uint8))
small = ["training.min_steps=1", "training.samples_per_epoch=1", "architecture.channels=[4,8]"]
ulna.train(data, model="unet", out=data.with_name("run"), epochs=1, set=small)
places.append(allocator() == own)
ulna.predict(data.with_name("run"), data, out=data.with_name("masks"))
places.append(allocator() == own)
for _ in range(2):
    kept = ulna.tune_memory()
    places.append(allocator() == own)
    ours = allocator()
print(kept, *places, ours == allocator())
"""


@pytest.mark.slow
@glibc
@pytest.mark.parametrize("native", ["1", "0"])
def test_only_who_asks_for_it_in_python_gets_another_allocator(native, tmp_path):
    if native == "1" and library("allocator", with_torch=True) is None:
        pytest.skip("there is no compiler, or torch has no headers")
    tuned = str(native == "0")  # which leaves torch's allocator in place
    told = run(WHOSE, str(tmp_path), ULNA_NATIVE=native)
    assert told == ["True", "True", "True", "True", "True", tuned, tuned, "True"]


TOLD = """
from ulna.kernels.allocator import allocator_in_use, allocator_when_tuned, tune_memory
print(allocator_when_tuned(), allocator_in_use())
tune_memory()
print(allocator_in_use())
"""


@pytest.mark.parametrize("native", ["1", "0"])
def test_what_another_process_will_have_is_told_without_taking_it(native):
    there, here, tuned = run(TOLD, ULNA_NATIVE=native)
    assert (here, there) == ("torch", tuned)
    if native == "0":
        assert tuned != "ulna"


def test_a_training_of_a_study_tunes_its_memory(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(working, "tune_memory", lambda: asked.append("tuned"))
    monkeypatch.setattr(working.logging, "basicConfig", lambda **_: None)
    assert worker.main(tmp_path / "no-such-data", tmp_path / "recipe.yaml", tmp_path / "run") == 2
    assert asked == ["tuned"]


def test_the_command_line_tunes_the_memory_of_verbs_that_compute(monkeypatch, tmp_path, discs):
    asked = []
    monkeypatch.setattr("ulna.kernels.allocator.tune_memory", lambda: asked.append("tuned"))
    for verb in ("models", "check"):
        cli.run([verb, "nothing-of-that-name"])
    cli.run(["train", "--help"])
    assert not asked
    cli.run(["train", "no-such-folder"])  # answered before anything computes
    assert not asked
    cli.run(["train", str(discs), "--out", str(tmp_path / "run"), "--max-hours", "-1"])
    assert asked == ["tuned"]
    least = ["check", "models", "recipes", "evaluate", "info", "zoo", "convert"]
    least += ["import-weights", "serve", "cache", "view"]
    assert [name for name, verb in VERBS.items() if not verb.computes] == least


USES = """
import numpy, torch
from ulna.kernels.allocator import tune_memory
before = torch.arange(5)
tune_memory()
x = torch.arange(100_000)
x.resize_(200_000)[100_000:] = 1
y = torch.nn.functional.conv2d(torch.ones(1, 1, 40, 40), torch.ones(1, 1, 3, 3))
del before
print(int(x.sum()), int(y.sum()), x.clone().equal(x), torch.empty(0).numel())
print(torch.from_numpy(numpy.ones(3)).add(1).numpy().sum())
try:
    torch.empty(2**60, dtype=torch.uint8)
except RuntimeError as error:
    print("you tried to allocate" in str(error))  # torch's own allocator says so too
with torch.profiler.profile(profile_memory=True) as seen:
    torch.empty(2**20)
print(max(event.self_cpu_memory_usage for event in seen.key_averages()))
"""


@glibc
def test_tensors_do_all_they_did():
    total = 99_999 * 100_000 // 2 + 100_000
    assert run(USES) == [str(total), str(38 * 38 * 9), "True", "0", "6.0", "True", str(2**22)]


def test_the_peak_of_memory_grows_with_what_is_held():
    code = """
import torch
from ulna.cli import main as cli
from ulna.kernels.allocator import peak_memory_mb
before = peak_memory_mb()
x = torch.ones(64 * 2**20, dtype=torch.uint8)
print(peak_memory_mb() - before)
"""
    assert 50 < float(run(code)[0]) < 90
    assert peak_memory_mb() > 0
