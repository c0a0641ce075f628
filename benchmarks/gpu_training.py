"""`ulna train` on a GPU: how much of the time the GPU works, and how much memory a step takes of what was forecast."""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_networks import our_step
from gpu_timing import DEVICE, GPU, Found, Memory
from torch.profiler import ProfilerActivity, profile

import ulna
from ulna.blocks import nd
from ulna.data.pipeline.points import count_points
from ulna.planning.memory import ON_THE_GPU, training_memory
from ulna.recipe import Recipe
from ulna.system.device import choose_precision, find_device
from ulna.training.loop import Loop

TRAININGS = (("nuclei96", "unet"), ("hippocampus", "nnunet"))
EPOCHS = 5  # the first sets things up, the second is watched, the others are timed
MODELS = {  # (N, C, *S)
    "unet": (32, 3, 256, 256),
    "unetpp": (16, 3, 256, 256),
    "sdnu_net": (16, 3, 96, 96),
    "nnunet": (2, 1, 128, 128, 128),
    "implicit_unet": (2, 1, 128, 128, 128),
}


class Enough(BaseException):
    """All epochs that are wanted have been seen; nothing on the way takes it for a failure."""


class Watch:
    """What the epochs of one training took: seconds of each, validation left out, and the share in which the GPU worked."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.steps = epochs, 0
        self.seconds: list[float] = []
        self.busy: float | None = None

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Stand between the loop and its epochs."""
        plain = Loop._train_epoch
        watch = self

        def seen(loop: Loop, *arguments: Any) -> float:
            if len(watch.seconds) == watch.epochs:
                raise Enough
            watch.steps = loop.batches.steps
            return watch._epoch(lambda: plain(loop, *arguments))

        Loop._train_epoch = seen  # type: ignore[method-assign]
        try:
            yield
        except Enough:
            pass
        finally:
            Loop._train_epoch = plain  # type: ignore[method-assign]

    def _epoch(self, run: Any) -> float:
        watched = len(self.seconds) == 1 and GPU
        _wait()
        if not watched:
            start = time.perf_counter()
            loss: float = run()
            _wait()
            self.seconds.append(time.perf_counter() - start)
            return loss
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            start = time.perf_counter()
            loss = run()
            _wait()
            taken = time.perf_counter() - start
        self.seconds.append(taken)
        self.busy = min(1.0, covered(kernels(seen)) / taken) or None
        return loss


def kernels(seen: profile) -> list[tuple[float, float]]:
    """Begin and end of everything that ran on the GPU, in seconds."""
    events = seen.profiler.kineto_results.events()  # type: ignore[union-attr]
    on_gpu = [event for event in events if event.device_type() == torch.autograd.DeviceType.CUDA]
    return [(event.start_ns() / 1e9, (event.start_ns() + event.duration_ns()) / 1e9) for event in on_gpu]


def covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds that lie in at least one of the spans.

    Example:
        >>> covered([(0, 2), (1, 3), (5, 6)])
        4
    """
    total, end = 0.0, -math.inf
    for begin, finish in sorted(spans):
        total += max(0.0, finish - max(begin, end))
        end = max(end, finish)
    return total


def busy(found: Path, data: Path | None, *, tiny: bool) -> None:
    """A few epochs of every training whose data are there."""
    report = Found(found, ("training", "steps an epoch", "GPU busy", "seconds an epoch, without validation"))
    if GPU:  # once before anything is recorded: graphs made earlier would be seen as one piece, or not at all
        with profile(activities=[ProfilerActivity.CUDA]):
            torch.zeros(1, device=DEVICE).add_(1)
    with tempfile.TemporaryDirectory() as folder:
        if tiny and data is None:
            data = Path(folder)
            discs(data / "nuclei96")
        for name, model in TRAININGS:
            label = f"{name}, {model}"
            if data is None or not (data / name).exists():
                why = "no --data FOLDER was given" if data is None else f"{data / name} does not exist"
                report.add({"training": label, "skipped": why}, label, f"skipped: {why}", "", "")
                continue
            watch = Watch(3 if tiny else EPOCHS)
            with watch.looking():
                ulna.train(data / name, model=model, out=Path(folder) / "run" / name, epochs=1000, seed=0)
            taken = watch.seconds[2:]
            middle = statistics.median(taken)
            share = f"{watch.busy:.0%}" if watch.busy else ("not seen by the profiler" if GPU else "no GPU")
            row = {"training": label, "steps": watch.steps, "busy": watch.busy, "epochs_s": watch.seconds}
            report.add(row, label, str(watch.steps), share, f"{middle:.2f} [{min(taken):.2f}, {max(taken):.2f}]")
            shutil.rmtree(Path(folder) / "run" / name, ignore_errors=True)


def discs(folder: Path) -> None:
    """A tiny data set: bright discs on noise."""
    from PIL import Image

    rng, (rows, columns) = np.random.default_rng(0), np.mgrid[:32, :32]
    for number in range(6):
        mask = (rows - rng.integers(12, 20)) ** 2 + (columns - rng.integers(12, 20)) ** 2 < 64
        image = np.clip(80 + 90 * mask + rng.normal(0, 15, mask.shape), 0, 255)
        for kind, values in (("images", image), ("labels", mask * 255)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(values.astype(np.uint8)).save(folder / kind / f"disc{number}.png")


def memory(found: Path, *, tiny: bool) -> None:
    """The most that tensors took in a step, beside what a plan says of it."""
    from tests.plans import make

    report = Found(found, ("step", "taken, MB", "reserved, MB", "forecast, MB", "taken / forecast"))
    for name, size in [*MODELS.items()][: 1 if tiny else None]:
        batch, channels, *patch = (1, 3, 32, 32) if tiny else size
        dims, label = len(patch), f"{name} {'×'.join(map(str, size))}"
        plan = make(spatial_dims=dims, patch=tuple(patch), batch=batch, strides=((2,) * dims,) * 4)
        held = Memory()
        network = ulna.build(name, spatial_dims=dims, in_channels=channels)
        forecast = training_memory(network, plan, Recipe(), device=find_device(), cases=1)
        # the libraries take theirs beside torch's allocator, which does not see it
        mb = sum(taken for part, taken in forecast.parts.items() if part in ON_THE_GPU and part != "CUDA") / 1e6
        layout = nd.layout(dims, True, DEVICE, choose_precision("auto", DEVICE))
        network = network.to(DEVICE).to(memory_format=layout)  # type: ignore[call-overload]
        images = torch.randn(batch, channels, *patch, device=DEVICE).contiguous(memory_format=layout)
        labels = (torch.rand(batch, *patch, device=DEVICE) > 0.5).long()
        count = count_points(Recipe().points, labels[0].numel(), sparse=network.head.sparse)
        points = None if count is None else torch.randint(patch[0], (batch, count, dims), device=DEVICE)
        step = our_step(network, images, labels, points)
        step()
        held.begin()
        for _ in range(6 if GPU else 1):
            step()
        peak = held.peak_mb()
        reserved = round(torch.cuda.max_memory_reserved() / 1e6, 1) if GPU else None
        row = {"step": label, "taken_mb": peak, "reserved_mb": reserved}
        row |= {"forecast_mb": round(mb, 1), "parts": forecast.parts}
        of = "no GPU" if peak is None else f"{peak / mb:.2f}"
        seen = ["" if one is None else f"{one:.0f}" for one in (peak, reserved)]
        report.add(row, label, *seen, f"{mb:.0f}", of)
        del network, images, labels, step
        if GPU:
            torch.cuda.empty_cache()


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()
