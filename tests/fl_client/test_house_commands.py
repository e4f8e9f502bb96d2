import getpass
import io
import json
import os
import subprocess
import sys

import psutil
import pytest

from fl_client.__main__ import main
from fl_client.app import ledger_of
from fl_client.approval import Approvals
from fl_client.audit import AuditLog
from fl_client.commands import confided, user_name
from fl_client.halt import halted
from fl_client.privacy import Event


@pytest.fixture
def ask(hospitals):
    return lambda *words: main(["--site", str(hospitals.sites["a"]), *words])


def test_the_status_tells_what_waits_what_was_paid_and_what_left(hospitals, ask, capsys):
    site, study = hospitals.site("a"), hospitals.study()
    Approvals(site.folder).put_down(study)
    ledger_of(site).spend(Event(noise_multiplier=2.0, study_name="pilot", round=1))
    AuditLog(site.folder / "audit.jsonl").append("egress", bytes=7)
    assert ask("status") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:5] == [
        "a works",
        "nothing of it is running (konsil-site start)",
        "4 patients inside, 0 withdrawn; 0 lines say what stayed outside",
        f"1 studies wait for a decision: konsil-site show {study.hash[:12]}",
        f"1 releases, epsilon {ledger_of(site).epsilon:.4g} of 10 at delta 0.001",
    ]
    assert said[5].startswith("1 messages left the house, the last one on 20")


def test_a_broken_book_is_told_and_the_rest_still_stands(hospitals, ask, capsys):
    site = hospitals.site("a")
    ledger_of(site).spend(Event(noise_multiplier=2.0, study_name="pilot", round=1))
    site.ledger_path.write_text(site.ledger_path.read_text().replace('"round":1', '"round":7'))
    AuditLog(site.folder / "audit.jsonl").append("egress", bytes=7)
    (site.folder / "audit.jsonl").unlink()
    assert ask("status") == 1
    said = capsys.readouterr().out
    assert "LOOK: " in said
    assert "ledger.jsonl line 1 was changed after it was written" in said
    assert "audit.jsonl is missing" in said
    assert "4 patients inside" in said


def test_the_audit_log_is_shown_from_its_end_and_checked_whole(hospitals, ask, capsys):
    log = AuditLog(hospitals.site("a").folder / "audit.jsonl")
    assert ask("audit-log") == 0
    assert "nothing has happened yet" in capsys.readouterr().out
    for number in range(3):
        log.append("egress", study="ab" * 32, bytes=number)
    assert ask("audit-log", "--last", "2") == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert said[1].endswith("egress     bytes 2, study abababababab")
    path = hospitals.site("a").folder / "audit.jsonl"
    path.write_text(path.read_text().replace('"bytes":0', '"bytes":9'))
    assert ask("audit-log", "--last", "1") == 1
    assert "line 1 was changed" in capsys.readouterr().err


def test_pausing_and_resuming_are_written_down_with_who_and_why(hospitals, ask, capsys):
    folder = hospitals.site("a").folder
    assert ask("pause", "--who", "Dr. Alpha", "--why", "audit of the data protection officer") == 0
    assert halted(folder) == "paused"
    assert ask("status") == 0
    assert "a has paused: it declines whatever is asked" in capsys.readouterr().out
    assert ask("resume", "--who", "Dr. Beta") == 0
    assert halted(folder) == ""
    lines = AuditLog(folder / "audit.jsonl").lines
    assert [(line["happening"], line["who"], line["why"]) for line in lines] == [
        ("paused", "Dr. Alpha", "audit of the data protection officer"),
        ("resumed", "Dr. Beta", ""),
    ]


def test_nobody_works_on_before_the_log_says_that_the_house_works_again(hospitals, ask, capsys):
    folder = hospitals.site("a").folder
    assert ask("pause", "--who", "Dr. Alpha") == 0
    (folder / "audit.jsonl").write_text("no line of a log\n")
    assert ask("resume", "--who", "Dr. Beta") == 1
    assert halted(folder) == "paused"


def test_whom_a_patient_is_can_be_said_without_the_machines_list_of_processes(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("4711-MUELLER\n"))
    assert confided("-", "the patient") == "4711-MUELLER"
    with pytest.raises(ValueError, match="the patient: nothing was said"):
        confided("", "the patient")
    assert confided("4712", "the patient") == "4712"
    capsys.readouterr()


def test_a_user_without_a_name_is_known_by_number(monkeypatch):
    def nameless():
        raise KeyError("getpwuid(): uid not found: 62001")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setattr(os, "getuid", lambda: 62001)
    assert user_name() == "uid 62001"


def test_stopping_ends_the_running_processes_at_once(hospitals, ask, capsys):
    """A daemon that would not listen: it has its process file, and a child of its own."""
    site = hospitals.site("a")
    (site.folder / "run").mkdir()
    deaf = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    deaf += "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']); print('up', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    process.stdout.readline()
    daemon = psutil.Process(process.pid)
    (child,) = daemon.children()
    (site.folder / "run" / "trainer.pid").write_text(json.dumps({"pid": process.pid, "started": daemon.create_time()}))
    assert ask("stop-now", "--who", "Dr. Alpha") == 0
    assert process.wait(10) == -9
    process.stdout.close()
    psutil.wait_procs([child], timeout=10)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert halted(site.folder) == "stopped"
    assert "nothing runs or leaves" in capsys.readouterr().out
