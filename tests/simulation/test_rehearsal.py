import json
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from math import isfinite

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from fl_client.privacy import Ledger
from fl_server.record import Record
from simulation import sources
from simulation.__main__ import main, settings_of
from simulation.scoring import restore
from tasks.fingerprint import fingerprint
from tasks.task import load

ARMS = {"federation_private", "federation_plain", "pooled", "alone/donau", "alone/rhein", "ensemble", "pretrained"}
SITES = {"donau", "rhein"}


def mean(rows, key):
    """By hand: the mean over those rows that have the score."""
    values = [row["scores"][key] for row in rows if key in row["scores"]]
    return sum(values) / len(values)


def models(folder, seed=0):
    """Fingerprints of every arm's final model."""
    arms = ("federation_private", "federation_plain", "pooled", "alone/donau", "alone/rhein")
    return {arm: fingerprint(torch.load(folder / "arms" / arm / str(seed) / "model.pt", weights_only=True)) for arm in arms}


def numbers(record):
    """A record without what differs from call to call: seconds and memory."""
    text = record.model_dump(mode="json", exclude={"timings", "memory_mb", "peak_memory_mb"})
    for entry in text["rounds"]:
        del entry["seconds"]
    return text


# -- what a run leaves ------------------------------------------------------------------------------------------------


def test_it_ends_complete_with_every_file_that_the_docs_name(tiny):
    assert tiny.status == 0
    names = {path.name for path in tiny.folder.iterdir()}
    assert names >= {"report.html", "record.json", "model.pt", "model.ts.pt", "model.ts.json", "metrics.jsonl", "scores.jsonl"}
    assert names >= {"ledgers", "overlays", "arms", "settings.json"}
    assert {path.name for path in (tiny.folder / "overlays").iterdir()} == {
        "best.npz",
        "median.npz",
        "worst.npz",
        "scanners.npz",
    }
    assert {path.name for path in (tiny.folder / "ledgers").glob("*.jsonl")} == {"donau.jsonl", "rhein.jsonl"}
    assert json.loads((tiny.folder / "settings.json").read_text()) == settings_of(tiny.overrides).model_dump(mode="json")
    assert not list(tiny.folder.rglob("*.part"))


def test_the_record_says_who_took_part_and_what_it_cost(tiny):
    record = tiny.record
    assert (record.verdict, record.reasons) == ("complete", [])
    assert (record.seed, record.seeds, record.profile, record.engine) == (0, [0, 1], "small", "inprocess")
    assert set(record.sites) == SITES
    for site in record.sites.values():
        assert (site.cases_expected, site.cases_used, site.cases_refused, site.declared_size) == (4, 4, 0, 5)
    assert set(record.held_out) == {"held_out"}
    assert record.held_out["held_out"]["limmat"]["cases_used"] == 4
    assert set(record.baselines) == ARMS
    phases = {"hospitals", "pretraining", "federation", "comparisons", "scores", "model and pictures", "test patients"}
    assert set(record.timings) == phases | {"total"}
    assert record.timings["total"] == pytest.approx(sum(record.timings[phase] for phase in phases), abs=0.1)
    assert 100 < record.peak_memory_mb < 8_000
    assert set(record.memory_mb) == phases
    assert all(100 < memory <= record.peak_memory_mb for memory in record.memory_mb.values())


def test_every_model_is_scored_once_on_every_test_patient(tiny):
    rows = tiny.scores
    keys = [(row["arm"], row["seed"], row["hospital"], row["patient"]) for row in rows]
    assert len(set(keys)) == len(keys)
    assert {row["arm"] for row in rows} == ARMS
    for arm in ARMS:
        found = [(row["seed"], row["hospital"], row["role"]) for row in rows if row["arm"] == arm]
        seeds = (0,) if arm == "pretrained" else (0, 1)  # one start for all
        roles = (("donau", "site"), ("limmat", "held_out"), ("rhein", "site"))
        assert sorted(found) == sorted((seed, *role) for seed in seeds for role in roles)  # one test patient of four each
    assert all(isfinite(value) for row in rows for value in row["scores"].values())


