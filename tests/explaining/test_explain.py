"""The verb `explain`: what it writes for pictures and for volumes, of one run and of several, and what it refuses."""

import json
import os
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

import ulna
from tests.data.pipeline.test_orientation import stored_as
from tests.plans import make
from ulna.cli import main as cli
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source
from ulna.data.layout.dataset import Dataset
from ulna.data.volume import Volume
from ulna.errors import UsageError
from ulna.explaining import methods, pictures
from ulna.explaining.explain import _mirrored_answer, explain
from ulna.inference.segmenter import Segmenter, network_for
from ulna.recipe import Labels, Normalization, Recipe, Split, to_yaml
from ulna.system.files import Tensors, move_whole, write_tensors, write_text
from ulna.system.outputs import file_digest
from ulna.trust.calibration import Calibration
from ulna.trust.choosing import Kept
from ulna.trust.cleaning import Rule
from ulna.trust.structures import Structures

SEEN = {"cases": 9, "volume_min": 1, "volume_max": 2, "objects_max": 1, "smallest_object": 1, "border": 0}
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 0.8, 0, -20], [0, 0, 2.0, 5], [0, 0, 0, 1.0]])


def run_folder(folder, seed=0, *, model="unet", topology="unet", bias=None, options=None, **plan):
    """A run folder with random weights; `bias` is that of every logit."""
    dims = plan.get("spatial_dims", 2)
    plan = make(**{"strides": ((2,) * dims,), **plan})
    changes = {"channels": (4, 8), "strides": plan.strides, "topology": topology, **(options or {})}
    recipe = Recipe(model=model).replaced(architecture=changes)
    network = network_for(recipe, plan, torch.Generator().manual_seed(seed))
    if bias is not None:
        with torch.no_grad():
            for conv in network.head.convs.values():
                conv.bias.copy_(torch.tensor(bias))
    write_text(folder / "recipe.yaml", to_yaml(recipe))
    write_text(folder / "plan.yaml", to_yaml(plan))
    write_text(folder / "splits.json", json.dumps(Split(train=("a",), val=("b",)).model_dump(mode="json")))
    write_tensors(folder / "weights.safetensors", Tensors(dict(network.state_dict()), {}))
    return folder


def channels(count):
    return {
        "in_channels": count,
        "channel_names": tuple(f"MR{n}" for n in range(count)),
        "normalization": (Normalization(kind="zscore"),) * count,
    }


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "images" / "scan.png"
    path.parent.mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (37, 50), np.uint8)).save(path)
    return path


@pytest.fixture
def scan(tmp_path):
    """A volume with two channels, at its place in the world."""
    path = tmp_path / "images" / "scan.nii.gz"
    path.parent.mkdir()
    array = np.random.default_rng(0).normal(size=(12, 10, 9, 2)).astype(np.float32)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_picture_gives_pictures(tmp_path, picture):
    made = explain(run_folder(tmp_path / "run"), picture, out=tmp_path / "why")
    expected = {"saliency.png", "uncertainty.png", "gradcam.png", "overlay.png", "explain.json"}
    assert names(made.folder) == set(made.files) == expected
    for name in expected - {"explain.json"}:
        with Image.open(made.folder / name) as image:
            assert np.asarray(image).std() > 5
    facts = json.loads((made.folder / "explain.json").read_text())
    assert facts == made.facts
    assert made.to_json() == {"folder": str(made.folder), **facts}
    assert facts["runs"] == ["run"]
    assert facts["target"] == "foreground"
    assert "no proof" in facts["note"]
    assert {"spread", "attention"} <= set(facts["left_out"])
    for about in facts["maps"].values():
        assert about["file"] in made.files
        assert about["method"]


