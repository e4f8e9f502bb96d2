"""The files in deploy/ for clusters: what they say fits together, and konsil's commands take what they are given."""

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from conf.study import Study
from fl_client.__main__ import _parser as site_parser
from fl_client.site import Site
from fl_server.__main__ import _parser as study_parser
from fl_server.house import House

DEPLOY = Path(__file__).parents[2] / "deploy"
BIN = Path(sys.executable).parent
POWERLESS = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def parts(name):
    found = {part["kind"]: part for part in yaml.safe_load_all((DEPLOY / f"{name}.kubernetes.yaml").read_text())}
    return found, found["StatefulSet"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", ["coordinator", "site"])
def test_the_parts_of_a_pod_fit_together(name):
    found, pod = parts(name)
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert found["StatefulSet"]["spec"]["selector"]["matchLabels"] == labels
    assert found["Service"]["spec"]["selector"] == found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == labels
    assert found["StatefulSet"]["spec"]["replicas"] == 1
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {claim["metadata"]["name"] for claim in found["StatefulSet"]["spec"]["volumeClaimTemplates"]}
    containers = pod["initContainers"] + pod["containers"]
    assert volumes == {mount["name"] for container in containers for mount in container["volumeMounts"]}
    open_ports = {port["containerPort"] for container in containers for port in container.get("ports", ())}
    assert {port["targetPort"] for port in found["Service"]["spec"]["ports"]} == open_ports
    allowed = {port["port"] for rule in found["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    assert allowed == open_ports


@pytest.mark.parametrize("name", ["coordinator", "site"])
def test_nothing_in_a_pod_has_more_rights_than_it_needs(name):
    _, pod = parts(name)
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    for container in pod["initContainers"] + pod["containers"]:
        assert POWERLESS.items() <= container["securityContext"].items()


def test_only_the_intake_has_the_identity_zone_and_every_role_is_another_user():
    _, pod = parts("site")
    with_identities = {c["name"] for c in pod["containers"] if any(m["name"] == "identity" for m in c["volumeMounts"])}
    assert with_identities == {"intake"}
    assert len({c["securityContext"]["runAsUser"] for c in pod["containers"]}) == 3
    read_only = {
        c["name"] for c in pod["containers"] for m in c["volumeMounts"] if m["name"] == "settings" and m.get("readOnly")
    }
    assert read_only == {"trainer", "page"}


def test_the_containers_commands_are_konsils():
    _, pod = parts("site")
    for container in pod["containers"]:  # the image's entry point is konsil-site
        assert site_parser().parse_args(container["args"]).only == container["name"]
    _, pod = parts("coordinator")
    [container] = pod["containers"]
    assert container["command"] == ["konsil-study"]
    assert study_parser().parse_args(container["args"]).command == "serve"


def first_start(name, folder, root):
    """What the pod does before its first start, with `root` in place of the volumes' folders."""
    _, pod = parts(name)
    [init] = pod["initContainers"]
    program, flag, script = init["command"]
    mounts = [mount["mountPath"] for mount in init["volumeMounts"]]
    for mount in mounts:
        Path(f"{root}{mount}").mkdir(parents=True, exist_ok=True)
    script = re.sub(rf"(?<= )({'|'.join(mounts)})/", rf"{root}\1/", script)
    path = {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "KONSIL_SITE": f"{root}/srv/settings/site.yaml"}
    done = subprocess.run([program, flag, script], env={**os.environ, **path}, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


def test_a_coordinators_first_start_makes_its_folder_and_the_next_one_leaves_it(tmp_path):
    root = tmp_path / "root"
    first_start("coordinator", tmp_path, root)
    house = House.load(root / "coordinator" / "house")
    assert house.port == 8443
    assert house.listen == "0.0.0.0"
    before = house.key.read_bytes()
    first_start("coordinator", tmp_path, root)
    assert House.load(root / "coordinator" / "house").key.read_bytes() == before
    _, pod = parts("coordinator")
    assert pod["containers"][0]["startupProbe"]["httpGet"] == {"path": "/health", "port": 8443, "scheme": "HTTPS"}


def test_a_hospitals_first_start_makes_its_settings_and_closes_the_identity_zone(tmp_path):
    root = tmp_path / "root"
    first_start("site", tmp_path, root)
    site = Site.load(root / "srv" / "settings" / "site.yaml")
    assert (site.name, site.declared_size) == ("clinic", 50)
    assert site.identity_folder == root / "srv" / "identity" / "zone"
    assert stat.S_IMODE(site.identity_folder.stat().st_mode) == 0o700
    assert site.folder == root / "srv" / "konsil" / "house"


PROGRAMS = {
    "scontrol": "echo node1; echo node2; echo node3",
    "hostname": "echo 10.0.0.1 fe80::1",
    "sleep": "exit 0",
    "srun": """echo "srun $*" >> "$TOLD"; while [ "${1#-}" != "$1" ]; do
      case $1 in --nodes|--ntasks|--nodelist|--exclude) shift;; esac; shift; done; exec "$@" """,
    "ray": """echo "ray $*" >> "$TOLD"; exec /bin/sleep 30""",
    "konsil-simulate": """/bin/sleep 1; echo "simulate $RAY_ADDRESS $*" >> "$TOLD"; exit 3""",
}


def test_the_slurm_script_starts_ray_on_every_node_and_ends_with_the_verdict(tmp_path):
    for name, script in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    given = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "KONSIL_BIN": str(tmp_path),
        "TOLD": str(tmp_path / "told"),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "123",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_JOB_NUM_NODES": "3",
        "SLURM_CPUS_PER_TASK": "32",
    }
    command = ["bash", str(DEPLOY / "simulation.slurm"), "size=small", "privacy.epsilon=3"]
    done = subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    told = (tmp_path / "told").read_text()
    assert "ray start --head" in told
    assert "--node-ip-address 10.0.0.1 --port 20123 --num-cpus 32" in told
    assert "srun --overlap --nodes 2 --ntasks 2 --exclude node1" in told
    assert "--address 10.0.0.1:20123 --num-cpus 32" in told
    assert "simulate 10.0.0.1:20123 engine=ray size=small privacy.epsilon=3" in told


def test_a_study_may_have_as_many_hospitals_as_the_page_says():
    page = (DEPLOY.parent / "docs" / "scale.md").read_text()
    [most] = [rule.max_length for rule in Study.model_fields["sites"].metadata if hasattr(rule, "max_length")]
    assert f"{most:,} hospitals" in page


def test_kubectl_reads_the_files(tmp_path):
    if not (kubectl := shutil.which("kubectl")):
        pytest.skip("kubectl is not installed")
    files = [f"{name}.kubernetes.yaml" for name in ("coordinator", "site")]
    for file in files:
        shutil.copy(DEPLOY / file, tmp_path)
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({"resources": files, "nameSuffix": "-x"}))
    done = subprocess.run([kubectl, "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    kinds = sorted(part["kind"] for part in yaml.safe_load_all(done.stdout))
    assert kinds == sorted(["Service", "NetworkPolicy", "StatefulSet"] * 2)
