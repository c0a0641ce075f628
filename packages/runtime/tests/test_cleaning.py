"""Components are those of scipy, post-processing is that of ulna, and an exported file applies what its run chose."""

import json
import subprocess
import sys
import tracemalloc
from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage

from packages.runtime.tests.conftest import OVERLAPPING, SOURCE, plan_for, recipe_of
from ulna.recipe import Labels
from ulna.trust import calibration as ulna_calibration
from ulna.trust import cleaning as ulna_cleaning
from ulna.trust.temperature import scaled
from ulna_runtime import UsageError, bundle, calibration, cleaning, load, pipeline
from ulna_runtime.cli import run as command
from ulna_runtime.components import find_components, label
from ulna_runtime.volume import Volume

SIZES = [(1, 1), (23, 31), (1, 40), (40, 1), (13, 17, 11), (1, 9, 9), (9, 1, 9), (9, 9, 1)]
TWO = Labels(names=("background", "organ", "tumour"))
RULES = [
    {"largest": largest, "smallest": smallest, "holes": holes}
    for largest, smallest, holes in product((False, True), (None, 3.0, 1e9), (False, True))
]


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_components_are_those_of_scipy(size, corners):
    """The same numbers, for masks of few, of many and of touching pieces, whatever the slabs."""
    structure = ndimage.generate_binary_structure(len(size), len(size) if corners else 1)
    faces = np.zeros(size, bool)
    for axis in range(len(size)):
        faces[tuple(slice(None) if a != axis else [0, -1] for a in range(len(size)))] = True
    for share in (0.0, 0.1, 0.3, 0.5, 0.8, 1.0):
        mask = np.random.default_rng(int(10 * share)).random(size) < share
        expected, count = ndimage.label(mask, structure)
        numbers, found = label(mask, corners=corners)
        assert found == count
        assert np.array_equal(numbers, expected)
        for slab in (1, 60, None):
            parts = find_components(lambda rows, mask=mask: mask[rows], size, corners=corners, slab=slab)
            again = np.concatenate([part for _, part in parts.numbers()])
            assert np.array_equal(again, expected)
            assert parts.sizes.tolist() == np.bincount(expected.ravel(), minlength=count + 1).tolist()
            assert parts.outer[1:].tolist() == [bool(faces[expected == n].any()) for n in range(1, count + 1)]


def test_a_spiral_is_one_component():
    """A piece whose runs meet only after many lines."""
    mask = np.zeros((41, 41), bool)
    for ring in range(0, 20, 2):
        mask[ring : 41 - ring, ring] = mask[ring : 41 - ring, 40 - ring] = True
        mask[ring, ring : 41 - ring] = mask[40 - ring, ring : 41 - ring] = True
        mask[ring + 1, ring] = False
        mask[ring + 2, ring : ring + 3] = True
    for corners in (True, False):
        structure = ndimage.generate_binary_structure(2, 2 if corners else 1)
        assert np.array_equal(label(mask, corners=corners)[0], ndimage.label(mask, structure)[0])


def test_memory_follows_a_slab_not_the_mask():
    """Of a mask of 64 slabs, the numbers of a few are held."""
    mask = np.random.default_rng(0).random((640, 30, 25)) < 0.02
    tracemalloc.start()
    try:
        found = find_components(lambda rows: mask[rows], mask.shape, slab=7_500)
        taken = sum(int((numbers > 0).sum()) for _, numbers in found.numbers())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert taken == mask.sum()
    assert peak < 8 * mask.size / 4  # 8 bytes a voxel


def masks_of(dims, classes, seed):
    """Blobs with holes, and loose voxels: of exclusive classes, and of overlapping ones."""
    rng = np.random.default_rng(seed)
    size = (18, 13, 9)[:dims]
    maps = np.stack([ndimage.gaussian_filter(rng.normal(size=size), 0.9) for _ in range(classes)])
    maps = (maps > 0.05) ^ (rng.random(maps.shape) < 0.03)
    return np.where(maps.any(0), 1 + maps.argmax(0), 0).astype(np.uint8), maps.astype(np.uint8)