@pytest.mark.parametrize("dims", [2, 3])
def test_every_sequence_is_shown_and_its_saliency_lies_over_it(dims):
    """Fig. 6 and 7 of the modular U-Net: once only the first channel was drawn, under the saliency of all."""
    ramp = np.arange(16.0).reshape(4, 4)
    both = np.stack([ramp, ramp.T])
    array = both if dims == 2 else np.repeat(both[..., None], 3, axis=-1)
    volume, none = Volume(array, (1.0,) * dims, "px", None), np.zeros(array.shape[1:], np.float32)
    inside = none == 0
    layers = {
        "saliency": [
            pictures.Panel("saliency of it", f"{name}, 50%", none, 1.0, channel=name) for name in ("T1", "T2")
        ],
        "uncertainty": [pictures.Panel("uncertainty", "entropy", none, 1.0)],
    }
    (_, images), (title, maps) = pictures._rows(volume, none.astype(np.uint8), inside, layers, None)["overlay"]
    assert title == "saliency over its channel"
    assert [one.caption for one in images] == ["T1", "T2", "prediction", "entropy"]
    assert [one.caption for one in maps] == ["T1, 50%", "T2, 50%"]
    for first, second in (images[:2], maps):
        turned = first.values.swapaxes(0, 1)
        turned = turned if dims == 2 else turned[::-1, ::-1]  # slices are drawn with their second axis upwards
        assert np.array_equal(second.values, turned)
        assert not np.array_equal(second.values, first.values)


def test_a_colour_is_one_picture_under_every_map():
    volume, none = Volume(np.zeros((3, 4, 4), np.uint8), (1.0, 1.0), "px", None), np.zeros((4, 4), np.float32)
    layers = {
        "saliency": [
            pictures.Panel("saliency of it", name, none, 1.0, channel=name) for name in ("red", "green", "blue")
        ],
        "uncertainty": [pictures.Panel("uncertainty", "entropy", none, 1.0)],
    }
    ((title, shown),) = pictures._rows(volume, none.astype(np.uint8), none == 0, layers, None)["overlay"]
    assert (title, len(shown)) == ("over the image", 6)


def test_an_image_that_is_too_large_is_refused_before_it_is_prepared(tmp_path, picture, monkeypatch):
    monkeypatch.setattr("ulna.planning.memory.memory", lambda: 1000)
    monkeypatch.setattr("ulna.explaining.explain.prepare", lambda *_: pytest.fail("the image was prepared"))
    with pytest.raises(UsageError, match=r"an image of 37 x 50 needs about .*; cut the image"):
        explain(run_folder(tmp_path / "run"), picture, out=tmp_path / "why")


def test_the_maps_that_are_drawn_are_those_of_the_methods(tmp_path, picture, monkeypatch):
    """The whole way of a volume's values: mask, region, gradient, and the grid of the image."""
    run, drawn = run_folder(tmp_path / "run", seed=2), {}
    monkeypatch.setitem(
        pictures.WRITERS, 2, lambda *given: drawn.update(zip("ovmil", given, strict=True)) or names_of(given)
    )

    def names_of(given):
        return dict.fromkeys(["overlay", *given[-1]], "x.png")

    explain(run, picture, out=tmp_path / "why")
    segment = ulna.load(run)
    result = segment(picture)
    assert np.array_equal(drawn["m"], result.mask)
    assert np.array_equal(drawn["i"], result.mask == 1)
    values = np.asarray(Image.open(picture), np.float32)
    x = torch.from_numpy((values - values.mean()) / values.std())[None, None].requires_grad_()
    (gradient,) = torch.autograd.grad(segment.network(x)[0, 0][torch.from_numpy(result.mask == 1)].sum(), x)
    (panel,) = drawn["l"]["saliency"]
    np.testing.assert_allclose(panel.values, gradient[0, 0].abs(), rtol=1e-3, atol=1e-4)
    p = result.probabilities[0].astype(np.float64)
    (entropy,) = drawn["l"]["uncertainty"]
    np.testing.assert_allclose(entropy.values, -p * np.log(p) - (1 - p) * np.log1p(-p), atol=1e-5)


