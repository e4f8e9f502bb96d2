import json
from functools import partial

import pytest

from fl_client.__main__ import main
from fl_client.app import ledger_of
from fl_client.approval import Approvals
from fl_client.privacy import Event


def test_a_person_reads_approves_and_declines_a_study(hospitals, capsys):
    site, study = hospitals.sites["a"], hospitals.study()
    assert main(["--site", str(site), "studies"]) == 0
    assert "has not been asked" in capsys.readouterr().out
    Approvals(hospitals.site("a").folder).put_down(study)
    assert main(["--site", str(site), "studies"]) == 0
    assert (
        f"{study.hash[:12]}  rehearsal: not decided, 0 of 2 rounds paid; price epsilon 8 (delta 0.001)"
        in capsys.readouterr().out
    )
    assert main(["--site", str(site), "approve", study.hash[:6], "--who", "Dr. Alpha"]) == 0
    decision = Approvals(hospitals.site("a").folder).decisions[study.hash]
    assert (decision.decision, decision.who, decision.epsilon) == ("approved", "Dr. Alpha", 8.0)
    assert main(["--site", str(site), "decline", study.hash]) == 0
    capsys.readouterr()
    assert main(["--site", str(site), "studies"]) == 0
    assert "declined by" in capsys.readouterr().out
    assert main(["--site", str(site), "show", study.hash, "--json"]) == 0
    assert type(study).from_json(capsys.readouterr().out) == study


def test_the_ledger_is_checked_and_summed(hospitals, capsys):
    book = ledger_of(hospitals.site("a"))
    for number in (1, 2):
        book.spend(Event(noise_multiplier=2.0, study_name="pilot", round=number))
    assert main(["--site", str(hospitals.sites["a"]), "ledger", "--all"]) == 0
    said = capsys.readouterr().out
    assert "pilot round 2: gradient, 1 noisy sum(s), noise multiplier 2" in said
    assert f"2 releases, unbroken; epsilon {book.epsilon:.4g} of 10" in said
    text = book.path.read_text()
    book.path.write_text(text.replace('"round":1', '"round":7'))
    assert main(["--site", str(hospitals.sites["a"]), "ledger"]) == 1
    assert "line 1 was changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["approve", "abc"], "0 studies have a hash that starts with 'abc'"), (["show", ""], "0 studies have a hash")],
)
def test_what_does_not_exist_is_refused_in_words(hospitals, capsys, arguments, told):
    assert main(["--site", str(hospitals.sites["a"]), *arguments]) == 1
    assert told in capsys.readouterr().err


def test_wrong_settings_are_told_with_their_path(tmp_path, capsys):
    path = tmp_path / "site.yaml"
    path.write_text("name: a\ndeclared_size: 0\n")
    assert main(["--site", str(path), "ledger"]) == 1
    assert "declared_size: Input should be greater than or equal to 1 (got 0)" in capsys.readouterr().err


def spoil(folder, how):
    """Damage one patient's folder as a full disk, a careless hand or a wrong mode would."""
    case = folder / "case.json"
    if how == "is missing":
        case.unlink()
    elif how == "is cut short":
        case.write_text(case.read_text()[:200])
    elif how == "has no affine":
        case.write_text(case.read_text().replace("affine", "matrix"))
    elif how == "an image is missing":
        (folder / "cine_es.image.npy").unlink()
    elif how == "an image is cut short":
        (folder / "cine_ed.image.npy").write_bytes((folder / "cine_ed.image.npy").read_bytes()[:300])
    elif how == "a file instead":
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
        folder.write_text("notes")


DAMAGES = {
    "is missing": "case.json is missing",
    "is cut short": "case.json is cut short, or isn't JSON",
    "has no affine": "its files don't make a case (KeyError: 'affine')",
    "an image is missing": "cine_es.image.npy is missing",
    "an image is cut short": "cine_ed.image.npy is cut short, or is no array",
    "a file instead": "it is a file, and no patient's folder",
}


