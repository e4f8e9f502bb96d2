"""What SimpleITK passes over in silence when it reads NIfTI: a file cut short, and voxels that aren't numbers.

Its reader fills the missing end of a truncated file with zeros and replaces NaN by zero (observed with SimpleITK 2.5, for
.nii and .nii.gz; NRRD files cut short are refused). So the file is looked at once before it is read. Layout: nifti1.h and
nifti2.h, NIfTI Data Format Working Group, nifti.nimh.nih.gov.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

# size of header: (where the dimensions stand and their type, datatype and bits per voxel, where the voxels start and its type)
LAYOUTS = {348: ((40, "8h"), (70, "2h"), (108, "f")), 540: ((16, "8q"), (12, "2h"), (168, "q"))}
FLOATS = {16: "f4", 64: "f8"}  # NIfTI datatype codes
BITS = {2: 8, 4: 16, 8: 32, 16: 32, 64: 64, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
"""Bits per voxel by NIfTI datatype code, of the types that hold one number per voxel."""


def problem(path: Path) -> str | None:
    """Why a .nii or .nii.gz file can't be trusted as a whole, or None. Holds the uncompressed file in memory."""
    try:
        content = path.read_bytes()
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error):
        return "can't be read: its compression is damaged or cut short"
    order = next((sign for sign in "<>" if len(content) >= 348 and struct.unpack_from(f"{sign}i", content)[0] in LAYOUTS), None)
    if order is None:
        return "is no NIfTI file: the size of its header is neither 348 nor 540"
    header_size = struct.unpack_from(f"{order}i", content)[0]
    if len(content) < header_size:
        return "is cut short in its header"
    (at, kind), (kind_at, kinds), (start_at, start_kind) = LAYOUTS[header_size]
    count, *sizes = struct.unpack_from(order + kind, content, at)
    datatype, bits = struct.unpack_from(order + kinds, content, kind_at)
    start = struct.unpack_from(order + start_kind, content, start_at)[0]
    if datatype not in BITS:
        return f"has datatype {datatype}: not one number per voxel"
    if bits != BITS[datatype]:
        return f"has a header that contradicts itself: datatype {datatype} has {BITS[datatype]} bits per voxel, not {bits}"
    if not math.isfinite(start) or start != int(start) or start < header_size:
        return f"has a header that contradicts itself: voxels start at byte {start:g} of a file whose header has {header_size}"
    if not 1 <= count <= 7 or min(sizes[:count]) < 1:
        return f"has a header that contradicts itself: {count} axes of {sizes[: max(0, count)]} voxels"
    start, voxels = int(start), math.prod(sizes[:count])
    missing = start + voxels * bits // 8 - len(content)
    if missing > 0:
        return f"is cut short: {missing} of {voxels * bits // 8} bytes of voxels are missing"
    if datatype in FLOATS and not np.isfinite(np.frombuffer(content, order + FLOATS[datatype], voxels, start)).all():
        return "holds values that are not finite numbers"
    return None
