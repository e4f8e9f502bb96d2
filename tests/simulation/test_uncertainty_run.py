"""How sure a rehearsal's model is of its test patients: measured on the tiny run, and what its report says of it."""

import json
import re
import shutil
from html import unescape

import numpy as np
import pytest
import torch

from simulation.machine import executor
from simulation.rehearsal import how_sure, open_hospitals
from simulation.report import write_report
from simulation.report.uncertainty import sentences
from simulation.run_folder import to_itself
from simulation.screen import Screen
from simulation.settings import Simulation
from simulation.uncertainty import figures
from simulation.uncertainty.__main__ import main
from simulation.uncertainty.found import Figures, Ranked, Unsure, read
from tasks.fingerprint import fingerprint
from tasks.uncertainty.calibration import Calibration


@pytest.fixture(scope="module")
def measured(tiny, tmp_path_factory):
    """The tiny run in a folder of its own, examined, and the text of its report before."""
    runs = tmp_path_factory.mktemp("unsure")
    shutil.copytree(tiny.folder, runs / "rehearsal", symlinks=True)
    shutil.copytree(tiny.folder.parent / "cache", runs / "cache", symlinks=True)
    before = (runs / "rehearsal" / "report.html").read_text()
    assert main([str(runs / "rehearsal"), "--workers", "0", "--patients", "8"]) == 0
    return runs / "rehearsal", before


