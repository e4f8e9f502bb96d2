"""Which cells a patient is in, what is measured on the masks, and that no patient moves the sum by more than 1."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small import SMALL_TASK

from tasks.case import Case, Volume
from tasks.fingerprint import fingerprint
from tasks.reference_values.measures import Ventricle, body_surface_m2
from tasks.segmentation.infer import segment
from tasks.task import gradient_task, load
from tasks.weights import save

EF = {"name": "ef", "female": [40, 80], "male": [44, 84], "bins": 4}
EDV = {"name": "edv", "indexed": True, "female": [40, 120], "male": [50, 130]}
PRESET = yaml.safe_load((Path(__file__).parents[3] / "conf" / "task" / "reference_values.yaml").read_text())


def reference(*measures, **more):
    return load({"name": "reference_values", "measures": list(measures), "age_edges": [20, 40, 60, 80], **more})


def volume(series, blood, wall, spacing=(10.0, 2.0, 5.0)):
    """A volume with so many voxels of 0.1 ml each."""
    mask = np.zeros(20 * 30 * 40, np.uint8)
    mask[:blood], mask[blood : blood + wall] = 1, 2
    image = np.random.default_rng(0).normal(size=(20, 30, 40)).astype(np.float32)
    return Volume(series, image, np.diag([*spacing, 1.0]), mask.reshape(20, 30, 40))


def case(*, blood=(1000, 400), wall=1200, **endpoints):
    """100 ml filled, 40 ml contracted, 126 g; 1.5 m2."""
    known = {"age": 50, "sex": "F", "height_cm": 150, "weight_kg": 54, **endpoints}
    return Case("p1", (volume("cine_ed", blood[0], wall), volume("cine_es", blood[1], wall)), known)


def cells(task, of):
    """(measure, sex, band, bin) of each of the patient's numbers, found in the vector itself."""
    vector = task.contribution(task.prepare(of))
    found = task.histograms(vector)
    return [(measure.key, *map(int, where)) for measure, counts in found.items() for where in np.argwhere(counts)]


def test_volumes_mass_and_fraction_are_those_of_the_masks():
    found = reference(EF).measured(case())
    assert (found.edv_ml, found.esv_ml) == (pytest.approx(100), pytest.approx(40))
    assert found.mass_g == pytest.approx(120 * 1.05)
    assert found.bsa_m2 == pytest.approx(1.5)
    values = {name: found.value(m) for name in ("edv", "esv", "sv", "ef", "mass") for m in [measure(name)]}
    assert values == pytest.approx({"edv": 100, "esv": 40, "sv": 60, "ef": 60, "mass": 126})
    assert found.value(measure("mass", indexed=True)) == pytest.approx(84)


def measure(name, **more):
    return reference({"name": name, "female": [1, 9], "male": [1, 9], **more}).settings.measures[0]


def test_body_surface_is_mostellers():
    assert body_surface_m2(180, 80) == pytest.approx(2.0)


def test_a_patient_is_in_one_bin_of_each_measure_of_their_sex_and_age():
    task = reference(EDV, EF)
    assert cells(task, case()) == [
        ("edv_index", 0, 1, 2),
        ("ef", 0, 1, 2),
    ]  # 66.7 ml/m2 of 40 to 120 in 8; 60 % of 40 to 80 in 4
    assert cells(task, case(sex="M")) == [("edv_index", 1, 1, 1), ("ef", 1, 1, 1)]  # 60 % is in the men's 54 to 64
    assert [cell[2] for cell in cells(task, case(age=39.9))] == [0, 0]
    assert [cell[2] for cell in cells(task, case(age=60))] == [2, 2]  # an edge belongs to the band above


def test_the_outer_bins_are_open():
    task = reference(EF)
    assert cells(task, case(blood=(1000, 950))) == [("ef", 0, 1, 0)]
    assert cells(task, case(blood=(1000, 10))) == [("ef", 0, 1, 3)]


def test_who_has_no_height_or_weight_counts_where_none_is_needed():
    assert cells(reference(EDV, EF), case(weight_kg=None)) == [("ef", 0, 1, 2)]
    assert cells(reference(EDV, EF), case(height_cm=1.5)) == [("ef", 0, 1, 2)]  # metres, by mistake
    with pytest.raises(ValueError, match="case p1 has no measure that the study counts: all are by body surface area"):
        reference(EDV).prepare(case(weight_kg=None))


@pytest.mark.parametrize(
    ("of", "words"),
    [
        (case(age=None), "case p1 has no age"),
        (case(age="fifty"), "case p1 has no age"),
        (case(sex="O"), "case p1 has no sex"),
        (case(age=80), "case p1 is 80 years old, and the study counts from 20 to below 80"),
        (case(blood=(1000, 1000)), "give 100 ml filled and 100 ml contracted"),
        (case(blood=(1000, 0)), "give 100 ml filled and 0 ml contracted"),
        (Case("p1", case().volumes[:1], case().endpoints), "case p1 has no cine_es"),
    ],
)
def test_who_cannot_be_compared_is_refused_in_words(of, words):
    with pytest.raises(ValueError, match=words):
        reference(EF).prepare(of)