def test_a_volume_gives_nifti_in_its_own_geometry_and_one_sheet(tmp_path, scan):
    run = run_folder(
        tmp_path / "run", model="attention_unet", spatial_dims=3, options={"skip": "attention_gate"}, **channels(2)
    )
    made = explain(run, scan, out=tmp_path / "why", tta=True)
    assert {"saliency.nii.gz", "uncertainty.nii.gz", "attention.nii.gz", "overlay.nii.gz", "contact_sheet.png"} <= set(
        made.files
    )
    assert names(made.folder) == set(made.files)
    maps = {name: nib.load(made.folder / name) for name in made.files if name.endswith(".nii.gz")}
    for image in maps.values():
        assert image.shape[:3] == (12, 10, 9)
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
        assert np.isfinite(image.get_fdata()).all()
    assert maps["saliency.nii.gz"].shape == (12, 10, 9, 2)
    assert made.facts["maps"]["saliency"]["channels"] == ["MR0", "MR1"]
    assert sum(made.facts["maps"]["saliency"]["share"]) == pytest.approx(1)
    assert maps["uncertainty.nii.gz"].shape == (12, 10, 9, 2)
    assert made.facts["maps"]["uncertainty"]["maps"] == ["entropy", "spread"]
    assert made.facts["maps"]["uncertainty"]["members"] == 8  # mirrored along three axes
    gate = maps["attention.nii.gz"].get_fdata()
    assert gate.shape == (12, 10, 9)
    assert 0 <= gate.min() < gate.max() <= 1
    mask = ulna.load(run).mirrored()(scan).mask
    assert np.array_equal(maps["overlay.nii.gz"].get_fdata(), mask)


def test_the_mask_that_is_explained_is_the_one_that_predict_writes(tmp_path, scan):
    """A run with post-processing: what that takes away is explained as little as it is written."""
    run = run_folder(tmp_path / "run", spatial_dims=3, bias=[0.1], **channels(2))
    kept = Kept(rule=Rule(largest=True), dice_before=0.8, dice_after=0.9, cases=9, changed=9, p=0.001)
    seen = dict.fromkeys(ulna.load(run).plan.labels.foreground, SEEN)
    Calibration(
        weights=file_digest(run / "weights.safetensors"), cases=9, seconds=0.0,
        structures=Structures(cases=9, unit="ml", seen=seen), post_processing=dict.fromkeys(seen, kept),
    ).write(run)  # fmt: skip
    explain(run, scan, out=tmp_path / "why")
    ulna.predict(run, scan, out=tmp_path / "answer")
    drawn, mask = (nib.load(tmp_path / place).get_fdata() for place in ("why/overlay.nii.gz", "answer/scan.nii.gz"))
    assert np.array_equal(drawn, mask)
    assert np.count_nonzero(mask) < np.count_nonzero(ulna.load(run, post_processing=False)(scan).mask)


def test_large_volumes_go_by_windows_and_come_back_on_their_own_grid(tmp_path, scan):
    grid = {"spacing": (1.0, 1.0, 1.0), "unit": "mm", "whole_image_limit": 100, "patch": (8, 8, 8)}
    run = run_folder(tmp_path / "run", spatial_dims=3, options={"skip": "attention_gate"}, **grid, **channels(2))
    made = explain(run, scan, out=tmp_path / "why")
    maps = made.facts["maps"]
    assert nib.load(made.folder / "saliency.nii.gz").shape == (12, 10, 9, 2)
    assert maps["saliency"]["window"] == [8, 8, 8]
    assert "by windows" in maps["saliency"]["reading"]
    for name in ("gradcam", "attention"):
        corner, size = maps[name]["piece"]["corner"], maps[name]["piece"]["size"]
        assert size == [8, 8, 8]
        values = nib.load(made.folder / maps[name]["file"]).get_fdata()
        assert values.shape == (12, 10, 9)
        # centres of voxels on the grid of 1 mm; linear interpolation reaches half a step beyond the piece
        outside = np.zeros(values.shape, bool)
        for axis, length in enumerate((1.5, 0.8, 2.0)):
            place = (np.arange(values.shape[axis]) + 0.5) * length - 0.5
            beyond = (place <= corner[axis] - 1) | (place >= corner[axis] + 8)
            outside |= beyond.reshape([-1 if a == axis else 1 for a in range(3)])
        assert outside.any()
        assert np.abs(values[outside]).max() == 0
        if name == "attention":
            assert (values[~outside] > 0).all()


