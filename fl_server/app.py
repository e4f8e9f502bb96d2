"""The coordinator's ServerApp: a study in, a model and a record out.

The study comes as one JSON string in the run's configuration (`study`), written there by `konsil-study` or by hand in a
TOML file. Where the results go and where pre-trained weights lie are matters of the coordinator's machine, not of the
study, so they come from its environment.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from conf.imports import import_monai_alone
from conf.study import Study, words
from fl_server.checkpoint import NoCheckpoint
from fl_server.prompt_grid import PromptGrid
from fl_server.rounds import run
from fl_server.runs import Standing, in_hand
from fl_server.tracking import Tracker
from fl_server.weights import State, initial_state

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study over the connected hospitals; write `record.json`, `model.pt` and the clinician's report.

    Environment: `KONSIL_RUNS` (default `runs`) is the folder that gets a folder for this study; a study with
    `initial_model_sha256` starts from the file `KONSIL_INITIAL_MODEL` or else from `<that hash>.pt` in `KONSIL_MODELS`; and so
    it is with `strategy.references_sha256` and `KONSIL_REFERENCES`.
    Raises `RuntimeError` if the verdict is `failed`, so that Flower reports the run as failed too.
    """
    import_monai_alone()
    study = study_of(context)
    folder = Path(os.environ.get("KONSIL_RUNS", "runs")).resolve() / study.name
    given = context.run_config
    with Tracker.from_environment(study, folder) as tracker:
        try:
            _, record = run(
                PromptGrid(grid),
                study,
                start_of(study),
                folder=folder,
                enrol_timeout_s=float(given.get("enrol-timeout-s", 600)),
                quorum_timeout_s=float(given.get("quorum-timeout-s", 0)),
                wait_for=int(given.get("wait-for", 0)),
                engine="flower",
                resume=bool(given.get("resume", False)),
                run_id=context.run_id,
                observer=tracker.after_round,
                references=references_of(study),
            )
        except NoCheckpoint as error:
            leave_to_a_person(folder, str(error))
            raise
    _report(folder)
    told = "\n".join([f"study {study.name}: {record.verdict}; {folder / 'record.json'}", *record.reasons])
    if record.verdict == "failed":
        raise RuntimeError(told)
    logging.getLogger("flwr").info(told)


def leave_to_a_person(folder: Path, why: str) -> None:
    """Write down that a study can't go on by itself, and why: its log says so, and nobody starts it again in vain."""
    with in_hand(folder.parent, folder.name):  # who starts it writes there, too
        standing = Standing.read(folder)
        if standing is not None and standing.wanted == "running":
            standing.model_copy(update={"wanted": "stopped", "why": why}).write(folder)


def _report(folder: Path) -> None:
    """The clinician's report. A study whose report can't be written has ended all the same."""
    from fl_server import report  # here: drawings take time to import, and nobody waits for them before a study

    try:
        report.write(folder)
    except Exception:
        logging.getLogger("konsil").exception("no report could be written; konsil-study report %s tries again", folder.name)


def study_of(context: Context) -> Study:
    """The study of this run. Raises `ValueError`, in words, if there is none or it can't be read."""
    text = str(context.run_config.get("study", ""))
    if not text:
        raise ValueError("this run has no study: pass its JSON as `study` in a TOML file (flwr run . --run-config study.toml)")
    try:
        return Study.from_json(text)
    except ValidationError as error:
        raise ValueError(f"this run's study can't be read: {words(error)}") from None


def start_of(study: Study) -> State:
    """The weights of round 1: drawn from the study's seed or, if it names some by hash, read from a file."""
    if study.initial_model_sha256 is None:
        return initial_state(study)
    return _kept(study.initial_model_sha256, "KONSIL_INITIAL_MODEL", "the study starts from weights")


def references_of(study: Study) -> State | None:
    """The free patients by whose gradients the study filters, read from a file; None if it names none."""
    wanted = study.strategy.references_sha256
    return None if wanted is None else _kept(wanted, "KONSIL_REFERENCES", "the study filters by references")


def _kept(wanted: str, variable: str, what: str) -> State:
    path = os.environ.get(variable, "")
    if not path and "KONSIL_MODELS" in os.environ:
        path = str(Path(os.environ["KONSIL_MODELS"]) / f"{wanted}.pt")
    if not path:
        raise ValueError(f"{what} {wanted}; say where in {variable}")
    state: State = torch.load(path, map_location="cpu", weights_only=True)
    return state
