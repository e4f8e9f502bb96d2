"""What hospitals add that did not draw everything: Dice with full, partial, sparse and no labels at four of six hospitals.

    .venv/bin/python benchmarks/partial_labels.py             # a quarter of an hour on two cores; what is done is kept
    .venv/bin/python benchmarks/partial_labels.py --seeds 0 --epsilons none

The hospitals, network, start and rounds are those of benchmarks/utility.py (`table`: ten patients at each, images darkened).
Of the six, four have labels that lack something: `partial`, the blood pool alone was looked for; `sparse`, every third slice
was drawn on; `none`, nobody drew anything. They are left out; or take part, what nobody looked for being unknown
(`partial_labels: ignore`); or take part and their silence counts (`marginal`). Hospitals without labels can count how bright
their images are (`scale`: the task intensity_scale, under the study's epsilon, noise at each): pre-training then has free
patients in that scale, and the two others train on from there, so that no patient pays for both. Dice is by structure over four
test patients with all labels at each of the six. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from generator import darkened
from intensity_scale import DELTA, counting, noisy_sum
from kept_results import keep, told
from utility import ALL, PLAIN, Arm, Seen, dark, study_of
from utility_data import MEAN, people, prepare, simulation_of, start

from conf.study import Frozen, Privacy
from fl_server.weights import State
from simulation import pretraining
from simulation.machine import executor, one_thread
from simulation.scoring import mean_scores, restore
from simulation.trial import Place, federate
from tasks.case import UNKNOWN, Case, Volume
from tasks.fingerprint import fingerprint
from tasks.task import gradient_task
from tasks.weights import save

MADE = 1
"""Part of every kept result's name: raise it when the same settings would give other numbers."""
WHOLE = ("alster", "donau")
"""Hospitals that drew everything; the other four did not."""
DRAWN, TESTED, EVERY = 10, 4, 3

Labels = Literal["full", "partial", "sparse", "none"]
Use = Literal["left out", "ignore", "marginal", "scale"]


class Run(Frozen):
    """One federation: what the four hospitals drew, and what is made of it."""

    labels: Labels
    use: Use
    epsilon: float | None
    seed: int

    @property
    def file(self) -> str:
        """Name of its result."""
        text = json.dumps([MADE, self.model_dump(mode="json")], sort_keys=True)
        return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def runs(epsilons: Sequence[float | None], seeds: Sequence[int]) -> Iterator[tuple[str, Run]]:
    """All of them; who is left out is left out of any labels alike."""
    ways: list[tuple[str, Labels, Use]] = [
        ("full labels at all six", "full", "ignore"),
        ("two hospitals alone", "full", "left out"),
        ("four with the blood pool alone, the rest unknown", "partial", "ignore"),
        ("four with the blood pool alone, their silence counts", "partial", "marginal"),
        ("four with every third slice", "sparse", "ignore"),
        ("four without labels count how bright their images are", "none", "scale"),
    ]
    for seed in seeds:
        for epsilon in epsilons:
            promise = "no privacy" if epsilon is None else f"epsilon {epsilon:g}"
            for label, labels, use in ways:
                yield f"{promise}: {label}", Run(labels=labels, use=use, epsilon=epsilon, seed=seed)


