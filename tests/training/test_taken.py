"""Weights that were taken over: an encoder that is frozen for some epochs, a lower rate, and both after a stop."""

import os
import signal
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

import ulna
from tests.foreign_code import SMP
from tests.training.test_init import THREE, plan_of, recipe_of
from tests.training.tiny import TINY, rows_of
from ulna.errors import Interrupted, UsageError
from ulna.inference.segmenter import network_for
from ulna.networks.build import from_architecture, named
from ulna.networks.foreign import libraries, load_encoder
from ulna.planning.choosing import check_words, choose
from ulna.recipe import Architecture, Foreign, Optimizer, Training
from ulna.system.files import read_state, read_tensors
from ulna.training import loop as room
from ulna.training.checkpoint import load_checkpoint
from ulna.training.init import begin_with, check_start, read_start, started
from ulna.training.optimizers import FACTOR, lr_of, make_optimizer, set_lr
from ulna.training.taken import Taken, encoder_parts
from ulna.training.train import train

SETTINGS = (*TINY[1:], "training.frozen_epochs=1", "training.init_lr_factor=0.1")
NET = """
from torch import nn


class Net(nn.Conv2d):
    def __init__(self, in_channels, classes):
        super().__init__(in_channels, classes, 1)
"""
ENCODER = ("stages.x0_0.", "stages.x1_0.", "stages.x2_0.")


@pytest.fixture(scope="module")
def first(discs, tmp_path_factory):
    return train(discs, model="unet", out=tmp_path_factory.mktemp("runs") / "a", epochs=1, set=TINY).folder


@pytest.fixture(scope="module")
def second(discs, first, tmp_path_factory):
    """Begun with the first one: an epoch with a frozen encoder, and one without."""
    return train(discs, init=first, out=tmp_path_factory.mktemp("runs") / "b", epochs=2, set=SETTINGS).folder


def weights_of(run):
    return read_tensors(run / "weights.safetensors").tensors


def test_a_frozen_encoder_stays_as_it_is_with_its_statistics(discs, first, tmp_path):
    run = train(discs, init=first, out=tmp_path / "b", epochs=1, set=SETTINGS).folder
    before, after = weights_of(first), weights_of(run)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(ENCODER)} <= same
    assert not any(name.endswith("conv.weight") for name in same if not name.startswith(ENCODER))
    log = (run / "log.txt").read_text()
    assert "frozen for 1 epoch: x0_0, x1_0, x2_0 of the encoder" in log
    assert "learning rate of the 76 weights taken over: 0.1 of that of the others" in log


def test_after_these_epochs_the_encoder_learns(first, second):
    last = load_checkpoint(second / "checkpoints").tensors
    before = weights_of(first)
    moved = [name for name in before if not torch.equal(before[name], last[f"network.{name}"])]
    assert {name for name in before if name.startswith(ENCODER) and name.endswith("conv.weight")} <= {*moved}


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 6])  # in an epoch with a frozen encoder, and in the one without
def test_a_stopped_training_goes_on_exactly(discs, first, second, tmp_path, monkeypatch, stop_at):
    step, count = room.Loop._step, 0

    def signalled(self, *arguments):
        nonlocal count
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(room.Loop, "_step", signalled)
        train(discs, init=first, out=tmp_path / "b", epochs=2, set=SETTINGS)
    train(discs, out=tmp_path / "b", resume=True)
    one, two = (load_checkpoint(folder / "checkpoints") for folder in (second, tmp_path / "b"))
    assert one.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(one.tensors[name], two.tensors[name]) for name in one.tensors)
    assert [{**row, "seconds": ""} for row in rows_of(second)] == [
        {**row, "seconds": ""} for row in rows_of(tmp_path / "b")
    ]


def test_without_a_word_of_it_a_checkpoint_says_nothing(first, second):
    assert "taken_over" not in read_state(first / "checkpoints" / "last.safetensors")
    assert len(read_state(second / "checkpoints" / "last.safetensors")["taken_over"]) == 76


@pytest.mark.parametrize("recorded", [False, True])
def test_what_was_taken_over_moves_by_its_share(recorded):
    new, old = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    made = make_optimizer(
        Optimizer(kind="sgd", momentum=0), [{"params": [new]}, {"params": [old], FACTOR: 0.25}], recorded=recorded
    )
    for rate in (1.0, 0.5):
        set_lr(made, rate)
        assert lr_of(made) == rate
        new.grad, old.grad = torch.ones(3), torch.ones(3)
        made.step()
    assert (new[0].item(), old[0].item()) == (-1.5, -0.375)


