"""Sampled points: how many lie near a boundary, how far from it, and what happens without one."""

import itertools

import pytest
import torch

from ulna.data.pipeline.points import boundary, count_points, near_boundary, sample_points
from ulna.recipe import Points


def drawn(labels, dims=2, *, seed=0, **changes):
    options = {"count": 4000, "alpha": 0.5, "sigma": 5.0, **changes}
    return sample_points(labels, dims, generator=torch.Generator().manual_seed(seed), **options)


def halves(rows=200, columns=200):
    labels = torch.zeros(1, rows, columns, dtype=torch.uint8)
    labels[:, rows // 2 :] = 1
    return labels


@pytest.mark.parametrize("shape", [(5, 6), (3, 4, 5), (1, 7), (1, 1)])
def test_the_boundary_is_where_a_neighbour_along_an_axis_differs(shape):
    labels = torch.randint(0, 3, (2, *shape), generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, *shape, dtype=torch.bool)
    for n, at in itertools.product(range(2), itertools.product(*map(range, shape))):
        for axis, step in itertools.product(range(len(shape)), (-1, 1)):
            other = [a + step * (i == axis) for i, a in enumerate(at)]
            if 0 <= other[axis] < shape[axis] and labels[(n, *at)] != labels[(n, *other)]:
                expected[(n, *at)] = True
    assert torch.equal(boundary(labels, len(shape)), expected)


def test_overlapping_classes_have_the_boundaries_of_each():
    labels = torch.zeros(1, 2, 4, 4)
    labels[0, 0, :2], labels[0, 1, :, :1] = 1, 1
    union = boundary(labels[:, 0], 2) | boundary(labels[:, 1], 2)
    assert torch.equal(boundary(labels, 2), union)


def test_points_near_the_boundary_scatter_with_sigma_and_along_it_with_the_image():
    rows = (drawn(halves(), alpha=1.0)[0, :, 0] - 99.5).double()
    # boundary rows 99 and 100 are half a voxel from the edge; rounding adds a twelfth to the variance
    assert rows.mean().abs() < 0.3
    assert rows.std().item() == pytest.approx((25 + 0.25 + 1 / 12) ** 0.5, rel=0.04)
    assert drawn(halves(), alpha=1.0)[0, :, 1].double().mean().item() == pytest.approx(99.5, abs=3)
    still = drawn(halves(), alpha=1.0, sigma=0.0)[0, :, 0]
    assert set(still.tolist()) == {99, 100}


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 1.0])
def test_the_share_near_the_boundary_is_alpha(alpha):
    rows = drawn(halves(), alpha=alpha, sigma=1.0)[0, :, 0]
    near = ((rows >= 90) & (rows < 110)).double().mean().item()
    assert near == pytest.approx(alpha + (1 - alpha) * 20 / 200, abs=0.02)


def test_points_anywhere_cover_the_patch_evenly():
    points = drawn(halves(8, 6), alpha=0.0, count=48_000)[0]
    counts = torch.bincount(points[:, 0] * 6 + points[:, 1], minlength=48)
    assert counts.shape == (48,)
    assert counts.min() > 850
    assert counts.max() < 1150


def test_a_patch_without_boundary_has_all_its_points_anywhere_and_its_neighbour_in_the_batch_does_not():
    labels = torch.cat([torch.ones(1, 200, 200, dtype=torch.uint8), halves()])
    points = drawn(labels, alpha=1.0, sigma=1.0)
    assert points[0].double().std().item() == pytest.approx(200 / 12**0.5, rel=0.05)
    assert points[1, :, 0].double().std() < 2


@pytest.mark.parametrize("shape", [(1, 3), (2, 2, 3), (1, 1)])
def test_points_stay_inside_small_patches(shape):
    labels = torch.zeros(2, *shape, dtype=torch.uint8)
    labels[..., :1] = 1
    points = drawn(labels, len(shape), sigma=50.0, count=500)
    assert points.shape == (2, 500, len(shape))
    assert points.dtype == torch.int64
    assert points.min() >= 0
    assert (points.amax(dim=(0, 1)) < torch.tensor(shape)).all()


def test_the_same_generator_gives_the_same_points():
    labels = halves(20, 20)
    assert torch.equal(drawn(labels, seed=3), drawn(labels, seed=3))
    assert not torch.equal(drawn(labels, seed=3), drawn(labels, seed=4))


@pytest.mark.parametrize(
    ("settings", "sparse", "expected"),
    [
        ({}, False, None),
        ({}, True, 30_000),
        ({"count": 500}, False, 500),
        ({"fraction": 0.1}, True, 10_000),
        ({"fraction": 1e-9}, True, 1),
        ({"count": 1}, False, 1),
        ({"count": 1e9}, True, 100_000),
    ],
)
def test_how_many_points_a_step_reads(settings, sparse, expected):
    assert count_points(Points(**settings), 100_000, sparse=sparse) == expected


def near(edge, count, sigma=0.0, seed=0):
    anywhere = torch.full((len(edge), count, edge.ndim - 1), -1)
    return near_boundary(edge, anywhere, sigma=sigma, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(2, 9, 13), (2, 5, 6, 7)])
def test_without_listing_the_boundary_all_of_it_is_found_and_nothing_else(shape):
    """What a GPU takes in place of a list, whose length the host would have to wait for."""
    edge = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.2
    for one, points in zip(edge, near(edge, 4000), strict=True):
        assert set(map(tuple, points.tolist())) == set(map(tuple, one.nonzero().tolist()))


def test_every_voxel_of_a_boundary_comes_as_often():
    edge = torch.zeros(1, 8, 8, dtype=torch.bool)
    edge[0, 0, 0] = edge[0, 3, 5] = edge[0, 7, 7] = edge[0, 7, 6] = True
    _, counts = near(edge, 40_000)[0].unique(dim=0, return_counts=True)
    assert counts.tolist() == pytest.approx([10_000] * 4, rel=0.05)  # five standard deviations


def test_points_near_no_boundary_stay_and_the_others_scatter_inside_the_patch():
    edge = torch.zeros(2, 16, 12, dtype=torch.bool)
    edge[1, 8, 6] = True
    stayed, scattered = near(edge, 20_000, sigma=2.0)
    assert bool((stayed == -1).all())
    assert (scattered.float() - torch.tensor([8.0, 6.0])).std(0).tolist() == pytest.approx([2.0, 2.0], rel=0.05)
    wide = near(edge, 2000, sigma=50.0)[1]
    assert wide.min() == 0 and wide.amax(0).tolist() == [15, 11]
