"""Rounds under secure aggregation, with real hospitals in one process: what comes of them, and of hospitals that drop out."""

import copy
import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from conf.study import LocalTraining, Privacy, SecureAggregation, Strategy
from fl_client import app as hospital
from fl_client import secure
from fl_client.contract import contract
from fl_client.keys import make_key, public_key
from fl_client.privacy import os_noise
from fl_client.site import Budget
from fl_server.rounds import run
from fl_server.start import study_of as study_from
from fl_server.weights import initial_state
from simulation.grid import FIRST_NODE, InProcessGrid
from tasks.secure.plan import grid_of
from tasks.segmentation.task import SegmentationTask
from tasks.task import load_for

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def noiseless(monkeypatch):
    """What is left of a difference is not chance: no noise, and every study draws the same views."""
    monkeypatch.setattr(hospital, "randomness", lambda site, asked: (os_noise(), np.random.default_rng(asked.round)))
    monkeypatch.setattr("tasks.secure.grid.discrete_gaussian", lambda count, **how: np.zeros(count, dtype=np.int64))
    monkeypatch.setattr("fl_client.privacy.dp_sgd.noised", lambda total, std, noise: total.double())


@pytest.fixture
def house(new_hospitals):
    found = new_hospitals("sites")
    for number, name in enumerate(NAMES):
        found.add(name, declared_size=4 + number, budget=Budget(epsilon=10.0, delta=1e-3))
        make_key(found.site(name).folder / "node.key", comment=name)
    return found


def keys_of(house):
    return {name: public_key(house.site(name).folder / "node.key") for name in NAMES}


def study_of(house, *, epsilon=8.0, threshold=3, colluding=1, secured=True, **settings):
    secured = SecureAggregation(keys=keys_of(house), patients=30, threshold=threshold, colluding=colluding) if secured else None
    fields = {
        "privacy": Privacy(epsilon=epsilon, delta=1e-3, max_grad_norm=0.5, secure=secured),
        "training": LocalTraining(views=2, learning_rate=0.5, weight_decay=0.01),
        "strategy": Strategy(name="fedavg", quorum=3),
    }
    return house.study(**{**fields, **settings})


def ran(house, study, folder, *, grid=None, **how):
    if not how.get("resume"):
        for name in NAMES:  # each study has the whole budget
            for book in house.site(name).folder.glob("ledger.jsonl*"):
                book.unlink()
    grid = grid or InProcessGrid("fl_client.app:app", house.nodes, {"study": study.to_json()})
    return run(grid, study, initial_state(study), folder=folder, **how)


class Silent(InProcessGrid):
    """Some hospitals don't hear some kinds of question."""

    deaf: dict[str, tuple[str, ...]] = {}

    def push_messages(self, messages):
        messages = list(messages)
        heard = [m for m in messages if not self._lost(m)]
        super().push_messages(heard)
        for place, message in enumerate(messages):
            if message not in heard:
                message.metadata.__dict__["_message_id"] = f"lost {place} {message.metadata.message_type}"
        return [m.metadata.message_id for m in messages]

    def _lost(self, message):
        name = NAMES[message.metadata.dst_node_id - FIRST_NODE]
        kind = message.metadata.message_type.split(".")[-1]
        return name in self.deaf.get(kind, ())


