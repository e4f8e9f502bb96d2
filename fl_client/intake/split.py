"""One series taken apart into candidate volumes, and the one of them that a rule asks for.

Scanners put into one series what belongs to several volumes: magnitude and phase, several echoes, b-values, planes, localizers
in front. Each part is a volume by itself; stacked together they would be none, or a wrong one. A part that isn't asked for is
named, and where more than one is left the patient is refused with what there is and what to say in the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator
from pydicom.dataset import Dataset

from conf.study import Frozen
from fl_client.intake.aspects import b_value, component, number_of, plane_of, type_of, words_of
from fl_client.intake.instants import instants
from fl_client.intake.terms import TERMS
from fl_client.intake.volume import Frame, GeometryRefused

Plane = Literal["axial", "coronal", "sagittal"]

SAME_DIRECTION = 0.01
"""Slices whose direction cosines differ by less (0.6 degrees) are of one plane; the geometry gate is stricter and tells."""

SAME_ECHO = (0.05, 0.1)
"""Echo times that differ by less than so much of the shorter one, or so many ms, are one echo: some scanners adapt them."""

SAME_B = 25.0
"""b-values within so many s/mm² are one: some vendors add the imaging gradients' share."""

STACK = 3
"""Positions that make a plane the stack of the series, beside which planes of one position each are scouts."""