def test_a_part_of_the_encoder_that_is_new_is_not_frozen(tmp_path, caplog):
    save_file(network_for(recipe_of(), plan_of()).state_dict(), tmp_path / "a.safetensors")
    network = network_for(recipe_of(), plan_of(channels=3, labels=THREE))
    names = begin_with(network, read_start(str(tmp_path / "a.safetensors")))
    taken = Taken(network.train(), names, Training(frozen_epochs=1, init_lr_factor=0.5))
    with caplog.at_level("INFO"):
        taken.tell()
    assert "frozen for 1 epoch: x1_0, x2_0 of the encoder; not x0_0, which is in part begun anew" in caplog.text
    assert taken.hold(0) and not taken.hold(0)
    still = {name for name, one in network.named_parameters() if not one.requires_grad}
    assert still == {name for name, _ in network.named_parameters() if name.startswith(ENCODER[1:])}
    assert [stage.training for stage in map(network.stages.__getitem__, ("x0_0", "x1_0", "x2_0"))] == [
        True,
        False,
        False,
    ]
    anew, old = (sum(one.numel() for one in group["params"]) for group in taken.groups())
    assert anew == 4 * 3 * 9 + (4 * 3 + 3)  # the first convolution, and the head with its bias
    assert anew + old == sum(one.numel() for one in network.parameters())
    assert taken.hold(1)
    assert all(one.requires_grad for one in network.parameters())


@pytest.mark.parametrize("setting", ["frozen_epochs=2", "init_lr_factor=0.5"])
def test_it_is_refused_where_nothing_is_taken_over(setting):
    with pytest.raises(UsageError, match=rf"training\.{setting}: is of weights that a training begins with.*--init"):
        check_words(choose(model="unet", recipe=None, set=[f"training.{setting}"]))
    check_words(choose(model="unet", recipe=None, init="runs/a", set=[f"training.{setting}"]))


@pytest.mark.parametrize("name", ["unet", "unetpp", "omega_net", "implicit_unet", "nnunet_resenc", "unet3p"])
def test_the_encoder_of_a_named_network_is_its_way_down(name):
    network = from_architecture(named(name), in_channels=1, classes=2, spatial_dims=2)
    parts = encoder_parts(network)
    assert len(parts) == network.wiring.levels
    assert all(part in network.stages.values() for part in parts.values())


def test_a_file_of_an_encoder_alone(tmp_path):
    theirs = network_for(recipe_of(), plan_of(), torch.Generator().manual_seed(5)).state_dict()
    save_file({n: t for n, t in theirs.items() if n.startswith(ENCODER)}, tmp_path / "a.safetensors")
    start = read_start(str(tmp_path / "a.safetensors"))
    left = check_start(start, recipe_of(), plan_of(labels=THREE))
    assert started(start, left).endswith("a.safetensors; as drawn: all that is no part of the encoder")
    network = network_for(recipe_of(), plan_of(labels=THREE), torch.Generator().manual_seed(6))
    assert sorted(begin_with(network, start)) == sorted(start.weights)
    assert all(torch.equal(network.state_dict()[name], one) for name, one in start.weights.items())
    part = {name: one for name, one in start.weights.items() if not name.startswith("stages.x2_0.")}
    with pytest.raises(UsageError, match=r"stages\.x2_0\.\S+ is missing there"):
        check_start(start._replace(weights=part), recipe_of(), plan_of())


@pytest.fixture
def smp(monkeypatch):
    module = types.ModuleType("segmentation_models_pytorch")
    exec(SMP, module.__dict__)  # noqa: S102
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", module)
    libraries._library.cache_clear()
    yield module
    libraries._library.cache_clear()


def test_the_encoder_of_a_network_of_others_is_frozen_part_by_part(smp, tmp_path):
    donor = ulna.build("smp:Unet/resnet34", in_channels=1)
    weights = {name: one for name, one in donor.module.encoder.state_dict().items() if "batches" not in name}
    save_file(weights, tmp_path / "encoder.safetensors")
    foreign = Foreign(source="smp:Unet/resnet34", encoder_weights=str(tmp_path / "encoder.safetensors"))
    network = from_architecture(Architecture(foreign=foreign), in_channels=3, classes=1, spatial_dims=2)
    taken = Taken(network, load_encoder(network, foreign), Training(frozen_epochs=1))
    assert list(taken.parts) == ["stages.logits.encoder.1"]  # the norm; the convolution reads other channels


def test_a_network_of_others_without_an_encoder_is_refused(discs, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    donor = ulna.build(f"module:{tmp_path}/net.py:Net")
    save_file(donor.module.state_dict(), tmp_path / "a.safetensors")  # by the names that they have without ulna
    words = {"model": f"module:{tmp_path}/net.py:Net", "init": tmp_path / "a.safetensors", "epochs": 1}
    with pytest.raises(
        UsageError, match=r"net\.py:Net has no part that is called encoder; set training\.init_lr_factor"
    ):
        train(discs, out=tmp_path / "b", set=SETTINGS, **words)
    assert not (tmp_path / "b").exists()
    run = train(discs, out=tmp_path / "c", set=(*TINY[1:], "training.init_lr_factor=0.1"), **words).folder
    assert "begun with 2 of 2 weights" in (run / "log.txt").read_text()