POINTWISE = {"topology": "encoder", "head": {"kind": "points", "options": {"width": 8, "depth": 2}}}


def test_an_image_smaller_than_a_patch_is_explained_where_points_are_read(tmp_path, picture, monkeypatch):
    """37 x 50 in patches of 48 x 32: five rows of margin before, six behind."""
    run = run_folder(tmp_path / "run", options=POINTWISE, patch=(48, 32))
    given = {}
    real = methods.saliency

    def watched(*arguments, **named):
        given.update(named, image=arguments[1])
        return real(*arguments, **named)

    monkeypatch.setattr(methods, "saliency", watched)
    for answer in (0, 1):  # of nothing, and of everything
        monkeypatch.setattr(Segmenter, "label_map", lambda *_, a=answer: np.full((37, 50), a, np.uint8))
        found = explain(run, picture, out=tmp_path / f"why{answer}")
        assert given["image"].shape[1:] == (48, 50) and given["margins"] == ((5, 6), (0, 0))
        rows = given["region"].any(1)  # the sums run over the image alone, also where they run over all of it
        assert rows.tolist() == [False] * 5 + [True] * 37 + [False] * 6
        assert found.facts["maps"]["saliency"]["window"] == [37, 32]
        assert found.facts["maps"]["gradcam"]["piece"] == {"corner": [0, 0], "size": [37, 32]}
        assert (tmp_path / f"why{answer}" / found.facts["maps"]["saliency"]["file"]).exists()


def test_mirrored_copies_answer_together_as_a_prediction_with_tta_does(tmp_path, picture, monkeypatch):
    found, original = [], methods.uncertainty
    monkeypatch.setattr(methods, "uncertainty", lambda *a, **k: found.append(original(*a, **k)) or found[-1])
    run = run_folder(tmp_path / "run")
    made = explain(run, picture, out=tmp_path / "why", tta=True)
    assert (made.facts["maps"]["uncertainty"]["of"], found[0].members) == ("mirrored copies", 4)
    np.testing.assert_allclose(found[0].mean, ulna.load(run).mirrored()(picture).probabilities, atol=1e-5)
    assert found[0].spread.max() > 1e-3


def test_omega_net_shows_position_and_channel_attention(tmp_path, picture):
    options = {
        "skip": [{"kind": "mdsa", "paths": ["main"], "options": {"features": 3}}, "concat"],
        "deep_supervision": True,
    }
    made = explain(run_folder(tmp_path / "run", topology="omega", options=options), picture, out=tmp_path / "why")
    assert "attention.png" in made.files
    about = made.facts["maps"]["attention"]
    assert [text.split(" attention")[0] for text in about["maps"]] == ["position"] * 3
    assert len(about["matrices"]) == 1
    assert made.facts["maps"]["uncertainty"]["of"] == "heads"
    assert made.facts["maps"]["uncertainty"]["members"] == 2


@pytest.mark.slow
def test_several_runs_are_uncertain_where_they_differ(tmp_path, picture, monkeypatch):
    a, b = run_folder(tmp_path / "a", 0), run_folder(tmp_path / "b", 1)
    found, original = [], methods.uncertainty

    def spy(members, **options):
        found.append(original(members, **options))
        return found[-1]

    monkeypatch.setattr(methods, "uncertainty", spy)
    made = explain([a, b], picture, out=tmp_path / "why")
    assert made.facts["runs"] == ["a", "b"]
    assert (made.facts["maps"]["uncertainty"]["of"], made.facts["maps"]["uncertainty"]["members"]) == ("runs", 2)
    each = [ulna.load(run)(picture).probabilities for run in (a, b)]
    np.testing.assert_allclose(found[0].spread, np.abs(each[0] - each[1]) / 2, atol=1e-6)
    same = run_folder(tmp_path / "same", 0)
    explain([a, same], picture, out=tmp_path / "again")
    assert found[1].spread.abs().max() == 0
    for run in (a, b):
        explain(run, picture, out=tmp_path / f"{run.name} alone")
    # all else is of the first run; the region here is too, for both runs predict the same
    pictures = [(tmp_path / name / "saliency.png").read_bytes() for name in ("again", "a alone", "b alone")]
    assert pictures[0] == pictures[1] != pictures[2]


