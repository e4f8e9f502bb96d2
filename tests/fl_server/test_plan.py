import json
import math
from importlib.metadata import version

import pytest

from conf.study import Study
from fl_server.__main__ import main
from fl_server.plan.noise import Asked, _noise, asked_of, plan
from fl_server.plan.utility import Learned, expected, table
from fl_server.promised import noise_variance
from tasks.accounting.budget import epsilon
from tasks.accounting.events import Event

SIX = {f"site{n}": 40 for n in range(6)}


def asked(**changes):
    settings = {"epsilon": 3.0, "delta": 1e-3, "rounds": 20, "steps": 1, "sample_rate": 1.0, "sizes": SIX}
    return Asked(**{**settings, **changes})


def study(**changes):
    settings = {"konsil_version": version("konsil"), "task": {"name": "segmentation"}, "rounds": 20, "sites": ["a", "b"]}
    return Study(**{**settings, **changes})


def test_the_noise_is_the_one_that_the_promise_needs_and_that_the_coordinator_expects():
    one = study(privacy={"epsilon": 3.0, "evaluation_share": 0.1}, training={"steps": 3})
    found = plan(asked_of(one, {"a": 40, "b": 60}))
    assert found.noise.multiplier == pytest.approx(math.sqrt(noise_variance(one, "round")), rel=2e-3)
    assert epsilon([Event(noise_multiplier=found.noise.multiplier, steps=60)], delta=1e-3) < 3.0  # scores have the rest


def test_the_mean_gradient_of_all_has_the_noise_of_a_sum_of_hospitals_over_all_patients():
    found = plan(asked())
    z = found.noise.multiplier
    assert found.noise.together == pytest.approx(z * math.sqrt(6) / 240)
    assert found.noise.alone == pytest.approx(z / 40)
    assert found.noise.averaged == pytest.approx(z * math.sqrt(6) / 240 / math.sqrt(20))
    half = _noise(asked(sample_rate=0.5), 20)
    assert found.noise.together < half.together < 1.2 * found.noise.together  # nearly flat in the rate
    assert half.multiplier < 0.6 * z


def test_published_figures_for_small_sites_are_met():
    """100 steps, delta 1e-3, all of 200 patients at one site: standard deviations measured apart, by Renyi accounting."""
    for eps, level in ((1.0, 0.145), (3.0, 0.057), (8.0, 0.026)):
        found = plan(asked(epsilon=eps, rounds=100, sizes={"a": 200}))
        assert found.noise.together == pytest.approx(level, rel=0.12)
        assert found.noise.together < level


def test_one_shared_noise_is_that_of_one_hospital_with_a_reserve():
    found = plan(asked(secure=True))
    each = plan(asked())
    assert found.noise.multiplier == each.noise.multiplier
    assert found.noise.together == pytest.approx(each.noise.together / math.sqrt(4))  # 5 left, 1 colluding, all 6 answer
    own = Event(noise_multiplier=found.own_multiplier, steps=20)
    assert found.own_multiplier == pytest.approx(found.noise.multiplier / 2)
    assert found.epsilon_if_it_fails == pytest.approx(epsilon([own], delta=1e-3), rel=1e-6)
    assert each.epsilon_if_it_fails is None


def test_so_many_patients_bring_the_noise_to_the_level():
    found = plan(asked(), level=0.02)
    more = {name: math.ceil(found.patients_needed / 6) for name in SIX}
    assert plan(asked(sizes=more)).noise.together <= 0.02
    fewer = {name: size - 2 for name, size in more.items()}
    assert plan(asked(sizes=fewer)).noise.together > 0.02


def test_other_numbers_of_rounds_cost_the_same():
    found = plan(asked(rounds=8))
    assert [other.rounds for other in found.others] == [2, 4, 8, 16, 32]
    for other in found.others:
        cost = epsilon([Event(noise_multiplier=other.multiplier, steps=other.rounds)], delta=1e-3)
        assert cost == pytest.approx(3.0, rel=3e-3)


def test_a_ledger_stands_where_its_releases_and_the_study_s_bring_it():
    before = [Event(noise_multiplier=4.0, steps=2)]
    known = {"epsilon": epsilon(before, delta=1e-4), "budget": 4.0, "delta": 1e-4}
    found = plan(asked(), ledgers={"site2": known})
    (ledger,) = found.ledgers
    after = epsilon([*before, Event(noise_multiplier=found.noise.multiplier, steps=20)], delta=1e-4)
    assert ledger.after == pytest.approx(after, rel=1e-6)
    assert ledger.affordable is (after <= 4.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": {}}, "no hospital is named"),
        ({"sizes": {"a": 0}}, "a declares 0 patients"),
        ({"epsilon": 0.0}, "epsilon must lie above 0"),
        ({"delta": 0.2}, "delta must lie above 0 and below 0.1, not be 0.2"),
        ({"rounds": 0}, "rounds must be 1 or more"),
        ({"sample_rate": 1.5}, "sample_rate must lie above 0 and be 1 at most, not 1.5"),
        ({"secure": True, "steps": 2}, "rounds of one step over all patients, not of 2"),
        ({"secure": True, "sizes": {"a": 5, "b": 5}}, "a threshold of 3 and 1 that may collude is no secure aggregation of 2"),
    ],
)
def test_what_can_not_be_planned_is_refused_in_words(changes, words):
    with pytest.raises(ValueError, match=words):
        plan(asked(**changes))


