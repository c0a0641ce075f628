"""How large the pixels of a TIFF are, and how that is written: ImageJ, OME and plain TIFF say it in three ways."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from typing import Any, NamedTuple

from ulna.data.formats.units import millimetres_in

_PRINT_DPI = (72, 96, 100, 150, 200, 300, 600, 1200)
_INCH, _CENTIMETRE = 2, 3  # of the tag ResolutionUnit
_KEPT = ("finterval", "fps", "tunit")  # what ImageJ says about time


class Scale(NamedTuple):
    """What a file says about lengths, as it is written into its mask.

    Args:
        resolution: pixels per unit along x and y, of the picture as stored; None where the file says nothing.
        code: the unit of the tags; 1 for none.
        about: what ImageJ reads beside them: `unit`, `spacing` (of slices), and times.
    """

    resolution: tuple[float, float] | None = None
    code: int = 1
    about: dict[str, Any] = {}  # noqa: RUF012 - never changed


class TiffStored(NamedTuple):
    """What a map needs to be written as its image is stored.

    Args:
        scale: of its pixels.
        run: the name of the axis that is read as depth; empty in 2D.
    """

    scale: Scale
    run: str = ""


Spacing = tuple[float | None, float, float]


def read_scale(file: Any, page: Any) -> tuple[Spacing | None, Scale]:
    """(z, y, x) in mm, None where no unit is stated, z None where only the plane is; and what the file says."""
    resolution = _resolution(page)
    if file.is_ome:
        spacing = _ome_spacing(file.ome_metadata)
        return spacing, Scale() if spacing is None else in_micrometres(spacing)
    if resolution is None:
        return None, Scale(about=_about(file))
    x, y, code = resolution
    if file.is_imagej:
        about = _about(file)
        scale = millimetres_in(about.get("unit"))
        z = _number(about.get("spacing"))
        known = None if scale is None else (abs(z) * scale if z else None, scale / y, scale / x)
        return known, Scale((x, y), code, about)
    # inches, and the densities of print, are what programs write when nobody told them a size
    if code != _CENTIMETRE or any(abs(x * 2.54 - dpi) < 0.01 * dpi for dpi in _PRINT_DPI):
        return None, Scale((x, y), code)
    return (None, 10.0 / y, 10.0 / x), Scale((x, y), code, {"unit": "cm"})


def in_micrometres(spacing: Spacing) -> Scale:
    """What to write for a spacing (z, y, x) in mm."""
    z, y, x = spacing
    return Scale((1e-3 / x, 1e-3 / y), 1, {"unit": "um"} | ({"spacing": z * 1e3} if z else {}))


def _about(file: Any) -> dict[str, Any]:
    """What ImageJ says about lengths and times; a unit that is no plain text is written as ImageJ escapes it."""
    said = file.imagej_metadata or {} if file.is_imagej else {}
    about = {key: said[key] for key in ("unit", "spacing", *_KEPT) if key in said}
    if "unit" in about:
        about["unit"] = "".join(
            sign if sign.isascii() else f"\\u{ord(sign):04X}" for sign in str(about["unit"]).replace("\n", " ")
        )
    return about


def _resolution(page: Any) -> tuple[float, float, int] | None:
    """Pixels per unit along x and y, and the unit's TIFF code."""
    tags = page.tags
    if "XResolution" not in tags or "YResolution" not in tags:
        return None
    (xn, xd), (yn, yd) = tags["XResolution"].value, tags["YResolution"].value
    if not (xn and xd and yn and yd):
        return None
    return xn / xd, yn / yd, int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else _INCH


def _number(value: Any) -> float:
    try:
        number = float(value or 0)
    except (TypeError, ValueError):
        return 0.0
    return number if math.isfinite(number) else 0.0


def _ome_spacing(text: str) -> Spacing | None:
    try:
        pixels = next((e for e in ElementTree.fromstring(text).iter() if e.tag.endswith("Pixels")), None)
    except ElementTree.ParseError:
        return None
    sizes: list[float | None] = []
    for axis in "ZYX":
        size = max(_number(pixels.get(f"PhysicalSize{axis}")), 0.0) if pixels is not None else 0.0
        unit = millimetres_in(pixels.get(f"PhysicalSize{axis}Unit", "um")) if pixels is not None else None
        sizes.append(size * unit if size and unit else None)
    z, y, x = sizes
    return (z, y, x) if y and x else None
