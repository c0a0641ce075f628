"""`train --max-ram`: the same samples and weights, and what cannot keep to the limit is refused beforehand."""

import errno
import json
import os
import re
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import torch

import ulna
from tests.inference.test_bounded import peak_of
from tests.training.test_cache import CPU, SETTINGS
from tests.training.tiny import TINY
from tests.volumes import draw_balls
from ulna.data.formats import mapping
from ulna.data.formats.bricks import Bricks
from ulna.data.formats.label_maps import encode_labels
from ulna.data.formats.limits import allowing
from ulna.data.formats.opening import open_image
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.data.layout.case import Case
from ulna.data.layout.dataset import Dataset, Division, split
from ulna.data.pipeline.orientation import to_canonical
from ulna.data.quality import slices
from ulna.data.quality.scan import scan_case
from ulna.data.quality.similarity import thinned, thumbnail
from ulna.data.streaming import labels_on_disk
from ulna.errors import DataError, UsageError
from ulna.executors.choosing import On
from ulna.planning.choosing import choose
from ulna.planning.plan import plan_training, read_training_data
from ulna.recipe import Labels
from ulna.system.mapped import InFile, let_go_of_part
from ulna.training import by_slabs, fold_jobs, needs, single, within
from ulna.training.feed import Feed
from ulna.training.fold_jobs import Together
from ulna.training.samples import PreparedCases
from ulna.training.slices import SliceCases, samples_of
from ulna.training.spool import Spool

WAYS = {
    "volumes": ("planning.spacing=[1.5, 1.5, 3]",),
    "coarse labels": ("planning.spacing=[2.3, 1.1, 4]", "planning.normalization=rescale"),
    "overlapping": ('classes={"all": [1, 2], "upper": [2]}',),
    "slices": ("planning.spatial_dims=2", "planning.patch=[16, 16]"),
}


@pytest.fixture(scope="module")
def balls(tmp_path_factory):
    return draw_balls(tmp_path_factory.mktemp("balls"), 5, stored="LSP", classes=2)


def planned(data, *changes):
    recipe = choose(model="unet", recipe=None, set=(*SETTINGS, *changes))
    found = read_training_data(Dataset.from_folder(data).declaring(recipe.classes), recipe.training)
    return found, plan_training(found, recipe)


def batches(found, made, **options):
    """Of an epoch, and what reads them."""
    kept = (PreparedCases if made.plan.slices is None else SliceCases)(
        found.dataset.cases_of(made.split.train), made.plan, **options
    )
    for _ in kept.fill():
        pass
    samples = samples_of(kept, made.plan, made.recipe)
    return kept, [*Feed(samples, samples.batches(made.recipe.training.replaced(samples_per_epoch=8), 2), CPU, 0)]


@pytest.mark.parametrize("way", WAYS)
def test_samples_are_the_same_within_a_limit(balls, way, tmp_path, monkeypatch):
    monkeypatch.setattr(by_slabs, "PREPARING", 20_000)
    monkeypatch.setattr(by_slabs, "PART", 3_000)
    found, made = planned(balls, *WAYS[way])
    _, plainly = batches(found, made)
    kept, spooled = batches(found, made, keep_bytes=0, folder=tmp_path, bounded=True)
    assert all(map(kept.lies_in_a_file, range(len(kept))))
    for (image, labels), (own, its) in zip(plainly, spooled, strict=True):
        assert torch.equal(image, own) and torch.equal(labels, its)
    if way == "slices":
        return
    lean, slabs = batches(found, made, lean=made.split.train, folder=tmp_path, bounded=True)
    assert all(map(lean.lies_in_a_file, range(len(lean))))
    for (image, labels), (own, its) in zip(plainly, slabs, strict=True):
        torch.testing.assert_close(image, own, rtol=0, atol=2e-6)  # the mean is summed in another order
        assert torch.equal(labels, its)
    whole = PreparedCases(lean.cases, made.plan, on_grid=False)
    parts = PreparedCases(lean.cases, made.plan, on_grid=False, lean=made.split.train, folder=tmp_path, bounded=True)
    for number in range(len(whole)):
        (ours, ours_ref), (theirs, theirs_ref) = whole[number], parts[number]
        assert torch.equal(ours_ref, theirs_ref) and ours._replace(image=0) == theirs._replace(image=0)


