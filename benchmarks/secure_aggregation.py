"""What it costs that nobody sees one hospital's numbers: secure sums against plain ones, in seconds and bytes.

    .venv/bin/python benchmarks/secure_aggregation.py                          # half a CPU-minute
    .venv/bin/python benchmarks/secure_aggregation.py --sites 3 6 --sizes 10000 2000000
    .venv/bin/python benchmarks/secure_aggregation.py --network                # whole rounds over TLS, seven minutes

All parts of one round run in this process one after the other, without any network: keys, shares, noise and masks at every
site, the sum and taking the masks off at the coordinator, with all hospitals to the end and with one that vanishes after it
sent its shares. Times are CPU seconds of one thread, so that what else the machine does counts little; hospitals work at the
same time in the field, so a site's are the mean over sites. Bytes are those of what one site sends and is sent, without the
model and without what a transport adds.

With `--network` three hospitals' daemons and a coordinator run as processes: SuperLink behind the gate, TLS, signed requests,
SuperNodes, warm workers, ledgers, four small patients at each hospital. Studies of the same model take turns, one whose
hospitals send their own noisy sums and one under masks; of each the first round is left out. Seconds are a round's at the
coordinator, bytes those that Flower counts between SuperLink and SuperNodes, both ways and with the weights, of one hospital in
one round: a study's bytes over its hospitals and rounds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_client.cohort import Cohort
from fl_client.privacy.noise import noised, os_noise
from fl_client.site import Budget, Site
from fl_server.record import Record
from simulation.federation.programs import Daemon, free_port, konsil_site, konsil_study, run
from tasks.case import Case, Volume
from tasks.secure.circle import FEWEST, Circle, Moment
from tasks.secure.coordinator import CoordinatorRound
from tasks.secure.grid import Grid
from tasks.secure.noise import os_bits
from tasks.secure.site import SiteRound
from tasks.task import gradient_task

PATIENTS, BOUND, NOISE_MULTIPLIER = 40, 1.0, 2.0

CHANNELS = {10_000: [8, 14], 2_000_000: [56, 112, 184], 30_000_000: [204, 408, 816]}
"""Widths of the U-Net that weighs about so many bytes."""

HOSPITALS = ("a", "b", "c")


class Clock:
    """CPU seconds by what they were spent on."""

    def __init__(self) -> None:
        self.spent: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count what is done inside as one go at `what`."""
        began = time.process_time()
        yield
        self.spent[what].append(time.process_time() - began)

    def mean(self, *what: str) -> float:
        """Per site, of all its parts."""
        return sum(statistics.fmean(self.spent[part]) for part in what)

    def total(self, *what: str) -> float:
        """Altogether."""
        return sum(sum(self.spent[part]) for part in what)


