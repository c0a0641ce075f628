"""Cases side by side: order, errors in every stage, memory, and what a stop leaves."""

import json
import logging
import os
import signal
import threading

import numpy as np
import pytest
from PIL import Image

import ulna
from ulna.data.formats import write as writing
from ulna.data.layout.case import Case
from ulna.errors import Interrupted, PartialFailure, UsageError
from ulna.inference import making
from ulna.inference.pipeline import OneByOne, Pipeline
from ulna.inference.segmenter import Segmenter
from ulna.planning import memory
from ulna.system.outputs import PREDICT_FILE
from ulna.system.signals import Interruption, Stopped

LONG = 20  # seconds after which something hangs


@pytest.fixture
def side_by_side(monkeypatch):
    monkeypatch.setattr(making, "overlaps", lambda device: True)


def facts(folder):
    """predict.json, without the times."""
    found = json.loads((folder / PREDICT_FILE).read_text())
    for row in found["cases"]:
        row.pop("seconds")
    return found


@pytest.mark.parametrize("form", [Pipeline, OneByOne])
def test_items_are_read_and_written_in_order_and_errors_of_reading_come_with_their_item(form):
    said = []

    def read(number):
        said.append(f"read {number}")
        if number == 2:
            raise UsageError("two")
        return number * 10

    with Interruption() as interruption, form(read, interruption) as pipeline:
        for number in range(4):
            try:
                value = pipeline.take(number)
            except UsageError as error:
                said.append(str(error))
                continue
            pipeline.begin(number + 1)
            pipeline.put(lambda value=value: said.append(f"wrote {value}"))
    assert [one for one in said if one.startswith("wrote")] == ["wrote 0", "wrote 10", "wrote 30"]
    reads = [one for one in said if one.startswith("read")]
    assert reads[:4] == [f"read {number}" for number in range(4)]
    # the last one is wanted no more: it is not read where that had not begun
    assert reads[4:] in ([], ["read 4"] if form is Pipeline else [])
    assert said.count("two") == 1


def test_the_next_is_read_and_the_last_is_written_while_one_is_computed():
    """Every wait here would last for ever if the stages took turns."""
    reading, written = {n: threading.Event() for n in range(3)}, {n: threading.Event() for n in range(3)}
    computing = {n: threading.Event() for n in range(3)}

    def read(number):
        reading[number].set()
        return number

    def write(number):
        assert number == 2 or computing[number + 1].wait(LONG)
        written[number].set()

    with Interruption() as interruption, Pipeline(read, interruption) as pipeline:
        for number in range(3):
            pipeline.take(number)
            computing[number].set()
            if number < 2:
                pipeline.begin(number + 1)
                assert reading[number + 1].wait(LONG)
            pipeline.put(lambda number=number: write(number))
    assert all(event.is_set() for event in written.values())


def test_a_stop_waits_for_what_is_being_written_and_not_for_what_is_read():
    written, free = [], threading.Event()

    def read(number):
        if number == 1:
            free.wait(LONG)
        return number

    def write():
        signalled.wait(LONG)
        written.append(0)

    signalled = threading.Event()
    with pytest.raises(Stopped), Interruption() as interruption, Pipeline(read, interruption) as pipeline:
        pipeline.take(0)
        pipeline.begin(1)
        pipeline.put(write)
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            signalled.set()
    assert written == [0]
    free.set()


@pytest.mark.parametrize("probabilities", [False, True])
def test_side_by_side_gives_the_same_files_and_record(tmp_path, images, run, monkeypatch, probabilities):
    ulna.predict(run, images, out=tmp_path / "one by one", probabilities=probabilities)
    monkeypatch.setattr(making, "overlaps", lambda device: True)
    ulna.predict(run, images, out=tmp_path / "both", probabilities=probabilities)
    both, alone = ({path.name for path in (tmp_path / name).iterdir()} for name in ("both", "one by one"))
    assert both == alone
    for name in both - {PREDICT_FILE}:
        assert (tmp_path / "both" / name).read_bytes() == (tmp_path / "one by one" / name).read_bytes()
    assert facts(tmp_path / "both") == facts(tmp_path / "one by one")


def test_the_rows_of_an_npz_go_side_by_side_too(tmp_path, run, side_by_side):
    values = np.random.default_rng(0).normal(size=(3, 24, 32)).astype(np.float32)
    np.savez(tmp_path / "x.npz", images=values)
    ulna.predict(run, tmp_path / "x.npz", out=tmp_path / "masks")
    with np.load(tmp_path / "masks" / "x.npz") as made:
        masks = next(array for array in made.values() if array.ndim == 3)
    assert np.array_equal(masks[1], ulna.load(run)(values[1]).mask)


