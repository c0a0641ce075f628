"""Trainings with the cache of prepared cases: the same samples and weights as without, and it is never in the way."""

import functools
import json
import os
from collections import Counter

import pytest
import torch

import ulna
from tests.training.tiny import TINY
from tests.volumes import draw_balls
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset
from ulna.data.prepared import entry, store
from ulna.data.prepared.contents import Contents
from ulna.data.prepared.store import CaseStore
from ulna.kernels.cache import danger
from ulna.planning.choosing import choose
from ulna.planning.plan import plan_training, read_training_data
from ulna.training.feed import Feed
from ulna.training.samples import PreparedCases
from ulna.training.slices import SliceCases, samples_of

CPU = torch.device("cpu")
SETTINGS = ("planning.batch=2", "planning.patch=[16, 16, 8]", "architecture.channels=[4, 8]")
WAYS = {
    "volumes": (),
    "crop": ("planning.crop=[24, 20, 9]",),
    "slices": ("planning.spatial_dims=2", "planning.patch=[16, 16]"),
}


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    return draw_balls(tmp_path_factory.mktemp("balls"), 5, stored="LSP", classes=2)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """The folder that entries will lie in."""
    tmp_path.chmod(0o700)
    if hasattr(os, "geteuid") and (reason := danger(tmp_path)):
        pytest.skip(reason)
    monkeypatch.setenv("ULNA_CACHE_DIR", str(tmp_path / "cases"))
    monkeypatch.delenv("ULNA_CACHE")
    return tmp_path / "cases"


@pytest.fixture
def read(monkeypatch):
    """How often each image was read."""
    times, plainly = Counter(), Case.read_image

    def counted(self):
        times[self.id] += 1
        return plainly(self)

    monkeypatch.setattr(Case, "read_image", counted)
    return times


@functools.cache
def planned(data, *changes):
    recipe = choose(model="unet", recipe=None, set=(*SETTINGS, *changes))
    found = read_training_data(Dataset.from_folder(data), recipe.training)
    made = plan_training(found, recipe)
    return found.dataset, made


def batches(data, way, *, every=False, cache=True, threads=0, **options):
    """Of an epoch, and what reads them."""
    dataset, made = planned(data, *WAYS[way])
    cases = dataset.cases_of(made.split.train)
    kept = (PreparedCases if made.plan.slices is None else SliceCases)(
        cases, made.plan, store=CaseStore(made.plan, Contents(), data, every=every) if cache else None, **options
    )
    for _ in kept.fill(threads):
        pass
    samples = samples_of(kept, made.plan, made.recipe)
    training = made.recipe.training.replaced(samples_per_epoch=16)
    return [*Feed(samples, samples.batches(training, 2), CPU, threads)]


