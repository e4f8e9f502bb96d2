"""Hospitals that do not exist: a cohort on disk, drawn by seed or dealt out from a folder, and a settings file.

The cohort of a hospital depends on its own settings alone and is kept in a cache under their hash, so that a second run, a
sweep or a larger study finds it there. Patients enter by the doors of a real hospital: straight into the cohort as cases,
or, for a hospital with `through_dicom`, as DICOM files through the intake (a test proves that both give the same arrays).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from conf.study import Frozen
from fl_client import synthetic
from fl_client.cohort import Cohort, is_test
from fl_client.intake.admit import admit_folder
from fl_client.intake.deidentify import Deidentifier
from fl_client.intake.labels import LabelMap
from fl_client.intake.pairs import admit_pairs
from fl_client.intake.sunnybrook import admit_sunnybrook
from fl_client.site import Budget, Site
from simulation import keys
from simulation.hospital_case import patient_case
from simulation.machine import unordered
from simulation.scanner import Series
from simulation.settings import FolderHospitals, GeneratedHospital, GeneratedHospitals, RealHospital
from simulation.sources import source_text

GENERATOR = (
    "simulation/patient.py",
    "simulation/right_heart.py",
    "simulation/physique.py",
    "simulation/heart.py",
    "simulation/thorax.py",
    "simulation/tissue.py",
    "simulation/phantom.py",
    "simulation/reception.py",
    "simulation/interpolation.py",
    "simulation/scanner.py",
    "simulation/reader.py",
    "simulation/hospital_case.py",
)
KEY = b"a rehearsal keeps no secret; it needs the same pseudonyms again"

Advance = Callable[[int, int], None]  # patients done, patients in all


@dataclass(frozen=True)
class Hospital:
    """A hospital of the rehearsal: where its cohort lies, and what it declares in public."""

    name: str
    cohort_folder: Path
    test_fraction: float
    scanner: str
    cases_expected: int
    refused: Mapping[str, str]
    models: tuple[Path, ...] = ()  # that later studies lean on, in files named by their fingerprints
    synthetic: Path | None = None  # a folder of cases that train beside the patients

    @property
    def cohort(self) -> Cohort:
        """The cohort on disk."""
        return Cohort(self.cohort_folder)

    @property
    def declared_size(self) -> int:
        """A round number near the count of training patients: what a hospital would say in public."""
        return max(5, 5 * round(self.cases_expected * (1 - self.test_fraction) / 5))

    @property
    def identity(self) -> str:
        """Hash of who lies in the cohort, drawn or let in how, and who is tested: another one makes another model."""
        places = [(self.cohort_folder / "cases" / patient).resolve().parts[-5:] for patient in self.cohort.patients]
        facts: list[object] = [self.name, self.test_fraction, self.declared_size, places]
        if self.synthetic is not None:
            beside = Cohort(self.synthetic)
            facts.append([beside.state(name) for name in beside.patients])
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def training_patients(self) -> tuple[str, ...]:
        """Pseudonyms that models of this hospital may be trained on."""
        return self.cohort.split("train", test_fraction=self.test_fraction)

    @property
    def test_patients(self) -> tuple[str, ...]:
        """Pseudonyms that no training ever sees."""
        return self.cohort.split("test", test_fraction=self.test_fraction)

    def settle(self, folder: Path, *, budget: Budget, private: bool, noise_seed: int) -> Path:
        """Give the hospital a folder of its own for one study, and write its settings. Returns the settings file.

        Raises `ValueError` in words for synthetic cases that a hospital doesn't take.
        """
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "cohort"
        if not link.exists():
            link.symlink_to(self.cohort_folder.resolve())
        for model in self.models:
            place = folder / "models" / model.name
            place.parent.mkdir(exist_ok=True)
            if not place.exists():
                place.symlink_to(model.resolve())
        site = Site(
            name=self.name,
            folder=folder,
            declared_size=self.declared_size,
            test_fraction=self.test_fraction,
            budget=budget,
            approve_all=True,
            accept_no_privacy=not private,
            noise_seed=noise_seed,
        )
        site.save(folder / "site.yaml")
        keys.give(self.name, folder / "node.key")
        if self.synthetic is not None:
            synthetic.add(site, self.synthetic, origin=f"synthetic.{self.name} of the rehearsal", who="the rehearsal")
        return folder / "site.yaml"


def drawn(
    name: str,
    index: int,
    settings: GeneratedHospital,
    every: GeneratedHospitals,
    *,
    cache: Path,
    pool: Executor,
    advance: Advance,
) -> Hospital:
    """A generated hospital; its patients' seeds are taken from `first_seed + 10 000 index` upwards."""
    count = every.count(settings)
    first = every.first_seed + 10_000 * index
    seeds = _seeds(first, count, every.test_fraction, dicom=settings.through_dicom)
    place = (
        cache
        / "hospitals"
        / _key(
            settings,
            {
                "first": first,
                "series": every.series,
                "os": every.oversampling,
                "sub": every.subslices,
                "bodies": every.bodies,
            },
        )
    )
    place.mkdir(parents=True, exist_ok=True)
    cohort = Cohort(place / "cohort")
    jobs = [
        (place / "cohort", settings, seed, every.series, every.oversampling, every.subslices, every.bodies)
        for seed in seeds
        if not (place / "done" / str(seed)).exists()
    ]
    advance(count - len(jobs), count)
    for done, _ in enumerate(unordered(pool, _draw_patient, jobs), start=count - len(jobs) + 1):
        advance(done, count)
    names = set(seeds.values())
    refused = {entry["what"]: entry["reason"] for entry in cohort.refused if entry["what"] in names}
    scanner = f"{settings.scanner.manufacturer} {settings.scanner.field_strength_t:g} T"
    return Hospital(name, _only(cohort, names), every.test_fraction, scanner, count, refused)


