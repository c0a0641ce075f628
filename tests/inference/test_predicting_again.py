"""`predict` into a folder that holds something: what is skipped, redone, refused; and what `evaluate` makes of it."""

import json
import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import pytest
from PIL import Image

import ulna
from tests.inference.test_predict import run_folder
from ulna.cli import main as cli
from ulna.data.layout.case import Case
from ulna.data.layout.record import Record
from ulna.errors import Interrupted, PartialFailure, UsageError
from ulna.evaluation.evaluate import evaluate
from ulna.inference import cases as predicting
from ulna.inference import pending
from ulna.inference import runs as reading
from ulna.inference.segmenter import Segmenter
from ulna.recipe import Labels, Split
from ulna.system.locking import LOCK
from ulna.system.outputs import JOURNAL, PREDICT_FILE


@pytest.fixture
def segmented(monkeypatch):
    """The names of the images that were really predicted."""
    seen, mask = [], Segmenter.mask

    def noted(self, volume):
        seen.append(volume.path.stem)
        return mask(self, volume)

    monkeypatch.setattr(Segmenter, "mask", noted)
    return seen


def facts(folder):
    return json.loads((folder / PREDICT_FILE).read_text())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_second_call_does_nothing_and_a_third_what_is_missing(tmp_path, images, run, segmented):
    out = tmp_path / "masks"
    ulna.predict(run, images, out=out)
    before = contents(out)
    again = ulna.predict(run, images, out=out)
    assert again.skipped == tuple("abcd")
    assert contents(out) == before
    (out / "c.png").unlink()
    shutil.copy(images / "a.png", images / "e.png")
    assert ulna.predict(run, images, out=out).skipped == tuple("abd")
    assert segmented == [*"abcd", *"ce"]
    assert [row["case"] for row in facts(out)["cases"]] == [*"abcde"]
    assert {name: data for name, data in contents(out).items() if name in before and name != PREDICT_FILE} == {
        name: data for name, data in before.items() if name != PREDICT_FILE
    }


@pytest.mark.parametrize("changed", ["weights", "option", "image"])
def test_what_was_made_otherwise_is_redone_with_overwrite_only(tmp_path, images, run, segmented, changed):
    out, options = tmp_path / "masks", {}
    ulna.predict(run, images, out=out)
    before = contents(out)
    if changed == "weights":
        shutil.rmtree(run)
        run_folder(run, 1)
    elif changed == "option":
        options = {"tta": True}
    else:
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(images / "b.png")
    stale = ["b"] if changed == "image" else [*"abcd"]
    segmented.clear()
    what = {"weights": "another run", "option": "other options", "image": "another image"}[changed]
    words = f"  {', '.join(f'{name}.png' for name in stale)}: of {what}; --overwrite predicts again"
    with pytest.raises(UsageError, match=re.escape(words)):
        ulna.predict(run, images, out=out, **options)
    assert segmented == []
    assert contents(out) == before
    ulna.predict(run, images, out=out, overwrite=True, **options)
    assert segmented == stale
    segmented.clear()
    ulna.predict(run, images, out=out, **options)
    assert segmented == []


def test_nothing_that_ulna_did_not_write_is_replaced_not_even_with_overwrite(tmp_path, images, run, segmented):
    out = tmp_path / "masks"
    ulna.predict(run, images, out=out)
    theirs = tmp_path / "theirs.png"
    theirs.write_bytes(b"a reference")
    (out / "a.png").write_bytes(b"corrected by hand")
    for name, link in (("b.png", os.symlink), ("c.png", os.link)):
        (out / name).unlink()
        link(theirs, out / name)
    (out / "d.png").unlink()
    (out / "d.png").mkdir()
    segmented.clear()
    before = contents(out)
    for overwrite in (False, True):
        with pytest.raises(
            UsageError, match=r"nothing was predicted\n  a.png, b.png, c.png, d.png: not written by ulna"
        ):
            ulna.predict(run, images, out=out, overwrite=overwrite)
    assert (segmented, contents(out), theirs.read_bytes()) == ([], before, b"a reference")


