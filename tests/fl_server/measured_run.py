"""Run folders for the clinician's report: a real study's record alone, and one with measured patients, drawn by seed."""

import re
import zlib
from base64 import a85decode
from pathlib import Path

import numpy as np

from conf.study import Study
from fl_server.record import Evaluation, Record, Round, SiteRecord, SiteRound
from fl_server.report.measured import Agreement, Measured, Methods, Patient, Volume

SITES = ("north", "south", "west")
STRUCTURES = ("blood_pool", "myocardium")
EVIL = "<script>alert(1)</script>&\x1b[31m"


def record(*, rounds=3, run=None, answers=None, real=True, privacy="patient", profile="", scores=None):
    """A study of three hospitals; `answers` by (round, hospital) are other than "used"."""
    study = Study(
        name="pilot",
        konsil_version="0.3.0",
        task={"name": "segmentation", "structures": dict(zip(STRUCTURES, (1, 2), strict=True))},
        rounds=rounds,
        sites=SITES,
        privacy={"kind": privacy, "epsilon": 3.0, "delta": 1e-4},
    )
    found = Record.begin(study, profile=profile, versions={"konsil": "0.3.0"})
    for number in range(1, (rounds if run is None else run) + 1):
        sites = {
            name: SiteRound(answer=(answers or {}).get((number, name), "used"), reason=(answers or {}).get((number, name), ""))
            for name in SITES
        }
        found.rounds.append(Round(round=number, sites=sites, seconds=1.0, arrays_sha256=f"{number:064x}"))
    for i, name in enumerate(SITES):
        spent = None if privacy == "none" else 2.0 + 0.3 * i
        site = SiteRecord(declared_size=20, epsilon=spent, delta=1e-4, scanner="SIEMENS 3 T")
        if not real:
            site.cases_expected, site.cases_used, site.cases_refused, site.cases_withdrawn = 22, 20, 1, 1
        found.sites[name] = site
    if scores is not None:
        asked = {name: SiteRound(answer="used") for name in SITES}
        found.evaluation = Evaluation(sites=asked, total=[1.0], noise_std=1.0, seconds=1.0, scores=scores)
    found.judge()
    return found


def patients(each=6, *, seeds=2):
    """Test patients of every hospital, the more doubtful the worse."""
    rng = np.random.default_rng(3)
    found = []
    for hospital in SITES:
        for i in range(each):
            error = float(rng.uniform(0.02, 0.3))
            found.append(
                Patient(
                    hospital=hospital,
                    patient=f"{hospital}{i}",
                    scanner="SIEMENS 3 T",
                    sex="FM"[i % 2],
                    age=30.0 + 10 * i,
                    disease=("normal", "dcm")[i % 2],
                    dice={name: [1 - error] * seeds for name in STRUCTURES},
                    dice_again=dict.fromkeys(STRUCTURES, 1 - error),
                    volumes=[
                        Volume(
                            series=series,
                            structure=name,
                            drawn_ml=100.0,
                            predicted_ml=100 + 40 * error,
                            drawn_again_ml=101.0,
                            predicted_again_ml=100 + 44 * error,
                        )
                        for name in STRUCTURES
                        for series in ("cine_ed", "cine_es")
                    ],
                    doubt=error / 2 + float(rng.normal(0, 0.005)),
                    entropy=error,
                    reliability={name: [(100, 100 * (b + 0.5) / 10, 10 * b + 3) for b in range(10)] for name in STRUCTURES},
                    readers={name: Agreement(readers=0.95, model=1 - error) for name in STRUCTURES},
                )
            )
    return found


def folder(place: Path, about: Record, several=None, **methods) -> Path:
    """Write the record, and the patients beside it if there are any."""
    place.mkdir(parents=True, exist_ok=True)
    about.write(place / "record.json")
    if several is not None:
        seeds = list(range(max((len(table) for one in several for table in one.dice.values()), default=1)))
        Measured(
            study_hash=about.study_hash,
            arm="federation_private",
            seeds=seeds,
            structures=list(STRUCTURES),
            methods=Methods(**{"dropout": 0.02, "passes": 8, "readers": ["a", "b"], "rescans": True, **methods}),
            patients=several,
            generated=True,
        ).write(place / "clinical.json")
    return place


def text_of(pdf: bytes) -> str:
    """The words of a PDF as ReportLab writes them: compressed, in ASCII 85; glyphs of a font's first subset are letters."""
    words = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            plain = zlib.decompress(a85decode(b"<~" + stream.strip(), adobe=True))
        except (ValueError, zlib.error):  # a font or a picture
            continue
        shown = re.findall(rb"\((.*?)(?<!\\)\) Tj", plain)
        words += [part.replace(b"\\(", b"(").replace(b"\\)", b")").decode("latin-1") for part in shown]
    return " ".join(words)