def seeds_of(name: str, every: GeneratedHospitals) -> dict[str, int]:
    """The seeds that a generated hospital's patients are drawn from, by pseudonym."""
    settings = (every.sites | every.held_out)[name]
    first = every.first_seed + 10_000 * list(every.sites | every.held_out).index(name)
    seeds = _seeds(first, every.count(settings), every.test_fraction, dicom=settings.through_dicom)
    return {pseudonym: seed for seed, pseudonym in seeds.items()}


def _only(cohort: Cohort, patients: Collection[str]) -> Path:
    """A cohort of these patients alone: the cache may hold more, drawn for a larger hospital or another split."""
    chosen = [patient for patient in cohort.patients if patient in patients]
    folder = cohort.folder.parent / "chosen" / hashlib.sha256(" ".join(chosen).encode()).hexdigest()[:16]
    link_cohort(folder, [cohort.folder / "cases" / patient for patient in chosen])
    return folder


def link_cohort(folder: Path, cases: Iterable[Path]) -> None:
    """Make `folder` a cohort of exactly these cases, which stay where they are."""
    wanted = {case.name: case.resolve() for case in cases}
    place = folder / "cases"
    if place.exists() and {link.name: link.resolve() for link in place.iterdir()} != wanted:
        shutil.rmtree(folder)  # with the arrays that tasks made of other patients
    place.mkdir(parents=True, exist_ok=True)
    for name, target in wanted.items():
        if not (place / name).exists():
            (place / name).symlink_to(target)


def _seeds(first: int, count: int, test_fraction: float, *, dicom: bool) -> dict[int, str]:
    """The first seeds, with pseudonyms, that give `count` patients, of whom the stated fraction are test patients.

    The fraction is met exactly, but for at least one patient on either side.

    Which side a patient is on is a matter of the pseudonym (`fl_client.cohort.is_test`), so a hospital of ten could
    otherwise have no test patient at all.
    """
    wanted = {True: min(max(1, round(count * test_fraction)), count - 1)}
    wanted[False] = count - wanted[True]
    deidentifier = Deidentifier(KEY)
    seeds: dict[int, str] = {}
    seed = first
    while any(wanted.values()):
        name = f"G{seed:08d}"
        if dicom:
            from simulation.dicom import Identity

            name = deidentifier.pseudonym(Identity.invent(name).patient_id)
        side = is_test(name, test_fraction)
        if wanted[side]:
            wanted[side] -= 1
            seeds[seed] = name
        seed += 1
    return seeds