@pytest.mark.parametrize("where", ["labels", "images", ".", "../data/labels", "link"])
def test_the_references_survive_whatever_the_path(tmp_path, images, run, where):
    data = tmp_path / "data"
    images.rename((data / "images").parent.mkdir() or data / "images")
    shutil.copytree(data / "images", data / "labels")
    (data / "link").symlink_to(data / "labels")
    before = {path: path.read_bytes() for path in data.rglob("*.png")}
    for source in (data, data / "images"):
        for overwrite in (False, True):
            with pytest.raises(UsageError, match="choose another --out"):
                ulna.predict(run, source, out=data / where, overwrite=overwrite)
    assert {path: path.read_bytes() for path in data.rglob("*.png")} == before
    assert not list(data.rglob(PREDICT_FILE))


def test_two_cases_whose_files_have_one_name_are_refused(tmp_path, images, run, monkeypatch):
    shutil.copy(images / "a.png", images / "A.png")
    monkeypatch.setattr(pending, "ignores_case", lambda folder: True)
    with pytest.raises(UsageError, match=r"A.png of case A and a.png of case a"):
        ulna.predict(run, images, out=tmp_path / "masks")
    monkeypatch.setattr(pending, "ignores_case", lambda folder: False)
    assert len(ulna.predict(run, images, out=tmp_path / "masks").cases) == 5


def test_a_mask_and_the_probabilities_of_another_case_do_not_share_a_name(tmp_path):
    run = run_folder(tmp_path / "run", 0, spatial_dims=2)
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("a", "a_probabilities"):
        nibabel.save(nibabel.Nifti1Image(np.zeros((16, 16), np.float32), np.eye(4)), folder / f"{name}.nii.gz")
    with pytest.raises(UsageError, match=r"a_probabilities.nii.gz of case a and a_probabilities.nii.gz of case a_prob"):
        ulna.predict(run, folder, out=tmp_path / "masks", probabilities=True)


def test_masks_of_an_earlier_call_are_known_but_not_scored(tmp_path, images, run, caplog):
    """Two batches into one folder: the newest is what `evaluate` scores; the first is still ulna's own."""
    out, more = tmp_path / "masks", tmp_path / "more"
    more.mkdir()
    shutil.copy(images / "a.png", more / "z.png")
    ulna.predict(run, images, out=out)
    ulna.predict(run, more, out=out)
    assert [entry["case"] for entry in facts(out)["earlier"]] == [*"abcd"]
    assert ulna.predict(run, images, out=out).skipped == tuple("abcd")
    scores = evaluate(out, references(tmp_path / "references", "abcdz"))
    assert scores.summary["cases"] == 4
    assert scores.summary["not_listed"] == ["z.png"]
    assert "z.png" in caplog.text


def references(folder, names):
    folder.mkdir()
    for name in names:
        mask = np.zeros((24, 32), np.uint8)
        mask[4:12, 4:12] = 1
        Image.fromarray(mask).save(folder / f"{name}.png")
    return folder


def test_a_stale_mask_counts_as_missing_and_a_stray_one_is_named(tmp_path, images, run):
    out = tmp_path / "masks"
    ulna.predict(run, images, out=out)
    (images / "c.png").write_bytes((images / "c.png").read_bytes()[:-40])
    shutil.copy(out / "a.png", out / "stray.png")
    with pytest.raises(PartialFailure):
        ulna.predict(run_folder(tmp_path / "other", 1), images, out=out, overwrite=True)
    scores = evaluate(out, references(tmp_path / "references", ["a", "b", "c", "d", "stray"]))
    assert scores.summary["missing"] == ["c"]
    assert sorted(scores.summary["not_listed"]) == ["c.png", "stray.png"]
    assert [row["dice"] for row in scores.rows if row["case"] == "c"] == [0.0]
    assert "stray" not in {row["case"] for row in scores.rows}


def test_masks_that_were_changed_since_are_scored_and_said(tmp_path, images, run):
    out, truth = tmp_path / "masks", references(tmp_path / "references", "abcd")
    ulna.predict(run, images, out=out)
    shutil.copy(truth / "b.png", out / "b.png")
    scores = evaluate(out, truth)
    assert scores.summary["changed"] == ["b"]
    assert scores.case_dice("b") == 1.0


def test_a_folder_of_an_earlier_version_is_understood(tmp_path, images, run, segmented):
    out = tmp_path / "masks"
    ulna.predict(run, images, out=out)
    old = facts(out)
    rows = [{name: row[name] for name in ("case", "file", "size", "seconds")} for row in old["cases"]]
    kept = {name: old[name] for name in ("model", "runs", "level", "labels", "tta", "asked", "failed")}
    (out / PREDICT_FILE).write_text(json.dumps({**kept, "cases": rows}))
    segmented.clear()
    assert evaluate(out, references(tmp_path / "references", "abcd")).summary["cases"] == 4
    with pytest.raises(UsageError, match="an earlier version of ulna, which kept no digests"):
        ulna.predict(run, images, out=out)
    assert segmented == []
    ulna.predict(run, images, out=out, overwrite=True)
    assert ulna.predict(run, images, out=out).skipped == tuple("abcd")


