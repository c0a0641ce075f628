"""A run as one file: parity, levels, folds, precision, the card, and what is refused."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import ulna
from tests.inference.test_predict import four_images, run_folder
from tests.places import ROOT
from tests.plans import make
from tests.share import share
from ulna.cli import main as cli
from ulna.errors import UsageError
from ulna.exporting import export as exporting
from ulna.exporting.graphs import make_graphs
from ulna.exporting.openvino import Session, converted, need_openvino
from ulna.exporting.parity import Parity, logits_apart
from ulna.inference.segmenter import Segmenter, network_for
from ulna.recipe import Recipe, Split, to_yaml
from ulna.system.files import Tensors, write_tensors, write_text
from ulna_runtime import load
from ulna_runtime.bundle import read_bundle
from ulna_runtime.network import Network
from ulna_runtime.pipeline import Graphs, Member, read_pipeline

SMALL = {
    "fcn": {"base_channels": 4},
    "sdu_net": {"base_channels": 4, "levels": 2},
    "sdnu_net": {"base_channels": 4, "levels": 2},
}
RECOMMENDED = (
    *("fcn", "unet", "wide_unet", "unetpp", "attention_unet", "nas_unet", "nas_reduction_unet", "efficient_unet"),
    *("sdu_net", "sdnu_net", "omega_net", "implicit_unet", "nnunet", "nnunet_resenc", "mednext", "unet3p"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with random weights, and a summary as a training writes it."""
    folder = run_folder(
        tmp_path_factory.mktemp("runs") / "run",
        0,
        whole_image_limit=300,
        split=Split(train=("a", "b"), val=("c",), test=("d",)),
    )
    dice = {"mean": 0.9, "low": 0.8, "high": 0.95, "n": 34}
    summary = {
        "data": "discs",
        "evaluated_on": "test",
        "test": {"cases": 34, "mean": {"dice": dice}},
        "versions": {"torch": "2"},
    }
    write_text(folder / "summary.json", json.dumps(summary))
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return four_images(tmp_path_factory.mktemp("data") / "images", (37, 50)).parent


@pytest.fixture(scope="module")
def exported(run, images):
    """What `export` says of the file that it wrote."""
    return ulna.export(run, out=run.parent / "a.ulna", data=images, licence="CC0-1.0")


def in_float32(run):
    segmenter = ulna.load(run)
    recipe = segmenter.recipe
    recipe = recipe.replaced(training=recipe.training.replaced(precision="fp32"))
    return Segmenter(segmenter.network, segmenter.plan, recipe, torch.device("cpu"))


def test_the_file_predicts_as_the_run_does(exported, run, images):
    parity = exported.parity
    assert parity.cases == 1  # of the run's test split
    assert not parity.made_up
    assert parity.identical >= 0.999  # see test_calibrated: rounding at the threshold
    assert parity.logits < 1e-5
    segment, own = load(exported.file), in_float32(run)
    for name in "abcd":
        file = images / "images" / f"{name}.png"
        assert (segment(file).mask == own(file).mask).mean() >= 0.999


def test_the_file_holds_no_code_and_says_its_digest(exported):
    bundle = read_bundle(exported.file)
    assert bundle.digest == exported.digest
    assert set(bundle.graphs) == {"networks/0.onnx"}
    assert bundle.pipeline["members"][0]["plan"]["format"] == 2


def test_the_file_says_nothing_of_the_machine_that_wrote_it(exported):
    with zipfile.ZipFile(exported.file) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}
    for place in (ROOT, Path(sys.prefix), Path(torch.__file__).parent, exported.file.parent):
        assert not [name for name, content in members.items() if str(place).encode() in content]


def test_the_card_has_scores_with_intervals_limits_and_licence(exported, run, capsys):
    card = ulna.info(exported.file).card
    assert card["scores"]["dice"] == "0.9000 (0.8000 to 0.9500, n = 34)"
    assert card["licence"] == "CC0-1.0"
    assert card["trained_on"]["training_cases"] == 2
    assert card["export"]["parity"]["identical"] == 1
    assert "not a medical device" in card["limits"][0]
    of_run = ulna.info(run).card
    assert of_run["scores"] == card["scores"]
    assert of_run["licence"].startswith("not stated")
    assert cli.run(["info", str(exported.file)]) == 0
    assert "0.9000 (0.8000 to 0.9500, n = 34)" in capsys.readouterr().out


