"""What a researcher decides before a rehearsal: which hospitals, which study, which comparisons.

Hydra composes these settings from `conf/` and the command line; this file says which keys and values there are, and
refuses everything else before anything runs. `study()` makes of them the frozen Study that the federation runs under.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from conf.study import Frozen, LocalTraining, Privacy, SecureAggregation, Strategy, Study, Validation, said, words
from simulation import keys
from simulation.audit.settings import Audit
from simulation.faults.plan import NO_FAULTS, Plan
from simulation.intensity_scale.settings import IntensityStudy
from simulation.patient import DISEASES
from simulation.radiomics.settings import Classifier
from simulation.reader import Reader
from simulation.reference_values.settings import Reference
from simulation.scanner import Scanner, Series

if TYPE_CHECKING:
    from tasks.task import Task

Arm = Literal["federation_private", "federation_plain", "pooled", "alone", "ensemble"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Settings = TypeVar("Settings", bound=Frozen)
REAL_FOLDER = "tests/data/sunnybrook"
"""Where conf/simulation.yaml looks for real patients unless told otherwise: a part of the repository, not of the package."""


class GeneratedHospital(Frozen):
    """A hospital that does not exist: its scanner, its readers' habits, its case mix, its size."""

    scanner: Scanner
    reader: Reader = Reader()
    case_mix: dict[str, float]
    relative_size: Annotated[float, Field(gt=0)] = 1.0  # times `hospitals.patients`, rounded
    through_dicom: bool = False  # write the patients as DICOM and let them in through the intake

    @field_validator("case_mix")
    @classmethod
    def _is_a_mix(cls, mix: dict[str, float]) -> dict[str, float]:
        if unknown := sorted(set(mix) - set(DISEASES)):
            raise ValueError(f"no such disease as {', '.join(unknown)}; there are {', '.join(DISEASES)}")
        if min(mix.values(), default=0.0) < 0 or not sum(mix.values()) > 0:
            raise ValueError("the shares must not be negative, and one of them positive")
        return mix