@pytest.mark.parametrize("slab", [40, 1 << 20])
@pytest.mark.parametrize("dims", [2, 3])
def test_masks_are_cleaned_as_ulna_cleans_them(dims, slab, monkeypatch):
    monkeypatch.setattr("ulna_runtime.components.SLAB", slab)
    changed_at_all = 0
    for seed, (number, rule) in product(range(2 if dims == 2 else 1), enumerate(RULES)):
        other = RULES[(number + 5) % len(RULES)]
        exclusive, overlapping = masks_of(dims, 2, seed)
        for mask, labels in ((exclusive, TWO), (overlapping, Labels(names=("organ", "tumour"), multilabel=True))):
            ours, theirs = mask.copy(), mask.copy()
            named = {"organ": rule, "tumour": other}
            told = ulna_cleaning.clean(ours, labels, {k: ulna_cleaning.Rule(**v) for k, v in named.items()}, 0.7)
            own = pipeline.Labels(labels.names, labels.multilabel, None)
            found = cleaning.clean(theirs, own, {k: calibration.Rule(**v) for k, v in named.items()}, 0.7)
            assert np.array_equal(ours, theirs)
            assert {k: tuple(v) for k, v in found.items()} == {k: tuple(v) for k, v in told.items()}
            changed_at_all += not np.array_equal(ours, mask)
    assert changed_at_all > len(RULES)


def test_empty_and_full_masks_stay():
    rules = {"organ": calibration.Rule(largest=True, holes=True)}
    for value in (0, 1):
        mask = np.full((4, 5, 6), value, np.uint8)
        assert cleaning.clean(mask, pipeline.Labels(TWO.names, False, None), rules, 1.0) == {"organ": (0, 0)}
        assert (mask == value).all()


@pytest.mark.parametrize("temperature", [0.2, 1.0, 1.7, 10.0])
def test_probabilities_are_scaled_as_ulna_scales_them(temperature, rng):
    maps = rng.random((3, 500)).astype(np.float32)
    maps[:, :4] = [[0, 1, 1e-9, 0.5], [1, 0, 1, 0.5], [0, 0, 0, 0]]
    for exclusive, given in ((True, maps / maps.sum(0)), (False, maps), (False, maps[:1])):
        expected = scaled(torch.from_numpy(given.copy()), temperature, exclusive=exclusive).numpy()
        found = calibration.scaled(given, temperature, exclusive=exclusive)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-6


def told(unit="px", temperature=None, **rules):
    """A calibration.json."""
    kept = {"dice_before": 0.8, "dice_after": 0.9, "cases": 9, "changed": 9, "p": 0.001}
    degrees = {"value": temperature, "ece_before": 0.1, "ece_after": 0.05, "cases": 5, "voxels": 9}
    return {
        "format": 1,
        "weights": "0" * 64,
        "cases": 9,
        "seconds": 1.0,
        "structures": {"cases": 9, "unit": unit, "seen": {}},
        "temperature": temperature and degrees,
        "post_processing": {name: {"rule": rule, **kept} for name, rule in rules.items()},
        "dice": {},
    }


@pytest.mark.parametrize(
    ("size", "spacing", "unit", "expected"),
    [
        ((4, 5), (2.0, 3.0), "mm", ("mm2", 6.0)),
        ((4, 5, 6), (2.0, 3.0, 0.5), "mm", ("ml", 0.003)),
        ((4, 5, 6), (1.0, 1.0, 1.0), "px", ("px", 1.0)),
    ],
)
def test_sizes_are_counted_in_the_unit_of_the_training_alone(size, spacing, unit, expected):
    volume = Volume(np.zeros((1, *size)), spacing, unit)
    assert calibration.unit_of(volume) == expected
    rule = {"largest": False, "smallest": 2.0, "holes": True}
    found = calibration.read_calibration(told(expected[0], organ=rule)).rules_for(volume)
    assert found == ({"organ": calibration.Rule(smallest=2.0, holes=True)}, expected[1])
    other = calibration.read_calibration(told("px" if unit == "mm" else "ml", organ=rule)).rules_for(volume)
    assert other[0] == {"organ": calibration.Rule(holes=True)}
    assert not calibration.read_calibration(told(organ=rule) | {"structures": None}).rules_for(volume)[0]


