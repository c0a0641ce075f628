"""classes.json and dataset.json: values to merge, regions, values to ignore; one sentence for each that makes no sense."""

import json

import numpy as np
import pytest
from PIL import Image

from ulna.data.formats.label_maps import encode_labels, in_file
from ulna.data.layout.declared import read_classes
from ulna.data.volume import Meta, Volume
from ulna.errors import DataError, UsageError
from ulna.recipe import Labels, parse


def declared(folder, text):
    problems = []
    (folder / "classes.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return read_classes(folder, problems), problems


def volume(values, format="nifti"):
    array = np.asarray(values)
    array = array if array.ndim == 3 else array[None]
    return Volume(array, (1.0, 1.0), meta=Meta(format=format))


KIDNEY = Labels(names=("kidney", "tumour"), multilabel=True, values=((1, 2), (2,)))
BRATS = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
ACCEPTED = [
    ({"tumour": [1, 2, 3]}, Labels(names=("background", "tumour"), values=((1, 2, 3),))),
    ({"labels": {"tumour": [3, 1, 2]}}, Labels(names=("background", "tumour"), values=((1, 2, 3),))),
    ({"a": [3, 4], "b": 1}, Labels(names=("background", "a", "b"), values=((3, 4), (1,)))),
    ({"0": "air", "1": "bone"}, Labels(names=("air", "bone"))),
    ({"a": [1], "b": [2]}, Labels(names=("background", "a", "b"))),
    ({"background": [0, 3], "a": [1], "b": [2]},
     Labels(names=("background", "a", "b"), values=((1,), (2,)), background=(0, 3))),
    ({"kidney": [1, 2], "tumour": 2}, KIDNEY),
    ({"mode": "multilabel", "a": [1], "b": [3]}, Labels(names=("a", "b"), multilabel=True, values=((1,), (3,)))),
    ({**BRATS, "regions_class_order": [1, 2, 3]},
     Labels(names=tuple(BRATS), multilabel=True, values=((1, 2, 3), (2, 3), (3,)), order=(1, 2, 3))),
    ({"1": "vessel", "ignore": 255}, Labels(names=("background", "vessel"), ignore=(255,))),
    ({"1": "vessel", "255": "ignore"}, Labels(names=("background", "vessel"), ignore=(255,))),
    ({"labels": {"background": 0, "vessel": 1, "ignore": 2}}, Labels(names=("background", "vessel"), ignore=(2,))),
    ({"labels": ["vessel"], "ignore": [7, 255]}, Labels(names=("background", "vessel"), ignore=(7, 255))),
    ({"labels": {"background": [1], "vessel": [2]}, "ignore": 0},
     Labels(names=("background", "vessel"), values=((2,),), background=(1,), ignore=(0,))),
    ({"labels": {"1": "nucleus"}, "instances": True}, Labels(names=("background", "nucleus"), instances=True)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "labels"), ACCEPTED)
def test_what_may_be_said_of_classes(tmp_path, text, labels):
    found, problems = declared(tmp_path, text)
    assert problems == [] and found == labels
    assert declared(tmp_path, found.declared()) == (labels, [])  # as check --fix writes it
    assert parse(Labels, labels.model_dump(mode="json")) == labels  # as a plan holds it


def test_plain_classes_are_stored_as_before():
    assert Labels().model_dump() == {"names": ("background", "foreground"), "multilabel": False}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"mode": "exclusive", "a": [1, 2], "b": [2]}, "gives the value 2 to 'a' and to 'b', which exclude each other"),
        ({"a": [1], "b": [2], "ignore": 2}, "says that the value 2 is ignored and that it is 'b'"),
        ({"1": "a", "2": "b", "ignore": 0}, "says that the value 0 is ignored and that it is 'background'"),
        ({"a": [0, 1]}, "gives 'a' the value 0, which is background"),
        ({"background": [0, 2], "a": [1, 2]}, "gives 'a' the value 2, which is background"),
        ({"background": [3], "a": [1, 2]}, "gives the background the values [3]; 0 is one of them, or it is ignored"),
        ({"a": []}, "gives 'a' no value"),
        ({"a": [1.5]}, "gives 'a' the values [1.5], which are no whole numbers from 0 on"),
        ({"a": [-1]}, "gives 'a' the values [-1]"),
        ({"a": [True]}, "gives 'a' the values [True]"),
        ({"a": [1, "x"]}, "gives 'a' the values"),
        ({"a": [99999999999]}, "input should be less than"),
        ({"1": "a", "ignore": "soft"}, "gives 'ignore' the values soft"),
        ({"background": [0]}, "declares the background only"),
        ({**BRATS, "regions_class_order": [1, 2]}, "has a regions_class_order of 2 values for 3 structures"),
        ({**BRATS, "regions_class_order": [2, 1, 3]}, "writes 'core' as 1 (regions_class_order), which is not one"),
        ({**BRATS, "regions_class_order": "1,2,3"}, "has '1,2,3' for regions_class_order"),
        ({"a": [1, 2], "b": [2, 3], "regions_class_order": [1, 3]}, "do not nest: the value 2 is in 'a' and 'b'"),
        ({"mode": "exclusive", "a": [1], "b": [2, 3], "regions_class_order": [1, 2]}, "no structures that overlap"),
        ({"labels": {"1": "a", "2": "b"}, "instances": True}, "number objects (instances), and names 2 classes"),
        ({"labels": {"1": "a"}, "instances": "yes"}, "has 'yes' for `instances`"),
        ({"1": "a", "2": "a"}, "gives the name 'a' to two classes"),
        ({"a": 1, "b": 3}, "which skip [2]"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_one_sentence(tmp_path, text, words):
    found, (problem,) = declared(tmp_path, text)
    assert found is None and words in problem.what and problem.file.endswith("classes.json")
    assert problem.remedy and "\n" not in str(problem)


def test_damaged_labels_of_a_plan_are_refused():
    for fields, words in (
        ({"names": ["background", "a"], "values": [[1], [2]]}, "values has 2 entries for 1 structure"),
        ({"names": ["background", "a"], "order": [1]}, "no structures that overlap"),
        ({"names": ["background", "a"], "ignore": [-3]}, "greater than or equal to 0"),
    ):
        with pytest.raises(UsageError, match=words):
            parse(Labels, fields)


def slowly(values, labels):
    """Every voxel by itself."""
    stored = [[number] for number in range(1, len(labels.foreground) + 1)] if labels.values is None else labels.values
    maps = np.zeros((len(stored), *values.shape), int)
    for place in np.ndindex(values.shape):
        for k, own in enumerate(stored):
            maps[(k, *place)] = 2 if values[place] in labels.ignore else int(values[place] in own)
    if labels.multilabel:
        return maps
    indices = np.zeros(values.shape, int)
    for place in np.ndindex(values.shape):
        if values[place] in labels.ignore:
            indices[place] = len(stored) + 1
        for k in range(len(stored)):
            if maps[(k, *place)] == 1:
                indices[place] = k + 1
    return indices


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (Labels(names=("background", "t"), values=((1, 2, 3),)), [0, 1, 2, 3]),
        (Labels(names=("background", "a", "b"), values=((3, 70_000), (1,)), background=(0, 9), ignore=(255,)),
         [0, 1, 3, 9, 255, 70_000]),
        (KIDNEY, [0, 1, 2]),
        (KIDNEY.replaced(ignore=(255, 7)), [0, 1, 2, 7, 255]),
        (Labels(names=("background", "a"), ignore=(255,)), [0, 1, 255]),
        (Labels(names=("background", "a", "b"), ignore=(3,)), [0, 1, 2, 3]),
        (Labels(names=("a", "b"), multilabel=True, ignore=(9,)), [0, 1, 2, 9]),
    ],
)  # fmt: skip
def test_values_become_classes_as_declared(labels, values):
    drawn = np.random.default_rng(0).choice(values, (13, 7))
    for dtype in (np.int64, np.uint32):
        made = encode_labels(volume(drawn.astype(dtype)), labels)
        assert np.array_equal(made, slowly(drawn, labels)) and made.dtype == np.uint8


