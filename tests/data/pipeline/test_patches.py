import numpy as np
import pytest
import torch

from tests.plans import make
from ulna.data.pipeline.augment import Augment
from ulna.data.pipeline.patches import crop_patch, epoch_order, sample_stream
from ulna.recipe import Augmentation

NOTHING = dict.fromkeys(("flip", "quarter_turn", "affine", "intensity", "gamma", "noise", "blur"), 0.0)


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


def test_flips_and_turns_move_image_and_labels_together_along_allowed_axes_only():
    image, labels = picture((8, 8))
    flip = Augment(Augmentation(**{**NOTHING, "flip": 1.0}), make(mirror_axes=(1,), turn_axes=None))
    a, b = flip(image, labels, np.random.default_rng(0))
    assert torch.equal(b, labels.flip(1))
    assert torch.equal(a[0], b.float())
    turn = Augment(Augmentation(**{**NOTHING, "quarter_turn": 1.0}), make(mirror_axes=()))
    a, b = turn(image, labels, np.random.default_rng(0))
    assert any(torch.equal(b, torch.rot90(labels, k, (0, 1))) for k in (1, 2, 3))
    assert torch.equal(a[0], b.float())


def test_rotation_and_scaling_move_image_and_labels_together():
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[20:40, 25:50] = 1
    augment = Augment(Augmentation(**{**NOTHING, "affine": 1.0, "degrees": 30}), make())
    a, b = augment(labels[None].float(), labels, np.random.default_rng(4))
    assert b.dtype == torch.uint8
    assert set(b.unique().tolist()) == {0, 1}
    assert not torch.equal(b, labels)
    assert (((a[0] > 0.5) == (b > 0)).float().mean()) > 0.98


def test_shear_slides_rows_along_by_at_most_its_angle():
    size, wide = (64, 96), torch.arange(64.0)[:, None].expand(64, 96)
    augment = Augment(Augmentation(**{**NOTHING, "affine": 1.0, "degrees": 0, "scale": 0, "shear": 10}), make())
    labels = torch.zeros(size, dtype=torch.uint8)
    labels[20:40, 30:60] = 1
    slopes = []
    for seed in range(20):
        columns, _ = augment(torch.arange(96.0).expand(1, *size).clone(), labels, np.random.default_rng(seed))
        torch.testing.assert_close(columns[0], torch.arange(96.0).expand(size), atol=1e-3, rtol=0)  # no column moves
        rows, _ = augment(wide[None].clone(), labels, np.random.default_rng(seed))
        inside = rows[0, 32]  # the rest may hold a border
        slopes.append(float(inside[60] - inside[40]) / 20)
        moved, masks = augment(labels[None].float(), labels, np.random.default_rng(seed))
        assert ((moved[0] > 0.5) == (masks > 0)).float().mean() > 0.98
    most = np.tan(np.deg2rad(10))
    assert max(slopes) > most / 2
    assert min(slopes) < -most / 2
    assert max(map(abs, slopes)) < most + 1e-3


def test_intensity_changes_leave_labels_alone_and_repeat_by_seed():
    image, labels = torch.randn(1, 16, 16), torch.randint(0, 2, (16, 16), dtype=torch.uint8)
    every = Augment(Augmentation(**{**NOTHING, "intensity": 1.0, "gamma": 1.0, "noise": 1.0, "blur": 1.0}), make())
    a, b = every(image, labels, np.random.default_rng(7))
    assert torch.equal(b, labels)
    assert not torch.equal(a, image)
    again, _ = every(image, labels, np.random.default_rng(7))
    assert torch.equal(a, again)


def test_volumes_and_overlapping_classes_are_changed_too():
    augment = Augment(Augmentation(), make(spatial_dims=3))
    image, labels = torch.randn(1, 8, 8, 8), torch.randint(0, 2, (2, 8, 8, 8), dtype=torch.uint8)
    for seed in range(6):
        a, b = augment(image, labels, np.random.default_rng(seed))
        assert a.shape == image.shape
        assert b.shape == labels.shape
