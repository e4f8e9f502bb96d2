"""konsil's apps under Flower's own simulation engine, where Ray spreads the sites over processes, GPUs or machines.

The in-process grid is the default engine; this one is for more hospitals than one machine holds, and shows that the apps
are ordinary Flower apps: `client_app` is what `flwr run .` starts in this repository. A simulated node knows only its
number, so the hospital is found by it: node i is the study's site i, with its settings in `<hospitals>/<name>/site.yaml`.

    flower-superlink --insecure --simulation --disable-runtime-dependency-installation      # in another terminal
    flwr run . local --stream --federation-config "num-supernodes=2"

with `[superlink.local]`, `address = "127.0.0.1:8000"`, `insecure = true` in `~/.flwr/config.toml` (docs/flower_run.md).
"""

from __future__ import annotations

import copy
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid, ServerApp

from conf.study import Study
from fl_client import app as hospital
from fl_client import release
from fl_client.approval import Declined
from fl_client.packed import packed_mod
from fl_client.site import Budget
from fl_server.record import Record
from fl_server.rounds import Observer, run
from fl_server.weights import State

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0"}
"""Flower and Ray report their use over the internet unless told not to; a hospital's network would block it anyway."""


def hospital_app(place: Callable[[Context], Context]) -> ClientApp:
    """The hospital's ClientApp for nodes that don't know which hospital they are: `place` tells them."""

    def told(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        torch.set_num_threads(1)  # as many as the in-process grid gives a site, so that the numbers are the same
        return call_next(message, place(context))

    app = ClientApp(mods=[packed_mod])
    app.query("enroll", mods=[release.guarded_mod, told])(hospital.enroll)
    app.train(mods=[release.guarded_mod, told])(hospital.train)
    return app


def in_folder(context: Context) -> Context:
    """Node i is the hospital of site i in the folder `KONSIL_HOSPITALS`; without one, a small generated hospital."""
    if "site" in context.node_config:  # a real node, started by a hospital
        return context
    study = Study.from_json(str(context.run_config.get("study", "")))
    index = int(context.node_config["partition-id"])
    if index >= len(study.sites):
        raise Declined(f"study {study.name} has {len(study.sites)} sites; node {index} is not needed")
    name = study.sites[index]
    if "KONSIL_HOSPITALS" in os.environ:
        path = Path(os.environ["KONSIL_HOSPITALS"]) / name / "site.yaml"
        if not path.exists():
            raise Declined(f"KONSIL_HOSPITALS has no settings file {name}/site.yaml")
        return placed(context, path)
    return placed(context, generated(name, index, Path.home() / ".cache" / "konsil" / "hospitals"))


def generated(name: str, index: int, folder: Path) -> Path:
    """The settings file of a small hospital of five generated patients, made at the first call and kept.

    Its ledger is kept, too: after some twenty runs of the default study its budget is spent.
    """
    from simulation import hospital, settings  # here: drawing patients needs imports that a run does not
    from simulation.machine import Immediately
    from simulation.scanner import Scanner, Series

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # nodes start at the same time
        path = folder / name / "site.yaml"
        if not path.exists():
            scanner = Scanner(name=name, field_strength_t=(1.5, 3.0)[index % 2], matrix=128, pixel_mm=2.4)
            kind = settings.GeneratedHospital(scanner=scanner, case_mix={"normal": 0.5, "infarct": 0.5})
            series: tuple[Series, ...] = ("cine_ed", "cine_es")
            every = settings.GeneratedHospitals(
                source="generated", patients=5, series=series, oversampling=1, subslices=1, sites={name: kind}
            )
            drawn = hospital.drawn(
                name, index, kind, every, cache=folder.parent, pool=Immediately(), advance=lambda done, count: None
            )
            drawn.settle(folder / name, budget=Budget(epsilon=50.0, delta=1e-3), private=True, noise_seed=index)
        return path


def placed(context: Context, site: Path, study: Study | None = None) -> Context:
    """The node's context with the path of its hospital's settings, and a study if the engine has not passed one on."""
    context = copy.copy(context)  # shallow: the node's state stays the node's
    context.node_config = {**context.node_config, "site": str(site)}
    if study is not None:
        context.run_config = {**context.run_config, "study": study.to_json()}
    return context


client_app = hospital_app(in_folder)
"""What `flwr run .` starts at each node, simulated or real."""


def run_ray(
    study: Study,
    sites: Mapping[str, Path],
    initial: Mapping[str, torch.Tensor],
    *,
    folder: Path,
    observer: Observer | None = None,
    cpus: int | None = None,
    gpus_per_site: float = 0.0,
    references: Mapping[str, torch.Tensor] | None = None,
) -> tuple[State, Record]:
    """Run the study over these hospitals (name -> `site.yaml`) with Ray. Same numbers as the in-process grid.

    `cpus` of this machine are used (None: all that this process may use), one for each site at work. Starting Ray takes some 20
    seconds. Where `RAY_ADDRESS` names a cluster that runs already (deploy/simulation.slurm), its machines work, with the
    processors that they were started with; hospitals and `folder` then lie where all of them see them.
    Raises `RuntimeError` if the engine ends without a result.
    """
    from flwr.simulation import run_simulation  # here: imports Ray, which takes seconds

    paths = [sites[name].resolve() for name in study.sites]
    results: list[tuple[State, Record]] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        results.append(
            run(
                grid,
                study,
                initial,
                folder=folder,
                observer=observer,
                enrol_timeout_s=120.0,
                engine="ray",
                references=references,
            )
        )

    app = hospital_app(lambda context: placed(context, paths[int(context.node_config["partition-id"])], study))
    here = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": cpus or len(os.sched_getaffinity(0))}
    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": gpus_per_site},
        "init_args": {"include_dashboard": False, **here},
    }
    with _environment(QUIET):
        run_simulation(server, app, len(paths), backend_config=backend)
    if not results:
        raise RuntimeError("Flower's simulation engine ended without a result; its log above says why")
    return results[0]


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