def test_a_disk_that_is_full_ends_a_bounded_training_before_its_first_step(balls, tmp_path, monkeypatch):
    found, made = planned(balls)
    monkeypatch.setattr("ulna.training.spool.SHARE", 0.0)
    for lean in ((), made.split.train):
        with pytest.raises(UsageError, match=r"the disk .*does not hold .*--max-ram"):
            batches(found, made, keep_bytes=0, folder=tmp_path, bounded=True, lean=lean)


def test_two_writers_share_a_spool(tmp_path, monkeypatch):
    monkeypatch.setattr("ulna.training.spool.SEGMENT", 4000)
    kept = Spool(tmp_path, 20_000)
    others = []

    def slowly():
        for number in range(4):  # others come meanwhile, and begin another file
            others.append(kept.put(torch.full((300,), 10.0 + number)))
            yield torch.full((100,), float(number))

    made = kept.put_parts((4, 100), torch.float32, slowly())
    assert torch.equal(made, torch.arange(4.0)[:, None].expand(4, 100))
    assert [one.unique().tolist() for one in others] == [[10], [11], [12], [13]]


def test_slabs_and_whole_cases_are_written_side_by_side(balls, tmp_path, monkeypatch):
    monkeypatch.setattr(by_slabs, "PART", 3_000)
    rows, prepared, writing = by_slabs._rows, PreparedCases._prepared, threading.Event()

    def slowly(*some):
        for part in rows(*some):
            writing.set()
            time.sleep(0.03)
            yield part

    def meanwhile(self, case):
        writing.wait(10)
        return prepared(self, case)

    found, made = planned(balls)
    cases = found.dataset.cases_of(made.split.train)
    whole = PreparedCases(cases, made.plan)
    kept = PreparedCases(cases, made.plan, keep_bytes=0, lean=made.split.train[1::2], folder=tmp_path, bounded=True)
    monkeypatch.setattr(by_slabs, "_rows", slowly)
    monkeypatch.setattr(kept, "_prepared", partial(meanwhile, kept))
    assert [*kept.fill(2)] == [*range(len(cases))]
    for number in range(len(cases)):
        (image, labels), (own, its) = whole[number], kept[number]
        torch.testing.assert_close(image.image, own.image, rtol=0, atol=2e-6)
        assert torch.equal(labels, its)


@pytest.mark.parametrize("values", [(0, 255), (0, 1, 255)])
def test_all_slabs_of_a_label_map_say_what_its_values_mean(values, tmp_path):
    array = np.zeros((8, 8, 8), np.uint8)
    array[0, 0, : len(values)] = values
    array[0, 1, 0], array[-1, -1, -1] = 255, values[1]
    nibabel.Nifti1Image(array, np.eye(4)).to_filename(tmp_path / "a.nii")
    labels = Labels()
    with open_image([Source(tmp_path / "a.nii")], 3) as opened:
        if values == (0, 255):
            made = labels_on_disk(opened, labels, tmp_path, 1)
            whole = encode_labels(read_labels(Source(tmp_path / "a.nii"), 3), labels)
            assert made.dtype == whole.dtype and (made.read([slice(0, 8)] * 3)[0] == whole).all()
            made.close()
        else:
            with pytest.raises(DataError, match="label values 255 do not fit 2 classes"):
                labels_on_disk(opened, labels, tmp_path, 1)


def test_a_label_map_on_another_grid_is_not_taken_by_slabs(balls, tmp_path):
    found, made = planned(balls)
    case = found.dataset.cases_of(made.split.train)[0]
    read = nibabel.load(case.label.path)
    moved = nibabel.Nifti1Image(np.asarray(read.dataobj)[:-1], read.affine)
    moved.to_filename(tmp_path / "moved.nii")
    case = replace(case, label=case.label._replace(path=tmp_path / "moved.nii"))
    with pytest.raises(DataError, match=r"moved\.nii: lies on another grid than its image"):
        by_slabs.prepare_by_slabs(case, made.plan, Spool(tmp_path), on_grid=True)


