"""A patient's masks, of whatever kind, each with the series that it was drawn on.

DICOM masks refer to their images, and those references decide; one without any, and every other file, is placed by its name and
by where its voxels lie (`drawn_on`). What belongs to a series that the study doesn't ask for is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fl_client.intake.door import Reasons, Refused
from fl_client.intake.drawn_on import MaskFile, allowed, drawn_on, words_of
from fl_client.intake.headers import Patient, references, structure_series
from fl_client.intake.labels import LabelMap, UnmappedLabel
from fl_client.intake.mask import Drawing, MaskRefused
from fl_client.intake.mask_file import read_mask_file
from fl_client.intake.moments import RTSTRUCT, Moment, is_later
from fl_client.intake.rtstruct import read_rtstruct
from fl_client.intake.seg import read_seg
from fl_client.intake.volume import Frame, GeometryRefused
from tasks.case import UNKNOWN, Volume

OTHER_FRAME = "its frame of reference is not that of the images: their coordinates can't be compared"
NO_DAY = "19000101"
"""What stands in de-identified objects for a day that must be there and isn't known (`positive_list`)."""
Frames = Mapping[str, Sequence[Frame]]


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A DICOM mask on its series; in place of a drawing, why there is none."""

    series: str
    number: int  # of the patient's masks
    mask: Frame
    drawing: Drawing | MaskRefused | UnmappedLabel
    by_place: bool
    moment: Moment

    @property
    def day(self) -> str:
        """When it was drawn; empty if nobody knows."""
        header = self.mask.header
        day = str(header.get("StructureSetDate" if header.SOPClassUID == RTSTRUCT else "ContentDate") or "")
        return "" if day == NO_DAY else day

    def is_later(self, other: _Drawn) -> bool:
        """Whether it was drawn after the other: on a later day, or later on the same."""
        if self.day == other.day:
            return is_later(self.moment, other.moment)
        return bool(other.day) and self.day > other.day

    @property
    def author(self) -> tuple[bool, frozenset[str]]:
        """What kind of author: contours or voxels, by hand or by which kind of algorithm."""
        header = self.mask.header
        how = {str(item.get("SegmentAlgorithmType", "")) for item in header.get("SegmentSequence") or []}
        return header.SOPClassUID == RTSTRUCT, frozenset(how)

    @property
    def structures(self) -> frozenset[int]:
        """Values that were drawn; none in what can't be read."""
        values = np.unique(self.drawing.mask).tolist() if isinstance(self.drawing, Drawing) else []
        return frozenset(values) - {0, UNKNOWN}


