"""Voxels whose class nobody knows: no loss and no gradient, no score, no sample placed there, whatever the answer says."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import ulna
from tests.training.tiny import TINY
from ulna.data.pipeline.patches import Structures
from ulna.data.pipeline.points import boundary, sample_points
from ulna.errors import UsageError
from ulna.evaluation.known import known_alone
from ulna.evaluation.metrics import count
from ulna.losses import LOSSES, check_targets, make_loss
from ulna.networks.heads import Outputs
from ulna.recipe import Labels, Plan, from_yaml

KINDS = {
    "binary": (1, False, 2),
    "classes": (3, False, 3),
    "overlapping": (3, True, 2),
}


def made(kind, shape=(5, 6), seed=0):
    """Logits, a target with about a third not known, and what stands there."""
    maps, multilabel, ignored = KINDS[kind]
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, maps, *shape, dtype=torch.float64, generator=generator, requires_grad=True)
    of = (2, maps, *shape) if multilabel else (2, *shape)
    target = torch.randint(0, 2 if maps == 1 or multilabel else maps, of, generator=generator)
    unknown = torch.rand((2, 1, *shape) if multilabel else of, generator=generator) < 0.35
    return logits, torch.where(unknown, ignored, target).to(torch.uint8), multilabel, ignored


def loss_of(kind, logits, target, multilabel, ignored, **options):
    loss = make_loss(kind, options=options, multilabel=multilabel, ignored=ignored)
    return loss(Outputs(logits, {"head": logits}), target)[0]


WHERE = ("boundary", "cldice")  # they go by where voxels lie, so that none can be taken out


@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize("kind", [kind for kind in LOSSES if kind not in WHERE])
def test_a_loss_is_that_of_the_known_voxels_alone(kind, targets):
    """Written literally: the unknown voxels of the one image are taken out, not weighed."""
    logits, target, multilabel, ignored = made(targets)
    logits, target = logits[:1].detach().requires_grad_(), target[:1]
    value = loss_of(kind, logits, target, multilabel, ignored)
    known = (target if not multilabel else target[:, 0]) != ignored
    alone = logits.detach()[:, :, known[0]].requires_grad_()
    rest = target[..., known[0]]
    expected = loss_of(kind, alone, rest, multilabel, None)
    torch.testing.assert_close(value, expected)
    value.backward()
    expected.backward()
    torch.testing.assert_close(logits.grad[:, :, known[0]], alone.grad)
    assert not logits.grad[:, :, ~known[0]].any()


@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize("kind", LOSSES)
def test_what_is_answered_where_nothing_is_known_changes_no_loss(kind, targets):
    logits, target, multilabel, ignored = made(targets)
    known = ((target if not multilabel else target[:, 0]) != ignored)[:, None].expand_as(logits)
    value = loss_of(kind, logits, target, multilabel, ignored)
    value.backward()
    assert logits.grad[known].any() and not logits.grad[~known].any()
    other = torch.where(known, logits.detach(), -3 * logits.detach())
    torch.testing.assert_close(loss_of(kind, other, target, multilabel, ignored), value)


@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize("kind", LOSSES)
def test_a_target_that_is_known_everywhere_costs_what_it_cost(kind, targets):
    logits, target, multilabel, ignored = made(targets)
    target = torch.where(target == ignored, 0, target)
    torch.testing.assert_close(
        loss_of(kind, logits, target, multilabel, ignored), loss_of(kind, logits, target, multilabel, None)
    )


@pytest.mark.parametrize("targets", KINDS)
@pytest.mark.parametrize("kind", LOSSES)
def test_a_target_of_which_nothing_is_known_teaches_nothing(kind, targets):
    logits, target, multilabel, ignored = made(targets)
    value = loss_of(kind, logits, torch.full_like(target, ignored), multilabel, ignored)
    value.backward()
    assert torch.isfinite(value) and value < 1e-3 and not logits.grad.any()  # focal Tversky is held at 1e-7 ** 0.75


def test_unknown_voxels_stay_so_on_the_grid_of_a_coarser_head_and_at_points():
    target = torch.full((1, 4, 4), 2, dtype=torch.uint8)
    target[:, :, :2] = 1
    coarse = torch.zeros(1, 1, 2, 2, requires_grad=True)
    loss, _ = make_loss("cross_entropy", multilabel=False, ignored=2)(Outputs(coarse, {"head": coarse}), target)
    loss.backward()
    assert coarse.grad[..., 0].all() and not coarse.grad[..., 1].any()
    points = torch.tensor([[[0, 0], [0, 3], [3, 1]]])
    at = torch.zeros(1, 1, 3, requires_grad=True)
    loss, _ = make_loss("cross_entropy", multilabel=False, ignored=2)(Outputs(at, {"points": at}, points), target)
    loss.backward()
    assert (at.grad != 0).tolist() == [[[True, False, True]]]


def test_the_value_behind_the_last_is_a_target_only_where_it_is_ignored():
    for maps, multilabel, ignored in KINDS.values():
        target = torch.full((1, maps, 4, 4) if multilabel else (1, 4, 4), ignored)
        check_targets(target, maps, multilabel=multilabel, ignored=ignored)
        with pytest.raises(UsageError):
            check_targets(target, maps, multilabel=multilabel)
        with pytest.raises(UsageError, match="hold 9"):
            check_targets(torch.where(target == ignored, 9, 0), maps, multilabel=multilabel, ignored=ignored)


def test_no_patch_and_no_point_is_placed_for_what_is_not_known():
    labels = torch.zeros(20, 20, dtype=torch.uint8)
    labels[3:5, 3:5], labels[10:] = 1, 3
    where = Structures(labels, 2, ignored=3)
    found = {where.random_voxel(np.random.default_rng(n)) for n in range(60)}
    assert found == {(3, 3), (3, 4), (4, 3), (4, 4)}
    both = torch.stack([labels.clamp(max=1), torch.zeros_like(labels)])
    both[:, 10:] = 2
    assert Structures(both, 2, ignored=2).random_voxel(np.random.default_rng(0)) in found
    assert Structures(torch.full((4, 4), 3), 2, ignored=3).random_voxel(np.random.default_rng(0)) is None

    edge = boundary(labels[None], 2, 3)[0]
    assert edge.any() and not edge[8:].any() and boundary(labels[None], 2)[0][9:11].all()
    generator = torch.Generator().manual_seed(0)
    points = sample_points(labels[None], 2, count=500, alpha=1.0, sigma=0.0, generator=generator, ignored=3)
    assert points.amax() <= 5


@pytest.mark.parametrize("multilabel", [False, True])
def test_scores_leave_out_what_the_reference_leaves_open(multilabel):
    rng = np.random.default_rng(0)
    labels = Labels(names=("a", "b") if multilabel else ("background", "a", "b"), multilabel=multilabel, ignore=(255,))
    shape = (2, 9, 8) if multilabel else (9, 8)
    reference = rng.integers(0, 2 if multilabel else 3, shape).astype(np.uint8)
    prediction = rng.integers(0, 2 if multilabel else 3, shape).astype(np.uint8)
    reference[..., 5:, :] = labels.ignored
    ours, theirs = known_alone(prediction, reference, labels)
    for k in (1, 2):
        of = (lambda m, k=k: m[k - 1] == 1) if multilabel else (lambda m, k=k: m == k)
        assert count(of(ours), of(theirs)) == count(of(prediction[..., :5, :]), of(reference[..., :5, :]))
    same = known_alone(prediction, reference, labels.replaced(ignore=()))
    assert same[0] is prediction and same[1] is reference


def half_open(root, count=6, open_value=255, seed=0):
    """A disc on noise; the right half of every label map says nothing, where the image shows discs that nobody marked."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :40]
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for n in range(count):
        y, x = rng.integers(9, 23), rng.integers(7, 13)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < 25
        other = (rows - y) ** 2 + (columns - x - 20) ** 2 < 25
        image = np.clip(80 + 90.0 * (disc | other) + rng.normal(0, 10, disc.shape), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "images" / f"c{n}.png")
        labels = np.where(columns >= 20, open_value, disc).astype(np.uint8)
        Image.fromarray(labels).save(root / "labels" / f"c{n}.png")
    ids = [f"c{n}" for n in range(count)]
    (root / "splits.json").write_text(json.dumps({"train": ids[:-2], "val": ids[-2:-1], "test": ids[-1:]}))
    (root / "classes.json").write_text(json.dumps({"1": "disc", "ignore": open_value}))
    return root


