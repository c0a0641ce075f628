"""A step that is recorded and repeated does what plain steps do: proved on a CPU by noting torch's operations."""

import logging
from functools import partial

import pytest
import torch

from tests.recording import Notes, Watched
from tests.training.tiny import TINY, rows_of
from ulna.errors import UsageError
from ulna.losses import make_loss
from ulna.networks.build import build
from ulna.recipe import Optimizer
from ulna.system.files import read_tensors
from ulna.training import loop as room
from ulna.training.checkpoint import load_checkpoint
from ulna.training.late import LateNumbers
from ulna.training.optimizers import make_optimizer, set_lr
from ulna.training.replay import WARM_UP
from ulna.training.step import Step, bounded
from ulna.training.train import train

SIZE = (16, 24)
NETWORKS = {
    "batch norm and dropout": ("unet", {"conv": {"kind": "double_conv", "options": {"dropout": 0.2}}}),
    "several heads": ("unetpp", {}),
    "instance norm": ("nnunet", {}),
    "sweeps": ("sdnu_net", {}),
    "points": ("implicit_unet", {"head": {"kind": "points", "options": {"width": 16, "depth": 2}}}),
}


def batches(count, points):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.randn(2, 1, *SIZE, generator=generator).contiguous(memory_format=torch.channels_last)
        labels = (torch.rand(2, *SIZE, generator=generator) < 0.4).to(torch.uint8)
        some = torch.stack([torch.randint(n, (2, 40), generator=generator) for n in SIZE], dim=-1)
        yield images, labels, some if points else None


class Trained:
    """So many steps of a small network; what it has become, and its losses."""

    def __init__(self, name, *, recorder, steps=14, accumulate=1, kind="adam", precision="fp32", clip=0.5, group=None):
        model, changes = NETWORKS[name]
        torch.manual_seed(7)
        network = build(model, channels=(4, 6, 8), **changes).to(memory_format=torch.channels_last)
        optimizer = make_optimizer(Optimizer(kind=kind, momentum=0.9), network.parameters(), recorded=True)
        self.network, self.optimizer = network, optimizer
        self.recorder = recorder(self.tensors) if recorder else None
        loss = make_loss("dice_ce", heads="equal", multilabel=False)
        step = Step(
            network, loss, optimizer, precision=precision, accumulate=accumulate, clip=clip, recorder=self.recorder
        )
        late = LateNumbers(torch.device("cpu"))
        self.losses, self.settled = [], []
        for number, batch in enumerate(batches(steps, network.head.sparse)):
            set_lr(optimizer, 1e-2 * (1 + number % 5))
            with Watched():
                self.losses += late.add(
                    step(*batch, update=(number + 1) % (group or accumulate) == 0 or number + 1 == steps)
                )
            self.settled.append(step.settled)

    def tensors(self):
        moments = [t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)]
        weights = [*self.network.parameters()]
        return [*weights, *self.network.buffers(), *(p.grad for p in weights if p.grad is not None), *moments]


