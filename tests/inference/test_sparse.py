"""Three stages against the dense answer: identical where they must be, cheaper where they may differ."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import ulna.inference.sparse as room
from tests.data.pipeline.test_patches import crop_patch
from tests.plans import make
from ulna.data.pipeline.preprocess import Prepared
from ulna.inference.sliding import gaussian, window_starts
from ulna.inference.sparse import PointCounts, by_stages, on_boundary, smoothed
from ulna.inference.volume import predict_slabs
from ulna.networks.build import build
from ulna.networks.heads import Outputs, probabilities
from ulna.recipe import Inference, Labels

SIZES = {2: (16, 24), 3: (8, 12, 16)}
NARROW = {"kind": "points", "options": {"width": 16, "depth": 3}}


def network(dims, classes):
    generator = torch.Generator().manual_seed(0)
    return build(
        "implicit_unet", spatial_dims=dims, classes=classes, channels=(3, 4, 6), head=NARROW, generator=generator
    ).eval()


def staged(net, image, *, spacing, refine="halving", tally=None, multilabel=False):
    settings = Inference(mesh_step=spacing, refine=refine)
    with torch.inference_mode():
        return by_stages(net, image, settings=settings, multilabel=multilabel, tally=tally)


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("dims", [2, 3])
def test_spacing_1_is_the_dense_answer_exactly(dims, classes, multilabel):
    net, image = network(dims, classes), torch.randn(1, 1, *SIZES[dims])
    tally = PointCounts()
    with torch.inference_mode():
        dense = probabilities(net(image), multilabel=multilabel)
    assert torch.equal(staged(net, image, spacing=1, multilabel=multilabel, tally=tally), dense)
    assert tally == PointCounts(voxels=image.numel(), mesh=image.numel(), refined=0)


def test_windows_of_a_batch_are_answered_each_by_itself():
    net, images = network(2, 3), torch.randn(3, 1, 16, 24)
    alone = torch.cat([staged(net, image[None], spacing=4) for image in images])
    torch.testing.assert_close(staged(net, images, spacing=4), alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("refine", ["halving", "once"])
@pytest.mark.parametrize("spacing", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("dims", [2, 3])
def test_with_every_cell_on_a_boundary_it_is_the_dense_answer_exactly(dims, spacing, refine, bf16, monkeypatch):
    monkeypatch.setattr(room, "on_boundary", lambda labels: torch.ones_like(labels[:, 0], dtype=torch.bool))
    net, image = network(dims, 3), torch.randn(1, 1, *SIZES[dims])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        dense = probabilities(net(image))
        assert torch.equal(staged(net, image, spacing=spacing, refine=refine), dense)


@pytest.mark.parametrize("size", [(13, 9), (1, 1), (3, 20), (7, 5, 9)])
def test_sizes_that_neither_strides_nor_mesh_divide(size, monkeypatch):
    monkeypatch.setattr(room, "on_boundary", lambda labels: torch.ones_like(labels[:, 0], dtype=torch.bool))
    net, image = network(len(size), 2), torch.randn(1, 1, *size)
    with torch.inference_mode():
        torch.testing.assert_close(staged(net, image, spacing=4), probabilities(net(image)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 4), (1, 3), (3, 4, 3), (2, 1, 1)])
def test_a_cell_is_on_a_boundary_if_its_neighbourhood_holds_two_labels(shape):
    labels = torch.randint(0, 3, (2, 1, *shape), generator=torch.Generator().manual_seed(1))
    labels[labels == 1] = 0  # some neighbourhoods of one label
    expected = torch.zeros(2, *shape, dtype=torch.bool)
    for n, at in itertools.product(range(2), itertools.product(*map(range, shape))):
        found = set()
        for step in itertools.product((-1, 0, 1), repeat=len(shape)):
            other = [a + s for a, s in zip(at, step, strict=True)]
            if all(0 <= o < m for o, m in zip(other, shape, strict=True)):
                found.add(labels[(n, 0, *other)].item())
        expected[(n, *at)] = len(found) > 1
    assert torch.equal(on_boundary(labels), expected)


def test_overlapping_classes_have_the_boundaries_of_each():
    labels = torch.zeros(1, 2, 9, 9)
    labels[0, 0, :3], labels[0, 1, :, 7:] = 1, 1
    assert torch.equal(on_boundary(labels), on_boundary(labels[:, :1]) | on_boundary(labels[:, 1:]))


class Ball:
    """A network that knows a ball: its logit at a point is how far inside the point lies."""

    def __init__(self, centre, radius):
        self.centre, self.radius, self.asked = torch.tensor(centre), radius, []
        self.head = self

    def encode(self, image):
        return {}, image.shape[2:]

    def reader(self, maps, size):
        return self.read

    def read(self, points):
        self.asked.append(points.shape[1])
        logits = self.radius - (points - self.centre).double().norm(dim=-1)[:, None]
        return Outputs(logits, {}, points)


@pytest.mark.parametrize("spacing", [2, 4])
@pytest.mark.parametrize("radius", [6.0, 9.3])
def test_a_ball_wider_than_the_mesh_is_found_to_the_voxel_from_few_points(spacing, radius):
    ball, tally = Ball((15.2, 16.9, 14.6), radius), PointCounts()
    p = staged(ball, torch.zeros(1, 1, 32, 32, 32), spacing=spacing, refine="once", tally=tally)
    grid = torch.cartesian_prod(*(torch.arange(32),) * 3)[None]
    assert torch.equal((p > 0.5).flatten(), (ball.read(grid).logits > 0).flatten())
    assert tally.voxels == 32**3
    assert tally.mesh == (32 // spacing) ** 3
    assert ball.asked[:2] == [tally.mesh, tally.refined]
    assert 0 < tally.refined < 0.5 * tally.voxels
    halved = PointCounts()
    ball.asked.clear()
    again = staged(ball, torch.zeros(1, 1, 32, 32, 32), spacing=spacing, tally=halved)
    assert torch.equal(again > 0.5, p > 0.5)
    assert ball.asked == [tally.mesh, *ball.asked[1:]] and sum(ball.asked[1:]) == halved.refined
    # at half the step an eighth of what "once" asks, then the voxels of a shell half as thick
    assert halved.refined == tally.refined if spacing == 2 else halved.refined < 0.75 * tally.refined


def test_far_from_boundaries_every_voxel_has_the_answer_of_its_mesh_point():
    ball = Ball((0, 0), 3.0)
    p = staged(ball, torch.zeros(1, 1, 24, 24), spacing=4)[0, 0]
    assert torch.equal(p[16:, 16:], p[16::4, 16::4].repeat_interleave(4, 0).repeat_interleave(4, 1))
    torch.testing.assert_close(p[16, 16], torch.tensor(3.0 - 16 * 2**0.5).sigmoid())


def test_a_structure_that_the_mesh_steps_over_is_missed():
    tally = PointCounts()
    p = staged(Ball((6, 6), 1.2), torch.zeros(1, 1, 16, 16), spacing=4, tally=tally)
    assert (p < 0.5).all()
    assert tally.refined == 0


@pytest.mark.parametrize("shape", [(5, 4), (4, 3, 5), (1, 6)])
@pytest.mark.parametrize("portions", [[0], [1], [0, 1], [2, 0, 1]])
def test_smoothing_is_the_mean_of_the_voxels_around_whatever_the_slabs(shape, portions):
    """`portions`: the lengths of the slabs in turns, 0 for all the rest."""
    maps = torch.rand(2, *shape, dtype=torch.float64)
    expected = torch.zeros_like(maps)
    for at in itertools.product(*map(range, shape)):
        window = (slice(None), *(slice(max(a - 1, 0), a + 2) for a in at))
        expected[(slice(None), *at)] = maps[window].flatten(1).mean(1)
    for axis in range(len(shape)):

        def slabs(axis=axis):
            row, turn = 0, itertools.cycle(portions)
            while row < shape[axis]:
                some = min(next(turn) or shape[axis], shape[axis] - row)
                slab = maps.narrow(axis + 1, row, some).clone()
                yield slab
                slab.zero_()  # a slab is good until the next one is asked for
                row += some

        torch.testing.assert_close(torch.cat([s.clone() for s in smoothed(slabs(), axis)], axis + 1), expected)


@pytest.mark.parametrize("size", [(13, 21), (16, 11), (5, 30), (7, 8, 15), (6, 13, 20)])
def test_an_image_smaller_than_a_patch_is_asked_at_the_places_where_training_put_it(size):
    dims, net = len(size), network(len(size), 3)
    plan = make(spatial_dims=dims, strides=((2,) * dims,) * 2, patch=SIZES[dims], labels=Labels(names=("a", "b", "c")))
    image = torch.randn(1, *size)
    settings = Inference(mesh_step=1, smooth=False)
    # written out: the outermost voxels repeated up to the size of a patch, windows of a patch, their weighted mean
    before = [max(p - n, 0) // 2 for n, p in zip(size, plan.patch, strict=True)]
    behind = [max(p - n, 0) - b for n, p, b in zip(size, plan.patch, before, strict=True)]
    frame = F.pad(
        image[None], [*itertools.chain(*zip(reversed(before), reversed(behind), strict=True))], mode="replicate"
    )
    corners = itertools.product(
        *(window_starts(n, p, settings.overlap) for n, p in zip(frame.shape[2:], plan.patch, strict=True))
    )
    weights = gaussian(plan.patch)
    total, shares = torch.zeros(3, *frame.shape[2:]), torch.zeros(frame.shape[2:])
    for corner in corners:
        window = (..., *(slice(a, a + p) for a, p in zip(corner, plan.patch, strict=True)))
        with torch.inference_mode():
            total[window] += weights * probabilities(net(frame[window]), multilabel=False)[0]
        shares[window] += weights
    expected = (total / shares)[(..., *(slice(b, b + n) for b, n in zip(before, size, strict=True)))]
    for axis in range(dims):
        slabs = predict_slabs(
            net, plan, Prepared(image, size), settings=settings, device=torch.device("cpu"), axis=axis
        )
        torch.testing.assert_close(slabs.maps(), expected, atol=1e-6, rtol=1e-5)
    if all(n <= p for n, p in zip(size, plan.patch, strict=True)):  # one window: what training cuts out
        none = torch.zeros(size, dtype=torch.uint8)
        seen, _ = crop_patch(image, none, plan.patch, foreground=0, generator=np.random.default_rng(0))
        assert torch.equal(seen, frame[0])
