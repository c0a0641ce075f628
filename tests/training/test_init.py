"""A training that begins with the weights of another: what is taken, what is begun anew, what is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tests.plans import make
from tests.training.tiny import TINY
from ulna.errors import UsageError
from ulna.inference.segmenter import network_for
from ulna.planning.choosing import choose
from ulna.recipe import Labels, Recipe, from_yaml
from ulna.system.files import read_tensors
from ulna.training import single as room
from ulna.training.init import begin_with, check_start, read_start, started
from ulna.training.train import train
from ulna_runtime import zoo

THREE = Labels(names=("background", "a", "b"))
STRIDES = ((2, 2), (2, 2))


def recipe_of(model="unet", **architecture):
    fields = {"channels": (4, 8, 16), "strides": STRIDES, **architecture}
    recipe = choose(model=model, recipe=None)
    return recipe.replaced(architecture=recipe.architecture.replaced(**fields))


def plan_of(channels=1, labels=None, **fields):
    named = {"in_channels": channels, "channel_names": tuple(f"c{n}" for n in range(channels))}
    fields = {"strides": STRIDES, "normalization": make().normalization * channels, **fields}
    return make(**named, **({} if labels is None else {"labels": labels}), **fields)


@pytest.fixture
def weights(tmp_path):
    """A file with the weights of a network of one channel and one structure, and the network."""
    network = network_for(recipe_of(), plan_of(), torch.Generator().manual_seed(5))
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    return str(tmp_path / "a.safetensors"), network


def begun(source, recipe, plan):
    start = read_start(source)
    left = check_start(start, recipe, plan)
    network = network_for(recipe, plan, torch.Generator().manual_seed(6))
    begin_with(network, start)
    return network.state_dict(), left, started(start, left)


def test_weights_of_the_same_network_are_taken_whole(weights):
    file, theirs = weights
    own, left, _ = begun(file, recipe_of(), plan_of())
    assert left == []
    assert all(torch.equal(own[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize(
    ("plan", "anew"), [(plan_of(channels=3), 1), (plan_of(labels=THREE), 2), (plan_of(channels=2, labels=THREE), 3)]
)
def test_what_depends_on_other_channels_or_classes_is_begun_anew_and_told(weights, plan, anew):
    file, theirs = weights
    own, left, told = begun(file, recipe_of(), plan)
    fresh = network_for(recipe_of(), plan, torch.Generator().manual_seed(6)).state_dict()
    names = [one.split(" ")[0] for one in left]
    assert len(names) == anew
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(own[name], fresh[name] if name in names else tensor)
    assert all(name in told for name in names)
    assert "\n" not in told


@pytest.mark.parametrize(
    ("recipe", "plan"),
    [
        (recipe_of("unetpp"), plan_of()),
        (recipe_of(channels=(4, 8, 12)), plan_of()),
        (recipe_of(channels=(4, 8), strides=STRIDES[:1]), plan_of()),
        (recipe_of(strides=((2, 2, 2),) * 2), plan_of(spatial_dims=3, strides=((2, 2, 2),) * 2)),
    ],
)
def test_another_architecture_is_refused(weights, recipe, plan):
    with pytest.raises(UsageError, match="is of another architecture"):
        check_start(read_start(weights[0]), recipe, plan)


def test_weights_of_volumes_are_refused_for_pictures(discs, tmp_path):
    recipe = recipe_of(strides=((2, 2, 2),) * 2)
    network = network_for(recipe, plan_of(spatial_dims=3, strides=((2, 2, 2),) * 2))
    save_file(network.state_dict(), tmp_path / "a.safetensors")
    with pytest.raises(UsageError, match="is a network of volumes, and these images are 2D"):
        train(discs, init=tmp_path / "a.safetensors", out=tmp_path / "b", epochs=1, set=TINY)
    assert not (tmp_path / "b").exists()


def test_blocks_of_other_options_are_refused_though_their_weights_would_fit(weights):
    start = read_start(weights[0])._replace(recipe=recipe_of(readout="mean", deep_supervision=False))
    with pytest.raises(UsageError, match=r"architecture\.readout differs"):
        check_start(start, recipe_of(), plan_of())


def test_damaged_and_missing_weights_are_refused(weights, tmp_path):
    theirs = weights[1]
    bad = theirs.state_dict()
    next(iter(bad.values())).fill_(float("nan"))
    save_file(bad, tmp_path / "nan.safetensors")
    with pytest.raises(UsageError, match="NaN or infinite"):
        read_start(str(tmp_path / "nan.safetensors"))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:200])
    with pytest.raises(UsageError, match="damaged"):
        read_start(str(tmp_path / "cut.safetensors"))
    with pytest.raises(UsageError, match="no run folder"):
        read_start(str(tmp_path))
    with pytest.raises(UsageError, match="no segmenter of this name"):
        read_start("zoo:nothing")


@pytest.fixture(scope="module")
def first(discs, tmp_path_factory):
    return train(discs, model="unet", out=tmp_path_factory.mktemp("runs") / "a", epochs=2, set=TINY).folder


def test_a_training_begins_with_a_run_and_says_so(discs, first, tmp_path):
    run = train(discs, init=first, out=tmp_path / "b", epochs=1, set=(*TINY[1:], "optimizer.lr=1e-9"))
    assert run.summary["init"] == first.name  # what is passed on names no folder of this machine
    assert f"--init {first.name}" in run.summary["command"]
    own, theirs = (from_yaml(Recipe, folder / "recipe.yaml") for folder in (run.folder, first))
    assert own.training.init == str(first)
    assert own.architecture == theirs.architecture  # no network was named: that of the weights
    assert "begun with" in (run.folder / "log.txt").read_text()
    before, after = (read_tensors(folder / "weights.safetensors").tensors for folder in (first, run.folder))
    assert all(torch.allclose(before[n], after[n], atol=1e-6) for n in before if n.endswith("conv.weight"))
    assert any(n.endswith("weight") for n in before)


def test_a_network_that_was_named_must_be_that_of_the_weights(discs, first, tmp_path):
    with pytest.raises(UsageError, match="another architecture"):
        train(discs, model="unetpp", init=first, out=tmp_path / "b", epochs=1, set=TINY)
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_going_on_does_not_need_the_weights_again(discs, first, tmp_path):
    source = shutil.copytree(first, tmp_path / "source")
    run = train(discs, init=source, out=tmp_path / "b", epochs=1, set=TINY[1:]).folder
    shutil.rmtree(source)
    again = train(discs, init=source, out=run, resume=True, epochs=2)
    assert again.summary["epochs"] == 2
    with pytest.raises(UsageError, match=r"training\.init"):
        train(discs, init="zoo:nuclei", out=run, resume=True)


@pytest.mark.slow
def test_a_training_without_a_checkpoint_begins_with_them_once_more(discs, first, tmp_path, monkeypatch):
    run = train(discs, init=first, out=tmp_path / "b", epochs=1, set=TINY[1:]).folder
    for name in ("weights.safetensors", "metrics.csv", "summary.json"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints")
    taken = []
    monkeypatch.setattr(room, "begin_with", lambda network, start: taken.append(start.source) or [])
    train(discs, out=run, resume=True)
    assert taken == [str(first)]


@pytest.mark.slow
def test_an_exported_file_that_holds_its_weights(discs, first, tmp_path):
    from ulna.exporting.export import export

    export(first, out=tmp_path / "without.ulna")
    with pytest.raises(UsageError, match="--with-weights"):
        read_start(str(tmp_path / "without.ulna"))
    export(first, out=tmp_path / "a.ulna", precision="fp16", with_weights=True, most_dice_lost=1.0)
    start = read_start(str(tmp_path / "a.ulna"))
    theirs = read_tensors(first / "weights.safetensors").tensors
    assert start.weights.keys() == theirs.keys()
    assert all(torch.allclose(start.weights[n].float(), theirs[n].float(), rtol=1e-3, atol=1e-6) for n in theirs)
    run = train(discs, init=tmp_path / "a.ulna", out=tmp_path / "b", epochs=1, set=TINY[1:])
    assert json.loads((run.folder / "summary.json").read_text())["init"].endswith("a.ulna")
    with pytest.raises(UsageError, match="--with-weights"):
        export(first, out=tmp_path / "c.onnx", format="onnx", with_weights=True)


@pytest.mark.skipif("nuclei" not in zoo.names(), reason="ulna-runtime has no zoo:nuclei")
def test_a_segmenter_of_the_zoo_begins_a_training_of_other_channels_and_classes(discs, tmp_path):
    start = read_start("zoo:nuclei")
    assert check_start(start, start.recipe, plan_of(channels=3, strides=start.recipe.architecture.strides)) == []
    run = train(discs, init="zoo:nuclei", out=tmp_path / "a", epochs=1, set=TINY[1:])
    assert run.summary["init"] == "zoo:nuclei"
    told = next(line for line in (run.folder / "log.txt").read_text().splitlines() if "begun with" in line)
    assert "channels or classes differ: stages.x0_0.conv.layers.0.conv.weight (12x3x3x3 there, 12x1x3x3 here)" in told
