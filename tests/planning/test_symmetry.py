import math

import numpy as np
import pytest

from tests.planning.test_plan import data, planned
from ulna.data.quality.scan import CaseStats
from ulna.planning.fingerprint import _orientations
from ulna.planning.symmetry import world_axes
from ulna.recipe import Labels


def affine(*columns):
    return [[*row, 0.0] for row in zip(*columns, strict=True)] + [[0, 0, 0, 1]]


RAS, LIA = affine((1, 0, 0), (0, 1, 0), (0, 0, 2)), affine((0, 0, -3), (-1, 0, 0), (0, 1, 0))


@pytest.mark.parametrize(
    ("names", "apart"),
    [
        (("Left kidney", "right kidney"), True),
        (("kidney_l", "kidney_r"), True),
        (("lung-RT", "lung-LT"), True),
        (("l", "r"), True),
        (("LeftAtrium", "other"), True),
        (("liver", "tumour"), False),
        (("region r", "region q"), False),
        (("bright lesion", "cleft"), False),
    ],
)
def test_structures_named_after_a_side_are_never_mirrored_sideways(names, apart):
    labels = Labels(names=("background", *names))
    plan = planned(data(), labels=labels)
    assert plan.mirror_axes == (() if apart else (0, 1))
    assert (plan.turn_axes is None) == apart
    assert ("left and right" in plan.reasons["mirror_axes"]) == apart
    plan = planned(data((48, 48, 48), unit="mm", world_axes=[1, 0, None]), labels=labels)
    assert plan.mirror_axes == ((0, 2) if apart else (0, 1, 2))
    assert plan.turn_axes == ((0, 2) if apart else (0, 1))
    if apart:
        assert "no flips along axis 1" in plan.reasons["mirror_axes"]


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("Anterior", "Posterior"), (0, 2)),
        (("superior vena cava", "inferior vena cava"), (0, 1)),
        (("inferior vena cava", "aorta"), (0, 1, 2)),
        (("posterior horn", "anterior root"), (0, 1, 2)),  # not one structure twice
        (("left anterior", "left posterior"), (2,)),
    ],
)
def test_ends_of_other_axes_are_told_apart_only_in_pairs(names, kept):
    volumes = data((48, 40, 44), unit="mm", world_axes=[0, 1, 2])
    assert planned(volumes, labels=Labels(names=("background", *names))).mirror_axes == kept


def test_the_world_axes_come_from_the_affines():
    assert world_axes([RAS, RAS]) == [0, 1, 2]
    assert world_axes([LIA]) == [1, 2, 0]
    assert world_axes([RAS, LIA]) == [None, None, None]
    assert world_axes([RAS, None]) == [None, None, None]
    small, large = math.radians(10), math.radians(25)
    for angle, axes in ((small, [0, 1, 2]), (large, [None, None, 2])):
        c, s = math.cos(angle), math.sin(angle)
        assert world_axes([affine((c, s, 0), (-s, c, 0), (0, 0, 1))]) == axes


def test_quarter_turns_need_equal_axes():
    assert planned(data((96, 96))).turn_axes == (0, 1)
    assert planned(data((96, 128))).turn_axes is None
    assert planned(data((32, 32, 32), (1.0, 2.0, 1.0), "mm")).turn_axes == (0, 2)


def test_volumes_whose_files_say_how_the_patient_lies_are_not_turned():
    volumes = data((48, 48, 48), unit="mm")
    assert planned(volumes).turn_axes == (0, 1)
    plan = planned(volumes.replaced(world_axes=[0, 1, 2], orientation="RAS", orientations={"LPS": 9}))
    assert plan.turn_axes is None and plan.mirror_axes == (0, 1, 2)
    assert "how the patient lies" in plan.reasons["turn_axes"]


def test_slices_are_mirrored_by_meaning_in_their_plane():
    """Axial slices: axis 0 goes from left to right, and no flip in the plane exchanges head and foot."""
    slices = data((48, 48), unit="mm", world_axes=[0, 1, None], orientation="RAS", orientations={"RA": 9})
    sided = Labels(names=("background", "left_lung", "right_lung"))
    assert planned(slices, labels=sided).mirror_axes == (1,)
    upper = Labels(names=("background", "upper_lobe", "lower_lobe"))
    assert planned(slices, labels=upper).mirror_axes == (0, 1)
    coronal = slices.replaced(world_axes=[0, None, 1])
    assert planned(coronal, labels=upper).mirror_axes == (0,)


def turned_slice(degrees, a, b):
    """The affine of an axial slice, turned by this much from world axis a to b."""
    turn, (c, s) = np.eye(4), (math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))
    turn[[a, a, b, b], [a, b, a, b]] = c, -s, s, c
    return turn.tolist()


@pytest.mark.parametrize(
    ("degrees", "a", "b", "classes", "kept"),
    [
        (40, 0, 1, "left_a right_a", ()),  # a flip along either axis exchanges left and right
        (-40, 0, 1, "left_a right_a", ()),
        (10, 0, 1, "left_a right_a", (1,)),
        (40, 1, 2, "left_a right_a", (1,)),  # tilted about the axis from left to right
        (40, 0, 2, "left_a right_a", (1,)),
        (40, 1, 2, "superior_a inferior_a", ()),  # no longer flat along it
        (10, 1, 2, "superior_a inferior_a", (0, 1)),
        (40, 0, 1, "superior_a inferior_a", (0, 1)),
        (40, 0, 1, "a b", (0, 1)),
    ],
)
def test_oblique_slices_are_not_mirrored_across_sides(degrees, a, b, classes, kept):
    straight = CaseStats("c0", (48, 48), affine=np.eye(4).tolist())
    oblique = CaseStats("c1", (48, 48), affine=turned_slice(degrees, a, b))
    found = _orientations([straight, oblique])
    told = {"world_axes": found.axes, "orientation": found.orientation, "orientations": found.stored}
    slices = data((48, 48), unit="mm", **told)
    plan = planned(slices, labels=Labels(names=("background", *classes.split())))
    assert plan.mirror_axes == kept
    assert ("slices lie oblique to" in plan.reasons["mirror_axes"]) == (kept == ())