class GeneratedHospitals(Frozen):
    """Hospitals drawn by seed."""

    source: Literal["generated"]
    patients: Annotated[int, Field(ge=2)]  # per hospital of relative size 1, training and test patients together
    first_seed: Annotated[int, Field(ge=0)] = 1_000_000  # patients of hospital i: first_seed + 10 000 i + 0, 1, 2, ...
    series: Annotated[tuple[Series, ...], Field(min_length=1)]
    oversampling: Annotated[int, Field(ge=1, le=4)]
    subslices: Annotated[int, Field(ge=1, le=8)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    bodies: bool = False  # patients have height and weight, and hearts that go with them and with age (`physique.py`)
    sites: dict[Name, GeneratedHospital]
    held_out: dict[Name, GeneratedHospital] = {}

    def count(self, profile: GeneratedHospital) -> int:
        """Patients of a hospital, training and test patients together."""
        return round(self.patients * profile.relative_size)

    @model_validator(mode="after")
    def _can_be_split(self) -> Self:
        for name, profile in (self.sites | self.held_out).items():
            if self.count(profile) < 2:
                raise ValueError(
                    f"{name} would have {self.count(profile)} patients; one to train on and one to test on are needed"
                )
        return self


class FolderHospitals(Frozen):
    """Real images in two folders of NIfTI files, dealt out over hospitals as if each had brought its own."""

    source: Literal["folders"]
    images: str
    masks: str
    labels: str  # label map in conf/labels
    series: Annotated[tuple[str, ...], Field(min_length=1, max_length=1)]  # all images are of this one
    sites: tuple[Name, ...]
    held_out: tuple[Name, ...] = ()
    patients: Annotated[int, Field(ge=2)] | None = None  # per hospital; None deals out all
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2


class TableHospitals(Frozen):
    """Real patients without images: every hospital brings a table, whose rows come in through the intake."""

    source: Literal["tables"]
    columns: dict[str, JsonValue]  # as in the file of `admit --columns`; without patient_id lines stand for patients
    sites: dict[Name, str]  # hospital: its table, comma-separated values under a line of names
    held_out: dict[Name, str] = {}
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2

    @property
    def series(self) -> tuple[str, ...]:
        """No images."""
        return ()


class RealHospital(Frozen):
    """A folder in the layout of the Sunnybrook Cardiac Data, let in through the intake and only ever tested on."""

    name: Name
    folder: str
    labels: str


class MaskedSums(Frozen):
    """Secure aggregation in a rehearsal, as `privacy.secure` of a study; hospitals' keys are made of their names."""

    patients: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    threshold: Annotated[int, Field(ge=3)] | None = None
    colluding: Annotated[int, Field(ge=0)] = 1

    def among(self, sites: Sequence[str]) -> SecureAggregation:
        """For these hospitals."""
        made = {name: keys.public(name) for name in sites}
        return SecureAggregation(keys=made, patients=self.patients, threshold=self.threshold, colluding=self.colluding)


class Pretraining(Frozen):
    """Ordinary training on freely generated patients, from scanners of no hospital. It costs no privacy.

    Patients in `intensities` are as bright as hospitals said in a counting study; that study has cost them its epsilon.
    """

    patients: Annotated[int, Field(ge=1)]
    steps: Annotated[int, Field(ge=0)]
    batch_patients: Annotated[int, Field(ge=1)] = 8
    views: Annotated[int, Field(ge=1)] = 4
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    first_seed: Annotated[int, Field(ge=0)] = 50_000_000
    oversampling: Annotated[int, Field(ge=1, le=4)] = 1
    subslices: Annotated[int, Field(ge=1, le=8)] = 2
    intensities: tuple[str, ...] = ()  # folders of studies of an intensity scale, in which the patients appear in turn
    rescan: bool = False  # generated hearts only: every step sees its patients on new scanners, drawn by new readers


class StartFrom(Frozen):
    """Another model's weights, in the place of pre-training: what `konsil-study start-from` takes, and takes over alike."""

    source: Annotated[str, Field(min_length=1)]  # NAME[:VERSION] of a registry, a run's folder, a MONAI bundle, or weights
    coordinator: str | None = None  # the folder whose registry it is; None: KONSIL_COORDINATOR
    map: tuple[str, ...] = ()  # OLD=NEW: how arrays are renamed, whole names or prefixes with a star
    fresh: tuple[str, ...] = ()  # patterns: these arrays are drawn from the seed instead
    torchscript: bool = False  # read TorchScript too, a program of somebody who is trusted


class Size(Frozen):
    """How large the rehearsal is; the profile's name stands in the record, so that small figures are read as such."""

    profile: str
    patients: Annotated[int, Field(ge=2)]  # of a hospital of relative size 1
    oversampling: Annotated[int, Field(ge=1, le=4)] = 2  # in-plane sub-voxels of the drawn anatomy
    subslices: Annotated[int, Field(ge=1, le=8)] = 3
    folds: Annotated[int, Field(ge=2)] = 5  # of a radiomics study
    calibration_patients: Annotated[int, Field(ge=0)] = 12  # of a radiomics study, scanned on every scanner


class Simulation(Frozen):
    """One run of `konsil-simulate`."""

    name: Name
    size: Size
    runs_folder: str = "runs"
    seed: Annotated[int, Field(ge=0)] = 0
    repeats: Annotated[int, Field(ge=1)] = 1  # seeds: seed, seed + 1, ...
    rounds: Annotated[int, Field(ge=1)]
    evaluate_every: Annotated[int, Field(ge=1)] = 1  # rounds between two looks at the test patients
    full_scores: Literal["all", "federation", "none"] = "all"  # whose final models get distances and volumes beside Dice
    clinical: bool = False  # ask the model about each test patient again, for the clinician's report: doubt, a second scan, ...
    uncertainty: bool = False  # ask how sure the model is of each test patient, and whether that can be believed
    engine: Literal["inprocess", "ray"] = "inprocess"
    workers: Annotated[int, Field(ge=0)] | None = None  # None: one per core; 0: everything in this process
    privacy: Privacy
    training: LocalTraining
    plain_training: dict[str, JsonValue] = {}  # what the arms without privacy do differently, so that each is at its best
    strategy: Strategy
    plain_strategy: dict[str, JsonValue] = {}
    secure: MaskedSums | None = None  # the private federation's sums under masks, with one noise for all hospitals
    validation: Validation | None = None  # scores between rounds, which choose the model; paid by privacy.validation_share
    task: dict[str, JsonValue]
    plain_task: dict[str, JsonValue] = {}
    hospitals: Annotated[GeneratedHospitals | FolderHospitals | TableHospitals, Field(discriminator="source")]
    real: RealHospital | None = None
    synthetic: dict[Name, str] = {}  # hospital: folder of cases that train beside its patients (`simulation.synthetic`)
    pretraining: Pretraining | None = None
    start_from: StartFrom | None = None  # another model's weights; nothing is pre-trained then
    arms: tuple[Arm, ...] = ("federation_private",)
    audit: Audit = Audit()  # konsil is attacked instead of rehearsed, unless its effort is none
    faults: Plan = NO_FAULTS  # what goes wrong on purpose, in the federations; comparisons are spared
    radiomics: Classifier | None = None  # a study of regions' features; `task` then is the model that draws their masks
    reference: Reference | None = None  # a study of reference values by age and sex; nothing is trained then
    intensity_scale: IntensityStudy | None = None  # a study of the images' grey values; nothing is trained then

    @field_validator("start_from", mode="before")
    @classmethod
    def _source_alone(cls, given: object) -> object:
        return {"source": given} if isinstance(given, str) else given

    @field_validator("arms")
    @classmethod
    def _something_runs(cls, arms: tuple[Arm, ...]) -> tuple[Arm, ...]:
        if not arms:
            raise ValueError(f"at least one of {', '.join(get_args(Arm))} has to run")
        return arms

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Self:
        names = [*self.hospitals.sites, *self.hospitals.held_out, *([self.real.name] if self.real else [])]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"each hospital needs a name of its own, and is either a site, held out or real: {', '.join(twice)}"
            )
        return self

    @model_validator(mode="after")
    def _faults_can_be_made(self) -> Self:
        if self.faults and self.engine != "inprocess":
            raise ValueError(f"faults are made with engine=inprocess, not {self.engine}")
        if self.faults and self.radiomics is not None:
            raise ValueError("faults are made in studies of masks (study=segmentation), not of features")
        self.faults.require(sites=tuple(self.hospitals.sites), rounds=self.rounds, processes=False)
        return self

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the repeats."""
        return tuple(range(self.seed, self.seed + self.repeats))

    def filtering_by(self, references: str) -> Simulation:
        """The same with these free patients, by fingerprint, for the strategy that filters by them."""
        named = self.strategy.model_copy(update={"references_sha256": references})
        return self.model_copy(update={"strategy": named})

    def study(self, *, seed: int, private: bool, sites: tuple[str, ...], initial: str | None, name: str | None = None) -> Study:
        """The Study of one arm: the same in all but privacy, the optimizer's tuning and the sites."""
        training, strategy, task = self.training, self.strategy, self.task
        if not private:
            training = _changed(training, self.plain_training, "plain_training")
            strategy = _changed(strategy, self.plain_strategy, "plain_strategy")
            task = task | self.plain_task
        shares = self.privacy.model_dump(include={"evaluation_share", "validation_share", "matrix_share"})
        privacy = self.privacy if private else Privacy.model_validate({"kind": "none", **shares})
        if private and self.secure is not None and len(sites) == len(self.hospitals.sites):
            privacy = privacy.model_copy(update={"secure": self.secure.among(sites)})
        if len(sites) < len(self.hospitals.sites):  # pooled, alone: nobody else to wait for, or to be compared with
            strategy = strategy.model_copy(update={"quorum": 1})
            if strategy.name in ("fedtrimmed", "krum"):  # nobody is left out of one answer
                strategy = strategy.model_copy(update={"name": "fedavg"})
            privacy = privacy.model_copy(update={"matrix_share": 0.0})
            training = training.model_copy(update={"personal": ()})  # and no common model to stay apart from
        return Study(
            name=name or self.name,
            konsil_version=version("konsil"),
            task=task,
            rounds=self.rounds,
            sites=sites,
            seed=seed,
            initial_model_sha256=initial,
            privacy=privacy,
            training=training,
            strategy=strategy,
            validation=self.validation,
        )


