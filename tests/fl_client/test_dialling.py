"""What a hospital says of its line to the coordinator before it dials; over a real network it is in test_refused_..."""

import functools
import os
import ssl
import time

import pytest
from coordinator_stand_in import free_port, write_authority

from fl_client import daemon, dialling, reach, supernode
from fl_client.finding import Finding
from fl_client.keys import make_key
from fl_client.loopback import write_private
from fl_client.site import Coordinator
from fl_client.standing import standing, told
from fl_client.supernode import impatient, runtime_folder

VERSIONS = Finding("mend", "versions", "konsil 1 here, 2 there; both sides need the same")
SILENT = Finding("mend", "coordinator", "h:1: can't be reached: [Errno 111] Connection refused; is the address right?")
STRANGER = Finding("mend", "key", "the coordinator does not know the key")


@pytest.fixture
def clinic(hospitals, tmp_path):
    write_authority(tmp_path / "authority")
    whom = Coordinator(
        address=f"127.0.0.1:{free_port()}", root_certificates=tmp_path / "authority" / "ca.crt", key=tmp_path / "node.key"
    )
    make_key(whom.key, comment="clinic")
    site = hospitals.add("clinic", coordinator=whom)
    runtime_folder(site).mkdir(parents=True)
    return site


def may_dial(site):
    return dialling.may_dial(site, site.folder / "site.yaml", runtime_folder(site))


def test_a_coordinator_that_does_not_answer_is_dialled_and_told(clinic, capsys):
    assert may_dial(clinic)
    (line,) = dialling.told(runtime_folder(clinic))
    assert "can't be reached" in line
    assert line.split(": ", 1)[1] in capsys.readouterr().out
    assert f"LOOK: {line}" in told(standing(clinic))
    dialling.connected(runtime_folder(clinic))
    assert standing(clinic).line == ()


def test_a_coordinator_that_falls_silent_is_told_while_the_worker_waits_for_it(clinic, monkeypatch):
    monkeypatch.setattr(daemon, "running", lambda site: {"trainer": 1})
    folder = runtime_folder(clinic)
    answers = iter([None, 17])
    pull = impatient(lambda **given: next(answers), heard=functools.partial(dialling.heard, folder))
    monkeypatch.setattr(supernode.time, "sleep", lambda seconds: os.utime(folder / dialling.HEARD, (1e9, 1e9)))
    assert pull() == 17
    write_private(folder / "worker.json", b'{"doing": "waiting"}')
    assert standing(clinic).line == ()  # it answered just now, after a long time
    os.utime(folder / dialling.HEARD, (time.time() - 3600,) * 2)
    (line,) = standing(clinic).line
    assert "nothing was heard of the coordinator since" in line
    assert "60 minutes" in line
    write_private(folder / "worker.json", b'{"doing": "working"}')
    assert standing(clinic).line == ()  # while it works, nobody asks the coordinator for messages


@pytest.mark.parametrize(
    ("wrong", "dials"), [((), True), ((VERSIONS,), True), ((SILENT,), True), ((STRANGER, VERSIONS), False)]
)
def test_only_who_would_be_turned_away_does_not_dial(clinic, monkeypatch, wrong, dials):
    fine = Finding("ok", "tls", "TLSv1.3: the coordinator's certificate is good until 2027-01-01, 40 days")
    monkeypatch.setattr(reach, "coordinator", lambda site, settings: iter((fine, *wrong)))
    assert may_dial(clinic) is dials
    assert len(dialling.told(runtime_folder(clinic))) == len(wrong)


def test_of_a_coordinator_that_lets_us_in_another_version_is_all_that_remains_wrong(tmp_path):
    dialling.note(tmp_path, (SILENT, VERSIONS))
    dialling.connected(tmp_path)
    (line,) = dialling.told(tmp_path)
    assert VERSIONS.text in line


def test_a_damaged_note_is_none(tmp_path):
    for text in ("{", "{}", '[{"when": "now"}]', "[1]"):
        (tmp_path / dialling.FILE).write_text(text)
        assert dialling.told(tmp_path) == []


def test_a_missing_key_or_authority_keeps_us_from_dialling(clinic):
    clinic.coordinator.root_certificates.unlink()
    assert not may_dial(clinic)
    assert "holds the certificate of the coordinator's authority" in dialling.told(runtime_folder(clinic))[0]
    clinic.coordinator.key.unlink()
    assert not may_dial(clinic)
    assert "node.key is missing" in dialling.told(runtime_folder(clinic))[0]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "clock right"),
        (10, "konsil-study renew"),
        (20, "another coordinator"),
        (62, "coordinator.address"),
        (99, "is the clock right?"),
    ],
)
def test_what_is_wrong_with_a_certificate_has_its_own_remedy(code, words):
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "something"
    assert words in reach.in_words(error)


def test_behind_a_proxy_nobody_is_dialled_directly(clinic, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port()}")
    for name in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    whom = clinic.coordinator.model_copy(update={"address": "coordinator.invalid:443"})  # no such name: only a proxy may ask
    key, tls, reached = reach.coordinator(clinic.model_copy(update={"coordinator": whom}), clinic.folder / "site.yaml")
    assert (key.level, tls.level, "through the proxy 127.0.0.1" in tls.text) == ("ok", "ok", True)
    assert (reached.level, "Connection refused" in reached.text) == ("mend", True)
