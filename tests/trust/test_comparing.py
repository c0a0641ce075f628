"""A case against the training data: what is flagged, what is not, and what an earlier plan cannot tell."""

import numpy as np
import pytest

from tests.plans import make
from ulna.data.volume import Meta, Volume
from ulna.trust.comparing import compare_case, in_one_line

VALUES = {"width": {"min": 2.0, "max": 2.2}, "low": {"min": 0.0, "max": 0.1}, "middle": {"min": 0.4, "max": 0.6}}
LENGTHS = dict.fromkeys(("min", "median", "max"), (40.0, 40.0, 40.0))
TOLD = {
    "cases": 20,
    "extent": LENGTHS,
    "values": (VALUES,),
    "tilt": 2.0,
    "orientation": "RAS",
    "worlds": (0, 1, 2),
    "channel_names": ("MRI",),
}


def plan(**changes):
    return make(spatial_dims=3, unit="mm", orientation="RAS", turn_axes=None, fingerprint={**TOLD, **changes})


def image(size=40, step=1.0, low=0.0, high=130.0, affine=None, **meta):
    values = np.random.default_rng(0).uniform(low, high, (1, size, size, size)).astype(np.float32)
    affine = np.diag([step, step, step, 1.0]) if affine is None else affine
    return Volume(values, (step,) * 3, "mm", affine, meta=Meta(**meta))


def flagged(volume, **changes):
    return {one.what for one in compare_case(volume, plan(**changes)).findings}


def test_a_case_like_the_others_is_not_flagged_whatever_its_axes():
    assert flagged(image()) == set()
    assert flagged(image(affine=np.array([[0, 0, -1.0, 9], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]]))) == set()


@pytest.mark.parametrize(
    ("volume", "what"),
    [
        (image(size=20, step=2.0), {"spacing"}),
        (image(size=80), {"field of view"}),
        (image(low=-130.0), {"intensity"}),
        (image(high=13_000.0), {"intensity"}),
        (image(high=0.0), {"intensity"}),
        (image(modality="CT"), {"modality"}),
        (image(modality="MR"), set()),
        (image(modality="MR", body_part="LEG"), set()),  # the training did not say
    ],
)
def test_each_rule_flags_its_own_oddity_alone(volume, what):
    assert flagged(volume) == what


def test_body_part_and_modality_are_those_of_the_training_where_it_was_dicom():
    told = {"modalities": {"CT": 20}, "body_parts": {"ABDOMEN": 20}}
    assert flagged(image(modality="MR", body_part="HEAD"), **told) == {"modality", "body part"}
    assert flagged(image(modality="CT", body_part="ABDOMEN"), **told) == set()


def test_a_tilt_beyond_that_of_the_training_is_flagged():
    turn = np.radians(30)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    assert flagged(image(affine=affine)) == {"orientation"}
    assert flagged(image(affine=affine), tilt=20.0) == set()


def test_a_sagittal_picture_is_not_an_axial_one():
    two = {**TOLD, "extent": None, "worlds": (0, 1)}
    planned = make(spatial_dims=2, unit="mm", orientation="RAS", fingerprint=two)
    values = np.random.default_rng(0).uniform(0, 130, (1, 40, 40)).astype(np.float32)
    sagittal = np.array([[0, 0, 1.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
    found = compare_case(Volume(values, (1.0, 1.0), "mm", sagittal), planned)
    assert in_one_line(found.findings) == "orientation is sagittal, the training images are axial"
    assert not compare_case(Volume(values, (1.0, 1.0), "mm", np.eye(4)), planned).findings


def test_an_earlier_plan_compares_less_and_says_so():
    found = compare_case(image(size=80, low=-130.0, step=2.0), plan(values=(), extent=None, tilt=None))
    assert {one.what for one in found.findings} == {"spacing"}
    assert found.compared == ("spacing", "orientation")
    assert set(found.left_out) == {"modality", "body part", "field of view", "intensity"}


def test_few_cases_make_a_rule_wide():
    values = {**VALUES, "low": {"min": 0.0, "max": 0.2}}
    odd = image(low=-65.0)  # its lowest values lie at a third of the width below 0
    assert flagged(odd, values=(values,), cases=200) == {"intensity"}
    assert flagged(odd, values=(values,), cases=4) == set()
