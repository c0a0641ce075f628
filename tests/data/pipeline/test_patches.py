import numpy as np
import pytest
import torch

from tests.data.pipeline.augment.nothing import only
from tests.plans import make
from ulna.data.pipeline.augment import Augment, Draw
from ulna.data.pipeline.patches import Structures, epoch_order, place_patch, sample_stream


def crop_patch(image, labels, patch, *, foreground, generator):
    """One random patch as it is: placed, and cut."""
    dims = len(patch)
    start = place_patch(Structures(labels, dims), patch, foreground=foreground, generator=generator)
    augment = Augment(only(), make(spatial_dims=dims, patch=patch))
    (cut,), (maps,) = augment.apply([augment.cut(image, labels, start, Draw())], [Draw()])
    return cut, maps


def test_a_sample_draws_the_same_numbers_whatever_ran_before():
    first = sample_stream(1, 2, 3).random(4)
    sample_stream(1, 2, 2).random(100)
    assert np.array_equal(sample_stream(1, 2, 3).random(4), first)
    for other in ((0, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(sample_stream(*other).random(4), first)


def test_an_epoch_shows_every_case_before_any_case_again():
    order = epoch_order(5, 12, seed=0, epoch=0)
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert len(order) == 12
    assert order != epoch_order(5, 12, seed=0, epoch=1)


@pytest.mark.parametrize(("cases", "count"), [(5, 12), (5, 5), (10, 3), (1, 4), (7, 10)])
def test_rounds_go_on_from_epoch_to_epoch(cases, count):
    """Else an epoch of fewer samples than cases would leave some out for long."""
    orders = [epoch_order(cases, count, seed=3, epoch=epoch) for epoch in range(2 * cases)]
    assert {len(order) for order in orders} == {count}
    shown = [case for order in orders for case in order]
    rounds = [shown[at : at + cases] for at in range(0, len(shown), cases)]
    assert all(sorted(one) == list(range(cases)) for one in rounds)
    assert cases < 5 or len({tuple(one) for one in rounds}) > 1


def picture(size=(20, 30)):
    labels = torch.arange(size[0] * size[1], dtype=torch.int32).reshape(size)
    return labels[None].float(), labels


def test_image_and_labels_are_cut_at_the_same_place():
    image, labels = picture()
    for seed in range(5):
        a, b = crop_patch(image, labels, (8, 12), foreground=0.5, generator=np.random.default_rng(seed))
        assert a.shape == (1, 8, 12)
        assert torch.equal(a[0], b.float())


def test_every_place_can_be_cut():
    image, labels = picture((6, 6))
    corners = {
        int(crop_patch(image, labels, (4, 4), foreground=0, generator=np.random.default_rng(s))[1][0, 0])
        for s in range(200)
    }
    assert corners == {r * 6 + c for r in range(3) for c in range(3)}


def test_a_patch_holds_foreground_as_often_as_asked():
    image, labels = torch.zeros(1, 64, 64), torch.zeros(64, 64, dtype=torch.uint8)
    labels[3, 60] = 2
    cut = [crop_patch(image, labels, (8, 8), foreground=1.0, generator=np.random.default_rng(s))[1] for s in range(20)]
    assert all(patch.max() == 2 for patch in cut)
    places = {tuple(patch.nonzero()[0].tolist()) for patch in cut}
    assert len(places) > 5  # not always in the middle
    rare = [crop_patch(image, labels, (8, 8), foreground=0.0, generator=np.random.default_rng(s))[1] for s in range(20)]
    assert sum(int(patch.max()) > 0 for patch in rare) < 5


@pytest.mark.parametrize("overlapping", [False, True])
def test_every_structure_is_as_likely_as_any_other_and_then_every_voxel_of_it(overlapping):
    labels = torch.zeros(20, 20, 20, dtype=torch.uint8)
    labels[:, :, :15] = 1  # 6,000 voxels
    labels[4:6, 4:6, 17] = 2  # 4 voxels
    labels[9, 9, 19] = 5  # one
    maps = torch.stack([labels == value for value in (1, 2, 5)]).to(torch.uint8) if overlapping else labels
    image = torch.arange(20**3).reshape(1, 20, 20, 20).float()
    found = []
    for seed in range(900):
        cut, _ = crop_patch(image, maps, (1, 1, 1), foreground=1.0, generator=np.random.default_rng(seed))
        place = int(cut)
        found.append((int(labels.flatten()[place]), place))
    for value in (1, 2, 5):
        assert abs(sum(v == value for v, _ in found) - 300) < 60  # 4 standard deviations
    assert len({place for value, place in found if value == 2}) == 4
    assert len({place for value, place in found if value == 1}) > 250


def test_images_smaller_than_the_patch_are_padded_with_their_border():
    image, labels = picture((3, 4))
    a, b = crop_patch(image, labels, (5, 4), foreground=0, generator=np.random.default_rng(0))
    assert torch.equal(a[0], b.float())
    assert torch.equal(b[0], labels[0])
    assert torch.equal(b[4], labels[2])


@pytest.mark.parametrize("overlapping", [False, True])
def test_structures_hold_every_voxel_once(overlapping):
    labels = torch.randint(0, 4, (5, 6, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    maps = torch.stack([labels == 1, labels > 1]).byte() if overlapping else labels
    structures = Structures(maps, 3)
    masks = list(maps > 0) if overlapping else [labels == value for value in (1, 2, 3)]

    class Numbers:
        """In place of a generator: these numbers, one after the other."""

        def __init__(self, *numbers):
            self.numbers = list(numbers)

        def integers(self, below):
            assert self.numbers[0] < below
            return self.numbers.pop(0)

    for which, mask in enumerate(masks):
        found = [structures.random_voxel(Numbers(which, number)) for number in range(int(mask.sum()))]
        assert found == [tuple(voxel) for voxel in mask.nonzero().tolist()]


def test_without_a_structure_patches_lie_anywhere():
    structures = Structures(torch.zeros(9, 9, dtype=torch.uint8), 2)
    assert structures.random_voxel(np.random.default_rng(0)) is None
    starts = {place_patch(structures, (8, 8), foreground=1.0, generator=np.random.default_rng(s)) for s in range(40)}
    assert starts == {(0, 0), (0, 1), (1, 0), (1, 1)}


def by_definition(labels, patch, *, foreground, generator):
    """A centred patch by lists of voxels: which one is drawn, by the same random numbers."""
    fits = generator.random() < foreground
    voxels = {value: [tuple(v) for v in (labels == value).nonzero().tolist()] for value in labels.unique().tolist()}
    structures = [voxels[value] for value in sorted(voxels) if value > 0]
    if fits and structures:
        chosen = structures[int(generator.integers(len(structures)))]
    else:
        chosen = voxels[0]
    voxel = chosen[int(generator.integers(len(chosen)))]
    return tuple(
        -((p - n) // 2) if n < p else min(max(v - p // 2, 0), n - p)
        for v, p, n in zip(voxel, patch, labels.shape, strict=True)
    )


@pytest.mark.parametrize("size", [(20, 30), (7, 31), (9, 8, 15)])
def test_centred_patches_lie_about_structures_and_background(size):
    labels = torch.randint(-3, 3, size, generator=torch.Generator().manual_seed(1)).clamp(0, 2)
    patch = (8, 9, 5)[: len(size)]
    structures = Structures(labels, len(size))
    for seed in range(50):
        numbers = [np.random.default_rng(seed) for _ in range(2)]
        start = place_patch(structures, patch, foreground=0.4, generator=numbers[0], centred=True)
        assert start == by_definition(labels, patch, foreground=0.4, generator=numbers[1])


@pytest.mark.parametrize("overlapping", [False, True])
def test_one_centred_patch_in_three_has_a_structure_in_its_middle(overlapping):
    """Implicit U-Net, Sec. 2: 1 to 2 positive to negative."""
    labels = torch.zeros(30, 30, dtype=torch.uint8)
    labels[5:25, 5:25] = 1
    labels[10:20, 10:20] = 2
    maps = torch.stack([labels > 0, labels == 2]).byte() if overlapping else labels
    structures = Structures(maps, 2)
    centres = []
    for seed in range(600):
        stream = np.random.default_rng(seed)
        start = place_patch(structures, (3, 3), foreground=1 / 3, generator=stream, centred=True)
        centres.append(int(labels[start[0] + 1, start[1] + 1]))
    # 4 standard deviations; placed anywhere, the others would make it 378, for 400 of 900 voxels are of a structure
    assert abs(sum(value > 0 for value in centres) - 200) < 46


def test_what_an_image_lacks_the_other_kind_of_centre_stands_for():
    full, empty = torch.ones(6, 6, dtype=torch.uint8), torch.zeros(6, 6, dtype=torch.uint8)
    for labels, foreground in ((full, 0.0), (empty, 1.0)):
        numbers = [np.random.default_rng(s) for s in range(40)]
        places = {
            place_patch(Structures(labels, 2), (3, 3), foreground=foreground, generator=g, centred=True)
            for g in numbers
        }
        assert len(places) > 8


@pytest.mark.parametrize("overlapping", [False, True])
def test_what_is_ignored_is_neither_structure_nor_background(overlapping):
    labels = torch.full((9, 12), 9, dtype=torch.uint8)
    labels[2, 3], labels[6:8, 5] = 1, 0
    maps = torch.stack([labels, labels]) if overlapping else labels
    numbers, structures = np.random.default_rng(0), Structures(maps, 2, ignored=9)
    assert {structures.random_voxel(numbers) for _ in range(20)} == {(2, 3)}
    assert {structures.random_background(numbers) for _ in range(20)} == {(6, 5), (7, 5)}
    nothing = Structures(torch.full_like(maps, 9), 2, ignored=9)
    start = place_patch(nothing, (4, 4), foreground=0.5, generator=numbers, centred=True)
    assert start == (0, 0)