@pytest.mark.parametrize(("how", "told"), DAMAGES.items())
def test_a_damaged_folder_is_named_and_the_others_are_counted(hospitals, capsys, how, told):
    folder = hospitals.site("a").cohort_folder / "cases" / "p0-1"
    spoil(folder, how)
    assert main(["--site", str(hospitals.sites["a"]), "cohort"]) == 1
    said, warned = capsys.readouterr()
    assert said.startswith("3 patients in ")
    assert "  train: 3\n" in said
    assert "cine_ed: 3 images, 3 with a mask" in said
    remedy = "move it to damaged/ and admit all images of this patient again; if it is only closed to this user, open it"
    assert warned == f"{folder} can't be read: {told}; {remedy}\n"


def test_before_a_yes_the_hospital_is_told_whom_the_study_can_use(hospitals, capsys):
    cases, study = hospitals.site("a").cohort_folder / "cases", hospitals.study(name="pilot")
    Approvals(hospitals.site("a").folder).put_down(study)
    ask = partial(main, ["--site", str(hospitals.sites["a"]), "approve", study.hash])
    assert ask() == 0
    said, warned = capsys.readouterr()
    assert "4 of 4 training patients at a can be used for study pilot\n" in said
    assert warned == ""

    text = json.loads((cases / "p0-0" / "case.json").read_text())
    text["volumes"] = [{**volume, "mask": False} for volume in text["volumes"]]
    (cases / "p0-0" / "case.json").write_text(json.dumps(text))
    (cases / "p0-3" / "case.json").unlink()
    assert ask() == 0
    said, warned = capsys.readouterr()
    assert "2 of 4 training patients at a can be used for study pilot; 2 can't:\n" in said
    assert (
        "  p0-0: case p0-0 has no mask for any of cine_ed, cine_es; it has cine_ed without mask, cine_es without mask\n" in said
    )
    assert f"  p0-3: {cases / 'p0-3'} can't be read: case.json is missing\n" in said
    assert warned == ""
    assert not (hospitals.site("a").folder / "log").exists()  # on the screen only


def test_a_study_that_can_use_nobody_is_told_loudly(hospitals, capsys):
    study = hospitals.study(name="pilot", task={**hospitals.study().task, "series": ["lge"]})
    Approvals(hospitals.site("a").folder).put_down(study)
    for command, status in ((["approve", study.hash], 1), (["cohort", "--study", study.hash[:8]], 0)):
        assert main(["--site", str(hospitals.sites["a"]), *command]) == status
        said, warned = capsys.readouterr()
        assert "0 of 4 training patients at a can be used for study pilot; 4 can't:" in said
        assert warned.startswith(
            "WARNING: no training patient at a can be used for study pilot: its rounds would be paid for, "
        )
    assert Approvals(hospitals.site("a").folder).decisions == {}
    assert main(["--site", str(hospitals.sites["a"]), "decline", study.hash]) == 0
    assert capsys.readouterr().err == ""


def test_of_many_patients_whom_a_study_cannot_use_ten_are_named(new_hospitals, capsys):
    small = new_hospitals("large")
    site = small.add("a", patients=12)
    for folder in (site.cohort_folder / "cases").iterdir():
        (folder / "case.json").unlink()
    study = small.study()
    Approvals(site.folder).put_down(study)
    assert main(["--site", str(small.sites["a"]), "approve", study.hash]) == 1
    said = capsys.readouterr().out
    assert said.count("case.json is missing") == 10
    assert "  and 2 more; log/training.jsonl names them all once a round is trained" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"task": {"name": "palmistry"}}, "no task named 'palmistry'"),
        ({"sites": ("b", "c")}, "it names b, c and not a"),
        ({"privacy": {"kind": "none"}}, "it has privacy.kind 'none', and site.yaml doesn't accept releases without noise"),
        ({"strategy": {"name": "sum"}}, "is learned by gradients, which can't be summed"),
    ],
)
def test_a_study_that_would_be_declined_all_the_same_is_not_approved(hospitals, capsys, settings, words):
    study = hospitals.study(name="pilot", **settings)
    approvals = Approvals(hospitals.site("a").folder)
    approvals.put_down(study)
    assert main(["--site", str(hospitals.sites["a"]), "approve", study.hash]) == 1
    said = capsys.readouterr().err
    assert "not approved: a would decline study pilot all the same" in said
    assert words in said
    assert not approvals.decisions
