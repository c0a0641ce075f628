"""A loss whose weights depend on the epoch: the schedules of the boundary loss, in a training and in one that goes on."""

import pytest
import torch

from tests.losses import literal
from tests.training.tiny import TINY, rows_of
from ulna.errors import UsageError
from ulna.losses import make_loss
from ulna.training import single as room
from ulna.training.checkpoint import load_checkpoint
from ulna.training.train import train


@pytest.mark.parametrize("targets", ["binary", "classes", "multilabel"])
@pytest.mark.parametrize("schedule", ["increase", "rebalance"])
def test_every_epoch_has_its_weights(schedule, targets):
    z, target = literal.sample(targets)
    multilabel = targets == "multilabel"
    dice, boundary = (of(z, target, multilabel) for of in (literal.generalised_dice, literal.boundary))
    options = {"schedule": schedule, "boundary": 0.25, "growth": 0.125, "most": 0.75, "dice": 2.0}
    loss = make_loss("boundary", options=options, multilabel=multilabel)
    for epoch, alpha in [(0, 0.25), (1, 0.375), (3, 0.625), (4, 0.75), (100, 0.75), (1, 0.375)]:
        loss.begin_epoch(epoch)
        rest = 1 - alpha if schedule == "rebalance" else 1
        found = loss.criterion(torch.tensor(z), torch.tensor(target)).item()
        assert found == pytest.approx(rest * 2 * dice + alpha * boundary, abs=1e-9), epoch


def test_the_weights_of_the_paper_are_those_without_options():
    loss = make_loss("boundary", options={"schedule": "rebalance"}, multilabel=False)
    alphas = []
    for epoch in (0, 1, 49, 98, 500):
        loss.begin_epoch(epoch)
        alphas.append(loss.criterion.alpha.item())
    assert alphas == pytest.approx([0.01, 0.02, 0.5, 0.99, 0.99])


def test_a_schedule_without_meaning_is_refused():
    for options, said in (
        ({"schedule": "rebalanced"}, "did you mean 'rebalance'"),
        ({"schedule": "rebalance", "most": 1.5}, "which is at most 1; got growth=0.01, boundary=0.01, most=1.5"),
        ({"schedule": "increase", "growth": -1}, "growth is 0 or more"),
        ({"schedule": "increase", "boundary": 2.0}, "boundary at most `most`"),
    ):
        with pytest.raises(UsageError, match=said):
            make_loss("boundary", options=options, multilabel=False)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_training_that_goes_on_has_the_weights_of_its_epoch(discs, tmp_path, monkeypatch):
    changes = (*TINY, "loss.kind=boundary", "loss.options={schedule: rebalance, growth: 0.3, boundary: 0.1}")
    options = {"model": "unet", "epochs": 3, "set": changes}
    whole, part = train(discs, out=tmp_path / "whole", **options), tmp_path / "part"
    record = room.record_epoch

    def killed_after_one(folder, state, *rest):
        record(folder, state, *rest)
        if state.epoch == 1:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(room, "record_epoch", killed_after_one)
        train(discs, out=part, **options)
    train(discs, out=part, resume=True)
    a, b = load_checkpoint(whole.folder / "checkpoints"), load_checkpoint(part / "checkpoints")
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    losses = [float(row["train_loss"]) for row in rows_of(whole.folder)]
    assert losses == [float(row["train_loss"]) for row in rows_of(part)]
    constant = [*changes[:-1], "loss.options={boundary: 0.1, dice: 0.9}"]
    other = [
        float(row["train_loss"])
        for row in rows_of(train(discs, out=tmp_path / "c", **{**options, "set": constant}).folder)
    ]
    assert losses[0] == pytest.approx(other[0], rel=1e-4) and losses[1] != pytest.approx(other[1], rel=1e-2)
