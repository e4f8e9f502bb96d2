"""Hospitals' word about a segmentation: what one patient adds, and what a noisy sum tells."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from fl_client.privacy import noisy_total, seeded_noise
from tasks.case import UNKNOWN, Case
from tasks.segmentation import build
from tasks.segmentation.judge import dices, vector

TWO = {"structures": {"blood_pool": 1, "myocardium": 2}, "keep_largest": False}
THREE = build({"roi_mm": None})


def prepared(task, *volumes, patient="p"):
    return task.prepare(Case(patient, volumes))


def without_noise(vectors, length):
    return noisy_total(vectors, length=length, bound=1.0, noise_multiplier=0.0, noise=seeded_noise(0))


def test_the_dice_of_prepared_arrays_is_that_of_the_images(toy_heart, threshold):
    """The stored grid is coarser than this image's; the score on the image's own grid is the reference."""
    for settings in (TWO, TWO | {"roi_mm": None}):
        task = build(settings)
        case = Case("p", (toy_heart(noise=0.02), toy_heart("cine_es", radius_mm=16, noise=0.02, seed=1)))
        model = torch.nn.Sequential(threshold)
        model.register_parameter("nothing", torch.nn.Parameter(torch.zeros(1)))
        found = dices(model, task.settings, task.prepare(case))
        scores = task.score(model, case, full=False)
        for name in TWO["structures"]:
            assert found[name] == pytest.approx(scores[f"dice/{name}"], abs=0.02)
        assert min(found.values()) > 0.85


def test_a_structure_that_the_masks_can_not_judge_is_not_judged(toy_heart, threshold):
    task = build({"structures": {"blood_pool": 1, "myocardium": 2, "right_ventricle": 3}, "roi_mm": None})
    model = torch.nn.Sequential(threshold, Third())
    model.register_parameter("nothing", torch.nn.Parameter(torch.zeros(1)))
    whole = toy_heart()
    assert set(dices(model, task.settings, prepared(task, whole))) == {"blood_pool", "myocardium"}
    unknown = dataclasses.replace(whole, mask=np.where(whole.mask == 1, 1, UNKNOWN).astype(np.uint8))
    assert dices(model, task.settings, prepared(task, unknown)) == {}  # blood is drawn, and nothing of what surrounds it


class Third(torch.nn.Module):
    """One class more, never found."""

    def forward(self, logits):
        return torch.cat((logits, torch.full_like(logits[:, :1], -100)), 1)


def test_the_mean_over_volumes_counts_each_volume_once(toy_heart, threshold):
    task = build(TWO | {"roi_mm": None})
    model = torch.nn.Sequential(threshold)
    model.register_parameter("nothing", torch.nn.Parameter(torch.zeros(1)))
    clear, broken = toy_heart(), toy_heart("cine_es", slices=12)
    broken = dataclasses.replace(broken, mask=np.where(broken.mask == 1, 2, broken.mask).astype(np.uint8))
    both = dices(model, task.settings, prepared(task, clear, broken))
    apart = [dices(model, task.settings, prepared(task, volume)) for volume in (clear, broken)]
    assert both["myocardium"] == pytest.approx(np.mean([one["myocardium"] for one in apart]))
    assert both["blood_pool"] == apart[0]["blood_pool"]
    assert "blood_pool" not in apart[1]


def test_whatever_a_patient_holds_the_vector_is_no_longer_than_one():
    names = list(THREE.settings.structures)
    longest = 0.0
    for values in itertools.product((None, 0.0, 0.3, 0.5, 1.0, 1.7, -2.0), repeat=3):
        dice = {name: value for name, value in zip(names, values, strict=True) if value is not None}
        found = vector(dice, THREE.settings)
        assert found.shape == (THREE.judgement_length,) == (6,)
        assert all(float(value * 2**30).is_integer() for value in found)  # sums of them are exact
        longest = max(longest, float(np.linalg.norm(found)))
    assert 0.999 < longest <= 1
    for structures in (1, 2, 5, 8, 32):
        settings = build({"structures": {f"s{n}": n + 1 for n in range(structures)}, "locate": []}).settings
        assert np.linalg.norm(vector({f"s{n}": n % 2 for n in range(structures)}, settings)) <= 1


def test_neighbouring_cohorts_differ_by_one_at_most_with_the_noise_off(toy_heart):
    """Any patient may be the one that is added: one without structures, one of noise, one with a thousand slices' worth."""
    torch.manual_seed(0)
    task = build(TWO | {"channels": [4, 8], "strides": [2], "voxels": 16, "roi_mm": None, "working_mm": 4, "head_channels": 4})
    state = task.model().state_dict()
    volumes = [
        (toy_heart(),),
        (toy_heart(slices=60), toy_heart("cine_es", slices=60)),
        (dataclasses.replace(toy_heart(), mask=np.zeros((6, 150, 130), np.uint8)),),
        (toy_heart(noise=5.0, seed=3),),
        (toy_heart(radius_mm=2, wall_mm=90),),
    ]
    vectors = [task.judgement(state, prepared(task, *found, patient=f"p{n}")) for n, found in enumerate(volumes)]
    whole = without_noise(vectors, task.judgement_length)
    for left_out in range(len(vectors)):
        without = without_noise(vectors[:left_out] + vectors[left_out + 1 :], task.judgement_length)
        assert np.linalg.norm(whole - without) <= 1
        assert np.array_equal(whole - without, vectors[left_out])  # nobody's presence moves what another adds


