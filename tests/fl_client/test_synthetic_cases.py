"""Synthetic cases train beside patients, and nothing that is promised to a patient, or counted of them, knows of it."""

import errno
import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from table_hospitals import counting_study, fill, row

from conf.study import LocalTraining
from fl_client import app as hospital
from fl_client import sent
from fl_client.__main__ import main
from fl_client.approval import Approvals
from fl_client.cohort import Cohort
from fl_client.sent import Asked
from fl_client.site import Budget
from fl_client.synthetic import add, batches, remove
from fl_client.training_cases import as_declared, usable_cases
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid
from tasks.task import load

ORIGIN = "drawn from seeds 300 to 302"


@pytest.fixture
def made(new_hospitals):
    """A folder of three cases, whom no hospital knows: p3-0, p3-1, p3-2."""
    elsewhere = new_hospitals("elsewhere")
    return [elsewhere.add(name, patients=3) for name in "wxyz"][-1].cohort_folder


@pytest.fixture
def rich(hospitals):
    """Hospital `a` with a budget for many tries."""
    hospitals.save(hospitals.site("a").model_copy(update={"budget": Budget(epsilon=1000.0, delta=1e-3)}))
    return hospitals.site("a")


def ask(hospitals, study, kind="train"):
    """What hospital `a` answers, by name of the array."""
    grid = InProcessGrid("fl_client.app:app", [{"site": str(hospitals.sites["a"])}], {"study": study.to_json()})
    config = ConfigRecord({"study-hash": study.hash, "server-round": 1})
    content = RecordDict({"arrays": ArrayRecord(dict(initial_state(study))), "config": config})
    (reply,) = grid.send_and_receive([Message(content, node, kind) for node in grid.get_node_ids()])
    assert reply.has_content(), reply.error.reason
    (arrays,) = reply.content.array_records.values()
    return {name: array.numpy() for name, array in arrays.items()}