SOURCES: dict[str, type[Frozen]] = {"generated": GeneratedHospitals, "folders": FolderHospitals, "tables": TableHospitals}


def read(settings: dict[str, Any]) -> Simulation:
    """Check composed settings. Raises `pydantic.ValidationError` or `ValueError`, naming path and allowed values."""
    simulation = Simulation.model_validate(settings)
    import tasks.task  # after the cheap checks: these import torch
    from fl_server.strategies import require_protection
    from tasks.secure.plan import circle_of

    if simulation.strategy.references_sha256 is not None:
        raise ValueError(
            "strategy.references_sha256 is left out: a rehearsal draws the free patients that it filters by, and names them"
        )
    if simulation.secure is not None:  # says how many hospitals a sum under masks needs
        circle_of(simulation.study(seed=0, private=True, sites=tuple(simulation.hospitals.sites), initial=None))
    if simulation.reference is not None:
        _require_reference(simulation, simulation.reference)
        return simulation
    if simulation.intensity_scale is not None:
        _require_intensities(simulation, simulation.intensity_scale)
        return simulation
    if simulation.radiomics is not None:
        _require_radiomics(simulation, simulation.radiomics)
        if "unet" not in simulation.radiomics.masks:
            if simulation.strategy.name == "fedwiener":
                masks = ", ".join(simulation.radiomics.masks)
                raise ValueError(f"strategy: fedwiener filters a network's updates, and with masks of {masks} none is trained")
            return simulation
    for private in (True, False):
        study = simulation.study(seed=0, private=private, sites=tuple(simulation.hospitals.sites), initial=None)
        require_protection(study)
        tasks.task.load(study.task)
        if study.training.frozen or study.training.personal:
            tasks.task.load_for(study)  # a hospital would decline names that its task doesn't have
    wanted = simulation.task.get("series")
    if isinstance(wanted, list) and not set(wanted) & set(simulation.hospitals.series):
        there = ", ".join(simulation.hospitals.series) or "no images"
        raise ValueError(f"task.series: the hospitals have {there}, so nobody has a patient for the task (got {wanted})")
    if simulation.strategy.name == "fedwiener" and (
        simulation.pretraining is None or isinstance(simulation.hospitals, TableHospitals)
    ):
        raise ValueError("strategy: fedwiener filters by generated patients; pretraining says which, and is null")
    drawn = simulation.start_from is None or simulation.strategy.name == "fedwiener"  # free patients: to learn or to filter by
    if simulation.pretraining is not None and drawn and simulation.hospitals.series:
        from simulation.family import family_of

        try:
            family_of(simulation.hospitals.series)
        except ValueError as error:
            raise ValueError(f"pretraining: {error}; pretraining=null starts from random weights") from None
    return simulation