def test_without_noise_a_sum_tells_the_mean_dice_to_the_digit():
    names = list(THREE.settings.structures)
    patients = [dict.fromkeys(names, 0.9), {names[0]: 0.5, names[1]: 0.1}, {names[0]: 0.7}, {}]
    told = THREE.scores(sum(vector(dice, THREE.settings) for dice in patients), 0.0)
    assert next(iter(told)) == "dice"
    assert told["dice"] == pytest.approx(np.mean([0.9, 0.9, 0.9, 0.5, 0.1, 0.7]), abs=1e-8)
    assert [told[f"dice/{name}"] for name in names] == pytest.approx([0.7, 0.5, 0.9], abs=1e-8)
    assert [told[f"patients/{name}"] for name in names] == pytest.approx([3, 2, 1], abs=1e-7)
    assert all(told[f"noise_sd/{name}"] == 0 for name in ("dice", *(f"dice/{name}" for name in names)))
    assert set(THREE.metrics) <= set(told)


def test_nobody_and_nobodys_labels_tell_nothing():
    assert THREE.scores(np.zeros(6), 0.0) == {}
    only = vector({"myocardium": 0.8}, THREE.settings)
    told = THREE.scores(only, 0.0)
    assert {name for name in told if name.startswith("dice")} == {"dice", "dice/myocardium"}


@pytest.mark.parametrize("dice", [0.2, 0.5, 0.9])
def test_the_error_that_is_told_is_the_error_that_the_noise_makes(dice):
    """4000 draws of noise on the sum over 150 patients, against the deviation that stands beside the score."""
    names = list(THREE.settings.structures)
    exact = 150 * vector(dict.fromkeys(names, dice), THREE.settings)
    rng, std = np.random.default_rng(0), 4.0
    found = [THREE.scores(exact + rng.normal(0, std, 6), std) for _ in range(4000)]
    for name in ("dice", "dice/myocardium"):
        values = np.array([one[name] for one in found])
        said = np.median([one[f"noise_sd/{name}"] for one in found])
        assert values.mean() == pytest.approx(dice, abs=0.01)
        assert values.std() == pytest.approx(said, rel=0.1)


def test_what_the_noise_drowns_is_not_told():
    names = list(THREE.settings.structures)
    exact = 20 * vector(dict.fromkeys(names, 0.9), THREE.settings)
    noise_on_count = 4.0 * math.sqrt(6)
    assert 3 * noise_on_count > 20 > 3 * noise_on_count / math.sqrt(3)  # each alone is drowned, all together are not
    told = THREE.scores(exact, 4.0)
    assert set(told) == {"dice", "noise_sd/dice"}
    assert THREE.scores(exact, 8.0) == {}
    far = THREE.scores(np.array([9.0, 9, 9, 30, 30, 30]), 1.0)
    assert far["dice"] == 1  # cut to what a Dice can be


@pytest.mark.parametrize(("total", "std"), [(np.zeros(5), 0.0), (np.full(6, np.nan), 0.0), (np.zeros(6), -1.0)])
def test_what_is_no_sum_is_refused(total, std):
    with pytest.raises(ValueError, match=r"must be 0 or a positive number|finite numbers"):
        THREE.scores(total, std)


def test_one_network_serves_all_patients_of_a_state_and_another_state_gets_its_own(toy_heart):
    torch.manual_seed(0)
    task = build(TWO | {"roi_mm": None})
    arrays = prepared(task, toy_heart())
    first, second = (task.model().state_dict() for _ in range(2))
    a, b, again = (task.judgement(state, arrays) for state in (first, second, first))
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)


@pytest.mark.parametrize("noise_std", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("number", [1.7e308, -1.7e308, 1e200])
def test_what_is_read_from_sums_that_nobody_can_have_is_finite(number, noise_std):
    for place in range(6):
        total = np.full(6, 3.0)
        total[place] = number
        told = THREE.scores(total, noise_std)
        assert np.isfinite(list(told.values())).all()
        assert all(0 <= value <= 1 for name, value in told.items() if name.startswith("dice"))
    assert np.isfinite(list(THREE.scores(np.full(6, number), noise_std).values())).all()
