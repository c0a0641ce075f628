"""Bars as a person sees them in a terminal."""

import io
import itertools
import re

from ulna.system import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def look_at(monkeypatch):
    """Standard error as a terminal of 80 columns."""
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    progress.quiet(False)
    return screen


def lines(screen):
    """All lines that were drawn, without colours and movements."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n").split("\n")


def test_a_bar_within_a_bar_stands_below_it(monkeypatch):
    terminal = look_at(monkeypatch)
    with progress.bar("predicting", 3) as cases:
        cases()
        with progress.bar("windows", 40) as windows:
            windows(7)
            progress._shared.refresh()
        cases()
    drawn = lines(terminal)
    below = [after for before, after in itertools.pairwise(drawn) if "predicting" in before and "1/3" in before]
    assert any("windows" in line and "7/40" in line for line in below)
    assert all(len(line) <= 80 for line in drawn)
    assert progress._shared is None


def test_a_slow_step_still_tells_the_time_that_is_left(monkeypatch):
    look_at(monkeypatch)
    clock = [0.0]
    with progress.bar("predicting", 4) as advance:
        drawn = progress._shared
        drawn.get_time = drawn.tasks[0]._get_time = lambda: clock[0]
        for second in (60.0, 120.0, 180.0):
            clock[0] = second
            advance()
        assert drawn.tasks[0].time_remaining == 60


def test_nothing_is_drawn_where_nobody_looks(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    with progress.bar("predicting", 3) as advance:
        advance()
    assert not screen.getvalue() and progress._shared is None
