"""Training on sampled points and predicting everywhere: Implicit U-Net in 2D and 3D, and any other network."""

import json

import numpy as np
import pytest
import torch

import ulna
from tests.plans import make
from tests.training.tiny import TINY
from ulna.data.pipeline.points import sample_points
from ulna.data.pipeline.preprocess import prepare
from ulna.data.volume import Volume
from ulna.demonstration import make_phantom
from ulna.errors import UsageError
from ulna.inference.volume import predict_slabs
from ulna.losses import make_loss
from ulna.networks.build import build
from ulna.networks.heads.points import Points
from ulna.recipe import Inference, Recipe, from_yaml
from ulna.training.checkpoint import load_checkpoint
from ulna.training.loop import Loop
from ulna.training.train import train

NARROW = ("architecture.head.points.width=32", "architecture.head.points.depth=3")


def test_implicit_unet_learns_from_points_and_predicts_images(discs, tmp_path):
    settings = (*TINY, *NARROW, "points.fraction=0.3", "points.sigma=2", "training.min_steps=12")
    run = train(discs, model="implicit_unet", out=tmp_path / "run", epochs=4, set=settings)
    assert run.summary["val_dice"] > 0.85
    made = ulna.predict(run.folder, discs, out=tmp_path / "masks", split="test")
    assert [row["size"] for row in made.cases] == [[32, 40]]
    asked = json.loads((tmp_path / "masks" / "predict.json").read_text())["points"]
    assert (asked["voxels"], asked["mesh"]) == (32 * 40, 8 * 10)
    assert 0 < asked["refined"] < 32 * 40
    scores = ulna.evaluate(tmp_path / "masks", discs)
    assert scores.summary["mean"]["dice"]["mean"] == pytest.approx(run.summary["test"]["mean"]["dice"]["mean"])


def test_implicit_unet_trains_on_volumes_smaller_than_a_patch_and_predicts_them(tmp_path):
    data = make_phantom(tmp_path / "data", count=4, size=(20, 24, 18))
    small = ("architecture.channels=[4, 8]", "planning.batch=1", "planning.patch=[24, 24, 24]", "training.min_steps=3")
    run = train(data, model="implicit_unet", out=tmp_path / "run", epochs=2, set=(*small, *NARROW, "points.count=500"))
    assert set(run.summary[run.summary["evaluated_on"]]["classes"]) == {"head", "tail"}
    segment = ulna.load(run.folder)
    assert segment(np.zeros((20, 24, 18), np.float32)).mask.shape == (20, 24, 18)


def test_a_stopped_training_on_points_goes_on_exactly(discs, tmp_path):
    options = {
        "model": "implicit_unet",
        "set": (*TINY, *NARROW, "points.count=100", "schedule.kind=constant", "training.min_steps=2"),
    }
    whole = train(discs, out=tmp_path / "whole", epochs=2, **options)
    part = train(discs, out=tmp_path / "part", epochs=1, **options)
    torch.manual_seed(123)  # a new process has another random state
    train(discs, out=part.folder, resume=True, epochs=2)
    a, b = (load_checkpoint(folder / "checkpoints").tensors for folder in (whole.folder, part.folder))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["unetpp", "sdu_net"])
def test_points_can_be_read_from_other_pyramids(discs, tmp_path, model):
    head = ("architecture.head=points", *NARROW, "points.count=200")
    run = train(discs, model=model, out=tmp_path / "run", epochs=2, set=(*TINY, *head))
    assert isinstance(ulna.load(run.folder).network.head, Points)
    made = ulna.predict(run.folder, discs, out=tmp_path / "masks", split="test")
    assert [row["size"] for row in made.cases] == [[32, 40]]
    assert json.loads((tmp_path / "masks" / "predict.json").read_text())["points"]["mesh"] == 8 * 10


@pytest.mark.parametrize("label", [0, 1])
def test_a_patch_without_a_boundary_gives_a_step(label):
    net = build("implicit_unet", channels=(4, 6), head={"kind": "points", "options": {"width": 8, "depth": 2}})
    labels = torch.full((2, 16, 12), label)
    points = sample_points(labels, 2, count=50, alpha=0.5, sigma=5, generator=torch.Generator().manual_seed(0))
    assert points.shape == (2, 50, 2)
    loss_of = make_loss("dice_ce", options={"reduction": "batch"}, heads="equal", multilabel=False)
    loss, _ = loss_of(net.outputs(torch.randn(2, 1, 16, 12), points), labels)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_every_network_can_train_on_points(discs, tmp_path):
    read = []
    outputs = Loop._points

    def spy(self, labels, step):
        read.append(outputs(self, labels, step))
        return read[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_points", spy)
        train(discs, model="unetpp", out=tmp_path / "run", epochs=1, set=(*TINY, "points.fraction=0.25"))
    assert {tuple(points.shape) for points in read} == {(2, 32 * 40 // 4, 2)}
    assert not torch.equal(read[0], read[1])
    assert from_yaml(Recipe, tmp_path / "run" / "recipe.yaml").points.fraction == 0.25


def test_images_are_predicted_by_patches_because_coordinates_are_those_of_a_patch():
    net = build("implicit_unet", channels=(2, 3), head={"kind": "points", "options": {"width": 8, "depth": 1}}).eval()
    sizes = []
    net.stages["x0_0"].register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    plan = make(patch=(16, 16))
    volume = Volume(np.random.default_rng(0).normal(size=(1, 24, 40)), (1.0, 1.0), "px")
    prepared = prepare(volume, plan)
    slabs = predict_slabs(net, plan, prepared, settings=Inference(), device=torch.device("cpu"))
    assert slabs.maps().shape == (1, 24, 40)
    assert set(sizes) == {(16, 16)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("points.count=0", "points.count"),
        ("points.alpha=2", "points.alpha"),
        ("points.sigma=-1", "points.sigma"),
        ("architecture.head=point", "did you mean 'points'"),
    ],
)
def test_wrong_settings_are_named_before_any_work(discs, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        train(discs, model="implicit_unet", out=tmp_path / "run", set=(change,))
    assert not (tmp_path / "run").exists()


def test_halving_by_size_is_refused_at_points_which_have_none(discs, tmp_path):
    with pytest.raises(UsageError, match="weigh them by name"):
        train(discs, model="nnunet", out=tmp_path / "run", set=("points.fraction=0.5",))