def test_the_card_as_a_page(run, tmp_path):
    ulna.info(run, out=tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text().startswith("# Model card: run\n")
    with pytest.raises(UsageError, match="exists"):
        ulna.info(run, out=tmp_path / "card.md")


@pytest.mark.slow
def test_without_data_images_are_made_up(run, tmp_path):
    made = ulna.export(run, out=tmp_path / "a.ulna", precision="fp16", most_dice_lost=0.5)
    assert made.parity.made_up
    assert made.parity.cases == 2
    whole = ulna.export(run, out=tmp_path / "b.ulna")
    assert made.bytes < whole.bytes
    assert made.parity.logits > whole.parity.logits


@pytest.mark.slow
def test_eight_bits_are_calibrated_and_refused_above_a_limit(run, images, tmp_path):
    made = ulna.export(run, out=tmp_path / "a.ulna", data=images, precision="int8", most_dice_lost=1)
    assert 0 < made.parity.logits < 0.5
    assert b"QuantizeLinear" in read_bundle(made.file).graphs["networks/0.onnx"]
    with pytest.raises(UsageError, match=r"in int8 the mean Dice falls by .*, more than --most-dice-lost -1"):
        ulna.export(run, out=tmp_path / "b.ulna", data=images, precision="int8", most_dice_lost=-1)
    assert not (tmp_path / "b.ulna").exists()
    with pytest.raises(UsageError, match="int8 is calibrated on training images"):
        ulna.export(run, out=tmp_path / "b.ulna", precision="int8")


def test_a_file_that_predicts_otherwise_is_not_written(run, tmp_path, monkeypatch):
    unlike = Parity(1, True, 100, 0.99, 0.1, 0.0, 0.0, False)
    monkeypatch.setattr(exporting, "_compared", lambda *_: unlike)
    with pytest.raises(UsageError, match=r"would not predict as the run does \(99\.0000% of the voxels"):
        ulna.export(run, out=tmp_path / "a.ulna")
    monkeypatch.setattr(exporting, "_compared", lambda *_: unlike.__class__(1, True, 100, 1.0, 0.1, 0.01, 0.0, False))
    with pytest.raises(UsageError, match=r"logits differ by up to 1\.0e-02"):
        ulna.export(run, out=tmp_path / "a.ulna")
    assert not any(tmp_path.iterdir())


def test_the_network_alone(run, tmp_path):
    import onnx

    made = ulna.export(run, out=tmp_path / "a.onnx", format="onnx")
    model = onnx.load(made.file)
    onnx.checker.check_model(model)
    assert {one.key for one in model.metadata_props} >= {"pipeline.json", "card.json"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"format": "onx"}, "did you mean 'onnx'"),
        ({"precision": "int4"}, "did you mean 'int8'"),
        ({"level": 1}, "nothing to prune"),
        ({"out": "."}, "is a folder"),
        ({"data": "none"}, "none"),
    ],
)
def test_what_cannot_be_is_refused(run, tmp_path, options, match):
    with pytest.raises(UsageError, match=match):
        ulna.export(run, **({"out": tmp_path / "a.ulna"} | options))


def test_files_that_stand_there_and_former_runs_are_refused(exported, run, tmp_path):
    with pytest.raises(UsageError, match="exists; choose another --out"):
        ulna.export(run, out=exported.file)
    with pytest.raises(UsageError, match="is an exported file, where the folder of a run is wanted"):
        ulna.export(exported.file, out=tmp_path / "b.ulna")
    former = run_folder(tmp_path / "former", 0, format=1)
    with pytest.raises(UsageError, match="trained by an earlier ulna"):
        ulna.export(former, out=tmp_path / "b.ulna")


def test_without_the_extra_the_command_that_installs_it_is_said(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"need onnx, which is not installed; pip install 'ulna\[export\]'"):
        ulna.export(run, out=tmp_path / "a.ulna")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match="--format openvino needs openvino"):
        ulna.export(run, out=tmp_path / "a.ulna", format="openvino")


class Answers:
    """In the place of OpenVINO: what a session of onnxruntime answers, off by some."""

    def __init__(self, files, off):
        self.session, self.off = onnx_session(files["network.xml"]), off

    def get_inputs(self):
        return self.session.get_inputs()

    def run(self, names, inputs):
        return [self.session.run(names, inputs)[0] + np.float32(self.off)]


def onnx_session(model):
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def test_what_openvino_answers_is_compared_before_its_files_are_written(run, tmp_path, monkeypatch):
    graphs = []  # made once
    monkeypatch.setattr(
        exporting, "make_graphs", lambda *of: graphs[0] if graphs else graphs.append(make_graphs(*of)) or graphs[0]
    )
    monkeypatch.setattr(exporting, "need_openvino", lambda: None)
    monkeypatch.setattr(exporting, "converted", lambda graph: {"network.xml": graph, "network.bin": b""})
    monkeypatch.setattr(exporting, "Session", lambda files: Answers(files, 0))
    made = ulna.export(run, out=tmp_path / "a.zip", format="openvino")
    assert made.parity.identical >= 0.999
    with zipfile.ZipFile(made.file) as archive:
        assert archive.namelist() == ["network.xml", "network.bin", "pipeline.json", "card.json"]
        assert json.loads(archive.read("card.json"))["export"]["parity"]["logits"] == made.parity.logits
    monkeypatch.setattr(exporting, "Session", lambda files: Answers(files, 0.01))
    with pytest.raises(UsageError, match="would not predict as the run does"):
        ulna.export(run, out=tmp_path / "b.zip", format="openvino")
    assert not (tmp_path / "b.zip").exists()