def test_the_models_have_learned_enough_for_scores_to_differ(tiny):
    """Otherwise the comparisons of this file would compare noughts."""
    dice = {row["scores"]["dice/blood_pool"] for row in tiny.scores}
    assert len(dice) > 10


def test_the_records_dice_are_the_means_of_the_scores(tiny):
    record, rows = tiny.record, tiny.scores
    for name, site in record.sites.items():
        own = [row for row in rows if row["arm"] == "federation_private" and row["hospital"] == name]
        assert set(site.dice) == {"blood_pool", "myocardium", "right_ventricle"}
        for structure, value in site.dice.items():
            assert value == pytest.approx(mean(own, f"dice/{structure}"))
    for arm in ARMS:
        for role, found in (
            ("site", record.baselines[arm]["sites"]),
            ("held_out", record.held_out["held_out"]["limmat"]["arms"][arm]),
        ):
            chosen = [row for row in rows if row["arm"] == arm and row["role"] == role]
            assert set(found) == {key for row in chosen for key in row["scores"]}
            assert all(value == pytest.approx(mean(chosen, key)) for key, value in found.items())


def test_distances_and_volumes_are_there_for_the_federations_as_the_size_says(tiny):
    rich = {row["arm"] for row in tiny.scores if any(key.startswith("volume_error_ml/") for key in row["scores"])}
    assert rich == {"federation_private", "federation_plain"}


def test_every_round_has_a_line_for_every_hospital_and_the_last_one_agrees_with_the_scores(tiny):
    places = {(line["arm"], line["seed"], line["round"], line["hospital"]): line for line in tiny.metrics}
    arms = ("federation_private", "federation_plain")
    expected = {(a, s, r, h) for a in arms for s in (0, 1) for r in (1, 2) for h in ("donau", "rhein")}
    expected |= {(a, s, 2, "limmat") for a in arms for s in (0, 1)}  # evaluate_every=2: nobody looked in round 1
    assert set(places) == expected
    assert len(tiny.metrics) == len(expected)
    rows = defaultdict(list)
    for row in tiny.scores:
        rows[row["arm"], row["seed"], row["hospital"]].append(row)
    for (arm, seed, number, hospital), line in places.items():
        for structure in ("blood_pool", "myocardium", "right_ventricle"):
            if number == 2:
                assert line[f"dice/{structure}"] == pytest.approx(
                    mean(rows[arm, seed, hospital], f"dice/{structure}"), abs=1e-6
                )
            else:
                assert f"dice/{structure}" not in line


def test_epsilon_grows_from_round_to_round_and_is_the_ledgers(tiny):
    for name, site in tiny.record.sites.items():
        ledger = Ledger(tiny.folder / "ledgers" / f"{name}.jsonl", epsilon=8.0, delta=1e-3)
        ledger.verify()
        assert len(ledger.events) == 2
        assert site.epsilon == pytest.approx(ledger.epsilon)
        assert site.delta == 1e-3
        spent = [m["epsilon"] for m in tiny.metrics if (m["arm"], m["seed"], m["hospital"]) == ("federation_private", 0, name)]
        assert 0 < spent[0] < spent[1] == pytest.approx(ledger.epsilon)
        assert spent[1] <= 8.0
        assert [r.sites[name].epsilon for r in tiny.record.rounds] == spent
    assert {m["epsilon"] for m in tiny.metrics if m["arm"] == "federation_plain" or m["hospital"] == "limmat"} == {None}