def words_of(page: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", page)).split())


def test_every_test_patient_has_a_place_and_the_dice_of_the_scores(measured, tiny):
    folder, _ = measured
    found = read(folder)
    rows = [r for r in tiny.scores if r["arm"] == "federation_private" and r["seed"] == 0 and r["role"] != "real"]
    assert {(one.hospital, one.patient) for one in found.patients} == {(row["hospital"], row["patient"]) for row in rows}
    scores = {(row["hospital"], row["patient"]): row["scores"] for row in rows}
    for one in found.patients:
        for name, value in one.dice.items():
            assert value == pytest.approx(scores[one.hospital, one.patient][f"dice/{name}"], abs=1e-6)
    sure = [one.sureness for one in found.patients]
    assert sure == sorted(sure)
    assert found.figures.patients == len(rows)


def test_the_calibration_is_of_this_model_and_of_nobodys_patients(measured):
    folder, _ = measured
    found = Calibration.load(folder / "calibration.json")
    assert found.models == (fingerprint(torch.load(folder / "model.pt", weights_only=True)),)
    assert (found.patients, found.of) == (8, "generated patients")
    assert read(folder).calibration == found


def test_the_report_has_charts_order_and_overlay_only_where_it_was_measured(measured):
    folder, before = measured
    page = (folder / "report.html").read_text()
    title = "How sure it is, and whom to look at first"
    assert title not in before
    assert title in page
    first = read(folder).patients[0]
    assert f"Looked at first: {first.patient} ({first.hospital})" in words_of(page)
    assert page.count("where the model is unsure, with its own contour") >= 1
    for chart in ("Probabilities of voxels", "Expected and true Dice", "Error of the surest"):
        assert chart in page
    (folder / "overlays" / "uncertainty.npz").rename(folder / "away.npz")
    assert title in write_report(folder).read_text()
    (folder / "away.npz").rename(folder / "overlays" / "uncertainty.npz")


def test_a_folder_without_a_model_is_refused_in_words(measured, tmp_path, capsys):
    folder, _ = measured
    shutil.copytree(folder, tmp_path / "run", symlinks=True)
    shutil.copytree(folder.parent / "cache", tmp_path / "cache", symlinks=True)
    (tmp_path / "run" / "model.pt").unlink()
    assert main([str(tmp_path / "run"), "--workers", "0"]) == 1
    assert "it has no model.pt: the run has not ended, or it trained nothing" in capsys.readouterr().err
    assert not (tmp_path / "run" / "uncertainty.json").exists()  # what spoke of another model is gone


def test_what_is_no_run_and_a_model_that_draws_no_masks_are_refused_in_words_and_at_once(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("simulation.rehearsal.open_hospitals", None)  # nobody is drawn for it
    assert main([str(tmp_path / "nothing")]) == 1
    assert "nothing: it is no folder of a run: it has no settings.json" in capsys.readouterr().err
    assert not (tmp_path / "nothing").exists()
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(tiny.folder / "settings.json", run)
    torch.save({"total": torch.zeros(12)}, run / "model.pt")
    assert main([str(run)]) == 1
    assert "its model.pt is no model that draws masks: there is nothing to be unsure of" in capsys.readouterr().err
    with to_itself(run):
        assert main([str(run)]) == 1
    assert "runs in" in capsys.readouterr().err


def test_without_free_patients_nothing_is_calibrated_and_the_report_says_why(measured, tmp_path):
    folder, _ = measured
    shutil.copytree(folder, tmp_path / "run", symlinks=True)
    shutil.copytree(folder.parent / "cache", tmp_path / "cache", symlinks=True)
    settings = json.loads((tmp_path / "run" / "settings.json").read_text())
    (tmp_path / "run" / "settings.json").write_text(json.dumps({**settings, "pretraining": None}))
    assert main([str(tmp_path / "run"), "--workers", "0"]) == 0
    found = read(tmp_path / "run")
    assert found.calibration is None
    assert (found.figures.miss, found.figures.held) == (None, None)
    assert found.figures.error_after == found.figures.error_before
    assert not (tmp_path / "run" / "calibration.json").exists()
    page = words_of((tmp_path / "run" / "report.html").read_text())
    assert "Agreement was not calibrated: this rehearsal draws no patients to pre-train on" in page
    assert "Expected and true Dice" not in page


def test_a_model_that_answers_no_numbers_is_told_and_does_not_end_the_rehearsal(tiny, tmp_path, capsys):
    shutil.copytree(tiny.folder, tmp_path / "run", symlinks=True)
    cache, folder = tiny.folder.parent / "cache", tmp_path / "run"
    state = torch.load(folder / "model.pt", weights_only=True)
    torch.save({name: torch.full_like(value, torch.nan) for name, value in state.items()}, folder / "model.pt")
    settings = json.loads((folder / "settings.json").read_text())
    simulation = Simulation.model_validate({**settings, "pretraining": None})  # so that none is calibrated before
    with executor(0) as pool, Screen(simulation) as screen:
        sites, _, _ = open_hospitals(simulation, cache, pool, screen)
        how_sure(simulation, folder, [("site", one) for one in sites.values()], cache=cache, pool=pool, screen=screen)
    said = " ".join(capsys.readouterr().out.split())
    assert "how sure the model is was not measured: the model answers to" in said
    assert "with numbers that are not finite" in said
    assert read(folder) is None


def patient(number: int, sureness: float, dice: float, *, expected: float, low: float) -> Ranked:
    return Ranked(
        hospital="north",
        role="site",
        patient=f"P{number}",
        agreement={"heart": sureness},
        expected={"heart": expected},
        low={"heart": low},
        dice={"heart": dice},
        sureness=sureness,
    )


def test_figures_by_hand():
    rows = [
        patient(0, 0.2, 0.3, expected=0.4, low=0.2),
        patient(1, 0.5, 0.6, expected=0.5, low=0.4),
        patient(2, 0.7, 0.5, expected=0.7, low=0.6),
        patient(3, 0.9, 0.9, expected=0.9, low=0.8),
    ]
    found = figures(rows, [], 1.0)
    assert (found.looked, found.caught, found.caught_by_chance) == (1, 1, 0.25)
    assert found.risk == pytest.approx(np.mean([0.7, 0.4, 0.5, 0.1]))
    assert found.area == pytest.approx(np.mean([0.1, 0.3, 1 / 3, 0.425]))
    assert found.area_at_best == pytest.approx(np.mean([0.1, 0.25, 1 / 3, 0.425]))
    assert found.miss == pytest.approx((0.1 + 0.1 + 0.2 + 0) / 4)
    assert found.held == 0.75
    assert found.rank == pytest.approx(0.8)  # one exchange of neighbours among four


def test_a_weak_rank_correlation_is_called_no_reason():
    told = Figures(
        **{"patients": 20, "rank": 0.1, "looked": 4, "caught": 1, "caught_by_chance": 0.8, "risk": 0.2, "area": 0.2},
        **{"area_at_best": 0.1, "miss": None, "held": None, "error_before": 0.1, "error_after": 0.1},
    )
    found = Unsure(
        model="f", members=8, classes=("background", "heart"), calibration=None, trouble="nobody", figures=told, patients=(),
        before=(), after=(),
    )  # fmt: skip
    assert sentences(found)[-1].endswith("So little is no reason to choose whom to look at by it.")