def test_values_of_no_class_are_told():
    labels = Labels(names=("background", "t"), values=((1, 2),), ignore=(255,))
    with pytest.raises(
        DataError, match=r"label values 3, 9 belong to no class \(background, t \(1, 2\), not scored: 255\)"
    ):
        encode_labels(volume([[0, 1, 3], [9, 2, 255]]), labels)
    with pytest.raises(DataError, match=r"label values 0\.5 belong"):
        encode_labels(volume([[0.5, 1.0]]), labels)


def test_255_is_a_stretched_1_unless_it_is_ignored():
    stretched = volume(np.array([[0, 255, 255]], np.uint8))
    assert encode_labels(stretched, Labels()).tolist() == [[0, 1, 1]]
    assert encode_labels(stretched, Labels(ignore=(255,))).tolist() == [[0, 2, 2]]
    assert encode_labels(stretched, Labels(ignore=(7,))).tolist() == [[0, 1, 1]]


def test_objects_are_one_class_whatever_their_number():
    labels = Labels(names=("background", "nucleus"), instances=True, ignore=(9,))
    assert encode_labels(volume(np.array([[0, 1, 9, 70_000]], np.int64)), labels).tolist() == [[0, 1, 2, 1]]
    with pytest.raises(DataError, match="fractional or negative"):
        encode_labels(volume([[0, -1]]), labels)


def test_maps_of_every_class_are_read_beside_merged_values():
    maps = np.random.default_rng(1).integers(0, 2, (2, 4, 5)).astype(np.uint8)
    assert np.array_equal(encode_labels(volume(maps), KIDNEY), maps)
    both = Labels(names=("a", "b"), multilabel=True, ignore=(255,))
    maps[1, 0, 0] = 255
    assert encode_labels(volume(maps), both)[:, 0, 0].tolist() == [maps[0, 0, 0], 2]


def test_regions_with_an_order_come_back_as_one_map():
    labels = Labels(names=tuple(BRATS), multilabel=True, values=((1, 2, 3), (2, 3), (3,)), order=(1, 2, 3))
    stored = np.random.default_rng(2).integers(0, 4, (6, 9)).astype(np.uint8)
    maps = encode_labels(volume(stored), labels)
    assert np.array_equal(in_file(maps, labels), stored)
    assert np.array_equal(encode_labels(volume(in_file(maps, labels)), labels.of_masks), maps)
    odd = np.array([[[0]], [[1]], [[0]]], np.uint8)  # a network may say core and not whole
    assert in_file(odd, labels).tolist() == [[2]]
    assert in_file(maps, labels.replaced(order=None)) is maps


def test_a_grey_picture_in_colour_holds_stored_values(tmp_path):
    from ulna.data.formats.read import read_labels
    from ulna.data.formats.source import Source

    three = Labels(names=("a", "b", "c"), multilabel=True, values=((1, 2), (2,), (3,)))
    Image.fromarray(np.repeat(np.array([[0, 1, 2, 3]], np.uint8)[..., None], 3, axis=2)).save(tmp_path / "a.png")
    made = encode_labels(read_labels(Source(tmp_path / "a.png")), three)
    assert made[:, 0].tolist() == [[0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
