"""What a task is: the part of a study that knows what is learned, and nothing of hospitals, privacy or networks.

A gradient task never trains. It gives a model, turns a case into arrays once, draws examples from them, and says what
one example's loss is. A counting task says what vector one patient adds to a sum, of length 1 at most. The one training loop
and the one noisy sum (`fl_client/privacy`) do the rest, so that no task can forget privacy.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from conf.study import Study
from tasks.case import Case

Arrays = dict[str, npt.NDArray[Any]]
"""A case as the task wants it: named arrays, saved once and memory-mapped."""

State = Mapping[str, torch.Tensor]
"""What was learned, by name."""

NOISE_SD = "noise_sd/"
"""Before a score's name: the standard deviation that the noise alone gives it."""


class Task(Protocol):
    """What every task gives: a case as arrays."""

    @property
    def hash(self) -> str:
        """Identity of everything that determines `prepare`'s output; names the folder of prepared arrays."""

    def prepare(self, case: Case) -> Arrays:
        """The arrays of one case, computed once. Raises `ValueError`, in words, for a case the task can't use."""


@runtime_checkable
class CountingTask(Task, Protocol):
    """A task whose model is made of one sum over all patients of all hospitals.

    Its state is `{"total": (length,) float64, "noise_variance": (1,) float64}`: the noisy sum, and the variance of the noise
    on each of its numbers, which is public.
    """

    @property
    def counted(self) -> str:
        """What the sum holds, in words for the ledger: leaf counts, moments."""

    @property
    def length(self) -> int:
        """Numbers in the sum."""

    def contribution(self, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """What ONE patient adds: (length,), L2 norm at most 1 whatever the patient holds. Depends on this patient alone."""


@runtime_checkable
class JudgedTask(Task, Protocol):
    """A task whose model can be judged from one sum over patients it has not seen, such as a histogram of its answers."""

    @property
    def judgement_length(self) -> int:
        """Numbers in that sum."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the scores that can choose among models: higher is better. The first does where a study names none."""

    def judgement(self, state: State, arrays: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float64]:
        """What ONE patient adds: (judgement_length,), L2 norm at most 1. Depends on the model and this patient alone."""

    def scores(self, total: npt.ArrayLike, noise_std: float) -> dict[str, float]:
        """What a sum (judgement_length,) with noise of `noise_std` on each number says: `metrics` first, in their order.

        Beside the score `x` stands `noise_sd/x`, the standard deviation that the noise alone gives it (0 without noise). A
        score that the noise drowns, or that nobody's labels can decide, is left out; never NaN, never infinite. Raises
        `ValueError` for a sum of another length, or with numbers that aren't finite or larger than any number of patients.
        """


@runtime_checkable
class GradientTask(Task, Protocol):
    """A task whose model is learned by gradients."""

    def model(self) -> torch.nn.Module:
        """A new network with freshly drawn weights (from torch's global generator)."""

    def example(
        self, arrays: Mapping[str, npt.NDArray[Any]], views: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw `views` rows from one patient, augmented: input (views, channels, *space), target (views, *space)."""

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """One number per row, shape (rows,). Row i depends on row i alone: no mean over rows, no batch statistics."""

    def trainable(self, model: torch.nn.Module) -> list[str]:
        """Names of the parameters that this task's settings let move."""

    def score(self, model: torch.nn.Module, case: Case, *, full: bool = True) -> dict[str, float]:
        """Quality on one case: `dice/<structure>`, ...; NaN where it is undefined for this case.

        `full` adds what takes longer than the plain score (distances, volumes).
        """


@runtime_checkable
class VariedTask(GradientTask, Protocol):
    """A gradient task that shows pre-training more than there is among drawn patients."""

    def varied(self, arrays: Mapping[str, npt.NDArray[Any]], rng: np.random.Generator) -> Arrays:
        """The arrays of a drawn patient, nobody's, changed for one step; `example` takes them as it takes others."""


@runtime_checkable
class PacedTask(GradientTask, Protocol):
    """A gradient task of which a hospital can tell, without a patient, how long a step takes here."""

    def drawn(self, rng: np.random.Generator) -> Arrays:
        """Arrays of nobody, with the shapes that a usual patient's have once prepared; all its numbers come from `rng`."""


def load(settings: Mapping[str, Any], *, models: Path | None = None) -> GradientTask | CountingTask:
    """The task named `settings["name"]`, a folder of `tasks/`; the remaining settings go to its `build`.

    `models` is the folder of models that a task may lean on, each in a file `<fingerprint>.pt`. Raises `ValueError` naming the
    tasks there are. Only folders of this installed package can be named, so a study can choose among what a hospital has
    installed and can't bring code.
    """
    module = _module(settings)
    task: GradientTask | CountingTask = module.build({k: v for k, v in settings.items() if k != "name"}, models=models)
    return task


def gradient_task(settings: Mapping[str, Any]) -> GradientTask:
    """The task of these settings, if it is learned by gradients; otherwise `ValueError`."""
    task = load(settings)
    if not isinstance(task, GradientTask):
        raise ValueError(f"task {settings['name']} is not learned by gradients: it has no network")
    return task


def load_for(study: Study, *, models: Path | None = None) -> GradientTask | CountingTask:
    """The study's task. Raises `ValueError` for a task there isn't, or that can't be run under this study."""
    try:
        task = load(study.task, models=models)
    except ValueError:
        raise
    except Exception as error:  # settings come from elsewhere; whatever they break is a refusal
        raise ValueError(f"task {study.task.get('name')} can't be made of these settings ({type(error).__name__})") from None
    counting = isinstance(task, CountingTask)
    if counting != (study.strategy.name == "sum"):
        wanted = "is counted and needs strategy.name 'sum'" if counting else "is learned by gradients, which can't be summed"
        raise ValueError(f"task {study.task['name']} {wanted}; study {study.name} has '{study.strategy.name}'")
    if counting and (study.rounds, study.training.steps, study.training.sample_rate) != (1, 1, 1.0):
        raise ValueError(
            f"task {study.task['name']} is counted once, over all patients: rounds, training.steps and "
            f"training.sample_rate must be 1, not {study.rounds}, {study.training.steps} and {study.training.sample_rate:g}"
        )
    if settled(study.task) != study.task:
        raise ValueError(f"study {study.name} doesn't settle what its numbers are made by (task.image.extraction is empty)")
    _require_scores(study, task)
    _require_parameters(study, task)
    if study.privacy.secure is not None:
        from tasks.secure.plan import grid_of  # here: it looks at tasks, and most studies have no need of it

        grid_of(study, task)
    if study.training.work_s is not None and not isinstance(task, PacedTask):
        raise ValueError(
            f"how long a step of task {study.task['name']} takes can't be told beforehand; training.work_s must be left out"
        )
    return task


def _require_scores(study: Study, task: GradientTask | CountingTask) -> None:
    """Raise `ValueError` if the study asks for scores that there can't be."""
    privacy = study.privacy
    for share in ("evaluation_share", "validation_share", "matrix_share"):
        if getattr(privacy, share) and not isinstance(task, JudgedTask):
            raise ValueError(f"task {study.task['name']} can't be judged by hospitals; privacy.{share} must be 0")
    if privacy.matrix_share and isinstance(task, CountingTask):
        raise ValueError(
            f"task {study.task['name']} is counted, and no hospital has a model alone; privacy.matrix_share must be 0"
        )
    if study.validation is None or not isinstance(task, JudgedTask):
        return
    if study.validations == 0:
        raise ValueError(
            f"validation.every is {study.validation.every}, but study {study.name} has {study.rounds} rounds: none would be "
            "validated"
        )
    if study.validation.metric and study.validation.metric not in task.metrics:
        raise ValueError(
            f"validation.metric is '{study.validation.metric}'; task {study.task['name']} can choose by "
            f"{', '.join(task.metrics)}"
        )


def settled(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they stand in a Study, with what determines the arrays beside them filled in, if the task has such.

    Raises `ValueError` naming the tasks there are.
    """
    settle = getattr(_module(settings), "settle", dict)
    rest = {name: value for name, value in settings.items() if name != "name"}
    return {"name": settings["name"], **settle(rest)}


def _module(settings: Mapping[str, Any]) -> ModuleType:
    name = str(settings.get("name", ""))
    names = task_names()
    if name not in names:
        raise ValueError(f"no task named '{name}'; tasks/ holds {', '.join(names)}")
    return importlib.import_module(f"tasks.{name}")


def first_state(task: GradientTask | CountingTask) -> dict[str, torch.Tensor]:
    """What round 1 starts from: the weights of a new model (from torch's global generator), or an empty sum."""
    if isinstance(task, CountingTask):
        zeros = {"total": task.length, "noise_variance": 1}
        return {name: torch.zeros(length, dtype=torch.float64) for name, length in zeros.items()}
    return {name: tensor.detach().clone() for name, tensor in task.model().state_dict().items()}


def moving(study: Study, task: GradientTask, model: torch.nn.Module) -> list[str]:
    """Names of the parameters that a hospital trains under this study: what the task lets move, without `training.frozen`."""
    names = task.trainable(model)
    still = set(_named(study.training.frozen, names))
    return [name for name in names if name not in still]


def personal(study: Study, names: Sequence[str]) -> list[str]:
    """Those of `names` that each hospital keeps for itself (`training.personal`)."""
    return _named(study.training.personal, names)


def released(study: Study, task: GradientTask | CountingTask) -> list[str]:
    """Names of the arrays that a hospital sends back in a round: what it trains and does not keep for itself.

    Builds a model, which draws from torch's global generator.
    """
    if isinstance(task, CountingTask):
        return ["total", "noise_variance"]
    names = moving(study, task, task.model())
    own = set(personal(study, names))
    return [name for name in names if name not in own]


def _named(patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _require_parameters(study: Study, task: GradientTask | CountingTask) -> None:
    """Raise `ValueError` if `training.frozen` and `training.personal` name what there isn't, or leave nothing."""
    training = study.training
    if not training.frozen and not training.personal:
        return
    if isinstance(task, CountingTask):
        raise ValueError(
            f"task {study.task['name']} is counted and has no parameters; training.frozen and .personal must be empty"
        )
    with torch.random.fork_rng(devices=[]):
        names = task.trainable(task.model())
    for setting, patterns in (("frozen", training.frozen), ("personal", training.personal)):
        for pattern in patterns:
            if not _named([pattern], names):
                raise ValueError(
                    f"training.{setting} has '{pattern}', which is none of the {len(names)} parameters that task "
                    f"{study.task['name']} trains: {', '.join(names[:4])}, ..."
                )
    frozen, own = _named(training.frozen, names), _named(training.personal, names)
    if both := sorted(set(frozen) & set(own)):
        raise ValueError(
            f"parameter '{both[0]}' is named by training.frozen and by training.personal; it can be one of the two"
        )
    if len(frozen) == len(names):
        raise ValueError(
            f"training.frozen names all {len(names)} parameters that task {study.task['name']} trains: nothing is left"
        )
    if len(frozen) + len(own) == len(names):
        raise ValueError(
            "training.personal names every parameter that is trained: nothing would leave, and nothing be learned together"
        )


def task_names() -> Sequence[str]:
    """The folders of `tasks/` that hold a `task.py`, which are the tasks this installation can learn."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("*/task.py"))
