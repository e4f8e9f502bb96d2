"""Scans that a learned generator draws: whole patients for masks that were drawn from a seed, and rows for a report.

    python -m simulation.synthetic runs/generator synthetic/ --patients 40 --hospital spree
    python -m simulation.synthetic synthetic/ --case-mix dcm=1      # without a generator: as they are drawn
    python -m simulation.synthetic synthetic/ --intensities runs/intensity_scale       # as bright as the hospitals' images
    python -m simulation.synthetic synthetic/ --protocol pixel_mm=1.6 slice_thickness_mm=10      # and in the hospital's slices

Anatomy and masks are those of free patients (`simulation.pretraining`), of no hospital; the look is what the generator has
learned. What leaves the machine should have passed the gate first (`tasks.synthesis.gate`). A folder keeps to one generator, or
none, and to one set of series: `drawn.json` beside its cases says by whom they were drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from pydantic import ValidationError

from conf.study import words as words_of
from fl_client.cohort import CaseUnreadable, Cohort
from simulation.family import HEARTS
from simulation.gated import in_a_line, read
from simulation.hospital_case import patient_case
from simulation.intensity_scale.worn import dressed, scales_of
from simulation.patient import draw_patient
from simulation.pretraining import CASE_MIX
from simulation.reader import Reader
from simulation.scanner import Scanner, Series, random_scanner
from simulation.scoring import restore
from simulation.whole_file import write_whole
from tasks.case import Case
from tasks.fingerprint import fingerprint
from tasks.intensity_scale.released import IntensityScale
from tasks.segmentation.partial import ANY_OF
from tasks.synthesis import SynthesisTask
from tasks.synthesis.diffusion import look
from tasks.synthesis.volumes import middle
from tasks.task import load

FIRST_SEED = 90_000_000
"""Of those drawn here: none of them is anybody's training or test patient (those lie below)."""

NOTE = "drawn.json"
"""Beside the cases of a folder: by which generator they were drawn."""

SHOWN = 5  # slices of a row

PROTOCOL = (
    *("manufacturer", "field_strength_t", "matrix", "pixel_mm", "slice_thickness_mm", "slice_gap_mm", "apex_first"),
    *("in_plane_rotation_deg", "circular_view", "tr_ms", "flip_deg"),
)
"""What a department knows of its scans without looking at a patient (`simulation.scanner.Scanner`)."""


def free_case(
    number: int,
    series: Sequence[str],
    facts: Mapping[str, Any],
    case_mix: Mapping[str, float] = CASE_MIX,
    protocol: Mapping[str, Any] = MappingProxyType({}),
) -> Case:
    """The free patient of this number, whose masks and surroundings a generator starts from; `facts` of the scanner stand.

    The scanner is the number's own but for what the `protocol` fixes. The same number with another case mix is another patient.
    Raises `ValueError` for a case mix that is none.
    """
    seed = FIRST_SEED + number
    kinds = cast("tuple[Series, ...]", tuple(series))
    scanner = random_scanner(seed).model_copy(update=dict(protocol))
    case = patient_case(seed, scanner, Reader(), case_mix, kinds, oversampling=1, subslices=2)
    return dataclasses.replace(case, scanner={**case.scanner, **facts})


def told_of(scanner: Mapping[str, Any]) -> dict[str, Any]:
    """What a case knows of a hospital's scanner, out of the simulation's settings of it."""
    return {name: scanner[name] for name in ("manufacturer", "field_strength_t") if name in scanner}


def gallery(
    task: SynthesisTask, models: Mapping[str, torch.nn.Module], cohorts: Mapping[str, tuple[Cohort, str]]
) -> dict[str, npt.NDArray[np.float32]]:
    """Rows (slices, rows, columns) of pictures, 0..1.5: of each hospital a patient, and what each model draws in its style.

    `cohorts` names each hospital's cohort and the patient to show. The drawn patient of a hospital is the same for all models.
    """
    found = {}
    for number, (name, (cohort, patient)) in enumerate(cohorts.items()):
        case = cohort.case(patient)
        free = free_case(number, task.settings.series[:1], case.scanner)
        for kind, one in (("patient", case), ("sketch", free)):
            arrays = task.prepare(one)
            first = _shown(arrays["mask"], arrays["volume"] == arrays["volume"][0])  # of one volume
            found[f"{name}/{kind}"] = look(arrays, first, task.settings)[0][:, 0].numpy()
        for arm, model in models.items():
            volume = middle(task.synthetic(model, free, np.random.default_rng([number, 3])).volumes[0], task.settings)
            shown = _shown(np.asarray(volume.mask), np.ones(len(volume.image), bool))
            found[f"{name}/{arm}"] = np.asarray(volume.image[shown], np.float32)
    return found


