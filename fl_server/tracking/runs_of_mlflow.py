"""A record as a run of MLflow: parameters, curves, tags, and the files that belong to the study.

Locally MLflow keeps runs in a SQLite file: its older folders of text files are closed to new runs since MLflow 3. One file,
`mlflow.db`, holds the runs of all studies beside it, and `mlflow ui --backend-store-uri sqlite:///.../mlflow.db` shows them.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from fl_server.record import Record
from fl_server.tracking import LOCAL, Tracking, facts

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PUBLISHED = "konsil.published"
AT_ONCE = 1000
"""Points in one request, which is MLflow's limit."""
PARAMETERS_AT_ONCE = 100
LARGE = 5_000_000
"""Bytes of a record that is sent at the end only."""
AT_THE_END = ("model.pt", "report.html", "report.pdf")


def publish(record: Record, folder: Path, settings: Tracking, store: Path) -> str:
    """Write down what is new; the run's id. The same record twice changes nothing.

    Raises what MLflow and the network raise.
    """
    from mlflow import MlflowClient

    if settings.mlflow == LOCAL:
        uri = f"sqlite:///{store / 'mlflow.db'}"
        with _alone(store):
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            return _publish(client, record, folder, _experiment(client, settings.experiment, (store / "mlruns").as_uri()))
    client = MlflowClient(tracking_uri=settings.mlflow, registry_uri=settings.mlflow)
    return _publish(client, record, folder, _experiment(client, settings.experiment, None))


def _publish(client: MlflowClient, record: Record, folder: Path, experiment: str) -> str:
    from mlflow.entities import Metric, Param, RunTag

    run = _found(client, experiment, record) or _made(client, experiment, record)
    number = run.info.run_id
    parameters = iter((name, value) for name, value in facts.parameters(record).items() if name not in run.data.params)
    while some := [Param(name, value) for name, value in islice(parameters, PARAMETERS_AT_ONCE)]:
        client.log_batch(number, params=some)
    text = run.data.tags.get(PUBLISHED, "")
    new = facts.points(record, facts.Published.model_validate_json(text) if text else facts.Published())
    while batch := [Metric(point.name, point.value, point.at_ms, point.step) for point in islice(new, AT_ONCE)]:
        client.log_batch(number, metrics=batch)
    written = {**facts.tags(record), PUBLISHED: facts.published(record).model_dump_json()}
    client.log_batch(number, tags=[RunTag(name, value) for name, value in written.items()])
    _files(client, number, record, folder)
    if record.finished:
        client.set_terminated(number, "FAILED" if record.verdict == "failed" else "FINISHED", facts.ended_ms(record))
    elif run.info.status != "RUNNING":  # it goes on after somebody thought it was over
        client.update_run(number, status="RUNNING")
    return str(number)


def _files(client: MlflowClient, number: str, record: Record, folder: Path) -> None:
    path = folder / "record.json"
    if record.finished or path.stat().st_size < LARGE:
        client.log_artifact(number, str(path))
        client.log_text(number, facts.fingerprints(record), "fingerprints.csv")
    if record.finished:
        for name in AT_THE_END:
            if (folder / name).exists():
                client.log_artifact(number, str(folder / name))


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found is not None else client.create_experiment(name, artifact_location=artifacts))


def _found(client: MlflowClient, experiment: str, record: Record) -> Run | None:
    query = f"tags.`konsil.key` = '{facts.key(record)}'"  # a hash and a time: nothing in it needs to be quoted
    return next(iter(client.search_runs([experiment], filter_string=query, max_results=1)), None)


def _made(client: MlflowClient, experiment: str, record: Record) -> Run:
    return client.create_run(experiment, start_time=facts.started_ms(record), tags=facts.tags(record), run_name=record.name)


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """One process at a time makes and changes the file of this folder."""
    store.mkdir(parents=True, exist_ok=True)
    with open(store / ".mlflow.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
