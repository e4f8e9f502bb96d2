"""A whole study of an intensity scale: drawn hospitals count, and generated patients wear what came of it."""

import json
import shutil

import numpy as np
import pytest
import torch

from fl_client.cohort import Cohort
from fl_client.privacy import calibrate
from fl_server.record import Record
from simulation import free, pretraining, starting, synthetic, uncertainty
from simulation.__main__ import main, settings_of
from simulation.intensity_scale.worn import dressed, scale_of
from simulation.machine import Immediately
from simulation.settings import Pretraining
from tasks.intensity_scale.scale import landmarks
from tasks.task import load
from tasks.uncertainty.examine import examine

HOSPITALS = ("isar", "rhein")
SMALL = [
    *(f"~hospitals.sites.{name}" for name in ("alster", "donau", "spree")),
    "~hospitals.held_out.limmat",
    *(f"hospitals.sites.{name}.scanner.{key}" for name in HOSPITALS for key in ("matrix=64", "pixel_mm=4")),
    *("hospitals.patients=8", "hospitals.oversampling=1", "hospitals.subslices=1", "workers=0"),
]
GREY = [*SMALL, "study=intensity_scale", "size=small", "name=grey", "secure=null", "privacy.epsilon=40"]
TINY_NET = {
    **{"name": "segmentation", "series": ["cine_ed"], "voxels": 16, "field_mm": 160, "roi_mm": None, "working_mm": 8},
    **{"channels": [4, 8], "strides": [2], "num_res_units": 0, "head_channels": 4},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of runs, with one of them."""
    folder = tmp_path_factory.mktemp("runs")
    assert main([*GREY, f"runs_folder={folder}"]) == 0
    return folder


def test_the_federation_counts_once_and_every_hospital_pays(runs):
    record = Record.read(runs / "grey" / "record.json")
    assert record.verdict == "complete"
    assert len(record.rounds) == 1
    for name in HOSPITALS:
        lines = (runs / "grey" / "ledgers" / f"{name}.jsonl").read_text().splitlines()
        (entry,) = [line["event"] for line in map(json.loads, lines)]
        assert entry["noise_multiplier"] == pytest.approx(calibrate(epsilon=40.0, delta=1e-3, sample_rate=1.0, steps=1))
        assert record.sites[name].epsilon == pytest.approx(40, rel=0.01)


def test_the_scale_is_the_hospitals_but_for_the_noise(runs):
    scale = scale_of(runs / "grey")
    facts = json.loads((runs / "grey" / "intensity_facts.json").read_text())
    exact = np.mean([facts["hospitals"][name] for name in HOSPITALS], axis=0)
    assert scale.hospitals == HOSPITALS
    assert np.abs(np.array(scale.landmarks) - exact).mean() < 0.05
    low, high = np.array(scale.interval)
    assert ((low - 0.02 <= exact) & (exact <= high + 0.02)).all()


def test_the_report_shows_the_curve_and_the_pictures(runs, capsys):
    text = (runs / "grey" / "report.html").read_text()
    assert "the intensity scale of study grey" in text
    assert text.count("data:image/png;base64,") == 1 + 2 * 6 + len(HOSPITALS)
    assert "In numbers" in text
    clinical = (runs / "grey" / "clinical_report.html").read_text()
    assert "counted together how bright their images are" in clinical
    assert main([*GREY, f"runs_folder={runs}"]) == 0
    said = capsys.readouterr().out
    assert f"konsil-simulate pretraining.intensities=[{runs / 'grey'}]" in said
    low, high = np.array(scale_of(runs / "grey").interval)
    assert f"95 % intervals are up to {(high - low).max():.2f} wide" in said


def test_the_preset_masks_the_sums_and_has_one_noise_for_all(runs):
    donau = ["hospitals.sites.donau.scanner.matrix=64", "hospitals.sites.donau.scanner.pixel_mm=4"]
    masked = [word for word in GREY if word not in ("secure=null", "~hospitals.sites.donau")]
    assert main([*masked, *donau, f"runs_folder={runs}", "name=masked"]) == 0
    scale = scale_of(runs / "masked")
    facts = json.loads((runs / "masked" / "intensity_facts.json").read_text())
    exact = np.mean([facts["hospitals"][name] for name in ("donau", *HOSPITALS)], axis=0)
    assert "one noise for all" in scale.words
    assert np.abs(np.array(scale.landmarks) - exact).mean() < 0.05
    record = Record.read(runs / "masked" / "record.json")
    assert all(0 < record.sites[name].epsilon <= 40 for name in HOSPITALS)


def test_free_patients_wear_it_in_turn(runs):
    scale = scale_of(runs / "grey")
    other = scale.model_copy(update={"landmarks": tuple(value**3 for value in scale.landmarks)})
    case = synthetic.free_case(0, ("cine_ed",), {})
    for number, worn in ((0, scale), (1, other), (2, scale)):
        found = landmarks(dressed(case, number, [scale, other]).volumes[0], scale.settings)
        assert found == pytest.approx(worn.landmarks, abs=0.01)
    assert dressed(case, 0, []) is case


@pytest.mark.parametrize("rescan", [False, True])
def test_pre_training_sees_its_patients_in_the_scale(runs, tmp_path, monkeypatch, one_thread, rescan):
    monkeypatch.setattr(pretraining, "THREADS", 1)
    bare = Pretraining(patients=2, steps=1, batch_patients=2, views=1, subslices=1, rescan=rescan)
    seen = []
    task = type(load(TINY_NET))
    prepare = task.prepare

    def looked_at(self, case):
        seen.append(landmarks(case.volumes[0], scale.settings))
        return prepare(self, case)

    scale = scale_of(runs / "grey")
    monkeypatch.setattr(task, "prepare", looked_at)

    def weights(settings):
        pool, nobody = Immediately(), lambda *_: None
        return pretraining.pretrain(TINY_NET, settings, ("cine_ed",), cache=tmp_path, pool=pool, advance=nobody)

    drawn = weights(bare)
    worn = weights(bare.model_copy(update={"intensities": (str(runs / "grey"),)}))
    assert any((drawn[name] != worn[name]).any() for name in drawn)
    for found in seen[-2:]:
        assert found == pytest.approx(scale.landmarks, abs=0.02)
    assert not np.allclose(seen[0], scale.landmarks, atol=0.02)


def test_a_start_from_such_patients_says_so(runs, tmp_path, monkeypatch, one_thread):
    monkeypatch.setattr(pretraining, "THREADS", 1)
    tiny = ["task.voxels=16", "task.roi_mm=null", "task.field_mm=160", "task.working_mm=8", "task.channels=[4,8]"]
    tiny += ["task.strides=[2]", "task.num_res_units=0", "pretraining.steps=1", "pretraining.patients=1"]
    simulation = settings_of([*SMALL, *tiny, "size=small", "name=worn", f"pretraining.intensities=[{runs / 'grey'}]"])
    pool, nobody = Immediately(), lambda *_: None
    starting.start(simulation, tmp_path, cache=tmp_path, pool=pool, advance=nobody)
    said = json.loads((tmp_path / "start.json").read_text())["source"]
    assert "they wear the intensity scale of study grey" in said
    assert "under epsilon 40 at delta 0.001, noise at each hospital" in said


def test_patients_to_filter_noise_by_wear_it_too(runs, tmp_path):
    asked = Pretraining(patients=1, steps=1, subslices=1)
    pool, nobody = Immediately(), lambda *_: None

    def image(settings):
        found = free.references(TINY_NET, settings, ("cine_ed",), cache=tmp_path, pool=pool, advance=nobody)
        return found["G50000000/image"].float().numpy()

    drawn, worn = image(asked), image(asked.model_copy(update={"intensities": (str(runs / "grey"),)}))
    assert np.abs(drawn - worn).max() > 0.02
    assert np.corrcoef(drawn.ravel(), worn.ravel())[0, 1] > 0.9  # the same patient


def test_patients_to_calibrate_by_wear_it_too(runs, tmp_path, monkeypatch, one_thread):
    """A model that began with patients in the scale is calibrated by others in the scale."""
    seen = []

    def looked_at(members, settings, volume):
        seen.append(landmarks(volume, scale.settings))
        return examine(members, settings, volume)

    scale = scale_of(runs / "grey")
    monkeypatch.setattr(uncertainty, "examine", looked_at)
    torch.save(load(TINY_NET).model().state_dict(), tmp_path / "model.pt")
    pool, nobody = Immediately(), lambda *_: None
    for folders in ((), (str(runs / "grey"),)):
        drawn = Pretraining(patients=1, steps=1, subslices=1, intensities=folders)
        simulation = settings_of([*SMALL, "size=small"]).model_copy(update={"task": TINY_NET, "pretraining": drawn})
        uncertainty.measure(simulation, tmp_path, [], cache=tmp_path, pool=pool, advance=nobody, learned_from=1, members=2)
    bare, worn = seen
    assert worn == pytest.approx(scale.landmarks, abs=0.01)
    assert np.abs(bare - worn).max() > 0.02


def test_cases_to_learn_from_beside_patients_wear_it_too(runs, tmp_path, capsys):
    out = tmp_path / "made"
    arguments = [str(out), "--patients", "2", "--series", "cine_ed", "--intensities", str(runs / "grey")]
    assert synthetic.main(arguments) == 0
    assert "their brightness is that of hospitals: the intensity scale of study grey" in capsys.readouterr().out
    assert synthetic.main(arguments) == 0
    said = capsys.readouterr().out
    assert "2 of them were there, and stay as they were drawn then" in said
    assert "brightness" not in said
    scale = scale_of(runs / "grey")
    for case in Cohort(out):
        assert landmarks(case.volumes[0], scale.settings) == pytest.approx(scale.landmarks, abs=0.01)
        assert case.volumes[0].mask.any()
    assert synthetic.main([str(tmp_path / "late"), "--series", "lge", "--intensities", str(runs / "grey")]) == 1
    assert "grey is of cine_ed, cine_es; there are lge" in capsys.readouterr().err
    assert not (tmp_path / "late").exists()
    assert synthetic.main([str(runs / "grey"), str(tmp_path / "both"), "--intensities", str(runs / "grey")]) == 1
    assert "--intensities stands without a run" in capsys.readouterr().err


def test_folders_without_a_scale_are_refused_in_words(runs, tmp_path, capsys):
    def refused(*words):
        assert main([*SMALL, "size=small", "name=other", f"runs_folder={runs}", *words]) == 2
        return capsys.readouterr().err

    assert "model.pt is missing: intensities are read from" in refused(f"pretraining.intensities=[{tmp_path}]")
    spoiled = tmp_path / "spoiled"
    shutil.copytree(runs / "grey", spoiled, ignore=shutil.ignore_patterns("arms", "overlays"))
    record = json.loads((spoiled / "record.json").read_text())
    record["rounds"][-1]["arrays_sha256"] = "0" * 64
    (spoiled / "record.json").write_text(json.dumps(record))
    assert "holds another sum than the record tells of" in refused(f"pretraining.intensities=[{spoiled}]")
    bare = tmp_path / "bare"
    shutil.copytree(spoiled, bare)
    record = json.loads((runs / "grey" / "record.json").read_text())
    record["study"]["privacy"]["kind"] = "none"
    (bare / "record.json").write_text(json.dumps(record))
    assert "study grey promised no privacy" in refused(f"pretraining.intensities=[{bare}]")
    assert "is this run's own folder" in refused(f"pretraining.intensities=[{runs / 'other'}]")


def test_a_sum_that_the_noise_has_drowned_is_a_degraded_run_without_a_scale(runs, capsys):
    assert main([*GREY, f"runs_folder={runs}", "name=drowned", "privacy.epsilon=0.1"]) == 3
    record = Record.read(runs / "drowned" / "record.json")
    assert record.verdict == "degraded"
    assert any("a larger epsilon, or more patients, would do" in reason for reason in record.reasons)
    assert not (runs / "drowned" / "intensity_scale.json").exists()
    assert "No scale can be read from this run" in (runs / "drowned" / "report.html").read_text()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("intensity_scale.task.series=[lge]", "intensity_scale.task.series: the hospitals have cine_ed, cine_es, not lge"),
        ("intensity_scale.task.series=[cine_ed,t1]", "the hospitals have cine_ed, cine_es, not t1"),
        ("intensity_scale.task.name=count", "no such setting"),
        ("intensity_scale.task.percentiles=[90,50]", "percentiles must rise"),
        ("faults.plan=[{fault: offline, site: isar, rounds: 1}]", "not of an intensity scale"),
        ("secure={}", "a secure sum needs at least 3 hospitals, not 2: of two each knows the other's numbers"),
    ],
)
def test_settings_that_these_hospitals_cannot_follow_are_refused(tmp_path, capsys, override, reason):
    assert main([*GREY, f"runs_folder={tmp_path}", override]) == 2
    assert reason in capsys.readouterr().err
