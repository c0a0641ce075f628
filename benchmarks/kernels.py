"""What every path of our own gains: a training step and a prediction of seven networks with all of them, and without each.

    python benchmarks/kernels.py                         # all; or some: unet nnunet ...
    python benchmarks/kernels.py unet --rounds 11 --out kernels-epyc

The steps run in turn in one process, so that a busy machine is busy for all; the ratio is taken round by round. Memory is
the peak of a process of its own that does two steps, less what it holds before. The allocator of tensors cannot be taken
out of a process again: steps with and without it run in processes of their own, in turn. Only paths that a network takes
are measured with it. A path that gains less than 10 % in bf16 and in fp32, on every processor of benchmarks/results, has
no place in ulna.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from measure import conditions, has_bf16, in_own_process, interleaved, peak_mb, ratio, write
from torch import Tensor
from torch.nn import functional as F

import ulna
from ulna.blocks import nd
from ulna.kernels import normalize
from ulna.kernels.allocator import tune_memory
from ulna.kernels.convolution import dispatch
from ulna.kernels.points import fused_mlp
from ulna.kernels.sweep import dispatch as sweeps
from ulna.networks.network import Network

ALLOCATOR = "allocator"
PROCESSES = 2  # with and without the allocator, of each
PRECISIONS = ("bf16", "fp32")
KINDS = ("training", "prediction")


@dataclass(frozen=True)
class Work:
    """A network at an input size."""

    size: tuple[int, ...]  # (N, C, *S)
    points: int | None = None  # in training


WORKS = {
    "unet": Work((8, 3, 96, 96)),
    "unetpp": Work((8, 3, 96, 96)),
    "efficient_unet": Work((1, 1, 48, 48, 48)),  # depthwise convolutions, whose own path is for volumes
    "sdnu_net": Work((4, 3, 96, 96)),
    "omega_net": Work((4, 3, 96, 96)),
    "nnunet": Work((1, 1, 64, 64, 64)),
    "implicit_unet": Work((1, 1, 64, 64, 64), points=64**3 // 32),
}


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another value of an attribute, for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def without_path(name: str) -> Iterator[None]:
    """Convolutions by the other paths."""
    before = dispatch.PATHS[name]
    dispatch.PATHS[name] = before._replace(available=lambda _: False)
    try:
        yield
    finally:
        dispatch.PATHS[name] = before


# path -> how it is left out
LEFT_OUT: dict[str, Callable[[], AbstractContextManager[None]]] = {
    **{name: lambda name=name: without_path(name) for name in dispatch.PATHS},  # type: ignore[misc]
    "norm": lambda: normalize.force("torch"),
    "fused MLP": lambda: replaced(fused_mlp, "_fit", lambda *_: False),
    "native sweep": lambda: sweeps.force("lines"),  # torch's operations with the backward pass by hand
    "all sweeps": lambda: sweeps.force("reference"),
}


def step(name: str, precision: str, kind: str) -> Callable[[], None]:
    """One training step, or one prediction."""
    work = WORKS[name]
    dims = len(work.size) - 2
    torch.manual_seed(0)
    layout = nd.layout(dims, channels_last=True)
    net: Network = ulna.build(name, spatial_dims=dims, in_channels=work.size[1]).to(memory_format=layout)
    image = torch.randn(work.size).contiguous(memory_format=layout)
    points = None if work.points is None else torch.randint(0, min(work.size[2:]), (work.size[0], work.points, dims))
    places = work.size[2:] if points is None else (work.points,)
    target = (torch.rand(work.size[0], 1, *places) > 0.5).float()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4, fused=True)
    low = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")

    def train() -> None:
        with low:
            loss = sum(loss_of(logits, target) for logits in net.outputs(image, points).heads.values())
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        optimizer.zero_grad()

    def predict() -> None:
        with torch.inference_mode(), low:
            net(image)

    net.train(kind == "training")
    return train if kind == "training" else predict


def loss_of(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of a head, at its own resolution."""
    if target.ndim > 3:
        target = F.interpolate(target, size=logits.shape[2:], mode="nearest")
    return F.binary_cross_entropy_with_logits(logits.float(), target)


def taken(run: Callable[[], None]) -> list[str]:
    """The paths that a step takes."""
    found: set[str] = set()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            answer = function(*arguments, **named)
            if answer is not False:
                found.add(name)
            return answer

        return call

    with contextlib.ExitStack() as stack:
        for name, path in dispatch.PATHS.items():
            stack.callback(dispatch.PATHS.__setitem__, name, path)
            dispatch.PATHS[name] = path._replace(run=counted(name, path.run))
        passes = normalize.dispatch._in_one_pass
        stack.enter_context(replaced(normalize.dispatch, "_in_one_pass", counted("norm", passes)))
        stack.enter_context(replaced(fused_mlp, "_fit", counted("fused MLP", fused_mlp._fit)))
        stack.enter_context(replaced(sweeps, "_fit", counted("native sweep", sweeps._fit)))
        run()
    return [*(name for name in LEFT_OUT if name in found), *(["all sweeps"] if "native sweep" in found else [])]


