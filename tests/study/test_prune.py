"""Pruning: what is measured and written, that a smaller run equals its head to the bit, and what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import ulna
from tests.inference.test_geometry import RECIPE, Shifted
from tests.plans import make
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.data.formats.source import Source
from ulna.data.layout.case import Case
from ulna.data.turning import upright
from ulna.errors import UsageError
from ulna.inference.segmenter import Segmenter, read_split
from ulna.networks.build import build, count_parameters, ends, named
from ulna.networks.catalog import NAMED
from ulna.planning.memory import MemoryEstimate
from ulna.planning.plan import planned_by
from ulna.recipe import Normalization, Plan, Recipe, from_yaml
from ulna.study import prune as pruning
from ulna.study.prune import COLUMNS, measure_times, pick, prune, seconds_in
from ulna.study.pruning_figure import draw_levels
from ulna.study.timing import Times
from ulna.system.files import read_tensors
from ulna.training.train import train

# what is common to a level's run and its parent
SHARED = ("plan.yaml", "splits.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Bright rectangles on noise: six to train on, three to validate, two to test."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3), ("test", 2)):
        masks = np.zeros((count, 24, 28), np.uint8)
        for mask in masks:
            y, x = rng.integers(2, 10, 2)
            mask[y : y + 11, x : x + 13] = 1
        images = np.clip(80 + 90 * masks + rng.normal(0, 15, masks.shape), 0, 255).astype(np.uint8)
        np.savez(folder / f"{part}.npz", images=images, masks=masks)
    return folder


@pytest.fixture(scope="module")
def run_of(data, tmp_path_factory):
    """Train a network for an epoch, once."""
    made = {}

    def get(model, *changes):
        if (model, changes) not in made:
            out = tmp_path_factory.mktemp("runs") / model
            made[model, changes] = train(data, model=model, out=out, epochs=2, set=(*TINY, *changes)).folder
        return made[model, changes]

    return get


@pytest.fixture(scope="module")
def measured(run_of, data, tmp_path_factory):
    return prune(run_of("unetpp"), data=data, out=tmp_path_factory.mktemp("pruned") / "all")


def test_every_level_is_measured_and_the_accurate_mode_too(measured, run_of):
    assert [(row["level"], row["head"]) for row in measured.rows] == [("L1", "x0_1"), ("L2", "x0_2"), ("mean", None)]
    assert measured.chosen is None
    network = ulna.load(run_of("unetpp")).network
    counts = [count_parameters(network.prune(head)) for head in ("x0_1", "x0_2")] + [count_parameters(network)]
    assert [row["parameters"] for row in measured.rows] == counts
    gmacs = [row["gmacs"] for row in measured.rows]
    assert 0 < gmacs[0] < gmacs[1] < gmacs[2]
    assert measured.rows[0]["memory_mb"] < measured.rows[2]["memory_mb"]
    for row in measured.rows:
        assert row["cases"] == 3
        assert 0 <= row["dice_low"] <= row["dice"] <= row["dice_high"] <= 1
        assert row["iou"] <= row["dice"]
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert 0 < row["cpu_p50_ms"] <= row["cpu_p95_ms"]


@pytest.mark.parametrize("level", [1, 2, None])
def test_a_level_has_the_accuracy_that_predict_and_evaluate_find(measured, run_of, data, tmp_path, level):
    run = run_of("unetpp") if level is None else prune(run_of("unetpp"), out=tmp_path / "small", level=level).folder
    masks = ulna.predict(run, data, out=tmp_path / "masks", split="val")
    mean = ulna.evaluate(masks.folder, data).summary["mean"]
    row = measured.rows[-1 if level is None else level - 1]
    for name in ("dice", "iou"):
        found = (row[name], row[f"{name}_low"], row[f"{name}_high"], row["n"])
        assert found == tuple(mean[name][key] for key in ("mean", "low", "high", "n"))


def test_without_a_choice_there_are_tables_and_a_figure_and_no_run(measured):
    assert {path.name for path in measured.folder.iterdir()} == {"prune.csv", "prune.json", "prune.png"}
    rows = list(csv.DictReader((measured.folder / "prune.csv").read_text().splitlines()))
    assert tuple(rows[0]) == COLUMNS
    assert [row["level"] for row in rows] == ["L1", "L2", "mean"]
    assert float(rows[1]["dice"]) == measured.rows[1]["dice"]
    facts = json.loads((measured.folder / "prune.json").read_text())
    assert facts["rows"] == measured.rows
    assert facts["measured_on"] == "val"
    assert len(facts["cases"]) == 3
    assert facts["image_size"]["max"] == [24, 28]
    assert {"device", "threads", "precision", "rounds", "versions", "patch"} <= set(facts)
    assert facts["rounds"] == pruning.ROUNDS


@pytest.mark.parametrize(
    ("model", "choice", "head"),
    [
        ("unetpp", {"level": 1}, "x0_1"),
        ("unetpp", {"level": 2}, "x0_2"),
        ("sdnu_net", {"head": "x0_1"}, "x0_1"),
        ("omega_net", {"head": "aux0"}, "aux0"),
        ("omega_net", {"level": 2}, "main0"),
    ],
)
@pytest.mark.share(3)
def test_a_smaller_run_equals_the_head_of_its_parent_to_the_bit(run_of, tmp_path, model, choice, head):
    parent = run_of(model)
    made = prune(parent, out=tmp_path / "small", **choice)
    assert made.chosen == {"x0_1": "L1", "x0_2": "L2", "aux0": "L1", "main0": "L2"}[head]
    small, whole = ulna.load(made.folder), ulna.load(parent)
    assert count_parameters(small.network) == count_parameters(whole.network.prune(head))
    assert small.network.divisor == whole.network.divisor
    for size in ((24, 28), (13, 21), (1, 1), (5, 40)):
        image = torch.randn(2, 1, *size)
        with torch.inference_mode():
            answer, heads = small.network(image), whole.network.outputs(image).heads
            assert torch.equal(answer, heads[head])
            assert not any(torch.equal(answer, z) for name, z in heads.items() if name != head)


def test_a_smaller_run_is_a_run_folder_like_any_other(run_of, data, tmp_path):
    parent, folder = run_of("omega_net"), tmp_path / "small"
    prune(parent, out=folder, head="aux0")
    for name in SHARED:
        assert (folder / name).read_bytes() == (parent / name).read_bytes()
    assert not any(path.name.startswith(".") for path in folder.iterdir())
    recipe = from_yaml(Recipe, folder / "recipe.yaml")
    assert recipe.architecture.ends_at == "aux0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["pruned_from"] | {"run": "omega_net", "level": "L1", "head": "aux0"} == summary["pruned_from"]
    assert summary["parameters"] == count_parameters(ulna.load(folder).network) < summary["pruned_from"]["parameters"]
    assert "val_dice" not in summary, "the parent's figures are not those of this network"
    stored = read_tensors(folder / "weights.safetensors").tensors
    assert not any("main" in name for name in stored)
    masks = ulna.predict(folder, data / "val.npz", out=tmp_path / "masks")
    assert len(masks.cases) == 3
    again = train(data, recipe=folder / "recipe.yaml", out=tmp_path / "again", epochs=1)
    assert again.summary["parameters"] == summary["parameters"]
    assert set(read_tensors(again.folder / "weights.safetensors").tensors) == set(stored)


def test_a_level_chosen_by_name_is_measured_where_there_are_data(run_of, data, tmp_path):
    made = prune(run_of("omega_net"), data=data, out=tmp_path / "small", level=1)
    assert made.chosen == "L1"
    assert [row["level"] for row in made.rows] == ["L1", "L2"], "the last head is the network's answer: no third row"
    assert all(row["dice"] is not None for row in made.rows)
    summary = json.loads((made.folder / "summary.json").read_text())
    assert summary["evaluated_on"] == "test"
    assert summary["test"]["cases"] == 2
    masks = ulna.predict(made.folder, data, out=tmp_path / "masks", split="test")
    scores = ulna.evaluate(masks.folder, data)
    assert scores.summary["mean"]["dice"]["mean"] == pytest.approx(summary["test"]["mean"]["dice"]["mean"])


def test_without_data_the_table_has_what_needs_none(run_of, tmp_path):
    made = prune(run_of("unetpp"), out=tmp_path / "small", level=1)
    assert all(row["parameters"] > 0 and row["dice"] is None and row["p50_ms"] is None for row in made.rows)
    assert not (made.folder / "prune.png").exists()
    json.dumps(made.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("limit_ms", "level"), [(25, "L2"), (20, "L2"), (19.9, "L1"), (10, "L1"), (35, "L3"), (1000, "L3")]
)
def test_the_most_accurate_level_within_the_time_is_taken(limit_ms, level):
    rows = [
        {"level": "L1", "head": "x0_1", "dice": 0.80, "p50_ms": 10.0},
        {"level": "L2", "head": "x0_2", "dice": 0.85, "p50_ms": 20.0},
        {"level": "L3", "head": "x0_3", "dice": 0.90, "p50_ms": 30.0},
        {"level": "L4", "head": "x0_4", "dice": 0.90, "p50_ms": 40.0},
    ]
    assert pick(rows, limit_ms / 1000) == level


def test_where_none_is_fast_enough_the_fastest_is_named():
    rows = [
        {"level": "L1", "head": "x0_1", "dice": 0.8, "p50_ms": 12.0},
        {"level": "L2", "head": "x0_2", "dice": 0.9, "p50_ms": 20.0},
    ]
    with pytest.raises(UsageError, match=r"within 11 ms .*fastest is L1 with 12 ms"):
        pick(rows, 0.011)


@pytest.mark.parametrize(("text", "seconds"), [("50ms", 0.05), ("0.2s", 0.2), (" 3 s ", 3.0), (".5ms", 0.0005)])
def test_a_latency_is_a_time_with_its_unit(text, seconds):
    assert seconds_in(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["50", "fast", "-5ms", "0ms", "5 min", "ms", "1e3ms", ""])
def test_what_is_no_latency_is_refused(run_of, tmp_path, text):
    with pytest.raises(UsageError, match="such as 50ms"):
        prune(run_of("unetpp"), data="no/such/data", out=tmp_path / "o", latency=text)
    assert list(tmp_path.iterdir()) == []


def test_latency_takes_the_level_that_the_times_allow(run_of, data, tmp_path, monkeypatch):
    slow = {"L1": 0.01, "L2": 0.03, "mean": 0.04}
    times = {name: Times([seconds] * 3, [seconds] * 3) for name, seconds in slow.items()}
    monkeypatch.setattr(pruning, "measure_times", lambda levels, images: times)
    made = prune(run_of("unetpp"), data=data, out=tmp_path / "fast", latency="20ms")
    assert made.chosen == "L1"
    assert from_yaml(Recipe, made.folder / "recipe.yaml").architecture.ends_at == "x0_1"
    assert json.loads((made.folder / "prune.json").read_text())["latency_ms"] == 20
    with pytest.raises(UsageError, match="fastest is L1"):
        prune(run_of("unetpp"), data=data, out=tmp_path / "none", latency="5ms")
    assert not (tmp_path / "none").exists()
    best = max(made.rows, key=lambda row: row["dice"])["level"]
    assert prune(run_of("unetpp"), data=data, out=tmp_path / "all", latency="1s").chosen == best
    assert ulna.load(tmp_path / "all").network.divisor == (4, 4)


def test_every_round_runs_every_level_once_on_one_image():
    calls = []
    levels = {name: (lambda image, name=name: calls.append((name, image))) for name in ("a", "b", "c")}
    read = []
    taken = measure_times(levels, [lambda: read.append(1) or "first", lambda: read.append(2) or "second"])
    assert read == [1, 2] * (pruning.ROUNDS // 2)  # once a round
    assert {(len(times.wall_s), len(times.cpu_s)) for times in taken.values()} == {(pruning.ROUNDS, pruning.ROUNDS)}
    rounds = [calls[at : at + 3] for at in range(0, len(calls), 3)]
    assert [sorted(name for name, _ in one) for one in rounds] == [["a", "b", "c"]] * pruning.ROUNDS
    assert [{image for _, image in one} for one in rounds[:3]] == [{"first"}, {"second"}, {"first"}]
    assert [one[0][0] for one in rounds[:4]] == ["a", "b", "c", "a"]


def test_a_run_with_one_head_is_refused(run_of, data, tmp_path):
    with pytest.raises(UsageError, match=r"one head.*nothing to prune.*deep_supervision=true"):
        prune(run_of("unet"), data=data, out=tmp_path / "o")
    with pytest.raises(UsageError, match="pruned already, to x0_1"):
        small = prune(run_of("unetpp"), out=tmp_path / "small", level=1).folder
        prune(small, data=data, out=tmp_path / "o")
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "x0_11"}, r"--head: .*did you mean 'x0_1'"),
        ({"head": "mean"}, r"(?s)--head: .*valid: x0_1, x0_2"),
        ({"level": 3}, r"(?s)--level: .*valid: 1, 2"),
        ({"level": 0}, r"(?s)--level: .*valid: 1, 2"),
        ({"level": 1, "head": "x0_1"}, "--level and --head"),
        ({"level": 1, "latency": "5ms"}, "--level and --latency"),
        ({}, "add --data"),
        ({"latency": "5ms"}, "add --data"),
        ({"data": "no/such/data"}, "no/such/data"),
    ],
)
def test_what_cannot_be_asked_is_refused_and_nothing_is_written(run_of, tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        prune(run_of("unetpp"), out=tmp_path / "o", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_refused_and_keeps_it(run_of, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt", run_of("unetpp")):
        before = sorted(tmp_path.parent.rglob("*"))
        with pytest.raises(UsageError, match="choose another --out"):
            prune(run_of("unetpp"), out=out, level=1)
        assert sorted(tmp_path.parent.rglob("*")) == before
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert (prune(run_of("unetpp"), out=tmp_path / "empty", level=1).folder / "recipe.yaml").exists()


def test_what_fails_on_the_way_leaves_no_half_run(run_of, tmp_path, monkeypatch):
    def broken(path, content):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pruning, "write_tensors", broken)
    with pytest.raises(OSError, match="disk full"):
        prune(run_of("unetpp"), out=tmp_path / "o", level=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("head", "parameters"), [("x0_1", 100_961), ("x0_2", 511_105), ("x0_3", 2_204_961)])
def test_a_network_stated_to_end_at_a_head_has_the_published_parameters(head, parameters):
    assert count_parameters(build("zhou/unetpp_ds", ends_at=head)) == parameters


def test_only_heads_at_the_size_of_the_image_can_end_a_network():
    assert ends(named("unetpp").replaced(levels=3)) == ("x0_1", "x0_2")
    assert ends(named("omega_net")) == ("aux0", "main0")
    assert ends(named("nnunet").replaced(levels=3)) == ("x0_2",), "the others answer at half size and less"
    assert ends(named("fcn")) == ends(named("implicit_unet")) == ()
    with pytest.raises(UsageError, match=r"ends_at: no head named 'x1_1'.*"):
        build("nnunet", levels=3, ends_at="x1_1")
    with pytest.raises(UsageError, match=r"ends_at: no head named 'x0_1'.*\n.*valid: x0_2"):
        build("unetpp", levels=3, deep_supervision=False, ends_at="x0_1")


def test_a_network_that_ends_early_has_the_depth_and_the_blocks_of_the_whole():
    """Levels counted from the deepest stay those of the whole network: SDN layers do not move."""
    whole, small = build("sdnu_net", base_channels=2), build("sdnu_net", base_channels=2, ends_at="x0_3")
    assert small.divisor == whole.divisor == (16, 16)
    expected = {name: tensor.shape for name, tensor in whole.prune("x0_3").state_dict().items()}
    assert {name: tensor.shape for name, tensor in small.state_dict().items()} == expected


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("name", [name for name, entry in NAMED.items() if len(ends(entry.architecture)) > 1])
def test_every_network_with_several_heads_is_stated_to_end_at_each(name, spatial_dims):
    shape = {"channels": (4, 6, 8), "classes": 3, "spatial_dims": spatial_dims}
    whole = build(name, **shape).eval()
    image = torch.randn(1, 1, *(13, 21, 9)[:spatial_dims])
    with torch.inference_mode():
        heads = whole.outputs(image).heads
        assert len(heads) == (3 if "unet3p" in name else 2)  # its coarser heads are upsampled
        for head, logits in heads.items():
            small = build(name, **shape, ends_at=head).eval()
            small.load_state_dict(whole.prune(head).state_dict())
            assert torch.equal(small(image), logits)


@pytest.mark.parametrize("limit_ms", [None, 30.0, 5000.0])
def test_the_figure_is_drawn_for_one_case_too(tmp_path, limit_ms):
    one = {
        "parameters": 99_000,
        "dice": 0.7,
        "dice_low": None,
        "dice_high": None,
        "iou": 0.6,
        "iou_low": 0.5,
        "iou_high": 0.8,
    }
    rows = [{**one, "level": level, "p50_ms": p50, "p95_ms": 2 * p50} for level, p50 in (("L1", 10.0), ("L2", 20.0))]
    with Image.open(draw_levels(rows, tmp_path / "a.png", conditions="1 case", limit_ms=limit_ms)) as picture:
        assert picture.format == "PNG"
        assert picture.size == (1900, 820)


def test_plans_are_made_for_a_pruned_architecture_too(run_of, tmp_path):
    folder = prune(run_of("unetpp"), out=tmp_path / "small", level=1).folder
    plan, recipe = from_yaml(Plan, folder / "plan.yaml"), from_yaml(Recipe, folder / "recipe.yaml")
    split = read_split(folder)
    small = planned_by(plan, recipe, split)
    assert small.recipe.architecture == recipe.architecture
    whole = planned_by(plan, from_yaml(Recipe, run_of("unetpp") / "recipe.yaml"), split)
    assert small.memory.total < whole.memory.total


@pytest.mark.skipif("prune" not in cli.VERBS, reason="the verb is not listed yet")
def test_the_command_line_prunes(run_of, tmp_path, capsys):
    arguments = ["prune", str(run_of("unetpp")), "--level", "1", "--out", str(tmp_path / "small")]
    assert cli.run([*arguments, "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["chosen"] == "L1"
    assert cli.run([*arguments, "--quiet"]) == 2


def test_predict_takes_a_level(run_of, data, tmp_path):
    """`predict --level` answers as the run that `prune` writes for that level, and refuses one that is not there."""
    run = run_of("unetpp")
    prune(run, out=tmp_path / "l1", level=1)
    for name, given in (
        ("pruned", {"run": tmp_path / "l1"}),
        ("level", {"run": run, "level": 1}),
        ("whole", {"run": run}),
    ):
        ulna.predict(given.pop("run"), data / "test.npz", out=tmp_path / name, probabilities=True, **given)
    one, two, whole = (
        {path.name: path.read_bytes() for path in sorted((tmp_path / name).glob("*_probabilities*"))}
        for name in ("pruned", "level", "whole")
    )
    assert one == two
    assert one
    assert one != whole
    with pytest.raises(UsageError, match="--level: no level named '9'"):
        ulna.predict(run, data / "test.npz", out=tmp_path / "none", level=9)


@pytest.mark.parametrize("format", [1, 2])
@pytest.mark.parametrize("tag", range(1, 9))
def test_a_run_is_measured_on_labels_as_it_saw_them(tmp_path, tag, format, monkeypatch):
    """Runs of plan format 1 saw images and labels as stored: a label map without a tag lies on the stored pixels."""

    class Bright(Shifted):
        def forward(self, x):
            return x - 100

    stored = np.zeros((20, 24), np.uint8)
    stored[2:9, 3:15] = 200
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(stored).save(tmp_path / "image.png", exif=exif)
    label = stored if format == 1 else upright(stored, tag)
    Image.fromarray(np.ascontiguousarray(label // 200)).save(tmp_path / "label.png")
    case = Case("a", (Source(tmp_path / "image.png"),), Source(tmp_path / "label.png"))
    plan = make(format=format, normalization=(Normalization(kind="none"),), patch=(48, 48))
    monkeypatch.setattr(Segmenter, "forecast", lambda *args, **flags: MemoryEstimate({}))
    scores = pruning._evaluate(Segmenter(Bright(()), plan, RECIPE), [case], "measuring")
    assert scores.summary["mean"]["dice"]["mean"] == 1