def same(one, two):
    assert one.losses == two.losses
    for a, b in zip(one.network.state_dict().items(), two.network.state_dict().items(), strict=True):
        assert torch.equal(a[1], b[1]), a[0]
    for a, b in zip(one.optimizer.state.values(), two.optimizer.state.values(), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.share(2)
def test_repeated_steps_are_plain_steps(name):
    """New inputs, another rate, dropout, running statistics, moments: to the bit."""
    plain, repeated = Trained(name, recorder=None), Trained(name, recorder=Notes)
    same(plain, repeated)
    notes = repeated.recorder
    assert (notes.ran, notes.recorded, notes.replayed) == (WARM_UP, 1, 14 - WARM_UP)  # no step more, none twice
    assert repeated.settled == [False] * WARM_UP + [True] * (14 - WARM_UP)
    assert all(plain.settled)


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.share(3)
def test_repeated_updates_of_gradients_that_were_added_up(kind, clip):
    options = {"accumulate": 3, "steps": 20, "kind": kind, "clip": clip}
    plain, repeated = (Trained("batch norm and dropout", recorder=r, **options) for r in (None, Notes))
    same(plain, repeated)
    # six groups of three and one of two: one recording of batches alone, one of those with an update
    assert (repeated.recorder.recorded, repeated.recorder.ran) == (2, 2 * WARM_UP)
    # steps take as long as they will only where both are recorded: with the fourth update
    assert repeated.settled == [False] * 11 + [True] * 9


def test_repeated_steps_in_bf16():
    plain, repeated = (Trained("several heads", recorder=r, precision="bf16") for r in (None, Notes))
    same(plain, repeated)


class Refuses(Notes):
    def record(self, work):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand more")


def test_steps_go_on_one_by_one_where_no_graph_can_be_made(caplog):
    with caplog.at_level(logging.INFO, logger="ulna"):
        repeated = Trained("several heads", recorder=Refuses)
    same(Trained("several heads", recorder=None), repeated)
    (line,) = [record.getMessage() for record in caplog.records]
    assert "steps go one by one" in line and "not permitted" in line and "\n" not in line
    assert repeated.settled[WARM_UP:] == [True] * (14 - WARM_UP)


def test_a_batch_of_another_shape_is_not_repeated():
    network = build("nnunet", channels=(4, 6))
    optimizer = make_optimizer(Optimizer(kind="sgd"), network.parameters(), recorded=True)
    notes = Notes(lambda: [*network.parameters()])
    step = Step(network, make_loss("dice_ce", multilabel=False), optimizer, precision="fp32", recorder=notes)
    for size in (*[(16, 16)] * (WARM_UP + 1), (16, 24), (16, 16)):
        step(torch.randn(1, 1, *size), torch.zeros(1, *size, dtype=torch.uint8))
    assert (notes.recorded, notes.ran, notes.replayed) == (1, WARM_UP + 1, 2)


def test_what_waits_for_the_device_cannot_be_recorded():
    """The double refuses what a graph refuses; else it would show nothing."""
    x = torch.ones(3)
    notes = Notes(lambda: [])
    with pytest.raises(RuntimeError, match="not permitted"):
        notes.record(lambda: x.sum().item())
    replay = notes.record(lambda: x.mul_(3.0))
    assert x.tolist() != [1.0] * 3  # what it is not told of, it changes
    replay()
    assert x.tolist() == [9.0] * 3


def test_labels_are_held_to_the_classes_and_their_extremes_are_told():
    labels = torch.tensor([[0, 1], [255, 2]], dtype=torch.uint8)
    held, (low, high) = bounded(labels, 2)
    assert (held.tolist(), held.dtype, int(low), int(high)) == ([[0, 1], [2, 2]], torch.uint8, 0, 255)


class NeverSooner:
    """The event of a device that is always behind."""

    def record(self): ...

    def query(self):
        return False

    def synchronize(self): ...


@pytest.fixture
def late(monkeypatch):
    monkeypatch.setattr(room, "LateNumbers", partial(LateNumbers, ahead=2, event=NeverSooner))


OPTIONS = {"model": "unet", "epochs": 2, "set": (*TINY, "architecture.conv.double_conv.dropout=0.2")}


@pytest.mark.slow
def test_losses_that_are_read_late_change_nothing(discs, tmp_path, request):
    soon = train(discs, out=tmp_path / "soon", **OPTIONS)
    request.getfixturevalue("late")
    behind = train(discs, out=tmp_path / "late", **OPTIONS)
    one, two = (load_checkpoint(run.folder / "checkpoints") for run in (soon, behind))
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert rows_of(soon.folder) == rows_of(behind.folder)


@pytest.mark.parametrize("at", [2, 3])  # in the middle of an epoch of four steps, and at its end
def test_a_loss_that_is_not_finite_is_named_by_its_own_step_and_nothing_of_it_is_saved(
    discs, tmp_path, monkeypatch, late, at
):
    plain = Step.__call__

    def poisoned(step, images, labels, points=None, *, update=True):
        poisoned.calls += 1
        loss = plain(step, images, labels, points, update=update)
        return loss * float("inf") if poisoned.calls == 5 + at else loss

    poisoned.calls = 0
    monkeypatch.setattr(Step, "__call__", poisoned)
    with pytest.raises(UsageError, match=rf"the loss became inf in epoch 2, step {at + 1}; lower optimizer\.lr"):
        train(discs, out=tmp_path / "run", **OPTIONS)
    saved = load_checkpoint(tmp_path / "run" / "checkpoints").state["loop"]
    assert (saved["epoch"], saved["step"] <= at, len(saved["losses"])) == (1, True, saved["step"])
    assert read_tensors(tmp_path / "run" / "weights.safetensors").state["epoch"] == 1


def test_labels_on_a_device_are_named_late_too(discs, tmp_path, monkeypatch, late):
    step = room.Loop._step

    def marked(self, images, labels, number):
        labels = labels.clone()
        labels[:, 0, 0] = 255 if number == 1 else 0
        return step(self, images, labels, number)

    monkeypatch.setattr(room.Loop, "_step", marked)
    monkeypatch.setattr(room.Loop, "_checked", lambda self, labels: bounded(labels, 1))  # as there
    with pytest.raises(UsageError, match="hold 255; this network knows 0 to 1"):
        train(discs, out=tmp_path / "run", **OPTIONS)
