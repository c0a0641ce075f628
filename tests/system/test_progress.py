"""Bars: told to a listener, drawn within each other, and lines for what other processes do."""

import io
import json
import re

import pytest

from ulna.system import progress as room
from ulna.system.progress import Standing, bar, board, report_to, track
from ulna.system.telling import EVERY_S, Teller, read_standing


@pytest.fixture
def told():
    heard = []
    report_to(heard.append)
    yield heard
    report_to(None)


@pytest.fixture
def terminal(monkeypatch):
    """Makes standard error a terminal as wide as a wall; what was written on it."""

    class Screen(io.StringIO):
        def isatty(self):
            return True

    def begin():  # within the test: around it, what captures output puts its own there
        screen = Screen()
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(room.sys, "stderr", screen)
        monkeypatch.setattr(room, "_quiet", False)
        return screen

    return begin


def test_a_listener_hears_every_step_of_every_bar(told):
    with bar("epoch 1/2", 3) as advance:
        advance(2, note="loss 1")
        assert list(track("ab", "validating")) == ["a", "b"]
        advance()
    assert told == [
        Standing("epoch 1/2", 0, 3),
        Standing("epoch 1/2", 2, 3, "loss 1"),
        Standing("validating", 0, 2),
        Standing("validating", 1, 2),
        Standing("validating", 2, 2),
        Standing("epoch 1/2", 3, 3),
    ]


def test_bars_within_each_other_are_drawn_together(terminal):
    screen = terminal()
    with bar("outer", 2), bar("inner", 2) as advance:
        advance(note="[bold] is no markup")
        room._shared.refresh()
    shown = screen.getvalue()
    assert "outer" in shown and "inner" in shown and "[bold] is no markup" in shown
    assert room._shared is None


def test_bars_fit_a_narrow_terminal(terminal, monkeypatch):
    screen = terminal()
    monkeypatch.setenv("COLUMNS", "80")
    with bar("predicting", 3), bar("windows of a case", 40) as advance:
        advance(7, note="about 3 minutes left of the whole")
        room._shared.refresh()
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()).replace("\r", "\n").split("\n")
    assert any("windows of a case" in line and "7/40" in line for line in drawn)
    assert all(len(line) <= 80 for line in drawn)


def test_a_line_of_the_log_takes_the_place_of_the_bar(terminal):
    screen = terminal()
    with bar("epoch 1", 3) as advance:
        advance(note="loss 1")
        room._shared.refresh()
        room.console().print("note: the limit ends", markup=False)
    assert re.search(r"\x1b\[2Knote: the limit ends", screen.getvalue())


def test_a_slow_step_still_tells_the_time_that_is_left(terminal):
    terminal()
    clock = [0.0]
    with bar("predicting", 4) as advance:
        drawn = room._shared
        drawn.get_time = drawn.tasks[0]._get_time = lambda: clock[0]
        for second in (60.0, 120.0, 180.0):
            clock[0] = second
            advance()
        assert drawn.tasks[0].time_remaining == 60


def test_a_board_shows_what_is_under_way_below_what_is_done(terminal):
    screen = terminal()
    with board("trainings", 4) as shown:
        shown.advance(1)
        shown.show("unet seed 0", Standing("epoch 3", 12, 20, "loss 0.1, at most 5 min left"))
        shown.show("nnunet seed 0", Standing("validating epoch 1", 0, 0))
        room._shared.refresh()
        assert [task.description for task in room._shared.tasks] == [
            "trainings", "  unet seed 0: epoch 3", "  nnunet seed 0: validating epoch 1",
        ]  # fmt: skip
        shown.show("unet seed 0", Standing("epoch 4", 0, 20))
        shown.drop("nnunet seed 0")
        shown.drop("nobody")
        assert [task.description for task in room._shared.tasks] == ["trainings", "  unet seed 0: epoch 4"]
    assert "at most 5 min left" in screen.getvalue()


def test_a_board_where_nobody_looks_draws_nothing(capsys):
    with board("trainings", 4) as shown:
        shown.advance()
        shown.show("a", Standing("epoch 3"))
        shown.drop("a")
        assert not shown.seen
    assert capsys.readouterr().err == ""


def test_a_teller_writes_now_and_then_and_another_bar_at_once(tmp_path):
    now, file = 0.0, tmp_path / "run.now"
    tell = Teller(file, lambda: now)
    tell(Standing("epoch 1", 1, 9))
    tell(Standing("epoch 1", 2, 9))
    assert read_standing(file) == Standing("epoch 1", 1, 9)
    now += EVERY_S
    tell(Standing("epoch 1", 3, 9, "loss"))
    assert read_standing(file) == Standing("epoch 1", 3, 9, "loss")
    tell(Standing("validating", 0, 2))
    assert read_standing(file).what == "validating"
    assert [path.name for path in tmp_path.iterdir()] == ["run.now"]


def test_a_teller_that_cannot_write_stops_no_work(tmp_path):
    Teller(tmp_path / "absent" / "run.now")(Standing("epoch 1"))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"what": 1}', '{"what": "a", "done": "x", "total": 1, "note": ""}', "\x00"]
)
def test_what_is_no_standing_is_none(tmp_path, text):
    (tmp_path / "run.now").write_text(text)
    assert read_standing(tmp_path / "run.now") is None
    assert read_standing(tmp_path / "absent") is None


def test_a_standing_cannot_move_the_cursor(tmp_path):
    (tmp_path / "a").write_text(json.dumps({"what": "\x1b[2J", "done": -4, "total": 3, "note": "\n"}))
    assert read_standing(tmp_path / "a") == Standing("\\x1b[2J", 0, 3, "\\n")
