"""What the header of one image says of its contrast and orientation, whoever wrote it: signal part, b-value, plane.

Standard elements first; where vendors use private ones, those that de-identification lets through.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

COMPONENTS: Mapping[str, tuple[str, ...]] = {
    "magnitude": ("MAGNITUDE", "MAG", "M", "M_SE", "M_FFE", "M_IR", "M_TSE", "M_PCA"),
    "phase": ("PHASE", "PHS", "P", "P_SE", "P_FFE", "P_IR", "PHASE_MAP", "VELOCITY", "VELOCITY_MAP"),
    "real": ("REAL", "R", "R_SE", "R_FFE", "R_IR", "CR", "CR_IR"),
    "imaginary": ("IMAGINARY", "I", "I_SE", "I_FFE", "I_IR"),
}
"""Which part of the complex signal an image shows, by words of its ImageType or its ComplexImageComponent (PS3.3 C.8.13.3)."""

GE_COMPONENT = ("magnitude", "phase", "real", "imaginary")  # (0043,xx2F) of GEMS_PARM_01 counts them from 0


def type_of(header: Dataset) -> tuple[str, ...]:
    """The values of ImageType, in their order."""
    types = header.get("ImageType") or ()
    return (types,) if isinstance(types, str) else tuple(map(str, types))


def words_of(header: Dataset) -> set[str]:
    """What ImageType and the like say of an image."""
    return {*type_of(header), *([str(header.ComplexImageComponent)] if header.get("ComplexImageComponent") else [])}


def component(header: Dataset) -> str:
    """`magnitude`, `phase`, `real`, `imaginary`, or nothing where an image doesn't say."""
    words = words_of(header)
    for name, known in COMPONENTS.items():
        if words & set(known):
            return name
    number = _private(header, 0x0043, "GEMS_PARM_01", 0x2F)
    return GE_COMPONENT[int(number)] if number is not None and number in range(4) else ""


def b_value(header: Dataset) -> float | None:
    """Diffusion weighting in s/mm², from the standard element or the one that Siemens, GE, Philips or United Imaging wrote."""
    if number_of(header, "DiffusionBValue") is not None:
        return number_of(header, "DiffusionBValue")
    if header.get("DiffusionDirectionality") == "NONE":
        return 0.0
    for group, creator, element in (
        (0x0019, "SIEMENS MR HEADER", 0x0C),
        (0x0043, "GEMS_PARM_01", 0x39),
        (0x2001, "Philips Imaging DD 001", 0x03),
        (0x0065, "Image Private Header", 0x09),
    ):
        value = _private(header, group, creator, element)
        if value is not None:
            return value % 1e9  # GE adds a thousand millions
    return None


def plane_of(cosines: npt.NDArray[np.float64]) -> str:
    """The anatomical plane to which the slice is nearest."""
    normal = np.abs(np.cross(cosines[:3], cosines[3:]))
    return ("sagittal", "coronal", "axial")[int(normal.argmax())] if normal.any() else "of no orientation"


def number_of(header: Dataset, keyword: str) -> float | None:
    """An element's number, the first of several; None where it is absent or empty."""
    return _first(header.get(keyword))


def _private(header: Dataset, group: int, creator: str, element: int) -> float | None:
    """The first number of a private element, or None where it isn't there."""
    try:
        return _first(header.private_block(group, creator)[element].value)
    except KeyError:
        return None


def _first(value: object) -> float | None:
    """A number, or the first of several."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    one = (value[0] if value else None) if several else value  # type: ignore[index]
    return None if one in (None, "") else float(one)  # type: ignore[arg-type]
