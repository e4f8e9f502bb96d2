"""What the console says of studies, read from folders that real runs have left."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fl_server.__main__ import main
from fl_server.commands import UNDECIDED
from fl_server.commands.studies import _require_rest
from fl_server.console.events import Teller, events
from fl_server.console.files import Files, studies
from fl_server.console.picture import drawn, picture
from fl_server.console.words import spoken, told
from fl_server.house import House
from fl_server.live import Heard, Now
from fl_server.record import Evaluation, Matrix, Record, SiteRound
from fl_server.rounds import run
from fl_server.runs import STUDY, Standing
from fl_server.weights import initial_state
from simulation.grid import InProcessGrid


def ran(hospitals, runs, study):
    """Run a study in this process; its folder."""
    grid = InProcessGrid("fl_client.app:app", hospitals.nodes, {"study": study.to_json()})
    run(grid, study, initial_state(study), folder=runs / study.name)
    return runs / study.name


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Where the studies are kept from test to test: they are run once."""
    return tmp_path_factory.mktemp("shelf") / "runs"


@pytest.fixture
def runs(shelf, hospitals, tmp_path):
    """A folder of runs with one study that was complete and one that missed a hospital."""
    if not shelf.exists():
        ran(hospitals, shelf, hospitals.study(name="whole"))
        ran(hospitals, shelf, hospitals.study(name="parted", sites=("a", "nowhere"), privacy={"epsilon": 1.0}))
    shutil.copytree(shelf, tmp_path / "runs")
    return tmp_path / "runs"


def interrupted(folder: Path, *, after: int) -> Record:
    """Make a folder as a process leaves it that was killed in the round after `after`, and is gone."""
    record = Record.read(folder / "record.json")
    record.rounds, record.ended = record.rounds[:after], ""
    record.judge()
    record.write(folder / "record.json")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    present(folder, record, pid=int(gone.stdout), asked=list(record.study["sites"]))
    return record


def present(folder: Path, record: Record, *, pid: int, asked: list[str], heard: dict[str, Heard] | None = None) -> Now:
    """Write that this process asks hospitals now."""
    at = time.time()
    now = Now(
        study=record.name,
        study_hash=record.study_hash,
        pid=pid,
        phase="round",
        round=len(record.rounds) + 1,
        rounds=record.study["rounds"],
        began=at - 20,
        deadline=at + 100,
        asked=dict.fromkeys(asked, at - 20),
        heard=heard or {},
        updated=at,
    )
    now.write(folder)
    return now


def test_status_and_its_exit_code_are_the_verdicts(runs, capsys):
    assert main(["status", "whole", "--runs", str(runs)]) == 0
    said = capsys.readouterr().out
    assert "whole (" in said
    assert "over: complete, 2 of 2 rounds" in said
    assert "  b  2 used" in said
    assert main(["status", "parted", "--runs", str(runs)]) == 3
    said = capsys.readouterr().out
    assert "rounds 1 to 2: nowhere absent" in said
    assert main(["status", "other", "--runs", str(runs)]) == 1
    assert "no study 'other'" in capsys.readouterr().err


def test_a_price_that_was_told_before_the_last_question_is_not_called_the_ledgers(runs, capsys):
    path = runs / "whole" / "record.json"
    record = Record.read(path)
    record.rounds[1].sites["c"] = SiteRound(answer="absent", reason="lost on the way", attempts=2)
    record.sites["c"].epsilon = record.rounds[0].sites["c"].epsilon
    record.write(path)
    spent, promise = record.sites["c"].epsilon, record.study["privacy"]["epsilon"]
    main(["status", "whole", "--runs", str(runs)])
    said = capsys.readouterr().out
    assert f"epsilon {spent:.3g} when it last told (round 1), {promise:g} promised by the study" in said
    assert said.count("at its ledger") == 2  # a and b told with their last answers
    main(["record", str(path)])
    assert "c: epsilon" in (said := capsys.readouterr().out)
    assert said.count("when it last told (round 1)") == 1
    record.rounds[1].sites["c"].attempts = 0  # nothing was asked, so nothing was paid
    record.write(path)
    main(["status", "whole", "--runs", str(runs)])
    assert "when it last told" not in capsys.readouterr().out


