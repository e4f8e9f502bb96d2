"""What stands in `approvals.jsonl` after crashes and when several people decide at once."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from flwr.clientapp import ClientApp

from fl_client.approval import Approvals, Declined, require_approval
from fl_client.preflight import books
from fl_client.worker import Worker


@pytest.fixture
def approvals(hospitals):
    """Those of hospital `a`, where a person decides, with one study approved."""
    site = hospitals.site("a").model_copy(update={"approve_all": False})
    hospitals.save(site)
    found = Approvals(site.folder)
    found.decide(hospitals.study(), "approved", who="Dr. Alpha", epsilon=8.0)
    return found


@pytest.mark.parametrize("kept", [1, 40, -2, -1])
def test_an_approval_torn_by_a_crash_is_none_and_the_next_decision_follows(hospitals, approvals, kept):
    site, torn, later = hospitals.site("a"), hospitals.study(seed=1), hospitals.study(seed=2)
    whole = approvals.path.read_bytes()
    approvals.decide(torn, "approved", who="Dr. Alpha", epsilon=8.0)
    second = approvals.path.read_bytes()[len(whole) :]
    approvals.path.write_bytes(whole + second[:kept])  # what a power cut leaves: `decide` had not returned
    assert set(approvals.decisions) == {hospitals.study().hash}
    require_approval(site, hospitals.study(), paid=0, wanted=1)
    with pytest.raises(Declined, match="nobody at a has approved"):
        require_approval(site, torn, paid=0, wanted=1)
    approvals.decide(later, "declined", who="Dr. Beta", epsilon=None)
    assert {key: line.decision for key, line in approvals.decisions.items()} == {
        hospitals.study().hash: "approved",
        later.hash: "declined",
    }
    assert approvals.path.read_bytes().startswith(whole)
    assert approvals.path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("wrong", ["", "hello", "{}", "[1]", '{"hash": "ab"}'])
def test_a_whole_line_that_is_no_decision_is_named_in_words(approvals, wrong):
    approvals.path.write_text(f"{wrong}\n" + approvals.path.read_text())
    with pytest.raises(ValueError, match=r"approvals\.jsonl line 1 is not a decision"):
        _ = approvals.decisions


def test_decisions_that_are_written_at_once_all_stand(hospitals, approvals):
    studies = [hospitals.study(seed=seed) for seed in range(1, 21)]
    with ThreadPoolExecutor(8) as people:
        for decided in [people.submit(approvals.decide, s, "approved", who="Dr. " + "X" * 900, epsilon=8.0) for s in studies]:
            decided.result()
    assert set(approvals.decisions) == {study.hash for study in [hospitals.study(), *studies]}


@pytest.mark.parametrize("wrong", ["", "[]", '{"name": 1}'])
def test_a_study_that_can_not_be_read_hides_no_other_and_the_worker_starts(hospitals, approvals, wrong):
    study = hospitals.study()
    approvals.put_down(study)
    (approvals.studies_folder / f"{'0' * 64}.json").write_text(wrong)
    assert list(approvals.studies) == [study.hash]
    assert approvals.find(study.hash[:8]) == study
    Worker(hospitals.sites["a"], app=ClientApp()).warm()
    told = [finding for finding in books(hospitals.site("a"), hospitals.sites["a"]) if "no study" in finding.text]
    assert [finding.level for finding in told] == ["warn"]


def test_decisions_that_can_not_be_read_do_not_keep_the_worker_from_starting(hospitals, approvals):
    approvals.path.write_text("hello\n")
    with pytest.raises(ValueError, match="line 1 is not a decision"):
        _ = approvals.decisions
    worker = Worker(hospitals.sites["a"], app=ClientApp())
    worker.warm()
    assert not worker.stop.is_set()


def test_a_study_that_a_power_failure_emptied_is_put_down_anew(hospitals, approvals):
    study = hospitals.study()
    approvals.studies_folder.mkdir()
    (approvals.studies_folder / f"{study.hash}.json").touch()
    approvals.put_down(study)
    assert approvals.find(study.hash) == study
