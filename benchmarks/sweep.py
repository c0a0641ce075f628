"""Sweeps of a spatial dependency layer: the loop as published against ours, interleaved in one process.

    python benchmarks/sweep.py                     # 48x48, 24x24, 12x12; C = 150, two directions, batch 8; float32
                                                   # and, where the machine has products for it, bf16 under autocast
    python benchmarks/sweep.py --networks          # a training step of SDU-Net and SDNU-Net against their baselines
    python benchmarks/sweep.py --device cuda       # the same on a GPU (torch operations only)

The published loop runs with default settings, and once more with memory that is kept for the next call, as
`ulna train` has it for all.
Median of the repeats, with half the distance between the quartiles; factors against the published loop in float32;
shares of the best product rate in the same precision; peak memory from a process of its own each (Linux). With `--out`
the table is kept in benchmarks/results too.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import allocator, conditions, interleaved, write
from torch import Tensor, nn
from torch.nn.functional import pad

from ulna.kernels import native
from ulna.kernels.allocator import tune_memory
from ulna.kernels.sweep import native as sweep_native
from ulna.kernels.sweep.dispatch import Direction, Gates, describe, force, sweep
from ulna.networks.build import build
from ulna.system.device import autocast, multiplies_bf16

CHANNELS, BATCH = 150, 8
SIZES = (48, 24, 12)
PROCESSES = 3  # whose peaks of memory are taken
SWEEPS = (Direction(1), Direction(0))  # one after the other, as in a layer
PUBLISHED, KEPT = "published", "published, memory kept"


def published(x: Tensor, cell: nn.GRUCell, direction: Direction) -> Tensor:
    """The loop in the form that the layer's public code has: a GRU cell a line, its result written back into the map."""
    x = x.transpose(2, 3) if direction.axis == 1 else x
    N, C, L, T = x.shape
    for t in range(1, L):
        above = pad(x[:, :, t - 1], (1, 1))
        near = torch.cat((above[:, :, :-2], above[:, :, 1:-1], above[:, :, 2:]), dim=1)
        state = cell(near.transpose(1, 2).reshape(N * T, 3 * C), x[:, :, t].transpose(1, 2).reshape(N * T, C))
        x[:, :, t] = state.view(N, T, C).transpose(1, 2)
    return x.transpose(2, 3) if direction.axis == 1 else x


def ways(device: str) -> list[str]:
    """What there is to compare on this machine: a path, and "bf16" after it where operands are cast."""
    found = [PUBLISHED, *([KEPT] if device == "cpu" else []), "lines"]
    if device == "cpu" and native.library("sweep") is not None:
        found.append("native")
    lowered = [
        f"{way} bf16" for way in found if way != PUBLISHED and (way != "native" or sweep_native.multiplies_bf16())
    ]
    return found + (lowered if multiplies_bf16(torch.device(device)) else [])


def lowers(way: str) -> bool:
    """Whether operands are cast to bf16."""
    return way.endswith("bf16")


def path_of(way: str) -> str:
    """The path that computes."""
    return PUBLISHED if way.startswith(PUBLISHED) else way.split()[0]


