"""From a seed to a complete `Case`: draw the patient, scan every series, let the hospital's reader draw, add the endpoints."""

from __future__ import annotations

from collections.abc import Mapping

from simulation.patient import Patient
from simulation.phantom import draw_patient
from simulation.physique import embodied, physique
from simulation.reader import Reader, endpoint, read
from simulation.scanner import Scanner, Series, scan
from tasks.case import Case, Volume


def patient_case(
    seed: int,
    scanner: Scanner,
    reader: Reader,
    case_mix: Mapping[str, float],
    series: tuple[Series, ...] = ("cine_ed", "cine_es", "lge"),
    *,
    oversampling: int = 2,
    subslices: int = 3,
    bodies: bool = False,
) -> Case:
    """The case of this seed in a hospital with this scanner, reader and case mix; masks are the reader's.

    The pseudonym is `G` and eight digits of the seed. Endpoints: disease, age, sex, ef, edv_ml, time_months, event, and for
    each of the 17 segments of the late enhancement (or of the first series without one) `segment_NN` (truth 0/1), `call_NN`
    (the reader's 0/1) and `certainty_NN` (1..5). With `bodies` also height_cm and weight_kg, and a ventricle that goes with
    them and with age (`physique.py`). Raises `ValueError` without a series or for a case mix that is none.
    """
    if not series:
        raise ValueError("a case needs at least one series, such as ('cine_ed',)")
    patient = draw_patient(seed, case_mix)
    body = physique(patient) if bodies else None
    if body is not None:
        patient = embodied(patient, body)
    volumes: list[Volume] = []
    endpoints: dict[str, float | int | str | None] = {}
    for name in series:
        image = scan(patient, scanner, name, seed=seed, oversampling=oversampling, subslices=subslices)
        reading = read(image, patient, reader, seed=seed)
        volumes.append(Volume(name, image.image, image.affine, reading.mask))
        if name == "lge" or not endpoints:
            months, event = endpoint(patient, image, seed=seed)
            endpoints = {"time_months": months, "event": event}
            for n in range(len(reading.certainty)):
                endpoints[f"segment_{n + 1:02d}"] = int(reading.segments_true[n])
                endpoints[f"call_{n + 1:02d}"] = int(reading.segments_positive[n])
                endpoints[f"certainty_{n + 1:02d}"] = int(reading.certainty[n])
    facts = {**facts_of(patient), **endpoints}
    if body is not None:
        facts |= {"height_cm": body.height_cm, "weight_kg": body.weight_kg}
    return Case(
        patient=f"G{seed:08d}",
        volumes=tuple(volumes),
        endpoints=facts,
        scanner=made_by(scanner),
    )


def facts_of(patient: Patient) -> dict[str, float | int | str | None]:
    """Endpoints that no image is needed for: disease, age, sex, ef, edv_ml."""
    return {
        "disease": patient.disease,
        "age": patient.age,
        "sex": patient.sex,
        "ef": round(patient.ejection_fraction, 4),
        "edv_ml": round(patient.edv_ml, 1),
    }


def made_by(scanner: Scanner) -> dict[str, float | str]:
    """What a case knows of its scanner."""
    return {"manufacturer": scanner.manufacturer, "field_strength_t": scanner.field_strength_t, "modality": "MR"}