def test_the_heads_of_a_network_are_members_and_the_mask_is_its_own_answer(tmp_path, picture):
    options = {"channels": (4, 6, 8), "deep_supervision": True}
    run = run_folder(tmp_path / "run", topology="unetpp", options=options, strides=((2, 2), (2, 2)))
    made = explain(run, picture, out=tmp_path / "why")
    assert (made.facts["maps"]["uncertainty"]["of"], made.facts["maps"]["uncertainty"]["members"]) == ("heads", 2)
    assert made.facts["voxels"] == int(np.count_nonzero(ulna.load(run)(picture).mask))


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_target_is_the_largest_structure_or_the_one_that_is_named(tmp_path, picture, multilabel):
    names = ("liver", "tumour") if multilabel else ("background", "liver", "tumour")
    bias = [-50.0, 50.0] if multilabel else [0.0, 0.0, 50.0]
    run = run_folder(tmp_path / "run", labels=Labels(names=names, multilabel=multilabel), bias=bias)
    made = explain(run, picture, out=tmp_path / "why")
    assert (made.facts["target"], made.facts["voxels"]) == ("tumour", 37 * 50)
    named = explain(run, picture, out=tmp_path / "named", target="liver")
    assert (named.facts["target"], named.facts["voxels"]) == ("liver", 0)
    assert "the sums run over the whole image" in named.facts["region"]
    with pytest.raises(UsageError, match="--target: no class named 'tumor'; did you mean 'tumour'"):
        explain(run, picture, out=tmp_path / "wrong", target="tumor")
    assert not (tmp_path / "wrong").exists()


def test_grad_cam_is_drawn_without_captum(tmp_path, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    made = explain(run_folder(tmp_path / "run"), picture, out=tmp_path / "why")
    assert made.facts["maps"]["gradcam"]["node"] == "x1_0"
    assert "gradcam.png" in names(made.folder) and "gradcam" not in made.facts["left_out"]


def test_what_cannot_be_used_is_refused_and_nothing_is_written(tmp_path, picture, scan_of_another_kind):
    run, out = run_folder(tmp_path / "run"), tmp_path / "why"
    with pytest.raises(UsageError, match=r"nowhere\.png"):
        explain(run, tmp_path / "nowhere.png", out=out)
    with pytest.raises(UsageError, match="not a run folder"):
        explain(tmp_path, picture, out=out)
    for folder in (run, picture.parent):
        with pytest.raises(UsageError, match="choose another --out"):
            explain(run, picture, out=folder)
    with pytest.raises(UsageError, match="planned for 2D"):
        explain(run, scan_of_another_kind, out=out)
    Image.new("L", (20, 20)).save(picture.with_name("other.png"))
    with pytest.raises(UsageError, match=r"holds 2 images; name one of them with --case \("):
        explain(run, picture.parent, out=out)
    with pytest.raises(UsageError, match="no case named 'othr'; did you mean 'other'"):
        explain(run, picture.parent, out=out, case="othr")
    assert not out.exists() or not any(out.iterdir())
    assert names(run) == {"recipe.yaml", "plan.yaml", "splits.json", "weights.safetensors"}


def test_one_case_of_an_array_file_or_of_several_channels_is_named(tmp_path, picture):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "many.npz", images=rng.integers(0, 255, (3, 20, 24), dtype=np.uint8))
    ids = [case.id for case in Dataset.from_folder(tmp_path / "many.npz", need_labels=False, channels=1).cases]
    made = explain(run_folder(tmp_path / "run"), tmp_path / "many.npz", out=tmp_path / "why", case=ids[1])
    assert made.facts["image"] == ids[1]
    assert np.asarray(Image.open(tmp_path / "why" / "overlay.png")).ndim == 3
    folder = tmp_path / "set" / "imagesTr"
    folder.mkdir(parents=True)
    for name in ("a_0000", "a_0001", "b_0000", "b_0001"):
        Image.fromarray(rng.integers(0, 255, (20, 24), dtype=np.uint8)).save(folder / f"{name}.png")
    two = run_folder(tmp_path / "two", **channels(2))
    made = explain(two, folder, out=tmp_path / "both", case="b")
    assert made.facts["image"] == "b"