def test_studies_that_do_not_fit_their_sizes_are_refused_in_words():
    with pytest.raises(ValueError, match="has no hospital c; it has a, b"):
        asked_of(study(), {"a": 1, "b": 1, "c": 1})
    with pytest.raises(ValueError, match="no size is given of b"):
        asked_of(study(), {"a": 1})
    with pytest.raises(ValueError, match="there is no noise to plan"):
        asked_of(study(privacy={"kind": "none"}), {"a": 1, "b": 1})


# -- what was measured ----------------------------------------------------------------------------------------------------

ROWS = """structures,strategy,trainable,epsilon,patients,sites,secure,dice,sd,seeds,without_privacy,source
a+b,fedavg,all,none,50,6,no,0.87,0.01,3,,here
a+b,fedavg,all,3,50,6,no,0.80,0.02,3,0.87,here
a+b,fedavg,all,3,50,6,yes,0.84,0.01,3,0.87,here
a+b,fedadam,norm,3,50,6,yes,0.83,0.01,3,0.87,here
a+b,fedavg,all,8,200,6,no,0.86,,1,,there
c,fedavg,all,3,50,4,yes,0.70,,1,,elsewhere
""".splitlines()
NEAR = {"epsilon": 3.0, "patients": 50, "sites": 6, "secure": True}
AB = Learned(frozenset("ab"), "fedavg", "all")


def test_the_table_that_konsil_brings_can_be_read():
    assert all(0 <= row.dice <= 1 and row.source and all(row.structures) for row in table())


def test_the_nearest_measured_row_of_each_task_and_way_is_named_the_best_first():
    rows = table(ROWS)
    near = expected(rows, **{**NEAR, "epsilon": 3.5, "patients": 40, "sites": 4})
    assert [one.row for one in near] == [rows[2], rows[3], rows[5]]
    assert near[0].words == (
        "Dice 0.840 ± 0.010 (3 seeds, 0.870 without privacy) with strategy fedavg and trainable all; epsilon 3, "
        "50 patients at each of 6 sites, shared noise: here"
    )
    (only,) = expected(rows, epsilon=8.0, patients=200, sites=6, secure=False)
    assert only.words.startswith("Dice 0.860 (1 seed) with")


@pytest.mark.parametrize("far", [{"epsilon": 1.0}, {"patients": 20}, {"sites": 2}, {"epsilon": 8.0}])
def test_where_nothing_is_near_nothing_is_invented(far):
    (found,) = expected(table(ROWS), **{**NEAR, **far}, learned=AB)
    assert found.row is None
    assert "none of the 5 measured rows is near" in found.words
    assert "nothing has been measured" in expected([], **NEAR)[0].words


def test_a_study_is_told_what_learned_the_same_in_its_way_or_says_that_the_way_was_another():
    rows = table(ROWS)
    (own,) = expected(rows, **NEAR, learned=AB)
    assert own.row == rows[2]
    others = expected(rows, **NEAR, learned=Learned(frozenset("ab"), "krum", "all"))
    assert [one.row for one in others] == [rows[2], rows[3]]
    assert all(", which isn't how this study learns; epsilon" in one.words for one in others)
    (unknown,) = expected(rows, **NEAR, learned=Learned(frozenset("ad"), "fedavg", "all"))
    assert (unknown.row, unknown.words) == (
        None,
        "no Dice is known: nothing has been measured that learned a, d and nothing else",
    )
    assert expected(rows, **NEAR, learned=Learned(frozenset(), "sum", "all"))[0].words == "no Dice: the study draws no contours"


@pytest.mark.parametrize("line", ["a,fedavg,all,3,50,6,perhaps,0.8,0.1,3,,x", "a,fedavg,all,3,fifty,6,no,0.8,0.1,3,,x", "3,50"])
def test_a_line_that_is_wrong_is_named(line):
    with pytest.raises(ValueError, match="line 2 of the table of utility can't be read"):
        table([ROWS[0], line])
    with pytest.raises(ValueError, match="has the columns"):
        table(["a,b", line])


# -- the command ----------------------------------------------------------------------------------------------------------


