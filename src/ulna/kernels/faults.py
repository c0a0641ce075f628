"""Faults of torch's libraries that our kernels work around, and which of them are here. docs/torch-faults.md describes each.

A workaround is on in every version of torch but those in which its fault is known to be gone: a fault that was seen in one
version may be in all that nobody has tried. tests/kernels/test_faults.py runs the reproduction of each on processors that can
show it, and fails where it shows nothing any more: then that version belongs in `gone`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Fault(NamedTuple):
    """A fault, by where it was seen."""

    summary: str
    seen: tuple[str, ...]  # versions of torch, major.minor, in which its reproduction or a test showed it
    shows_on: str  # instructions without which it does not show: "AVX2" (and no more), "AVX-512", "AMX", or "" for any
    gone: tuple[str, ...] = ()  # versions whose reproduction shows nothing on such a processor
    of_onednn: bool = True  # of the library that torch calls for convolutions on a CPU

    def is_here(self, version: str, *, onednn: bool) -> bool:
        """Whether a build of torch may have it: True for versions that nobody has tried."""
        return ".".join(version.split(".")[:2]) not in self.gone and (onednn or not self.of_onednn)


FAULTS = {
    "dilated": Fault(
        "parts of the weight gradient of a dilated convolution in low precision stay unwritten",
        ("2.13", "2.14"),
        "AVX-512",
    ),
    "gaps": Fault(
        "convolutions in low precision whose stride is above 2, or longer than the kernel, are wrong", ("2.13",), "AMX"
    ),
    "small": Fault(
        "convolutions of maps that are smaller than the kernel, or leave one output of a stride, read beyond the map",
        ("2.13", "2.14"),
        "AVX-512",
    ),
    "strided_pixel": Fault(
        "the weight gradient of a kernel of one pixel, with a stride and 3 to 7 channels, is written beyond its memory",
        ("2.13", "2.14"),
        "AVX2",
    ),
    "transposed": Fault(
        "transposed convolutions in low precision of one pixel an axis, or of a stride above 2, are wrong",
        ("2.13",),
        "AMX",
    ),
    "few_rows": Fault(
        "the weight gradient of a volume with few rows in large planes, in low precision, never returns",
        ("2.13",),
        "AMX",
    ),
    "scale_in_steps": Fault(
        "the gradient of a batch norm reads a scale that lies in steps as if it were dense",
        ("2.13", "2.14"),
        "",
        of_onednn=False,
    ),
}

# Those that this build of torch may have
_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
HERE = frozenset(name for name, fault in FAULTS.items() if fault.is_here(torch.__version__, onednn=_ONEDNN))
