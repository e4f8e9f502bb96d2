import json
import math

import pytest

from conf.study import Privacy, Study
from fl_client.__main__ import main
from fl_client.price import planned
from fl_client.privacy import Event, Ledger, LedgerBroken, epsilon, shared_noise
from fl_client.site import Site
from fl_client.spending import spending
from tasks.task import load_for

DELTA = 1e-3


@pytest.fixture
def site(tmp_path):
    site = Site(name="st-anna", folder=tmp_path / "house", declared_size=60, budget={"epsilon": 8.0, "delta": DELTA})
    site.folder.mkdir()
    site.save(tmp_path / "site.yaml")
    return site


@pytest.fixture
def book(site):
    """Two studies: 1/16 + 1/16 and 1/8 of squares."""
    book = Ledger(site.ledger_path, epsilon=8.0, delta=DELTA)
    book.spend(Event(noise_multiplier=4.0, study="aa" * 32, study_name="pilot", round=1))
    book.spend(Event(noise_multiplier=4.0, study="aa" * 32, study_name="pilot", round=1, kind="scores"))
    book.spend(Event(noise_multiplier=4.0, study="bb" * 32, study_name="forest", round=1, steps=2, kind="leaf counts"))
    return book


def run(site, *arguments):
    return main(["--site", str(site.folder.parent / "site.yaml"), "ledger", *map(str, arguments)])


def test_shares_follow_the_squares_and_add_up_to_what_is_spent(book):
    account = spending(book, hospital="st-anna")
    pilot, forest = account.studies
    assert [pilot.name, forest.name] == ["pilot", "forest"]
    assert [kind.share / account.used for kind in pilot.kinds] == pytest.approx([0.25, 0.25])
    assert forest.share == pytest.approx(account.used / 2)
    # the squares come to 1/4; those of one release that costs the whole budget to 1 / noise**2
    whole = Event(noise_multiplier=math.sqrt(4 * account.used))
    assert epsilon([whole], delta=DELTA) == pytest.approx(8, rel=1e-6)


def test_the_course_rises_to_what_the_ledger_says(book):
    account = spending(book, hospital="st-anna")
    heights = [height for _, _, height in account.course]
    assert heights == sorted(heights)
    assert heights[-1] == account.epsilon == book.epsilon
    assert [of for _, of, _ in account.course] == ["aa" * 32, "aa" * 32, "bb" * 32]


def test_sampled_studies_have_their_share_too(site):
    book = Ledger(site.ledger_path, epsilon=8.0, delta=DELTA)
    book.spend(Event(noise_multiplier=2.0, sample_rate=0.1, steps=20, planned=40, study="aa" * 32, study_name="drawn"))
    book.spend(Event(noise_multiplier=5.0, study="bb" * 32, study_name="whole"))
    account = spending(book, hospital="st-anna")
    assert sum(one.share for one in account.studies) == pytest.approx(account.used)
    assert all(one.share > 0 for one in account.studies)


def test_what_a_study_costs_if_secure_aggregation_fails_is_told(site, capsys):
    book = Ledger(site.ledger_path, epsilon=8.0, delta=DELTA)
    noise = {"share_std": 4e6, "shares": 4, "sensitivity": 1e6, "dimension": 100, "sampling_error": 1e-20}
    book.spend(shared_noise(**noise, study="cc" * 32, study_name="sums"))
    assert run(site) == 0
    alone = epsilon([Event(noise_multiplier=4.0)], delta=DELTA)
    assert f"if secure aggregation fails, epsilon {alone:.4g} in place of" in capsys.readouterr().out


def test_releases_without_noise_are_in_no_percentage(site, capsys):
    book = Ledger(site.ledger_path, epsilon=8.0, delta=DELTA, accept_no_privacy=True)
    book.spend(Event(noise_multiplier=4.0, study_name="pilot"))
    book.spend(Event(noise_multiplier=0.0, study_name="bare"))
    account = spending(book, hospital="st-anna")
    assert (account.bare, account.epsilon) == (1, math.inf)
    assert account.studies[1].share == 0
    assert run(site) == 0
    said = capsys.readouterr().out
    assert "2 releases, unbroken; epsilon infinite of 8" in said
    assert "1 of them without noise" in said
    assert "NO NOISE" in said
    assert run(site, "--json", "--plot", site.folder / "plot.svg") == 0  # infinities are drawn and written, too
    assert json.loads(capsys.readouterr().out)["epsilon"] == "infinite"


def study_file(site, **privacy):
    task = {"name": "count", "tables": [{"axes": [{"field": "endpoint.age", "edges": [40, 60]}]}]}
    study = {"name": "next", "rounds": 1, "sites": [site.name], "task": task, "privacy": privacy}
    study["strategy"] = {"name": "sum"}
    path = site.folder / "study.json"
    path.write_text(json.dumps(study))
    return path