def test_several_networks_share_what_all_of_them_chose():
    each = [
        told(temperature=2.0, a={"largest": True, "smallest": 4.0, "holes": True}, b=dict(RULES[2])),
        told(temperature=2.0, a={"largest": True, "smallest": 3.0, "holes": False}),
    ]
    expected = ulna_calibration.in_common([ulna_calibration.Calibration(**one) for one in each])
    found = calibration.in_common([calibration.read_calibration(one) for one in each])
    assert found.temperature is expected.temperature is None
    assert {name: vars(rule) for name, rule in found.rules.items()} == {
        name: rule.model_dump() for name, rule in expected.rules.items()
    }
    assert calibration.in_common([calibration.read_calibration(each[0]), None]) is None


def test_sizes_in_different_units_have_no_smallest_of_all():
    rule = {"largest": False, "smallest": 4.0, "holes": True}
    each = [told("ml", a=rule), told("px", a=rule | {"smallest": 3.0})]
    expected = ulna_calibration.in_common([ulna_calibration.Calibration(**one) for one in each])
    found = calibration.in_common([calibration.read_calibration(one) for one in each])
    assert found.rules == {"a": calibration.Rule(holes=True)}
    assert expected.rules["a"].smallest is None and expected.rules["a"].holes


@pytest.fixture
def cleaned(flat, tmp_path):
    """A file whose run takes all but the largest object of x away, fills y and has a temperature."""
    plan = plan_for(2)
    members = flat.members(plan, recipe_of(flat.model, flat.architecture))
    values = json.loads(members["pipeline.json"])
    rules = {"x": dict(RULES[6]), "y": dict(RULES[1])}
    values["members"][0]["calibration"] = told(temperature=1.8, **rules)
    path = tmp_path / "cleaned.ulna"
    bundle.write_bundle(path, members | {"pipeline.json": json.dumps(values).encode()})
    return path


def test_a_file_predicts_as_ulna_does_with_its_calibration(cleaned, flat, tmp_path, rng):
    import ulna

    image = rng.integers(0, 255, (3, 33, 40), np.uint8)
    plain = flat.both(plan_for(2))[0]
    plain.calibration = ulna_calibration.Calibration(**json.loads(json.dumps(told())))
    raw = plain(image)
    own = load(cleaned)
    result, left = own(image, probabilities=True), own(image, post_processing=False)
    assert np.array_equal(left.mask, raw.mask)
    assert not np.array_equal(result.mask, raw.mask)
    assert not left.changed
    assert result.changed["x"].removed > 0
    as_ulna = ulna.load(cleaned)
    assert np.array_equal(as_ulna(image).mask, result.mask)
    assert as_ulna(image).beside.changed == result.changed
    assert np.abs(as_ulna(image).probabilities - result.probabilities).max() < 1e-6
    assert np.abs(raw.probabilities - result.probabilities).max() > 0.01
    assert np.array_equal(ulna.load(cleaned, post_processing=False)(image).mask, raw.mask)


def test_the_command_line_cleans_or_does_not(cleaned, tmp_path, rng):
    np.save(tmp_path / "a.npy", rng.integers(0, 255, (3, 33, 40), np.uint8))
    words = ["predict", str(cleaned), str(tmp_path / "a.npy"), "--out"]
    assert command([*words, str(tmp_path / "clean")]) == 0
    assert command([*words, str(tmp_path / "raw"), "--no-post-processing"]) == 0
    clean, raw = (np.load(tmp_path / name / "a.npy") for name in ("clean", "raw"))
    assert np.array_equal(clean, load(cleaned)(tmp_path / "a.npy").mask)
    assert not np.array_equal(clean, raw)