def same(one, other):
    return all(
        torch.equal(a, b) for ours, theirs in zip(one, other, strict=True) for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("way", WAYS)
def test_samples_are_the_same_whatever_keeps_the_cases(balls, way, cached, read, tmp_path):
    plainly = batches(balls, way, cache=False)
    read.clear()
    cold = batches(balls, way, keep_bytes=0, threads=2)
    assert {*read.values()} == {1} and len([*cached.iterdir()]) == 3
    read.clear()
    warm = batches(balls, way, keep_bytes=0)
    roomy = batches(balls, way)
    assert not read.total()
    spooled = batches(balls, way, cache=False, keep_bytes=0, folder=tmp_path)
    assert same(cold, plainly) and same(warm, plainly) and same(roomy, plainly) and same(spooled, plainly)


def test_cases_that_fit_into_memory_are_kept_by_studies_alone(balls, cached):
    batches(balls, "volumes")
    assert not cached.exists()
    batches(balls, "volumes", every=True)
    assert len([*cached.iterdir()]) == 3


def damage(path, how):
    whole = bytearray(path.read_bytes())
    if how == "flip":
        whole[-70] ^= 4
    path.write_bytes(whole[: len(whole) // 2] if how == "cut" else whole)


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_a_damaged_entry_is_made_again_with_one_note(balls, cached, caplog, how):
    expected = batches(balls, "volumes", keep_bytes=0)
    paths = sorted(cached.iterdir())
    for path in paths[:2]:
        damage(path, how)
    assert same(batches(balls, "volumes", keep_bytes=0), expected)
    assert caplog.text.count("prepared again") == 1
    caplog.clear()
    assert sorted(cached.iterdir()) == paths and all(entry.read_entry(path) for path in paths)
    assert same(batches(balls, "volumes", keep_bytes=0), expected) and not caplog.records


def test_an_entry_of_other_content_is_no_case(balls, cached, caplog):
    expected = batches(balls, "volumes", keep_bytes=0)
    path = next(cached.iterdir())
    path.unlink()
    entry.write_entry(path, entry.Draft.of({"labels": torch.zeros(3)}, {}), lambda: True)
    assert same(batches(balls, "volumes", keep_bytes=0), expected)
    assert caplog.text.count("prepared again") == 1


def test_a_full_disk_ends_the_cache_and_not_the_training(balls, cached, caplog, monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    expected = batches(balls, "slices", cache=False)
    monkeypatch.setattr(entry.os, "write", full)
    assert same(batches(balls, "slices", keep_bytes=0, folder=tmp_path), expected)
    assert caplog.text.count("No space left on device") == 1 and not [*cached.iterdir()]


def test_a_limit_that_is_reached_is_said_once_and_what_is_in_use_stays(balls, cached, caplog, monkeypatch, tmp_path):
    expected = batches(balls, "volumes", keep_bytes=0, cache=False, folder=tmp_path)
    batches(balls, "volumes", keep_bytes=0)
    size = max(path.stat().st_size for path in cached.iterdir())
    ulna.cache(clear=True)
    monkeypatch.setenv("ULNA_CACHE_GB", str(2.5 * size / 1e9))
    for _ in range(2):
        caplog.clear()
        assert same(batches(balls, "volumes", keep_bytes=0, folder=tmp_path), expected)
        assert len([*cached.iterdir()]) == 2 and caplog.text.count("ULNA_CACHE_GB keeps all") == 1


def test_a_folder_that_cannot_be_written_or_is_not_ours_is_left_alone(balls, cached, caplog, monkeypatch):
    expected = batches(balls, "volumes", keep_bytes=0)
    plainly = os.open

    def refused(path, flags, *mode, **options):
        if flags & os.O_CREAT and str(path).startswith(str(cached)):
            raise PermissionError(13, "Permission denied")
        return plainly(path, flags, *mode, **options)

    next(cached.iterdir()).unlink()
    monkeypatch.setattr(entry.os, "open", refused)
    assert same(batches(balls, "volumes", keep_bytes=0), expected), "what lies there is read"
    assert caplog.text.count("Permission denied") == 1 and len([*cached.iterdir()]) == 2
    monkeypatch.undo()
    monkeypatch.setenv("ULNA_CACHE_DIR", str(cached))
    caplog.clear()
    monkeypatch.setattr(store.places, "danger", lambda folder: f"{folder} belongs to another user")
    assert same(batches(balls, "volumes", keep_bytes=0), expected)
    assert "belongs to another user" in caplog.text and len(caplog.records) == 1


def test_a_case_that_changes_while_it_is_read_is_not_kept(balls, cached, caplog, monkeypatch):
    plainly = Case.read_image

    def changing(self):
        volume = plainly(self)
        path = self.images[0].path
        whole = path.read_bytes()
        path.write_bytes(whole + b"\\0")
        monkeypatch.setattr(Case, "read_image", plainly)
        changed.append((path, whole))
        return volume

    dataset, made = planned(balls)
    changed = []
    kept = PreparedCases(
        dataset.cases_of(made.split.train), made.plan, store=CaseStore(made.plan, Contents(), balls, every=True)
    )
    monkeypatch.setattr(Case, "read_image", changing)
    assert [*kept.fill()] == [0, 1, 2]
    for path, whole in changed:
        path.write_bytes(whole)
    assert len([*cached.iterdir()]) == 2 and caplog.text.count("its files are changing") == 1


def small(data, out, *changes, **options):
    return ulna.train(data, model="unet", out=out, epochs=1, set=(*TINY, *changes), **options)


@pytest.mark.slow
def test_weights_are_the_same_with_the_cache_cold_warm_and_off(discs, cached, read, tmp_path):
    weights, rows = {}, {}
    for way, setting in {"off": "false", "cold": "true", "warm": "auto"}.items():
        read.clear()
        run = small(discs, tmp_path / way, f"training.cache={setting}")
        weights[way], rows[way] = ((run.folder / name).read_bytes() for name in ("weights.safetensors", "metrics.csv"))
        times = {name: read[name] for name in ("disc0", "disc5")}  # of a training and of the validation case
        if way == "off":
            without = times
            assert not cached.exists()
        else:
            assert len([*cached.iterdir()]) == 7
            assert all(times[name] == without[name] - (way == "warm") for name in times), way
    assert len({*weights.values()}) == len({*rows.values()}) == 1


@pytest.mark.slow
def test_pseudonyms_keep_prepared_images_off_the_disk(discs, cached, tmp_path):
    small(discs, tmp_path / "run", "training.cache=true", pseudonymise=tmp_path / "key.json")
    assert not cached.exists()


@pytest.mark.slow
def test_folds_and_studies_prepare_a_case_once(tmp_path, cached, read, monkeypatch):
    data = draw_balls(tmp_path / "data", 4, split=False)
    still = ("planning.spacing=[1, 1.5, 4]",)
    ulna.train(data, model="unet", out=tmp_path / "off", epochs=1, folds=2, set=(*TINY, *still, "training.cache=false"))
    without = read.total()
    read.clear()
    ulna.train(data, model="unet", out=tmp_path / "on", epochs=1, folds=2, set=(*TINY, *still))
    # both folds train on half of the cases and validate on the other half
    assert len([*cached.iterdir()]) == 4 and read.total() == without - 4
    before = {path: path.stat().st_ino for path in cached.iterdir()}
    study = tmp_path / "study"
    ulna.compare(
        data, models="unet,fcn", out=study, folds=2, epochs=1, jobs="1", set=[*TINY[1:], *still],
    )  # fmt: skip
    after = {path: path.stat().st_ino for path in cached.iterdir()}
    assert before.items() <= after.items()
    assert json.loads((study / "study.json").read_text())
