"""Losses on regions and on voxels against their definitions voxel by voxel, and against MONAI's."""

import numpy as np
import pytest
import torch

from tests.losses import literal
from ulna.errors import UsageError
from ulna.losses import make_loss

KINDS = ("binary", "classes", "multilabel")
SIZES = ((4, 5), (1, 7), (2, 3, 4))


def computed(kind, z, target, multilabel, **options):
    return (
        make_loss(kind, options=options, multilabel=multilabel).criterion(torch.tensor(z), torch.tensor(target)).item()
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["image", "batch"])
@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize("kind", ["tversky", "generalised_dice"])
def test_a_loss_on_regions_is_its_definition(kind, targets, reduction, size):
    z, target = literal.sample(targets, size=size)
    multilabel = targets == "multilabel"
    expected = getattr(literal, kind)(z, target, multilabel, reduction)
    assert computed(kind, z, target, multilabel, reduction=reduction) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("reduction", ["image", "batch"])
def test_generalised_dice_of_a_class_that_is_missing(reduction):
    z, target = literal.sample("classes")
    target[target == 2] = 0
    expected = literal.generalised_dice(z, target, False, reduction)
    assert computed("generalised_dice", z, target, False, reduction=reduction) == pytest.approx(expected, abs=1e-12)


def test_generalised_dice_gives_a_small_class_as_much_to_say_as_a_large_one():
    """A structure of 4 voxels, missed, costs more than half, where soft Dice over all classes would have lost a third."""
    target = np.zeros((1, 20, 20), int)
    target[0, :2, :2] = 1
    sure_of_nothing = np.stack([np.full((20, 20), 20.0), np.full((20, 20), -20.0)])[None]
    assert computed("generalised_dice", sure_of_nothing, target, False, smooth=1e-6) > 0.5


def test_tversky_with_equal_weights_is_soft_dice_with_twice_its_smoothing():
    z, target = literal.sample("classes")
    ours = computed("tversky", z, target, False, alpha=0.5, beta=0.5, smooth=1.0)
    assert ours == pytest.approx(computed("dice", z, target, False, smooth=2.0), abs=1e-12)


def test_alpha_of_tversky_weighs_what_is_missed():
    target = np.zeros((1, 4, 4), int)
    target[0, :2] = 1
    missed = np.where(np.arange(4)[:, None] < 1, 9.0, -9.0) * np.ones((1, 1, 4, 4))
    wrong = np.where(np.arange(4)[:, None] < 3, 9.0, -9.0) * np.ones((1, 1, 4, 4))
    assert computed("tversky", missed, target, False, alpha=0.9, beta=0.1) > computed(
        "tversky", wrong, target, False, alpha=0.9, beta=0.1
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_is_its_definition(targets, gamma, weighted, size):
    z, target = literal.sample(targets, size=size)
    multilabel = targets == "multilabel"
    weights = [0.2, 1.5, 0.7][: 3 if targets == "classes" else 2] if weighted else None
    expected = literal.focal(z, target, multilabel, gamma, weights)
    options = {"gamma": gamma, **({"weights": weights} if weighted else {})}
    assert computed("focal", z, target, multilabel, **options) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("targets", KINDS)
def test_focal_without_focus_is_cross_entropy(targets):
    z, target = literal.sample(targets)
    for options in ({}, {"weights": [0.2, 1.5, 0.7][: 3 if targets == "classes" else 2]}):
        ours = computed("focal", z, target, targets == "multilabel", gamma=0.0, **options)
        assert ours == pytest.approx(computed("cross_entropy", z, target, targets == "multilabel", **options), rel=1e-9)


def test_focal_of_sure_voxels_has_a_finite_gradient_and_keeps_its_digits():
    z = torch.tensor([-90.0, -20.0, 20.0, 90.0]).reshape(1, 1, 2, 2).requires_grad_()
    target = torch.tensor([[[0, 0], [1, 1]]])
    for gamma in (0.0, 0.5, 2.0):
        (slope,) = torch.autograd.grad(
            make_loss("focal", options={"gamma": gamma}, multilabel=False).criterion(z, target), z
        )
        assert slope.isfinite().all()
    one = make_loss("focal", multilabel=False).criterion(z[..., :1, 1:], target[..., :1, 1:])
    assert one.item() == pytest.approx(np.exp(-60.0), rel=1e-4)  # p^2 times -log(1 - p), both e^-20


@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.55, 1.0])
def test_topk_is_its_definition(targets, share, weighted):
    z, target = literal.sample(targets)
    weights = [0.2, 1.5, 0.7][: 3 if targets == "classes" else 2] if weighted else None
    expected = literal.topk(z, target, targets == "multilabel", share, weights)
    options = {"share": share, **({"weights": weights} if weighted else {})}
    assert computed("topk_ce", z, target, targets == "multilabel", **options) == pytest.approx(expected, rel=1e-9)


def test_sums_with_dice_have_their_weights():
    z, target = literal.sample("classes")
    dice = computed("dice", z, target, False)
    for kind, name, other in (("dice_focal", "focal", "focal"), ("dice_topk", "topk", "topk_ce")):
        expected = 0.5 * dice + 3 * computed(other, z, target, False)
        assert computed(kind, z, target, False, dice=0.5, **{name: 3.0}) == pytest.approx(expected, rel=1e-12)