def far(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedavgm"])
def test_the_model_is_that_of_hospitals_that_send_their_own(house, tmp_path, strategy, noiseless):
    plan = Strategy(name=strategy, quorum=3, server_learning_rate=0.05 if strategy == "fedadam" else 1.0)
    # a site that sends its own divides by its own size and is weighted by it, which is the same
    plain, _ = ran(house, study_of(house, secured=False, strategy=plan), tmp_path / "plain")
    study = study_of(house, strategy=plan)
    masked, record = ran(house, study, tmp_path / "masked")
    assert record.verdict == "complete", record.reasons
    assert [entry.sites[name].answer for entry in record.rounds for name in NAMES] == ["used"] * 8
    start = initial_state(study)
    assert far(plain, start) > 0.001
    tolerance = 1e-4 if strategy != "fedadam" else 5e-3  # Adam scales what is nearly nothing up
    assert far(plain, masked) < tolerance


def test_what_leaves_a_hospital_under_masks_tells_nothing_of_its_numbers(house, tmp_path):
    seen = []

    class Watching(InProcessGrid):
        def pull_messages(self, ids):
            replies = super().pull_messages(ids)
            seen.extend(replies)
            return replies

    study = study_of(house, rounds=1)
    ran(house, study, tmp_path / "run", grid=Watching("fl_client.app:app", house.nodes, {"study": study.to_json()}))
    vectors = [reply.content["arrays"]["masked"].numpy() for reply in seen if "arrays" in reply.content]
    assert len(vectors) == 4
    for vector in vectors:
        assert vector.dtype == np.uint32
        counts, _ = np.histogram(vector.astype(np.float64), bins=16, range=(0, 2**32))
        expected = vector.size / 16
        assert float(((counts - expected) ** 2 / expected).sum()) < 60  # chi-square of 15 degrees: beyond lies 2e-7
    bytes_ = [reply for reply in seen if not reply.has_error() and "secure" in reply.content]
    assert len(bytes_) == 12  # keys, shares and what unmasks, of four hospitals
    assert all(isinstance(piece, bytes) for reply in bytes_ for piece in reply.content["secure"].values())


@pytest.mark.parametrize("kind", ["secure_keys", "secure_shares", "train", "secure_unmask"])
def test_a_round_goes_on_without_a_hospital_that_drops_out(house, tmp_path, kind, noiseless):
    study = study_of(house, rounds=1)
    grid = Silent("fl_client.app:app", house.nodes, {"study": study.to_json()})
    grid.deaf = {kind: ("b",)}
    model, record = ran(house, study, tmp_path / "run", grid=grid)
    answers = {name: entry.answer for name, entry in record.rounds[0].sites.items()}
    assert record.rounds[0].moved
    if kind == "secure_unmask":  # its numbers are in the sum, and the others' shares take its mask off
        assert answers == dict.fromkeys(NAMES, "used")
    else:
        assert answers == {"a": "used", "b": "absent", "c": "used", "d": "used"}
    plain = study_of(house, secured=False, rounds=1)
    without = InProcessGrid("fl_client.app:app", house.nodes, {"study": plain.to_json()})
    if kind != "secure_unmask":
        without = Silent("fl_client.app:app", house.nodes, {"study": plain.to_json()})
        without.deaf = {"train": ("b",)}
    expected, _ = ran(house, plain, tmp_path / "plain", grid=without)
    assert far(expected, model) < 1e-4


@pytest.mark.parametrize("kind", ["secure_keys", "secure_shares", "train", "secure_unmask"])
def test_below_the_threshold_there_is_no_sum_and_the_model_stays(house, tmp_path, kind, noiseless):
    study = study_of(house, rounds=1)
    grid = Silent("fl_client.app:app", house.nodes, {"study": study.to_json()})
    grid.deaf = {kind: ("b", "c")}
    model, record = ran(house, study, tmp_path / "run", grid=grid)
    entry = record.rounds[0]
    assert not entry.moved
    assert far(model, initial_state(study)) == 0
    assert record.verdict == "failed"
    assert {"used"}.isdisjoint(answer.answer for answer in entry.sites.values())
    paid = {"train": ["a", "d"], "secure_unmask": list(NAMES)}.get(kind, [])
    assert [name for name in NAMES if house.site(name).ledger_path.exists()] == paid


def test_noise_of_the_sum_is_that_of_the_promise_and_the_ledger_has_both_numbers(house, tmp_path):
    study = study_of(house, rounds=1)
    grid = grid_of(study, load_for(study))
    _, record = ran(house, study, tmp_path / "run")
    line = json.loads(house.site("a").ledger_path.read_text().splitlines()[0])
    event = line.get("event", line)
    assert event["mechanism"] == "discrete_gaussian"
    assert event["noise_multiplier"] == pytest.approx(grid.noise_multiplier)
    assert event["own_noise_multiplier"] == pytest.approx(grid.noise_multiplier / np.sqrt(2))  # threshold 3, 1 colluding
    assert record.sites["a"].epsilon is not None
    assert record.sites["a"].epsilon <= 8.0
    assert record.sites["a"].epsilon > 7.5


def test_a_site_answers_no_second_list_of_an_attempt(house, tmp_path):
    study = study_of(house, rounds=1)
    seen = []

    class Watching(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            seen.extend(m for m in messages if m.metadata.message_type.endswith("unmask"))
            return super().push_messages(messages)

    grid = Watching("fl_client.app:app", house.nodes, {"study": study.to_json()})
    ran(house, study, tmp_path / "run", grid=grid)
    question = seen[0]
    question.content["config"] = ConfigRecord({**dict(question.content["config"]), "survivors": ["a", "b", "c"]})
    (reply,) = grid.send_and_receive([question])
    assert reply.has_error()
    assert "has unmasked once with its keys of attempt" in reply.error.reason


def test_a_hospital_that_was_started_anew_has_no_part_in_the_attempt(house):
    study = study_of(house, rounds=1)
    grid = InProcessGrid("fl_client.app:app", house.nodes, {"study": study.to_json()})
    site = house.site("a")
    context = grid.contexts[FIRST_NODE]
    secure.begin(site, study, context, number=1, attempt=0)
    context.state.clear()
    with pytest.raises(secure.Declined, match="started anew in between"):
        secure.shared_out(site, study, context, number=1, attempt=0, roster={})


def test_without_its_own_key_a_hospital_says_so_and_pays_nothing(house, tmp_path):
    study = study_of(house, rounds=1)
    (house.site("d").folder / "node.key").unlink()
    _, record = ran(house, study, tmp_path / "run")
    assert record.rounds[0].sites["d"].answer == "declined"
    assert "own key can't be read" in record.rounds[0].sites["d"].reason
    assert record.rounds[0].moved
    assert not house.site("d").ledger_path.exists()


def test_a_study_that_knows_a_hospital_by_another_key_is_declined_before_anything_is_asked(house, tmp_path):
    study = study_of(house, rounds=1)
    (house.site("d").folder / "node.key").unlink()
    (house.site("d").folder / "node.key.pub").unlink()
    make_key(house.site("d").folder / "node.key", comment="d")
    _, record = ran(house, study, tmp_path / "run")
    assert record.rounds[0].sites["d"].answer == "declined"
    assert "another public key for 'd' than this hospital's own" in record.rounds[0].sites["d"].reason


def test_no_count_of_steps_leaves_with_a_masked_sum_and_the_contract_promises_none(house, tmp_path):
    study = study_of(house, rounds=1)
    grid = InProcessGrid("fl_client.app:app", house.nodes, {"study": study.to_json()})
    left, pull = [], grid.pull_messages
    grid.pull_messages = lambda ids: [left.append(reply) or reply for reply in pull(ids)]
    ran(house, study, tmp_path / "run", grid=grid)
    contents = [reply.content for reply in left if reply.has_content()]
    assert {name for content in contents for name in content} == {"enrolment", "secure", "arrays", "metrics"}
    assert {frozenset(content["metrics"]) for content in contents if "metrics" in content} == {
        frozenset({"num-examples", "epsilon"})
    }
    words = dict(contract(house.site("a"), study, days=30))["What leaves"]
    assert not any("steps" in line for line in words)
    assert any("public keys, signatures, shares" in line for line in words)


def test_what_a_person_says_yes_to_names_the_masks_the_keys_and_what_is_left_if_they_fail(house):
    said = dict(contract(house.site("a"), study_of(house, rounds=1), days=30))
    assert "uint32" in said["What leaves"][0]
    assert "under masks" in said["What leaves"][0]
    assert "this hospital's share of the noise is added" in " ".join(said["What leaves"])
    together = said["Together"]
    assert "3 of the 4 hospitals" in together[0]
    left = float(together[2].split("epsilon ")[1].split()[0])
    assert 8.0 < left < 30.0  # its own noise is 1/sqrt(2) of the promised
    assert sum(line.startswith(("a: SHA256:", "b: SHA256:", "c: SHA256:", "d: SHA256:")) for line in together) == 4


def test_the_coordinator_fills_in_the_keys_that_hospitals_are_registered_with(house, tmp_path):
    settings = study_of(house).model_dump(mode="json")
    keys = keys_of(house)
    settings["privacy"]["secure"]["keys"] = {}
    assert study_from(settings, registered=[], models=tmp_path, keys=keys).privacy.secure.keys == keys
    del keys["c"]
    with pytest.raises(ValueError, match="needs the public key of c: register each hospital first"):
        study_from(settings, registered=[], models=tmp_path, keys=keys)


def test_who_declares_most_is_left_out_where_all_together_are_more_than_the_study_allows(house, tmp_path):
    study = study_of(house, rounds=1)
    few = study.privacy.secure.model_copy(update={"patients": 17})
    study = study.model_copy(update={"privacy": study.privacy.model_copy(update={"secure": few})})
    _, record = ran(house, study, tmp_path / "run")
    answers = record.rounds[0].sites
    assert (
        answers["d"].reason == "the hospitals declare 22 patients together, 7 of them here; privacy.secure.patients allows 17"
    )
    assert [answers[name].answer for name in NAMES] == ["used", "used", "used", "quarantined"]
    assert not house.site("d").ledger_path.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"training": LocalTraining(steps=2)}, "training.steps must be 1, not 2"),
        ({"training": LocalTraining(sample_rate=0.5)}, "training.sample_rate must be 1, not 0.5"),
        ({"strategy": Strategy(name="krum")}, "strategy.name can't be 'krum'"),
        ({"strategy": Strategy(outlier_factor=3.0)}, "outlier_factor must be empty"),
        ({"sites": ("a", "b", "c")}, "privacy.secure.keys names a, b, c, d; the sites are a, b, c"),
    ],
)
def test_what_can_not_be_summed_is_refused_in_words(house, settings, words):
    with pytest.raises(ValueError, match=words):
        study_of(house, **settings)