def told(hospitals, capsys, *arguments):
    status = main(["--site", str(hospitals.sites["a"]), *map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out + said.err


def distance(one, other):
    return math.sqrt(sum(float(np.square(one[name].astype(float) - other[name]).sum()) for name in one))


def each_without(site):
    """The cohort without one patient after the other, who comes back each time."""
    for patient in sorted(site.cohort_folder.joinpath("cases").iterdir()):
        away = patient.rename(site.folder / patient.name)
        sent.forget(site)
        yield patient.name
        away.rename(patient)


# -- the promise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 0.6])
def test_a_patient_moves_the_step_by_at_most_the_bound_with_synthetic_cases_there(hospitals, rich, made, monkeypatch, rate):
    monkeypatch.setattr("fl_client.privacy.dp_sgd.noised", lambda share, std, noise: share)
    privacy = {"epsilon": 8.0, "max_grad_norm": 0.01}  # all are longer
    study = hospitals.study(training=LocalTraining(views=2, learning_rate=1.0, sample_rate=rate), privacy=privacy)
    site = rich
    bare = ask(hospitals, study)
    add(site, made, origin=ORIGIN, who="Dr. Alpha")
    sent.forget(site)
    everyone = ask(hospitals, study)
    allowed = 0.01 / (rate * site.declared_size)
    assert distance(bare, everyone) > allowed / 10  # they train, and are divided by the same number
    assert distance(bare, everyone) <= 3 * allowed * (1 + 1e-3)
    moved = [distance(everyone, ask(hospitals, study)) for _ in each_without(site)]
    assert max(moved) <= allowed * (1 + 1e-3)  # of single precision
    assert max(moved) > allowed * 0.99  # who is drawn is cut to the bound
    assert len(moved) == 4


def test_so_it_is_in_a_masked_sum_which_holds_no_more_than_the_declared_patients_can_make(hospitals, made):
    study = hospitals.study(privacy={"epsilon": 8.0, "max_grad_norm": 0.01}, training=LocalTraining(views=2))
    site, task = hospitals.site("a"), load(study.task)
    add(site, made, origin=ORIGIN, who="Dr. Alpha")
    torch.manual_seed(0)
    model = task.model()
    asked = Asked(study.hash, "train", 1, "0" * 64, "")

    def total(of):
        return hospital.bare_gradient(of, study, task, model, task.trainable(model), asked)

    many = site.model_copy(update={"declared_size": 100})
    everyone, took_part = total(many)
    assert took_part == {"patients": 4, "synthetic": 3}
    moved = [distance(everyone, total(many)[0]) for _ in each_without(site)]
    assert moved == pytest.approx([0.01] * 4, rel=1e-6)
    few = site.model_copy(update={"declared_size": 1})
    assert distance(total(few)[0], dict.fromkeys(everyone, 0.0)) == pytest.approx(0.01)
    before = total(few)[0]
    assert max(distance(before, total(few)[0]) for _ in each_without(site)) <= 0.01 * (1 + 1e-6)


def test_a_sum_is_shortened_to_its_length_and_to_nothing_else():
    parts = [torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64)]
    assert [part.tolist() for part in as_declared(parts, longest=5.0)] == [[3.0, 0.0], 4.0]
    assert [part.tolist() for part in as_declared(parts, longest=2.5)] == [[1.5, 0.0], 2.0]


def test_the_ledger_has_the_entry_that_it_would_have_without_them(hospitals, made):
    study, site = hospitals.study(rounds=2), hospitals.site("a")
    ask(hospitals, study)
    add(site, made, origin=ORIGIN, who="Dr. Alpha")
    sent.forget(site)
    ask(hospitals, study)
    one, two = hospital.ledger_of(site).events
    assert one == two


def test_a_question_that_is_asked_again_gets_the_same_answer_whatever_was_added_since(hospitals, rich, made):
    study, site = hospitals.study(), rich
    first = ask(hospitals, study)
    add(site, made, origin=ORIGIN, who="Dr. Alpha")
    assert distance(first, ask(hospitals, study)) == 0
    assert len(hospital.ledger_of(site).events) == 1
    sent.forget(site)
    with_them = ask(hospitals, study)
    sent.forget(site)  # a rehearsal that crashed before the answer was kept works on it once more
    assert distance(with_them, ask(hospitals, study)) == 0
    assert distance(first, with_them) > 0


# -- training, and nothing else ---------------------------------------------------------------------------------------


def test_scores_of_test_and_validation_patients_are_those_that_they_would_be_without_them(hospitals, made):
    site = hospitals.site("a").model_copy(update={"test_fraction": 0.5})
    hospitals.save(site)
    study = hospitals.study(privacy={"epsilon": 8.0, "evaluation_share": 0.3})
    before = ask(hospitals, study, "evaluate")
    add(site, made, origin=ORIGIN, who="Dr. Alpha")
    sent.forget(site)
    assert distance(before, ask(hospitals, study, "evaluate")) == 0
    task = load(study.task)
    for which in ("train", "validation", "test"):
        assert all(name.startswith("p0-") for name in hospital.usable_patients(site, study, task, which)[1])


def test_what_is_counted_of_patients_is_not_counted_of_them(new_hospitals, tmp_path):
    tables = new_hospitals("tables")
    for name, patients in (("a", 12), ("b", 20)):
        fill(tables.add(name, patients=0, declared_size=20), patients)
    study = counting_study(tables, privacy={"epsilon": 3.0})
    before = ask(tables, study)
    made = Cohort(tmp_path / "made")
    for number in range(5):
        made.admit(row(f"G{number}", 7000 + number))
    add(tables.site("a"), made.folder, origin=ORIGIN, who="Dr. Alpha")
    sent.forget(tables.site("a"))
    assert distance(before, ask(tables, study)) == 0


def test_they_are_told_and_are_no_patients(hospitals, made, capsys):
    site, study = hospitals.site("a"), hospitals.study()
    status, said = told(hospitals, capsys, "add-synthetic", made, "--origin", ORIGIN, "--who", "Dr. Alpha")
    assert status == 0
    assert "3 synthetic cases added as " in said
    assert "Only cases that are nobody's" in said
    assert len(Cohort(site.cohort_folder)) == 4
    assert "4 patients inside" in (now := told(hospitals, capsys, "status")[1])
    assert "3 synthetic cases train beside them and are no patients" in now
    there = told(hospitals, capsys, "cohort")[1]
    assert "4 patients in " in there
    assert "4 patients expected: 4 inside" in there
    assert "3 synthetic cases train beside them" in there
    assert f"3 cases, {batches(site)[0].when[:10]}, Dr. Alpha: {ORIGIN}" in told(hospitals, capsys, "synthetic")[1]
    Approvals(site.folder).put_down(study)
    assert (
        "the synthetic cases that you have added (3; konsil-site synthetic)" in told(hospitals, capsys, "show", study.hash)[1]
    )
    said = told(hospitals, capsys, "approve", study.hash)[1]
    assert "4 of 4 training patients at a can be used for study rehearsal; beside them 3 of 3 synthetic cases" in said
    ask(hospitals, study)
    there = told(hospitals, capsys, "cohort")[1]
    assert "used 4 training patients and left out 0; beside them 3 synthetic cases" in there
    (line,) = [line for line in (site.folder / "audit.jsonl").read_text().splitlines() if "synthetic-added" in line]
    assert ORIGIN in line
    assert "p3-" not in line


def test_they_make_no_cohort_large_enough(hospitals, made, capsys):
    site = hospitals.site("a").model_copy(update={"minimum_cohort": 5})
    hospitals.save(site)
    add(site, made, origin=ORIGIN, who="Dr. Alpha")
    study = hospitals.study()
    Approvals(site.folder).put_down(study)
    status, said = told(hospitals, capsys, "approve", study.hash)
    assert status == 1
    assert "4 training patients are fewer than the 5" in said


def test_one_that_a_study_cannot_use_is_left_out_and_named(hospitals, made, capsys):
    text = json.loads((made / "cases" / "p3-1" / "case.json").read_text())
    for volume in text["volumes"]:
        volume["mask"] = False
    (made / "cases" / "p3-1" / "case.json").write_text(json.dumps(text))
    site, study = hospitals.site("a"), hospitals.study()
    batch, _ = add(site, made, origin=ORIGIN, who="Dr. Alpha")
    usable, left_out = usable_cases(site, study, load(study.task))
    assert sorted(usable) == [f"{batch.name}/p3-0", f"{batch.name}/p3-2"]
    assert "has no mask for any of" in left_out[f"{batch.name}/p3-1"]
    ask(hospitals, study)
    lines = [json.loads(line) for line in (site.folder / "log" / "training.jsonl").read_text().splitlines()]
    assert [line["synthetic_case"] for line in lines if "not_used" in line] == [f"{batch.name}/p3-1"]
    assert (lines[-1]["patients"], lines[-1]["synthetic"]) == (4, 2)


def test_a_study_that_selects_patients_selects_among_them(hospitals, made):
    study = hospitals.study(selection={"where": {"field": "image.lge", "op": "=", "value": True}})
    add(hospitals.site("a"), made, origin=ORIGIN, who="Dr. Alpha")
    usable, left_out = usable_cases(hospitals.site("a"), study, load(study.task))
    assert not usable
    assert all("not selected" in reason for reason in left_out.values())


def test_what_was_added_can_be_taken_away(hospitals, made, capsys):
    site, study = hospitals.site("a"), hospitals.study()
    before = ask(hospitals, study)
    batch, _ = add(site, made, origin=ORIGIN, who="Dr. Alpha")
    status, said = told(hospitals, capsys, "remove-synthetic", batch.name[:5], "--who", "Dr. Beta")
    assert (status, "3 synthetic cases taken away" in said) == (0, True)
    assert batches(site) == []
    assert not batch.folder.exists()
    sent.forget(site)
    assert distance(before, ask(hospitals, study)) == 0
    status, said = told(hospitals, capsys, "remove-synthetic", batch.name)
    assert (status, f"0 batches of synthetic cases have a name that starts with '{batch.name}'" in said) == (1, True)


# -- what is not taken ------------------------------------------------------------------------------------------------


def renamed(folder, old, new):
    place = folder / "cases" / old
    text = json.loads((place / "case.json").read_text())
    (place / "case.json").write_text(json.dumps({**text, "patient": new}))
    place.rename(place.with_name(new))


SPOILED = {
    "no folder": (lambda made, site: shutil.rmtree(made), "is no folder of cases"),
    "empty": (lambda made, site: [shutil.rmtree(case) for case in made.glob("cases/*")], "holds no case"),
    "cut short": (
        lambda made, site: (made / "cases" / "p3-1" / "cine_ed.image.npy").write_bytes(b"\x93NUMPY"),
        "cine_ed.image.npy is cut short, or is no array; nothing was added",
    ),
    "an intake's": (lambda made, site: renamed(made, "p3-0", "P9B0FC772DE37F9F3"), "named as an intake names patients"),
    "a patient's": (lambda made, site: renamed(made, "p3-0", "p0-2"), "p0-2 is a patient of a: synthetic cases are nobody's"),
    "withdrawn": (
        lambda made, site: (renamed(made, "p3-0", "p0-2"), Cohort(site.cohort_folder).withdraw("p0-2")),
        "p0-2 is a patient of a",
    ),
}


@pytest.mark.parametrize(("spoil", "reason"), SPOILED.values(), ids=SPOILED)
def test_what_may_be_somebodys_or_is_no_case_is_refused_in_words(hospitals, made, capsys, spoil, reason):
    site = hospitals.site("a")
    spoil(made, site)
    status, said = told(hospitals, capsys, "add-synthetic", made, "--origin", ORIGIN)
    assert status == 1
    assert reason in said
    assert batches(site) == []
    assert not list((site.folder / "synthetic").glob("*/cases"))


def test_the_cohort_itself_is_refused_and_so_is_an_origin_that_says_nothing(hospitals, made, capsys):
    site = hospitals.site("a")
    status, said = told(hospitals, capsys, "add-synthetic", site.cohort_folder, "--origin", ORIGIN)
    assert (status, "is the cohort of a: it holds patients" in said) == (1, True)
    for nothing in (" ", "x" * 301):
        status, said = told(hospitals, capsys, "add-synthetic", made, "--origin", nothing)
        assert (status, "say in a line of at most 300 characters where these cases come from" in said) == (1, True)
    with pytest.raises(SystemExit):
        told(hospitals, capsys, "add-synthetic", made)
    assert batches(site) == []


def test_the_same_folder_twice_is_there_once_and_a_case_of_two_folders_is_refused(hospitals, made, tmp_path, capsys):
    site = hospitals.site("a")
    told(hospitals, capsys, "add-synthetic", made, "--origin", ORIGIN)
    status, said = told(hospitals, capsys, "add-synthetic", made, "--origin", "again")
    assert (status, "these 3 cases were added on" in said) == (0, True)
    shutil.rmtree(made / "cases" / "p3-0")
    status, said = told(hospitals, capsys, "add-synthetic", made, "--origin", ORIGIN)
    assert status == 1
    assert "2 of the 2 cases are here already" in said
    assert [len(batch.cases) for batch in batches(site)] == [3]


def test_there_are_at_most_as_many_as_patients_are_declared(hospitals, made, capsys):
    hospitals.save(hospitals.site("a").model_copy(update={"declared_size": 2}))
    status, said = told(hospitals, capsys, "add-synthetic", made, "--origin", ORIGIN)
    assert status == 1
    assert "there would be 3 synthetic cases, and a declares 2 patients" in said


def test_the_door_for_patients_takes_no_synthetic_case(hospitals, made, capsys):
    hospitals.site("a").key_file.write_bytes(b"0123456789abcdef")
    hospitals.site("a").key_file.chmod(0o600)
    status, _ = told(hospitals, capsys, "admit", made)
    assert status == 1
    assert len(Cohort(hospitals.site("a").cohort_folder)) == 4


def test_a_full_disk_adds_none_of_them(hospitals, made, monkeypatch, capsys):
    room, admit = [2], Cohort.admit

    def until_full(self, case, **days):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device", "case.json")
        admit(self, case, **days)

    monkeypatch.setattr(Cohort, "admit", until_full)
    status, said = told(hospitals, capsys, "add-synthetic", made, "--origin", ORIGIN)
    assert status == 1
    assert "there is no room left on the disk" in said
    place = hospitals.site("a").folder / "synthetic"
    assert [path.name for path in place.iterdir()] == [".lock"]


KILLED = """
import os, sys
from pathlib import Path
from fl_client import synthetic
from fl_client.site import Site
def rename(self, target):
    if self.parent.name == "synthetic":
        os._exit(9)
    os.rename(self, target)
Path.rename = rename
synthetic.add(Site.load(sys.argv[1]), Path(sys.argv[2]), origin="of nobody", who="Dr. Alpha")
"""


def test_killed_between_copy_and_move_it_has_added_nothing_and_can_be_done_again(hospitals, made):
    site, study = hospitals.site("a"), hospitals.study()
    before = ask(hospitals, study)
    ended = subprocess.run([sys.executable, "-c", KILLED, str(hospitals.sites["a"]), str(made)], timeout=60, check=False)
    assert ended.returncode == 9
    place = site.folder / "synthetic"
    assert len(list(place.glob(".*.part/cases/*"))) == 3  # copied whole
    assert batches(site) == []
    sent.forget(site)
    assert distance(before, ask(hospitals, study)) == 0
    batch, new = add(site, made, origin=ORIGIN, who="Dr. Alpha")
    assert new
    assert sorted(path.name for path in place.iterdir()) == sorted([".lock", batch.name])
    remove(site, batch.name, who="Dr. Alpha")
    assert [path.name for path in place.iterdir()] == [".lock"]