def test_status_is_told_to_scripts_as_json(runs, capsys):
    main(["status", "parted", "--runs", str(runs), "--json"])
    one = json.loads(capsys.readouterr().out)
    record = Record.read(runs / "parted" / "record.json")
    assert one["verdict"] == "degraded"
    assert one["reasons"] == record.reasons
    assert one["sites"]["a"]["answers"] == {"used": 2}
    assert one["sites"]["nowhere"]["answers"] == {"absent": 2}
    assert one["sites"]["a"]["epsilon"] == pytest.approx(record.sites["a"].epsilon)
    assert one["promise"] == 1
    assert main(["status", "--runs", str(runs), "--json"]) == 0
    assert {entry["name"] for entry in json.loads(capsys.readouterr().out)} == {"whole", "parted"}


def test_all_studies_are_listed_with_hash_verdict_and_sites(runs, hospitals, capsys):
    assert main(["list", "--runs", str(runs), "--json"]) == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert listed["whole"]["study_hash"] == hospitals.study(name="whole").hash
    assert (listed["whole"]["verdict"], listed["parted"]["verdict"]) == ("complete", "degraded")
    assert listed["whole"]["sites"] == ["a", "b", "c"]
    assert main(["list", "--runs", str(runs)]) == 0
    assert "over, complete, 2 of 2 rounds, 3 sites, started 20" in capsys.readouterr().out


def test_one_folder_that_can_not_be_read_hides_no_other(runs, capsys):
    (runs / "parted" / "record.json").write_text("{")
    assert main(["list", "--runs", str(runs)]) == 0
    said = capsys.readouterr().out
    assert "parted  its files can't be read" in said
    assert "whole" in said
    assert main(["status", "parted", "--runs", str(runs)]) == 1


def test_a_folder_without_studies_is_refused_in_words(tmp_path, capsys):
    assert main(["list", "--runs", str(tmp_path)]) == 1
    assert "holds no study" in capsys.readouterr().err


def test_the_arms_of_a_rehearsal_are_studies_of_its_folder(runs, tmp_path):
    arm = tmp_path / "trial" / "arms" / "federation_private" / "0"
    arm.parent.mkdir(parents=True)
    (runs / "whole").rename(arm)
    assert list(studies(tmp_path / "trial")) == ["arms/federation_private/0"]
    assert list(studies(arm)) == ["0"]
    assert picture(Files(arm)).verdict == "complete"


def test_who_is_awaited_and_for_how_long(runs, capsys):
    record = interrupted(runs / "whole", after=1)
    heard = {"b": Heard(answer="used", at=time.time() - 5)}
    present(runs / "whole", record, pid=os.getpid(), asked=["a", "b", "c"], heard=heard)
    assert main(["status", "whole", "--runs", str(runs)]) == UNDECIDED
    said = capsys.readouterr().out
    assert "in round 2 of 2" in said
    assert "verdict complete so far, 1 of 2 rounds" in said
    assert "awaited: a for 20 s, c for 20 s; the round ends in 2 min at the latest" in said
    one = picture(Files(runs / "whole"))
    assert one.sites["b"].awaited_s is None
    assert one.left_s is not None


def test_a_study_whose_process_is_gone_is_not_said_to_run(runs, capsys):
    interrupted(runs / "whole", after=1)
    assert main(["status", "whole", "--runs", str(runs)]) == UNDECIDED
    said = capsys.readouterr().out
    assert "interrupted after round 1 of 2: its process (" in said
    assert "is not there any more; last heard of at" in said
    assert "awaited" not in said


def test_what_a_person_stopped_is_not_waited_for(runs):
    record = interrupted(runs / "whole", after=1)
    Standing(study_hash=record.study_hash, run=7, wanted="stopped").write(runs / "whole")
    one = picture(Files(runs / "whole"))
    assert (one.state, one.said, one.verdict) == ("stopped", "stopped after round 1 of 2", "failed")


def test_what_is_being_stopped_is_said_to_be_and_when(idle_house, capsys):
    folder, house = idle_house.runs / "whole", ["--folder", str(idle_house.folder)]
    record = Record.read(folder / "record.json")
    present(folder, record, pid=os.getpid(), asked=["a"])
    main(["stop", "whole", *house])
    main(["status", "whole", *house])
    assert "stopping; it was in round 2 of 2\n" in capsys.readouterr().out
    main(["list", *house])
    assert "  stopping, complete so far, 1 of 2 rounds" in capsys.readouterr().out
    interrupted(folder, after=1)
    main(["list", *house])
    assert "  stopped, 1 of 2 rounds, 3 sites" in capsys.readouterr().out
    main(["log", "whole", *house, "--json"])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["text"], last["when"]) == ("stopped by a person", Standing.read(folder).stopped)
    assert last["when"] >= record.started


