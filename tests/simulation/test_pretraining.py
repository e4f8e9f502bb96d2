import numpy as np
import pytest
import torch

from simulation import pretraining
from simulation.fresh import fresh_cases
from simulation.machine import Immediately
from simulation.settings import Pretraining
from tasks.case import UNKNOWN
from tasks.task import load

TASK = {
    "name": "segmentation",
    "series": ["cine_ed"],
    "voxels": 16,
    "field_mm": 160,
    "roi_mm": None,
    "working_mm": 8,
    "channels": [4, 8],
    "strides": [2],
    "num_res_units": 0,
    "head_channels": 4,
}
SETTINGS = Pretraining(patients=2, steps=60, batch_patients=2, views=4, learning_rate=0.02, ema_decay=0.9, subslices=1)


@pytest.fixture(autouse=True)
def one_core(monkeypatch, one_thread):
    monkeypatch.setattr(pretraining, "THREADS", 1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def pretrain(cache, *, advance=lambda what, done, total: None, **changes):
    settings = SETTINGS.model_copy(update=changes)
    return pretraining.pretrain(TASK, settings, ("cine_ed",), cache=cache, pool=Immediately(), advance=advance)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def mean_loss(state, cohort):
    """Cross-entropy of the true class, by torch alone, on views that both models get to see."""
    task = load(TASK)
    model = task.model()
    model.load_state_dict(state)
    losses = []
    for patient in cohort.patients:
        image, target = task.example(cohort.prepared(task, patient), 16, np.random.default_rng(1))
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(model(image), target, ignore_index=UNKNOWN).item())
    return sum(losses) / len(losses)


def free_cohort(cache):
    return pretraining.free_cohort(SETTINGS, ("cine_ed",), cache=cache, pool=Immediately(), advance=lambda *_: None)


def test_the_loss_falls(cache):
    torch.manual_seed(SETTINGS.first_seed)
    fresh = load(TASK).model().state_dict()
    trained = pretrain(cache)
    assert mean_loss(trained, free_cohort(cache)) < 0.6 * mean_loss(fresh, free_cohort(cache))


def test_the_second_call_neither_draws_nor_trains(cache, monkeypatch):
    first = pretrain(cache)

    def never(*args, **more):
        raise AssertionError("this was done already")

    monkeypatch.setattr(pretraining, "patient_case", never)
    monkeypatch.setattr(torch.optim, "Adam", never)
    seen = []
    assert equal(pretrain(cache, advance=lambda *progress: seen.append(progress)), first)
    assert seen == [("pre-training", 60, 60)]


def test_equal_settings_give_equal_weights_and_other_settings_others(cache, tmp_path):
    first = pretrain(cache, steps=5)
    assert equal(pretrain(tmp_path, steps=5), first)
    assert not equal(pretrain(cache, steps=6), first)
    assert not equal(pretrain(cache, steps=5, learning_rate=0.01), first)


def test_no_steps_are_the_fresh_weights(cache):
    found = pretrain(cache, steps=0)
    torch.manual_seed(SETTINGS.first_seed)
    assert equal(found, load(TASK).model().state_dict())


def test_patients_are_drawn_once_for_all_trainings_and_only_the_missing_ones(tmp_path, monkeypatch):
    drawn, draw = [], pretraining.patient_case

    def counted(seed, **settings):
        drawn.append(seed)
        return draw(seed, **settings)

    monkeypatch.setattr(pretraining, "patient_case", counted)
    pretrain(tmp_path, steps=1)
    pretrain(tmp_path, steps=2)
    assert drawn == [50_000_000, 50_000_001]
    gone = next((tmp_path / "free").rglob("G50000001"))
    gone.rename(tmp_path / "taken away")
    pretrain(tmp_path, steps=3)
    assert drawn == [50_000_000, 50_000_001, 50_000_001]


