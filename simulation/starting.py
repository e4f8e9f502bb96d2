"""Where every arm begins: weights of another model, pre-trained on generated patients, or drawn at random.

Another model is taken over as a real study takes it over (`fl_server.transfer`), from the same sources and with the same
refusals: what a rehearsal shows of a transfer is what `konsil-study start-from` will do. Beside the weights lies `start.json`,
which says whose they are; the card of a model that is registered from the run repeats it.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from fl_server.transfer import Source, Transferred, read_source, renaming, transfer
from fl_server.weights import State, initial_state
from simulation import free, pretraining
from simulation.intensity_scale import worn
from simulation.pretraining import Advance
from simulation.settings import Simulation, StartFrom, TableHospitals
from tasks.fingerprint import fingerprint
from tasks.weights import save

WEIGHTS, WORDS, FREE = "start.pt", "start.json", "references.pt"


def start(simulation: Simulation, folder: Path, *, cache: Path, pool: Executor, advance: Advance) -> tuple[State, Path]:
    """The weights that every arm begins with, and the file in `folder` that holds them; beside it, where they come from.

    Raises `ValueError` in words where another model is named that can't be read, or doesn't fit.
    """
    state, said = _found(simulation, cache, pool, advance)
    path = folder / WEIGHTS
    (folder / WORDS).unlink(missing_ok=True)  # words about other weights must not stand beside these
    save(state, path)
    (folder / WORDS).write_text(json.dumps(said, indent=1))
    return state, path


def references(simulation: Simulation, folder: Path, *, cache: Path, pool: Executor, advance: Advance) -> str | None:
    """Put free patients into `folder` if the strategy filters by them. Returns their fingerprint, None if it doesn't."""
    if simulation.strategy.name != "fedwiener" or simulation.pretraining is None:
        return None
    series = simulation.hospitals.series
    state = free.references(simulation.task, simulation.pretraining, series, cache=cache, pool=pool, advance=advance)
    save(state, folder / FREE)
    return fingerprint(state)


def require_start(simulation: Simulation) -> None:
    """Raise `ValueError` unless the model that the run shall start from is there and fits its task."""
    if simulation.start_from is not None:
        _taken_over(simulation, simulation.start_from)


def _found(simulation: Simulation, cache: Path, pool: Executor, advance: Advance) -> tuple[State, dict[str, Any]]:
    if simulation.start_from is not None:
        source, made = _taken_over(simulation, simulation.start_from)
        said = {"matched": made.matched, "fresh": list(made.fresh), "unused": list(made.unused)}
        return made.state, {**source.facts, **said}
    if simulation.pretraining is None or isinstance(simulation.hospitals, TableHospitals):
        return _drawn(simulation), {"source": f"nobody's: drawn at random with seed {simulation.seed}"}
    state = pretraining.pretrain(
        simulation.task, simulation.pretraining, simulation.hospitals.series, cache=cache, pool=pool, advance=advance
    )
    seen = pretraining.looked_at(simulation.task, simulation.hospitals.series)
    scales = worn.scales_of(simulation.pretraining.intensities, seen)
    wear = [f"; they wear {scale.words}" for scale in scales]
    return state, {"source": "".join(["start.pt of the rehearsal, which generated patients alone have made", *wear])}


def _taken_over(simulation: Simulation, asked: StartFrom) -> tuple[Source, Transferred]:
    own = Path(simulation.runs_folder) / simulation.name
    if Path(asked.source).is_dir() and Path(asked.source).resolve() == own.resolve():
        raise ValueError(f"start_from: {asked.source} is this run's own folder, which is written anew; name=ANOTHER keeps both")
    house = Path(asked.coordinator or os.environ.get("KONSIL_COORDINATOR") or ".")
    try:
        source = read_source(asked.source, folder=house, programs=asked.torchscript)
        return source, transfer(source.state, _drawn(simulation), renamed=renaming(asked.map), fresh=asked.fresh)
    except (OSError, ValueError) as error:
        raise ValueError(f"start_from: {error}") from None


def _drawn(simulation: Simulation) -> State:
    sites = tuple(simulation.hospitals.sites)
    return initial_state(simulation.study(seed=simulation.seed, private=False, sites=sites, initial=None))