def main() -> int:
    """Measure every number of sites and size; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[3, 6, 20])
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[10_000, 2_000_000, 30_000_000], help="bytes of the plain vector"
    )
    parser.add_argument("--network", action="store_true", help="rounds of three hospitals' daemons over TLS")
    parser.add_argument("--rounds", type=int, default=6, help="of each study over the network; the first is left out")
    parser.add_argument("--turns", type=int, default=2, help="studies of each kind and size over the network")
    options = parser.parse_args()
    if options.network:
        if unknown := sorted(set(options.sizes) - set(CHANNELS)):
            parser.error(f"over the network there are models of {sorted(CHANNELS)} bytes, not of {unknown}")
        print(json.dumps({"network": _network(options.sizes, rounds=options.rounds, turns=options.turns)}))
        return 0
    if min(options.sites) < FEWEST:
        parser.error(f"a secure sum needs at least {FEWEST} hospitals, not {min(options.sites)}")
    if min(options.sizes) < 4:
        parser.error(f"a vector holds one number of 4 bytes at least, not {min(options.sizes)} bytes")
    rows = []
    for size in options.sizes:
        for count in options.sites:
            rows.append(_row(count, size // 4))
            print(json.dumps(rows[-1]), file=sys.stderr)
    worst = max(row["max_error_in_steps"] for row in rows)
    print(json.dumps({"max_error": max(row["max_error"] for row in rows), "max_error_in_steps": worst, "rounds": rows}))
    return 0


def _row(count: int, length: int) -> dict[str, Any]:
    keys = {f"site{number:02d}": ec.generate_private_key(ec.SECP384R1()) for number in range(count)}
    circle = Circle(keys={name: _line(key) for name, key in keys.items()}, threshold=max(FEWEST, count - 1))
    # without noise, so that what is left over is the protocol's own error; what noise costs is measured beside it
    grid = Grid(circle=circle, shapes={"v": (length,)}, bound=BOUND, patients=count * PATIENTS, noise_multiplier=0.0)
    plain_site, plain_sum = _plain(count, length)
    clock, sent, error = _round(grid, keys, gone=None)
    noise = _noise_s(circle, length)
    row = {
        "sites": count,
        "bytes": 4 * length,
        "threshold": circle.threshold,
        "site_s": clock.mean("keys", "shares", "accept", "mask", "unmask") + noise,
        "plain_site_s": plain_site,
        "masks_s": clock.mean("mask"),
        "noise_s": noise,
        "coordinator_s": clock.total("coordinator"),
        "plain_coordinator_s": plain_sum,
        "sent_bytes": round(sent["up"]),
        "received_bytes": round(sent["down"]),
        "sent_ratio": sent["up"] / (4 * length),
        "max_error": error,
        "max_error_in_steps": error / grid.step,
    }
    if circle.threshold < count:
        clock, _, error = _round(grid, keys, gone=circle.sites[count // 2])
        row |= {"one_gone_coordinator_s": clock.total("coordinator"), "one_gone_max_error": error}
    return {key: round(value, 4) if key.endswith("_s") or key.endswith("ratio") else value for key, value in row.items()}


def _round(
    grid: Grid, keys: Mapping[str, ec.EllipticCurvePrivateKey], *, gone: str | None
) -> tuple[Clock, dict[str, float], float]:
    """One whole round; times, bytes that a site sends and is sent (mean), and the largest error of the sum."""
    clock, moment, length = Clock(), Moment(study="5e" * 32, round=1), grid.length
    up = down = 0
    sites = {name: SiteRound(grid.circle, moment, site=name, key=key) for name, key in keys.items()}
    with clock.on("coordinator"):
        coordinator = CoordinatorRound(grid.circle, moment, length=length)

    first = {name: _timed(clock, "keys", site.keys) for name, site in sites.items()}
    with clock.on("coordinator"):
        roster = coordinator.keys(first)
    second = {name: _timed(clock, "shares", site.shares, roster) for name, site in sites.items()}
    with clock.on("coordinator"):
        addressed = coordinator.shares(second)
    up += sum(len(keys) + _size(second[name]) for name, keys in first.items())
    down += sum(_size(roster) + _size(addressed[name]) for name in sites)

    exact = np.zeros(length)
    for number, (name, site) in enumerate(sites.items()):
        if name == gone:
            continue
        total = _total(number, length)
        exact += total
        _timed(clock, "accept", site.accept, addressed[name])
        with clock.on("encode"):
            vector = grid.encode({"v": total}, patients=PATIENTS, bits=os_bits())
        with clock.on("mask"):
            site.mask(vector)
        up += vector.nbytes
        with clock.on("coordinator"):
            coordinator.add(name, vector)

    with clock.on("coordinator"):
        survivors = coordinator.survivors()
    last = {name: _timed(clock, "unmask", sites[name].unmask, survivors) for name in survivors}
    up += sum(_size(answer) for answer in last.values())
    down += len(survivors) * sum(len(name) for name in survivors)
    with clock.on("coordinator"):
        found = grid.decode(coordinator.unmask(last), sites=survivors)["v"]
    return clock, {"up": up / len(sites), "down": down / len(sites)}, float(np.abs(found - exact).max())


def _plain(count: int, length: int) -> tuple[float, float]:
    """The same with nothing hidden: noise at the site, and the sum of float32 vectors; a site's seconds, the coordinator's."""
    clock, summed = Clock(), np.zeros(length)
    for number in range(count):
        total = _total(number, length)
        if number == 0:
            with clock.on("site"):
                noised(torch.from_numpy(total), NOISE_MULTIPLIER * BOUND, os_noise()).float()
        with clock.on("sum"):
            summed += total
    return clock.mean("site"), clock.total("sum")


def _noise_s(circle: Circle, length: int) -> float:
    """Seconds that a site's own discrete noise takes, rounding included."""
    patients = PATIENTS * len(circle.keys)
    grid = Grid(circle=circle, shapes={"v": (length,)}, bound=BOUND, patients=patients, noise_multiplier=NOISE_MULTIPLIER)
    total, clock = _total(0, length), Clock()
    with clock.on("noise"):
        grid.encode({"v": total}, patients=PATIENTS, bits=os_bits())
    return clock.total("noise")


def _total(number: int, length: int) -> npt.NDArray[np.float32]:
    """A site's total, of about the largest norm that its patients can have."""
    values = np.random.default_rng(number).standard_normal(length, dtype=np.float32)
    return values * np.float32(PATIENTS * BOUND / math.sqrt(length))