def test_structures_beyond_their_room_are_found_again(balls, tmp_path):
    found, made = planned(balls)
    _, plainly = batches(found, made)
    kept, again = batches(found, made, keep_bytes=0, structures_bytes=0, folder=tmp_path, bounded=True)
    assert not kept._structures
    assert all(
        torch.equal(*pair) for one, other in zip(plainly, again, strict=True) for pair in zip(one, other, strict=True)
    )
    room = kept.structures(0).nbytes
    kept, _ = batches(found, made, keep_bytes=0, structures_bytes=room, folder=tmp_path, bounded=True)
    assert sum(one.nbytes for one in kept._structures.values()) <= room
    with pytest.raises(UsageError, match=r"training\.sampling=class chooses from them"):
        batches(found, made, keep_bytes=0, structures_bytes=0, folder=tmp_path, bounded=True, sampling="class")
    found, made = planned(balls, *WAYS["slices"])
    _, plainly = batches(found, made)
    _, again = batches(found, made, keep_bytes=0, structures_bytes=0, folder=tmp_path, bounded=True)
    assert all(
        torch.equal(*pair) for one, other in zip(plainly, again, strict=True) for pair in zip(one, other, strict=True)
    )


def test_folds_to_come_are_refused_before_the_first_begins(tmp_path, monkeypatch):
    data, plainly = draw_balls(tmp_path / "data", 6, split=False), within.seen
    splits = [split(Dataset.from_folder(data), 0, wanted=Division(number, 3)) for number in range(3)]
    big = splits[1].val[0]

    def seen(case):
        one = plainly(case)
        array = np.broadcast_to(one.volume.array[:, :1, :1, :1], (1, 400, 400, 400))
        return one if case.id != big else one._replace(volume=one.volume.with_array(array), by_slabs=True)

    monkeypatch.setattr(within, "seen", seen)
    monkeypatch.setattr(within, "look_through", lambda *_: None)
    told = {"model": "unet", "folds": 3, "seed": 0, "epochs": 1, "set": [*TINY]}
    recipe = choose(model="unet", recipe=None, folds=3, set=[*TINY])
    found = read_training_data(Dataset.from_folder(data), recipe.training.replaced(fold=0))
    made = plan_training(found, recipe)
    with pytest.raises(UsageError, match="GB at least") as refused:
        within.within(made, found.dataset, 1e8, splits[1:])
    least = 1e9 * float(re.search(r"needs ([\d.]+) GB at least", str(refused.value))[1])
    within.within(made, found.dataset, least, splits[1:])
    within.within(replace(made, split=splits[1]), found.dataset, least)
    within.within(made, found.dataset, least - 3e8)  # the first alone takes less
    with pytest.raises(UsageError, match=f"the final evaluation of .*{big}"):
        ulna.train(data, out=tmp_path / "run", max_ram=(least - 3e8) / 1e9, **told)
    assert not (tmp_path / "run").exists() or not [*(tmp_path / "run").rglob("*.yaml")]


def test_what_is_mapped_lies_beside_what_is_written(balls, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    case = Dataset.from_folder(balls).cases[0]
    with allowing(None, 100, 0.1, mapped_from=1, scratch=tmp_path):
        assert isinstance(mapping.read_or_map(case.images).array, InFile)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Bricks, "write", full)
    with (
        allowing(None, 100, 0.1, mapped_from=1, scratch=tmp_path),
        pytest.raises(UsageError, match="the disk does not hold") as said,
    ):
        scan_case(case, None)
    assert str(said.value).startswith(str(tmp_path)) and "repair" not in str(said.value)
    found, made = planned(balls)
    with pytest.raises(UsageError, match=r"the disk of .* does not hold it prepared"):
        batches(found, made, lean=made.split.train, folder=tmp_path, bounded=True)


