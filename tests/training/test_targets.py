"""Targets that a loss would take for something else are refused at the start of a training."""

import pytest

from tests.training.tiny import TINY
from ulna.errors import UsageError
from ulna.training import loop as room
from ulna.training.train import train


def test_a_value_of_255_in_the_patches_of_a_training_is_refused_in_its_first_step(discs, tmp_path, monkeypatch):
    step, steps = room.Loop._step, []

    def marked(self, images, labels, number):
        steps.append(number)
        labels = labels.clone()
        labels[:, 0, 0] = 255
        return step(self, images, labels, number)

    monkeypatch.setattr(room.Loop, "_step", marked)
    with pytest.raises(UsageError, match="hold 255; this network knows 0 to 1"):
        train(discs, out=tmp_path / "run", model="unet", epochs=1, set=TINY)
    assert steps == [0]
