"""What patches on structures show: by class and by lesion over all training cases, and by case as ever."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.test_train import Killed
from tests.training.tiny import TINY
from tests.volumes import draw_balls
from ulna.data.layout.dataset import Dataset
from ulna.data.pipeline.augment import Augment
from ulna.data.pipeline.patches import Structures, place_patch, sample_stream
from ulna.errors import UsageError
from ulna.planning.choosing import choose
from ulna.planning.plan import plan_training, read_training_data
from ulna.training import single as room
from ulna.training.checkpoint import load_checkpoint
from ulna.training.feed import Feed
from ulna.training.samples import Batches, PreparedCases, Samples
from ulna.training.sampling import Balance, Pieces, lesions
from ulna.training.slices import SliceCases, SliceSamples, training_samples
from ulna.training.train import train

CPU = torch.device("cpu")
DRAWS = 1200
SMALL = ("planning.patch=[8, 8]", "planning.batch=4", "augmentation.flip=0", "augmentation.quarter_turn=0")


def voxels(runs):
    first, ends = runs
    lengths = np.diff(ends, prepend=0)
    return frozenset(int(at) for start, n in zip(first, lengths, strict=True) for at in range(start, start + n))


def flooded(mask):
    """The connected components of a mask, voxel by voxel: each a set of places in the order of memory."""
    left, found = {tuple(v) for v in np.argwhere(mask)}, []
    while left:
        piece, edge = set(), [left.pop()]
        while edge:
            here = edge.pop()
            piece.add(here)
            near = [v for v in left if max(abs(a - b) for a, b in zip(v, here, strict=True)) <= 1]
            left -= set(near)
            edge += near
        found.append(frozenset(int(np.ravel_multi_index(v, mask.shape)) for v in piece))
    return set(found)


@pytest.mark.parametrize("size", [(12, 15), (5, 6, 7), (1, 9), (4, 1, 3)])
@pytest.mark.parametrize("share", [0.0, 0.15, 0.4, 1.0])
def test_lesions_are_the_connected_components_with_all_their_voxels(size, share):
    mask = np.random.default_rng(3).random(size) < share
    found = [voxels(runs) for runs in lesions(torch.from_numpy(mask))]
    assert set(found) == flooded(mask) and len(found) == len(set(found))


def maps():
    """Three cases: many lesions of class 1; a large and a small one of it and one of class 2; nothing."""
    first, second, third = (torch.zeros(20, 20, dtype=torch.uint8) for _ in range(3))
    first[::4, ::4] = 1  # 25 of one voxel
    second[:10, :10], second[15, 15], second[18:, :4] = 1, 1, 2
    return first, second, third


def balance_of(labels, sampling, ignored=None):
    pieces = [Pieces.of(Structures(one, 2, ignored), one, sampling) for one in labels]
    return Balance(pieces)


def chosen(balance):
    return [balance.choose(np.random.default_rng(seed)) for seed in range(DRAWS)]


@pytest.mark.parametrize("overlapping", [False, True])
def test_by_class_every_class_and_then_every_case_that_holds_it_is_as_likely(overlapping):
    labels = maps()
    given = [torch.stack([one == 1, one == 2]).byte() for one in labels] if overlapping else labels
    found = chosen(balance_of(given, "class"))
    counts = Counter((int(labels[one.case][one.voxel]), one.case) for one in found)
    assert counts.keys() == {(1, 0), (1, 1), (2, 1)}
    for at, share in (((1, 0), 0.25), ((1, 1), 0.25), ((2, 1), 0.5)):  # 5 standard deviations
        assert abs(counts[at] - share * DRAWS) < 5 * (share * (1 - share) * DRAWS) ** 0.5
    large = [one for one in found if one.case == 1 and labels[1][one.voxel] == 1]
    assert sum(one.voxel == (15, 15) for one in large) < 20, "every voxel of a class counts alike: 1 in 101 is this one"


def test_by_lesion_a_lesion_of_one_voxel_is_as_likely_as_one_of_a_hundred():
    labels = maps()
    found = chosen(balance_of(labels, "lesion"))
    counts = Counter((one.case, int(labels[one.case][one.voxel]), one.voxel == (15, 15)) for one in found)
    for at, share in (
        ((0, 1, False), 25 / 54),
        ((1, 1, False), 1 / 54),
        ((1, 1, True), 1 / 54),
        ((1, 2, False), 1 / 2),
    ):
        assert abs(counts[at] - share * DRAWS) < 5 * (share * (1 - share) * DRAWS) ** 0.5
    assert {one.size for one in found} == {(20, 20)}


def test_what_is_ignored_is_not_chosen_and_nothing_is_where_there_is_nothing():
    first, *_ = maps()
    first[10:] = 3
    found = chosen(balance_of([first], "lesion", ignored=3))
    assert {int(first[one.voxel]) for one in found} == {1}
    assert balance_of([torch.zeros(5, 5, dtype=torch.uint8)], "class").choose(np.random.default_rng(0)) is None


@pytest.fixture(scope="module")
def specks(tmp_path_factory):
    """Six images of a large square, of which one alone has a speck too, that is a class of its own."""
    root = tmp_path_factory.mktemp("specks")
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    rng = np.random.default_rng(0)
    for number in range(6):
        labels = np.zeros((32, 32), np.uint8)
        labels[2 + number : 14 + number, 3:15] = 1
        if number in (2, 5):  # of which one trains
            labels[27, 26] = 2
        image = np.clip(60 + 60 * labels + rng.normal(0, 9, labels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"case{number}.png")
        Image.fromarray(labels).save(root / "labels" / f"case{number}.png")
    ids = [f"case{number}" for number in range(6)]
    (root / "splits.json").write_text(f'{{"train": {ids[:4]}, "val": {ids[4:]}}}'.replace("'", '"'))
    return root


def planned(data, *changes):
    recipe = choose(model="unet", recipe=None, set=(*SMALL, *changes))
    found = read_training_data(Dataset.from_folder(data), recipe.training)
    made = plan_training(found, recipe)
    return found.dataset.cases_of(made.split.train), made


def samples_of(cases, made, **options):
    kept = PreparedCases(cases, made.plan, **options)
    list(kept.fill())
    return Samples(kept, augment=Augment(made.recipe.augmentation, made.plan), foreground=1.0, seed=3)


def batches_of(samples, batch=4, threads=0, epoch=1, first_step=0):
    keys = Batches(len(samples.cases), 24, batch, 3)
    keys.epoch, keys.first_step = epoch, first_step
    return list(Feed(samples, keys, CPU, threads))


def same(one, other):
    return all(torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True))


def test_a_class_that_one_case_holds_is_in_half_of_the_patches(specks):
    cases, made = planned(specks)
    holds = {}
    for sampling in ("case", "class"):
        labels = torch.cat([batch for _, batch in batches_of(samples_of(cases, made, sampling=sampling))])
        holds[sampling] = (labels == 2).flatten(1).any(1).float().mean().item()
    assert holds["case"] < 0.3 < holds["class"] < 0.75


@pytest.mark.parametrize("sampling", ["class", "lesion"])
def test_neither_threads_nor_memory_nor_where_an_epoch_goes_on_change_a_sample(specks, sampling):
    cases, made = planned(specks)
    expected = batches_of(samples_of(cases, made, sampling=sampling))
    again = samples_of(cases, made, sampling=sampling, keep_bytes=0)
    assert not again.cases.keeps(0)
    assert same(batches_of(again, threads=2), expected)
    assert same(batches_of(again, first_step=2), expected[2:])
    assert not same(batches_of(again, epoch=2), expected)


@pytest.mark.parametrize("centred", [False, True])
def test_a_chosen_voxel_lies_in_its_patch_and_in_the_middle_where_patches_are_centred(specks, centred):
    cases, made = planned(specks)
    samples = samples_of(cases, made, sampling="lesion")
    samples.centred = centred
    found = []
    for number in range(40):
        _, labels = samples.make([samples.draw((0, number, 0))], CPU)
        assert labels.any()
        found.append(bool(labels[0, 4, 4]))
    assert all(found) if centred else not all(found)


@pytest.mark.parametrize("centred", [False, True])
def test_by_case_every_number_is_drawn_as_ever(specks, centred):
    """Written as it was before there was a choice: what earlier recipes train on stays the same to the bit."""
    cases, made = planned(specks)
    samples = samples_of(cases, made)
    samples.foreground, samples.centred = 0.5, centred
    for key in [(0, 0, 2), (0, 1, 0), (5, 17, 1), (2, 3, 3)]:
        epoch, number, case = key
        stream, (prepared, labels) = sample_stream(3, epoch, number), samples.cases[case]
        where = Structures(labels, 2)
        start = place_patch(where, made.plan.patch, foreground=0.5, generator=stream, centred=centred)
        draw = samples.augment.draw(stream)
        (image,), (cut,) = samples.augment.apply([samples.augment.cut(prepared.image, labels, start, draw)], [draw])
        found = samples.make([samples.draw(key)], CPU)
        assert torch.equal(found[0][0], image) and torch.equal(found[1][0], cut)


def test_a_slice_is_chosen_that_shows_the_lesion_and_a_lesion_is_one_through_all_slices(tmp_path):
    data = draw_balls(tmp_path / "balls", 5)
    cases, made = planned(data, "planning.spatial_dims=2")
    kept = SliceCases(cases, made.plan, sampling="lesion")
    list(kept.fill())
    samples = SliceSamples(kept, augment=Augment(made.recipe.augmentation, made.plan), foreground=1.0, seed=0)
    pieces = [len(runs) for case in range(len(cases)) for runs in kept._pieces[case].by_class.values()]
    assert pieces == [1] * len(cases)
    shown = Counter()
    for number in range(60):
        stream = sample_stream(0, 0, number)
        place = samples.chosen(stream)
        shown[place.case, place.voxel[0]] += 1
        _, labels = samples.make([samples.draw((0, number, 0))], CPU)
        assert labels.any(), "an empty slice was the one whose turn it was, or the ball lies outside of the patch"
    assert len({case for case, _ in shown}) == len(cases) and len({place for _, place in shown}) > 2


def test_the_field_of_the_recipe_is_what_a_training_samples_by(specks, tmp_path):
    cases, made = planned(specks, "training.sampling=lesion")
    samples = training_samples(cases, made.plan, made.recipe, folder=tmp_path, device=CPU, device_bytes=0)
    assert samples.cases.sampling == "lesion"
    with pytest.raises(UsageError, match=r"training\.sampling: .*'case', 'class' or 'lesion'"):
        planned(specks, "training.sampling=lesions")
    with pytest.raises(UsageError, match="sampling is class and foreground is 0, so that no patch is placed"):
        planned(specks, "training.foreground=0", "training.sampling=class")


@pytest.mark.slow
def test_a_training_by_lesion_that_was_stopped_goes_on_exactly(specks, tmp_path, monkeypatch):
    options = {"model": "unet", "epochs": 2, "set": (*TINY, *SMALL[:2], "training.sampling=lesion")}
    whole, part, record = train(specks, out=tmp_path / "whole", **options), tmp_path / "part", room.record_epoch

    def killed_after_one(folder, state, *rest):
        record(folder, state, *rest)
        if state.epoch == 1:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(room, "record_epoch", killed_after_one)
        train(specks, out=part, **options)
    train(specks, out=part, resume=True)
    a, b = (load_checkpoint(folder / "checkpoints").tensors for folder in (whole.folder, part))
    assert all(torch.equal(a[name], b[name]) for name in a)
