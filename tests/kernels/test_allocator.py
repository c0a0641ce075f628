"""Memory of this process: what is freed is room for the next map of the same size. In processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ulna.kernels.allocator import peak_memory_mb
from ulna.kernels.native import library

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def run(code, **environment):
    """What a fresh interpreter prints."""
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert made.returncode == 0, made.stderr
    return made.stdout.split()


HOLE = """
import torch
from ulna.kernels.allocator import keep_freed_memory
kept = keep_freed_memory()
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


USES = """
import numpy, torch
from ulna.kernels.allocator import keep_freed_memory
before = torch.arange(5)
keep_freed_memory()
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
from ulna.kernels.allocator import peak_memory_mb
before = peak_memory_mb()
x = torch.ones(64 * 2**20, dtype=torch.uint8)
print(peak_memory_mb() - before)
"""
    assert 50 < float(run(code)[0]) < 90
    assert peak_memory_mb() > 0
