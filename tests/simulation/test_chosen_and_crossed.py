"""What a rehearsal tells of studies that judge their models on the way: the chosen round, the matrix, what it cost."""

import re
from html import unescape

import pytest
from drawn_run import SITES, build

from conf.study import Study
from fl_client.app import ledger_of
from fl_client.site import Budget, Site
from fl_server.record import Matrix, Record, SiteRound
from fl_server.strategies import aggregator
from simulation.__main__ import settings_of
from simulation.arms import Arm
from simulation.report import write_report
from simulation.results import at_the_ledger
from tasks.accounting.events import Event


def report(folder, **changes):
    """Text of the report of a drawn run whose record was changed so; runs of white space are one space."""
    build(folder, overlays=False)
    record = Record.read(folder / "record.json").model_copy(update=changes)
    record.write(folder / "record.json")
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", write_report(folder).read_text())).split())


def test_the_report_names_the_round_that_was_chosen_why_it_ended_and_that_rounds_model(tmp_path):
    early = "after round 12: 2 scores in a row were no better than that after round 5 (dice 0.8)"
    text = report(tmp_path, selected_round=5, stopped_early=early)
    assert "Scores between the rounds chose the model of round 5, the latest that the noise doesn't tell from the best." in text
    assert f"It was ended before its last round: {early}." in text
    assert f"{5:064x}" in text
    assert f"{12:064x}" not in text


def test_without_a_choice_the_model_is_the_last_rounds(tmp_path):
    text = report(tmp_path)
    assert f"{12:064x}" in text
    assert "chose the model" not in text
    assert "Every hospital's model at every hospital" not in text


def test_the_matrix_stands_in_the_report_with_its_noise_and_with_who_gave_no_score(tmp_path):
    *told, silent = SITES
    scores = {
        model: {site: 0.5 + 0.01 * i + 0.05 * j for j, site in enumerate(told)} for i, model in enumerate(["global", *SITES])
    }
    matrix = Matrix(
        metric="dice",
        scores=scores,
        noise_std=dict.fromkeys(SITES, 1.0),
        noise_sd={"global": {told[0]: 0.12}},
        sites={site: SiteRound(answer="used") for site in SITES},
        seconds=1.0,
    )
    text = report(tmp_path, matrix=matrix)
    assert "dice on validation patients; rows: model, columns: hospital that judged it" in text
    assert "All together 0.50 ± 0.12 0.55 0.60 0.65 –" in text
    assert f"{told[1]} 0.52 0.57 0.62 0.67 –" in text
    assert f"No score from {silent}:" in text


def test_a_report_says_that_hospitals_are_scored_with_what_they_keep_for_themselves(tmp_path):
    build(tmp_path, overlays=False)
    record = Record.read(tmp_path / "record.json")
    record.study["training"] = {**record.study["training"], "personal": ["*.N.weight"]}
    record.write(tmp_path / "record.json")
    assert "scored with the parameters that stay there (training.personal)" in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("name", "asked"), [("krum", "quorum is 5; krum tells 2 wrong"), ("fedtrimmed", "quorum is 1; of so few")]
)
def test_a_quorum_below_what_the_strategy_promises_is_refused_before_anything_runs(name, asked):
    few = ["strategy.malicious=2"] if name == "krum" else ["strategy.quorum=1"]
    with pytest.raises(ValueError, match=asked):
        settings_of([f"strategy={name}", *few])


@pytest.mark.parametrize("name", ["krum", "fedtrimmed"])
def test_one_hospital_by_itself_trains_under_a_strategy_that_needs_several(name):
    simulation = settings_of([f"strategy={name}"])
    alone = simulation.study(seed=0, private=False, sites=("isar",), initial=None)
    assert type(aggregator(alone)).__name__ == "FedAvg"
    together = simulation.study(seed=0, private=False, sites=tuple(simulation.hospitals.sites), initial=None)
    assert together.strategy.name == name


def test_the_federation_without_privacy_is_asked_for_the_same_scores():
    shares = {"evaluation_share": 0.1, "matrix_share": 0.2}
    simulation = settings_of([f"privacy.{key}={value}" for key, value in shares.items()])
    plain = simulation.study(seed=0, private=False, sites=tuple(simulation.hospitals.sites), initial=None).privacy
    assert {key: getattr(plain, key) for key in shares} == shares
    assert plain.kind == "none"


def test_what_was_paid_for_answers_that_got_lost_is_in_the_epsilon_of_the_record(tmp_path):
    home = tmp_path / "sites" / "isar"
    home.mkdir(parents=True)
    site = Site(name="isar", folder=home, declared_size=10, budget=Budget(epsilon=8.0, delta=1e-3))
    site.save(home / "site.yaml")
    for number in (1, 2):
        told = ledger_of(site).spend(Event(noise_multiplier=2.0, study_name="lost", round=number))
    study = {"name": "lost", "konsil_version": "0", "task": {"name": "segmentation"}, "rounds": 2, "sites": ("isar",)}
    arm = Arm("federation_private", Study(**study), {}, tmp_path)
    assert at_the_ledger(arm, "isar") == pytest.approx(told)
    plain = Arm("federation_plain", Study(**study, privacy={"kind": "none"}), {}, tmp_path)
    assert at_the_ledger(plain, "isar") is None
