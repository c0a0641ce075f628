"""Weights of others as safetensors: where they lie in a file, what is left out, what is refused, and that no code runs."""

import json
import os
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file

import ulna
from tests.training.test_init import plan_of, recipe_of
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.inference.segmenter import network_for
from ulna.networks.foreign import read_checkpoint
from ulna.training.init import begin_with, check_start, read_start

A, B = torch.arange(6.0).reshape(2, 3), torch.tensor([7])
PLAIN = {"a.weight": A, "b.count": B}
MODULE = {f"module.{name}": one for name, one in PLAIN.items()}
DEEP = {"epoch": 3, "model": {"state_dict": MODULE, "hyper": {"lr": 0.1}}, "optimizer": {"state": {}}}


def stored(folder, content, name="a.pth"):
    torch.save(content, folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("content", "notes"),
    [
        (PLAIN, ()),
        (OrderedDict(MODULE), ("taken from the beginning of every name: module.",)),
        ({"state_dict": PLAIN, "epoch": 3}, ("found under state_dict", "left out: epoch")),
        ({"network_weights": PLAIN}, ("found under network_weights",)),
        ({"model": {f"_orig_mod.{n}": one for n, one in MODULE.items()}}, (
            "found under model", "taken from the beginning of every name: _orig_mod.module.")),
        (DEEP, ("found under model > state_dict", "taken from the beginning of every name: module.",
                "left out: epoch, optimizer, hyper")),
    ],
)  # fmt: skip
def test_the_forms_of_checkpoints(tmp_path, content, notes):
    made = ulna.import_weights(stored(tmp_path, content), out=tmp_path / "a.safetensors")
    assert made.notes == notes
    assert [tuple(one) for one in made.weights] == [("a.weight", (2, 3), "float32"), ("b.count", (1,), "int64")]
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == PLAIN.keys() and all(torch.equal(found[name], PLAIN[name]) for name in found)


def test_a_name_that_the_module_itself_has_is_no_wrapping(tmp_path):
    """Only what stands before all names is taken away, and a network may have a part called model."""
    content = {"module.a": A, "b": B, "model": A}
    assert read_checkpoint(stored(tmp_path, content)).weights.keys() == content.keys()


def test_a_part_and_other_names(tmp_path):
    content = {"state_dict": {"module.backbone.a": A, "module.backbone.b": B, "module.head.c": A, "module.step": 3}}
    made = ulna.import_weights(
        stored(tmp_path, content), out=tmp_path / "a.safetensors", prefix="backbone", rename=["a=first.weight"]
    )
    assert [one.name for one in made.weights] == ["first.weight", "b"]
    assert "left out: head.c, step" in made.notes
    words = {"out": tmp_path / "b.safetensors"}
    with pytest.raises(UsageError, match=r"no name begins with encoder\.; there are backbone\., head\."):
        ulna.import_weights(tmp_path / "a.pth", prefix="encoder.", **words)
    with pytest.raises(UsageError, match=r"a\.pth: step is int and no tensor; take what is wanted with a prefix"):
        ulna.import_weights(tmp_path / "a.pth", **words)
    with pytest.raises(UsageError, match=r"--rename x=y: no name of .* begins so"):
        ulna.import_weights(tmp_path / "a.pth", prefix="head.", rename="x=y", **words)
    with pytest.raises(UsageError, match="--rename gives z as the name of a weight twice"):
        ulna.import_weights(tmp_path / "a.pth", prefix="backbone.", rename=["a=z", "b=z"], **words)
    with pytest.raises(UsageError, match="--rename x: write OLD=NEW"):
        ulna.import_weights(tmp_path / "a.pth", rename="x", **words)
    assert not (tmp_path / "b.safetensors").exists()


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_is_run(tmp_path, zipped):
    torch.save(
        {"state_dict": {**PLAIN, "x": Evil(tmp_path / "ran")}},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UsageError, match=r"without running code \(it wants posix\.mkdir to be run\)"):
        ulna.import_weights(tmp_path / "a.pth", out=tmp_path / "a.safetensors")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "a.safetensors").exists()


def test_whole_networks_and_other_files_are_refused(tmp_path):
    (tmp_path / "text.pth").write_text("weights")
    for content, said in (
        (stored(tmp_path, torch.nn.Conv2d(1, 1, 1), "net.pth"), r"it wants torch\.nn\.modules\.conv\.Conv2d to be run"),
        (tmp_path / "text.pth", "without running code"),
        (stored(tmp_path, [A], "list.pth"), "holds list and no tensors by name"),
        (stored(tmp_path, {}, "empty.pth"), "holds nothing"),
        (
            stored(tmp_path, {"a": A.expand(2, 2, 3), "b": A[0, 0].expand(10**9)}, "bomb.pth"),
            "says more numbers than it holds",
        ),
        (stored(tmp_path, {"a": A.to_sparse()}, "sparse.pth"), "another kind than numbers in a grid"),
        (tmp_path / "gone.pth", "no such file"),
    ):
        with pytest.raises(UsageError, match=said):
            read_checkpoint(content)


def test_weights_that_share_memory_are_written_whole_and_bad_numbers_told(tmp_path):
    content = {"a": A, "b": A.t(), "c": torch.tensor([float("nan"), 1])}
    made = ulna.import_weights(stored(tmp_path, content), out=tmp_path / "a.safetensors")
    assert torch.equal(load_file(tmp_path / "a.safetensors")["b"], A.t())
    assert made.notes == ("1 of 2 values of c are NaN or infinite: no training begins with that",)


def test_the_command_lists_names_and_shapes(tmp_path, capsys):
    file, out = stored(tmp_path, MODULE), tmp_path / "a.safetensors"
    assert cli.run(["import-weights", str(file), "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "a.weight  2×3  float32",
        "b.count   1  int64",
        "taken from the beginning of every name: module.",
    ]
    assert cli.run(["import-weights", str(file), "--out", str(out)]) == 2
    assert "exists; choose another --out" in " ".join(capsys.readouterr().err.split())
    assert cli.run(["import-weights", str(file), "--out", str(out), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["weights"][0] == {
        "name": "a.weight",
        "shape": [2, 3],
        "numbers": "float32",
    }
    assert cli.run(["import-weights", str(file), "--out", str(tmp_path / "a.bin")]) == 2
    assert "ends in .safetensors" in " ".join(capsys.readouterr().err.split())


def test_a_training_begins_with_what_was_imported(tmp_path):
    theirs = network_for(recipe_of(), plan_of(), torch.Generator().manual_seed(5)).state_dict()
    stored(tmp_path, {"model": {f"module.{name}": one for name, one in theirs.items()}})
    made = ulna.import_weights(tmp_path / "a.pth", out=tmp_path / "a.safetensors")
    start = read_start(str(made.file))
    assert check_start(start, recipe_of(), plan_of()) == []
    network = network_for(recipe_of(), plan_of())
    begin_with(network, start)
    assert all(torch.equal(network.state_dict()[name], one) for name, one in theirs.items())


def test_a_safetensors_file_can_be_cut_to_a_part(tmp_path):
    save_file({"encoder.a": A, "decoder.a": B}, tmp_path / "a.safetensors")
    made = ulna.import_weights(tmp_path / "a.safetensors", prefix="encoder.", out=tmp_path / "b.safetensors")
    assert [one.name for one in made.weights] == ["a"] and made.notes == ("left out: decoder.a",)