def test_training_that_was_interrupted_goes_on_from_its_checkpoint_to_the_same_weights(cache, tmp_path):
    steps, seen = 510, []

    def interrupt(what, done, total):
        if what == "pre-training":
            seen.append(done)
            if done == 505 and seen.count(505) == 1:
                raise KeyboardInterrupt

    few = {"steps": steps, "batch_patients": 1, "views": 1}
    expected = pretrain(cache, **few)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, advance=interrupt, **few)
    assert len(list(tmp_path.rglob("checkpoint.pt"))) == 1
    seen.clear()
    seen.append(505)
    found = pretrain(tmp_path, advance=interrupt, **few)
    assert seen[1:] == list(range(501, 511))  # a checkpoint lies at step 500
    assert equal(found, expected)
    assert list(tmp_path.rglob("checkpoint.pt")) == []


def test_every_free_patient_has_a_reader_of_its_own_with_the_stated_mean_habits():
    readers = [pretraining._reader(seed) for seed in range(400)]
    assert readers[7] == pretraining._reader(7)
    outwards = np.array([reader.contour_bias_mm for reader in readers])
    epicardium = np.array([reader.epicardial_bias_mm for reader in readers])
    assert np.mean(outwards) == pytest.approx(0.5, abs=0.1)  # four standard errors of 0.5 / sqrt(400)
    assert np.mean(epicardium) == pytest.approx(-1.0, abs=0.1)
    assert np.std(outwards) == pytest.approx(0.5, abs=0.1)
    assert abs(np.corrcoef(outwards, epicardium)[0, 1]) < 0.2


# -- scanned anew in every step ------------------------------------------------------------------------------------------


def test_a_training_on_fresh_scans_repeats_and_is_another_one(tmp_path):
    first = pretrain(tmp_path / "one", steps=4, rescan=True)
    assert equal(pretrain(tmp_path / "two", steps=4, rescan=True), first)
    assert not equal(pretrain(tmp_path / "one", steps=4), first)


def test_a_training_on_fresh_scans_goes_on_from_its_checkpoint_to_the_same_weights(tmp_path, monkeypatch):
    few = {"steps": 501, "batch_patients": 1, "views": 1, "rescan": True}
    monkeypatch.setattr(pretraining, "fresh_cases", quick(pretraining.fresh_cases))
    expected = pretrain(tmp_path / "whole", **few)

    def interrupt(what, done, total):
        if what == "pre-training" and done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # before the checkpoint of step 500: begins anew
        pretrain(tmp_path / "broken", advance=interrupt, **few)

    def too_late(what, done, total):
        if what == "pre-training" and done == 501:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path / "broken", advance=too_late, **few)
    assert len(list(tmp_path.rglob("checkpoint.pt"))) == 1
    assert equal(pretrain(tmp_path / "broken", **few), expected)


def quick(cases):
    """Fresh cases of the first 3 draws only, chosen by the step's chances: five hundred scans would take long."""
    made = {}

    def found(patients, reader_of, *, rng, **settings):
        number = int(rng.integers(3))
        if number not in made:
            made[number] = cases(patients[:1], reader_of, rng=np.random.default_rng(number), **settings)
        return made[number]

    return found


def test_only_hearts_are_scanned_anew(tmp_path):
    with pytest.raises(ValueError, match="only generated hearts"):
        pretraining.pretrain(
            {**TASK, "series": ["t1"]},
            SETTINGS.model_copy(update={"rescan": True}),
            ("t1",),
            cache=tmp_path,
            pool=Immediately(),
            advance=lambda *_: None,
        )


def test_a_fresh_case_is_one_series_from_base_to_apex_with_a_mask(tmp_path):
    scenes = pretraining._draw_scenes(50_000_000, ("cine_ed", "cine_es"), 1, 1)[1]
    draws = [
        fresh_cases([scenes], pretraining._reader, slices=4, rng=np.random.default_rng(n), device=torch.device("cpu"))[0]
        for n in (0, 1, 2, 3, 4, 5, 0)
    ]
    assert {case.volumes[0].series for case in draws} == {"cine_ed", "cine_es"}
    for case in draws:
        (volume,) = case.volumes
        assert 4 <= len(volume.image) < len(scenes["cine_ed"].code)
        assert {1, 2} <= set(np.unique(volume.mask))
    assert np.array_equal(draws[0].volumes[0].image, draws[-1].volumes[0].image)
    assert len({case.volumes[0].image.tobytes() for case in draws}) == 6
