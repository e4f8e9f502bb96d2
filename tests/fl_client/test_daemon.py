"""`konsil-site start`: real child processes, small ones where the parts of a hospital are not what is looked at."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from fl_client import crashes
from fl_client.__main__ import main
from fl_client.audit import AuditLog
from fl_client.commands import daemon as command
from fl_client.daemon import STOPPED, AlreadyRunning, Child, Daemon, roles_of, running, start
from fl_client.halt import halt, resume
from fl_client.intake.at_the_door import _Worker
from fl_client.metrics import metrics
from fl_client.page.views import wrong
from fl_client.site import Arrivals, Coordinator, DicomDoor, Page, Peer, Site
from fl_client.standing import standing
from fl_client.supernode import environment, runtime_folder

OBEDIENT = (
    "import signal, time; signal.signal(signal.SIGTERM, lambda *_: exit(0)); open({file!r}, 'a').write('up '); time.sleep(60)"
)
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); open({file!r}, 'a').write('up '); time.sleep(60)"


def child(tmp_path, name="part", code=OBEDIENT):
    file = tmp_path / f"{name}.txt"
    return Child(name, [sys.executable, "-c", code.format(file=str(file))], dict(os.environ)), file


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def daemon(hospitals, tmp_path):
    """A daemon of the trainer's role whose children only wait. Ends them if the test doesn't."""
    settings = hospitals.add("d", coordinator=Coordinator(address="127.0.0.1:1")).folder / "site.yaml"
    daemon = Daemon(settings, ("trainer",))
    daemon.children = {name: child(tmp_path, name)[0] for name in ("supernode", "worker")}
    yield daemon
    for one in daemon.children.values():
        one.tell(signal.SIGKILL)
        one.end(within_s=5)


def run_until(daemon, act):
    """Run the daemon here, in the main thread, while `act` happens in another; its exit status."""

    def then():
        until(lambda: all(one.alive for one in daemon.children.values()))
        act()

    acting = threading.Thread(target=then)
    acting.start()
    try:
        return daemon.run()
    finally:
        acting.join()


def test_all_parts_end_within_seconds_of_a_signal(daemon, tmp_path):
    pids = []

    def end():
        until(lambda: all((tmp_path / f"{name}.txt").exists() for name in daemon.children))
        pids.extend(one.process.pid for one in daemon.children.values())
        begin.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    begin = []
    assert run_until(daemon, end) == 0
    assert time.monotonic() - begin[0] < 5
    assert not any(psutil.pid_exists(pid) for pid in pids)
    happened = [line["what"] for line in AuditLog(daemon.site.folder / "audit.jsonl").lines]
    assert happened == ["started", "ended"]


def test_a_part_that_does_not_listen_is_killed(tmp_path):
    deaf, file = child(tmp_path, code=DEAF)
    deaf.start()
    until(file.exists)
    deaf.tell(signal.SIGTERM)
    deaf.end(within_s=0.3)
    assert not deaf.alive


def test_a_dead_part_is_started_again_and_waits_longer_each_time(tmp_path):
    dying = Child("part", [sys.executable, "-c", "exit(7)"], dict(os.environ))
    dying.start()
    pauses = []
    for _ in range(3):
        until(lambda: not dying.alive)
        assert dying.look() is True
        pauses.append(dying._pause_s)
        assert dying.look() is False
        assert dying.process is None  # not yet
        dying._again = 0.0  # as if the pause were over
        dying.look()
        assert dying.process is not None
    dying.end(within_s=5)
    assert pauses == [1.0, 2.0, 4.0]


def ends_again(one):
    """Wait until a part is dead, let it be seen, and start it at once."""
    until(lambda: not one.alive)
    one.look()
    one._again = 0.0
    one.look()


def test_a_part_that_dies_again_and_again_is_told_until_it_has_run_well_for_a_while(hospitals, monkeypatch):
    site = Site.load(hospitals.sites["a"])
    dying = Child("worker", [sys.executable, "-c", "exit(7)"], {}, notes=crashes.run_folder(site, "trainer"))
    dying.start()
    ends_again(dying)
    assert (crashes.told(site), crashes.counts(site)) == ({}, {"worker": 1})  # once is nothing yet
    ends_again(dying)
    (text,) = standing(site).crashing
    assert "the worker has ended 2 times since 2" in text
    assert "with exit status 7; its log: " in text
    assert text in wrong(site, standing(site))
    assert b'konsil_ended_by_itself{part="worker"} 2.0' in metrics(site)
    assert b'konsil_ended_by_itself{part="supernode"} 0.0' in metrics(site)
    dying.command = [sys.executable, "-c", "import time; time.sleep(60)"]
    ends_again(dying)
    dying.look()
    assert len(standing(site).crashing) == 1
    monkeypatch.setattr(crashes, "WELL_S", 0.0)
    dying.look()
    assert standing(site).crashing == ()
    dying.tell(signal.SIGKILL)
    dying.end(within_s=5)


def test_a_part_that_was_told_to_end_has_not_ended_by_itself(hospitals):
    site = Site.load(hospitals.sites["a"])
    told = Child(
        "supernode", [sys.executable, "-c", "import time; time.sleep(60)"], {}, notes=crashes.run_folder(site, "trainer")
    )
    told.start()
    told.tell(signal.SIGTERM)
    until(lambda: not told.alive)
    assert told.look() is True
    assert crashes.counts(site) == {}


def test_the_process_that_reads_images_is_told_when_it_dies_again_and_again(hospitals, tmp_path):
    site = Site.load(hospitals.sites["a"])
    notes = crashes.run_folder(site, "intake")
    readers = _Worker([sys.executable, "-c", "exit(9)"], tmp_path / "at-work", notes=notes)
    for _ in range(2):
        readers._next = 0.0
        readers.look()
        readers._process.wait(10)
        readers.look()
    (text,) = standing(site).crashing
    assert "the intake's process that reads images has ended 2 times" in text
    assert "exit status 9" in text
    readers.stop()
    assert standing(site).crashing == ()


def test_an_intake_that_can_not_start_is_found_before_by_check_and_afterwards_by_status(hospitals, tmp_path, capsys):
    door = DicomDoor(peers=(Peer(ae_title="PACS", address="pacs.clinic.example"),))
    settings = hospitals.add("h", dicom=door).folder / "site.yaml"
    site, log = Site.load(settings), tmp_path / "its.log"
    assert main(["--site", str(settings), "check"]) == 1
    wanted = "'pacs.clinic.example' is no IP address, and names can be forged"
    assert wanted in capsys.readouterr().out
    with open(log, "w") as out:
        command = [sys.executable, "-m", "fl_client", "--site", str(settings), "start", "--only", "intake"]
        daemon = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        until(lambda: crashes.counts(site).get("intake", 0) >= 2, seconds=60)
        assert main(["--site", str(settings), "status"]) == 1
        said = capsys.readouterr().out
        assert f"running: intake (process {daemon.pid})" in said
        assert "LOOK: the intake has ended " in said
        assert f"with exit status 1; its log: {log}" in said
        assert main(["--site", str(settings), "check"]) == 1
        assert "mend  running       the intake has ended " in capsys.readouterr().out
    finally:
        daemon.terminate()
        assert daemon.wait(20) == 0
    assert wanted in log.read_text()
    assert crashes.counts(site) == {}  # somebody stopped it


def test_the_daemon_starts_a_killed_part_again(daemon, tmp_path):
    file = tmp_path / "supernode.txt"

    def kill():
        until(file.exists)
        daemon.children["supernode"].process.kill()
        until(lambda: file.read_text() == "up up ")
        os.kill(os.getpid(), signal.SIGINT)

    assert run_until(daemon, kill) == 0


@pytest.mark.parametrize(("doing", "again"), [("handing over an answer", True), ("taking a message", True), ("working", False)])
def test_a_worker_that_dies_within_an_exchange_takes_the_supernode_with_it(daemon, tmp_path, doing, again):
    for one in daemon.children.values():
        one.start()
    file = tmp_path / "supernode.txt"
    until(file.exists)
    folder = runtime_folder(daemon.site)
    folder.mkdir(parents=True)
    (folder / "worker.json").write_text(json.dumps({"doing": doing}))
    supernode = daemon.children["supernode"].process
    daemon.children["worker"].process.kill()
    daemon.children["worker"].process.wait()
    daemon._look()
    if again:
        assert supernode.wait(5) == 0
    else:  # it will tell the coordinator by itself that the app stopped responding
        assert supernode.poll() is None


def test_the_switch_ends_everything_and_start_refuses_until_it_is_taken_away(daemon, hospitals, capsys):
    site = daemon.site
    assert run_until(daemon, lambda: halt(site.folder, "stopped", who="Dr. Alpha")) == STOPPED
    assert not any(one.alive for one in daemon.children.values())
    assert start(hospitals.sites["d"]) == STOPPED
    assert "konsil-site resume" in capsys.readouterr().out
    resume(site.folder)
    assert run_until(Again(daemon), lambda: os.kill(os.getpid(), signal.SIGTERM)) == 0


class Again:
    """The same daemon, to be run a second time."""

    def __init__(self, daemon):
        daemon.stop.clear()
        self.children, self.run = daemon.children, daemon.run


def test_a_paused_hospital_keeps_running(daemon):
    def pause():
        halt(daemon.site.folder, "paused", who="Dr. Alpha")
        time.sleep(1.2)  # two looks at the switch
        assert all(one.alive for one in daemon.children.values())
        os.kill(os.getpid(), signal.SIGTERM)

    assert run_until(daemon, pause) == 0


def test_a_hospital_runs_once_and_says_where(daemon, hospitals):
    found, refused = [], []

    def second():
        found.append(running(daemon.site))
        with pytest.raises(AlreadyRunning, match="runs already"):
            Daemon(hospitals.sites["d"], ("trainer",)).run()
        refused.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    # signal handlers can be set in the main thread alone: the second daemon is refused before it sets any
    assert run_until(daemon, second) == 0
    assert found == [{"trainer": os.getpid()}]
    assert refused == [True]
    assert running(daemon.site) == {}


def test_a_file_that_a_killed_daemon_left_behind_counts_for_nothing(hospitals):
    site = hospitals.site("a")
    file = site.folder / "run" / "trainer.pid"
    file.parent.mkdir()
    file.write_text(json.dumps({"pid": os.getpid(), "started": psutil.Process().create_time() - 3600}))
    assert running(site) == {}


def test_a_daemon_that_is_killed_leaves_no_part_behind(tmp_path):
    file = tmp_path / "part.txt"
    code = (
        "import sys, time; from fl_client.daemon import Child; "
        f"one = Child('part', [sys.executable, '-c', {OBEDIENT.format(file=str(file))!r}], {{}}); "
        "one.start(); print(one.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with parent:
        parent.stdout.readline()  # "started"
        pid = int(parent.stdout.readline())
        until(file.exists)
        parent.kill()
    until(lambda: ended(pid))
    assert ended(pid)


def ended(pid):
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_which_roles_a_hospital_has_follows_from_its_settings(hospitals):
    site = hospitals.site("a")
    with pytest.raises(ValueError, match="nothing to start"):
        roles_of(site)
    with pytest.raises(ValueError, match="lacks coordinator"):
        roles_of(site, "trainer")
    watching = site.model_copy(update={"arrivals": Arrivals(watch=site.folder)})
    assert roles_of(watching) == ("intake",)
    whole = site.model_copy(
        update={"dicom": DicomDoor(), "coordinator": Coordinator(address="127.0.0.1:1"), "page": Page()},
    )
    assert roles_of(whole) == ("intake", "trainer", "page")
    assert roles_of(whole, "trainer") == ("trainer",)


def test_intake_and_trainer_are_processes_of_their_own(hospitals):
    site = hospitals.add("e", dicom=DicomDoor(), coordinator=Coordinator(address="127.0.0.1:1"))
    parts = Daemon(site.folder / "site.yaml", ("intake", "trainer")).children
    assert list(parts) == ["intake", "supernode", "worker"]
    assert parts["intake"].command[1:] == ["-m", "fl_client", "--site", str((site.folder / "site.yaml").resolve()), "intake"]


def test_flower_reports_nothing_and_keeps_its_files_in_the_hospital(hospitals, monkeypatch):
    monkeypatch.setenv("no_proxy", "pacs.example.org")
    monkeypatch.delenv("NO_PROXY", raising=False)
    given = environment(hospitals.site("a"))
    assert (given["FLWR_TELEMETRY_ENABLED"], given["FLWR_DISABLE_UPDATE_CHECK"]) == ("0", "1")
    assert given["FLWR_HOME"].startswith(str(hospitals.site("a").folder))
    assert given["NO_PROXY"] == "pacs.example.org,127.0.0.1"
    assert "no_proxy" not in given


def test_the_module_of_the_commands_can_be_imported_without_torch_or_flower():
    code = "import sys, fl_client.commands.daemon, fl_client.daemon; print({'torch', 'flwr', 'pydicom'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert callable(command.add)
