"""Values that are one class, overlapping channels of one label map, and regions with an order, through every verb."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import ulna
from tests.training.tiny import TINY
from ulna.cli import main as cli
from ulna.data.formats.label_maps import in_file
from ulna.data.formats.read import read_labels
from ulna.data.formats.source import Source
from ulna.data.quality.check import check
from ulna.errors import UsageError
from ulna.recipe import Plan, from_yaml, to_yaml

KIDNEY = {"kidney": [1, 2], "tumour": [2]}


def drawn(root, count=6, inner=2, kind="png", seed=0):
    """A disc of 1 in whose middle lies one of `inner`, brighter, on noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :40]
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for n in range(count):
        away = (rows - rng.integers(11, 21)) ** 2 + (columns - rng.integers(11, 29)) ** 2
        labels = np.where(away < 16, inner, away < 81).astype(np.uint8)
        image = np.clip(60 + 70.0 * (away < 81) + 70.0 * (away < 16) + rng.normal(0, 8, away.shape), 0, 255)
        for folder, array in (("images", image.astype(np.uint8)), ("labels", labels)):
            if kind == "png":
                Image.fromarray(array).save(root / folder / f"c{n}.png")
            else:
                nib.save(nib.Nifti1Image(array[:, :, None], np.eye(4)), root / folder / f"c{n}.nii.gz")
    ids = [f"c{n}" for n in range(count)]
    (root / "splits.json").write_text(json.dumps({"train": ids[:-2], "val": ids[-2:-1], "test": ids[-1:]}))
    return root


def declare(root, classes):
    (root / "classes.json").write_text(json.dumps(classes))
    return root


def test_merged_values_are_one_class_everywhere(tmp_path):
    data = declare(drawn(tmp_path / "data", inner=3), {"tumour": [1, 3]})
    run = ulna.train(data, model="unetpp", out=tmp_path / "run", epochs=8, set=TINY)
    labels = from_yaml(Plan, run.folder / "plan.yaml").labels
    assert labels.values == ((1, 3),) and labels.outputs == 1
    assert run.summary["test"]["mean"]["dice"]["mean"] > 0.8
    (data / "classes.json").unlink()
    ulna.predict(run.folder, data, out=tmp_path / "masks", split="test")
    mask = np.asarray(Image.open(tmp_path / "masks" / "c5.png"))
    assert set(np.unique(mask)) == {0, 1}
    again = ulna.evaluate(tmp_path / "masks", data)
    assert again.summary["mean"]["dice"]["mean"] == pytest.approx(run.summary["test"]["mean"]["dice"]["mean"])
    assert [row["class"] for row in again.rows] == ["tumour"]

    declare(data, {"tumour": [1, 3]})
    pruned = ulna.prune(run.folder, data=data, level=1, out=tmp_path / "small")
    assert from_yaml(Plan, tmp_path / "small" / "plan.yaml").labels == labels and pruned is not None
    declare(data, {"tumour": [1], "core": [3]})
    with pytest.raises(
        UsageError, match=r"the classes of these data are background, tumour \(1\), core \(3\), those of the plan"
    ):
        ulna.train(data, model="unetpp", plan=run.folder / "plan.yaml", out=tmp_path / "other", set=TINY)


def dice(prediction, reference):
    return 2 * np.sum(prediction & reference) / (np.sum(prediction) + np.sum(reference))


@pytest.mark.slow
@pytest.mark.parametrize("earlier", [False, True])
def test_class_indices_in_masks_are_not_read_as_stored_values(tmp_path, earlier):
    """`inner` is class 1 and the value 3: a picture of the mask holds 3, that of an earlier run 1, and both are the same."""
    data = declare(drawn(tmp_path / "data", inner=3), {"inner": [3], "outer": [1]})
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=6, set=TINY)
    if earlier:
        plan = from_yaml(Plan, run.folder / "plan.yaml").replaced(mask_values=None)
        (run.folder / "plan.yaml").write_text(to_yaml(plan))
    ulna.predict(run.folder, data, out=tmp_path / "masks", split="test")
    mask, reference = (np.asarray(Image.open(p / "c5.png")) for p in (tmp_path / "masks", data / "labels"))
    written = {"inner": 1, "outer": 2} if earlier else {"inner": 3, "outer": 1}
    assert set(np.unique(mask)) <= {0, *written.values()} and mask.any()
    scored = ulna.evaluate(tmp_path / "masks", data)
    for name, value in (("inner", 3), ("outer", 1)):
        measured = scored.summary["classes"][name]["dice"]["mean"]
        assert measured == pytest.approx(dice(mask == written[name], reference == value))
    assert scored.summary["mean"]["dice"]["mean"] == pytest.approx(run.summary["test"]["mean"]["dice"]["mean"])
    own = ulna.evaluate(data / "labels", data)  # masks of others hold what the references hold
    assert own.summary["mean"]["dice"]["mean"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "order"), [("png", None), ("png", [1, 2]), ("nifti", [1, 2])])
