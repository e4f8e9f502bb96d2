import os
import shutil
import signal
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from math import inf

import pytest
import torch

from fl_client.privacy import Ledger
from fl_client.site import Site
from simulation.__main__ import settings_of
from simulation.arms import Arm, train
from simulation.hospital import drawn, pooled
from simulation.machine import Immediately, executor
from tasks.fingerprint import fingerprint
from tasks.task import load

ARMS = ("federation_private", "federation_plain", "pooled", "alone/donau", "alone/rhein")


@pytest.fixture(scope="module")
def hospitals(tiny):
    """The two sites of the tiny rehearsal, from its cache."""
    every = settings_of(tiny.overrides).hospitals
    return {
        name: drawn(
            name,
            index,
            profile,
            every,
            cache=tiny.folder.parent / "cache",
            pool=Immediately(),
            advance=lambda done, total: None,
        )
        for index, (name, profile) in enumerate(every.sites.items())
    }


@pytest.fixture
def arm(tiny, hospitals, tmp_path):
    """The private federation of seed 0, in a folder where it has not run yet."""
    start = fingerprint(torch.load(tiny.folder / "start.pt", weights_only=True))
    study = settings_of(tiny.overrides).study(seed=0, private=True, sites=tuple(hospitals), initial=start)
    return Arm("federation_private", study, hospitals, tmp_path / "arm")


def model(tiny, name, seed):
    return torch.load(tiny.folder / "arms" / name / str(seed) / "model.pt", weights_only=True)


def test_every_arm_moves_what_it_may_move_and_no_two_end_at_the_same_place(tiny):
    start = torch.load(tiny.folder / "start.pt", weights_only=True)
    simulation = settings_of(tiny.overrides)
    ends = {}
    for name in ARMS:
        for seed in (0, 1):
            state = model(tiny, name, seed)
            assert state.keys() == start.keys()
            study = simulation.study(seed=seed, private=name == "federation_private", sites=("donau",), initial=None)
            task = load(study.task)
            moved = {weight for weight in start if not torch.equal(state[weight], start[weight])}
            assert moved == set(task.trainable(task.model()))
            ends[name, seed] = fingerprint(state)
    assert len({*ends.values(), fingerprint(start)}) == 11


def test_every_arm_takes_the_same_number_of_steps_from_the_same_weights(tiny):
    start = fingerprint(torch.load(tiny.folder / "start.pt", weights_only=True))
    for name in ARMS:
        for seed in (0, 1):
            record = Arm(name, None, {}, tiny.folder / "arms" / name / str(seed)).record()
            assert record.verdict == "complete"
            assert len(record.rounds) == 2
            assert record.study["initial_model_sha256"] == start
            assert (record.study["training"]["steps"], record.seed) == (1, seed)
            assert record.rounds[-1].arrays_sha256 == fingerprint(model(tiny, name, seed))


def test_what_the_arms_without_privacy_do_differently_is_what_the_settings_say(tiny):
    private, plain = (
        Arm(name, None, {}, tiny.folder / "arms" / name / "0").record().study
        for name in ("federation_private", "federation_plain")
    )
    assert (private["privacy"]["kind"], plain["privacy"]["kind"]) == ("patient", "none")
    simulation = settings_of(tiny.overrides)
    for part, changes in (("training", simulation.plain_training), ("strategy", simulation.plain_strategy)):
        assert plain[part] == private[part] | changes
    assert plain["task"] == private["task"] | simulation.plain_task


def test_each_arm_and_seed_has_ledgers_of_its_own(tiny):
    for name in ARMS:
        for path in (tiny.folder / "arms" / name / "0" / "sites").glob("*/site.yaml"):
            site = Site.load(path)
            ledger = Ledger(site.ledger_path, epsilon=8.0, delta=1e-3)
            assert [event.round for event in ledger.events] == [1, 2]
            spent = ledger.epsilon
            assert spent == inf if name != "federation_private" else 7.5 < spent <= 8.0


def test_an_arm_that_is_finished_is_not_run_again(tiny, arm):
    done = replace(arm, folder=tiny.folder / "arms" / "federation_private" / "0")
    assert done.finished
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")}
    assert train(done, tiny.folder / "start.pt") == "federation_private"
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*")} == before


def test_another_study_or_other_patients_make_another_arm(tiny, arm, hospitals, tmp_path):
    done = replace(arm, folder=tiny.folder / "arms" / "federation_private" / "0")
    assert not replace(done, study=done.study.model_copy(update={"rounds": 3})).finished
    # the study names hospitals, not patients: it is the same for a hospital that has others
    other = pooled("donau", hospitals, tmp_path / "everybody")
    assert not replace(done, hospitals={**hospitals, "donau": other}).finished
    assert not replace(done, hospitals={**hospitals, "donau": replace(hospitals["donau"], test_fraction=0.5)}).finished


def test_an_arm_that_was_interrupted_begins_anew_and_pays_once(tiny, arm):
    seen = []

    def interrupt(answers, state):
        seen.append(answers.round)
        if len(seen) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(arm, tiny.folder / "start.pt", interrupt)
    assert not arm.finished
    train(arm, tiny.folder / "start.pt", interrupt)
    assert arm.finished
    assert seen == [1, 1, 2]
    ledger = Ledger(arm.folder / "sites" / "donau" / "ledger.jsonl", epsilon=8.0, delta=1e-3)
    assert [event.round for event in ledger.events] == [1, 2]
    assert fingerprint(arm.state()) == fingerprint(model(tiny, "federation_private", 0))


def test_an_arm_whose_worker_died_says_so_is_not_finished_and_can_be_run_again(tiny, arm):
    arm = replace(arm, study=arm.study.model_copy(update={"rounds": 3}))
    with executor(1) as pool:

        def kill(answers, state):
            if answers.round == 1:
                os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)

        with pytest.raises(BrokenProcessPool):
            train(arm, tiny.folder / "start.pt", kill, pool=pool)
    assert not arm.finished
    (first,) = arm.record().rounds  # the second was not the hospitals' fault, and is none of theirs
    assert {answer.answer for answer in first.sites.values()} == {"used"}
    assert arm.record().verdict == "failed"
    train(arm, tiny.folder / "start.pt")
    assert arm.finished
    assert arm.record().verdict == "complete"


def test_an_arm_whose_worker_died_while_the_hospitals_enrolled_is_not_finished_either(tiny, arm):
    with executor(1) as pool:
        os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool, match="perhaps for lack of memory"):
            train(arm, tiny.folder / "start.pt", pool=pool)
    assert arm.record().verdict == "failed"
    assert not arm.finished


def test_weights_other_than_the_studys_are_refused(tiny, arm, tmp_path):
    state = torch.load(tiny.folder / "start.pt", weights_only=True)
    name = next(iter(state))
    torch.save({**state, name: state[name] + 1}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="the study starts from weights"):
        train(arm, tmp_path / "other.pt")
    assert not arm.finished
    shutil.rmtree(arm.folder)