def test_before_its_first_line_a_study_is_known_from_its_file(hospitals, tmp_path, capsys):
    study = hospitals.study(name="new", rounds=5)
    folder = tmp_path / "runs" / "new"
    folder.mkdir(parents=True)
    Standing(study_hash=study.hash, run=7, started="2026-11-01T08:00:00Z").write(folder)
    (folder / STUDY).write_text(study.to_json())
    main(["list", "--runs", str(tmp_path / "runs")])
    assert "running, nothing heard yet, 0 of 5 rounds, 3 sites, started 2026-11-01 08:00" in capsys.readouterr().out
    main(["list", "--runs", str(tmp_path / "runs"), "--json"])
    one = json.loads(capsys.readouterr().out)[0]
    assert (one["rounds"], one["sites"], one["state"]) == (5, ["a", "b", "c"], "waiting")
    assert picture(Files(folder)).promise == study.privacy.epsilon
    record = Record.begin(study)  # the process has begun, some time after the start
    assert drawn("new", (record, None, Standing.read(folder))).started == "2026-11-01T08:00:00Z"
    (folder / STUDY).write_text("{")
    assert picture(Files(folder)).rounds == 0


def test_a_study_that_has_said_nothing_yet_is_shown_as_started(tmp_path):
    Standing(study_hash="0" * 64, run=7, started="2026-11-01T08:00:00Z").write(tmp_path)
    one = picture(Files(tmp_path))
    assert (one.state, one.run, one.verdict) == ("waiting", 7, None)
    assert one.said == "started; has not begun yet"


def test_rounds_to_come_are_no_reason_against_a_study_that_runs(runs):
    record = interrupted(runs / "whole", after=1)
    now = present(runs / "whole", record, pid=os.getpid(), asked=["a"])
    assert drawn("whole", (record, now, None)).reasons == []
    assert "1 of 2 rounds were run" in record.reasons
    record = interrupted(runs / "parted", after=1)
    one = drawn("parted", (record, now.model_copy(update={"study_hash": record.study_hash}), None))
    assert (one.verdict, len(one.reasons)) == ("degraded", 1)


def test_the_log_has_a_line_for_each_round_with_its_time(runs, capsys):
    assert main(["log", "parted", "--runs", str(runs), "--json"]) == 3
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["what"] for line in lines] == ["begun", "round", "round", "ended"]
    assert [line["when"] for line in lines] == sorted(line["when"] for line in lines)
    assert all(line["when"].endswith("Z") for line in lines)
    assert "a used; nowhere absent" in lines[1]["text"]
    assert lines[-1]["text"] == "over: degraded"


def test_scores_that_drown_are_told_as_that_and_who_answered(runs, capsys):
    record = Record.read(runs / "whole" / "record.json")
    note, used = "what so few patients say drowns in the noise", {"a": {"answer": "used"}, "b": {"answer": "used"}}
    asked = {"sites": used, "total": [1.0], "noise_std": 9.0, "seconds": 1.0, "note": note}
    record.rounds[0].validation = Evaluation.model_validate(asked)
    record.matrix = Matrix.model_validate(
        {"metric": "dice", "scores": {"global": {}}, "noise_std": {}, "sites": used, "seconds": 1.0, "note": note}
    )
    record.selected_round = 2
    record.judge()
    record.write(runs / "whole" / "record.json")
    assert main(["log", "whole", "--runs", str(runs)]) == 0
    said = capsys.readouterr().out
    assert f"validation after round 1: no scores, though 2 of 2 hospitals answered: {note}" in said
    assert f"1 models at every hospital (dice): a, b used; {note}" in said
    assert main(["status", "whole", "--runs", str(runs)]) == 0
    said = capsys.readouterr().out
    assert f"  validation after round 1: {note}" in said
    assert f"  matrix: {note}" in said
    assert "  chosen: the model of round 2" in said


def test_the_log_follows_answers_as_they_come_and_tells_nothing_twice(runs):
    record = interrupted(runs / "whole", after=1)
    heard: list[str] = []
    teller = Teller(lambda event: heard.append(event.text))
    now = present(runs / "whole", record, pid=os.getpid(), asked=["a", "b"])
    teller((record, now, None))
    assert heard[-1] == "round 2: asking a, b"
    now = now.model_copy(update={"heard": {"b": Heard(answer="declined", at=now.began + 3, reason="over budget")}})
    teller((record, now, None))
    teller((record, now, None))
    assert heard[-1] == "round 2: b has answered after 3 s: declined (over budget)"
    assert len(heard) == len(set(heard))


