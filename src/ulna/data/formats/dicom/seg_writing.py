"""A label map as a DICOM SEG beside its series, with highdicom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ulna.data.formats.dicom.about import About
from ulna.data.formats.dicom.coding import colour_of, concept_of
from ulna.data.formats.dicom.library import highdicom, pydicom
from ulna.data.formats.dicom.originals import originals_of
from ulna.data.formats.dicom.planes import to_frames
from ulna.data.formats.dicom.stack import Stack

SERIES_NUMBER = 9300


def write_seg(path: Path, labels: NDArray[Any], stack: Stack, about: About) -> tuple[str, ...]:
    """Write a BINARY SEG; what its series does not state and had to be made up.

    Args:
        labels: (i, j, k) on the grid of the series, or (K, i, j, k) of overlapping classes.
    """
    hd, library = highdicom(), pydicom()
    originals = originals_of(stack)
    if labels.ndim == 4:
        count = len(labels)
        frames = np.stack([to_frames(one.astype(np.uint8), stack) for one in labels], axis=-1)
    else:
        frames = to_frames(labels, stack)
        count = max(len(about.names), int(labels.max(initial=0)))
    if stack.frames[0].header is stack.frames[-1].header:  # one file: its frames keep their order there
        frames = _in_file(frames, stack)
    made = hd.seg.Segmentation(
        source_images=originals.datasets,
        pixel_array=frames,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(number, about) for number in range(1, count + 1)],
        series_instance_uid=library.uid.generate_uid(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=library.uid.generate_uid(),
        instance_number=1,
        manufacturer="ulna",
        manufacturer_model_name=about.algorithm[:64],
        software_versions=about.version[:64],
        device_serial_number="0",
        content_label="SEGMENTATION",
        content_description="made by a program, not checked by a person",
        series_description=f"ulna {about.algorithm}"[:64],
    )
    made.save_as(path, enforce_file_format=True)
    return originals.missing


def _in_file(frames: NDArray[Any], stack: Stack) -> NDArray[Any]:
    """Frames of a multi-frame file in its own order; those that are no part of the stack are empty."""
    made = np.zeros((len(stack.frames[0].header.slices), *frames.shape[1:]), frames.dtype)
    for number, frame in enumerate(stack.frames):
        made[frame.number] = frames[number]
    return made


def _description(number: int, about: About) -> Any:
    hd = highdicom()
    name = about.name(number)
    concept = concept_of(name)
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=hd.sr.CodedConcept(*concept.category),
        segmented_property_type=hd.sr.CodedConcept(*concept.type),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=about.algorithm[:64],
            version=about.version[:64],
            family=hd.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        ),
        display_color=hd.color.CIELabColor.from_rgb(*colour_of(number)),
    )
    if concept.side is not None:
        kind = described.SegmentedPropertyTypeCodeSequence[0]
        kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept(*concept.side)]
    return described
