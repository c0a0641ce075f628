"""Losses against transcriptions in numpy, and their edge cases (docs/papers/losses_and_metrics.md, section 1)."""

import inspect
import math

import numpy as np
import pytest
import torch

from ulna.errors import UsageError
from ulna.losses import LOSSES, HeadsLoss, SoftDice, check_targets, make_loss, target_for
from ulna.networks.heads import Outputs


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def literal_overlap(p, g, kind, s=1.0):
    """One image, one class; p and g as flat lists."""
    hit = sum(a * b for a, b in zip(p, g, strict=True))
    if kind == "dice":
        return 1 - (2 * hit + s) / (sum(p) + sum(g) + s)
    if kind == "dice_squared":
        return 1 - (2 * hit + s) / (sum(a * a for a in p) + sum(b * b for b in g) + s)
    missed = sum((1 - a) * b for a, b in zip(p, g, strict=True))
    wrong = sum(a * (1 - b) for a, b in zip(p, g, strict=True))
    return (1 - (hit + s) / (hit + 0.7 * missed + 0.3 * wrong + s)) ** 0.75


def binary(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (3, 1, 4, 5)), rng.integers(0, 2, (3, 4, 5))


@pytest.mark.parametrize("kind", ["dice", "dice_squared", "focal_tversky"])
def test_overlap_losses_per_image_of_a_sigmoid(kind):
    z, g = binary()
    expected = np.mean([literal_overlap(sigmoid(z[n]).ravel(), g[n].ravel(), kind) for n in range(3)])
    loss = LOSSES[kind]()(torch.tensor(z), torch.tensor(g))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", ["dice", "dice_squared", "focal_tversky"])
def test_overlap_losses_pooled_over_the_batch(kind):
    z, g = binary()
    expected = literal_overlap(sigmoid(z).ravel(), g.ravel(), kind)
    loss = LOSSES[kind](reduction="batch")(torch.tensor(z), torch.tensor(g))
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("background", [False, True])
def test_dice_of_a_softmax_is_the_mean_over_foreground_classes(background):
    rng = np.random.default_rng(1)
    z, g = rng.normal(0, 2, (2, 3, 4, 4)), rng.integers(0, 3, (2, 4, 4))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    values = [
        literal_overlap(p[n, k].ravel(), (g[n] == k).astype(float).ravel(), "dice")
        for n in range(2)
        for k in range(0 if background else 1, 3)
    ]
    loss = SoftDice(background=background)(torch.tensor(z), torch.tensor(g))
    assert loss.item() == pytest.approx(np.mean(values), abs=1e-6)


def test_multilabel_dice_treats_every_map_alone():
    rng = np.random.default_rng(2)
    z, g = rng.normal(size=(2, 2, 3, 3)), rng.integers(0, 2, (2, 2, 3, 3))
    values = [literal_overlap(sigmoid(z[n, k]).ravel(), g[n, k].ravel(), "dice") for n in range(2) for k in range(2)]
    loss = SoftDice(multilabel=True)(torch.tensor(z), torch.tensor(g))
    assert loss.item() == pytest.approx(np.mean(values), abs=1e-6)


def test_cross_entropy_is_that_of_one_sigmoid_or_of_a_softmax():
    z, g = binary()
    p = sigmoid(z[:, 0])
    expected = np.mean(-(g * np.log(p) + (1 - g) * np.log(1 - p)))
    assert LOSSES["cross_entropy"]()(torch.tensor(z), torch.tensor(g)).item() == pytest.approx(expected, abs=1e-6)
    two = torch.tensor(np.concatenate([np.zeros_like(z), z], 1))  # softmax over (0, z) is the sigmoid of z
    assert LOSSES["cross_entropy"]()(two, torch.tensor(g)).item() == pytest.approx(expected, abs=1e-6)


def test_sums_of_losses_have_the_stated_weights():
    z, g = (torch.tensor(a) for a in binary())
    dice, entropy = LOSSES["dice"]()(z, g), LOSSES["cross_entropy"]()(z, g)
    torch.testing.assert_close(LOSSES["dice_ce"]()(z, g), dice + entropy)
    torch.testing.assert_close(LOSSES["unetpp"]()(z, g), dice + 0.5 * entropy)