@pytest.mark.parametrize(("threshold", "colluding"), [(5, 1), (3, 3)])
def test_numbers_that_protect_nobody_are_refused(house, threshold, colluding):
    with pytest.raises(ValueError, match=r"threshold|colluding"):
        load_for(study_of(house, threshold=threshold, colluding=colluding))


def test_a_key_that_is_none_is_refused_before_anybody_is_asked(house):
    study = study_of(house)
    keys = {**keys_of(house), "b": "ecdsa-sha2-nistp384 AAAA"}
    secure_ = study.privacy.secure.model_copy(update={"keys": keys})
    study = study.model_copy(update={"privacy": study.privacy.model_copy(update={"secure": secure_})})
    with pytest.raises(ValueError, match="holds no public key of b"):
        load_for(study)


def test_a_study_that_goes_on_ends_with_the_same_model(house, tmp_path):
    study = study_of(house, rounds=2)
    undisturbed, _ = ran(house, study, tmp_path / "one")

    class Gone(Exception):
        pass

    def stop(entry, state):
        raise Gone

    with pytest.raises(Gone):
        ran(house, study, tmp_path / "two", observer=stop)
    model, record = ran(house, study, tmp_path / "two", resume=True)
    assert record.verdict == "complete"
    assert far(undisturbed, model) < 1e-6
    assert torch.isfinite(next(iter(model.values()))).all()