def test_openvino_finds_no_telemetry(tmp_path, monkeypatch):
    """Its code takes a stub where the package cannot be imported; a package that can be would be found here."""
    (tmp_path / "openvino_telemetry.py").write_text("")
    (tmp_path / "openvino.py").write_text(
        "try:\n    import openvino_telemetry\n    sends = True\nexcept ImportError:\n    sends = False\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert not need_openvino().sends
    monkeypatch.delitem(sys.modules, "openvino")
    monkeypatch.delitem(sys.modules, "openvino_telemetry")


def test_predict_skips_what_the_same_file_made(exported, images, tmp_path):
    first = ulna.predict(exported.file, images / "images", out=tmp_path / "masks")
    again = ulna.predict(exported.file, images / "images", out=tmp_path / "masks")
    assert (len(first.skipped), len(again.skipped)) == (0, 4)
    with pytest.raises(UsageError, match="is an exported file, which holds no split"):
        ulna.predict(exported.file, images / "images", out=tmp_path / "m", split="test")


def nested(folder):
    """A run of UNet++ with two heads to end at."""
    plan = make(strides=((2, 2), (2, 2)), whole_image_limit=300)
    recipe = Recipe(model="unetpp").replaced(
        architecture={"topology": "unetpp", "channels": (4, 6, 8), "strides": plan.strides, "deep_supervision": True}
    )
    network = network_for(recipe, plan, torch.Generator().manual_seed(0))
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    write_text(folder / "plan.yaml", to_yaml(plan))
    write_text(folder / "splits.json", json.dumps({"train": ["a"], "val": ["b"]}))
    write_tensors(folder / "weights.safetensors", Tensors(dict(network.state_dict()), {}))
    return folder


@pytest.mark.slow
def test_a_pruned_level_and_several_runs(tmp_path, images):
    run = nested(tmp_path / "run")
    small = ulna.export(run, out=tmp_path / "small.ulna", level=1)
    both = ulna.export([run, run_folder(tmp_path / "other", 3, whole_image_limit=0)], out=tmp_path / "both.ulna")
    assert min(small.parity.identical, both.parity.identical) >= 0.999
    assert small.bytes < both.bytes
    assert len(read_bundle(both.file).graphs) == 2
    assert ulna.info(both.file).card["networks"] == 2
    file = images / "images" / "a.png"
    members = [in_float32(run), in_float32(tmp_path / "other")]
    expected = torch.stack([one.probabilities(one._volume(file)) for one in members]).mean(0).numpy()
    assert np.abs(load(both.file)(file, probabilities=True).probabilities - expected).max() < 1e-5


def parity_of(name, dims, by_openvino=False):
    """How far the logits of a narrow network and of its graph lie apart, at sizes that the strides divide and others."""
    plan = make(spatial_dims=dims, patch=(24, 16, 16)[:dims], strides=((2,) * dims,) * 2)
    options = SMALL.get(name, {"channels": (4, 6, 8)})
    network = ulna.build(name, spatial_dims=dims, generator=torch.Generator().manual_seed(0), **options).eval()
    recipe = Recipe().replaced(training=Recipe().training.replaced(precision="fp32"))
    segmenter, graphs = Segmenter(network, plan, recipe, torch.device("cpu")), make_graphs(network, plan)
    files = tuple(f"networks/{n}.onnx" for n in range(len(graphs.models)))
    values = {"plan": plan.to_json(), "inference": recipe.model_dump(mode="json")["inference"]}
    values["graphs"] = {**graphs.facts, "files": list(files)}
    (member,) = read_pipeline({"members": [values]}, name)
    assert isinstance(member, Member)
    assert isinstance(member.graphs, Graphs)
    runtime = Network(member, dict(zip(files, graphs.models, strict=True)), name, threads=1)
    if by_openvino:
        runtime.compute_with([Session(converted(graphs.models[0]))])
    generator = torch.Generator().manual_seed(1)
    sizes = [plan.patch] if runtime.by_patches else [plan.patch, (33, 20, 18)[:dims], (17, 13, 11)[:dims]]
    windows = [torch.randn(1, 1, *size, generator=generator).numpy() for size in sizes]
    return logits_apart(segmenter, runtime, windows), runtime.by_patches


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dims"), [*((name, 2) for name in RECOMMENDED), *((name, 3) for name in share(RECOMMENDED, 4))]
)
def test_every_recommended_network(name, dims):
    apart, by_patches = parity_of(name, dims)
    assert apart < 1e-4
    assert by_patches == (name == "implicit_unet")


@pytest.mark.slow
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", [name for name in RECOMMENDED if name != "implicit_unet"])  # it has two graphs
def test_every_recommended_network_in_openvino(name, dims):
    pytest.importorskip("openvino", reason="openvino is not installed (the extra openvino)")
    assert parity_of(name, dims, by_openvino=True)[0] < 1e-4
