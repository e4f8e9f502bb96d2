"""What a researcher decides before a rehearsal: which hospitals, which study, which comparisons.

Hydra composes these settings from `conf/` and the command line; this file says which keys and values there are, and
refuses everything else before anything runs. `study()` makes of them the frozen Study that the federation runs under.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from conf.study import Frozen, LocalTraining, Privacy, Strategy, Study
from simulation.reader import Reader
from simulation.scanner import Scanner, Series

Arm = Literal["federation_private", "federation_plain", "pooled", "alone", "ensemble"]


class GeneratedHospital(Frozen):
    """A hospital that does not exist: its scanner, its readers' habits, its case mix, its size."""

    scanner: Scanner
    reader: Reader = Reader()
    case_mix: dict[str, float]
    relative_size: Annotated[float, Field(gt=0)] = 1.0  # times `hospitals.patients`, rounded
    through_dicom: bool = False  # write the patients as DICOM and let them in through the intake


class GeneratedHospitals(Frozen):
    """Hospitals drawn by seed."""

    source: Literal["generated"]
    patients: Annotated[int, Field(ge=2)]  # per hospital of relative size 1, training and test patients together
    first_seed: Annotated[int, Field(ge=0)] = 1_000_000  # patients of hospital i: first_seed + 10 000 i + 0, 1, 2, ...
    series: tuple[Series, ...]
    oversampling: Annotated[int, Field(ge=1, le=4)]
    subslices: Annotated[int, Field(ge=1, le=8)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    sites: dict[str, GeneratedHospital]
    held_out: dict[str, GeneratedHospital] = {}


class FolderHospitals(Frozen):
    """Real images in two folders of NIfTI files, dealt out over hospitals as if each had brought its own."""

    source: Literal["folders"]
    images: str
    masks: str
    labels: str  # label map in conf/labels
    series: tuple[str, ...]  # one name: all images are of this series
    sites: tuple[str, ...]
    held_out: tuple[str, ...] = ()
    patients: Annotated[int, Field(ge=2)] | None = None  # per hospital; None deals out all
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2


class RealHospital(Frozen):
    """A folder in the layout of the Sunnybrook Cardiac Data, let in through the intake and only ever tested on."""

    name: str
    folder: str
    labels: str


class Pretraining(Frozen):
    """Ordinary training on freely generated patients, from scanners of no hospital. It costs no privacy."""

    patients: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=0)]
    batch_patients: Annotated[int, Field(ge=1)] = 8
    views: Annotated[int, Field(ge=1)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    first_seed: Annotated[int, Field(ge=0)] = 50_000_000
    oversampling: Annotated[int, Field(ge=1, le=4)] = 1
    subslices: Annotated[int, Field(ge=1, le=8)] = 2


class Size(Frozen):
    """How large the rehearsal is; the profile's name stands in the record, so that small figures are read as such."""

    profile: str
    patients: Annotated[int, Field(ge=2)]  # of a hospital of relative size 1
    oversampling: Annotated[int, Field(ge=1, le=4)] = 2  # in-plane sub-voxels of the drawn anatomy
    subslices: Annotated[int, Field(ge=1, le=8)] = 3


class Simulation(Frozen):
    """One run of `konsil-simulate`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    size: Size
    runs_folder: str = "runs"
    seed: Annotated[int, Field(ge=0)] = 0
    repeats: Annotated[int, Field(ge=1)] = 1  # seeds: seed, seed + 1, ...
    rounds: Annotated[int, Field(ge=1)]
    evaluate_every: Annotated[int, Field(ge=1)] = 1  # rounds between two looks at the test patients
    full_scores: Literal["all", "federation", "none"] = "all"  # whose final models get distances and volumes beside Dice
    engine: Literal["inprocess", "ray"] = "inprocess"
    workers: Annotated[int, Field(ge=0)] | None = None  # None: one per core; 0: everything in this process
    privacy: Privacy
    training: LocalTraining
    plain_training: dict[str, JsonValue] = {}  # what the arms without privacy do differently, so that each is at its best
    strategy: Strategy
    plain_strategy: dict[str, JsonValue] = {}
    task: dict[str, JsonValue]
    plain_task: dict[str, JsonValue] = {}
    hospitals: Annotated[GeneratedHospitals | FolderHospitals, Field(discriminator="source")]
    real: RealHospital | None = None
    pretraining: Pretraining | None = None
    arms: tuple[Arm, ...] = ("federation_private",)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the repeats."""
        return tuple(range(self.seed, self.seed + self.repeats))

    def study(self, *, seed: int, private: bool, sites: tuple[str, ...], initial: str | None, name: str | None = None) -> Study:
        """The Study of one arm: the same in all but privacy, the optimizer's tuning and the sites."""
        training, strategy, task = self.training, self.strategy, self.task
        if not private:
            training = LocalTraining.model_validate(training.model_dump() | self.plain_training)
            strategy = Strategy.model_validate(strategy.model_dump() | self.plain_strategy)
            task = task | self.plain_task
        return Study(
            name=name or self.name,
            konsil_version=version("konsil"),
            task=task,
            rounds=self.rounds,
            sites=sites,
            seed=seed,
            initial_model_sha256=initial,
            privacy=self.privacy if private else Privacy(kind="none"),
            training=training,
            strategy=strategy,
        )


def read(settings: dict[str, Any]) -> Simulation:
    """Check composed settings. Raises `pydantic.ValidationError` or `ValueError`, naming path and allowed values."""
    simulation = Simulation.model_validate(settings)
    import tasks.task  # after the cheap checks: this one imports torch

    for private in (True, False):
        study = simulation.study(seed=0, private=private, sites=tuple(simulation.hospitals.sites), initial=None)
        tasks.task.load(study.task)
    return simulation