def test_what_a_proposed_study_would_take_is_told_and_nothing_is_written(site, book, capsys):
    before = {file: file.read_bytes() for file in site.folder.iterdir() if file.is_file()}
    path = study_file(site, epsilon=3.0, delta=DELTA, evaluation_share=0)
    assert run(site, "--study", path, "--json") == 0
    plan = json.loads(capsys.readouterr().out)["proposed"]
    assert plan["name"] == "next"
    assert plan["study"] == Study.read(path).hash
    assert plan["alone"] == pytest.approx(3.0, rel=0.01)
    assert plan["after"] > max(3.0, book.epsilon)
    assert plan["refused"] == ""
    assert run(site, "--study", path) == 0
    assert f"epsilon would stand at {plan['after']:.4g} of 8" in capsys.readouterr().out
    path.unlink()
    assert {file: file.read_bytes() for file in site.folder.iterdir() if file.is_file()} == before


def test_of_a_study_that_is_partly_paid_only_the_rest_is_proposed(site, capsys):
    privacy = Privacy(epsilon=3.0, delta=DELTA, evaluation_share=0.3)
    task = {"name": "segmentation", "voxels": 16, "roi_mm": None, "field_mm": 80, "channels": [4, 8], "strides": [2]}
    study = Study(konsil_version="0.3.0", name="next", rounds=2, sites=(site.name,), task=task, privacy=privacy)
    path = site.folder / "study.json"
    path.write_text(study.to_json())
    plan = planned(site, study, load_for(study))
    book = Ledger(site.ledger_path, epsilon=8.0, delta=DELTA)
    for event in (plan[0], plan[0]):  # the round was sent twice, which leaves no less to pay
        book.spend(event)
    assert run(site, "--study", path) == 0
    said = capsys.readouterr().out
    assert f"Study next ({study.hash[:12]}): of 3 releases, all of its rounds and scores, 1 paid and 2 left" in said
    assert "  what is left to pay would take " in said
    assert f"alone it costs epsilon {epsilon(plan[1:], delta=DELTA):.4g}" in said
    assert f"epsilon would stand at {book.planned(plan[1:]):.4g} of 8" in said
    for event in plan[1:]:
        book.spend(event)
    assert run(site, "--study", path) == 0
    said = capsys.readouterr().out
    assert said.endswith("all 3 releases of its rounds and scores are paid; nothing is left to pay\n")
    assert run(site, "--study", path, "--json", "--plot", site.folder / "plot.svg") == 0
    left = json.loads(capsys.readouterr().out)["proposed"]
    assert (left["paid"], left["releases"], left["share"], left["after"]) == (3, 0, 0, pytest.approx(book.epsilon))


def test_a_proposed_study_that_the_ledger_would_refuse_is_told_with_the_reason(site, book, capsys):
    assert run(site, "--study", study_file(site, epsilon=7.9, delta=DELTA)) == 0
    assert "the ledger would refuse it: study next round 1 would bring epsilon to" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_picture_is_drawn_for_ledgers_of_any_size(site, kind, capsys):
    path = site.folder / f"plot.{kind}"
    assert run(site, "--plot", path) == 0  # nothing was released
    book = Ledger(site.ledger_path, epsilon=8.0, delta=DELTA)
    for number in range(12):
        book.spend(Event(noise_multiplier=20.0, study_name=f"a study with quite a long name {number}", round=1))
    assert run(site, "--plot", path, "--study", study_file(site, epsilon=1.0)) == 0
    assert path.read_bytes()[:4] in (b"\x89PNG", b"<?xm", b"%PDF")
    assert f"drawn in {path}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--plot", "ledger.docx"], "a picture's name ends in .png, .svg or .pdf, not ledger.docx"),
        (["--study", "nowhere.json"], "there is no file nowhere.json"),
        (["--study", "abc"], "0 studies have a hash that starts with 'abc'"),
    ],
)
def test_what_can_not_be_shown_is_refused_in_words(site, capsys, arguments, told):
    assert run(site, *arguments) == 1
    assert told in capsys.readouterr().err


def test_one_study_is_priced_at_a_time(site, capsys):
    with pytest.raises(SystemExit) as ended:
        run(site, "--study", "one.json", "--study", "two.json")
    assert ended.value.code == 2
    assert "--study takes one study at a time" in capsys.readouterr().err


def test_a_file_that_holds_no_study_is_refused_in_words(site, capsys):
    path = site.folder / "study.json"
    path.write_text('{"name": "x"}')
    assert run(site, "--study", path) == 1
    assert "is no study: " in capsys.readouterr().err


def test_a_broken_ledger_has_no_account(site, book):
    book.path.write_text(book.path.read_text().replace('"round":1', '"round":7'))
    with pytest.raises(LedgerBroken, match="line 1 was changed"):
        spending(book, hospital="st-anna")
