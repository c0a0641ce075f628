"""Fair timing: contenders in turn in one process, ratios round by round, peak memory in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ulna.study.timing import time_in_turn

RESULTS = Path(__file__).parent / "results"


def allocator(*, keeps: bool) -> None:
    """Have glibc keep freed memory as ulna does, or give large blocks back as it does by itself.

    By itself it comes to keep blocks of up to 32 MB (DEFAULT_MMAP_THRESHOLD_MAX).
    """
    largest = 2**30 if keeps else 2**25
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, largest)
        mallopt(-1, min(2 * largest, 2**31 - 1))


def interleaved(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds of every contender in every round; `before` is called with its name ahead of each, outside the clock."""
    runs = {name: lambda _, run=run: run() for name, run in contenders.items()}
    times = time_in_turn(runs, lambda _, name: before(name), rounds=rounds, warm_up=warm_up)
    return {name: taken.wall_s for name, taken in times.items()}


def ratio(slower: Sequence[float], faster: Sequence[float]) -> dict[str, float]:
    """How many times faster, round by round: the median, and the range from the lowest to the highest round."""
    each = [a / b for a, b in zip(slower, faster, strict=True)]
    return {"median": round(statistics.median(each), 2), "low": round(min(each), 2), "high": round(max(each), 2)}


def product_rate(dtype: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """The device's limit in GFLOP/s: the best of ten products of two matrices, 2048 x 2048 or, on a GPU, 8192 x 8192."""
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    best = min(interleaved({"mm": lambda: a @ b}, rounds=10)["mm"])
    return 2 * n**3 / best / 1e9


def has_bf16() -> bool:
    """Whether this processor multiplies bf16 in hardware; where it does not, autocast is many times slower."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) or bool(torch.cpu.get_capabilities().get("amx_bf16"))


def in_own_process(script: str, *arguments: str) -> Any:
    """What a script prints last, as JSON, from a fresh process."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=3600)
    return json.loads(done.stdout.strip().splitlines()[-1])


def peak_mb() -> float:
    """The most memory that this process has had, in MB, as Linux counts it (getrusage would count the parent's too)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def conditions() -> dict[str, Any]:
    """Where and with what a figure was measured."""
    return {
        "processor": torch.cpu.get_capabilities().get("cpu_name", platform.processor()),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16_instructions": has_bf16(),
        "matrix_registers": bool(torch.cpu.get_capabilities().get("amx_bf16", False)),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
    }


def write(name: str, facts: dict[str, Any]) -> Path:
    """Keep a result."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return path