class Part(Frozen):
    """Which part of a series is meant, where it holds more than one. What isn't said has to be unambiguous."""

    image_type: tuple[str, ...] = ()  # words that all stand in ImageType, such as M, P, ADC; none: the magnitude, the original
    plane: Plane | None = None
    echo: int | None = Field(default=None, ge=1)  # 1 is the one with the shortest echo time
    b_value: float | None = Field(default=None, ge=0)  # s/mm²
    direction: int | None = Field(default=None, ge=1)  # of the diffusion gradient, in the order of acquisition
    time_point: int | None = Field(default=None, ge=1)  # of several images at every position; 1 is the earliest

    @field_validator("image_type")
    @classmethod
    def _passes(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        strangers = sorted(set(words) - TERMS)
        if strangers:
            raise ValueError(
                f"{', '.join(strangers)}: no word of ImageType that passes de-identification, so no image would have it; "
                "M, P, R, MAGNITUDE, ORIGINAL, DERIVED, ADC, T1MAP and others of conf/deidentify/terms.yaml pass"
            )
        return words


@dataclass
class Split:
    """The frames that are left, and what was put aside: (a short name for the line, the reason)."""

    frames: list[Frame]
    aside: list[tuple[str, str]] = field(default_factory=list)

    def keep(self, frames: list[Frame], what: str, reason: str) -> None:
        """Go on with these frames; the others are named."""
        self.aside.append((what, reason))
        self.frames = frames


def asked_for(header: Dataset, part: Part) -> bool:
    """Whether an image can belong to the part at all, as far as its ImageType says: no localizer, all words of the rule."""
    words = words_of(header)
    return set(part.image_type) <= words and ("LOCALIZER" not in words or "LOCALIZER" in part.image_type)


def one_part(frames: Sequence[Frame], part: Part) -> Split:
    """The frames of one series that the part names, one per position unless they differ in time, and what was put aside.

    In this order: localizers, ImageType, original or derived, plane, echo, b-value, gradient direction. Raises
    `GeometryRefused` where several candidates are left, with what distinguishes them, and where there is no such part.
    """
    split = Split(list(frames))
    _localizers(split, part)
    _component(split, part)
    _original(split)
    _plane(split, part)
    _one_kind(split)
    _numbered(split, "echo", "echoes", _echoes(split.frames), part.echo)
    _b_value(split, part)
    _numbered(split, "direction", "gradient directions", _directions(split.frames), part.direction)
    return split


def one_time(frames: Sequence[Frame], part: Part) -> list[Frame]:
    """One frame per position, where several differ in time: the one that `time_point` names.

    Raises `GeometryRefused` if nothing names one. Frames that stand twice and differ in nothing are left to the geometry gate.
    """
    try:
        found = instants(frames)
    except GeometryRefused:
        return list(frames)
    if len(found.frames) == 1:
        return found.frames[0]
    if part.time_point is None:
        raise GeometryRefused(
            f"{len(found.frames)} images at each of {len(found.frames[0])} positions, which differ in {found.by}; "
            "say time_point in the series rule, or phases if it is a cine"
        )
    if part.time_point > len(found.frames):
        raise GeometryRefused(f"time_point {part.time_point} is asked for; there are {len(found.frames)}")
    return found.frames[part.time_point - 1]


def _localizers(split: Split, part: Part) -> None:
    if "LOCALIZER" in part.image_type:
        return
    rest = [frame for frame in split.frames if "LOCALIZER" not in words_of(frame.header)]
    marked = len(split.frames) - len(rest)
    if not rest:
        raise GeometryRefused(f"all {marked} images are localizers by their ImageType")
    if marked:
        split.keep(rest, "localizer", f"{_images(marked)} of a localizer among the slices, by ImageType")


def _component(split: Split, part: Part) -> None:
    if part.image_type:
        wanted = [frame for frame in split.frames if asked_for(frame.header, part)]
        others = len(split.frames) - len(wanted)
        if not wanted:
            raise GeometryRefused(f"no image has {' and '.join(part.image_type)} in its ImageType; there are {_types(split)}")
        if others:
            split.keep(wanted, "image-type", f"{_images(others)} of another ImageType than {' '.join(part.image_type)}")
        return
    found = _by(split.frames, component)
    if len(found) < 2:
        return
    if "magnitude" not in found:
        raise GeometryRefused(
            f"{_listed(found)} images in one series and no magnitude; say image_type in the series rule, such as [R]"
        )
    split.keep(
        found.pop("magnitude"),
        "component",
        f"{_listed(found)} images beside the magnitude; image_type in the series rule would ask for them",
    )


def _original(split: Split) -> None:
    """Derived images are put aside where there are original ones."""
    found = _by(split.frames, lambda header: type_of(header)[0] if type_of(header) else "")
    if "ORIGINAL" in found and len(found) > 1:
        split.keep(found.pop("ORIGINAL"), "derived", f"derived images beside the original ones: {_listed(found)}")


def _one_kind(split: Split) -> None:
    """Images of different ImageType aren't comparable in their values."""
    if len(_by(split.frames, lambda header: "\\".join(type_of(header)))) > 1:
        raise GeometryRefused(f"several kinds of image in one series: {_types(split)}; say image_type in the series rule")


def _types(split: Split) -> str:
    return _listed(_by(split.frames, lambda header: "\\".join(type_of(header))))


def _plane(split: Split, part: Part) -> None:
    planes = _planes(split.frames)
    if part.plane:
        wanted = [frames for name, frames in planes if name == part.plane]
        if len(wanted) != 1:
            raise GeometryRefused(f"{len(wanted)} stacks are {part.plane}; there are {_of_planes(planes)}")
    elif len(planes) > 1:
        stacks = [frames for _, frames in planes if _positions(frames) > 1]
        if len(stacks) != 1 or _positions(stacks[0]) < STACK:
            raise GeometryRefused(
                f"images of {len(planes)} orientations in one series, such as a localizer among the slices: "
                f"{_of_planes(planes)}; say plane in the series rule if their planes have different names"
            )
        wanted = stacks
    else:
        return
    others = [(name, frames) for name, frames in planes if frames is not wanted[0]]
    if others:
        split.keep(wanted[0], "plane", f"images of another orientation than the stack: {_of_planes(others)}")


def _planes(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """Frames by orientation, with the plane's name; those without an orientation are left for the gate to refuse."""
    found: list[tuple[npt.NDArray[np.float64], list[Frame]]] = []
    for frame in frames:
        cosines = np.array(frame.header.get("ImageOrientationPatient") or [0.0] * 6, float)
        if cosines.shape != (6,) or not np.isfinite(cosines).all():
            cosines = np.zeros(6)
        for known, same in found:
            if np.abs(cosines - known).max() <= SAME_DIRECTION:
                same.append(frame)
                break
        else:
            found.append((cosines, [frame]))
    return [(plane_of(cosines), same) for cosines, same in found]


def _positions(frames: Sequence[Frame]) -> int:
    return len({tuple(np.round(np.array(f.header.get("ImagePositionPatient") or [], float), 2)) for f in frames})


def _of_planes(planes: Sequence[tuple[str, list[Frame]]]) -> str:
    texts = []
    for name, frames in planes:
        places = _positions(frames)
        texts.append(f"{name} ({_images(len(frames))} at {places} position{'s' if places > 1 else ''})")
    return ", ".join(texts)


def _numbered(split: Split, name: str, several: str, found: Sequence[tuple[str, list[Frame]]], wanted: int | None) -> None:
    """Take the one with the wanted number of an ordered choice, or refuse."""
    listed = ", ".join(label for label, _ in found)
    if wanted is not None and wanted > max(len(found), 1):
        raise GeometryRefused(f"{name} {wanted} is asked for; there {'are' if len(found) > 1 else 'is'} {len(found) or 1}")
    if len(found) < 2:
        return
    if wanted is None:
        raise GeometryRefused(f"{len(found)} {several}: {listed}; say {name} in the series rule")
    others = len(split.frames) - len(found[wanted - 1][1])
    reason = f"{_images(others)} of other {several} than number {wanted} of {len(found)} ({listed})"
    split.keep(found[wanted - 1][1], name, reason)


def _echoes(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """Frames by echo, in order of echo time; by number where a scanner tells that alone."""
    relative, absolute = SAME_ECHO
    found = _by_number(frames, lambda h: number_of(h, "EchoTime"), lambda a, b: b - a < max(absolute, relative * a))
    if len(found) > 1:
        return [(f"{time} ms", some) for time, some in found]
    numbers = _by_number(frames, lambda h: number_of(h, "EchoNumbers"), lambda a, b: a == b)
    return [(f"number {number}", some) for number, some in numbers]


def _b_value(split: Split, part: Part) -> None:
    if part.b_value is None and len({b_value(frame.header) for frame in split.frames}) < 2:
        return
    found = _by_number(split.frames, lambda h: b_value(h) or 0.0, lambda a, b: b - a < SAME_B)
    listed = f"{', '.join(label for label, _ in found)} s/mm²"
    if part.b_value is None:
        if len(found) > 1:
            raise GeometryRefused(f"{len(found)} b-values: {listed}; say b_value in the series rule")
        return
    wanted = [frames for _, frames in found if any(abs((b_value(f.header) or 0.0) - part.b_value) < SAME_B for f in frames)]
    if len(wanted) != 1:
        raise GeometryRefused(f"b-value {part.b_value:g} is asked for; there {'are' if len(found) > 1 else 'is'} {listed}")
    if len(found) > 1:
        others = len(split.frames) - len(wanted[0])
        split.keep(wanted[0], "b-value", f"{_images(others)} of other b-values than {part.b_value:g}, of {listed}")


def _directions(frames: Sequence[Frame]) -> list[tuple[str, list[Frame]]]:
    """Frames by diffusion gradient direction, in the order in which they stand in the series."""
    found: dict[str, list[Frame]] = {}
    for frame in sorted(frames, key=lambda frame: frame.place):
        value = frame.header.get("DiffusionGradientOrientation") or ()
        found.setdefault("/".join(f"{float(number):.2f}" for number in value) or "none", []).append(frame)
    return list(found.items())


def _by(frames: Sequence[Frame], aspect: Callable[[Dataset], str]) -> dict[str, list[Frame]]:
    found: dict[str, list[Frame]] = {}
    for frame in frames:
        found.setdefault(aspect(frame.header), []).append(frame)
    return dict(sorted(found.items()))


def _by_number(
    frames: Sequence[Frame], aspect: Callable[[Dataset], float | None], same: Callable[[float, float], bool]
) -> list[tuple[str, list[Frame]]]:
    """Frames by a number, ascending; neighbours that count as the same together. Without a number they come first."""
    found: list[tuple[float, list[Frame]]] = []
    for frame in sorted(frames, key=lambda frame: aspect(frame.header) or 0.0):
        value = aspect(frame.header) or 0.0
        if found and same(found[-1][0], value):
            found[-1][1].append(frame)
        else:
            found.append((value, [frame]))
    return [(f"{value:g}", some) for value, some in found]


def _listed(found: Mapping[str, list[Frame]]) -> str:
    return ", ".join(f"{len(frames)} {name or 'unmarked'}" for name, frames in found.items())


def _images(count: int) -> str:
    return f"{count} image{'s' if count > 1 else ''}"
