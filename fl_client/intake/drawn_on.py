"""Whose mask a file is, and on which image it was drawn: by its name, by what lies beside it, and by where its voxels lie.

A radiologist draws on exported images in 3D Slicer or ITK-SNAP and saves a file that names neither patient nor image. So it is
named by a person: the hospital's patient number, the pseudonym or the series UID, and if need be the series
(`4711_cine_es.seg.nrrd`, or in a folder `4711/`); or it lies in the folder of one patient's images. What nobody named is never
guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_client.intake.door import Reasons
from fl_client.intake.headers import Patient
from fl_client.intake.mask import Drawing, MaskRefused, fit
from fl_client.intake.mask_file import all_descriptions
from fl_client.intake.pseudonyms import Pseudonyms
from fl_client.intake.volume_file import stem_of, suffix_of
from tasks.case import Volume

SAYS_MASK = frozenset(("mask", "masks", "seg", "segmentation", "label", "labels", "labelmap", "gt"))
"""Words of which one stands in the name of a mask that lies beside DICOM images: other volumes there are converted images."""


@dataclass(frozen=True)
class MaskFile:
    """A file with a mask of a known patient. `series` is a series UID if the name holds one; `words` are what else it says."""

    path: Path
    words: frozenset[str]
    series: str = ""


def mask_files(folder: Path) -> tuple[list[Path], set[Path]]:
    """Files below a folder that hold volumes, and label descriptions that belong to them."""
    volumes = [path for path in sorted(folder.rglob("*")) if path.is_file() and suffix_of(path)]
    return volumes, all_descriptions(volumes)


def by_patient(
    files: Collection[Path],
    folder: Path,
    patients: Mapping[str, Patient],
    reasons: Reasons,
    *,
    names: Pseudonyms,
    beside: bool,
) -> dict[str, list[MaskFile]]:
    """Mask files by pseudonym; those of nobody, or of two, are left out with the reason. `names` knows whose a number is.

    `beside` says that the folder is the one of the DICOM images: there, a file may belong to the patient whose images lie with
    it, and one whose name doesn't say that it is a mask is taken for an image and left out.
    """
    series = {uid: pseudonym for pseudonym, patient in patients.items() for uid in patient.series}
    found: dict[str, list[MaskFile]] = {}
    for path in files:
        relative = path.relative_to(folder)
        handle = reasons.deidentify.handle(relative.as_posix() if beside else f"masks/{relative.as_posix()}")
        parts = [*relative.parts[:-1], stem_of(path)]
        own_words = words_of(path.name)
        if beside and not own_words & SAYS_MASK:
            words = ", ".join(sorted(SAYS_MASK))
            reasons.leave_out(handle, f"not a DICOM file, and none of {words} in its name says that it is a mask", path)
            continue
        owners: set[str] = set()
        uid = ""
        said: set[str] = set()
        for part in parts:
            named, rest = _named(part, patients, series, names)
            owners |= {series.get(name, name) for name in named}
            uid = next((name for name in named if name in series), uid)
            said |= words_of(rest)
        if not owners and beside:
            owners = _neighbours(path, patients)
        if len(owners) != 1:
            why = (
                f"its name and place fit {len(owners)} patients" if owners else "no patient of these images stands in its name"
            )
            reasons.leave_out(handle, f"a mask that belongs to nobody: {why}", path)
            continue
        found.setdefault(owners.pop(), []).append(MaskFile(path, frozenset(said), uid))
    return found


def drawn_on(drawing: Drawing, words: Collection[str], volumes: Mapping[str, Volume], known: Collection[str]) -> str:
    """The series that a mask without references was drawn on, of those that it may be.

    A series whose name stands in `words` is taken at its word; among others it must be the only one on whose voxels those of
    the mask fall. `known` are the names of all series that the rules can give. Raises `MaskRefused` if it is none or several.
    """
    named = named_in(words, known)
    among = {name: volumes[name] for name in allowed(words, volumes, known)}
    if len(named) == 1:
        return next(iter(among))
    exact = [name for name, volume in among.items() if fit(drawing, volume) == "exact"]
    if len(exact) == 1:
        return exact[0]
    if exact:
        raise MaskRefused(f"it fits {' and '.join(exact)} alike; the name of one of them in its own name would say which")
    raise MaskRefused(
        f"its voxels are those of none of {', '.join(among)}; a mask on another grid needs the name of its series in its name"
    )


def named_in(words: Collection[str], known: Collection[str]) -> set[str]:
    """The series whose whole names stand in these words, written apart or together; `lge late` more than `lge`."""
    said = _with_phases(words)
    named = {name for name in known if words_of(name) <= said or "".join(re.findall("[a-z0-9]+", name.lower())) in said}
    return named - {name for name in named for other in named if words_of(name) < words_of(other)}


def allowed(words: Collection[str], among: Collection[str], known: Collection[str]) -> list[str]:
    """The series, of those that a mask may be drawn on, of which its words don't say that it was drawn on another.

    A mask that is named for end-systole lies on the voxels of end-diastole just as well, so place can't find the error. A part
    of a name counts too (`es`, `systole`), where it isn't a mere number. Raises `MaskRefused` if none is left, or if it is
    named for one that isn't there.
    """
    if named := named_in(words, known):
        absent = sorted(named - set(among))
        if absent:
            raise MaskRefused(
                f"it is named for {' and '.join(absent)}, and the images that it may belong to are {_list(among)}"
            )
        return sorted(named)
    parts = {word for name in known for word in words_of(name) if not word.isdigit()} & _with_phases(words)
    left = sorted(name for name in among if parts <= words_of(name))
    if not left:
        raise MaskRefused(f"its name says {' '.join(sorted(parts))}, and the images that it may belong to are {_list(among)}")
    return left


def _list(names: Collection[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _with_phases(words: Collection[str]) -> set[str]:
    """The words, with `ed` and `es` where they speak of diastole and systole, in whatever form and language."""
    said = set(words)
    said |= {"ed" for word in words if re.match("(end)?diastol", word)}
    return said | {"es" for word in words if re.match("(end)?s[iy]stol", word)}


def _named(part: str, patients: Mapping[str, Patient], series: Mapping[str, str], names: Pseudonyms) -> tuple[set[str], str]:
    """Pseudonyms and series UIDs that the beginning of a name stands for, the longest beginning that does; and the rest."""
    for end in _ends(part):
        beginning = part[:end]
        found = {beginning, names.pseudonym(beginning)} & patients.keys()
        if re.fullmatch(r"[0-9][0-9.]{5,63}", beginning):
            found |= {beginning, names.uid(beginning)} & series.keys()
        if found:
            return found, part[end:]
    return set(), part


def _ends(part: str) -> Iterator[int]:
    """Where a name may be cut: at its end, then at each separator from the last to the first."""
    yield len(part)
    for match in reversed(list(re.finditer(r"[ _.-]", part))):
        if match.start():
            yield match.start()


def _neighbours(path: Path, patients: Mapping[str, Patient]) -> set[str]:
    """Whose images lie in the file's folder or below it."""
    return {
        pseudonym
        for pseudonym, patient in patients.items()
        if any(frame.path.is_relative_to(path.parent) for frames in patient.series.values() for frame in frames)
    }


def words_of(text: str) -> set[str]:
    """Runs of letters or digits, in lower case."""
    return set(re.findall(r"[a-z0-9]+", text.lower()))