BROKEN = [
    "{", "[]", '{"cases": 3}', '{"cases": [{}]}', '{"cases": [], "options": 3}',
    '{"cases": [{"case": "a", "file": "../a.png"}]}', '{"cases": [{"case": "a", "file": "a\\u0000.png"}]}',
    '{"cases": [{"case": "a", "file": ".."}]}', '{"cases": ' + "[" * 200_000,
    '{"cases": ' + "[" * 200_000 + "]" * 200_000 + "}", '{"cases": [], "asked": 5}', '{"cases": [], "asked": [["a"]]}',
    '{"cases": [{"case": "a", "file": "a.png", "seconds": 1' + "0" * 400 + "}]}",
]  # fmt: skip


@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_a_predict_json_of_others_is_refused(tmp_path, images, run, text):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / PREDICT_FILE).write_text(text)
    with pytest.raises(UsageError, match=r"predict\.json"):
        ulna.predict(run, images, out=tmp_path / "masks")
    with pytest.raises(UsageError, match=r"predict\.json"):
        evaluate(tmp_path / "masks", references(tmp_path / "references", "a"))
    assert (tmp_path / "masks" / PREDICT_FILE).read_text() == text


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path.parent / "theirs.json")])
def test_a_predict_json_that_is_no_plain_file_is_never_opened(tmp_path, images, run, make):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "theirs.json").write_text('{"cases": []}')
    make(tmp_path / "masks" / PREDICT_FILE)
    with pytest.raises(UsageError, match=r"predict\.json: is not what ulna predict writes"):
        ulna.predict(run, images, out=tmp_path / "masks")


@pytest.mark.parametrize(
    "line", ["[" * 200_000, "[5]", '[{"case": "a", "file": "a.png", "seconds": 1' + "0" * 400 + "}]"]
)
def test_lines_of_the_journal_that_say_nothing_are_passed_over(tmp_path, images, run, line):
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / JOURNAL).write_text(line)
    assert len(ulna.predict(run, images, out=tmp_path / "masks").cases) == 4


def arrays(path, count=4):
    np.savez(path, images=np.random.default_rng(0).integers(0, 255, (count, 24, 32), np.uint8))
    return path


def test_npz_outputs_are_skipped_completed_and_guarded(tmp_path, monkeypatch):
    split = Split(train=("x_0000", "x_0001"), val=("x_0002", "x_0003"))
    run, out, source = run_folder(tmp_path / "run", 0, split=split), tmp_path / "masks", arrays(tmp_path / "x.npz")
    seen, mask = [], Segmenter.mask
    monkeypatch.setattr(Segmenter, "mask", lambda self, volume: (seen.append(1), mask(self, volume))[1])
    ulna.predict(run, source, out=tmp_path / "whole")
    ulna.predict(run, source, out=out, split="val")
    assert len(seen) == 6
    ulna.predict(run, source, out=out)  # the rest joins what the file holds
    assert len(seen) == 8
    with np.load(out / "x.npz") as made, np.load(tmp_path / "whole" / "x.npz") as whole:
        at = [list(whole["ids"]).index(name) for name in made["ids"]]
        assert sorted(at) == [0, 1, 2, 3]
        assert np.array_equal(made["masks"], whole["masks"][at])
    assert len(ulna.predict(run, source, out=out).skipped) == 4
    (out / "x.npz").write_bytes(b"theirs")
    with pytest.raises(UsageError, match="not written by ulna"):
        ulna.predict(run, source, out=out, overwrite=True)
    assert (out / "x.npz").read_bytes() == b"theirs"
    with pytest.raises(UsageError, match="holds the images"):
        ulna.predict(run, source, out=tmp_path)


