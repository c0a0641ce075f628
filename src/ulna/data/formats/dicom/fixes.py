"""What may be done about odd slices, said by a person: `--dicom KEY=VALUE`, or `dicom.json` beside the data."""

from __future__ import annotations

from collections.abc import Mapping

from ulna.errors import UsageError, unknown

CHOICES: dict[str, tuple[str, ...]] = {
    "tilt": ("resample", "refuse"),  # slices of a tilted gantry
    "duplicates": ("refuse", "first"),  # several slices at one place
    "gaps": ("refuse", "interpolate"),  # missing slices, other distances
    "mixed": ("refuse", "largest"),  # slices of several sizes, spacings or orientations in one series
}


class Fixes(dict[str, str]):
    """A choice for every key; the first of `CHOICES` where nothing is said."""

    def __missing__(self, key: str) -> str:
        return CHOICES[key][0]


def parse_fixes(values: Mapping[str, str], where: str) -> tuple[tuple[str, str], ...]:
    """Checked choices, in the order of their keys.

    Raises:
        UsageError: naming the valid ones.
    """
    for key, value in values.items():
        if key not in CHOICES:
            raise UsageError(f"{where}: {unknown('choice', key, CHOICES)}")
        if value not in CHOICES[key]:
            raise UsageError(f"{where}: {key} is {value!r}; give {' or '.join(CHOICES[key])}")
    return tuple(sorted(values.items()))


def asked(key: str, value: str) -> str:
    """How a person asks for a choice, as messages say it."""
    return f'--dicom {key}={value}, or "{key}": "{value}" in dicom.json'