@pytest.mark.parametrize("kind", LOSSES)
def test_an_empty_mask_gives_a_finite_loss_and_gradient(kind):
    z = torch.full((2, 1, 4, 4), -30.0, requires_grad=True)
    loss = LOSSES[kind]()(z, torch.zeros(2, 4, 4, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-4)
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("kind", LOSSES)
def test_a_perfect_prediction_gives_a_finite_gradient(kind):
    g = torch.tensor([[[0, 1], [1, 0]]])
    z = (g[:, None] * 200.0 - 100).requires_grad_()
    LOSSES[kind]()(z, g).backward()
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("kind", LOSSES)
def test_gradients_of_every_loss_in_float64(kind):
    """The losses compute in float32; so the slope along one direction is compared with a difference quotient."""
    z, g = (torch.tensor(a) for a in binary(3))
    z = z.float().requires_grad_()
    direction = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    loss = LOSSES[kind]()
    (slope,) = torch.autograd.grad(loss(z, g), z)
    step = 1e-2
    quotient = (loss(z + step * direction, g) - loss(z - step * direction, g)) / (2 * step)
    assert (slope * direction).sum().item() == pytest.approx(quotient.item(), rel=2e-2, abs=1e-4)


def outputs(*sizes):
    heads = {f"h{i}": torch.randn(1, 1, n, n) for i, n in enumerate(sizes)}
    return Outputs(list(heads.values())[-1], heads)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("equal", [1 / 3, 1 / 3, 1 / 3]),
        ("halving", [0, 1 / 3, 2 / 3]),  # coarsest 0, then 1/2 and 1, normalised
        ({"h2": 10, "h0": 1}, [1 / 11, 0, 10 / 11]),
    ],
)
def test_weights_of_heads(weights, expected):
    made = outputs(4, 8, 16)
    assert list(HeadsLoss(SoftDice(), weights).weights_for(made).values()) == pytest.approx(expected)


def test_loss_over_heads_is_the_weighted_mean_and_leaves_out_weight_zero():
    made = outputs(4, 8, 16)
    g = torch.randint(0, 2, (1, 16, 16))
    loss, parts = HeadsLoss(SoftDice(), "halving")(made, g)
    assert set(parts) == {"h1", "h2"}
    torch.testing.assert_close(loss, parts["h1"] / 3 + parts["h2"] * 2 / 3)


def test_targets_of_coarser_heads_are_nearest_neighbours():
    g = torch.arange(16).reshape(1, 4, 4)
    assert target_for(torch.zeros(1, 1, 2, 2), g).tolist() == [[[5, 7], [13, 15]]]
    assert target_for(torch.zeros(1, 1, 4, 4), g) is g


def test_bfloat16_logits_are_summed_in_float32():
    z, g = torch.randn(1, 1, 64, 64), torch.randint(0, 2, (1, 64, 64))
    low = LOSSES["dice_ce"]()(z.bfloat16(), g)
    assert low.dtype == torch.float32
    assert low.item() == pytest.approx(LOSSES["dice_ce"]()(z.bfloat16().float(), g).item(), abs=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "dcie"}, "did you mean 'dice'"),
        ({"kind": "dice", "options": {"smoth": 1}}, "did you mean 'smooth'"),
        ({"kind": "dice", "options": {"smooth": 0}}, "above 0"),
        ({"kind": "dice", "options": {"reduction": "imge"}}, "did you mean 'image'"),
        ({"kind": "dice", "heads": "equl"}, "did you mean 'equal'"),
    ],
)
def test_wrong_losses_name_the_nearest(options, message):
    with pytest.raises(UsageError, match=message):
        make_loss(**options, multilabel=False)


def test_a_weight_for_a_head_that_is_not_there():
    with pytest.raises(UsageError, match="no head named 'x0_9'"):
        HeadsLoss(SoftDice(), {"x0_9": 1})(outputs(4), torch.zeros(1, 4, 4, dtype=torch.long))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dice", 1 - (2 * 1 + 1) / (2 + 2 + 1)),
        ("dice_squared", 1 - (2 * 1 + 1) / (4 / 4 + 2 + 1)),
        ("cross_entropy", math.log(2)),
        ("focal_tversky", (1 - (1 + 1) / (1 + 0.7 + 0.3 + 1)) ** 0.75),
    ],
)
def test_known_values_of_the_four_losses_of_the_modular_paper(kind, expected):
    """p = 1/2 at four pixels, two of them foreground: one true positive, one missed, one wrong, in sum."""
    g = torch.tensor([[[0, 1], [1, 0]]])
    assert LOSSES[kind]()(torch.zeros(1, 1, 2, 2), g).item() == pytest.approx(expected, rel=1e-6)


def literal_slope(p, g, kind, s=1.0):
    """dL/dz at every pixel of one image, derived by hand: dL/dp times p (1 - p)."""
    hit = sum(a * b for a, b in zip(p, g, strict=True))
    slopes = []
    for a, b in zip(p, g, strict=True):
        if kind == "cross_entropy":
            slopes.append((a - b) / len(p))
            continue
        if kind == "dice":
            below = sum(p) + sum(g) + s
            slope = -(2 * b * below - (2 * hit + s)) / below**2
        elif kind == "dice_squared":
            below = sum(q * q for q in p) + sum(q * q for q in g) + s
            slope = -(2 * b * below - (2 * hit + s) * 2 * a) / below**2
        else:
            missed = sum((1 - q) * r for q, r in zip(p, g, strict=True))
            wrong = sum(q * (1 - r) for q, r in zip(p, g, strict=True))
            above, below = hit + s, hit + 0.7 * missed + 0.3 * wrong + s
            index_slope = (b * below - above * (b - 0.7 * b + 0.3 * (1 - b))) / below**2
            slope = -0.75 * (1 - above / below) ** -0.25 * index_slope
        slopes.append(slope * a * (1 - a))
    return slopes