def test_rows_of_a_completed_npz_stand_in_the_order_of_the_images(tmp_path):
    """Ids as a person may give them: of which neither the alphabet nor a set keeps the order."""
    ids = ["kidney", "b", "liver", "a", "c", "spleen", "d", "e"]
    split = Split(train=("a", "spleen", "kidney", "e"), val=("c", "liver"))
    run, source = run_folder(tmp_path / "run", 0, split=split), tmp_path / "x.npz"
    np.savez(source, images=np.random.default_rng(0).integers(0, 255, (8, 24, 32), np.uint8), ids=ids)
    for split in ("train", "val", None):
        ulna.predict(run, source, out=tmp_path / "masks", split=split)
        with np.load(tmp_path / "masks" / "x.npz") as made:
            found = list(made["ids"])
        assert found == [name for name in ids if name in found]
    ulna.predict(run, source, out=tmp_path / "whole")
    assert (tmp_path / "masks" / "x.npz").read_bytes() == (tmp_path / "whole" / "x.npz").read_bytes()


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_an_npz_of_overlapping_classes_is_completed_also_of_one(tmp_path, names):
    split, labels = Split(train=("x_0000", "x_0001"), val=("x_0002",)), Labels(names=names, multilabel=True)
    run, source = run_folder(tmp_path / "run", 0, split=split, labels=labels), arrays(tmp_path / "x.npz", 3)
    ulna.predict(run, source, out=tmp_path / "whole")
    for part in ("val", None):
        ulna.predict(run, source, out=tmp_path / "masks", split=part)
    with np.load(tmp_path / "masks" / "x.npz") as made, np.load(tmp_path / "whole" / "x.npz") as whole:
        assert np.array_equal(made["masks"], whole["masks"])


def test_the_digest_of_an_npz_is_taken_once_and_before_it_is_read(tmp_path, run, monkeypatch):
    taken, digest, read = [], pending.file_digest, Case.read_image
    for room in (pending, reading):
        monkeypatch.setattr(room, "file_digest", lambda *paths: taken.extend(p.name for p in paths) or digest(*paths))
    monkeypatch.setattr(Case, "read_image", lambda case: taken.append("read") or read(case))
    ulna.predict(run, arrays(tmp_path / "x.npz"), out=tmp_path / "masks")
    assert [name for name in taken if name in ("x.npz", "read")] == ["x.npz", *["read"] * 4]


def test_an_image_that_changes_while_it_is_predicted_is_another_image(tmp_path, images, run, monkeypatch):
    """Its mask is of what was read; that it is of what stands there now may never be said."""
    read = Case.read_image

    def changed(case):
        volume = read(case)
        if case.id == "b":
            Image.fromarray(np.zeros((24, 32), np.uint8)).save(images / "b.png")
        return volume

    monkeypatch.setattr(Case, "read_image", changed)
    ulna.predict(run, images, out=tmp_path / "masks")
    with pytest.raises(UsageError, match=r"  b\.png: of another image"):
        ulna.predict(run, images, out=tmp_path / "masks")


@pytest.mark.parametrize("writes", [1, 99])
def test_masks_are_recorded_under_the_weights_that_made_them(tmp_path, images, run, monkeypatch, writes):
    """While a run is trained, its next epoch may be written between two reads."""
    read, left = reading.load, list(range(writes))

    def trained_on(runs, **options):
        segmenter = read(runs, **options)
        if left:
            shutil.rmtree(run)
            run_folder(run, 1 + left.pop())
        return segmenter

    monkeypatch.setattr(reading, "load", trained_on)
    if writes == 99:
        with pytest.raises(UsageError, match="changed while it was read; predict when its training has ended"):
            ulna.predict(run, images, out=tmp_path / "masks")
        assert len(left) == 96
        return
    ulna.predict(run, images, out=tmp_path / "masks")
    monkeypatch.setattr(reading, "load", read)
    ulna.predict(run, images, out=tmp_path / "expected")
    for name in "abcd":
        assert (tmp_path / "masks" / f"{name}.png").read_bytes() == (tmp_path / "expected" / f"{name}.png").read_bytes()
    assert facts(tmp_path / "masks")["digest"] == facts(tmp_path / "expected")["digest"]


def test_probabilities_are_guarded_as_masks_are(tmp_path, images, run):
    out = tmp_path / "predicted"
    out.mkdir()
    (out / "b_probabilities.npz").write_bytes(b"theirs")
    with pytest.raises(UsageError, match=r"b_probabilities.npz: not written by ulna"):
        ulna.predict(run, images, out=out, probabilities=True)
    (out / "b_probabilities.npz").unlink()
    ulna.predict(run, images, out=out, probabilities=True)
    assert ulna.predict(run, images, out=out, probabilities=True).skipped == tuple("abcd")
    (out / "b_probabilities.npz").unlink()
    assert ulna.predict(run, images, out=out, probabilities=True).skipped == tuple("acd")