def test_a_mask_on_which_nobody_looked_for_the_cavity_is_none():
    only_wall = tuple(Volume(v.series, v.image, v.affine, v.mask, annotated=(2,)) for v in case().volumes)
    with pytest.raises(ValueError, match="case p1 has no cine_ed that anybody has drawn on"):
        reference(EF).prepare(Case("p1", only_wall, case().endpoints))


@pytest.mark.parametrize("count", range(1, 11))
def test_however_many_measures_no_patient_adds_more_than_length_one(count):
    names = [("ef", False), *((name, indexed) for name in ("edv", "esv", "sv", "mass") for indexed in (False, True))]
    wanted = [{"name": name, "indexed": indexed, "female": [10, 90], "male": [10, 90]} for name, indexed in names][:count]
    task = reference(*wanted)
    vector = task.contribution(task.prepare(case()))
    assert np.count_nonzero(vector) == len(wanted)
    steps = vector * (1 << 30)
    assert (steps == np.rint(steps)).all()
    assert sum(int(step) ** 2 for step in steps) <= (1 << 30) ** 2  # in whole numbers: no rounding decides


def test_cohorts_that_differ_in_one_patient_differ_in_that_vector_alone():
    """Exactly, whatever the others hold: the sum of neighbouring cohorts never lies farther apart than 1."""
    task = load(PRESET)
    rng = np.random.default_rng(1)
    people = [
        Ventricle(
            edv, edv * rng.uniform(0.2, 0.9), rng.uniform(40, 200), rng.uniform(20, 79.9), "FM"[n % 2], rng.uniform(1.4, 2.4)
        )
        for n, edv in enumerate(rng.uniform(60, 300, 60))
    ]
    vectors = [task.contribution({"rows": np.array(task.rows(one))}) for one in people]
    for left_out in range(0, 60, 7):
        whole, without = np.sum(vectors, 0), np.sum([v for n, v in enumerate(vectors) if n != left_out], 0)
        assert np.array_equal(whole - without, vectors[left_out])
        assert 0 < math.fsum((whole - without) ** 2) <= 1


def test_a_sum_is_read_back_as_patients():
    task = reference(EDV, EF)
    counts = task.histograms(sum(task.contribution(task.prepare(case(age=age))) for age in (25, 50, 50)))
    assert [float(found.sum()) for found in counts.values()] == pytest.approx([3, 3])
    assert counts[task.settings.measures[1]][0, 1, 2] == pytest.approx(2)
    with pytest.raises(ValueError, match="these settings count 72 cells"):
        task.histograms(np.zeros(71))


def test_masks_can_be_those_of_a_trained_model(tmp_path):
    torch.manual_seed(0)
    network = gradient_task(SMALL_TASK)
    model = network.model()
    sha = fingerprint(model.state_dict())
    settings = {"masks": {"task": SMALL_TASK, "sha256": sha}}
    with pytest.raises(ValueError, match=f"drawn by the model {sha[:12]}, which this site hasn't got yet"):
        load({"name": "reference_values", "measures": [EF], "age_edges": [20, 40, 80], **settings}, models=tmp_path)
    save(model.state_dict(), tmp_path / f"{sha}.pt")
    task = load({"name": "reference_values", "measures": [EF], "age_edges": [20, 40, 80], **settings}, models=tmp_path)
    of = case()
    drawn = [segment(model.eval(), network.settings, one).mask for one in of.volumes]
    filled, contracted = (0.1 * np.count_nonzero(mask == 1) for mask in drawn)
    if 0 < contracted < filled:
        found = task.measured(of)
        assert (found.edv_ml, found.esv_ml) == (pytest.approx(filled), pytest.approx(contracted))
    else:
        with pytest.raises(ValueError, match=f"{filled:.0f} ml filled and {contracted:.0f} ml contracted"):
            task.measured(of)
    assert task.hash != reference(EF).hash
    other = model.state_dict() | {name: tensor + 1 for name, tensor in list(model.state_dict().items())[:1]}
    save(other, tmp_path / f"{sha}.pt")
    again = load({"name": "reference_values", "measures": [EF], "age_edges": [20, 40, 80], **settings}, models=tmp_path)
    with pytest.raises(ValueError, match="holds other weights than its name says"):
        again.measured(of)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"measures": [{**EF, "female": [80, 40]}]}, "the female range must rise"),
        ({"measures": [{**EF, "indexed": True}]}, "not indexed to body surface"),
        ({"measures": [EF, EF]}, "measures stand twice: ef"),
        ({"age_edges": [20, 60, 40]}, "age_edges must rise"),
        ({"measures": [{**EF, "bins": 64}], "age_edges": list(range(20, 37))}, ""),
        ({"measures": []}, "measures"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    wanted = {"measures": [EF], "age_edges": [20, 40, 60], **settings}
    if not words:  # large, and allowed: 2 x 16 x 64
        assert load({"name": "reference_values", **wanted}).length == 2048
        return
    with pytest.raises(ValueError, match=words):
        load({"name": "reference_values", **wanted})
