"""The picture of a training under way: the first epoch at once, then not at every one, and all of them at the end."""

import pytest

from ulna.evaluation import figures
from ulna.training import tracking
from ulna.training.state import State
from ulna.training.tracking import Curves


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Curves of a run, what was drawn of them, and a clock that is set by hand."""
    found, clock = [], [100.0]
    monkeypatch.setattr(
        figures, "curves", lambda rows, path, *, monitor: found.append((len(rows), rows[-1]["val_dice"]))
    )
    monkeypatch.setattr(tracking.time, "monotonic", lambda: clock[0])
    return Curves(tmp_path), found, clock


def state_of(*dice):
    state = State()
    state.rows = [{"epoch": float(n), "val_dice": value} for n, value in enumerate(dice, start=1)]
    return state


def test_they_are_drawn_now_and_then_and_at_the_end(drawn):
    curves, found, clock = drawn
    curves.draw(state_of(0.1))
    clock[0] += Curves.PAUSE_S / 2
    curves.draw(state_of(0.1, 0.2))
    assert found == [(1, 0.1)]
    clock[0] += Curves.PAUSE_S / 2
    curves.draw(state_of(0.1, 0.2, 0.3))
    curves.draw(state_of(0.1, 0.2, 0.3, 0.4))
    curves.draw(state_of(0.1, 0.2, 0.3, 0.4), ended=True)
    assert found == [(1, 0.1), (3, 0.3), (4, 0.4)]


def test_what_is_drawn_already_is_not_drawn_again_but_a_late_validation_is(drawn):
    curves, found, _ = drawn
    state = state_of(None)
    curves.draw(state)
    curves.draw(state, ended=True)
    assert found == [(1, None)]
    state.rows[-1]["val_dice"] = 0.7  # the last epoch is validated once the training is over
    curves.draw(state, ended=True)
    assert found == [(1, None), (1, 0.7)]


def test_nothing_is_drawn_of_a_training_without_an_epoch(drawn):
    curves, found, _ = drawn
    curves.draw(state_of(), ended=True)
    assert not found