class Drawings:
    """The masks of one patient. `volumes` and `frames` are the wanted series by name, `owners` whose a series UID is.

    `known` are the names of all series that the rules can give: a mask may be named for one that isn't here.
    """

    def __init__(
        self,
        pseudonym: str,
        patient: Patient,
        volumes: Mapping[str, Volume],
        frames: Frames,
        *,
        known: Collection[str],
        labels: LabelMap,
        owners: Mapping[str, str],
        reasons: Reasons,
    ) -> None:
        self._pseudonym, self._patient, self._volumes, self._frames = pseudonym, patient, dict(volumes), frames
        self._known, self._labels, self._owners, self._reasons = known, labels, owners, reasons
        self._names: dict[str, set[str]] = {}  # what a mask may call a slice: series names
        for name, several in frames.items():
            for key in (key for frame in several for key in frame.keys):
                self._names.setdefault(key, set()).add(name)

    def __iter__(self) -> Iterator[tuple[str, Drawing, bool]]:
        """Series name, mask, and whether its place alone says so, for each series with a DICOM mask. Raises the refusals."""
        found: dict[str, list[_Drawn]] = {}
        for number, mask in enumerate(self._patient.masks, 1):
            drawn = self._referring(number, mask) if any(references(mask.header)) else self._by_place(number, mask)
            if drawn is not None:
                found.setdefault(drawn.series, []).append(drawn)
        for name, several in found.items():
            last = self._last(name, several)
            if not isinstance(last.drawing, Drawing):
                raise MaskRefused(f"the mask of {name}: {last.drawing}") from None
            yield name, last.drawing, last.by_place

    def of_files(self, files: Sequence[MaskFile]) -> Iterator[tuple[str, Drawing, bool]]:
        """The same for masks in files of their own."""
        for number, file in enumerate(files, 1):
            among = self._volumes
            if file.series:
                among = {
                    name: self._volumes[name]
                    for name, several in self._frames.items()
                    if file.series in {str(frame.header.get("SeriesInstanceUID", "")) for frame in several}
                }
                if not among:
                    where = f"{self._pseudonym}-mask-file-{number}"
                    self._reasons.leave_out(where, "drawn on a series that the study doesn't ask for", file.path)
                    continue
            try:
                drawing = read_mask_file(file.path, self._labels)
                if file.series and len(among) == 1:
                    (name,) = allowed(file.words, among, self._known)
                else:
                    name = drawn_on(drawing, file.words, among, self._known)
            except (MaskRefused, UnmappedLabel, GeometryRefused) as reason:
                raise MaskRefused(f"mask file {number} of {len(files)}: {reason}") from None
            yield name, drawing, True

    def _last(self, name: str, several: list[_Drawn]) -> _Drawn:
        """Of a mask and its corrections the one that was drawn last; the others are left out.

        Only what could have been drawn in its place counts as corrected: by the same kind of author, on an earlier day or (by
        the same reader) earlier on the same, with no structure more. An earlier one that can't be read may be why there is a
        later one. Raises `Refused`.
        """
        lasts = [drawn for drawn in several if all(drawn is other or drawn.is_later(other) for other in several)]
        if not lasts:
            raise Refused(f"two masks for {name}; one of them has to go")
        (last,) = lasts
        for drawn in several:
            if drawn is last:
                continue
            if drawn.author != last.author:
                raise Refused(f"two masks for {name}; one of them has to go")
            if drawn.day == last.day and drawn.moment.creator != last.moment.creator:
                raise Refused(f"two masks for {name} of one day, not by the same reader; one of them has to go")
            if isinstance(last.drawing, Drawing) and not drawn.structures <= last.structures:
                raise Refused(f"two masks for {name}, and the later lacks a structure of the earlier; one of them has to go")
            where = f"{self._pseudonym}-mask-{drawn.number}"
            when = "of a later day" if drawn.day != last.day else "drawn later on the same day"
            self._reasons.leave_out(where, f"{name}: a mask {when} takes its place", drawn.mask.path)
        return last

    def _referring(self, number: int, mask: Frame) -> _Drawn | None:
        uids = set(references(mask.header))
        series = {str(item.get("SeriesInstanceUID", "")) for item in mask.header.get("ReferencedSeriesSequence") or []}
        series |= {uid for uid, _ in structure_series(mask.header)}
        strangers = {self._owners[uid] for uid in series if uid in self._owners} - {self._pseudonym}
        if strangers:
            raise Refused(f"mask {number} refers to images of another patient, {', '.join(sorted(strangers))}")
        names = set[str]().union(*(self._names.get(uid, set()) for uid in uids))
        if not names and series and series <= self._patient.series.keys():
            self._reasons.leave_out(
                f"{self._pseudonym}-mask-{number}", "drawn on a series that the study doesn't ask for", mask.path
            )
            return None
        if len(names) != 1 or not uids <= self._names.keys():
            absent = len(uids - self._names.keys())
            raise Refused(
                f"mask {number} refers to {len(uids)} images, of which {absent} are not here, in {len(names)} wanted series; "
                "a mask belongs to the images of one"
            )
        name, moment = names.pop(), self._moment(mask)
        try:
            return _Drawn(name, number, mask, self._read(mask, name), by_place=False, moment=moment)
        except (MaskRefused, UnmappedLabel) as reason:
            return _Drawn(name, number, mask, reason, by_place=False, moment=moment)

    def _by_place(self, number: int, mask: Frame) -> _Drawn:
        """A mask that names no image: one of the series in its frame of reference."""
        here = {name for name in self._volumes if self._frame_of_reference(name) in _stated(mask)}
        words = words_of(str(mask.header.get("SeriesDescription", "") or ""))
        try:
            if not here:
                raise MaskRefused(f"it refers to no images, and {OTHER_FRAME}")
            drawings: dict[str, Drawing] = {}
            refusals: list[MaskRefused] = []
            for name in allowed(words, here, self._known):
                try:
                    drawings[name] = self._read(mask, name)
                except MaskRefused as reason:
                    refusals.append(reason)
            if not drawings:
                raise refusals[0]
            among = {name: self._volumes[name] for name in drawings}
            name = drawn_on(drawings[min(drawings)], words, among, self._known)
            return _Drawn(name, number, mask, drawings[name], by_place=True, moment=self._moment(mask))
        except (MaskRefused, UnmappedLabel) as reason:
            raise MaskRefused(f"mask {number}: {reason}") from None

    def _read(self, mask: Frame, name: str) -> Drawing:
        """Raises `MaskRefused` and `UnmappedLabel`."""
        frame = self._frame_of_reference(name)
        if mask.header.SOPClassUID == RTSTRUCT:
            return read_rtstruct(mask.header, self._volumes[name], self._labels, frame_of_reference=frame)
        if str(mask.header.get("FrameOfReferenceUID", "")) != frame:
            raise MaskRefused(OTHER_FRAME)
        return read_seg(mask.header, self._labels)

    def _moment(self, mask: Frame) -> Moment:
        return self._patient.moments.get(str(mask.header.get("SOPInstanceUID", "")), Moment())

    def _frame_of_reference(self, name: str) -> str:
        return str(self._frames[name][0].header.get("FrameOfReferenceUID", ""))


def _stated(mask: Frame) -> set[str]:
    """Frames of reference that a DICOM mask states."""
    items = [
        mask.header,
        *(mask.header.get("ReferencedFrameOfReferenceSequence") or []),
    ]
    stated = {str(item.get("FrameOfReferenceUID", "") or "") for item in items}
    stated |= {
        str(item.get("ReferencedFrameOfReferenceUID", "") or "") for item in mask.header.get("StructureSetROISequence") or []
    }
    return stated - {""}