@pytest.fixture
def scan_of_another_kind(tmp_path):
    path = tmp_path / "volumes" / "scan.nii.gz"
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(np.zeros((6, 7, 8), np.float32), AFFINE), path)
    return path


def test_the_command_line_takes_several_runs_and_then_the_image(tmp_path, picture, capfd):
    runs, out = [str(run_folder(tmp_path / name, seed)) for seed, name in enumerate("ab")], tmp_path / "why"
    assert (
        cli.run(["explain", *runs, str(picture), "--out", str(out), "--target", "foreground", "--tta", "--json"]) == 0
    )
    printed = json.loads(capfd.readouterr().out)
    assert printed["runs"] == ["a", "b"]
    assert printed["tta"] is True
    assert (out / "explain.json").exists()
    assert cli.run(["explain", runs[0], str(picture), "--out", str(out), "--target", "foregound"]) == 2
    assert "did you mean 'foreground'" in capfd.readouterr().err


def test_an_explanation_is_the_same_in_the_world_however_the_image_is_stored(tmp_path):
    """Also of mirrored copies, which are mirrored along the patient's axes."""
    plan = {"spatial_dims": 3, "spacing": (1.5, 1.0, 2.0), "unit": "mm", "orientation": "RAS", "mirror_axes": (1,)}
    three = Labels(names=("background", "left", "right"))
    run = run_folder(tmp_path / "run", seed=3, labels=three, **plan)
    array = np.random.default_rng(0).normal(size=(12, 10, 9)).astype(np.float32)
    maps = {}
    for letters in ("RAS", "PSL"):
        other, affine = stored_as(array, np.diag([1.5, 0.8, 2.0, 1.0]), letters)
        path = tmp_path / f"{letters}.nii.gz"
        nib.save(nib.Nifti1Image(np.ascontiguousarray(other), affine), path)
        made = explain(run, path, out=tmp_path / f"why_{letters}", tta=True)
        for name in ("saliency", "uncertainty", "overlay"):
            image = nib.load(made.folder / f"{name}.nii.gz")
            np.testing.assert_allclose(image.affine, affine, atol=1e-6)
            canonical = nib.as_closest_canonical(image)
            maps.setdefault(name, []).append(np.asarray(canonical.dataobj))
    for name, (one, other) in maps.items():
        assert one.std() > 0, name
        assert np.array_equal(one, other), name


def test_maps_of_an_earlier_explanation_are_replaced_and_nothing_else(tmp_path, picture):
    run, out = run_folder(tmp_path / "run"), tmp_path / "why"
    for _ in range(2):
        explain(run, picture, out=out)
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    (out / "saliency.png").write_bytes(b"theirs")
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match=r"saliency\.png is not written by ulna"):
        explain(run, picture, out=out)
    assert {path: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("format", [1, 2])
@pytest.mark.parametrize("tag", range(1, 9))
def test_the_answer_mirrored_along_no_axis_is_the_answer(tmp_path, tag, format):
    """A run of plan format 1 sees the stored pixels of a picture with an orientation tag, mirrored or not."""
    segmenter = ulna.load(run_folder(tmp_path / "run", format=format))
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 27), np.uint8)).save(tmp_path / "x.png", exif=exif)
    volume = read_image([Source(tmp_path / "x.png")])
    same = _mirrored_answer(segmenter, volume, ())
    assert torch.equal(same, segmenter.probabilities(volume))


