"""Times, limits and memory of a device: contenders in turn, medians of the rounds, on a CPU too where that is asked for."""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
PACKAGES = ("torch", "triton", "numpy", "monai", "dynamic-network-architectures")


class Found:
    """The rows of a part: each is shown in a table and kept at once, so that a part that is cut off has said something.

    Args:
        path: the JSON.
        columns: of the table.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self.path, self.facts = path, {"rows": []}
        if columns:
            print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns), flush=True)

    def add(self, row: Mapping[str, Any], *cells: str) -> None:
        """One row, and how it is shown."""
        self.facts["rows"].append(dict(row))
        print("| " + " | ".join(cells) + " |", flush=True)
        self.keep()

    def note(self, **facts: Any) -> None:
        """Facts beside the rows."""
        self.facts |= facts
        self.keep()

    def keep(self) -> None:
        """Write the JSON."""
        self.path.write_text(json.dumps(self.facts), encoding="utf-8")


def seconds(work: Callable[[], object]) -> float:
    """One call on an idle device: between two events of a GPU, so with the time that launching takes."""
    if not GPU:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def in_turn(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every work in every round; each round begins with another one."""
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(works[name]))
    return times


def spread(times: Sequence[float]) -> tuple[float, float]:
    """Median, and half the distance between the quartiles, in ms."""
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else (times[0],) * 3
    return 1e3 * middle, 1e3 * (high - low) / 2


def ratio(of: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """How many times as long, round by round: median, lowest and highest."""
    each = [a / b for a, b in zip(of, to, strict=True)]
    return {"median": round(statistics.median(each), 3), "low": round(min(each), 3), "high": round(max(each), 3)}


def limits(*, tiny: bool) -> dict[str, float]:
    """What the device can at most: bf16 products in FLOP/s, and bytes read and written in a copy a second."""
    n, size = (256, 2**20) if tiny else (8192, 2**30)
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.zeros(size, device=DEVICE, dtype=torch.uint8)
    target = torch.empty_like(source)
    times = in_turn({"product": lambda: a @ b, "copy": lambda: target.copy_(source)}, 13)
    product, copy = (statistics.median(times[name][3:]) for name in ("product", "copy"))  # the first three warm up
    return {"flops": 2 * n**3 / product, "bytes": 2 * size / copy}


class Memory:
    """The most memory that tensors took on the GPU within, beyond what was held before, in MB; nothing on a CPU."""

    def __init__(self) -> None:
        self.before = torch.cuda.memory_allocated() if GPU else 0

    def begin(self) -> None:
        """What came before, such as the search for fast convolutions, does not count."""
        if GPU:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()

    def peak_mb(self) -> float | None:
        """Since `begin`."""
        if not GPU:
            return None
        torch.cuda.synchronize()
        return round((torch.cuda.max_memory_allocated() - self.before) / 1e6, 1)


def device() -> dict[str, Any]:
    """Where and with what."""
    import ulna

    versions = {"ulna": ulna.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "missing"
    facts: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name() if GPU else None,
        "processor": platform.processor() or platform.machine(),
        "versions": versions,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "when": time.strftime("%Y-%m-%d %H:%M"),
    }
    if GPU:
        own = torch.cuda.get_device_properties(0)
        free, whole = torch.cuda.mem_get_info()
        facts["conditions"] = {
            "memory_gb": round(own.total_memory / 1e9, 1),
            "taken_by_others_gb": round((whole - free) / 1e9, 1),
            "multiprocessors": own.multi_processor_count,
            "capability": f"{own.major}.{own.minor}",
            "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
            "tf32_convolution": torch.backends.cudnn.allow_tf32,
        }
    return facts