def layer(way: str, size: int, device: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A map, and two sweeps over it in one of the ways."""
    path = path_of(way)
    cast = torch.autocast(device, torch.bfloat16, enabled=lowers(way))
    torch.manual_seed(0)
    cells = [nn.GRUCell(3 * CHANNELS, CHANNELS).to(device) for _ in SWEEPS]
    x = torch.randn(BATCH, CHANNELS, size, size, device=device)
    if path == PUBLISHED:

        def run(x: Tensor) -> Tensor:
            x = x * 1  # the loop writes into its input, which in a network is the result of a convolution
            with cast:
                for cell, direction in zip(cells, SWEEPS, strict=True):
                    x = published(x, cell, direction)
            return x

        return x, run

    def run(x: Tensor) -> Tensor:
        x = x * 1
        with force(path), cast:
            for cell, direction in zip(cells, SWEEPS, strict=True):
                x = sweep(x, Gates(cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh), direction)
        return x

    return x.contiguous(memory_format=torch.channels_last), run


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall time of one call."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def medians(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median and half the interquartile distance of every work, in turns, after one call each."""
    found = {}
    for name, taken in interleaved(works, repeats, before=lambda name: allocator(keeps=name != PUBLISHED)).items():
        low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
        found[name] = (middle, (high - low) / 2)
    return found


def backward(way: str, swept: Tensor, weights: Tensor) -> None:
    """The backward pass, on the path of the forward pass."""
    path = path_of(way)
    with force("auto" if path == PUBLISHED else path):
        swept.backward(weights)


def best_rate(device: str, dtype: torch.dtype) -> float:
    """The best product rate of this machine, over large products and a convolution: operations a second."""
    a = torch.randn(2048, 2048, device=device, dtype=dtype)
    maps = torch.randn(8, 128, 96, 96, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(128, 128, 3, 3, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    works = {
        2 * 2048**3: lambda: a @ a,
        2 * 8 * 128 * 128 * 9 * 96 * 96: lambda: nn.functional.conv2d(maps, kernel, padding=1),
    }
    with torch.no_grad():
        return max(operations / min(seconds(work, device) for _ in range(7)) for operations, work in works.items())


def peak(way: str, size: int) -> int:
    """MB that one forward and backward pass needs beyond what the process had before: median of processes of its own."""
    command = [sys.executable, __file__, "--peak", way, str(size), "--threads", str(torch.get_num_threads())]
    each = [int(subprocess.run(command, capture_output=True, check=True, text=True).stdout) for _ in range(PROCESSES)]
    return round(statistics.median(each))


def print_peak(way: str, size: int) -> None:
    """Print the growth of the process's memory over what it held before, in MB."""
    allocator(keeps=way != PUBLISHED)
    for edge in (4, size):  # once small: libraries and threads are there
        x, run = layer(way, edge, "cpu")
        before = resident("VmRSS")
        swept = run(x.requires_grad_())
        backward(way, swept, torch.ones_like(swept))
    print((resident("VmHWM") - before) // 1024)


def resident(which: str) -> int:
    """kB of memory that this process holds (VmRSS), or held at most (VmHWM).

    Not getrusage: a new process starts there with the largest size of the one that started it.
    """
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which))


def compare_sweeps(repeats: int, device: str) -> dict[str, Any]:
    """Print a table of the ways for every size, and give it back."""
    compared = ways(device)
    rates = {
        lowered: best_rate(device, torch.bfloat16 if lowered else torch.float32) for lowered in map(lowers, compared)
    }
    words = ", ".join(f"{rate / 1e9:.0f} in {'bf16' if lowered else 'float32'}" for lowered, rate in rates.items())
    print(f"best product rate, GFLOP/s: {words}; {torch.get_num_threads()} threads; sweeps: {describe(device)}\n")
    rows: list[dict[str, Any]] = []
    print("| map | way | forward, ms | share | forward + backward, ms | share | against published | peak, MB |")
    print("|---|---|---|---|---|---|---|---|")
    for size in SIZES:
        operations = len(SWEEPS) * 2 * BATCH * size * (size - 1) * 12 * CHANNELS**2
        forth: dict[str, Callable[[], object]] = {}
        both: dict[str, Callable[[], object]] = {}
        for way in compared:
            x, run = layer(way, size, device)
            leaf, weights = x.detach().clone().requires_grad_(), torch.randn_like(x)

            def forward(run: Callable[[Tensor], Tensor] = run, x: Tensor = x) -> None:
                with torch.no_grad():
                    run(x)

            def forward_backward(
                way: str = way,
                run: Callable[[Tensor], Tensor] = run,
                leaf: Tensor = leaf,
                weights: Tensor = weights,
            ) -> None:
                backward(way, run(leaf), weights)

            forth[way], both[way] = forward, forward_backward
        one, two = medians(forth, repeats), medians(both, repeats)
        for way in compared:
            (f, f_spread), (b, b_spread), rate = one[way], two[way], rates[lowers(way)]
            factors = f"{one[PUBLISHED][0] / f:.2f} / {two[PUBLISHED][0] / b:.2f}"
            memory = peak(way, size) if device == "cpu" else ""
            print(
                f"| {size}×{size} | {way} | {f * 1e3:.1f} ± {f_spread * 1e3:.1f} | {operations / f / rate:.0%} | "
                f"{b * 1e3:.1f} ± {b_spread * 1e3:.1f} | {3 * operations / b / rate:.0%} | {factors} | {memory} |",
                flush=True,
            )
            rows.append(
                {
                    "map": [size, size],
                    "way": way,
                    "forward_ms": [round(f * 1e3, 2), round(f_spread * 1e3, 2)],
                    "forward_share": round(operations / f / rate, 3),
                    "forward_backward_ms": [round(b * 1e3, 2), round(b_spread * 1e3, 2)],
                    "forward_backward_share": round(3 * operations / b / rate, 3),
                    "times_faster": [round(one[PUBLISHED][0] / f, 2), round(two[PUBLISHED][0] / b, 2)],
                    "peak_mb": memory,
                }
            )
    return {
        "sweeps": describe(device),
        "product_rate_gflops": {"bf16" if lowered else "float32": round(rate / 1e9) for lowered, rate in rates.items()},
        "rows": rows,
    }


def compare_networks(repeats: int, device: str) -> dict[str, Any]:
    """A training step of the networks with sweeps against those without, at 3 x 144 x 192, batch 8: print and give back.

    In float32, and in bf16 as `ulna train` takes it where the machine has products for it.
    """
    tune_memory()
    rows: list[dict[str, Any]] = []
    print("| precision | network | training step, ms | against its baseline |")
    print("|---|---|---|---|")
    for precision in ("32", "bf16") if multiplies_bf16(torch.device(device)) else ("32",):
        for baseline, with_sweeps in (("unet", "sdu_net"), ("unetpp", "sdnu_net")):
            works = {
                name: training_step(f"carvalho/{name}_polyps", precision, device) for name in (baseline, with_sweeps)
            }
            times = medians(works, repeats)
            for name, (taken, spread) in times.items():
                ratio = taken / times[baseline][0]
                print(
                    f"| {precision} | carvalho/{name}_polyps | {taken * 1e3:.0f} ± {spread * 1e3:.0f} | {ratio:.2f} |",
                    flush=True,
                )
                rows.append(
                    {
                        "precision": precision,
                        "model": f"carvalho/{name}_polyps",
                        "training_step_ms": [round(taken * 1e3, 1), round(spread * 1e3, 1)],
                        "against_baseline": round(ratio, 2),
                    }
                )
    return {"batch": BATCH, "image": [3, 144, 192], "sweeps": describe(device), "rows": rows}


def training_step(model: str, precision: str, device: str) -> Callable[[], object]:
    """One step of a network on a random batch, as `ulna train` takes it."""
    torch.manual_seed(0)
    net = build(model, in_channels=3).to(device).train().to(memory_format=torch.channels_last)
    image = torch.randn(BATCH, 3, 144, 192, device=device).contiguous(memory_format=torch.channels_last)
    target = (image[:, :1] > 0).float()
    optimizer = torch.optim.Adam(net.parameters(), 1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(precision, torch.device(device)):
            logits = net(image)
        nn.functional.binary_cross_entropy_with_logits(logits.float(), target).backward()
        optimizer.step()

    return step


def main() -> None:
    """Read the flags and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--networks", action="store_true")
    parser.add_argument("--out", help="name of a file in benchmarks/results")
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "SIZE"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.peak:
        print_peak(flags.peak[0], int(flags.peak[1]))
        return
    facts, compare = conditions(), compare_networks if flags.networks else compare_sweeps
    if flags.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    table = compare(flags.repeats, flags.device)
    if flags.out:
        write(flags.out, {"conditions": facts, **table})


if __name__ == "__main__":
    main()