@pytest.mark.parametrize("kind", ["dice", "dice_squared", "cross_entropy", "focal_tversky"])
def test_gradients_are_those_derived_by_hand(kind):
    z, g = binary(4)
    logits = torch.tensor(z, requires_grad=True)
    LOSSES[kind]()(logits, torch.tensor(g)).backward()
    expected = np.array([literal_slope(sigmoid(z[n]).ravel(), g[n].ravel(), kind) for n in range(3)]) / 3
    np.testing.assert_allclose(logits.grad.reshape(3, -1), expected, atol=1e-6)  # computed in float32


@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 5)])
def test_targets_at_points_are_looked_up_and_the_loss_is_that_of_those_voxels(shape):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (2, *shape), generator=generator)
    points = torch.stack([torch.randint(0, n, (2, 40), generator=generator) for n in shape], dim=-1)
    logits = torch.randn(2, 3, 40, generator=generator)
    expected = torch.tensor([[target[(n, *at)] for at in points[n].tolist()] for n in range(2)])
    assert torch.equal(target_for(logits, target, points), expected)
    maps = torch.nn.functional.one_hot(target, 3).movedim(-1, 1)
    assert torch.equal(target_for(logits, maps, points), torch.nn.functional.one_hot(expected, 3).movedim(-1, 1))
    loss = make_loss("dice_ce", options={"reduction": "batch"}, multilabel=False)
    total, _ = loss(Outputs(logits, {"points": logits}, points), target)
    p = logits.softmax(1)
    dice = [
        (2 * p[:, k][expected == k].sum() + 1) / (p[:, k].sum() + (expected == k).sum() + 1)
        for k in (1, 2)  # pooled over all points of the batch, without background
    ]
    cross_entropy = -p.log().gather(1, expected[:, None]).mean()
    torch.testing.assert_close(total, 1 - sum(dice) / 2 + cross_entropy)


KINDS_OF_TARGETS = {
    "binary": ((2, 1, 3, 3), (2, 3, 3), 2, False),
    "classes": ((2, 3, 3, 3), (2, 3, 3), 3, False),
    "multilabel": ((2, 3, 3, 3), (2, 3, 3, 3), 2, True),
    "volumes": ((2, 2, 3, 2, 2), (2, 3, 2, 2), 2, False),
}


@pytest.mark.parametrize("reduction", ["image", "batch"])
@pytest.mark.parametrize("targets", KINDS_OF_TARGETS)
@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.share(5)
def test_losses_compute_in_float64_where_logits_are(kind, targets, reduction):
    """In float32 a difference quotient of 1e-6 is noise."""
    logits, labels, values, multilabel = KINDS_OF_TARGETS[targets]
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(logits, dtype=torch.float64, generator=generator, requires_grad=True)
    t = torch.randint(0, values, labels, generator=generator)
    takes = kind == "dice_squared" or "reduction" in inspect.signature(LOSSES[kind]).parameters
    options = {"reduction": reduction} if takes else {}
    loss = make_loss(kind, options=options, multilabel=multilabel).criterion
    assert loss(z, t).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda q: loss(q, t), (z,))
    assert torch.autograd.gradgradcheck(lambda q: loss(q, t), (z,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", LOSSES)
def test_losses_of_low_precision_are_computed_in_float32(kind, dtype):
    z = torch.randn(2, 3, 4, 4).to(dtype)
    assert make_loss(kind, multilabel=False).criterion(z, torch.ones(2, 4, 4, dtype=torch.long)).dtype == torch.float32


def test_soft_targets_keep_their_digits_on_a_coarser_grid():
    target = torch.rand(1, 4, 4, dtype=torch.float64)
    assert torch.isin(target_for(torch.zeros(1, 1, 2, 2), target), target).all()


def outputs_of(maps):
    logits = torch.zeros(2, maps, 4, 4)
    return Outputs(logits, {"head": logits})


@pytest.mark.parametrize(
    ("maps", "multilabel", "value", "message"),
    [
        (1, False, 255, "hold 255; this network knows 0 to 1"),
        (1, False, 2, "hold 2;"),
        (3, False, 3, "knows 0 to 2"),
        (3, False, -1, "hold -1;"),
        (3, True, 2, "in each of its maps"),
        (1, False, 0.5, "hold 0.5;"),
        (1, False, float("nan"), "hold nan"),
    ],
)
def test_targets_of_other_values_than_the_classes_are_refused(maps, multilabel, value, message):
    """255 in a binary target gave a Dice loss of -0.65."""
    kind = torch.float32 if isinstance(value, float) else torch.long
    target = torch.zeros((2, maps, 4, 4) if multilabel else (2, 4, 4), dtype=kind)
    check_targets(target, maps, multilabel=multilabel)
    target[..., 0, 0] = 1
    check_targets(target, maps, multilabel=multilabel)
    target[..., 2, 3] = value
    with pytest.raises(UsageError, match=message):
        check_targets(target, maps, multilabel=multilabel)