def _require_reference(simulation: Simulation, reference: Reference) -> None:
    """Raise `ValueError` for reference values that these hospitals can't give."""
    from tasks.reference_values.task import ReferenceTask
    from tasks.task import load

    if simulation.radiomics is not None:
        raise ValueError("reference and radiomics are different studies: one of them must be null")
    if simulation.faults:
        raise ValueError("faults are made in studies of masks (study=segmentation), not of reference values")
    task = load(reference.task)
    if not isinstance(task, ReferenceTask) or task.settings.masks != "reader":
        raise ValueError("reference.task: a task reference_values with masks that readers drew is right in a rehearsal")
    wanted = (task.settings.diastole, task.settings.systole)
    if missing := [series for series in wanted if series not in simulation.hospitals.series]:
        there = ", ".join(simulation.hospitals.series) or "no images"
        raise ValueError(f"reference.task: the hospitals have {there}, not {' and '.join(missing)}")


def _require_intensities(simulation: Simulation, asked: IntensityStudy) -> None:
    """Raise `ValueError` for a study of an intensity scale that these hospitals can't take part in."""
    from tasks.intensity_scale.task import IntensityTask
    from tasks.task import load

    if simulation.radiomics is not None:
        raise ValueError("intensity_scale and radiomics are different studies: one of them must be null")
    if simulation.faults:
        raise ValueError("faults are made in studies of masks (study=segmentation), not of an intensity scale")
    if not isinstance(simulation.hospitals, GeneratedHospitals):
        raise ValueError("intensity_scale: its rehearsal is for generated hospitals, whose exact numbers the report may show")
    task = load(asked.task)
    if not isinstance(task, IntensityTask):
        raise ValueError("intensity_scale.task: a task intensity_scale is right here")
    if missing := sorted(set(task.settings.series) - set(simulation.hospitals.series)):
        there = ", ".join(simulation.hospitals.series)
        raise ValueError(f"intensity_scale.task.series: the hospitals have {there}, not {', '.join(missing)}")