def test_what_stands_up_during_the_work_is_not_replaced(tmp_path, images, run, monkeypatch):
    out, mask = tmp_path / "masks", Segmenter.mask

    def others_write(self, volume):
        if volume.path.stem == "b":
            (out / "b.png").write_bytes(b"theirs")
        return mask(self, volume)

    monkeypatch.setattr(Segmenter, "mask", others_write)
    with pytest.raises(
        PartialFailure, match=r"b\.png: already exists and was not written by ulna; move it and run the command again"
    ):
        ulna.predict(run, images, out=out)
    assert (out / "b.png").read_bytes() == b"theirs"


@pytest.mark.parametrize("system_locks", [True, False])
@pytest.mark.parametrize("verb", ["predict", "explain"])
def test_one_command_at_a_time_writes_into_a_folder(tmp_path, images, run, monkeypatch, verb, system_locks):
    if not system_locks:
        monkeypatch.setattr("ulna.system.locking.fcntl", None)
    call = getattr(ulna, verb)
    with (
        Record.read(tmp_path / "out").writing(),
        ThreadPoolExecutor(1) as other,
        pytest.raises(UsageError, match=rf"another command writes into it \(process {os.getpid()} on "),
    ):
        other.submit(call, run, images / "a.png", out=tmp_path / "out").result()
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob(".*"))


def test_the_lock_of_a_killed_process_is_in_nobodys_way(tmp_path, images, run):
    out = tmp_path / "masks"
    shutil.copytree(images, tmp_path / "data" / "images")
    for folder in (out, tmp_path / "data" / "masks"):
        folder.mkdir()
        (folder / LOCK).touch()
        (folder / ".tmp-predict-0").mkdir()
        ulna.predict(run, images, out=folder)
        assert {path.name for path in folder.iterdir()} == {*(f"{name}.png" for name in "abcd"), PREDICT_FILE}
    (out / LOCK).touch()
    summary = evaluate(out, references(tmp_path / "references", "abcd")).summary
    assert (summary["cases"], summary["missing"], summary["not_listed"]) == (4, [], [])
    assert ulna.predict(run, images, out=out).skipped == tuple("abcd")


def test_masks_of_a_call_that_ran_meanwhile_are_not_forgotten(tmp_path, images, run, monkeypatch, segmented):
    """It began after this one had read predict.json, and ended before this one held the lock."""
    out, more, find = tmp_path / "masks", tmp_path / "more", predicting.find_pending
    more.mkdir()
    shutil.copy(images / "a.png", more / "z.png")

    def meanwhile(*arguments, **named):
        monkeypatch.setattr(predicting, "find_pending", find)
        found = find(*arguments, **named)
        ulna.predict(run, more, out=out)
        return found

    monkeypatch.setattr(predicting, "find_pending", meanwhile)
    with pytest.raises(
        UsageError, match="another ulna predict wrote into it since this one looked; run the command again"
    ):
        ulna.predict(run, images, out=out)
    assert segmented == ["z"]
    assert {path.name for path in out.iterdir()} == {"z.png", PREDICT_FILE}
    ulna.predict(run, images, out=out)
    assert [entry["case"] for entry in facts(out)["earlier"]] == ["z"]
    assert ulna.predict(run, more, out=out).skipped == ("z",)