def test_cleaning_needs_neither_scipy_nor_torch(cleaned, tmp_path, rng):
    np.save(tmp_path / "a.npy", rng.integers(0, 255, (3, 33, 40), np.uint8))
    code = "import sys\nfor name in ('torch', 'scipy', 'ulna'):\n    sys.modules[name] = None\n"
    code += "from ulna_runtime import load\nprint(load(sys.argv[1])(sys.argv[2]).changed['x'].removed)"
    made = subprocess.run(
        [sys.executable, "-c", code, cleaned, tmp_path / "a.npy"],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(SOURCE)},
    )
    assert int(made.stdout) == load(cleaned)(tmp_path / "a.npy").changed["x"].removed > 0


def test_overlapping_classes_and_settings_that_leave_masks_as_they_are(flat, rng):
    plan = plan_for(2, labels=OVERLAPPING)
    image = rng.integers(0, 255, (3, 33, 40), np.uint8)
    for post_processing in (True, False):
        members = flat.members(plan, recipe_of(flat.model, flat.architecture, post_processing=post_processing))
        values = json.loads(members["pipeline.json"])
        values["members"][0]["calibration"] = told(a=dict(RULES[6]), c=dict(RULES[6]))
        graphs = {name: data for name, data in members.items() if name.startswith("networks/")}
        from ulna_runtime.segmenter import Segmenter

        segment = Segmenter(bundle.Bundle("file", "", values, {}, graphs), threads=1)
        result, raw = segment(image), segment(image, post_processing=False)
        counts = [ndimage.label(one, np.ones((3, 3)))[1] for one in result.mask]
        if post_processing:
            assert counts[0] <= 1 and counts[2] <= 1
            assert np.array_equal(result.mask[1], raw.mask[1])
        else:
            assert np.array_equal(result.mask, raw.mask)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"format": 2}, r"has a calibration of format 2, this program reads 1; install a newer ulna-runtime"),
        ({"format": 0}, "cannot be right"),
        ({"format": "1"}, "cannot be right"),
        ({"temperature": {"value": 0.1}}, "cannot be right"),
        ({"temperature": {"value": "hot"}}, "cannot be right"),
        ({"temperature": {}}, "cannot be right"),
        ({"structures": {"unit": "acres"}}, "cannot be right"),
        ({"structures": []}, "cannot be right"),
        ({"post_processing": {"liver": {"rule": RULES[6]}}}, "cannot be right"),
        ({"post_processing": {"x": {"rule": {"largest": 1, "holes": False}}}}, "cannot be right"),
        ({"post_processing": {"x": {"rule": {"largest": True}}}}, "cannot be right"),
        ({"post_processing": {"x": {"rule": {"largest": True, "holes": False, "smallest": -1}}}}, "cannot be right"),
        ({"post_processing": {"x": {}}}, "cannot be right"),
        ({"post_processing": ["x"]}, "cannot be right"),
    ],
    ids=str,
)
def test_a_calibration_that_cannot_be_is_refused_before_anything_is_run(flat, tmp_path, monkeypatch, change, match):
    monkeypatch.setattr("onnxruntime.InferenceSession", None)
    members = flat.members(plan_for(2), recipe_of(flat.model, flat.architecture))
    values = json.loads(members["pipeline.json"])
    values["members"][0]["calibration"] = told() | change
    path = tmp_path / "a.ulna"
    bundle.write_bundle(path, members | {"pipeline.json": json.dumps(values).encode()})
    with pytest.raises(UsageError, match=rf"a\.ulna: .*{match}"):
        load(path)


def test_what_the_runtime_does_not_read_of_it_is_checked_by_ulna(flat, tmp_path):
    import ulna

    members = flat.members(plan_for(2), recipe_of(flat.model, flat.architecture))
    values = json.loads(members["pipeline.json"])
    values["members"][0]["calibration"] = told() | {
        "structures": {"cases": 9, "unit": "px", "seen": {"x": {"cases": "many"}}}
    }
    bundle.write_bundle(tmp_path / "a.ulna", members | {"pipeline.json": json.dumps(values).encode()})
    assert load(tmp_path / "a.ulna").calibration.unit == "px"
    with pytest.raises(ulna.UsageError, match=r"a\.ulna: calibration: .*cases"):
        ulna.load(tmp_path / "a.ulna")