def _require_radiomics(simulation: Simulation, classifier: Classifier) -> None:
    """Raise `ValueError` for a classifier that these hospitals, or these libraries, can't learn."""
    import conf
    from tasks.radiomics.features import Extractor
    from tasks.radiomics.intensity import SCALES
    from tasks.radiomics.task import ForestTask
    from tasks.task import load

    task = load(classifier.task)
    if not isinstance(task, ForestTask):
        raise ValueError(
            "radiomics.task: the first learner is a forest (learner.kind=forest); radiomics.logistic and .mlp are others"
        )
    image = task.settings.image
    if image is not None:
        if image.series not in simulation.hospitals.series:
            there = ", ".join(simulation.hospitals.series) or "no images"
            raise ValueError(f"radiomics.task.image.series: the hospitals have {there}, not {image.series}")
        if image.intensity not in SCALES:
            raise ValueError(f"radiomics.task.image.intensity: no scale named {image.intensity}; there are {', '.join(SCALES)}")
        names = Extractor.of(image.parameters).names
        if missing := [feature.name for feature in task.settings.radiomic if feature.name not in names]:
            raise ValueError(
                f"radiomics.task.radiomic: the parameters give no feature {missing[0]}; they give {', '.join(names)}"
            )
    elif not isinstance(simulation.hospitals, TableHospitals):
        raise ValueError("radiomics.task: clinical columns alone are learned from hospitals of tables (study=heart_disease)")
    tables = sorted(path.stem for path in (Path(next(iter(conf.__path__))) / "signature").glob("*.csv"))
    if classifier.robustness not in (None, *tables):
        raise ValueError(
            f"radiomics.robustness: no table named {classifier.robustness}; conf/signature holds {', '.join(tables)}"
        )


def require_checks(simulation: Simulation) -> None:
    """Raise `ValueError` for a check that the audit does not have."""
    from simulation.audit.catalogue import chosen  # here: it imports everything that is attacked

    chosen(simulation.audit)


def require_data(simulation: Simulation) -> None:
    """Raise `ValueError` unless the folders and label maps that the hospitals come from are there and can be read.

    Real patients who are not where the defaults look for them are done without; `rehearse` says so.
    """
    hospitals, real = simulation.hospitals, simulation.real
    if isinstance(hospitals, FolderHospitals):
        for key, folder in (("images", hospitals.images), ("masks", hospitals.masks)):
            if not any(Path(folder).glob("*.nii.gz")):
                raise ValueError(f"hospitals.{key}: there is no folder {folder} with *.nii.gz in it")
        _require_labels("hospitals.labels", hospitals.labels)
    if isinstance(hospitals, TableHospitals):
        from simulation.tables import column_rules  # after the cheap checks, as below

        column_rules(hospitals)
        for name, file in {**hospitals.sites, **hospitals.held_out}.items():
            if not Path(file).is_file():
                raise ValueError(f"hospitals: there is no file {file}, the table of {name}")
    for name, folder in simulation.synthetic.items():
        _require_synthetic(simulation, name, Path(folder))
    if simulation.pretraining is not None and simulation.pretraining.intensities:
        from simulation.intensity_scale.worn import scales_of  # after the cheap checks, as below
        from simulation.pretraining import looked_at

        own = Path(simulation.runs_folder) / simulation.name
        if any(Path(folder).resolve() == own.resolve() for folder in simulation.pretraining.intensities):
            raise ValueError(
                f"pretraining.intensities: {own} is this run's own folder, which is written anew; name=ANOTHER keeps both"
            )
        try:
            scales = scales_of(simulation.pretraining.intensities, looked_at(simulation.task, simulation.hospitals.series))
        except ValueError as error:
            raise ValueError(f"pretraining.intensities: {error}") from None
        if simulation.privacy.kind == "patient" and (bare := [scale.study for scale in scales if scale.epsilon is None]):
            raise ValueError(
                f"pretraining.intensities: study {bare[0]} promised no privacy, and who starts from what it released would "
                "promise some; privacy=none goes with it"
            )
    if simulation.start_from is not None:
        from simulation.starting import require_start  # after the cheap checks, as below

        require_start(simulation)
    if real is not None:
        _require_labels("real.labels", real.labels)
        there = Path(real.folder).is_dir()
        if not there and real.folder != REAL_FOLDER:
            raise ValueError(f"real.folder: there is no folder {real.folder}; real=null does without real patients")
        if there and not (Path(real.folder) / "link.csv").is_file():
            raise ValueError(f"real.folder: {real.folder} has no link.csv; it needs dicom/, contours/ and link.csv")