@pytest.mark.parametrize("text", ["[" * 200_000, "[]", '{"files": 5}', '{"files": [], "digests": 5}', "pipe"])
def test_an_explain_json_of_others_is_refused(tmp_path, picture, text):
    path = tmp_path / "why" / "explain.json"
    path.parent.mkdir()
    os.mkfifo(path) if text == "pipe" else path.write_text(text)
    with pytest.raises(UsageError, match=r"explain\.json is not written by ulna"):
        explain(run_folder(tmp_path / "run"), picture, out=tmp_path / "why")
    assert names(tmp_path / "why") == {"explain.json"}


def listed(folder):
    """Whether explain.json lists every file of a folder, with its digest."""
    facts = json.loads((folder / "explain.json").read_text())
    known = {name: [digest] for name, digest in facts["digests"].items()}
    for name, some in facts["earlier"].items():
        known[name] = known.get(name, []) + some
    others = names(folder) - {"explain.json"}
    return others <= known.keys() and all(file_digest(folder / name) in known[name] for name in others)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("moves", [0, 1, 2])
@pytest.mark.share(2)
def test_an_explanation_that_is_stopped_leaves_nothing_that_is_not_listed(tmp_path, picture, monkeypatch, again, moves):
    run, out, left = run_folder(tmp_path / "run"), tmp_path / "why", list(range(moves))
    if again:
        explain(run_folder(tmp_path / "other", 1), picture, out=out)

    def stopped(source, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        move_whole(source, target)

    monkeypatch.setattr("ulna.explaining.explain.move_whole", stopped)
    with pytest.raises(KeyboardInterrupt):
        explain(run, picture, out=out)
    assert listed(out)
    monkeypatch.setattr("ulna.explaining.explain.move_whole", move_whole)
    (out / ".tmp-explain-1").mkdir()  # as a process leaves it that was killed
    (out / ".tmp-explain-1" / "saliency.png").touch()
    made = explain(run, picture, out=out)
    assert names(out) == set(made.files)
    assert listed(out)


def test_a_full_disk_leaves_the_earlier_explanation(tmp_path, picture, monkeypatch):
    def full(*given):
        (given[0] / "overlay.png").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    explain(run_folder(tmp_path / "run"), picture, out=tmp_path / "why")
    before = {path: path.read_bytes() for path in (tmp_path / "why").iterdir()}
    monkeypatch.setitem(pictures.WRITERS, 2, full)
    with pytest.raises(UsageError, match="cannot be written"):
        explain(tmp_path / "run", picture, out=tmp_path / "why")
    assert {path: path.read_bytes() for path in (tmp_path / "why").iterdir()} == before


def test_maps_that_another_run_does_not_have_stay_known(tmp_path, picture):
    gated = run_folder(tmp_path / "gated", model="attention_unet", options={"skip": "attention_gate"})
    for run in (gated, run_folder(tmp_path / "run"), run_folder(tmp_path / "third", 2), gated):
        explain(run, picture, out=tmp_path / "why")
        assert "attention.png" in names(tmp_path / "why")
        assert listed(tmp_path / "why")


def test_what_stands_up_during_the_work_is_not_replaced(tmp_path, picture, monkeypatch):
    def others_write(*given):
        (tmp_path / "why" / "overlay.png").write_bytes(b"theirs")
        return predicted(*given)

    predicted = Segmenter.label_map
    monkeypatch.setattr(Segmenter, "label_map", others_write)
    with pytest.raises(UsageError, match=r"overlay\.png is not written by ulna"):
        explain(run_folder(tmp_path / "run"), picture, out=tmp_path / "why")
    assert (tmp_path / "why" / "overlay.png").read_bytes() == b"theirs"