def test_the_model_is_the_private_federations_and_loads_without_konsil(tiny, tmp_path):
    state = torch.load(tiny.folder / "model.pt", weights_only=True)
    assert fingerprint(state) == models(tiny.folder)["federation_private"] == tiny.record.rounds[-1].arrays_sha256
    image = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.save(image, tmp_path / "image.pt")
    program = (
        "import sys\n"
        "for name in ('conf', 'tasks', 'fl_client', 'fl_server', 'simulation', 'monai'): sys.modules[name] = None\n"
        "import torch\n"
        f"model = torch.jit.load({str(tiny.folder / 'model.ts.pt')!r})\n"
        "torch.save(model(torch.load('image.pt')).detach(), 'logits.pt')\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, check=True)
    with torch.no_grad():
        expected = restore(load(settings_of(tiny.overrides).task), [state])(image)
    assert torch.allclose(torch.load(tmp_path / "logits.pt", weights_only=True), expected, atol=1e-4)


def test_the_pictures_show_the_patients_with_the_best_and_the_worst_dice(tiny):
    rows = [row for row in tiny.scores if (row["arm"], row["seed"]) == ("federation_private", 0)]

    def dice(row):
        return sum(v for k, v in row["scores"].items() if k.startswith("dice/")) / 3

    ranked = sorted(rows, key=dice)
    for name, row in (("worst", ranked[0]), ("median", ranked[1]), ("best", ranked[2])):
        with np.load(tiny.folder / "overlays" / f"{name}.npz") as shown:
            assert dice(row) == pytest.approx(np.mean(list(json.loads(str(shown["dice"])).values())))
            assert shown["prediction"].shape == shown["image"].shape == shown["mask"].shape
    with np.load(tiny.folder / "overlays" / "scanners.npz") as shown:
        assert {key.split("/")[0] for key in shown} == {"donau", "rhein", "limmat"}


# -- again, after a kill, elsewhere -----------------------------------------------------------------------------------


def test_a_second_call_trains_and_scores_nothing_and_gives_the_same_record(tiny, monkeypatch):
    def never(*args, **more):
        raise AssertionError("this was done already")

    monkeypatch.setattr("simulation.arms.run", never)
    monkeypatch.setattr("simulation.scoring.score_patient", never)
    monkeypatch.setattr("simulation.hospital.patient_case", never)
    monkeypatch.setattr("simulation.pretraining.patient_case", never)
    before, scores, metrics = numbers(tiny.record), tiny.scores, tiny.metrics
    assert tiny.again() == 0
    assert numbers(tiny.record) == before
    assert (tiny.scores, tiny.metrics) == (scores, metrics)


@pytest.fixture
def copied(tiny, tmp_path, monkeypatch):
    """A copy of the run, and a call that goes on in it until something would be trained: what is said up to there."""

    class Interrupted(Exception):
        pass

    def interrupt(*args):
        raise Interrupted

    shutil.copytree(tiny.folder.parent, tmp_path / "runs", symlinks=True)
    monkeypatch.setattr("simulation.rehearsal._federate", interrupt)

    def begin(*more):
        with pytest.raises(Interrupted):
            main([*tiny.overrides, f"runs_folder={tmp_path / 'runs'}", *more])

    return tmp_path / "runs" / tiny.folder.name, begin


def trained(folder):
    """Arms with a seed that lie there finished."""
    return {str(path.parent.relative_to(folder / "arms")) for path in folder.rglob("finished")}


def test_other_settings_remove_the_arms_that_they_would_not_give_before_anything_is_trained(copied, capsys):
    folder, begin = copied
    before = trained(folder)
    begin("privacy.epsilon=4")
    assert before - trained(folder) == {"federation_private/0", "federation_private/1"}
    assert not (folder / "arms" / "federation_private" / "metrics-0.jsonl").exists()
    assert not (folder / "record.json").exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "2 trained arms" in said
    assert "they are removed" in said


def test_arms_that_these_settings_would_give_again_stay_though_this_run_does_not_ask_for_them(copied, capsys):
    folder, begin = copied
    before = trained(folder)
    begin("repeats=1", "arms=[federation_private]")
    assert trained(folder) == before
    assert not (folder / "record.json").exists()  # its means were over two seeds
    assert "trained arms" not in capsys.readouterr().out


def test_scores_of_other_code_are_computed_again_and_nothing_is_trained(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny.folder.parent, tmp_path / "runs", symlinks=True)
    for package in ("conf", "tasks", "fl_client", "fl_server", "simulation"):
        shutil.copytree(sources.ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "simulation" / "scoring.py", "a") as file:
        file.write("# another version\n")
    scored = []

    def score(settings, states, cohort, patient, full):
        scored.append(patient)
        return patient, {"dice/blood_pool": 0.25}

    def never(*args, **more):
        raise AssertionError("this was done already")

    monkeypatch.setattr(sources, "ROOT", tmp_path)
    monkeypatch.setattr("simulation.scoring.score_patient", score)
    monkeypatch.setattr("simulation.arms.run", never)
    monkeypatch.setattr("simulation.pretraining.patient_case", never)
    sources.digest.cache_clear()
    try:
        assert main([*tiny.overrides, f"runs_folder={tmp_path / 'runs'}"]) == 0
    finally:
        sources.digest.cache_clear()
    assert len(scored) == len(tiny.scores)


KILLED = """
import os, signal, sys
import simulation.rehearsal as rehearsal
from simulation.__main__ import main

write = rehearsal.write_line

def write_or_die(path, entry):
    if (entry["arm"], entry["round"]) == ("federation_plain", 2):
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, entry)

rehearsal.write_line = write_or_die
main(sys.argv[1:])
"""


def test_a_run_that_is_killed_goes_on_with_other_workers_and_ends_with_the_same_models(tiny, tmp_path):
    # the same name, so that it is the same study; the cache is copied, so that nothing is drawn again
    shutil.copytree(tiny.folder.parent / "cache", tmp_path / "cache", symlinks=True)
    overrides = [o for o in tiny.overrides if not o.startswith(("runs_folder=", "repeats=", "workers="))]
    overrides.append(f"runs_folder={tmp_path}")
    done = subprocess.run([sys.executable, "-c", KILLED, *overrides, "workers=0"], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / tiny.folder.name
    private = folder / "arms" / "federation_private" / "0"
    assert (private / "finished").exists()
    assert not (folder / "arms" / "federation_plain" / "0" / "finished").exists()
    assert not (folder / "record.json").exists()
    written = (private / "finished").stat().st_mtime_ns
    assert main([*overrides, "workers=2"]) == 0
    assert (private / "finished").stat().st_mtime_ns == written
    assert models(folder) == models(tiny.folder)
    expected = [row for row in tiny.scores if row["seed"] == 0]
    found = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [(r["arm"], r["hospital"], r["patient"]) for r in found] == [
        (r["arm"], r["hospital"], r["patient"]) for r in expected
    ]
    for row, wanted in zip(found, expected, strict=True):
        assert row["scores"] == pytest.approx(wanted["scores"], abs=1e-6)


# -- when somebody is missing -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def degraded(tmp_path_factory, threads):
    """Three hospitals that share nine pairs of files; the third has only masks without images."""
    folder = tmp_path_factory.mktemp("degraded")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(15):
        mask = np.zeros((4, 12, 12), np.uint8)
        mask[1:3, 3:6, 3:9], mask[1:3, 6:9, 3:9] = 1, 2
        sitk.WriteImage(sitk.GetImageFromArray(mask), str(folder / "masks" / f"p{i:02d}.nii.gz"))
        if i % 3 != 2:
            image = (100 + 50 * mask + 10 * rng.normal(size=mask.shape)).astype(np.int16)
            sitk.WriteImage(sitk.GetImageFromArray(image), str(folder / "images" / f"p{i:02d}.nii.gz"))
    overrides = [
        *("hospitals=hippocampus", f"hospitals.images={folder / 'images'}", f"hospitals.masks={folder / 'masks'}"),
        *(
            "hospitals.sites=[east,north,south]",
            "hospitals.held_out=[]",
            "hospitals.test_fraction=0.4",
            f"runs_folder={folder}",
        ),
        *("task.spatial_dims=2", "task.voxels=16", "task.field_mm=12", "task.working_mm=1", "task.channels=[4,8]"),
        *("task.strides=[2]", "task.num_res_units=0", "task.head_channels=4", "rounds=2", "workers=0"),
        *("arms=[federation_private,federation_plain,pooled,alone,ensemble]", "evaluate_every=1", "training.views=2"),
        *("training.sample_rate=1", "plain_training.sample_rate=1", "pretraining=null"),
    ]
    return main(overrides), folder / "rehearsal", overrides


def test_a_hospital_without_patients_sends_noise_and_the_verdict_is_degraded(degraded):
    status, folder, _ = degraded
    record = Record.read(folder / "record.json")
    assert (status, record.verdict) == (3, "degraded")
    assert [r.sites["south"].answer for r in record.rounds] == ["used", "used"]
    assert [r.sites["east"].answer for r in record.rounds] == ["used", "used"]
    south = record.sites["south"]
    assert (south.cases_expected, south.cases_used, south.cases_refused) == (5, 0, 5)
    assert record.reasons == ["south has no patient to train on: what it sent was noise alone"]
    assert "south" in (folder / "report.html").read_text()


def test_the_others_go_on_and_the_ensemble_is_of_those_that_trained(degraded):
    _, folder, _ = degraded
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert {row["arm"] for row in rows} == ARMS - {"alone/donau", "alone/rhein"} | {"alone/east", "alone/north"}
    assert {row["hospital"] for row in rows} <= {"east", "north"}
    assert (folder / "model.ts.pt").exists()
    assert {path.name for path in (folder / "ledgers").glob("*.jsonl")} == {"east.jsonl", "north.jsonl", "south.jsonl"}


def test_hospitals_without_any_patient_are_refused_in_words_and_leave_no_model_of_an_earlier_run(degraded, tmp_path, capsys):
    _, folder, overrides = degraded
    shutil.copytree(folder, tmp_path / "rehearsal", symlinks=True)
    (tmp_path / "masks").mkdir()
    (tmp_path / "images").mkdir()
    for i in range(3):
        shutil.copy(folder.parent / "masks" / f"p{i:02d}.nii.gz", tmp_path / "masks")
    shutil.copy(folder.parent / "images" / "p00.nii.gz", tmp_path / "images" / "other.nii.gz")
    more = [f"runs_folder={tmp_path}", f"hospitals.images={tmp_path / 'images'}", f"hospitals.masks={tmp_path / 'masks'}"]
    assert main([*overrides, *more, "arms=[federation_private,alone,ensemble]"]) == 1
    said = capsys.readouterr().err
    assert "no hospital has a patient to train on" in said
    assert "a mask without an image" in said  # and why
    assert not any((tmp_path / "rehearsal" / name).exists() for name in ("record.json", "report.html", "model.pt", "ledgers"))


# -- another engine ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)  # Ray starts anew for every federation: minutes on a busy machine
@pytest.mark.filterwarnings("default")  # Ray's own
def test_flowers_own_engine_ends_with_the_same_models(tiny, tmp_path):
    shutil.copytree(tiny.folder.parent / "cache", tmp_path / "cache", symlinks=True)
    overrides = [o for o in tiny.overrides if not o.startswith(("runs_folder=", "repeats="))]
    assert main([*overrides, f"runs_folder={tmp_path}", "engine=ray"]) == 0
    folder = tmp_path / tiny.folder.name
    assert Record.read(folder / "record.json").engine == "ray"
    assert models(folder) == models(tiny.folder)