def test_a_killed_process_leaves_no_file_that_nobody_knows(tmp_path, images, run, monkeypatch, segmented):
    """As after SIGKILL: predict.json was never written."""
    out, write = tmp_path / "masks", Record.write
    monkeypatch.setattr(Record, "write", lambda *_, **how: None)
    ulna.predict(run, images, out=out)
    assert not (out / PREDICT_FILE).exists()
    monkeypatch.setattr(Record, "write", write)
    with (out / JOURNAL).open("a") as file:
        file.write('[{"case": "d", "fi')  # and the last line was cut short
    (out / "d.png").unlink()
    with pytest.raises(UsageError, match="not finished"):
        evaluate(out, references(tmp_path / "references", "abcd"))
    segmented.clear()
    assert ulna.predict(run, images, out=out).skipped == tuple("abc")
    assert segmented == ["d"]
    assert not (out / JOURNAL).exists()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_an_unfinished_prediction_stops_the_scoring_of_its_own_files_alone(tmp_path, run, monkeypatch):
    out = tmp_path / "masks"
    monkeypatch.setattr(Record, "write", lambda *_, **how: None)  # as after SIGKILL
    ulna.predict(run, arrays(tmp_path / "x.npz"), out=out)
    shutil.copy(out / "x.npz", out / "mine.npz")
    assert evaluate(out / "mine.npz", out / "mine.npz").summary["cases"] == 4
    for of_predict in (out, out / "x.npz"):
        with pytest.raises(UsageError, match="not finished"):
            evaluate(of_predict, out / "mine.npz")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_what_is_done_and_says_how_to_go_on(tmp_path, images, run, monkeypatch, capfd, number, code):
    assert threading.current_thread() is threading.main_thread()
    out, mask = tmp_path / "my masks", Segmenter.mask

    def stopped(self, volume):
        if volume.path.stem == "c":
            os.kill(os.getpid(), number)
        return mask(self, volume)

    monkeypatch.setattr(Segmenter, "mask", stopped)
    command = ["predict", str(run), str(images), "--out", str(out)]
    assert cli.run(command) == code
    err = capfd.readouterr().err
    assert "2 of 4 cases are done" in err
    assert f"ulna predict {run} {images} --out '{out}'" in err
    assert "Traceback" not in err
    assert [row["case"] for row in facts(out)["cases"]] == ["a", "b"]
    assert facts(out)["asked"] == [*"abcd"]
    monkeypatch.setattr(Segmenter, "mask", mask)
    assert ulna.predict(run, images, out=out).skipped == ("a", "b")


def test_a_signal_while_a_mask_is_put_in_place_waits_for_it(tmp_path, images, run, monkeypatch):
    out, put = tmp_path / "masks", Record.put

    def hurt(self, entries, *rest, **more):
        if entries[0].case == "b":
            os.kill(os.getpid(), signal.SIGTERM)
        return put(self, entries, *rest, **more)

    monkeypatch.setattr(Record, "put", hurt)
    with pytest.raises(Interrupted, match="2 of 4 cases are done"):
        ulna.predict(run, images, out=out)
    assert [row["case"] for row in facts(out)["cases"]] == ["a", "b"]


def test_a_full_disk_stops_at_once_with_the_list_and_the_bytes(tmp_path, images, run, monkeypatch, segmented):
    from ulna.data.formats import write as writing

    out, write = tmp_path / "masks", writing.write_png

    def full(path, *content):
        if path.name.endswith("b.png"):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        write(path, *content)

    monkeypatch.setattr(writing, "write_png", full)
    with pytest.raises(PartialFailure) as failure:
        ulna.predict(run, images, out=out)
    assert segmented == ["a", "b"]
    reasons = failure.value.failed
    assert list(reasons) == ["b", "c", "d"]
    assert "are free, more than 4 bytes are needed" in reasons["b"]
    assert reasons["c"] == reasons["d"] == f"not begun: {out} cannot be written to"
    monkeypatch.setattr(writing, "write_png", write)
    assert ulna.predict(run, images, out=out).skipped == ("a",)