class RollsBack(InProcessGrid):
    """The worker of hospital `a` is killed when its vector has left, before the SuperNode has heard what it knows now."""

    asked, rolled = None, False

    def push_messages(self, messages):
        messages = list(messages)
        for message in messages:
            if message.metadata.dst_node_id == FIRST_NODE and message.metadata.message_type == "train" and not self.rolled:
                self.before, self.asked = copy.deepcopy(self.contexts[FIRST_NODE].state), message
        return super().push_messages(messages)

    def pull_messages(self, ids):
        replies = super().pull_messages(ids)
        if (
            not self.rolled
            and self.asked is not None
            and any(r.metadata.reply_to_message_id == self.asked.metadata.message_id for r in replies)
        ):
            self.contexts[FIRST_NODE].state.clear()
            self.contexts[FIRST_NODE].state.update(self.before)
            self.rolled = True
        return replies


def test_no_second_vector_gets_the_same_masks_whatever_a_process_forgets(house, tmp_path):
    study = study_of(house, rounds=1)
    grid = RollsBack("fl_client.app:app", house.nodes, {"study": study.to_json()})
    ran(house, study, tmp_path / "run", grid=grid)
    first = grid.asked
    grid.contexts[FIRST_NODE].state.update(grid.before)
    house.save(house.site("a").model_copy(update={"budget": Budget(epsilon=14.0, delta=1e-3), "approve_all": True}))
    arrays = {name: Array(array.numpy() + 1) for name, array in first.content["arrays"].items()}
    content = RecordDict({**dict(first.content.items()), "arrays": ArrayRecord(arrays)})
    (reply,) = grid.send_and_receive([Message(content, FIRST_NODE, "train", ttl=600.0)])
    assert reply.has_error()
    assert "this site has masked once with its keys" in reply.error.reason