def test_cases_that_fail_in_any_stage_are_told_in_their_order_and_cost_themselves_alone(
    tmp_path, images, run, monkeypatch
):
    """The reader meets b before a is written; the writer fails at c, which d has overtaken by then."""
    (images / "b.png").write_bytes((images / "b.png").read_bytes()[:60])
    (images / "e.png").write_bytes((images / "a.png").read_bytes())
    write, mask = writing.write_png, Segmenter.mask

    def fails(path, *content):
        if path.name.endswith("c.png"):
            raise OSError(36, "File name too long")
        write(path, *content)

    def computes(self, volume):
        if volume.path.stem == "d":
            raise KeyError("x")
        return mask(self, volume)

    monkeypatch.setattr(writing, "write_png", fails)
    monkeypatch.setattr(Segmenter, "mask", computes)
    found = {}
    for name, together in (("one by one", False), ("both", True)):
        monkeypatch.setattr(making, "overlaps", lambda device, together=together: together)
        with pytest.raises(PartialFailure) as failure:
            ulna.predict(run, images, out=tmp_path / name)
        found[name] = {case: why.replace(str(tmp_path / name), "OUT") for case, why in failure.value.failed.items()}
        assert list(json.loads((tmp_path / name / PREDICT_FILE).read_text())["failed"]) == [*"bcd"]
        assert {path.name for path in (tmp_path / name).glob("*.png")} == {"a.png", "e.png"}
    assert list(found["both"].items()) == list(found["one by one"].items())


def test_where_nothing_can_be_written_what_is_left_is_not_begun(tmp_path, images, run, monkeypatch, side_by_side):
    (images / "e.png").write_bytes((images / "a.png").read_bytes())
    write, segmented, mask = writing.write_png, [], Segmenter.mask

    def full(path, *content):
        if path.name.endswith("b.png"):
            raise OSError(28, "No space left on device")
        write(path, *content)

    def noted(self, volume):
        segmented.append(volume.path.stem)
        return mask(self, volume)

    monkeypatch.setattr(writing, "write_png", full)
    monkeypatch.setattr(Segmenter, "mask", noted)
    with pytest.raises(PartialFailure) as failure:
        ulna.predict(run, images, out=tmp_path / "masks")
    assert list(failure.value.failed) == [*"bcde"]
    assert segmented in ([*"ab"], [*"abc"])  # c was under way
    assert all("not begun" in failure.value.failed[case] for case in "cde")
    assert [path.name for path in (tmp_path / "masks").glob("*.png")] == ["a.png"]


def test_a_stop_leaves_whole_files_and_a_record_of_them(tmp_path, images, run, monkeypatch, side_by_side):
    mask = Segmenter.mask

    def stopped(self, volume):
        if volume.path.stem == "c":
            os.kill(os.getpid(), signal.SIGINT)
        return mask(self, volume)

    monkeypatch.setattr(Segmenter, "mask", stopped)
    with pytest.raises(Interrupted, match="2 of 4 cases are done"):
        ulna.predict(run, images, out=tmp_path / "masks")
    assert [row["case"] for row in facts(tmp_path / "masks")["cases"]] == ["a", "b"]
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {"a.png", "b.png", PREDICT_FILE}
    monkeypatch.setattr(Segmenter, "mask", mask)
    assert ulna.predict(run, images, out=tmp_path / "masks").skipped == ("a", "b")
    for name in "abcd":
        with Image.open(tmp_path / "masks" / f"{name}.png") as image:
            assert np.asarray(image).shape == (24, 32)


@pytest.mark.parametrize("fits", [True, False])
def test_the_next_is_read_ahead_only_where_the_memory_holds_both(
    tmp_path, images, run, monkeypatch, side_by_side, fits
):
    segmenter, order = ulna.load(run), []
    volume = segmenter._volume(images / "a.png")
    monkeypatch.setattr(memory, "program_bytes", lambda: 0.0)
    need = segmenter.forecast(volume, probabilities=False).total
    room = need + (10 if fits else 1.9) * volume.array.nbytes
    monkeypatch.setattr(memory, "memory", lambda: room)
    read, mask, began = Case.read_image, Segmenter.mask, {name: threading.Event() for name in "abcd"}

    def reads(case):
        order.append(f"read {case.id}")
        began[case.id].set()
        return read(case)

    def computes(self, volume):
        if fits and volume.path.stem != "d":
            assert began[chr(ord(volume.path.stem) + 1)].wait(LONG)
        order.append(f"computed {volume.path.stem}")
        return mask(self, volume)

    monkeypatch.setattr(Case, "read_image", reads)
    monkeypatch.setattr(Segmenter, "mask", computes)
    ulna.predict(run, images, out=tmp_path / "masks")
    assert (order.index("read b") < order.index("computed a")) == fits
    if not fits:
        assert order == [f"{what} {name}" for name in "abcd" for what in ("read", "computed")]


def test_what_is_noted_of_cases_comes_in_their_order(tmp_path, images, run, caplog, side_by_side):
    caplog.set_level(logging.DEBUG, "ulna.inference.making")
    ulna.predict(run, images, out=tmp_path / "masks")
    told = [record.message for record in caplog.records if "of memory" in record.message]
    assert [text[0] for text in told] == [*"abcd"]