def _shown(mask: npt.NDArray[np.uint8], wanted: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """Slices from base to apex, of those wanted on which something was drawn: the half where more was drawn comes first."""
    area = ((mask > 0) & (mask < ANY_OF)).reshape(len(mask), -1).sum(axis=1) * wanted
    there = np.flatnonzero(area)
    if area[there[: len(there) // 2]].sum() < area[there[-(len(there) // 2) :]].sum():
        there = there[::-1]
    return there[np.linspace(0, len(there) - 1, SHOWN).round().astype(np.intp)]


def main(argv: Sequence[str] | None = None) -> int:
    """Fill a cohort folder with patients whom a run's generator draws."""
    parser = argparse.ArgumentParser(prog="python -m simulation.synthetic", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run of study=synthesis; left out: as they are drawn")
    parser.add_argument("out", type=Path, help="a cohort folder, which is made; patients that it has are left as they are")
    parser.add_argument("--patients", type=int, default=20, metavar="N", help="(20)")
    parser.add_argument("--hospital", help="in whose style: a hospital of the run, or all in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--case-mix", nargs="+", metavar="DISEASE=SHARE", help="whom to draw: dcm=1, or dcm=2 hcm=1")
    parser.add_argument("--series", nargs="+", default=["cine_ed", "cine_es"], help="without a run (cine_ed cine_es)")
    parser.add_argument("--protocol", nargs="+", default=[], metavar="KEY=VALUE", help=f"of the scanner: {', '.join(PROTOCOL)}")
    parser.add_argument(
        "--intensities", type=Path, nargs="+", default=[], metavar="RUN", help="in the scale of these studies; without a run"
    )
    options = parser.parse_args(argv)
    try:
        mix = _mix(options.case_mix) if options.case_mix else CASE_MIX
        protocol = protocol_of(options.protocol)
        if options.run is None:
            scales = scales_of(options.intensities, options.series)
            as_drawn(
                options.out,
                patients=options.patients,
                series=options.series,
                case_mix=mix,
                scales=scales,
                protocol=protocol,
            )
        elif options.intensities:
            raise ValueError("a generator knows how bright its scans are: --intensities stands without a run")
        else:
            fill(
                options.run,
                options.out,
                patients=options.patients,
                hospital=options.hospital,
                seed=options.seed,
                case_mix=mix,
                protocol=protocol,
            )
    except (ValueError, FileNotFoundError) as error:
        print(f"simulation.synthetic: {error}", file=sys.stderr)
        return 1
    return 0


def _mix(words: Sequence[str]) -> dict[str, float]:
    """Shares by disease. Raises `ValueError` for a word that is none."""
    found = {}
    for word in words:
        disease, _, share = word.partition("=")
        try:
            found[disease] = float(share)
        except ValueError:
            raise ValueError(f"--case-mix wants a disease and its share, such as dcm=1, not {word!r}") from None
    return found


def protocol_of(words: Sequence[str]) -> dict[str, Any]:
    """Settings of a scanner by name. Raises `ValueError` for a word that is none, and for a value that no scanner has."""
    given = {word.partition("=")[0]: word.partition("=")[2] for word in words}
    if strangers := [name for name in given if name not in PROTOCOL]:
        raise ValueError(f"--protocol: no setting named {strangers[0]}; there are {', '.join(PROTOCOL)}")
    try:
        scanner = Scanner.model_validate(given)
    except ValidationError as error:
        raise ValueError("\n".join(f"--protocol: {line}" for line in words_of(error).splitlines())) from None
    return {name: getattr(scanner, name) for name in given}


def as_drawn(
    out: Path,
    *,
    patients: int,
    series: Sequence[str],
    case_mix: Mapping[str, float],
    scales: Sequence[IntensityScale] = (),
    protocol: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Put so many free patients into a cohort.

    Raises `ValueError`, in words, for no patients, series or case mix there is, and for a folder of cases drawn otherwise.
    """
    _require_some(patients)
    if unknown := sorted(set(series) - set(HEARTS.series)):
        raise ValueError(f"no heart has the series {', '.join(unknown)}; there are {', '.join(HEARTS.series)}")
    _require_mix(case_mix)
    _keep_to(out, None, series)
    new = _admit(out, patients, lambda number: dressed(free_case(number, series, {}, case_mix, protocol), number, scales))
    print(f"{patients} patients in {out}, drawn from seeds {FIRST_SEED} to {FIRST_SEED + patients - 1}: they are nobody's")
    _tell_old(patients - new)
    for scale in scales if new else ():
        print(f"  their brightness is that of hospitals: {scale.words}")


def fill(
    run: Path,
    out: Path,
    *,
    patients: int,
    hospital: str | None = None,
    seed: int = 0,
    case_mix: Mapping[str, float] = CASE_MIX,
    protocol: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Draw so many patients into a cohort, in the style of a hospital of the run but for what the protocol fixes.

    Raises `ValueError`, in words, for a run without a generator or such a hospital, for a case mix that is none, and for a
    folder of cases drawn otherwise.
    """
    _require_some(patients)
    path = run / "settings.json"
    if not path.exists() or not (run / "model.pt").exists():
        raise ValueError(f"{run} is no folder of a finished run: it lacks settings.json or model.pt")
    settings = json.loads(path.read_text())
    task = load(settings["task"])
    if not isinstance(task, SynthesisTask):
        raise ValueError(f"{run} learned task {settings['task'].get('name')}, which draws no scans; study=synthesis does")
    sites = settings["hospitals"].get("sites", {})
    names = [hospital] if hospital is not None else list(sites)
    if strangers := [name for name in names if name not in sites]:
        raise ValueError(f"the run has no hospital {strangers[0]}; it has {', '.join(sites)}")
    _require_mix(case_mix)
    state = torch.load(run / "model.pt", weights_only=True)
    model = restore(task, [state])
    _keep_to(out, fingerprint(state), task.settings.series)

    def drawn(number: int) -> Case:
        facts = told_of({**sites[names[number % len(names)]]["scanner"], **protocol})
        case = free_case(number, task.settings.series, facts, case_mix, protocol)
        return task.synthetic(model, case, np.random.default_rng([seed, number]))

    new = _admit(out, patients, drawn)
    print(f"{patients} patients in {out}")
    _tell_old(patients - new)
    print(in_a_line(read(run)))


def _require_some(patients: int) -> None:
    if patients < 1:
        raise ValueError(f"--patients is a number from 1 on, not {patients}")


def _require_mix(case_mix: Mapping[str, float]) -> None:
    """Raise `ValueError` for a case mix that is none, before a folder is made."""
    try:
        draw_patient(FIRST_SEED, case_mix)
    except ValueError as error:
        raise ValueError(str(error).replace("case_mix", "--case-mix", 1)) from None


def _keep_to(out: Path, generator: str | None, series: Sequence[str]) -> None:
    """Note beside the first cases by which generator (fingerprint; None: without one) they are drawn.

    Raises `ValueError` where those that are there were drawn otherwise, as far as the note tells, or have other series.
    """
    there = Cohort(out).patients if (out / "cases").is_dir() else ()
    note = out / NOTE
    if not there:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(note, json.dumps({"generator": generator}))
        return
    if note.exists() and (before := _noted(note)) != generator:
        was, now = (f"by generator {name[:12]}" if name else "without a generator" for name in (before, generator))
        raise ValueError(f"the cases in {out} were drawn {was}, and these would be {now}: draw them into another folder")
    try:
        has = sorted(volume.series for volume in Cohort(out).case(there[0]).volumes)
    except CaseUnreadable as unreadable:
        raise ValueError(f"{unreadable}; nothing was drawn") from None
    if has != (wanted := sorted(series)):
        raise ValueError(
            f"the cases in {out} have {', '.join(has)}, and these would have {', '.join(wanted)}: draw them into another folder"
        )


def _noted(note: Path) -> str | None:
    try:
        generator: str | None = json.loads(note.read_text())["generator"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{note} is not what was written there: by whom the cases were drawn can't be told") from None
    return generator


def _tell_old(count: int) -> None:
    if count:
        print(f"  {count} of them were there, and stay as they were drawn then")


def _admit(out: Path, patients: int, drawn: Callable[[int], Case]) -> int:
    """Put the patients of these numbers into a cohort, but for those that it has. Returns how many are new."""
    cohort = Cohort(out)
    there = set(cohort.patients)
    missing = [number for number in range(patients) if f"G{FIRST_SEED + number:08d}" not in there]
    for done, number in enumerate(missing, start=1):
        cohort.admit(drawn(number))
        print(f"patient {done} of {len(missing)}", end="\r", file=sys.stderr, flush=True)
    return len(missing)


if __name__ == "__main__":
    sys.exit(main())
