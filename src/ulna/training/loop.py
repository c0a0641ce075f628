"""The loop: steps, validation on whole images, early stopping, checkpoints.

What the loop does next depends on its state alone, and every sample draws from its own random stream, so a training that
goes on from a checkpoint takes the same steps as one that was never stopped: on a CPU to the bit, on a GPU with the same
samples and draws, and sums within rounding.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ulna.blocks import nd
from ulna.blocks.synchronised import synchronised
from ulna.data.pipeline.points import count_points
from ulna.errors import UsageError
from ulna.kernels.allocator import peak_memory_mb
from ulna.losses import check_targets, make_loss
from ulna.networks.network import Network
from ulna.networks.weights import not_finite
from ulna.recipe import Plan, Recipe
from ulna.system.device import choose_precision, default_device
from ulna.system.files import Tensors, write_tensors
from ulna.system.graphs import Recorder, graphs_for
from ulna.system.progress import bar
from ulna.system.ranks import ALONE
from ulna.training.checkpoint import CHECKPOINTS, save_checkpoint
from ulna.training.compiling import compiles
from ulna.training.crew import NOBODY, Crew
from ulna.training.feed import Feed, thread_count
from ulna.training.late import LateNumbers
from ulna.training.optimizers import lr_of, make_optimizer, set_lr
from ulna.training.pace import Pace
from ulna.training.samples import PreparedCases, Samples
from ulna.training.snapshot import Snapshot
from ulna.training.state import State, learning_rate, validated
from ulna.training.step import Step, bounded
from ulna.training.stopping import Stop
from ulna.training.stopwatch import Stopwatch, advice, parts
from ulna.training.streams import begin_shared_step, points_of
from ulna.training.taken import Taken
from ulna.training.validating import Validation

log = logging.getLogger(__name__)


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
        final_cases, calibrating_cases: predictions at the end, for which a limit of hours keeps time.
        taken: names of the weights that were taken over from another training.
        crew: the other processes that share every step and validation.
        clock: seconds from any moment on.
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
        final_cases: int = 0,
        calibrating_cases: int = 0,
        taken: Collection[str] = (),
        crew: Crew = NOBODY,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device = default_device()
        self.precision = choose_precision(recipe.training.precision, self.device)
        self.plan, self.recipe, self.folder, self.stop, self.on_epoch = plan, recipe, folder, stop, on_epoch
        self.crew, self.ranks = crew, crew.ranks
        self.layout = nd.layout(plan.spatial_dims, recipe.training.channels_last, self.device, self.precision)
        self.network = network.to(self.device)
        self.network.activation_checkpointing = recipe.training.activation_checkpointing
        self.network.to(memory_format=self.layout)  # type: ignore[call-overload]
        self.validation = Validation(self.network, plan, recipe, val, self.device, self.precision, crew)
        recorder = self._recorder()
        self.taken = Taken(self.network, taken, recipe.training)
        self.optimizer = make_optimizer(recipe.optimizer, self.taken.groups(), recorded=recorder is not None)
        self.step = self._new_step(recorder)
        self._late = LateNumbers(self.device, most=3)  # of a step: its loss, and the lowest and the highest label
        self.points = count_points(recipe.points, math.prod(plan.patch), sparse=network.head.sparse)
        self.val, self.samples = val, samples
        self.batches = samples.batches(recipe.training, plan.batch)
        threads = thread_count(recipe.training.workers, self.device.type)
        self.feed = Feed(samples, self.batches, self.device, threads, self.ranks)
        self.state = State(recipe.training.monitor)
        self.snapshot = Snapshot(
            self.network, self.optimizer, self.state,
            device=self.device, precision=self.precision, taken=self.taken.names, crew=crew,
        )  # fmt: skip
        self.watch = Stopwatch()
        self.pace = Pace(
            self.state, recipe.training, self.batches, self.validation,
            final_cases=final_cases, calibrating_cases=calibrating_cases, watch=self.watch, clock=clock,
        )  # fmt: skip
        self._clock = clock
        self._saved_at = clock()

    def _recorder(self) -> Recorder | None:
        """What makes graphs of whole steps; sums over several processes are in none."""
        return graphs_for(self.device, draws=True) if self.ranks.alone else None

    def _new_step(self, recorder: Recorder | None) -> Step:
        recipe, labels = self.recipe, self.plan.labels
        loss, training = recipe.loss, recipe.training
        criterion = make_loss(
            loss.kind, options=loss.options, heads=loss.heads, multilabel=labels.multilabel, ignored=labels.ignored
        )
        return Step(
            self.network,
            criterion.to(self.device),
            self.optimizer,
            precision=self.precision,
            accumulate=training.accumulate,
            clip=training.clip_gradients,
            compile=compiles(training, self.device),
            recorder=recorder,
            ranks=self.ranks,
            batch=self.plan.batch,
        )

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False if no epoch was ever finished and there is none.

        Raises:
            UsageError: if this process cannot compute as the run began, no checkpoint is whole, or it is of another run.
        """
        if not self.snapshot.load(self.folder):
            return False
        self.watch.spent.update(self.state.epoch_seconds)
        return True

    def together(self) -> AbstractContextManager[None]:
        """Within, the processes of the training compute as one would."""
        return synchronised(self.network, self.ranks if self.recipe.training.sync_batchnorm else ALONE)

    def run(self) -> State:
        """Train until the recipe says that it is enough.

        Raises:
            Interrupted: after a signal, with a checkpoint of the step that was under way.
        """
        with self.together():
            return self._run()

    def _run(self) -> State:
        self.snapshot.send()
        self._read_cases()
        self._save()  # from here on a kill costs no more than `checkpoint_minutes`, and the number of threads is known
        self.pace.training_begins()
        while not (why := self.state.finished(self.recipe)):
            self.stop.check(self._save)
            start = self._clock() - self.state.step_s
            with self.watch.of("steps"):
                train_loss = self._train_epoch(start)
            self.state.step_s = self._clock() - start
            due = (self.state.epoch + 1) % self.recipe.training.validate_every == 0
            scores = self._validated() if due else None
            self._finish_epoch(train_loss, scores, self._clock() - start)
        if self.state.rows and not validated(self.state.rows[-1]):
            self._validate_last()
        self._save()
        training, best = self.recipe.training, self.state.best_epoch + 1
        log.info("finished: %s; best validation %s %.4f in epoch %d", why, training.measure, self.state.best, best)
        busy = self.feed.threads + 1 if self.device.type == "cuda" else torch.get_num_threads()
        if said := advice(self.state.seconds, threads=self.feed.threads, spare=(os.cpu_count() or 1) - busy):
            log.info("note: %s", said)
        return self.state

    def _validated(self) -> dict[str, float]:
        start = self._clock()
        with self.watch.of("validation"):
            self._check_weights()
            scores = self.validate()
        self.pace.validated(self._clock() - start)
        return scores

    def validate(self) -> dict[str, float]:
        """Dice and IoU on the whole validation images."""
        state, start = self.state, self._clock() - self.state.step_s
        if not self.recipe.training.sync_batchnorm:
            self.crew.tell("statistics")
            self.share_statistics()
        with bar(f"validating epoch {state.epoch + 1}", self.pace.val_cases) as advance:
            advance(0, note=self.pace.told_end())
            shown = 0

            def after(scored: int) -> bool:
                nonlocal shown
                state.step_s = self._clock() - start
                advance(scored - shown, note=self.pace.told_end())
                shown = scored
                return self.pace.ends_validation(scored)

            return self.validation.scores(state.val_cases, before=lambda: self.stop.check(self._save), after=after)

    def share_statistics(self) -> None:
        """Those of batch norm are the first process's from here on."""
        self.ranks.send(list(self.network.buffers()))

    def _read_cases(self) -> None:
        # where validation cases are shared, each process reads its own when their turn comes
        kept = [self.val, self.samples.cases] if self.ranks.alone else [self.samples.cases]
        self.crew.tell("read")
        start = self._clock()
        with bar("reading cases", sum(map(len, kept))) as advance:
            for _ in itertools.chain.from_iterable(cases.fill(self.feed.threads) for cases in kept):
                self.stop.check(self._save)
                advance()
            self.crew.answers(lambda: self.stop.check(self._save))
        self.state.reading_s = self._clock() - start

    def begin_steps(self, first: int, end: int) -> None:
        """Steps of the epoch under way come next, from one to another."""
        self.network.train()
        if self.taken.hold(self.state.epoch):
            # other gradients than those that a graph has recorded, and all in new places
            self.optimizer.zero_grad(set_to_none=True)
            self.step = self._new_step(self._recorder())
        self.step.criterion.begin_epoch(self.state.epoch)
        self.batches.epoch, self.batches.first_step, self.batches.end = self.state.epoch, first, end

    def _train_epoch(self, start: float) -> float:
        state, training, steps = self.state, self.recipe.training, self.batches.steps
        # a training that was stopped in the validation of an epoch that time had cut goes on there
        end = state.step if state.time_is_up else training.steps_of(state.epoch, steps)
        self.crew.tell("epoch", epoch=state.epoch, first=state.step, end=end)
        self.begin_steps(state.step, end)
        self.pace.epoch_begins()
        with bar(self.pace.told_epoch(), state.last_step or end) as advance:
            advance(state.step, note=self.pace.told_end())
            for images, labels in self._batches():
                rate = learning_rate(self.recipe, state, state.step / steps)
                set_lr(self.optimizer, rate)
                self.crew.tell("step", step=state.step, lr=rate)
                self._step(images, labels, state.step)
                state.step += 1
                state.step_s = self._clock() - start
                loss = f"loss {np.mean(state.losses):.4f}" if state.losses else ""
                advance(note=", ".join(filter(None, [self.pace.told_end(), loss])))
                if state.step % training.accumulate == 0 and state.step < end:
                    self.stop.check(self._save)
                    self._save_now_and_then()
                    if self.pace.ends_epoch(end, settled=self.step.settled):
                        break
        self._note(self._late.rest())
        return float(np.mean(state.losses))

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that are left of the epoch; waiting for one is no part of a step."""
        batches = iter(self.feed)
        while True:
            with self.watch.of("data"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _step(self, images: Tensor, labels: Tensor, step: int) -> None:
        """Take a step; its loss is noted when it has come."""
        labels, extremes = self._checked(labels)
        images = images.contiguous(memory_format=self.layout)
        begin_shared_step(self.recipe, (self.state.epoch, step), self.ranks)
        last = (step + 1) % self.recipe.training.accumulate == 0 or step + 1 == self.batches.last
        loss = self.step(images, labels, self._points(labels, step), update=last)
        self._note(self._late.add(loss, *extremes))

    def _checked(self, labels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Labels that the loss can take, and what tells later whether they were so: in the first epoch alone."""
        found = self.plan.labels
        if self.state.epoch:
            return labels, ()
        if labels.device.type == "cpu":
            check_targets(labels, found.outputs, multilabel=found.multilabel, ignored=found.ignored)
            return labels, ()
        last = 1 if found.multilabel else max(1, found.outputs - 1)
        return bounded(labels, last if found.ignored is None else found.ignored)

    def _note(self, numbers: list[tuple[float, ...]]) -> None:
        """Keep the losses of steps that have ended.

        Raises:
            UsageError: if a loss is not finite, or labels were none of the classes.
        """
        for loss, *extremes in numbers:
            if extremes:
                found = self.plan.labels
                check_targets(torch.tensor(extremes), found.outputs, multilabel=found.multilabel, ignored=found.ignored)
            if not math.isfinite(loss):
                raise UsageError(
                    f"the loss became {loss} in epoch {self.state.epoch + 1}, step {len(self.state.losses) + 1}; "
                    f"lower optimizer.lr (now {self.recipe.optimizer.lr:g}) and train again"
                )
            self.state.losses.append(loss)

    def _points(self, labels: Tensor, step: int) -> Tensor | None:
        """The points of a step, from a stream of its own; None where it reads all voxels."""
        if self.points is None:
            return None
        place = self.state.epoch, step
        return points_of(labels, self.plan, self.recipe, self.points, place=place, ranks=self.ranks)

    def _finish_epoch(self, train_loss: float, scores: dict[str, float] | None, seconds: float) -> None:
        state, rate = self.state, lr_of(self.optimizer)
        row = {"epoch": state.epoch + 1, "lr": rate, "train_loss": train_loss, "val_dice": None, "val_iou": None}
        state.rows.append({**row, "seconds": round(seconds, 2)})
        state.elapsed_s += seconds
        said, best = ("not validated", False) if scores is None else self._rank(scores)
        state.epoch += 1
        state.step, state.losses, state.step_s = 0, [], 0.0
        log.info(
            "epoch %d  loss %.4f  %s  lr %.1e  %.0f s%s%s",
            state.epoch, train_loss, said, rate, seconds, parts(self.watch.spent), "  best" if best else "",
        )  # fmt: skip
        self._note_epoch()
        self._save_now_and_then()

    def _rank(self, scores: dict[str, float]) -> tuple[str, bool]:
        """Note the scores of the last row, and keep the weights where they are the best; in words, and whether they are."""
        state, row = self.state, self.state.rows[-1]
        self.crew.check_whole()
        found = {f"val_{name}": scores[name] for name in ("dice", "iou")}
        best = scores[state.monitor] > state.best
        row.update(found)
        if best:
            state.best_dice, state.best_epoch = scores["dice"], len(state.rows) - 1
            facts = {"epoch": len(state.rows), **found}
            with self.watch.of("writing"):
                write_tensors(self.folder / "weights.safetensors", Tensors(dict(self.network.state_dict()), facts))
        return f"val Dice {scores['dice']:.4f}  IoU {scores['iou']:.4f}", best

    def _validate_last(self) -> None:
        """The last epoch, which none of the epochs to be validated was: it may be the best, or the only one."""
        start = self._clock()
        said, best = self._rank(self._validated())
        self.state.elapsed_s += self._clock() - start
        self.state.step_s = 0.0
        log.info("epoch %d, the last one: %s%s", self.state.epoch, said, "  best" if best else "")
        self._note_epoch()

    def _note_epoch(self) -> None:
        with self.watch.of("writing"):
            # before the checkpoint: a training that goes on from there has written its epochs down
            self.on_epoch(self.state)
        for phase, spent in self.watch.spent.items():
            self.state.seconds[phase] += spent
            self.watch.spent[phase] = 0.0

    def _save_now_and_then(self) -> None:
        if self._clock() - self._saved_at >= self.recipe.training.checkpoint_minutes * 60:
            self._save()

    def _check_weights(self) -> None:
        """Raise a UsageError where weights are NaN or infinite: those of earlier epochs stay on disk."""
        if faults := not_finite(self.network.state_dict()):
            raise UsageError(
                f"the weights became NaN or infinite in epoch {self.state.epoch + 1} ({faults[0]}); "
                f"lower optimizer.lr (now {self.recipe.optimizer.lr:g}) and train again"
            )

    def _save(self) -> None:
        with self.watch.of("writing"):
            self._note(self._late.rest())  # a step whose loss was not finite is never saved
            self.crew.check_whole()
            self._check_weights()
            self.state.peak_mb = max(self.state.peak_mb, peak_memory_mb())
            self.state.epoch_seconds = dict(self.watch.spent)
            save_checkpoint(self.folder / CHECKPOINTS, self.snapshot.take())
        self._saved_at = self._clock()