def test_a_vector_that_is_given_again_can_be_unmasked(house, tmp_path):
    lost = []

    class LosesOne(RollsBack):
        def pull_messages(self, ids):
            replies = super().pull_messages(ids)
            for reply in list(replies):
                if not lost and self.asked is not None and reply.metadata.reply_to_message_id == self.asked.metadata.message_id:
                    lost.append(reply)
                    gone = Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "lost"), reply_to=self.asked)
                    replies[replies.index(reply)] = gone
            return replies

    study = study_of(house, rounds=1, threshold=4)
    grid = LosesOne("fl_client.app:app", house.nodes, {"study": study.to_json()})
    _, record = ran(house, study, tmp_path / "run", grid=grid)
    assert lost
    assert record.verdict == "complete", record.reasons
    assert record.rounds[0].sites["a"].attempts == 2
    assert len(house.site("a").ledger_path.read_text().splitlines()) == 1


def test_hospitals_that_are_sent_different_weights_have_no_sum(house, tmp_path):
    study = study_of(house, rounds=1)

    class Singling(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            for message in messages:
                if message.metadata.message_type == "train" and message.metadata.dst_node_id != FIRST_NODE:
                    zeros = {name: Array(0 * array.numpy()) for name, array in message.content["arrays"].items()}
                    message.content["arrays"] = ArrayRecord(zeros)
            return super().push_messages(messages)

    grid = Singling("fl_client.app:app", house.nodes, {"study": study.to_json()})
    _, record = ran(house, study, tmp_path / "run", grid=grid)
    assert not record.rounds[0].moved
    assert "masks were left on" in record.rounds[0].sites["a"].reason


def test_a_coordinator_that_is_killed_when_all_have_answered_asks_anew_and_ends_with_the_same_model(house, tmp_path):
    study = study_of(house, rounds=1)
    undisturbed, _ = ran(house, study, tmp_path / "one")

    class Killed(Exception):
        pass

    class Kills(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            if any(message.metadata.message_type.endswith("unmask") for message in messages):
                raise Killed
            return super().push_messages(messages)

    with pytest.raises(Killed):
        ran(house, study, tmp_path / "two", grid=Kills("fl_client.app:app", house.nodes, {"study": study.to_json()}))
    for name in NAMES:  # what was masked for the coordinator that is gone is paid, and is paid anew
        assert len(house.site(name).ledger_path.read_text().splitlines()) == 1
        house.save(house.site(name).model_copy(update={"budget": Budget(epsilon=14.0, delta=1e-3)}))
    model, record = ran(house, study, tmp_path / "two", resume=True)
    assert record.verdict == "complete", record.reasons
    assert far(undisturbed, model) < 1e-6
    assert [len(house.site(name).ledger_path.read_text().splitlines()) for name in NAMES] == [2] * 4


def test_a_hospital_makes_its_network_once_in_a_masked_round(house, tmp_path, monkeypatch):
    made, inside = [], []
    model, train_masked = SegmentationTask.model, hospital.train_masked
    monkeypatch.setattr(SegmentationTask, "model", lambda task: made.extend(inside) or model(task))

    def watched(question, context, site, study, asked):
        inside.append(f"{site.name} {asked.round}")
        try:
            return train_masked(question, context, site, study, asked)
        finally:
            inside.clear()

    monkeypatch.setattr(hospital, "train_masked", watched)
    ran(house, study_of(house, rounds=2), tmp_path / "run")
    assert sorted(made) == sorted(f"{name} {number}" for name in NAMES for number in (1, 2))


def test_a_round_waits_for_as_many_as_its_threshold_needs(house):
    assert study_of(house, strategy=Strategy(quorum=1), threshold=4).quorum == 4
    assert study_of(house, strategy=Strategy(quorum=4), threshold=3).quorum == 4
    assert study_of(house, secured=False, strategy=Strategy(quorum=2)).quorum == 2