def test_overlapping_channels_of_one_label_map(tmp_path, kind, order):
    classes = {**KIDNEY, **({"regions_class_order": order} if order else {})}
    data = declare(drawn(tmp_path / "data", kind=kind), classes)
    report = check(data)
    assert report.ok and report.scans[0].label_values[1] > report.scans[0].label_values[2] > 0
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=6, set=TINY)
    labels = from_yaml(Plan, run.folder / "plan.yaml").labels
    (data / "classes.json").unlink()
    ulna.predict(run.folder, data, out=tmp_path / "masks", split="test", probabilities=True)
    (file,) = [path for path in (tmp_path / "masks").iterdir() if path.name.startswith("c5.")]
    assert file.suffix == (".gz" if kind == "nifti" else ".png" if order else ".tif")
    name = "c5.png" if kind == "png" else "c5.nii.gz"
    result = ulna.load(run.folder)(data / "images" / name)
    assert len(result.mask) == 2 and result.mask[0].any()
    stored, reference = (read_labels(Source(path)).array for path in (file, data / "labels" / name))
    assert np.array_equal(stored.reshape(-1, 32, 40), in_file(result.mask, labels).reshape(-1, 32, 40))
    assert result.save(tmp_path / "one").name == file.name.replace("c5", "one")

    scored = ulna.evaluate(tmp_path / "masks", data)
    found = [stored[0] > 0, stored[0] == 2] if order else [one > 0 for one in stored]
    for name, one, own in zip(KIDNEY, found, (reference[0] > 0, reference[0] == 2), strict=True):
        assert scored.summary["classes"][name]["dice"]["mean"] == pytest.approx(dice(one, own))
    if order is None:  # with an order, what lies outside of the outer region becomes part of it
        assert scored.summary["mean"]["dice"]["mean"] == pytest.approx(run.summary["test"]["mean"]["dice"]["mean"])


def test_regions_of_an_npz_come_back_as_one_map(tmp_path):
    root = drawn(tmp_path / "png")
    stacked = {
        key: np.stack([np.asarray(Image.open(root / folder / f"c{n}.png")) for n in range(6)])
        for key, folder in (("images", "images"), ("masks", "labels"))
    }
    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "train.npz", **stacked)
    declare(data, {**KIDNEY, "regions_class_order": [1, 2]})
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=2, set=TINY)
    for _ in range(2):  # the second adds nothing
        ulna.predict(run.folder, data / "train.npz", out=tmp_path / "masks")
    masks = np.load(tmp_path / "masks" / "train.npz")["masks"]
    assert masks.shape == (6, 32, 40) and set(np.unique(masks)) <= {0, 1, 2}
    assert ulna.evaluate(tmp_path / "masks", data / "train.npz").summary["cases"] == 6


def test_a_plan_tells_merged_classes(tmp_path, capsys):
    data = declare(drawn(tmp_path / "data"), {**KIDNEY, "ignore": 9})
    assert cli.run(["plan", str(data), "--model", "unet", "--untimed", "--out", str(tmp_path / "plan.yaml")]) == 0
    assert "kidney (1, 2), tumour (2), not scored: 9" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.slow
def test_a_study_knows_merged_classes(tmp_path):
    data = declare(drawn(tmp_path / "data"), {**KIDNEY, "ignore": 9})
    study = ulna.compare(data, models=["unet", "unetpp"], seeds=1, epochs=1, out=tmp_path / "study", set=TINY)
    assert study is not None and (tmp_path / "study" / "table.md").read_text().count("unet") >= 2


def test_objects_train_as_one_class(tmp_path):
    data = drawn(tmp_path / "data", inner=7)
    declare(data, {"labels": {"1": "nucleus"}, "instances": True})
    run = ulna.train(data, model="unet", out=tmp_path / "run", epochs=8, set=TINY)
    assert run.summary["test"]["mean"]["dice"]["mean"] > 0.8
    (data / "classes.json").unlink()
    ulna.predict(run.folder, data, out=tmp_path / "masks", split="test")
    assert ulna.evaluate(tmp_path / "masks", data).summary["mean"]["dice"]["mean"] > 0.8


@pytest.mark.parametrize("verb", ["check", "plan", "train"])
def test_regions_that_do_not_nest_are_told_by_every_verb(tmp_path, capsys, verb):
    data = declare(drawn(tmp_path / "data", inner=3), {"a": [1, 2], "b": [2, 3], "regions_class_order": [1, 3]})
    assert cli.run([verb, str(data)]) == 2
    told = " ".join("".join(capsys.readouterr()).split())
    assert "classes.json: has regions that do not nest: the value 2 is in 'a' and 'b'" in told
