"""The audit finds nothing in konsil as it is, and what it makes of what it finds. That it can find: test_audit_bugs.py."""

import json
import math

import numpy as np
import pytest
from chromium import Chromium, program
from rich.console import Console
from scipy import stats

from simulation.__main__ import main
from simulation.audit.attack import audit
from simulation.audit.canary import at_least, p_value
from simulation.audit.catalogue import ALL, chosen
from simulation.audit.check import Check, Finding, Setting, carried_out, correlation_z, std_ratio
from simulation.audit.page import page
from simulation.audit.settings import Audit

SMALL = Audit(effort="quick", releases=4, draws=100, canaries=600)
BRIEF = (
    "neighbours: vectors", "noise: questions", "what leaves", "secure sum: rounding", "secure sum: masks", "secure sum: noise",
    "canaries",
)  # fmt: skip


@pytest.mark.parametrize("name", BRIEF)
def test_the_claim_holds(name, tmp_path):
    (check,) = chosen(SMALL.model_copy(update={"checks": (name,)}))
    result = carried_out(check, Setting(SMALL, tmp_path))
    assert result.finding.problems == []
    assert result.finding.figures


def test_every_check_has_a_name_and_a_claim_of_its_own():
    assert len({check.name for check in ALL}) == len({check.claim for check in ALL}) == len(ALL)
    assert all(check.claim.endswith(".") for check in ALL)


def test_membership_and_inversion_are_tried_where_they_are_asked_for():
    names = {check.name for check in chosen(SMALL)}
    everything = {check.name for check in chosen(Audit(effort="full", shadow_models=8, inversion_steps=10))}
    assert everything - names == {"membership", "gradient inversion"}


def refuted(setting):
    found = Finding({"epsilon": 7.5, "steps": 3})
    found.require(False, "the sum lies <4> bounds away")
    return found


def stumbles(setting):
    raise ValueError("no such hospital")


def run(checks, folder, monkeypatch, capsys):
    monkeypatch.setattr("simulation.audit.attack.chosen", lambda settings: checks)
    status = audit(SMALL, folder, console=Console(width=200, highlight=False))
    return status, capsys.readouterr().out, json.loads((folder / "audit.json").read_text()), (folder / "audit.html").read_text()


def test_what_is_found_is_said_on_the_screen_in_the_file_and_on_the_page(tmp_path, monkeypatch, capsys):
    checks = (
        Check("one", "It holds.", "certain", lambda setting: Finding({"seen": 2})),
        Check("two", "So.", "certain", refuted),
    )
    status, said, facts, shown = run(checks, tmp_path, monkeypatch, capsys)
    assert status == 1
    assert "REFUTED: two" in said
    assert "the sum lies <4> bounds away" in said
    assert (facts["passed"], [check["passed"] for check in facts["checks"]]) == (False, [True, False])
    assert facts["checks"][1]["figures"] == {"epsilon": 7.5, "steps": 3}
    assert "the sum lies &lt;4&gt; bounds away" in shown
    assert "Refuted: two" in shown
    assert shown.index("</span>two") < shown.index("</span>one")  # what failed stands first


def test_a_check_that_stumbles_has_not_passed(tmp_path, monkeypatch, capsys):
    status, _, facts, _ = run((Check("one", "It.", "certain", stumbles),), tmp_path, monkeypatch, capsys)
    assert status == 1
    assert "could not be carried out: ValueError: no such hospital (test_attacks.py:" in facts["checks"][0]["problems"][0]


def test_where_nothing_is_found_the_status_is_0(tmp_path, monkeypatch, capsys):
    fine = Check("one", "It.", "certain", lambda setting: Finding({"nothing": math.inf}))
    status, said, facts, shown = run((fine,), tmp_path, monkeypatch, capsys)
    assert (status, facts["passed"], facts["checks"][0]["figures"]) == (0, True, {"nothing": None})
    assert "nothing was found" in said
    assert "No claim was refuted." in shown


def test_the_command_attacks_instead_of_rehearsing(tmp_path, capsys):
    settings = [f"runs_folder={tmp_path}", "name=tried", "audit=quick", "audit.checks=['neighbours: vectors']"]
    assert main(settings) == 0
    assert sorted(path.name for path in (tmp_path / "tried").iterdir()) == [".lock", "audit.html", "audit.json"]
    facts = json.loads((tmp_path / "tried" / "audit.json").read_text())
    assert [check["check"] for check in facts["checks"]] == ["neighbours: vectors"]


def test_a_check_that_there_is_not_is_refused_in_words(tmp_path, capsys):
    assert main([f"runs_folder={tmp_path}", "audit=quick", "audit.checks=[luck]"]) == 2
    assert "audit.checks: no check named luck; there are gate, neighbours: clipped sum" in capsys.readouterr().err


def test_without_delta_the_bound_is_that_of_coin_flips():
    """With delta 0 right guesses are at most binomial with the probability e^eps / (1 + e^eps)."""
    for right, guesses in ((80, 100), (990, 1000)):
        found = at_least(right, guesses, canaries=5000, delta=0.0)
        low = stats.binomtest(right, guesses, alternative="greater").proportion_ci(confidence_level=0.95).low
        assert found == pytest.approx(math.log(low / (1 - low)), abs=1e-6)


def test_delta_and_more_guesses_move_the_bound_as_they_must():
    assert at_least(50, 100, canaries=1000) == 0
    assert at_least(100, 100, canaries=1000, delta=1e-6) < at_least(100, 100, canaries=1000, delta=0.0)
    assert at_least(200, 200, canaries=1000) > at_least(100, 100, canaries=1000)
    assert p_value(2.0, 0, 100, canaries=1000) == 1.0


def test_noise_of_the_wrong_size_and_noise_that_is_shared_are_seen():
    rng = np.random.default_rng(0)
    deviates = rng.normal(0, 3, 20_000)
    assert std_ratio(deviates, 3.0)[1] > 1e-4
    ratio, p = std_ratio(deviates, 3.3)
    assert (ratio, p < 1e-7) == (pytest.approx(1 / 1.1, rel=0.02), True)
    assert abs(correlation_z(deviates, rng.normal(size=20_000))) < 5
    assert correlation_z(deviates, deviates + rng.normal(0, 3, 20_000)) > 50


@pytest.mark.skipif(program() is None, reason="needs Chromium")
def test_nothing_on_the_page_lies_beyond_its_margins(tmp_path):
    check = Check("neighbours: whole answers", "One patient moves it by the bound.", "certain", refuted)
    results = [carried_out(check, Setting(SMALL, tmp_path)) for _ in range(2)]
    facts = {"effort": "quick", "konsil_version": "1", "seed": 0, "machine": "x", "cpu_s": 1}
    (tmp_path / "audit.html").write_text(page(results, facts))
    browser = Chromium(tmp_path / "profile")
    try:
        looks = [browser.look((tmp_path / "audit.html").as_uri(), width=width) for width in (1200, 390)]
    finally:
        browser.close()
    assert [(look["beyond"], look["wide"]) for look in looks] == [([], 1200), ([], 390)]
    assert {"Verdict", "What this does not prove"} <= set(looks[0]["headings"])
    assert browser.complaints == []