WEIGHTED = ("cross_entropy", "focal", "topk_ce", "dice_ce", "dice_focal", "dice_topk")


@pytest.mark.parametrize("kind", WEIGHTED)
@pytest.mark.parametrize("targets", KINDS)
def test_equal_weights_change_nothing(kind, targets):
    z, target = literal.sample(targets)
    weights = [3.0] * (3 if targets == "classes" else 2)
    ours = computed(kind, z, target, targets == "multilabel", weights=weights)
    assert ours == pytest.approx(computed(kind, z, target, targets == "multilabel"), rel=1e-12)


def test_weighted_cross_entropy_is_that_of_torch():
    z, target = (torch.tensor(x) for x in literal.sample("classes"))
    weights = [0.5, 2.0, 0.0]
    ours = make_loss("cross_entropy", options={"weights": weights}, multilabel=False).criterion(z, target)
    expected = torch.nn.functional.cross_entropy(z, target, torch.tensor(weights, dtype=z.dtype))
    torch.testing.assert_close(ours, expected)


def test_images_that_hold_no_class_with_a_weight_cost_nothing():
    z = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = make_loss("cross_entropy", options={"weights": [0, 1, 1]}, multilabel=False).criterion(
        z, torch.zeros(1, 4, 4, dtype=torch.long)
    )
    loss.backward()
    assert loss.item() == 0 and (z.grad == 0).all()


@pytest.mark.parametrize("kind", WEIGHTED)
def test_weights_weigh_the_known_voxels_alone(kind):
    """As if the others were taken out; and where none is known, nothing is learnt."""
    z, target = (torch.tensor(x) for x in literal.sample("classes", size=(6, 5)))
    known = torch.rand(target.shape, generator=torch.Generator().manual_seed(0)) < 0.6
    loss = make_loss(kind, options={"weights": [0.3, 2.0, 1.1]}, multilabel=False).criterion
    one, which = z[:1].requires_grad_(), known[0]
    found = loss(one, target[:1] * which, known[:1])
    torch.testing.assert_close(found, loss(z[:1].detach()[:, :, which], target[:1, which]))
    (slope,) = torch.autograd.grad(found, one)
    assert slope[:, :, which].any() and not slope[:, :, ~which].any()
    nothing = loss(one, torch.zeros_like(target[:1]), torch.zeros_like(known[:1]))
    assert not torch.autograd.grad(nothing, one)[0].any()


@pytest.mark.parametrize("weights", [[], [-1, 2], [0, 0], [1, float("nan")], 3, ["a", 1], "12"])
def test_weights_without_meaning_are_refused(weights):
    with pytest.raises(UsageError, match="one number a class"):
        make_loss("dice_ce", options={"weights": weights}, multilabel=False)


@pytest.mark.parametrize(("maps", "multilabel", "wanted"), [(1, False, 2), (4, False, 4), (4, True, 4), (1, True, 1)])
def test_another_number_of_weights_than_of_classes_is_refused(maps, multilabel, wanted):
    for kind in WEIGHTED:
        make_loss(kind, options={"weights": [1.0] * wanted}, multilabel=multilabel).check(maps)
        with pytest.raises(UsageError, match=f"has {wanted + 1} numbers; these data ask for {wanted}"):
            make_loss(kind, options={"weights": [1.0] * (wanted + 1)}, multilabel=multilabel).check(maps)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("focal", {"gamma": -1}, "0 or more"),
        ("topk_ce", {"share": 0}, "above 0"),
        ("topk_ce", {"share": 1.5}, "1 at most"),
        ("cldice", {"iterations": 0}, "whole number"),
        ("cldice", {"cldice": 2}, "0 to 1"),
        ("boundary", {"bondary": 1}, "did you mean 'boundary'"),
        ("generalized_dice", {}, "did you mean 'generalised_dice'"),
    ],
)
def test_options_without_meaning_are_refused(kind, options, message):
    with pytest.raises(UsageError, match=message):
        make_loss(kind, options=options, multilabel=False)


def test_the_losses_of_monai_agree():
    """Focal and Tversky; generalised Dice up to the smoothing, which MONAI adds to sums of other weights."""
    losses = pytest.importorskip("monai.losses", exc_type=ImportError)
    z, target = (torch.tensor(x) for x in literal.sample("classes"))
    one_hot = torch.nn.functional.one_hot(target, 3).movedim(-1, 1).double()
    theirs = (
        losses.FocalLoss(gamma=2.0, use_softmax=True)(z, one_hot) * 3
    )  # a mean over maps too, all but one of them 0
    assert make_loss("focal", multilabel=False).criterion(z, target).item() == pytest.approx(theirs.item(), rel=1e-6)
    theirs = losses.TverskyLoss(softmax=True, include_background=False, alpha=0.3, beta=0.7, smooth_nr=1, smooth_dr=1)
    ours = make_loss("tversky", multilabel=False).criterion(z, target)
    assert ours.item() == pytest.approx(theirs(z, one_hot).item(), rel=1e-6)
    theirs = losses.GeneralizedDiceLoss(softmax=True, smooth_nr=1e-12, smooth_dr=1e-12)(z, one_hot)
    ours = make_loss("generalised_dice", options={"smooth": 1e-12}, multilabel=False).criterion(z, target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