def test_a_training_learns_nothing_from_what_is_not_known(tmp_path, caplog):
    """Discs that nobody marked are found all the same, and cost no Dice; the run says so wherever its data are."""
    data = half_open(tmp_path / "data")
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=12, set=TINY)
    plan = from_yaml(Plan, run.folder / "plan.yaml")
    assert plan.labels.ignore == (255,) and plan.labels.outputs == 1
    assert run.summary["val_dice"] > 0.9 and run.summary["test"]["mean"]["dice"]["mean"] > 0.85

    (data / "classes.json").unlink()  # the plan knows it
    made = ulna.predict(run.folder, data, out=tmp_path / "masks", split="test")
    mask = np.asarray(Image.open(made.folder / "c5.png"))
    assert set(np.unique(mask)) == {0, 1} and mask[:, 20:].any()
    scored = ulna.evaluate(tmp_path / "masks", data)
    assert scored.summary["mean"]["dice"]["mean"] == pytest.approx(run.summary["test"]["mean"]["dice"]["mean"])
    assert scored.summary["ignore"] == [255] and scored.rows[0]["fp"] < 40
    perfect = ulna.evaluate(data / "labels", half_open(tmp_path / "again"))  # a mask that leaves it open as well
    assert perfect.summary["mean"]["dice"]["mean"] == 1.0

    explained = ulna.explain(run.folder, data / "images" / "c5.png", out=tmp_path / "why")
    assert explained is not None
    with pytest.raises(UsageError, match=r"declares the classes background, disc, not scored: 7, but the run"):
        (data / "classes.json").write_text(json.dumps({"1": "disc", "ignore": 7}))
        ulna.train(data, out=run.folder, resume=True, epochs=13)
    (data / "classes.json").write_text(json.dumps({"1": "disc", "ignore": 255}))
    longer = ulna.train(data, out=run.folder, resume=True, epochs=13)
    assert longer.summary["epochs"] == 13
