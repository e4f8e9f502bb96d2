"""The page as its own program and user, as deploy/ starts it: in a house that a group shares, with the identity zone closed."""

import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from fl_client.approval import Approvals
from fl_client.audit import AuditLog
from fl_client.daemon import HIDDEN, RUNS, elsewhere, running
from fl_client.metrics import metrics
from fl_client.page import views
from fl_client.page.guard import ensure_tokens, token_path
from fl_client.sharing import kept_to
from fl_client.site import Page, Site
from fl_client.standing import standing, told

INTAKE, TRAINER, PAGE, GROUP = 62001, 62002, 62003, 62000
ROOT = Path(__file__).parents[2]

only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


@pytest.fixture
def house(hospitals):
    """A house whose folder belongs to the group, with the identity zone of the intake's user, and a page in its settings."""
    reachable = Path("/tmp") / f"konsil-page-users-{os.getpid()}"  # tmp_path lies in a folder of root's own
    shutil.rmtree(reachable, ignore_errors=True)
    shutil.copytree(hospitals.site("a").folder, reachable / "house")
    reachable.chmod(0o755)
    for path in (reachable / "house", *(reachable / "house").rglob("*")):
        os.chown(path, INTAKE, GROUP)
        path.chmod(0o2770 if path.is_dir() else 0o660)
    identity = reachable / "identity"
    (identity / "quarantine").mkdir(parents=True)
    (identity / "run").mkdir()
    for path in (identity, *identity.iterdir()):
        os.chown(path, INTAKE, GROUP)
        path.chmod(0o700)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    changed = {"folder": reachable / "house", "identity_folder": identity, "page": Page(port=port), "approve_all": False}
    site = hospitals.site("a").model_copy(update=changed)
    site.save(reachable / "site.yaml")
    os.chown(reachable / "site.yaml", INTAKE, GROUP)
    (reachable / "site.yaml").chmod(0o640)
    yield site
    shutil.rmtree(reachable)


AS_THE_PAGE = """
import asyncio, os, re, sys, time
from pathlib import Path
import httpx, uvicorn, uvicorn.lifespan.off, uvicorn.loops.auto, uvicorn.protocols.http.auto
import fl_client.commands.page
from fl_client.__main__ import main
from fl_client.page import views
from fl_client.page.app import page_app
from fl_client.page.guard import ensure_tokens, token
from fl_client.site import Site
user, group, warm, settings, templates = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:6]
site = Site.load(warm)  # as root first: what is imported late has to be there, since the other user may not reach it
ensure_tokens(site)
async def look():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(page_app(site)), base_url="http://localhost") as person:
        async def csrf(path):
            return re.search(r'name="csrf" value="([0-9a-f]{64})"', (await person.get(path)).text)[1]
        async def settled(path):
            while "http-equiv" in (await person.get(path)).text:
                time.sleep(0.1)
        await person.post("/login", data={"csrf": await csrf("/login"), "token": token(site, "page")})
        (study,) = (path.stem for path in (site.folder / "studies").glob("*.json"))
        await person.post(f"/studies/{study}/approve", data={"csrf": await csrf("/"), "who": "root"})
        for path in ("/", f"/studies/{study}", "/cohort", "/quality"):
            await settled(path)
        assert (await person.get("/quality/cine_ed.png")).status_code == 200
asyncio.run(look())
views.HERE = Path(templates)
os.setgroups([]); os.setgid(group); os.setuid(user); os.umask(0o007)
sys.exit(main(["--site", settings, "page"]))
"""


@pytest.fixture
def study(hospitals, house):
    asked = hospitals.study(name="pilot")
    with kept_to(house.folder):
        for folder in (hospitals.site("a").folder, house.folder):
            Approvals(folder).put_down(asked)
    return asked


