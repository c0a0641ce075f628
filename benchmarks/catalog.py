"""Every row of the papers: parameters and work, printed and counted, and the time of a forward pass and a training step.

    python benchmarks/catalog.py                  # all rows; or some: zhou/unet laird/nas_unet ...

One image of the size that the row's printed figures hold for, in the precision that `ulna train` takes here. A head that
reads points reads as many as it trains on, in both passes.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import conditions, write
from torch import nn

from ulna.blocks import nd
from ulna.kernels.allocator import tune_memory
from ulna.networks.build import build
from ulna.networks.profile.cost import Model, models
from ulna.system.device import autocast, choose_precision

REPEATS = 5
SLOW = 5.0  # seconds, from which on three must do
CPU = torch.device("cpu")


def seconds(run: Callable[[], object]) -> tuple[float, float]:
    """Median of the repeats after one call, and half the distance between the quartiles."""
    start = time.perf_counter()
    run()
    repeats = REPEATS if time.perf_counter() - start < SLOW else 3
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    low, middle, high = statistics.quantiles(taken, n=4, method="inclusive")
    return middle, (high - low) / 2


def measure(model: Model, precision: str) -> dict[str, Any]:
    """One row."""
    entry = model.entry
    channels, *size = entry.input
    torch.manual_seed(0)
    net = build(model.name, in_channels=channels, classes=entry.maps, spatial_dims=len(size))
    layout = nd.layout(len(size), True)
    net = net.to(memory_format=layout)  # type: ignore[call-overload]
    image = torch.randn(1, channels, *size).contiguous(memory_format=layout)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    count = model.points(tuple(size))
    points = None
    if count is not None:
        points = torch.stack([torch.randint(0, n, (1, count)) for n in size], dim=-1)

    def forward() -> None:
        with torch.inference_mode(), autocast(precision, CPU):
            net.outputs(image, points)

    def step() -> None:
        with autocast(precision, CPU):
            heads = net.outputs(image, points).heads
        loss = sum(nn.functional.softplus(logits.float()).mean() for logits in heads.values())
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    net.eval()
    one, one_spread = seconds(forward)
    net.train()
    two, two_spread = seconds(step)
    return {
        "model": model.name,
        "image": list(entry.input),
        "parameters": model.parameters(),
        "published_millions": entry.published,
        "gmacs": round(model.gmacs(), 3),
        "ptflops_gmacs": round(model.ptflops_gmacs(), 3),
        "published_gmacs": entry.published_gmacs,
        "forward_ms": [round(one * 1e3, 1), round(one_spread * 1e3, 1)],
        "training_step_ms": [round(two * 1e3, 1), round(two_spread * 1e3, 1)],
        "points": count,
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--out", default="catalog", help="name of the file in benchmarks/results")
    flags = parser.parse_args()
    tune_memory()
    facts, precision = conditions(), choose_precision("auto", CPU)
    chosen = [m for m in models() if (m.name in flags.models if flags.models else "/" in m.name)]
    print(
        f"{facts['processor']}, {facts['threads']} threads, {precision}; medians of {REPEATS}, ± half the quartile distance\n"
    )
    print("| row | image | parameters | printed, M | GMACs | ptflops | printed | forward, ms | training step, ms |")
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for model in chosen:
        row = measure(model, precision)
        rows.append(row)
        f, t = row["forward_ms"], row["training_step_ms"]
        shape = "×".join(map(str, row["image"]))
        print(
            f"| {row['model']} | {shape} | {row['parameters']:,} | {row['published_millions']} | "
            f"{row['gmacs']:.2f} | {row['ptflops_gmacs']:.2f} | {row['published_gmacs']} | "
            f"{f[0]} ± {f[1]} | {t[0]} ± {t[1]} |",
            flush=True,
        )
        write(flags.out, {"conditions": facts, "precision": precision, "rows": rows})


if __name__ == "__main__":
    main()