def _draw_patient(
    cohort: Path,
    settings: GeneratedHospital,
    seed: int,
    series: tuple[Series, ...],
    oversampling: int,
    subslices: int,
    bodies: bool,
) -> int:
    case = patient_case(
        seed,
        scanner=settings.scanner,
        reader=settings.reader,
        case_mix=settings.case_mix,
        series=series,
        oversampling=oversampling,
        subslices=subslices,
        bodies=bodies,
    )
    if settings.through_dicom:
        from simulation.dicom import write_patient  # pydicom and highdicom take seconds to import

        with tempfile.TemporaryDirectory() as folder:
            write_patient(case, Path(folder))
            admit_folder(Path(folder), Cohort(cohort), key=KEY, labels=LabelMap.load("cardiac"), measure=False)
    else:
        Cohort(cohort).admit(case)
    mark = cohort.parent / "done" / str(seed)
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    return seed


def dealt(settings: FolderHospitals, *, cache: Path, advance: Advance) -> tuple[dict[str, Hospital], dict[str, Hospital]]:
    """Hospitals that share out two folders of NIfTI images and masks; each lets its files in through the intake."""
    stems = sorted({path.name for folder in (settings.images, settings.masks) for path in Path(folder).glob("*.nii.gz")})
    if not stems:
        raise ValueError(f"hospitals.images: no *.nii.gz in {settings.images}")
    names = (*settings.sites, *settings.held_out)
    place = (
        cache
        / "hospitals"
        / _key(
            settings, {"sites": names, "labels": _label_text(settings.labels), "files": _files(settings.images, settings.masks)}
        )
    )
    shares = {name: stems[index :: len(names)][: settings.patients] for index, name in enumerate(names)}
    total, done = sum(map(len, shares.values())), 0
    hospitals = {}
    for name, share in shares.items():
        folder = place / name
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            for kind, source in (("images", settings.images), ("masks", settings.masks)):
                (folder / kind).mkdir(parents=True)
                for file in (Path(source) / stem for stem in share):
                    if file.exists():
                        (folder / kind / file.name).symlink_to(file.resolve())
            admit_pairs(
                folder / "images",
                folder / "masks",
                Cohort(folder / "cohort"),
                key=KEY,
                labels=LabelMap.load(settings.labels),
                series_name=settings.series[0],
            )
            (folder / "done").touch()
        done += len(share)
        advance(done, total)
        refused = {entry["what"]: entry["reason"] for entry in Cohort(folder / "cohort").refused}
        hospitals[name] = Hospital(name, folder / "cohort", settings.test_fraction, "", len(share), refused)
    return {name: hospitals[name] for name in settings.sites}, {name: hospitals[name] for name in settings.held_out}


def real(settings: RealHospital, *, cache: Path) -> Hospital:
    """A hospital of real patients, let in through the intake; all of them are test patients."""
    folder = Path(settings.folder)
    if not folder.is_dir():
        raise ValueError(f"real.folder: there is no folder {folder}")
    place = cache / "hospitals" / _key(settings, {"labels": _label_text(settings.labels), "files": _files(folder)})
    if not (place / "done").exists():
        shutil.rmtree(place, ignore_errors=True)
        intake = admit_sunnybrook(folder, Cohort(place / "cohort"), key=KEY, labels=LabelMap.load(settings.labels))
        (place / "done").write_text(str(intake.expected))
    cohort = Cohort(place / "cohort")
    refused = {entry["what"]: entry["reason"] for entry in cohort.refused}
    return Hospital(settings.name, place / "cohort", 1.0, "real patients", int((place / "done").read_text()), refused)


def pooled(name: str, hospitals: Mapping[str, Hospital], folder: Path) -> Hospital:
    """One imaginary hospital that has all patients of these: what no federation can see."""
    link_cohort(
        folder / "cohort", [h.cohort_folder / "cases" / patient for h in hospitals.values() for patient in h.cohort.patients]
    )
    first = next(iter(hospitals.values()))
    expected = sum(hospital.cases_expected for hospital in hospitals.values())
    return Hospital(name, folder / "cohort", first.test_fraction, "", expected, {})


def _files(*folders: Path | str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of all files below the folders: whether they are still those that were let in."""
    found = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in found]


def _label_text(labels: str) -> str:
    return LabelMap.load(labels).model_dump_json()


def _key(settings: Frozen, more: Mapping[str, object]) -> str:
    """What determines a cohort: the settings, and the source text of the generator and the intake."""
    text = settings.model_dump_json(exclude={"relative_size", "sites", "held_out"}) + json.dumps(
        more, default=str, sort_keys=True
    )
    return hashlib.sha256(text.encode() + source_text(*GENERATOR, "fl_client/intake")).hexdigest()[:16]