def under(path: str | None, run: Callable[[], None]) -> Callable[[], None]:
    """A step without a path."""

    def call() -> None:
        with nullcontext() if path is None else LEFT_OUT[path]():
            run()

    return call


def alone(name: str, precision: str, kind: str, path: str, rounds: int) -> dict[str, Any]:
    """Seconds and peak memory of a step without a path ("none": with all), in this process, which does nothing else."""
    if path != ALLOCATOR:
        tune_memory()
    step_size = WORKS[name].size
    WORKS[name] = Work((1, step_size[1], *(32 for _ in step_size[2:])), points=WORKS[name].points and 1024)
    step(name, precision, kind)()  # libraries and kernels are loaded before the count begins
    WORKS[name] = Work(step_size, points=WORKS[name].points and 64**3 // 32)
    before = peak_mb()
    run = under(None if path in ("none", ALLOCATOR) else path, step(name, precision, kind))
    run()
    run()
    memory, seconds = peak_mb() - before, []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"peak_mb": memory, "seconds": statistics.median(seconds)}


def measure(name: str, precision: str, kind: str, rounds: int) -> list[dict[str, Any]]:
    """A row for every path that the network takes, and one for the allocator."""
    run = step(name, precision, kind)
    paths = taken(run)
    seconds = interleaved({"all": run, **{path: under(path, run) for path in paths}}, rounds)
    shared = {"network": name, "size": list(WORKS[name].size), "precision": precision, "kind": kind}
    asked = (name, precision, kind)
    own = in_own_process(__file__, "--alone", *asked, "none", "1")["peak_mb"]
    rows = []
    for path in paths:
        peak = in_own_process(__file__, "--alone", *asked, path, "1")["peak_mb"]
        rows.append({**shared, "path": path, "gain": ratio(seconds[path], seconds["all"]),
                     "ms": {"with": ms(seconds["all"]), "without": ms(seconds[path])},
                     "peak_mb": {"with": round(own), "without": round(peak)}})  # fmt: skip
    each: dict[str, list[dict[str, Any]]] = {"none": [], ALLOCATOR: []}
    for _ in range(PROCESSES):
        for path, results in each.items():
            results.append(in_own_process(__file__, "--alone", *asked, path, str(rounds)))
    times = {path: [one["seconds"] for one in results] for path, results in each.items()}
    memory = {path: round(statistics.median(one["peak_mb"] for one in results)) for path, results in each.items()}
    rows.append({**shared, "path": ALLOCATOR, "gain": ratio(times[ALLOCATOR], times["none"]),
                 "ms": {"with": ms(times["none"]), "without": ms(times[ALLOCATOR])},
                 "peak_mb": {"with": memory["none"], "without": memory[ALLOCATOR]}})  # fmt: skip
    for row in rows:
        print(line(row), flush=True)
    return rows


def ms(seconds: list[float]) -> float:
    """The median, in milliseconds."""
    return round(1e3 * statistics.median(seconds), 1)


def line(row: dict[str, Any]) -> str:
    """One row for people."""
    gain, peak, times = row["gain"], row["peak_mb"], row["ms"]
    return (
        f"{row['network']:14} {row['kind']:10} {row['precision']} without {row['path']:12} "
        f"{times['without']:.1f} ms for {times['with']:.1f}: {gain['median']:.2f}x [{gain['low']:.2f}, {gain['high']:.2f}]; "
        f"memory {peak['without']} MB for {peak['with']}"
    )


def best(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """path -> precision -> its largest gain in time over all networks and both kinds of work."""
    paths = dict.fromkeys(row["path"] for row in rows)
    return {
        path: {
            precision: max(
                row["gain"]["median"] for row in rows if (row["path"], row["precision"]) == (path, precision)
            )
            for precision in dict.fromkeys(row["precision"] for row in rows if row["path"] == path)
        }
        for path in paths
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(WORKS)}; all by default")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--out", default="kernels", help="name of the file in benchmarks/results")
    parser.add_argument("--alone", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        *asked, rounds = arguments.alone
        print(json.dumps(alone(*asked, int(rounds))))
        return
    facts = conditions()
    print(f"{facts['processor']}, {facts['threads']} threads")
    tune_memory()
    rows: list[dict[str, Any]] = []
    for precision in arguments.precision or [p for p in PRECISIONS if p == "fp32" or has_bf16()]:
        for name in arguments.networks or WORKS:
            for kind in KINDS:
                rows += measure(name, precision, kind, arguments.rounds)
                write(arguments.out, {"conditions": facts, "rows": rows, "largest_gain": best(rows)})
    for path, gains in best(rows).items():
        verdict = "" if max(gains.values()) >= 1.1 else "  gains less than 10 %"
        print(f"{path:14} " + ", ".join(f"{precision} {gain:.2f}x" for precision, gain in gains.items()) + verdict)


if __name__ == "__main__":
    main()
