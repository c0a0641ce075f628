"""groups.json: patients, fields, and every entry that cannot be understood told by itself."""

import json

import numpy as np
import pytest
from PIL import Image

from ulna.data.layout.dataset import Dataset
from ulna.data.layout.groups import read_groups
from ulna.data.quality.check import check


def read(folder, value, ids=("a", "b")):
    (folder / "groups.json").write_text(json.dumps(value))
    problems, notes = [], []
    return read_groups(folder, ids, problems, notes), problems, notes


def test_both_forms_stand_beside_each_other(tmp_path):
    found, problems, notes = read(tmp_path, {"a": "p1", "b": {"patient": 2, "site": "A", "scanner": None}})
    assert found == ({"a": "p1", "b": "2"}, {"b": {"site": "A"}}) and not problems and not notes


def test_a_case_without_a_patient_is_said_and_stays_alone(tmp_path):
    found, problems, notes = read(tmp_path, {"a": {"site": "A"}, "b": {"site": "B"}})
    assert found.patients == {} and found.fields["b"] == {"site": "B"} and not problems
    assert notes == ["groups.json names no patient of 2 cases, for example a: each is a patient"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], ["does not name one patient per case"]),
        ({"a": ["p1"], "b": {}}, ["the entry of 'a' is a list", "the entry of 'b' has no fields"]),
        ({"a": {"site": ["A"]}, "b": {"site": True}}, ["'site' of 'a' is ['A']", "'site' of 'b' is True"]),
        ({"a": {"": "A"}}, ["a field named ''"]),
        ({"a": {"site": "A" * 201}}, ["has 201 characters"]),
    ],
)
def test_bad_entries_are_told_one_by_one(tmp_path, value, said):
    found, problems, _ = read(tmp_path, value)
    assert found == ({}, {}) and len(problems) == len(said)
    for problem, words in zip(problems, said, strict=True):
        assert problem.file.endswith("groups.json") and words in problem.what and problem.remedy


def test_cases_of_a_data_set_know_their_fields(tmp_path):
    tmp_path = tmp_path / "data"
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir(parents=True)
        for name in "ab":
            mask = np.eye(8, dtype=np.uint8)
            image = mask * 40 + np.arange(64, dtype=np.uint8).reshape(8, 8) * (1 + "ab".index(name))
            Image.fromarray(mask if kind == "labels" else image).save(tmp_path / kind / f"{name}.png")
    (tmp_path / "groups.json").write_text('{"a": {"patient": "p", "site": "A"}, "b": "p"}')
    a, b = Dataset.from_folder(tmp_path).cases
    assert (a.group, a.fields, b.group, b.fields) == ("p", (("site", "A"),), "p", ())
    check(tmp_path, fix=tmp_path.parent / "fixed")
    assert json.loads((tmp_path.parent / "fixed" / "groups.json").read_text()) == {
        "a": {"patient": "p", "site": "A"},
        "b": "p",
    }
