import hashlib
import hmac
import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from simulation.hospital import KEY
from tasks.task import load

HERE = Path(__file__).parent.parent.parent
SUNNYBROOK = HERE / "tests" / "data" / "sunnybrook"
UNTOUCHED = ("SCD0000301", "SCD0000401")
SITE = {"epsilon": 1.0, "cases_used": 4, "cases_refused": 0}
RECORD = {
    **{"profile": "standard", "verdict": "complete", "seeds": [0], "timings": {"total": 1.0}, "peak_memory_mb": 1.0},
    **{"sites": {"east": SITE, "north": {**SITE, "epsilon": 2.5}, "south": {**SITE, "epsilon": None}}},
}
TINY = ["task.voxels=32", "task.channels=[4,8]", "task.strides=[2]", "task.num_res_units=0", "workers=0"]


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a program as `python benchmarks/<program>.py` does, in an empty folder of runs: exit status, lines, complaints."""
    monkeypatch.syspath_prepend(HERE / "benchmarks")

    def run(program, *arguments):
        monkeypatch.setattr(sys, "argv", [program, "--runs", str(tmp_path / "runs"), *arguments])
        capsys.readouterr()
        try:
            runpy.run_path(str(HERE / "benchmarks" / f"{program}.py"), run_name="__main__")
            status = 0
        except SystemExit as ended:
            status = ended.code
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err

    return run


def leave_behind(folder, record=RECORD):
    """An earlier run's record and scores."""
    row = {
        "arm": "federation_private",
        "seed": 0,
        "hospital": "east",
        "role": "site",
        "patient": "p",
        "scores": {"dice/a": 0.5},
    }
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "scores.jsonl").write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize(("program", "name"), [("rehearsal", "standard"), ("hippocampus", "hippocampus")])
def test_a_run_that_is_refused_prints_no_figures_of_an_earlier_one(run, tmp_path, program, name):
    leave_behind(tmp_path / "runs" / f"benchmark-{name}")
    status, printed, said = run(program, "rounds=0")
    assert (status, printed) == (2, [])
    assert "rounds: Input should be greater than or equal to 1 (got 0)" in said


def test_without_the_data_the_program_ends_in_words(run, tmp_path):
    status, printed, said = run("hippocampus", f"hospitals.images={tmp_path}/nowhere")
    assert (status, printed) == (2, [])
    assert f"hospitals.images: there is no folder {tmp_path}/nowhere with *.nii.gz in it" in said


@pytest.mark.parametrize(("verdict", "status"), [("complete", 0), ("degraded", 0), ("failed", 1)])
def test_a_degraded_run_has_figures_and_says_so_and_a_failed_one_has_none(run, monkeypatch, tmp_path, verdict, status):
    def rehearse(simulation):
        leave_behind(Path(simulation.runs_folder) / simulation.name, {**RECORD, "verdict": verdict})
        return verdict

    monkeypatch.setattr("simulation.rehearsal.rehearse", rehearse)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.nii.gz").touch()
    found, printed, _ = run("hippocampus", f"hospitals.images={tmp_path}/a", f"hospitals.masks={tmp_path}/a")
    assert found == status
    if verdict == "failed":
        assert printed == []
        return
    figures = json.loads(printed[-1])
    assert (figures["verdict"], figures["dice_private"], figures["epsilon"]) == (verdict, 0.5, 2.5)
    assert figures["dice_non_private"] is None  # nobody was scored


def drawn_score(patient, structure):
    """Another number for every patient and structure."""
    return int(hashlib.sha256(f"{patient}/{structure}".encode()).hexdigest()[:4], 16) / 2**16


@pytest.fixture
def untrained(monkeypatch):
    """Nothing is trained and nothing segmented: what is about patients is all that is left of the program."""

    def score(self, model, case, *, full=True):
        assert [volume.series for volume in case.volumes] == ["cine_ed"]
        return {f"dice/{name}": drawn_score(case.patient, name) for name in ("blood_pool", "myocardium")}

    monkeypatch.setattr("simulation.pretraining.pretrain", lambda task, *_, **__: load(task).model().state_dict())
    monkeypatch.setattr("tasks.segmentation.task.SegmentationTask.score", score)


def test_dice_is_given_apart_for_the_patients_that_nothing_was_tuned_on(run, untrained):
    status, printed, _ = run("sim_to_real", f"real.folder={SUNNYBROOK}", *TINY)
    figures = json.loads(printed[-1])
    assert (status, figures["patients"], figures["defect_found"]) == (0, 4, True)
    # HMAC-SHA256 of the patient's identifier under the rehearsal's key, as the standard library computes it
    names = ["P" + hmac.new(KEY, f"patient\0{name}".encode(), hashlib.sha256).hexdigest()[:16].upper() for name in UNTOUCHED]
    for structure in ("blood_pool", "myocardium"):
        by_hand = (drawn_score(names[0], structure) + drawn_score(names[1], structure)) / 2
        assert figures[f"untouched_{structure}_dice"] == pytest.approx(by_hand, abs=1e-4)
        assert figures[f"sunnybrook_{structure}_dice"] != figures[f"untouched_{structure}_dice"]


def test_a_refusal_for_another_reason_is_not_the_defect(run, untrained, tmp_path):
    shutil.copytree(SUNNYBROOK, tmp_path / "other")
    for image in (tmp_path / "other" / "dicom" / "SCD0000501").iterdir():
        image.unlink()
    status, printed, _ = run("sim_to_real", f"real.folder={tmp_path / 'other'}", *TINY)
    figures = json.loads(printed[-1])
    assert (status, figures["patients"], figures["defect_found"]) == (0, 4, False)


def test_real_patients_who_are_not_there_are_missed_before_anything_is_trained(run, tmp_path):
    status, printed, said = run("sim_to_real", f"real.folder={tmp_path}/nowhere", *TINY)
    assert (status, printed) == (2, [])
    assert f"real.folder: there is no folder {tmp_path}/nowhere" in said


def test_nodules_that_were_not_learned_from_are_segmented_and_counted_by_kind(run):
    few = ["pretraining.patients=2", "pretraining.steps=1", "pretraining.batch_patients=2", "pretraining.oversampling=1"]
    status, printed, _ = run("nodules", "--test", "4", *few, *TINY)
    figures = json.loads(printed[-1])
    kinds = [figures[key] for key in figures if key.startswith("dice_") and key not in ("dice_sd", "dice_lowest")]
    assert status == 0
    assert (figures["test_nodules"], figures["training_nodules"], figures["steps"]) == (4, 2, 1)
    assert kinds
    assert min(kinds) <= figures["dice"] <= max(kinds)
    assert figures["crop_cpu_s"] > 0
