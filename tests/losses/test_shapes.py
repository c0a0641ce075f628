"""Losses on shapes against their definitions voxel by voxel, against scipy's distances and MONAI's clDice."""

import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt

from tests.losses import literal
from ulna.errors import UsageError
from ulna.losses import LOSSES, HeadsLoss, make_loss
from ulna.losses.distances import FAR, signed_distances, squared_distances
from ulna.losses.shapes import dilated, eroded, skeleton
from ulna.networks.heads import Outputs
from ulna.planning.choosing import check_words, choose

KINDS = ("binary", "classes", "multilabel")
SIZES = ((4, 5), (1, 7), (2, 3, 4))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("targets", KINDS)
def test_boundary_is_its_definition(targets, size):
    z, target = literal.sample(targets, size=size)
    multilabel = targets == "multilabel"
    loss = make_loss("boundary", options={"boundary": 0.25, "dice": 2.0}, multilabel=multilabel).criterion
    expected = 2 * literal.generalised_dice(z, target, multilabel) + 0.25 * literal.boundary(z, target, multilabel)
    assert loss(torch.tensor(z), torch.tensor(target)).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("reduction", ["image", "batch"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("targets", KINDS)
def test_cldice_is_its_definition(targets, size, reduction):
    z, target = literal.sample(targets, size=size)
    multilabel = targets == "multilabel"
    options = {"cldice": 0.3, "iterations": 2, "reduction": reduction}
    loss = make_loss("cldice", options=options, multilabel=multilabel).criterion
    expected = 0.7 * literal.dice(z, target, multilabel, reduction) + 0.3 * literal.cldice(
        z, target, multilabel, reduction, iterations=2
    )
    assert loss(torch.tensor(z), torch.tensor(target)).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [(9, 14), (1, 6), (5, 7, 6), (300, 40)])
def test_distances_are_those_of_scipy(size):
    region = np.random.default_rng(0).random((2, 3, *size)) < 0.2
    region[..., 0, 1], region[..., 0, 2] = True, False  # scipy gives no distance to what is not there
    found = squared_distances(torch.tensor(region)).sqrt().numpy()
    signed = signed_distances(torch.tensor(region)).numpy()
    for n in range(2):
        for k in range(3):
            outside, within = (distance_transform_edt(x) for x in (~region[n, k], region[n, k]))
            np.testing.assert_allclose(found[n, k], outside, rtol=1e-6)
            np.testing.assert_allclose(signed[n, k], np.where(region[n, k], 0.5 - within, outside - 0.5), rtol=1e-5)


def test_lines_are_taken_in_parts(monkeypatch):
    region = torch.rand(1, 2, 6, 7, 8) < 0.1
    whole = squared_distances(region)
    monkeypatch.setattr("ulna.losses.distances.CPU_CHUNK", 100)
    assert torch.equal(squared_distances(region), whole)


@pytest.mark.parametrize("fill", [False, True])
def test_a_region_without_a_border_has_no_distances(fill):
    region = torch.full((1, 1, 4, 4), fill)
    assert (signed_distances(region) == 0).all()
    assert (squared_distances(region) >= FAR).all() != fill


def test_the_boundary_term_falls_as_a_prediction_comes_closer():
    target = torch.zeros(1, 16, 16, dtype=torch.long)
    target[0, 4:8, 4:8] = 1
    loss = make_loss("boundary", options={"dice": 0.0, "boundary": 1.0}, multilabel=False).criterion
    values = []
    for shift in (6, 4, 2, 0):
        z = torch.full((1, 1, 16, 16), -20.0)
        z[0, 0, 4 + shift : 8 + shift, 4:8] = 20.0
        values.append(loss(z, target).item())
    assert values == sorted(values, reverse=True) and values[-1] < 0


@pytest.mark.parametrize("shape", [(9, 11), (7, 8, 9)])
def test_cldice_is_that_of_monai(shape):
    losses = pytest.importorskip("monai.losses", exc_type=ImportError)
    z = torch.randn(1, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    target = (torch.rand(1, *shape, generator=torch.Generator().manual_seed(1)) < 0.6).long()
    theirs = losses.SoftclDiceLoss(iter_=3, smooth=1e-12)(z.sigmoid(), target[:, None].double())
    ours = make_loss("cldice", options={"cldice": 1.0}, multilabel=False).criterion(z, target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_the_skeleton_of_a_bar_is_its_middle_line():
    bar = torch.zeros(1, 1, 9, 15)
    bar[..., 3:6, 2:13] = 1
    expected = torch.zeros_like(bar)
    expected[..., 4, 3:12] = 1
    assert torch.equal(skeleton(bar, 3)[..., 4, 3:12], expected[..., 4, 3:12])
    assert skeleton(bar, 3)[..., 2, :].sum() == 0
    assert skeleton(bar, 3).sum() < bar.sum() / 2


def test_erosion_takes_the_neighbours_along_axes_and_dilation_all():
    x = torch.zeros(1, 1, 5, 5, 5)
    x[..., 2, 2, 2] = 1
    assert dilated(x).sum() == 27
    assert (1 - eroded(1 - x)).sum() == 7


@pytest.mark.parametrize("kind", [kind for kind, loss in LOSSES.items() if getattr(loss, "needs_maps", False)])
def test_a_loss_on_shapes_refuses_sampled_points(kind):
    logits = torch.zeros(1, 1, 7)
    points = torch.zeros(1, 7, 2, dtype=torch.long)
    with pytest.raises(UsageError, match="points are sampled"):
        HeadsLoss(LOSSES[kind]())(Outputs(logits, {"points": logits}, points), torch.zeros(1, 4, 4, dtype=torch.long))
    with pytest.raises(UsageError, match="points are sampled"):  # before any data are read
        check_words(choose(model="implicit_unet", recipe=None, set=(f"loss.kind={kind}",)))


@pytest.mark.parametrize("kind", ["boundary", "cldice"])
def test_heads_of_coarser_levels_have_their_own_shapes(kind):
    heads = {"x1": torch.randn(1, 3, 4, 4), "x0": torch.randn(1, 3, 8, 8)}
    target = torch.randint(3, (1, 8, 8))
    loss, parts = make_loss(kind, multilabel=False)(Outputs(heads["x0"], heads), target)
    assert set(parts) == {"x0", "x1"} and loss.isfinite()