def _require_synthetic(simulation: Simulation, name: str, folder: Path) -> None:
    """Raise `ValueError` unless this hospital can learn from the cases of this folder."""
    from tasks.task import GradientTask, load  # after the cheap checks, as above

    if name not in simulation.hospitals.sites:
        raise ValueError(f"synthetic: no hospital {name} trains here; there are {', '.join(simulation.hospitals.sites)}")
    counted = simulation.radiomics or simulation.reference or simulation.intensity_scale
    task = load(simulation.task)
    if counted or not isinstance(task, GradientTask):
        raise ValueError("synthetic: only a study that learns by gradients learns from synthetic cases")
    if not any((folder / "cases").glob("*/case.json")):
        raise ValueError(
            f"synthetic.{name}: {folder} is no folder of cases; python -m simulation.synthetic {folder} --case-mix dcm=1 "
            "makes one"
        )
    _require_usable(f"synthetic.{name}: {folder}", task, folder)


def _require_usable(where: str, task: Task, folder: Path) -> None:
    """Raise `ValueError` where the task learns from no case of the folder. One that it can learn from is enough."""
    from fl_client.cohort import CaseUnreadable, Cohort  # after the cheap checks, as above

    reasons = list[str]()
    for case in Cohort(folder).look():
        try:
            if isinstance(case, CaseUnreadable):
                raise case
            task.prepare(case)
        except Exception as error:  # whatever it is, the hospital would leave this case out
            reasons.append(str(error))
        else:
            return
    if reasons:
        raise ValueError(f"{where} has no case that the task learns from: {reasons[0]}")


def _require_labels(where: str, labels: str) -> None:
    from fl_client.intake.labels import LabelMap  # after the cheap checks, as above

    try:
        LabelMap.load(labels)
    except ValidationError as error:
        raise ValueError("\n".join(f"{where}: {labels}: {line}" for line in words(error).splitlines())) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def sentences(error: ValidationError) -> str:
    """What is wrong, by path as it is written on the command line, with what is allowed there."""
    lines = []
    for item in error.errors():
        where = item["loc"]
        if len(where) > 1 and where[0] == "hospitals" and where[1] in SOURCES:  # which kind it is stands in no path
            where = (where[0], *where[2:])
        path = ".".join(map(str, where))
        if item["type"] == "extra_forbidden":
            known = _known(item["loc"])
            text = said(item) + (f"; there are {', '.join(known)}" if known else "")
        else:
            plain = item["type"] != "value_error" and not isinstance(item["input"], dict)
            text = said(item) + (f" (got {item['input']!r})" if plain else "")
        lines.append(f"{path}: {text}" if path else text)
    return "\n".join(lines)


def _known(where: tuple[int | str, ...]) -> list[str]:
    """The settings beside the one at this place."""
    kind: Any = Simulation
    named = False
    for part in where[:-1]:
        if named:  # this part is a hospital's name
            named = False
        elif kind is Simulation and part == "hospitals":
            kind = SOURCES[str(where[1])]
        elif part not in SOURCES:
            annotation = kind.model_fields[str(part)].annotation
            named = get_origin(annotation) is dict
            kinds = [one for one in (annotation, *get_args(annotation)) if isinstance(one, type) and issubclass(one, Frozen)]
            if not kinds:
                return []
            kind = kinds[0]
    return sorted(kind.model_fields)


def _changed(settings: Settings, changes: Mapping[str, JsonValue], where: str) -> Settings:
    try:
        return type(settings).model_validate(settings.model_dump() | dict(changes))
    except ValidationError as error:
        raise ValueError("\n".join(f"{where}.{line}" for line in words(error).splitlines())) from None
