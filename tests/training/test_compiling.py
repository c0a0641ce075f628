"""Compiling the network of a training: when, and what is said where it cannot be."""

from functools import partial

import pytest
import torch

from tests.training.tiny import TINY
from ulna.errors import UsageError
from ulna.recipe import Training
from ulna.system.files import read_tensors
from ulna.training import compiling as room
from ulna.training.train import train

OPTIONS = {"model": "unet", "epochs": 1}


@pytest.mark.parametrize("wanted", [False, "auto"])
def test_nothing_is_compiled_unless_it_is_asked_for(discs, tmp_path, monkeypatch, wanted):
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    train(discs, out=tmp_path / "run", set=(*TINY, f"training.compile={wanted}"), **OPTIONS)


@pytest.mark.slow
def test_a_compiled_network_takes_the_same_steps(discs, tmp_path, monkeypatch):
    seen, compile = [], torch.compile

    def noted(function, **options):
        seen.append(options)
        return compile(function, **options, backend="eager")  # the graph as it is: what is tested is that there is one

    plain = train(discs, out=tmp_path / "plain", set=TINY, **OPTIONS)
    monkeypatch.setattr(torch, "compile", noted)
    made = train(discs, out=tmp_path / "compiled", set=(*TINY, "training.compile=true"), **OPTIONS)
    assert seen == [{"fullgraph": True, "dynamic": False}]
    one, two = (read_tensors(run.folder / "weights.safetensors").tensors for run in (plain, made))
    for name in one:  # a step of Adam takes the sign of a small gradient, whose last bits differ
        torch.testing.assert_close(two[name].float(), one[name].float(), rtol=0.05, atol=0.02, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch about itself
def test_torch_compiles_a_training_on_a_cpu(discs, tmp_path):
    if room._missing(torch.device("cpu")):
        pytest.skip("no C++ compiler")
    run = train(discs, out=tmp_path / "run", set=(*TINY, "training.compile=true"), **{**OPTIONS, "epochs": 8})
    assert run.summary["val_dice"] > 0.8


def test_without_a_compiler_it_is_said_before_data_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(room, "_missing", lambda device: "there is no C++ compiler")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"training\.compile is true, but there is no C\+\+ compiler; .* to auto"):
        train("no/such/data", set=("training.compile=true",))
    assert list(tmp_path.iterdir()) == []


def test_a_compiler_that_is_not_found_is_named(monkeypatch):
    def absent():
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", absent)
    with pytest.raises(UsageError, match=r"there is no C\+\+ compiler"):
        room.compiles(Training(compile=True), torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="Triton, which compiles for GPUs, is not installed"):
        room.compiles(Training(compile=True), torch.device("cuda"))


@pytest.mark.slow
def test_a_network_that_cannot_be_compiled_is_a_clear_error(discs, tmp_path, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(UsageError, match=r"cannot compile this network here .*no such instruction.*compile to auto"):
        train(discs, out=tmp_path / "run", set=(*TINY, "training.compile=true"), **OPTIONS)


def test_what_cannot_be_compiled_together_is_said_before_data_are_read():
    with pytest.raises(UsageError, match=r"beside training\.activation_checkpointing"):
        train("no/such/data", set=("training.compile=true", "training.activation_checkpointing=true"))


def test_another_word_than_three_is_refused():
    with pytest.raises(UsageError, match=r"training\.compile"):
        train("no/such/data", set=("training.compile=often",))