def test_a_disk_too_small_is_refused_beforehand(balls, tmp_path, monkeypatch):
    found, made = planned(balls, "training.cache=false")
    kept = replace(within.within(made, found.dataset, 8e9), on_disk=(3e9, 1e9))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=11_000_000_000))
    with pytest.raises(UsageError, match=r"needs 12\.00 GB free .* and has 11\.00 GB"):
        kept.check_disk(tmp_path / "new" / "run")
    replace(kept, on_disk=(2.7e9, 1e9)).check_disk(tmp_path)
    one = needs.seen(found.dataset.cases[0])
    plain = PreparedCases([one.case], made.plan)[0]
    assert needs.prepared_bytes(one, made.plan) == plain[0].image.nbytes + plain[1].nbytes


def test_headers_are_enough_to_choose_a_network_within_a_limit(discs, tmp_path, monkeypatch):
    def looked(*_):
        raise UsageError("looked through")

    monkeypatch.setattr(single, "look_through", looked)
    monkeypatch.setattr("ulna.training.estimate.look_through", looked)
    monkeypatch.setattr(Case, "read_image", lambda _: pytest.fail("was read whole"))
    for verb in (partial(ulna.train, out=tmp_path / "run"), ulna.plan):
        with pytest.raises(UsageError, match="looked through"):
            verb(discs, max_ram=8)


def test_a_header_is_looked_at_once(discs, monkeypatch):
    times = []
    plainly = needs.peek_image
    monkeypatch.setattr(needs, "peek_image", lambda *some: (times.append(1), plainly(*some))[1])
    case = Dataset.from_folder(discs).cases[0]
    with within.reading_within(8e9):
        first = needs.seen(case)
        assert needs.seen(case).volume.size == first.volume.size and len(times) == 2  # image and label map
        assert needs.seen(replace(case, spatial_dims=2)).volume is first.volume and len(times) == 2
    needs.seen(case)
    assert len(times) == 4


