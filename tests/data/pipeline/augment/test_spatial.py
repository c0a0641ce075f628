"""Where voxels come from, by literal geometry: the values of the images are the places of their voxels in mm."""

import itertools

import numpy as np
import pytest
import torch

from tests.data.pipeline.augment.nothing import only
from tests.plans import make
from ulna.data.pipeline.augment import Augment, Draw, Piece
from ulna.data.pipeline.augment.draws import turn
from ulna.data.pipeline.augment.spatial import Spatial
from ulna.recipe import Normalization

SPACING = (1.25, 0.8, 2.0)
SIZE, PATCH = (40, 50, 44), (9, 13, 11)


def plan_of(dims, **changes):
    fields = {
        "spatial_dims": dims,
        "in_channels": dims,
        "channel_names": ("x", "y", "z")[:dims],
        "spacing": SPACING[:dims],
    }
    fields |= {"normalization": (Normalization(kind="none"),) * dims, "patch": PATCH[:dims], "turn_axes": None}
    return make(**{**fields, **changes})


def places(size, spacing):
    """(D, *S): where every voxel lies, in mm. Linear, so that interpolation between voxels is exact."""
    axes = [torch.arange(n) * float(s) for n, s in zip(size, spacing, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def sampled(plan, draw, start, size):
    """One sample of an image of places and of labels that count the voxels."""
    spatial, image = Spatial(plan), places(size, plan.spacing)
    labels = torch.arange(image[0].numel(), dtype=torch.int32).reshape(image.shape[1:])
    piece = spatial.cut(image, labels, start, draw)
    images, maps = spatial.sample([piece], [draw])
    return images[0], maps[0]


def expected(plan, start, matrix):
    """The same by the definition: matrix @ (place from the centre) + centre, in mm."""
    patch, spacing = np.asarray(plan.patch), np.asarray(plan.spacing)
    centre = (np.asarray(start) + (patch - 1) / 2) * spacing
    found = np.empty((len(patch), *patch))
    for voxel in itertools.product(*map(range, patch)):
        found[(slice(None), *voxel)] = matrix @ ((np.asarray(voxel) - (patch - 1) / 2) * spacing) + centre
    return torch.from_numpy(found).float()


def matrices(dims):
    sheared = np.eye(dims)
    sheared[0, 1] = 0.2
    turned = turn(dims, (0, 1), np.deg2rad(15))
    return {"scale": 1.1 * np.eye(dims), "turn": turned, "shear": sheared, "all": 0.9 * sheared @ turned}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", ["scale", "turn", "shear", "all"])
def test_every_voxel_comes_from_where_the_matrix_says_in_mm(dims, kind):
    """Corners too: they show the image, which a patch that was cut before would not hold."""
    plan, start, matrix = plan_of(dims), (14, 17, 15)[:dims], matrices(dims)[kind]
    image, labels = sampled(plan, Draw(matrix=matrix), start, SIZE[:dims])
    literal = expected(plan, start, matrix)
    torch.testing.assert_close(image, literal, atol=1e-4, rtol=0)  # float32 places of up to 80 mm
    voxels = (literal / torch.tensor(plan.spacing).reshape(-1, *[1] * dims)).numpy()
    clear = (np.abs(voxels - np.floor(voxels) - 0.5) > 1e-3).all(0)  # not half-way between two voxels
    number = np.ravel_multi_index([np.round(axis).astype(int) for axis in voxels], SIZE[:dims])
    assert np.array_equal(labels.numpy()[clear], number[clear])


def test_a_turn_by_15_degrees_keeps_lengths_in_mm():
    """With pixels of 1.25 x 0.8 mm, where a turn in voxels would stretch one direction by 13 %."""
    plan = plan_of(2)
    image, _ = sampled(plan, Draw(matrix=turn(2, (0, 1), np.deg2rad(15))), (14, 17), SIZE[:2])
    rows, columns = image[:, -1, 6] - image[:, 0, 6], image[:, 4, -1] - image[:, 4, 0]
    assert rows.norm().item() == pytest.approx(8 * 1.25, abs=1e-4)
    assert columns.norm().item() == pytest.approx(12 * 0.8, abs=1e-4)
    assert (rows @ columns).item() == pytest.approx(0, abs=1e-3)
    assert torch.rad2deg(torch.atan2(rows[1], rows[0])).item() == pytest.approx(15, abs=1e-3)


def test_a_scaling_moves_along_every_axis():
    plan = plan_of(3)
    image, _ = sampled(plan, Draw(matrix=1.15 * np.eye(3)), (14, 17, 15), SIZE)
    for axis, (spacing, length) in enumerate(zip(SPACING, PATCH, strict=True)):
        ends = image[axis].movedim(axis, 0)
        assert (ends[-1] - ends[0]).mean().item() == pytest.approx(1.15 * spacing * (length - 1), rel=1e-5)


@pytest.mark.parametrize("flips", [(), (0,), (0, 1, 2)])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_flips_and_quarter_turns_keep_every_value_and_go_into_the_one_resampling(flips, quarters):
    plan = plan_of(3, patch=(9, 11, 11), spacing=(2.0, 0.8, 0.8), turn_axes=(1, 2))
    start = (14, 17, 15)
    image, labels = sampled(plan, Draw(flips, quarters), start, SIZE)
    window = tuple(slice(s, s + p) for s, p in zip(start, plan.patch, strict=True))
    exact = places(SIZE, plan.spacing)[(slice(None), *window)].flip([axis + 1 for axis in flips])
    exact = torch.rot90(exact, quarters, (2, 3))
    numbers = torch.arange(np.prod(SIZE)).reshape(SIZE)[window].flip(flips).rot90(quarters, (1, 2))
    assert torch.equal(image, exact)
    assert torch.equal(labels, numbers.int())
    again, maps = sampled(plan, Draw(flips, quarters, matrix=np.eye(3)), start, SIZE)
    torch.testing.assert_close(again, exact, atol=1e-4, rtol=0)
    assert torch.equal(maps, labels)


@pytest.mark.parametrize("quarters", [0, 1])
def test_bends_displace_by_what_was_drawn_at_their_points(quarters):
    plan = plan_of(2, patch=(9, 9), spacing=(0.8, 0.8), turn_axes=(0, 1))
    bends = np.random.default_rng(0).normal(0, 1.0, (2, 3, 3))
    start = (20, 25)
    still, _ = sampled(plan, Draw((1,), quarters), start, (60, 60))
    image, labels = sampled(plan, Draw((1,), quarters, matrix=np.eye(2), bends=bends), start, (60, 60))
    moved = torch.stack([(image - still)[:, row, column] for row in (0, 4, 8) for column in (0, 4, 8)], 1)
    # the sample that is bent is flipped and turned already: what it is displaced by is seen in the directions of the image
    way = np.linalg.matrix_power([[0, 1], [-1, 0]], quarters)
    literal = np.tensordot(np.diag([1, -1]) @ way, bends, axes=1).reshape(2, 9)
    np.testing.assert_allclose(moved, literal, atol=1e-4)
    between = (image - still)[:, 2, 2]
    assert not torch.equal(between, torch.zeros(2))
    assert len(labels.unique()) > 60  # no voxel is far from its neighbour's


def test_beyond_the_image_the_outermost_voxels_are_repeated():
    plan = plan_of(2, patch=(16, 16))
    small = (10, 20)
    still, labels = sampled(plan, Draw(), (-3, 2), small)
    assert torch.equal(still[0, :, 0], 1.25 * torch.tensor([0, 0, 0, *range(10), 9, 9, 9]))
    assert torch.equal(labels[0], labels[3])
    moved, maps = sampled(plan, Draw(matrix=np.eye(2)), (-3, 2), small)
    torch.testing.assert_close(moved, still, atol=1e-4, rtol=0)
    assert torch.equal(maps, labels)
    far, _ = sampled(plan, Draw(matrix=3 * np.eye(2)), (-3, 2), small)
    assert far[0].max() == 9 * 1.25
    assert far[0].min() == 0


@pytest.mark.parametrize("dims", [2, 3])
def test_a_part_of_the_image_is_enough(dims):
    """What a sample is taken from may be the whole image or the part that was cut of it.

    Bends of 2.07 mm put no voxel in the middle between two, where rounding decides which label is nearest.
    """
    plan, draw = plan_of(dims), Draw(matrix=0.97 * matrices(dims)["all"], bends=np.full((dims, *(3,) * dims), 2.07))
    image, start = torch.randn(dims, *SIZE[:dims]), (14, 17, 15)[:dims]
    labels = torch.randint(0, 3, SIZE[:dims], dtype=torch.uint8)
    spatial = Spatial(plan)
    piece = spatial.cut(image, labels, start, draw)
    assert piece.image[0].numel() < image[0].numel() / 2
    part, whole = (spatial.sample([one], [draw]) for one in (piece, Piece(image, labels, start)))
    torch.testing.assert_close(part[0], whole[0], atol=1e-4, rtol=0)
    assert (part[1] == whole[1]).float().mean() > 0.999


def test_settings_and_plan_reach_the_samples():
    """A shear that a recipe states, and that alone: columns keep their places, rows slide by at most its angle."""
    plan = plan_of(2)
    augment = Augment(only(affine=1.0, degrees=0, scale=0, shear=10), plan)
    slopes = []
    for seed in range(30):
        draw = augment.draw(np.random.default_rng(seed))
        image = places(SIZE[:2], plan.spacing)
        piece = augment.cut(image, image[0].to(torch.uint8), (14, 17), draw)
        made, _ = augment.apply([piece], [draw])
        torch.testing.assert_close(made[0, 1], image[1, 14:23, 17:30], atol=1e-4, rtol=0)
        slopes.append(float(made[0, 0, 4, 12] - made[0, 0, 4, 0]) / (12 * 0.8))
    most = np.tan(np.deg2rad(10))
    assert most / 2 < max(slopes) < most + 1e-4
    assert -most - 1e-4 < min(slopes) < -most / 2
