"""Bodies of generated patients: plausible, of a stream of their own, and nothing else changes for who doesn't ask for them."""

from dataclasses import fields

import numpy as np
import pytest

from simulation.hospital_case import patient_case
from simulation.patient import draw_patient
from simulation.physique import embodied, physique
from simulation.reader import Reader
from simulation.scanner import Scanner

COARSE = Scanner(matrix=64, pixel_mm=4, slice_thickness_mm=10)


@pytest.fixture(scope="module")
def people():
    """Patients as drawn, their bodies, and the same patients with a heart for them."""
    drawn = [draw_patient(seed, {"normal": 1.0}) for seed in range(1500)]
    bodies = [physique(patient) for patient in drawn]
    return drawn, bodies, [embodied(patient, body) for patient, body in zip(drawn, bodies, strict=True)]


def case(seed, **more):
    return patient_case(seed, COARSE, Reader(), {"normal": 1.0}, ("cine_ed",), oversampling=1, subslices=1, **more)


def test_a_body_is_the_same_each_time_and_moves_no_other_draw():
    before = draw_patient(7, {"normal": 1.0})
    assert physique(before) == physique(draw_patient(7, {"normal": 1.0}))
    physique(before)
    assert draw_patient(7, {"normal": 1.0}) == before
    assert physique(draw_patient(8, {"normal": 1.0})) != physique(before)


def test_only_volume_length_and_wall_follow_the_body(people):
    drawn, _, grown = people
    changed = {
        field.name
        for one, other in zip(drawn, grown, strict=True)
        for field in fields(one)
        if getattr(one, field.name) != getattr(other, field.name)
    }
    assert changed == {"edv_ml", "length_mm", "wall_mm"}


@pytest.mark.parametrize(("sex", "height", "index", "spread"), [("F", 163, 76, 10), ("M", 177, 81, 12)])
def test_indexed_volumes_are_of_the_published_order(people, sex, height, index, spread):
    """Kawel-Boehm et al. 2015, JCMR 17:29: 76 +- 10 and 81 +- 12 ml/m2."""
    _, bodies, grown = people
    found = [(body, one) for body, one in zip(bodies, grown, strict=True) if one.sex == sex]
    per_m2 = np.array([one.edv_ml / body.surface_m2 for body, one in found])
    assert np.mean([body.height_cm for body, _ in found]) == pytest.approx(height, abs=1)
    assert per_m2.mean() == pytest.approx(index, rel=0.05)
    assert per_m2.std() == pytest.approx(spread, rel=0.25)


def test_hearts_are_smaller_with_age_and_larger_in_larger_bodies(people):
    _, bodies, grown = people
    for sex in "FM":
        ages, surfaces, volumes = np.array(
            [(one.age, body.surface_m2, one.edv_ml) for body, one in zip(bodies, grown, strict=True) if one.sex == sex]
        ).T
        with_age, with_size = np.linalg.lstsq(
            np.stack([ages - 48, np.log(surfaces), np.ones(len(ages))], 1), np.log(volumes), rcond=None
        )[0][:2]
        assert with_age == pytest.approx(-0.005, abs=0.0015)
        assert with_size == pytest.approx(1.0, abs=0.2)


def test_a_case_has_height_and_weight_only_where_it_is_asked_for():
    plain, again, with_body = case(5), case(5, bodies=False), case(5, bodies=True)
    assert plain.endpoints == again.endpoints
    assert np.array_equal(plain.volumes[0].image, again.volumes[0].image)
    body = physique(draw_patient(5, {"normal": 1.0}))
    assert dict(with_body.endpoints).items() >= {"height_cm": body.height_cm, "weight_kg": body.weight_kg}.items()
    assert "height_cm" not in plain.endpoints
    assert {name: with_body.endpoints[name] for name in ("age", "sex", "ef", "disease")} == {
        name: plain.endpoints[name] for name in ("age", "sex", "ef", "disease")
    }