def _network(sizes: list[int], *, rounds: int, turns: int) -> list[dict[str, Any]]:
    """One row for each size, of whole rounds between processes."""
    with tempfile.TemporaryDirectory(prefix="konsil secure ") as name, ExitStack() as stack:
        folder = Path(name)
        house, log, port = folder / "coordinator", folder / "commands.log", free_port()
        run(konsil_study("init", str(house), "--host", "localhost", "--port", str(port)), log=log)
        serving = stack.enter_context(Daemon("serve", konsil_study("serve", "--folder", str(house)), log=folder / "serve.log"))
        serving.wait_for("certificate valid until")
        for hospital in HOSPITALS:
            settings = _hospital(folder / hospital)
            token = run(konsil_study("join-token", hospital, "--folder", str(house)), log=log).strip()
            authority = ("--root-certificates", str(house / "ca.crt"))
            run(konsil_site(settings, "join", token, "--coordinator", f"localhost:{port}", *authority), log=log)
            stack.enter_context(Daemon(hospital, konsil_site(settings, "start"), log=folder / f"{hospital}.log"))
        rows = []
        for size in sizes:
            row = _network_row(house, size, rounds=rounds, turns=turns, log=log)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr)
        return rows


def _network_row(house: Path, size: int, *, rounds: int, turns: int, log: Path) -> dict[str, Any]:
    seconds, sent = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    load = os.getloadavg()[0]
    for turn in range(turns):
        for kind in ("plain", "masked"):
            name = f"{kind}_{size}_{turn}"
            before = _traffic(house)
            _studied(house, name, size, rounds=rounds, log=log)
            record = Record.read(house / "runs" / name / "record.json")
            if record.verdict != "complete":
                raise RuntimeError(f"{name} ended {record.verdict}: {record.reasons}")
            seconds[kind] += [entry.seconds for entry in record.rounds[1:]]
            sent[kind].append((_traffic(house) - before) / rounds / len(HOSPITALS))
    parameters = 4 * sum(math.prod(shape) for shape in _shapes(size))
    return {
        "bytes": parameters,
        "sites": len(HOSPITALS),
        "rounds_of_each": len(seconds["plain"]),
        "load_before": round(load, 2),
        **{f"{kind}_round_s": round(statistics.median(found), 3) for kind, found in seconds.items()},
        **{f"{kind}_round_min_s": round(min(found), 3) for kind, found in seconds.items()},
        **{f"{kind}_round_max_s": round(max(found), 3) for kind, found in seconds.items()},
        **{f"{kind}_traffic_bytes": round(statistics.fmean(found)) for kind, found in sent.items()},
    }


def _studied(house: Path, name: str, size: int, *, rounds: int, log: Path) -> None:
    """Run a study with a model of this size to its end."""
    privacy: dict[str, Any] = {"epsilon": 8, "delta": 1e-3}
    if name.startswith("masked"):
        privacy["secure"] = {"patients": len(HOSPITALS) * 4}
    study = {
        "konsil_version": version("konsil"),
        "name": name,
        "task": _task(size),
        "rounds": rounds,
        "sites": HOSPITALS,
        "privacy": privacy,
        "training": {"steps": 1, "sample_rate": 1, "views": 2},
    }
    path = house / f"{name}.json"
    path.write_text(json.dumps(study))
    run(konsil_study("start", str(path), "--folder", str(house), "--wait"), log=log, timeout_s=1800)


def _task(size: int) -> dict[str, Any]:
    channels = CHANNELS[size]
    net = {"channels": channels, "strides": [2] * (len(channels) - 1), "groups": 2, "head_channels": 4}
    return {"name": "segmentation", "voxels": 16, "field_mm": 80, "roi_mm": None, "working_mm": 4, **net}


def _shapes(size: int) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in gradient_task(_task(size)).model().parameters()]


def _hospital(folder: Path) -> Path:
    """Settings of a hospital that says yes to everything and has four patients of noise."""
    rng, cohort = np.random.default_rng(0), Cohort(folder / "cohort")
    for number in range(4):
        mask = rng.integers(0, 3, (3, 32, 32)).astype(np.uint8)
        volumes = [
            Volume(series, rng.normal(100, 20, mask.shape).astype(np.float32), np.diag([8.0, 3.0, 3.0, 1.0]), mask)
            for series in ("cine_ed", "cine_es")
        ]
        cohort.admit(Case(f"{folder.name}{number}", tuple(volumes)))
    much = Budget(epsilon=1e6, delta=1e-3)
    willing = {"declared_size": 4, "approve_all": True, "test_fraction": 0.0, "minimum_cohort": 1, "budget": much}
    Site.model_validate({"name": folder.name, "folder": folder, **willing}).save(folder / "site.yaml")
    return folder / "site.yaml"


def _traffic(house: Path) -> int:
    """Bytes that the SuperLink has sent to SuperNodes and received from them, in all runs."""
    with sqlite3.connect(f"{(house / 'state.db').as_uri()}?mode=ro", uri=True) as database:
        (total,) = database.execute("select coalesce(sum(bytes_sent + bytes_recv), 0) from run").fetchone()
    return int(total)


def _timed(clock: Clock, what: str, function: Any, *given: Any) -> Any:
    with clock.on(what):
        return function(*given)


def _size(message: Mapping[str, bytes]) -> int:
    return sum(len(name) + len(value) for name, value in message.items())


def _line(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


if __name__ == "__main__":
    raise SystemExit(main())
