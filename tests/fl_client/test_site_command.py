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
    assert main(["--site", str(site), "show", study.hash]) == 0
    assert type(study).from_json(capsys.readouterr().out) == study


def test_the_ledger_is_checked_and_summed(hospitals, capsys):
    book = ledger_of(hospitals.site("a"))
    for number in (1, 2):
        book.spend(Event(noise_multiplier=2.0, study_name="pilot", round=number))
    assert main(["--site", str(hospitals.sites["a"]), "ledger"]) == 0
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
