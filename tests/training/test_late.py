"""Losses are read when they have come, in order, and nobody waits for a step that has just begun."""

import pytest
import torch

from ulna.training.late import LateNumbers

CPU = torch.device("cpu")


class Clock:
    """A device that has done so many steps; its events know which step they follow."""

    def __init__(self):
        self.done, self.asked, self.waited = 0, 0, []

    def event(self):
        return Mark(self)


class Mark:
    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.clock.asked += 1
        self.at = self.clock.asked

    def query(self):
        return self.at <= self.clock.done

    def synchronize(self):
        if not self.query():
            self.clock.waited.append(self.at)
            self.clock.done = self.at


def test_a_cpu_has_them_at_once():
    losses = LateNumbers(CPU)
    assert losses.add(torch.tensor(0.1)) == [(pytest.approx(0.1),)]
    assert losses.rest() == []


def test_a_device_that_is_behind_is_waited_for_after_as_many_steps_as_it_may_have_before_it():
    clock = Clock()
    losses = LateNumbers(CPU, ahead=2, event=clock.event)
    came = [losses.add(torch.tensor(float(step))) for step in range(5)]
    assert came == [[], [], [(0.0,)], [(1.0,)], [(2.0,)]]
    assert clock.waited == [1, 2, 3]  # each two steps later
    assert losses.rest() == [(3.0,), (4.0,)]


def test_what_has_come_is_given_without_waiting():
    clock = Clock()
    losses = LateNumbers(CPU, ahead=3, event=clock.event)
    assert losses.add(torch.tensor(1.0)) == []
    clock.done = 1
    assert losses.add(torch.tensor(2.0)) == [(1.0,)]
    clock.done = 2
    assert losses.add(torch.tensor(3.0)) == [(2.0,)]
    assert clock.waited == []


def test_a_loss_that_the_next_step_overwrites_was_read():
    loss, clock = torch.zeros(()), Clock()
    losses, read = LateNumbers(CPU, most=3, ahead=2, event=clock.event), []
    for step in range(7):
        loss.fill_(step)
        read += losses.add(loss, *((torch.tensor(0), torch.tensor(step)) if step < 2 else ()))
    assert read + losses.rest() == [(0.0, 0.0, 0.0), (1.0, 0.0, 1.0), *((float(step),) for step in range(2, 7))]
