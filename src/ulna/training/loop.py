"""The loop: steps, validation on whole images, early stopping, checkpoints; on Lightning Fabric for device and precision.

What the loop does next depends on its state alone, and every sample draws from its own random stream, so a training that
goes on from a checkpoint takes the same steps as one that was never stopped.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from ulna.blocks import nd
from ulna.data.pipeline.points import count_points, sample_points
from ulna.errors import UsageError, brief, printable
from ulna.evaluation.metrics import average, score_labels
from ulna.inference.volume import predict_slabs
from ulna.kernels.allocator import peak_memory_mb
from ulna.losses import check_targets, make_loss
from ulna.networks.network import Network
from ulna.networks.weights import check_shapes, not_finite
from ulna.recipe import Plan, Recipe, parse
from ulna.system.device import choose_precision
from ulna.system.files import Tensors, write_tensors
from ulna.system.progress import bar
from ulna.training.checkpoint import (
    NETWORK,
    Progress,
    load_checkpoint,
    pack_optimizer,
    save_checkpoint,
    unpack_optimizer,
)
from ulna.training.reproducing import environment, restore_environment
from ulna.training.samples import Batches, PreparedCases, Samples, worker_count
from ulna.training.stopping import Stop

log = logging.getLogger(__name__)
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it tells its precision, which the run's log has

# files that only a finished epoch leaves: where they are, a training does not begin anew
FINISHED = ("weights.safetensors", "metrics.csv", "summary.json")
CHECKPOINTS = "checkpoints"
_ROOM = 1 << 28  # bytes of a checkpoint beside its tensors

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda p, o: torch.optim.Adam(p, lr=o.lr, weight_decay=o.weight_decay, fused=True),
    "adamw": lambda p, o: torch.optim.AdamW(p, lr=o.lr, weight_decay=o.weight_decay, fused=True),
    "sgd": lambda p, o: torch.optim.SGD(p, lr=o.lr, momentum=o.momentum, nesterov=True, weight_decay=o.weight_decay),
}


class State:
    """Where a training stands: plain values, stored with every checkpoint."""

    def __init__(self) -> None:
        self.epoch = 0  # the epoch under way, from 0
        self.rows: list[dict[str, float]] = []  # one per finished epoch
        self.best_dice = -1.0
        self.best_epoch = -1
        self.patience_from = 0  # the epoch from which patience counts: that of the last extension
        self.elapsed_s = 0.0  # in finished epochs
        self.step = 0  # of the epoch under way: steps done, their losses, and how long they took
        self.losses: list[float] = []
        self.step_s = 0.0
        self.peak_mb = 0.0  # of memory, over all processes that trained

    @property
    def epoch_s(self) -> float:
        """How long an epoch takes: the mean so far, so that a single slow one does not end the training."""
        return self.elapsed_s / len(self.rows) if self.rows else 0.0

    def finished(self, recipe: Recipe) -> str:
        """Why the training is over, or nothing."""
        training = recipe.training
        if self.epoch >= training.epochs:
            return f"all {training.epochs} epochs done"
        if self.rows and self.epoch - max(self.best_epoch + 1, self.patience_from) >= training.patience:
            return f"no better validation Dice for {training.patience} epochs"
        if training.max_hours is not None and self.elapsed_s + self.epoch_s > training.max_hours * 3600:
            return f"the next epoch would end after the {training.max_hours:g} h allowed"
        return ""


class Loop:
    """One training: a network, its samples, its validation cases and a folder for what comes out.

    Args:
        network: trained in place.
        plan: of the data set.
        recipe: resolved.
        val: validation cases, with their references on their own grid.
        samples: random patches of the training cases.
        folder: the run folder; `weights.safetensors` and `checkpoints/` are written.
        stop: asked at every step and between the cases of a validation.
        on_epoch: called after every epoch with the state.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        recipe: Recipe,
        *,
        val: PreparedCases,
        samples: Samples,
        folder: Path,
        stop: Stop,
        on_epoch: Callable[[State], None] = lambda state: None,
    ) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.precision = choose_precision(recipe.training.precision, torch.device(device))
        self.fabric = Fabric(
            accelerator=device, devices=1, precision="bf16-mixed" if self.precision == "bf16" else "32-true"
        )
        self.plan, self.recipe, self.folder, self.stop, self.on_epoch = plan, recipe, folder, stop, on_epoch
        self.layout = nd.layout(plan.spatial_dims, recipe.training.channels_last, self.fabric.device, self.precision)
        self.network = network.to(self.fabric.device)
        self.network.activation_checkpointing = recipe.training.activation_checkpointing
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
        optimizer = OPTIMIZERS[recipe.optimizer.kind](self.network.parameters(), recipe.optimizer)
        self.model, self.optimizer = self.fabric.setup(self.network, optimizer)
        self.model.mark_forward_method("outputs")
        self.loss = make_loss(
            recipe.loss.kind,
            options=recipe.loss.options,
            heads=recipe.loss.heads,
            multilabel=plan.labels.multilabel,
        )
        self.points = count_points(recipe.points, math.prod(plan.patch), sparse=network.head.sparse)
        self.val, self.samples = val, samples
        count = recipe.training.samples_per_epoch or max(len(samples.cases), recipe.training.min_steps * plan.batch)
        self.batches = Batches(len(samples.cases), count, plan.batch, recipe.training.seed)
        workers = worker_count(recipe.training.workers, device)
        self.loader = DataLoader(
            samples,
            batch_sampler=self.batches,  # type: ignore[arg-type]
            num_workers=workers,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # else it would draw from the stream that dropout draws from
        )
        self.state = State()
        self._saved_at = time.perf_counter()
        self._said_empty = False

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False if no epoch was ever finished and there is none.

        Raises:
            UsageError: if this process cannot compute as the run began, no checkpoint is whole, or it is of another run.
        """
        folder = self.folder / CHECKPOINTS
        own = self.network.state_dict()
        # weights and two moments, each in at most 8 bytes a number, and the losses of an epoch
        saved = load_checkpoint(folder, largest=_ROOM + 8 * sum(tensor.nbytes for tensor in own.values()))
        if saved is None:
            check_unfinished(self.folder)
            return False
        weights = {n.removeprefix(NETWORK): t for n, t in saved.tensors.items() if n.startswith(NETWORK)}
        check_shapes(folder, own, {name: tuple(tensor.shape) for name, tensor in weights.items()})
        parse(Progress, saved.state.get("loop"), source=str(folder))
        try:
            restore_environment(saved.state.get("arithmetic", {}), self.fabric.device, self.precision)
            self.network.load_state_dict(weights)
            unpack_optimizer(self.optimizer, saved.tensors, saved.state["optimizer"])
            vars(self.state).update(saved.state["loop"])
            torch.set_rng_state(saved.tensors["random"])
            if torch.cuda.is_available() and "random_cuda" in saved.tensors:
                torch.cuda.set_rng_state(saved.tensors["random_cuda"])
        except UsageError:
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UsageError(
                f"{printable(folder)}: the checkpoint does not fit the recipe.yaml beside it ({brief(str(error))}); bring "
                "both back from one copy of the run, or train again into another folder"
            ) from None
        return True

    def run(self) -> State:
        """Train until the recipe says that it is enough.

        Raises:
            Interrupted: after a signal, with a checkpoint of the step that was under way.
        """
        self._read_cases()
        self._save()  # from here on a kill costs no more than `checkpoint_minutes`, and the number of threads is known
        while not (why := self.state.finished(self.recipe)):
            self.stop.check(self._save)
            start = time.perf_counter() - self.state.step_s
            train_loss = self._train_epoch(start)
            self.state.step_s = time.perf_counter() - start
            self._check_weights()
            scores = self.validate()
            self._finish_epoch(train_loss, scores, time.perf_counter() - start)
        self._save()
        best = self.state.best_epoch + 1
        log.info("finished: %s; best validation Dice %.4f in epoch %d", why, self.state.best_dice, best)
        return self.state

    def validate(self) -> dict[str, float]:
        """Dice and IoU on the whole validation images: the mean over cases of the mean over structures.

        What neither reference nor prediction holds is left out, unless the recipe says how it counts. Where nothing is left
        - no structure to find, and none marked - both are 1: the best that an epoch can do there.
        """
        self.network.eval()
        per_case: list[dict[str, float]] = []
        for index in range(len(self.val)):
            self.stop.check(self._save)
            prepared, reference = self.val[index]
            slabs = predict_slabs(
                self.network,
                self.plan,
                prepared,
                settings=self.recipe.inference.replaced(tta=False),
                device=self.fabric.device,
                precision=self.precision,
            )
            scores = score_labels(
                slabs.label_map(self.plan.labels, self.recipe.inference.threshold),
                reference.numpy(),
                classes=len(self.plan.labels.foreground),
                spacing=(1.0,) * self.plan.spatial_dims,
                tolerance=1.0,
                multilabel=self.plan.labels.multilabel,
                empty_score=self.recipe.evaluation.empty_score,
                surface=False,
            )
            per_case.append(average(scores, "per_image"))
        self.network.train()
        known = {key: [case[key] for case in per_case if not math.isnan(case[key])] for key in ("dice", "iou")}
        if not known["dice"] and not self._said_empty:
            log.warning("no validation case holds a structure: the epoch is chosen by what it does not invent alone")
            self._said_empty = True
        return {key: float(np.mean(values)) if values else 1.0 for key, values in known.items()}

    def _read_cases(self) -> None:
        kept = [self.val] if self.loader.num_workers else [self.val, self.samples.cases]  # workers keep their own
        with bar("reading cases", sum(map(len, kept))) as advance:
            for _ in itertools.chain.from_iterable(cases.fill() for cases in kept):
                self.stop.check(self._save)
                advance()

    def _train_epoch(self, start: float) -> float:
        self.network.train()
        state, steps = self.state, self.batches.steps
        self.batches.epoch, self.batches.first_step = state.epoch, state.step
        with bar(f"epoch {state.epoch + 1}/{self.recipe.training.epochs}", steps) as advance:
            advance(state.step)
            for images, labels in self.loader:
                self._set_lr(state.step / steps)
                state.losses.append(self._step(images, labels, state.step))
                state.step += 1
                advance(note=f"loss {np.mean(state.losses):.4f}")
                if state.step % self.recipe.training.accumulate == 0 and state.step < steps:
                    state.step_s = time.perf_counter() - start
                    self.stop.check(self._save)
                    self._save_now_and_then()
        return float(np.mean(state.losses))

    def _step(self, images: Tensor, labels: Tensor, step: int) -> float:
        images, labels = self.fabric.to_device((images, labels))
        images = images.contiguous(memory_format=self.layout)
        every = self.recipe.training.accumulate
        points = self._points(labels, step)
        with self.fabric.autocast():  # Fabric does so by itself for `forward` alone
            outputs = self.model.outputs(images, points)
        if self.state.epoch == 0:
            check_targets(labels, outputs, multilabel=self.plan.labels.multilabel)
        loss, _ = self.loss(outputs, labels)
        self.fabric.backward(loss / every)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UsageError(
                f"the loss became {value} in epoch {self.state.epoch + 1}, step {step + 1}; "
                f"lower optimizer.lr (now {self.recipe.optimizer.lr:g}) and train again"
            )
        if (step + 1) % every == 0 or step + 1 == self.batches.steps:
            if self.recipe.training.clip_gradients is not None:
                # a gradient that is not finite shows in the next loss, which says what to do
                self.fabric.clip_gradients(
                    self.model,
                    self.optimizer,
                    max_norm=self.recipe.training.clip_gradients,
                    error_if_nonfinite=False,
                )
            self.optimizer.step()
            self.optimizer.zero_grad()
        return value

    def _points(self, labels: Tensor, step: int) -> Tensor | None:
        """The points of a step, from a stream of its own; None where it reads all voxels."""
        if self.points is None:
            return None
        stream = np.random.SeedSequence([self.recipe.training.seed, self.state.epoch, step])
        generator = torch.Generator(labels.device).manual_seed(int(stream.generate_state(1)[0]))
        settings = self.recipe.points
        return sample_points(
            labels,
            self.plan.spatial_dims,
            count=self.points,
            alpha=settings.alpha,
            sigma=settings.sigma,
            generator=generator,
        )

    def _set_lr(self, share_of_epoch: float) -> None:
        lr = learning_rate(self.recipe, self.state, share_of_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr

    def _finish_epoch(self, train_loss: float, scores: dict[str, float], seconds: float) -> None:
        state = self.state
        row = {
            "epoch": state.epoch + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": train_loss,
            "val_dice": scores["dice"],
            "val_iou": scores["iou"],
            "seconds": round(seconds, 2),
        }
        state.rows.append(row)
        state.elapsed_s += seconds
        if scores["dice"] > state.best_dice:
            state.best_dice, state.best_epoch = scores["dice"], state.epoch
            facts = {"epoch": state.epoch + 1, "val_dice": scores["dice"]}
            write_tensors(self.folder / "weights.safetensors", Tensors(dict(self.network.state_dict()), facts))
        state.epoch += 1
        state.step, state.losses, state.step_s = 0, [], 0.0
        log.info(
            "epoch %d  loss %.4f  val Dice %.4f  IoU %.4f  lr %.1e  %.0f s%s",
            row["epoch"], train_loss, scores["dice"], scores["iou"], row["lr"], seconds,
            "  best" if state.best_epoch + 1 == row["epoch"] else "",
        )  # fmt: skip
        self.on_epoch(state)  # before the checkpoint: a training that goes on from there has written its epochs down
        self._save_now_and_then()

    def _save_now_and_then(self) -> None:
        if time.perf_counter() - self._saved_at >= self.recipe.training.checkpoint_minutes * 60:
            self._save()

    def _check_weights(self) -> None:
        """Raise a UsageError where weights are NaN or infinite: those of earlier epochs stay on disk."""
        if faults := not_finite(self.network.state_dict()):
            raise UsageError(
                f"the weights became NaN or infinite in epoch {self.state.epoch + 1} ({faults[0]}); "
                f"lower optimizer.lr (now {self.recipe.optimizer.lr:g}) and train again"
            )

    def _save(self) -> None:
        self._check_weights()
        self.state.peak_mb = max(self.state.peak_mb, peak_memory_mb())
        optimizer_tensors, optimizer_values = pack_optimizer(self.optimizer)
        tensors = {f"{NETWORK}{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= optimizer_tensors | {"random": torch.get_rng_state()}
        if torch.cuda.is_available():
            tensors["random_cuda"] = torch.cuda.get_rng_state()
        values: dict[str, Any] = {
            "loop": vars(self.state),
            "optimizer": optimizer_values,
            "arithmetic": environment(self.fabric.device, self.precision),
        }
        save_checkpoint(self.folder / CHECKPOINTS, Tensors(tensors, values))
        self._saved_at = time.perf_counter()


def check_unfinished(folder: Path) -> None:
    """Raise a UsageError where a run folder without a checkpoint holds what only a finished epoch leaves."""
    finished = [name for name in FINISHED if (folder / name).exists()]
    if finished:
        raise UsageError(
            f"{printable(folder / CHECKPOINTS)}: holds no checkpoint, and {printable(folder / finished[0])} is of epochs "
            "that were finished; bring the checkpoints back from a copy of the run, or train again into another folder"
        )


def learning_rate(recipe: Recipe, state: State, share_of_epoch: float) -> float:
    """The rate at a point of the training: warm up, then fall over the epochs, or over the time where that ends first.

    Args:
        recipe: its `optimizer.lr`, `schedule` and `training`.
        state: the epoch under way and the time used before it.
        share_of_epoch: 0 to 1.
    """
    training, schedule = recipe.training, recipe.schedule
    done, share = state.epoch / training.epochs, 1 / training.epochs
    if training.max_hours is not None:
        limit = training.max_hours * 3600
        if state.elapsed_s / limit > done:
            done = state.elapsed_s / limit
        share = max(share, state.epoch_s / limit)
    progress = min(1.0, done + share * share_of_epoch)
    factor = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "poly": (1 - progress) ** schedule.power,
        "constant": 1.0,
    }[schedule.kind]
    if state.epoch < schedule.warmup_epochs:
        factor *= max(1e-2, (state.epoch + share_of_epoch) / schedule.warmup_epochs)
    return recipe.optimizer.lr * factor