def test_the_command_tells_the_plan_and_prints_it_for_scripts(tmp_path, capsys):
    assert main(["plan", "--sites", "6", "--patients", "40", "--epsilon", "3"]) == 0
    said = capsys.readouterr().out
    z = plan(asked()).noise.multiplier
    assert f"noise multiplier   {z:.4g}" in said
    assert "6 hospitals, 240 patients; epsilon 3, delta 0.001" in said
    measured = expected(table(), epsilon=3, patients=40, sites=6, secure=False)
    assert f"expected Dice      {measured[0].words}" in said
    assert all(one.row is not None and one.words in said for one in measured)
    ledger = tmp_path / "north.json"
    ledger.write_text(json.dumps({"epsilon": 1.0, "budget": 2.0, "delta": 1e-3}))
    sizes = ["--size", "north=40", "--size", "south=60"]
    assert main(["plan", *sizes, "--epsilon", "3", "--ledger", f"north={ledger}"]) == 0
    assert "of 2 (delta 0.001): it would be refused" in capsys.readouterr().out
    assert main(["plan", *sizes, "--epsilon", "3", "--ledger", f"north={ledger}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["asked"]["sizes"] == {"north": 40, "south": 60}
    assert found["ledgers"][0]["after"] > 3
    assert found["patients_needed"] > 0


def test_the_command_reads_a_study_and_options_change_it(tmp_path, capsys):
    path = tmp_path / "study.json"
    count = {"name": "count", "tables": [{"axes": [{"field": "mask.lge"}]}]}
    path.write_text(study(privacy={"epsilon": 2.0}, task=count).to_json())
    assert main(["plan", str(path), "--patients", "30", "--size", "b=50", "--rounds", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["asked"]["sizes"] == {"a": 30, "b": 50}
    assert (found["asked"]["epsilon"], found["asked"]["rounds"]) == (2.0, 5)
    assert (found["dice"], found["dice_words"]) == ([], ["no Dice: the study draws no contours"])
    path.write_text(study(privacy={"epsilon": 3.0, "evaluation_share": 0.2}, sites=[*"abcdef"]).to_json())
    assert main(["plan", str(path), "--patients", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["asked"]["scores_share"] == 0.2
    assert {tuple(row["structures"]) for row in found["dice"]} == {
        ("blood_pool", "myocardium", "right_ventricle")
    }  # by default
    hearts = {
        "name": "segmentation",
        "structures": {"blood_pool": 1, "myocardium": 2, "right_ventricle": 3},
        "trainable": "norm",
    }
    path.write_text(study(privacy={"epsilon": 3.0}, task=hearts, strategy={"name": "fedadam"}).to_json())
    assert main(["plan", str(path), "--patients", "120", "--json"]) == 0  # two hospitals: none of the rows of six is near
    assert json.loads(capsys.readouterr().out)["dice"] == []
    names = [*"abcdef"]
    path.write_text(study(privacy={"epsilon": 3.0}, task=hearts, strategy={"name": "fedadam"}, sites=names).to_json())
    assert main(["plan", str(path), "--patients", "40", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["dice"]
    assert (row["structures"], row["strategy"], row["trainable"]) == (sorted(hearts["structures"]), "fedadam", "norm")


def test_a_study_under_masks_is_planned_before_its_hospitals_are_registered(tmp_path, capsys):
    path = tmp_path / "study.json"
    settings = {"name": "pilot", "sites": [*"abcdef"], "rounds": 16, "task": {"name": "segmentation"}}
    path.write_text(json.dumps({**settings, "privacy": {"epsilon": 3, "secure": {"patients": 400, "colluding": 2}}}))
    assert main(["plan", str(path), "--patients", "40", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["asked"]["secure"], found["asked"]["colluding"]) == (True, 2)
    assert found["epsilon_if_it_fails"] > 3
    path.write_text(json.dumps({**settings, "privacy": {"epsilon": 3, "secure": {"patients": 400, "coluding": 2}}}))
    assert main(["plan", str(path), "--patients", "40"]) == 1
    assert "privacy.secure.coluding" in capsys.readouterr().err
    path.write_text(json.dumps({**settings, "task": {"name": "segmentation", "trainabel": "all"}}))
    assert main(["plan", str(path), "--patients", "40"]) == 1
    assert "trainabel" in capsys.readouterr().err
    path.write_text(json.dumps({**settings, "sites": None}))
    assert main(["plan", str(path), "--patients", "40"]) == 1
    assert "names no sites" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "north"], "such as north=40, not 'north'"),
        (["--size", "north=4", "--size", "north=5"], "--size names north twice"),
        (["--sites", "3"], "--sites 3 needs --patients N"),
        ([], "no hospital is named"),
        (["--size", "a=4", "--ledger", "b"], "such as north=ledger.json, not 'b'"),
        (["--size", "a=4", "--noise", "0"], "a noise level is a positive part of the bound"),
        (["nowhere.json", "--patients", "3"], "nowhere.json"),
    ],
)
def test_mistakes_are_told_in_words(arguments, words, capsys):
    assert main(["plan", *arguments]) == 1
    assert words in capsys.readouterr().err
