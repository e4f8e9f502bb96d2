"""The files in deploy/ that a hospital installs, looked at by the programs that will read them, where these exist."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from fl_client.__main__ import _parser
from fl_client.daemon import STOPPED

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = ("konsil-site.service", "konsil-intake.service", "konsil-trainer.service", "konsil-page.service")


def value(unit, key):
    return re.findall(rf"^{key}=(.*)$", (DEPLOY / unit).read_text(), re.M)


@pytest.mark.parametrize("unit", [*UNITS, "konsil-pull.service"])
def test_systemd_takes_the_unit_and_finds_it_well_closed(unit, tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", (DEPLOY / unit).read_text(), flags=re.M)
    file = tmp_path / unit
    file.write_text(re.sub(r"^(User|Group)=.*", r"\1=root", text, flags=re.M))  # this machine has no such users
    done = subprocess.run(["systemd-analyze", "verify", file], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    asked = ["systemd-analyze", "security", "--offline=yes", "--threshold=30", file]  # of 100, where 0 is the safest
    judged = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=False)
    assert judged.returncode == 0, judged.stdout[-300:]


@pytest.mark.parametrize("unit", UNITS)
def test_the_command_of_a_unit_is_one_of_ours(unit):
    (command,) = value(unit, "ExecStart")
    options = _parser().parse_args(shlex.split(command)[1:])
    assert options.command == "start"
    assert f"konsil-{options.only or 'site'}.service" == unit


def test_what_is_fetched_at_night_is_a_saved_query_and_the_intakes_users():
    (command,) = value("konsil-pull.service", "ExecStart")
    options = _parser().parse_args(shlex.split(command)[1:])
    assert (options.command, options.what) == ("pull", "query")
    for key in ("User", "Environment", "ReadWritePaths", "UMask"):
        assert value("konsil-pull.service", key) == value("konsil-intake.service", key)
    if shutil.which("systemd-analyze"):
        (when,) = value("konsil-pull.timer", "OnCalendar")
        asked = subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, text=True, timeout=60, check=False)
        assert "Normalized form: *-*-* 02:30:00" in asked.stdout


def test_a_hospital_that_was_stopped_stays_so():
    assert all(value(unit, "RestartPreventExitStatus") == [str(STOPPED)] for unit in UNITS)


def test_the_trainers_unit_can_not_see_identities():
    (hidden,) = value("konsil-trainer.service", "InaccessiblePaths")
    assert hidden.split() == ["-/srv/konsil/identity", "-/srv/konsil/pseudonym.key"]
    assert value("konsil-trainer.service", "User") != value("konsil-intake.service", "User")


def test_the_pages_unit_can_see_neither_identities_nor_a_key_and_talks_to_this_machine_alone():
    (hidden,) = value("konsil-page.service", "InaccessiblePaths")
    assert hidden.split() == ["-/srv/konsil/identity", "-/srv/konsil/pseudonym.key", "-/srv/konsil/house/node.key"]
    assert value("konsil-page.service", "User") == value("konsil-trainer.service", "User")  # its token and its books are theirs
    assert (value("konsil-page.service", "IPAddressDeny"), value("konsil-page.service", "IPAddressAllow")) == (
        ["any"],
        ["localhost"],
    )
    assert value("konsil-page.service", "ReadWritePaths") == ["/srv/konsil/house"]
    assert f"MPLCONFIGDIR=/var/cache/{value('konsil-page.service', 'CacheDirectory')[0]}" in value(
        "konsil-page.service", "Environment"
    )


def test_only_the_intakes_container_has_the_identity_zone_and_a_port():
    services = yaml.safe_load((DEPLOY / "site.compose.yaml").read_text())["services"]
    assert {name: service["volumes"] for name, service in services.items()} == {
        "intake": ["settings:/srv/settings", "clean:/srv/konsil", "identity:/srv/identity"],
        "trainer": ["settings:/srv/settings:ro", "clean:/srv/konsil"],
        "page": ["settings:/srv/settings:ro", "clean:/srv/konsil"],
    }
    assert "ports" not in services["trainer"]
    assert services["page"]["ports"] == ["127.0.0.1:8787:8787"]
    assert len({service["networks"][0] for service in services.values()}) == 3  # none reaches another's
    assert services["intake"]["ports"][0].startswith("${KONSIL_LAN:-127.0.0.1}:")
    assert len({service["user"] for service in services.values()}) == 3
    assert {service["user"].split(":")[1] for service in services.values()} == {"10000"}
    for service in services.values():
        options = _parser().parse_args(service["command"])
        assert options.only in services
        assert (service["cap_drop"], service["read_only"]) == (["ALL"], True)


def test_the_image_gives_each_volume_to_whom_it_belongs_to():
    made = re.findall(r"install -d -o (\S+) -g konsil -m (\d+) (\S+)", (DEPLOY / "Dockerfile").read_text())
    assert {place: (owner, mode) for owner, mode, place in made} == {
        "/srv/konsil": ("konsil-intake", "2770"),
        "/srv/settings": ("konsil-intake", "0750"),
        "/srv/identity": ("konsil-intake", "0700"),
    }


def test_an_image_has_a_compiler_while_pyradiomics_is_built():
    """It is published as source code alone (README: "and a C compiler")."""
    for name in ("Dockerfile", "konsil.def"):
        text = (DEPLOY / name).read_text()
        assert 0 < text.index("install -y --no-install-recommends gcc libc6-dev") < text.index("-c constraints.txt .")


def test_the_coordinators_container_is_of_the_same_image_and_has_a_folder_of_its_own():
    (service,) = yaml.safe_load((DEPLOY / "coordinator.compose.yaml").read_text())["services"].values()
    assert service["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile"}
    (uid,) = re.findall(r"useradd --uid (\d+) .* konsil-coordinator", (DEPLOY / "Dockerfile").read_text())
    assert (service["user"], service["entrypoint"]) == (f"{uid}:{uid}", ["konsil-study"])


def test_what_the_compose_file_says_to_do_first_are_commands_of_ours():
    text = (DEPLOY / "site.compose.yaml").read_text().replace("\\\n# ", "")
    (found,) = re.findall(r"intake (init .*)", text)
    options = _parser().parse_args(shlex.split(found))
    assert (options.folder, options.identity) == ("/srv/konsil", "/srv/identity")
    assert re.search(r"trainer join - ", text)
    assert not re.search(r"trainer init", text)


def test_the_trainers_unit_writes_into_the_groups_folder_alone():
    assert value("konsil-trainer.service", "ReadWritePaths") == ["/srv/konsil/house"]


SERVICE = {
    "image", "build", "restart", "init", "stop_grace_period", "read_only", "tmpfs", "cap_drop", "security_opt", "logging",
    "command", "user", "environment", "ports", "volumes", "networks",
}  # of the Compose specification, chapter 5  # fmt: skip


def test_every_key_is_one_of_the_compose_specifications_and_what_services_name_is_declared():
    text = yaml.safe_load((DEPLOY / "site.compose.yaml").read_text())
    assert set(text) == {"name", "x-role", "services", "volumes", "networks"}
    for service in text["services"].values():
        assert set(service) <= SERVICE
        assert all(volume.split(":")[0] in text["volumes"] for volume in service["volumes"])
        assert set(service["networks"]) <= set(text["networks"])
        assert all(
            re.fullmatch(r"(\$\{KONSIL_LAN:-127\.0\.0\.1\}|127\.0\.0\.1):\d+:\d+", port) for port in service.get("ports", ())
        )
    users = re.findall(r"useradd --uid (\d+) --gid konsil ", (DEPLOY / "Dockerfile").read_text())
    assert [service["user"].split(":")[0] for service in text["services"].values()] == users


def test_an_apptainer_instance_starts_what_a_run_does():
    text = (DEPLOY / "konsil.def").read_text()
    assert text.split("%startscript")[1].split("%")[0].strip() == text.split("%runscript")[1].split("%")[0].strip()
    for command in re.findall(r"konsil\.sif(?: konsil-page)? (--site .*)", text):
        assert _parser().parse_args(shlex.split(command)).site == Path("/srv/konsil/site.yaml")


def test_docker_compose_takes_the_file():
    known = shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    if not known:
        pytest.skip("docker compose is not installed")
    command = ["docker", "compose", "--file", DEPLOY / "site.compose.yaml", "config", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_images_are_built_from_is_there():
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [line.split()[1:-1] for line in lines if line.startswith("COPY") and "--from" not in line]
    files = (DEPLOY / "konsil.def").read_text().split("%files")[1].split("%post")[0].split("\n")
    apptainer = [line.split()[0] for line in files if line.strip()]
    for name in [*(path for line in copied for path in line), *apptainer]:
        assert (ROOT / name).exists(), name
    assert {path for line in copied for path in line} == set(apptainer)