def test_a_name_that_is_too_long_costs_that_case_alone(tmp_path, images, run, monkeypatch):
    from ulna.data.formats import write as writing

    write = writing.write_png

    def too_long(path, *content):
        if path.name.endswith("b.png"):
            raise OSError(36, "File name too long")
        write(path, *content)

    monkeypatch.setattr(writing, "write_png", too_long)
    with pytest.raises(PartialFailure) as failure:
        ulna.predict(run, images, out=tmp_path / "masks")
    assert list(failure.value.failed) == ["b"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_refused_before_any_work(tmp_path, images, run, segmented):
    out = tmp_path / "masks"
    out.mkdir(mode=0o500)
    with pytest.raises(UsageError, match="cannot be written"):
        ulna.predict(run, images, out=out)
    assert segmented == []


def test_an_unwritable_folder_is_refused_before_any_work(tmp_path, images, run, segmented):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        ulna.predict(run, images, out=tmp_path / "file" / "masks")
    assert segmented == []


def test_json_is_printed_also_where_some_cases_failed(tmp_path, images, run, capfd):
    (images / "c.png").write_bytes((images / "c.png").read_bytes()[:-40])
    assert cli.run(["predict", str(run), str(images), "--out", str(tmp_path / "masks"), "--json", "--quiet"]) == 3
    out, err = capfd.readouterr()
    printed = json.loads(out)
    assert [row["case"] for row in printed["cases"]] == [*"abd"]
    assert list(printed["failed"]) == ["c"]
    assert "1 of 4 cases failed" in err


def test_a_folder_named_as_an_image_is_said_to_be_skipped(tmp_path, images, run, capfd):
    (images / "x.png").mkdir()
    assert cli.run(["predict", str(run), str(images), "--out", str(tmp_path / "masks")]) == 0
    assert "x.png is a folder, it is not read" in capfd.readouterr().err


def test_ids_with_dots_become_masks_of_their_own(tmp_path, run):
    names = ["1.2.840.99999.1.0175", "1.2.840.99999.1.0176", "patient.1", "patient.2"]
    folder = tmp_path / "new"
    folder.mkdir()
    for name in names:
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(folder / f"{name}.png")
    ulna.predict(run, folder, out=tmp_path / "masks", probabilities=True)
    masks = {path.name for path in (tmp_path / "masks").iterdir()} - {PREDICT_FILE}
    assert masks == {f"{name}.png" for name in names} | {f"{name}_probabilities.npz" for name in names}


def test_a_result_is_saved_under_the_whole_name(tmp_path, images, run):
    result = ulna.load(run)(images / "a.png")
    names = ["1.2.840.0175", "1.2.840.0176", "patient.1", "patient.2", "plain", "other.png", "other.nii.gz"]
    written = [result.save(tmp_path / name).name for name in names]
    assert written == [*(f"{name}.png" for name in names[:5]), "other.png", "other.png"]


def test_a_signal_while_an_npz_is_written_waits_for_it(tmp_path, run, monkeypatch):
    source, out, put = arrays(tmp_path / "x.npz"), tmp_path / "masks", Record.put

    def hurt(self, *arguments, **more):
        os.kill(os.getpid(), signal.SIGTERM)
        return put(self, *arguments, **more)

    monkeypatch.setattr(Record, "put", hurt)
    with pytest.raises(Interrupted, match="4 of 4 cases are done"):
        ulna.predict(run, source, out=out)
    assert len(facts(out)["cases"]) == 4


def test_a_pipe_among_the_images_is_told_and_never_waited_for(tmp_path, images, run):
    ulna.predict(run, images, out=tmp_path / "masks")
    (images / "b.png").unlink()
    os.mkfifo(images / "b.png")
    with pytest.raises(UsageError, match="another image"):
        ulna.predict(run, images, out=tmp_path / "masks")
    with pytest.raises(PartialFailure, match="named pipe"):
        ulna.predict(run, images, out=tmp_path / "masks", overwrite=True)
    assert (tmp_path / "masks" / "b.png").exists()


def test_masks_of_another_version_are_kept_and_said(tmp_path, images, run, monkeypatch, caplog):
    ulna.predict(run, images, out=tmp_path / "masks")
    monkeypatch.setattr(predicting, "VERSION", "99.0")
    assert len(ulna.predict(run, images, out=tmp_path / "masks").skipped) == 4
    assert "this is 99.0: move them away to have them made again" in caplog.text


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_names_that_are_looked_for_are_those_that_are_written(tmp_path, multilabel):
    """Of every format: a second call skips what the first wrote."""
    labels = Labels(names=("a", "b"), multilabel=True) if multilabel else Labels()
    run, new = run_folder(tmp_path / "run", 0, labels=labels), tmp_path / "new"
    new.mkdir()
    array = np.random.default_rng(0).integers(0, 255, (24, 32), np.uint8)
    for suffix in ("png", "bmp", "jpg", "tif", "TIFF", "ome.tif", "PNG"):
        Image.fromarray(array).save(new / f"of {suffix}.{suffix}", format=None if suffix.isalpha() else "TIFF")
    np.save(new / "of npy.npy", array)
    for suffix in ("nii", "nii.gz"):
        nibabel.save(nibabel.Nifti1Image(array.astype(np.float32), np.eye(4)), new / f"of {suffix}.{suffix}")
    first = ulna.predict(run, new, out=tmp_path / "masks", probabilities=True)
    assert len(first.cases) == 10
    again = ulna.predict(run, new, out=tmp_path / "masks", probabilities=True)
    assert len(again.skipped) == 10