@pytest.fixture
def served(house, study, hospitals):
    """`konsil-site page` as the page's user, without a home; the address."""
    top = house.folder.parent
    templates = shutil.copytree(Path(views.HERE), top / "templates")
    for path in (templates, *templates.iterdir()):
        path.chmod(0o755)
    settings = [str(hospitals.sites["a"]), str(top / "site.yaml"), str(templates)]
    own = {**os.environ, "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen([sys.executable, "-c", AS_THE_PAGE, str(PAGE), str(GROUP), *settings], env=own, **pipes)
    try:
        assert f"page: http://127.0.0.1:{house.page.port}/" in process.stdout.readline()
        yield f"http://127.0.0.1:{house.page.port}"
    finally:
        process.terminate()
        status, said = process.wait(20), process.stdout.read()
        process.stdout.close()
    assert (status in (0, -15), "Traceback" in said) == (True, False), said


@only_root
def test_as_a_user_of_its_own_it_shows_and_decides_and_sees_no_identity(house, served, study):
    key = token_path(house, "page")
    assert (key.stat().st_uid, key.stat().st_mode & 0o777) == (PAGE, 0o600)
    with httpx.Client(base_url=served, timeout=60) as person:

        def csrf(path):
            return re.search(r'name="csrf" value="([0-9a-f]{64})"', person.get(path).text)[1]

        def settled(path):
            for _ in range(200):
                if "http-equiv" not in (text := person.get(path).text):
                    return text
                time.sleep(0.1)
            raise AssertionError(path)

        assert person.post("/login", data={"csrf": csrf("/login"), "token": key.read_text().strip()}).status_code == 303
        assert "is closed to this user: what lies in quarantine is not counted here" in settled("/cohort")
        assert HIDDEN in person.get("/").text.replace("&#39;", "'")
        settled("/quality")
        assert person.get("/quality/cine_ed.png").headers["content-type"] == "image/png"
        person.post(f"/studies/{study.hash}/approve", data={"csrf": csrf("/"), "who": "Dr. Alpha"})
        assert "approved by Dr. Alpha" in settled(f"/studies/{study.hash}")
        assert person.post("/pause", data={"csrf": csrf("/"), "who": "Dr. Alpha"}).status_code == 303
    written = [house.folder / name for name in ("approvals.jsonl", "audit.jsonl", "halt.json")]
    assert {(path.stat().st_uid, path.stat().st_gid, path.stat().st_mode & 0o777) for path in written} == {(PAGE, GROUP, 0o660)}
    assert [line["happening"] for line in AuditLog(house.folder / "audit.jsonl").lines] == ["approved", "paused"]
    assert not (house.folder / ".config").exists()


@only_root
def test_a_token_of_another_user_is_told_and_not_taken_for_a_wrong_one(house):
    with kept_to(house.folder):
        ensure_tokens(house)  # as root; then as the trainer, in a process that knows all that it needs
    settings = str(house.folder.parent / "site.yaml")
    code = "import os, sys; from fl_client.page.guard import Site, ensure_tokens; os.setgroups([]); "
    code += f"os.setgid({GROUP}); os.setuid({TRAINER}); ensure_tokens(Site.load(sys.argv[1]))"
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, settings], env=own, capture_output=True, text=True, timeout=60)
    assert "page.token belongs to another user (uid 0), and the page can't read it" in done.stderr


def hold(path):
    """A process that holds this file as a role of the daemon does; its number is one that nobody here has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": 2**22, "started": 1.0}))
    file = open(path, "a+")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def test_a_role_in_another_container_is_told_by_its_lock_and_one_that_has_ended_is_not(hospitals):
    site = hospitals.site("a")
    holds = hold(site.folder / "run" / "trainer.pid")
    assert (running(site), elsewhere(site)) == ({}, {"trainer": RUNS})
    assert "the trainer runs, as another user or in another container" in told(standing(site))
    text = metrics(site).decode()
    assert 'konsil_running{role="trainer"} 1.0' in text
    assert 'konsil_running{role="intake"} 0.0' in text
    asked = Site.model_validate({**site.model_dump(), "coordinator": {"address": "localhost:1"}})
    assert not [text for text in views.wrong(asked, standing(asked)) if "trainer" in text]
    holds.close()
    assert elsewhere(site) == {}
    assert [text for text in views.wrong(asked, standing(asked)) if "the trainer isn't running" in text]