def lacking(case: Case, labels: Labels) -> Case:
    """A patient of a hospital that drew less."""

    def drawn(volume: Volume) -> Volume:
        if volume.mask is None or labels in ("full", "none"):
            return volume
        if labels == "partial":
            return dataclasses.replace(volume, mask=np.where(volume.mask == 1, volume.mask, 0), annotated=(1,))
        mask = volume.mask.copy()
        mask[np.arange(len(mask)) % EVERY != EVERY // 2] = UNKNOWN
        return dataclasses.replace(volume, mask=mask)

    return dataclasses.replace(case, volumes=tuple(map(drawn, case.volumes)))


def learn(cache: Path, run: Run) -> float:
    """Federate once, score, and keep the result. Returns mean Dice."""
    one_thread()
    logging.disable(logging.INFO)
    everybody = people(cache, "hearts", drawn=DRAWN, tested=TESTED)
    sites = [site for site in everybody if run.use not in ("left out", "scale") or site in WHOLE]
    settings = {**PLAIN, "seed": run.seed} if run.epsilon is None else {**ALL, "epsilon": run.epsilon, "seed": run.seed}
    study = study_of(Arm(**{**settings, "secure": False}))
    task = gradient_task({**study.task, "partial_labels": "marginal" if run.use == "marginal" else "ignore"})
    study = study.model_copy(update={"sites": tuple(sites)})
    places = {}
    for site in sites:
        labels = "full" if site in WHOLE else run.labels
        cases = [lacking(everybody[site].cohort.case(name), labels) for name in everybody[site].train]
        places[site] = Place(task, {case.patient: task.prepare(case) for case in cases}, len(cases), dark)
    state = federate(
        study,
        places,
        in_scale(cache, run) if run.use == "scale" else start(cache, "hearts"),
        noise=np.random.default_rng([run.seed, 1]),
        sampling=lambda site, number, _: np.random.default_rng([run.seed, 2, sites.index(site), number]),
        noise_share=DRAWN / 40,
    )
    model = Seen(restore(task, [state]), dark).eval()
    scores = [
        mean_scores([task.score(model, one.cohort.case(name), full=False) for name in one.test]) for one in everybody.values()
    ]
    dice = {part: float(np.mean([one[f"dice/{part}"] for one in scores])) for part in MEAN["hearts"]}
    place = cache / "partial" / run.file
    keep(place, {"run": run.model_dump(mode="json"), **dice})
    return float(np.mean(list(dice.values())))


def in_scale(cache: Path, run: Run) -> State:
    """The start of pre-training on free patients in the scale that the hospitals without labels have released."""
    simulation = simulation_of("hearts")
    if simulation.pretraining is None:
        raise TypeError("size=small has no pre-training any more")
    with tempfile.TemporaryDirectory() as place:
        count(cache, run, Path(place))
        with executor(0) as here:
            return pretraining.pretrain(
                simulation.task,
                simulation.pretraining.model_copy(update={"intensities": (place,)}),
                simulation.hospitals.series,
                cache=cache,
                pool=here,
                advance=told,
            )


def count(cache: Path, run: Run, folder: Path) -> None:
    """The noisy sum of the patients without labels, as a study leaves it (`model.pt`, `record.json`)."""
    task = counting()
    everybody = people(cache, "hearts", drawn=DRAWN, tested=TESTED)
    counted = [site for site in everybody if site not in WHOLE]
    cases = [darkened(everybody[site].cohort.case(name)) for site in counted for name in everybody[site].train]
    share = len(counted) ** 0.5 * DRAWN / 40  # noise at each hospital, of whose patients a quarter is at hand
    state = noisy_sum(task, cases, run.epsilon, np.random.default_rng([run.seed, 4]), share=share)
    save(state, folder / "model.pt")
    privacy = Privacy(kind="none") if run.epsilon is None else Privacy(epsilon=run.epsilon, delta=DELTA)
    settings = {"name": "intensity_scale", **task.settings.model_dump(mode="json")}
    last = {"arrays_sha256": fingerprint(state), "sites": {site: {"answer": "used"} for site in counted}}
    study = {"name": "intensity_scale", "task": settings, "privacy": privacy.model_dump(mode="json")}
    (folder / "record.json").write_text(json.dumps({"study": study, "study_hash": "0" * 64, "rounds": [last]}))


def main() -> int:
    """Run what is missing; the last line is one JSON object."""
    options = _options()
    listed = list(runs(options.epsilons, options.seeds))
    with executor(options.workers) as pool:
        prepare(options.cache, "hearts", drawn=DRAWN, pool=pool)
        missing = [run for _, run in listed if not (options.cache / "partial" / run.file).exists()]
        for done, future in enumerate(as_completed([pool.submit(learn, options.cache, run) for run in missing]), 1):
            print(f"{done} of {len(missing)}: Dice {future.result():.4f}", file=sys.stderr, flush=True)
    found: dict[str, list[dict[str, Any]]] = {}
    for label, run in listed:
        found.setdefault(label, []).append(json.loads((options.cache / "partial" / run.file).read_text()))
    table = {}
    for label, rows in found.items():
        each = {part: [row[part] for row in rows] for part in MEAN["hearts"]}
        table[label] = {part: round(float(np.mean(values)), 4) for part, values in each.items()}
        table[label] |= {
            f"{part}_sd": round(float(np.std(values, ddof=1)), 4) for part, values in each.items() if len(rows) > 1
        }
        print(f"{label:70s} " + "  ".join(f"{part} {table[label][part]:.3f}" for part in MEAN["hearts"]))
    print(json.dumps({**table, "seeds": len(options.seeds)}))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("runs/utility"), help="where patients and results are kept")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--epsilons", nargs="*", type=_epsilon, default=[None, 8.0], help="none, or numbers")
    parser.add_argument("--workers", type=int, default=2, help="processes (2); the numbers don't depend on it")
    return parser.parse_args()


def _epsilon(text: str) -> float | None:
    return None if text == "none" else float(text)


if __name__ == "__main__":
    sys.exit(main())
