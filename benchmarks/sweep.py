"""Sweeps of a spatial dependency layer: the loop as published against ours, interleaved in one process.

    python benchmarks/sweep.py                     # 48x48, 24x24, 12x12; C = 150, two directions, batch 8
    python benchmarks/sweep.py --networks          # a training step of SDU-Net and SDNU-Net against their baselines
    python benchmarks/sweep.py --device cuda       # the same on a GPU (torch operations only)

Median of the repeats, with half the distance between the quartiles; peak memory from a process of its own each.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ulna.kernels.sweep import Direction, Gates, describe, force, sweep
from ulna.networks.build import build

CHANNELS, BATCH = 150, 8
SIZES = (48, 24, 12)
SWEEPS = (Direction(1), Direction(0))  # one after the other, as in a layer
WAYS = ("published", "lines", "native")


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


def layer(way: str, size: int, device: str) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A map, and two sweeps over it in one of the ways."""
    torch.manual_seed(0)
    cells = [nn.GRUCell(3 * CHANNELS, CHANNELS).to(device) for _ in SWEEPS]
    x = torch.randn(BATCH, CHANNELS, size, size, device=device)
    if way == "published":

        def run(x: Tensor) -> Tensor:
            x = x * 1  # the loop writes into its input, which in a network is the result of a convolution
            for cell, direction in zip(cells, SWEEPS, strict=True):
                x = published(x, cell, direction)
            return x

        return x, run

    def run(x: Tensor) -> Tensor:
        x = x * 1
        with force(way):
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


def interleaved(works: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, tuple[float, float]]:
    """Median and half the interquartile distance of every work, in turns, after one call each."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            times[name].append(seconds(work, device))
    found = {}
    for name, taken in times.items():
        low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
        found[name] = (middle, (high - low) / 2)
    return found


def best_rate(device: str) -> float:
    """The best product rate of this machine in float32, over large products and a convolution: operations a second."""
    a = torch.randn(2048, 2048, device=device)
    maps = torch.randn(8, 128, 96, 96, device=device).contiguous(memory_format=torch.channels_last)
    kernel = torch.randn(128, 128, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    works = {
        2 * 2048**3: lambda: a @ a,
        2 * 8 * 128 * 128 * 9 * 96 * 96: lambda: nn.functional.conv2d(maps, kernel, padding=1),
    }
    with torch.no_grad():
        return max(operations / min(seconds(work, device) for _ in range(7)) for operations, work in works.items())


def peak(way: str, size: int) -> int:
    """MB that one forward and backward pass needs beyond what the process had before, in a process of its own."""
    command = [sys.executable, __file__, "--peak", way, str(size), "--threads", str(torch.get_num_threads())]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def print_peak(way: str, size: int) -> None:
    """Print the growth of the process's largest size, in MB."""
    layer(way, 4, "cpu")[1](layer(way, 4, "cpu")[0]).sum().backward()  # libraries and threads are there
    x, run = layer(way, size, "cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(x.requires_grad_()).sum().backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def compare_sweeps(repeats: int, device: str) -> None:
    """Print a table of the ways for every size."""
    rate = best_rate(device)
    print(f"best product rate {rate / 1e9:.0f} GFLOP/s; sweeps: {describe()}\n")
    print("| map | way | forward, ms | share | forward + backward, ms | share | against published | peak, MB |")
    print("|---|---|---|---|---|---|---|---|")
    ways = WAYS if device == "cpu" and describe() == "a native kernel" else WAYS[:2]
    for size in SIZES:
        operations = len(SWEEPS) * 2 * BATCH * size * (size - 1) * 12 * CHANNELS**2
        forth: dict[str, Callable[[], object]] = {}
        both: dict[str, Callable[[], object]] = {}
        for way in ways:
            x, run = layer(way, size, device)
            weights = torch.randn_like(x)
            leaf = x.detach().clone().requires_grad_()

            def forward(run: Callable[[Tensor], Tensor] = run, x: Tensor = x) -> None:
                with torch.no_grad():
                    run(x)

            def forward_backward(
                run: Callable[[Tensor], Tensor] = run, leaf: Tensor = leaf, weights: Tensor = weights
            ) -> None:
                run(leaf).backward(weights)

            forth[way], both[way] = forward, forward_backward
        one, two = interleaved(forth, repeats, device), interleaved(both, repeats, device)
        for way in ways:
            (f, f_spread), (b, b_spread) = one[way], two[way]
            factors = f"{one['published'][0] / f:.2f} / {two['published'][0] / b:.2f}"
            memory = peak(way, size) if device == "cpu" else ""
            print(
                f"| {size}×{size} | {way} | {f * 1e3:.1f} ± {f_spread * 1e3:.1f} | {operations / f / rate:.0%} | "
                f"{b * 1e3:.1f} ± {b_spread * 1e3:.1f} | {3 * operations / b / rate:.0%} | {factors} | {memory} |",
                flush=True,
            )


def compare_networks(repeats: int, device: str) -> None:
    """Print a training step of the networks with sweeps against those without, at 3 x 144 x 192, batch 8."""
    print("| network | training step, ms | against its baseline |")
    print("|---|---|---|")
    for baseline, with_sweeps in (("unet", "sdu_net"), ("unetpp", "sdnu_net")):
        works: dict[str, Callable[[], object]] = {}
        for name in (baseline, with_sweeps):
            torch.manual_seed(0)
            net = build(f"carvalho/{name}_polyps", in_channels=3).to(device).train()
            net = net.to(memory_format=torch.channels_last)
            image = torch.randn(BATCH, 3, 144, 192, device=device).contiguous(memory_format=torch.channels_last)
            target = (image[:, :1] > 0).float()
            optimizer = torch.optim.Adam(net.parameters(), 1e-4)

            def step(
                net: nn.Module = net,
                optimizer: torch.optim.Optimizer = optimizer,
                image: Tensor = image,
                target: Tensor = target,
            ) -> None:
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(net(image), target).backward()
                optimizer.step()

            works[name] = step
        times = interleaved(works, repeats, device)
        for name, (taken, spread) in times.items():
            ratio = taken / times[baseline][0]
            print(f"| carvalho/{name}_polyps | {taken * 1e3:.0f} ± {spread * 1e3:.0f} | {ratio:.2f} |", flush=True)


def main() -> None:
    """Read the flags and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--networks", action="store_true")
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "SIZE"), help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    if flags.peak:
        print_peak(flags.peak[0], int(flags.peak[1]))
    elif flags.networks:
        compare_networks(flags.repeats, flags.device)
    else:
        compare_sweeps(flags.repeats, flags.device)


if __name__ == "__main__":
    main()