@pytest.mark.parametrize("stored", ["PIR", "SAR"])
def test_stored_axes_do_not_matter_to_slabs(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(by_slabs, "PREPARING", 10_000)
    monkeypatch.setattr(by_slabs, "PART", 2_000)
    monkeypatch.setattr(slices, "SLAB", 2_000)
    data = draw_balls(tmp_path / "data", 5, stored=stored, classes=2)
    found, made = planned(data, "planning.spacing=[1.3, 1.1, 2.5]")
    case = found.dataset.cases_of(made.split.train)[0]
    for on_grid in (True, False):
        prepared, labels = by_slabs.prepare_by_slabs(case, made.plan, Spool(tmp_path), on_grid=on_grid)
        own, its = PreparedCases([case], made.plan, on_grid=on_grid)[0]
        torch.testing.assert_close(prepared.image, own.image, rtol=0, atol=2e-6)
        assert torch.equal(labels, its) and labels.dtype == its.dtype
    volume = case.read_image()
    with allowing(None, 100, 0.1, mapped_from=1, scratch=tmp_path):
        mapped = mapping.read_or_map(case.images)
    turn = to_canonical(volume.affine, 3)
    assert isinstance(mapped.array, InFile)
    assert np.array_equal(thumbnail(thinned(mapped.array, turn)), thumbnail(turn.forward(volume.array)))


def test_images_that_are_mapped_are_found_to_be_what_they_are(balls, tmp_path, monkeypatch):
    monkeypatch.setattr(slices, "SLAB", 2_000)
    monkeypatch.setattr(mapping, "_PART", 2_000)
    for stored in ("LSP", "RAS"):
        data = draw_balls(tmp_path / stored, 2, stored=stored, split=False, channels=2, size=(52, 98, 9))
        for case in Dataset.from_folder(data).cases:
            plainly = scan_case(case, None)
            with allowing(None, 100, 0.1, mapped_from=1):
                assert isinstance(mapping.read_or_map(case.images).array, InFile)
                mapped = scan_case(case, None)
            assert mapped == plainly and (mapped.thumbnail == plainly.thumbnail).all()
            assert (mapped.foreground_values == plainly.foreground_values).all()


def test_what_is_let_go_of_is_read_again_and_copies_stay(tmp_path):
    np.arange(1_000_000, dtype=np.float32).tofile(tmp_path / "values")
    values = InFile(tmp_path / "values", np.float32, "r", shape=(1000, 1000))
    copy, part, squares = values[:, ::-1].reshape(-1), values[10:800], values * values
    for one in (values, copy, part, part.T, squares, np.asarray(values)):
        let_go_of_part(one)
    assert values[-1, -1] == copy[-1000] == 999_999 and part[0, 5] == 10_005 and squares[0, 3] == 9


def test_a_limit_is_refused_beforehand_with_the_least(discs, tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--max-ram 0: must be above 0"):
        ulna.train(discs, max_ram=0)
    with pytest.raises(UsageError, match="--max-ram and --devices 2: no limit is kept"):
        ulna.train(discs, max_ram=8, devices=2)
    with pytest.raises(
        UsageError, match=r"without any image it takes [\d.]+ GB at least, more than --max-ram 0\.01 allows"
    ):
        ulna.train(discs, out=tmp_path / "run", max_ram=0.01)
    assert not (tmp_path / "run" / "recipe.yaml").exists()
    monkeypatch.setattr(needs, "SCANNED", 10**7)
    with pytest.raises(
        DataError, match=r"disc1.png: takes [\d.]+ GB at least to look through, more than --max-ram 8 allows"
    ):
        within.look_through(Dataset.from_folder(discs), 8e9)


def test_the_least_works_and_less_does_not(balls):
    found, made = planned(balls)
    with pytest.raises(UsageError, match=r"needs [\d.]+ GB at least") as refused:
        within.within(made, found.dataset, 2e8)
    least = float(re.search(r"needs ([\d.]+) GB at least", str(refused.value))[1])
    kept = within.within(made, found.dataset, 1e9 * least)
    assert kept.peak <= kept.limit and not kept.lean
    roomy = within.within(made, found.dataset, 1e9 * (least + 1))
    assert 0.9e9 < roomy.keep_train + roomy.keep_val < 1.1e9
    assert "keep prepared cases" in roomy.words(4)


def test_images_beyond_the_limit_are_prepared_by_slabs(balls, monkeypatch):
    found, made = planned(balls)
    plainly = within.seen
    big = made.split.train[0]

    def seen(case):
        one = plainly(case)
        if case.id != big:
            return one
        array = np.broadcast_to(one.volume.array[:, :1, :1, :1], (1, 500, 500, 500))
        return one._replace(volume=one.volume.with_array(array), map_bytes=1.25e8)

    monkeypatch.setattr(within, "seen", seen)
    room = within.base_bytes(made) + 1.5e9
    kept = within.within(made, found.dataset, room)
    assert kept.lean == {big} and "1 case of 4 is prepared by slabs" in kept.words(4)
    with pytest.raises(UsageError, match=r"preparing .* needs [\d.]+ GB"):
        within.within(made, found.dataset, within.base_bytes(made) + 4.5e8)
    cropped = replace(made, plan=made.plan.replaced(crop=(24, 20, 9)))
    with pytest.raises(UsageError, match=r"preparing .* needs [\d.]+ GB"):
        within.within(cropped, found.dataset, room)


def test_a_step_is_planned_by_the_limit(balls, monkeypatch):
    found, _ = planned(balls)
    recipe = choose(model="unet", recipe=None, max_ram=1.0, set=SETTINGS)
    monkeypatch.setattr(within, "base_bytes", lambda planned: 0.5e9)
    monkeypatch.setattr(within, "step_bytes", lambda planned, readers: 1e9 * planned.recipe.planning.memory_gb)
    assert within.plan_within(found, recipe, None).recipe.planning.memory_gb == 1
    assert within.plan_within(found, recipe, 1e9).recipe.planning.memory_gb == 0.343
    assert within.plan_within(found, recipe, 1.1e9).recipe.planning.memory_gb == 0.49  # a fold that goes on with more
    asked = choose(model="unet", recipe=None, max_ram=1.0, set=(*SETTINGS, "planning.memory_gb=0.9"))
    assert within.plan_within(found, asked, 1e9).recipe.planning.memory_gb == 0.441


def test_folds_side_by_side_share_the_limit(tmp_path, monkeypatch):
    data = draw_balls(tmp_path / "data", 4, split=False)
    recipe = choose(model="unet", recipe=None, folds=2, max_ram=8, set=SETTINGS)
    runs = [tmp_path / "fold_0", tmp_path / "fold_1"]

    monkeypatch.setattr(fold_jobs, "program_bytes", lambda: 0.5e9)  # whatever this process did before
    monkeypatch.setattr(needs, "program_bytes", lambda: 0.5e9)

    def jobs(number, limit):
        together = Together(On.read("local", number), None, "", None, None, limit)
        made, executor = together.jobs(data, tmp_path, runs, recipe)
        return [json.loads(job.argv[-1])["limit"] for job in made], executor.places

    shares, _ = jobs(2, 8e9)
    assert shares[0] == shares[1] and 6e9 < sum(shares) < 8e9
    shares, places = jobs("auto", 8e9)
    assert 6e9 < places.most * shares[0] < 8e9
    with pytest.raises(UsageError, match=r"--max-ram 1: the command and 2 processes take [\d.]+ GB before"):
        jobs(2, 1e9)


def weights(run):
    return (run / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_weights_are_the_same_within_a_limit(discs, tmp_path, monkeypatch):
    told = {"model": "unet", "epochs": 1, "set": [*TINY]}
    ulna.train(discs, out=tmp_path / "free", **told)
    monkeypatch.setattr(single, "within", lambda *some: replace(within.within(*some), keep_train=0, keep_val=0))
    ulna.train(discs, out=tmp_path / "bound", max_ram=8, **told)
    assert weights(tmp_path / "free") == weights(tmp_path / "bound")
    assert "--max-ram 8: about" in (tmp_path / "bound" / "log.txt").read_text()
    # and the limit may be another one later
    ulna.train(discs, out=tmp_path / "free", resume=True, max_ram=9, epochs=2)
    ulna.train(discs, out=tmp_path / "bound", resume=True, epochs=2)
    assert weights(tmp_path / "free") == weights(tmp_path / "bound")


def draw(root, ids, size):
    for name in ids:
        rng = np.random.default_rng(sum(map(ord, name)))
        labels = np.zeros(size, np.uint8)
        labels[tuple(slice(n // 4, n // 2) for n in size)] = 1
        image = rng.integers(0, 100, size, np.int16) + 60 * labels
        for folder, values in (("images", image.astype(np.int16)), ("labels", labels)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            file = nibabel.Nifti1Image(values, np.eye(4))
            file.header.set_xyzt_units("mm")
            file.to_filename(root / folder / f"{name}.nii")


@pytest.mark.slow
@pytest.mark.timeout(900)  # several commands, beside whatever else runs
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not tell what a process holds")
def test_a_training_keeps_to_its_limit(tmp_path):
    small, large = ["a", "b", "c", "d"], ["large"]
    draw(tmp_path / "data", small, (64, 64, 64))
    draw(tmp_path / "data", large, (288, 288, 192))
    split = {"train": [*large, *small[:2]], "val": small[2:3], "test": small[3:]}
    (tmp_path / "data" / "splits.json").write_text(json.dumps(split))
    sets = (*TINY, "planning.patch=[32, 32, 32]", "architecture.channels=[4, 8]")
    changes = [word for one in sets for word in ("--set", one)]
    command = ("train", tmp_path / "data", "--model", "unet", "--out", tmp_path / "run", "--epochs", 1, *changes)
    limit = 0.8
    for _ in range(4):  # what is looked through needs less than what is trained on
        peak, said, code = peak_of(*command, "--max-ram", limit)
        if code == 0:
            break
        assert code == 2 and not (tmp_path / "run" / "recipe.yaml").exists(), said
        least = re.findall(r"([\d.]+) GB at least", " ".join(said.split()))
        assert least, said
        limit = max(map(float, least)) + 0.02
    assert code == 0, said
    assert "1 case of 4 is prepared by slabs" in (tmp_path / "run" / "log.txt").read_text()
    assert 0.5 * limit < peak / 1e9 <= limit
