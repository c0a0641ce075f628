"""The part of the body: of slices and of enhanced multi-frame files in one vocabulary, so that a run can compare them."""

from __future__ import annotations

import pytest

from tests import dicom_series as dicom
from ulna.data.formats.dicom.header import read_header
from ulna.data.formats.read import read_image
from ulna.data.formats.source import Source

ABDOMEN, CERVICAL, TORSO = (
    ("818981001", "Abdomen"),
    ("122494005", "Cervical spine"),
    ("416775004", "Chest, Abdomen and Pelvis"),
)


def item(**elements):
    one = dicom.pydicom.Dataset()
    for keyword, value in elements.items():
        setattr(one, keyword, value)
    return one


def region(code, meaning, scheme="SCT"):
    return [item(CodeValue=code, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]


def enhanced(where, code):
    """An enhanced file that names the anatomic region in its shared groups, in those of its frames, or at its top."""
    made = dicom.multiframe(dicom.ramp(4, 5, 6))
    if where == "top":
        made.AnatomicRegionSequence = code
        return made
    anatomy = [item(FrameLaterality="U", AnatomicRegionSequence=code)]
    groups = {"shared": made.SharedFunctionalGroupsSequence, "frames": made.PerFrameFunctionalGroupsSequence}[where]
    for group in groups:
        group.FrameAnatomySequence = anatomy
    return made


@pytest.mark.parametrize("where", ["shared", "frames", "top"])
def test_an_enhanced_file_shows_the_part_that_its_code_names(tmp_path, where):
    path = dicom.save(enhanced(where, region(*ABDOMEN)), tmp_path / "one.dcm")
    assert read_image([Source(path)], 3).meta.body_part == "ABDOMEN"


@pytest.mark.parametrize(
    ("code", "term"),
    [
        (region(*CERVICAL), "CSPINE"),
        (region(*TORSO), "CHESTABDPELVIS"),
        (region("818981001", "Bauch"), "ABDOMEN"),  # the code counts, whatever the language of its meaning
        (region("T-D4000", "Abdomen", "SRT"), "ABDOMEN"),  # and where it is none of the standard's, the meaning
        (region("774007", "Head and Neck"), "HEADNECK"),
        (region("1", f"{dicom.CANARY} Abdomen"), "ABDOMEN"),
        (region("1", "12.3 1940"), ""),
        ([item()], ""),
        ([], ""),
    ],
)
def test_codes_become_the_terms_of_the_standard(tmp_path, code, term):
    assert read_header(dicom.save(enhanced("shared", code), tmp_path / "one.dcm")).body_part == term


def test_what_the_file_says_in_words_comes_first(tmp_path):
    made = enhanced("shared", region(*ABDOMEN))
    made.BodyPartExamined = f"{dicom.CANARY} LEG"
    assert read_header(dicom.save(made, tmp_path / "one.dcm")).body_part == "LEG"