def test_an_entry_that_changes_is_told_again(runs):
    record = Record.read(runs / "parted" / "record.json")
    before = len(events((record, None, None)))
    heard: list[str] = []
    teller = Teller(lambda event: heard.append(event.text))
    teller((record, None, None))
    late = record.model_copy(deep=True)
    late.rounds[0].sites["nowhere"].answer = "late"
    teller((late, None, None))
    assert len(heard) == before + 1
    assert "nowhere late" in heard[-1]


def test_a_record_is_read_again_when_it_changes_and_only_then(runs):
    files = Files(runs / "whole")
    first = files.read()[0]
    assert files.read()[0] is first
    first.write(runs / "whole" / "record.json")
    assert files.read()[0] is not first


def test_many_hospitals_are_counted(runs):
    record = Record.read(runs / "whole" / "record.json")
    entry = record.rounds[0].sites["a"]
    names = [f"h{number:03}" for number in range(300)]
    record.study = {**record.study, "sites": names}
    for one in record.rounds:
        one.sites = dict.fromkeys(names, entry)
    assert "300 hospitals used" in events((record, None, None))[1].text
    said = "\n".join(told(drawn("many", (record, None, None))))
    assert "and 260 more hospitals (--json has them all)" in said
    assert len(said.splitlines()) < 60


@pytest.mark.parametrize(("seconds", "words"), [(-3, "0 s"), (89, "89 s"), (3599, "1 h 0 min"), (86400, "1 d 0 h")])
def test_times_are_said_as_people_say_them(seconds, words):
    assert spoken(seconds) == words


@pytest.fixture
def idle_house(runs, tmp_path):
    """A coordinator's folder whose server does not run, with a study that was interrupted and one that is over."""
    house = House.create(tmp_path / "house", hosts=["localhost"])
    record = interrupted(runs / "whole", after=1)
    Standing(study_hash=record.study_hash, run=77, started="2026-11-01T08:00:00Z").write(runs / "whole")
    shutil.copytree(runs, house.runs)
    return house


def test_a_study_is_stopped_by_name_number_or_hash_even_while_the_coordinator_is_down(idle_house, capsys):
    folder = idle_house.runs / "whole"
    wanted = Standing.read(folder)
    for name in ("whole", "77", wanted.study_hash[:8]):
        wanted.write(folder)
        assert main(["stop", name, "--folder", str(idle_house.folder)]) == 0
        assert Standing.read(folder).wanted == "stopped"  # so that nobody takes it up again
        assert "whole will not be taken up again" in capsys.readouterr().err
    assert main(["status", "whole", "--folder", str(idle_house.folder)]) == 4


def test_what_is_over_is_not_stopped(idle_house, capsys):
    assert main(["stop", "parted", "--folder", str(idle_house.folder)]) == 1
    assert "study parted is over (degraded); there is nothing to stop" in capsys.readouterr().err


def test_a_study_that_was_put_aside_is_not_listed(idle_house, capsys):
    (idle_house.runs / "parted").rename(idle_house.runs / ".parted.replaced")
    assert main(["list", "--folder", str(idle_house.folder), "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["whole"]


def test_no_second_study_of_a_name_is_started_beside_the_first(idle_house):
    with pytest.raises(ValueError, match=r"study whole runs \(run 77\); konsil-study stop whole ends it"):
        _require_rest(idle_house.runs / "whole")
    _require_rest(idle_house.runs / "parted")


def test_who_has_not_approved_is_named_with_the_reason_while_a_study_waits(runs, capsys):
    record = interrupted(runs / "whole", after=1)
    missing = {"c": "nobody at c has approved study whole yet"}
    now = present(runs / "whole", record, pid=os.getpid(), asked=["c"])
    waiting = {"phase": "enrolling", "round": 1, "needed": 3, "missing": missing, "deadline": time.time() + 3 * 86400 + 5}
    now.model_copy(update=waiting).write(runs / "whole")
    assert main(["status", "whole", "--runs", str(runs)]) == UNDECIDED
    said = capsys.readouterr().out
    assert "waiting for hospitals: 2 of the 3 that it needs take part" in said
    assert "awaited: c for 20 s; the waiting ends in 3 d 0 h at the latest" in said
    assert "c does not take part: nobody at c has approved study whole yet" in said
    assert main(["log", "whole", "--runs", str(runs)]) == UNDECIDED
    lines = [line.partition("  ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines[-2:] == [
        "waiting until 3 hospitals take part",
        "c does not take part: nobody at c has approved study whole yet",
    ]
    assert main(["status", "whole", "--runs", str(runs), "--json"]) == UNDECIDED
    assert json.loads(capsys.readouterr().out)["missing"] == missing
