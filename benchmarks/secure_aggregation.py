"""What it costs that nobody sees one hospital's numbers: secure sums against plain ones, in seconds and bytes.

    .venv/bin/python benchmarks/secure_aggregation.py                          # about four CPU-minutes
    .venv/bin/python benchmarks/secure_aggregation.py --sites 3 6 --sizes 10000 2000000

All parts of one round run in this process one after the other, without any network: keys, shares, noise and masks at every
site, the sum and taking the masks off at the coordinator, with all hospitals to the end and with one that vanishes after it
sent its shares. Times are CPU seconds of one thread, so that what else the machine does counts little; hospitals work at the
same time in the field, so a site's are the mean over sites. Bytes are those of what one site sends and is sent, without the
model and without what a transport adds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_client.privacy.noise import noised, os_noise
from tasks.secure.circle import FEWEST, Circle, Moment
from tasks.secure.coordinator import CoordinatorRound
from tasks.secure.grid import Grid
from tasks.secure.noise import os_bits
from tasks.secure.site import SiteRound

PATIENTS, BOUND, NOISE_MULTIPLIER = 40, 1.0, 2.0


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
    options = parser.parse_args()
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


def _timed(clock: Clock, what: str, function: Any, *given: Any) -> Any:
    with clock.on(what):
        return function(*given)


def _size(message: Mapping[str, bytes]) -> int:
    return sum(len(name) + len(value) for name, value in message.items())


def _line(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


if __name__ == "__main__":
    raise SystemExit(main())
