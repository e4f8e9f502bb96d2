"""The items of CLAIM 2024, filled with what the software knows, and left to the authors where only a person can know.

Checklist for Artificial Intelligence in Medical Imaging, 2024 update: Tejani et al. 2024, Radiol Artif Intell 6(4):e240300,
doi:10.1148/ryai.240300. Its 44 items are named here in words of our own; the published wording decides.
"""

from __future__ import annotations

from collections import Counter
from statistics import median

from fl_server.report.document import Section, Table, Text
from fl_server.report.findings import SITE, Findings, disease
from fl_server.report.words import count, epsilon, listed, structure

AUTHORS = "To be written by the authors."
SOURCE = "CLAIM 2024 update (Tejani et al., Radiology: Artificial Intelligence 2024, doi:10.1148/ryai.240300)"
ITEMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Title and abstract", ("names the kind of AI", "summary")),
    ("Introduction", ("background and intended use", "aims and hypotheses")),
    ("Study design", ("prospective or retrospective", "goal of the study")),
    (
        "Data",
        (
            "where the data come from",
            "who was included and excluded",
            "preparation of the data",
            "subsets that were selected",
            "de-identification",
            "missing data",
            "how images were acquired",
        ),
    ),
    (
        "Reference standard",
        (
            "how it was obtained",
            "why it was chosen",
            "who annotated",
            "annotation of the test set",
            "variability within and between readers",
        ),
    ),
    ("Partitions", ("how data were assigned", "level at which they are disjoint")),
    ("Test data", ("intended sample size",)),
    ("Model", ("description of the model", "software and versions", "initial weights")),
    ("Training", ("details of the training", "choice of the final model", "ensembles")),
    (
        "Evaluation",
        (
            "performance metrics",
            "significance and uncertainty",
            "robustness and sensitivity",
            "explainability",
            "test on data of the same sources",
            "test on data from elsewhere",
            "trial registration",
        ),
    ),
    (
        "Results",
        (
            "numbers included and excluded",
            "characteristics of the cases",
            "performance with uncertainty",
            "diagnostic performance and its precision",
            "analysis of failures",
        ),
    ),
    ("Discussion", ("limitations", "implications for practice")),
    ("Other", ("protocol and technical details", "availability of software, model and data", "funding")),
)


def checklist(findings: Findings) -> Section:
    """The section."""
    known = answers(findings)
    rows: list[tuple[str, ...]] = []
    number = 0
    for section, items in ITEMS:
        rows.append((section,))
        for item in items:
            number += 1
            rows.append((str(number), item, known.get(number) or AUTHORS))
    filled = sum(1 for n in range(1, number + 1) if known.get(n))
    text = f"{filled} of the {number} items of the {SOURCE} are filled by the software, in part or whole, from what it "
    text += "recorded; authors have to check each of them. The items are named in our words."
    return Section("Checklist for authors", (Text(text), Table(("Item", "What", "Answer"), tuple(rows), (0.5, 2, 5), words=3)))


def answers(findings: Findings) -> dict[int, str]:
    """By item, what the software can say; a missing item is the authors'."""
    record, study = findings.record, findings.record.study
    real = not findings.rehearsal
    found = {
        1: f"Federated learning over {count(len(findings.hospitals), 'hospital')}; task '{findings.task or 'not named'}'"
        + (", patient-level differential privacy." if findings.private else ", without a privacy promise."),
        7: _sources(findings),
        10: _selected(findings),
        11: "At each hospital's door, by its own profile, before anything is trained; the way back stays in the house."
        if real
        else "Patients are generated or public; hospitals that take the DICOM way de-identify them like real ones.",
        19: "By a fixed function of each patient's pseudonym, at the hospital; nobody chooses.",
        20: "The patient: all images of one patient are in one partition.",
        22: _model(findings),
        23: ", ".join(f"{name} {version}" for name, version in record.versions.items()),
        24: "Weights given beforehand, SHA-256 " + str(study["initial_model_sha256"])
        if study.get("initial_model_sha256")
        else f"Drawn at random from seed {study.get('seed', record.seed)}.",
        25: _training(findings),
        26: _choice(findings),
        27: "None: the result is one model.",
        28: _metrics(findings),
        29: _uncertainty(findings),
        35: _numbers(findings),
        36: _characteristics(findings),
        40: "See 'What this does not show'; authors add to it.",
        42: f"The study's settings, whole, under hash {record.study_hash}.",
    }
    if any(patient.readers for patient in findings.patients):
        found[18] = "Between generated readers: see 'Compared with readers among themselves'. Within readers: not measured."
    if any(patient.doubt is not None for patient in findings.patients):
        found[30] = "Repeatability on second scans, results by scanner and subgroup: see the sections of that name."
    if findings.of(SITE):
        found[32] = f"{count(len(findings.of(SITE)), 'patient')} of the hospitals that trained, never trained on."
        found[37] = "See 'Results': mean Dice with 95 % intervals by hospital and subgroup."
        found[39] = "See 'Uncertainty', and the patient with the lowest Dice on the first page; authors say why it failed."
    elif record.evaluation and record.evaluation.scores:
        found[32] = "Patients held back by the hospitals that trained, as one noisy sum."
        found[37] = "See 'Results': scores of the noisy sum with intervals."
    if away := findings.of("held_out") + findings.of("real"):
        names = listed(sorted({patient.hospital for patient in away}))
        found[33] = f"{count(len(away), 'patient')} of {names}, which took no part in the training."
    return {number: text for number, text in found.items() if text}


def _sources(findings: Findings) -> str:
    names = listed(findings.hospitals)
    if findings.measured and findings.measured.generated:
        return f"Patients generated by konsil, at the simulated hospitals {names}."
    return f"Hospitals {names}; authors say which patients they are."


def _selected(findings: Findings) -> str:
    selection, quality = findings.record.study.get("selection"), findings.record.study.get("quality")
    parts = [
        f"selection by the study: {selection}" if selection else "",
        f"limits of image quality: {quality}" if quality else "",
    ]
    return "; ".join(part for part in parts if part) or "The study selects nobody and sets no limit of image quality."


def _model(findings: Findings) -> str:
    task = findings.record.study.get("task", {})
    if findings.task == "segmentation":
        outlined = listed([structure(name).lower() for name in findings.structures]) or "structures"
        channels = task.get("channels", "default")
        return f"U-Net with group norm (MONAI), channels {channels}, outlines {outlined}; all settings are in the study file."
    return f"Task '{findings.task}' of konsil; all settings are in the study file." if findings.task else ""


def _training(findings: Findings) -> str:
    training, strategy = (findings.record.study.get(name, {}) for name in ("training", "strategy"))
    told = [count(findings.planned_rounds, "round")]
    told += [
        f"{name.replace('_', ' ')} {training[name]}"
        for name in ("steps", "optimizer", "learning_rate", "views")
        if name in training
    ]
    told += [f"combined by {strategy['name']}"] if "name" in strategy else []
    free = strategy.get("references_sha256")
    told += [f"noise filtered by generated patients ({str(free)[:12]})"] if free else []
    return f"{', '.join(told)}.{_privacy(findings)}"


def _privacy(findings: Findings) -> str:
    settings = findings.record.study.get("privacy", {})
    if not findings.private:
        return ""
    promise = settings.get("epsilon")
    limit = f"ε ≤ {epsilon(float(promise))}" if promise is not None else "a promise"
    return f" Each patient's contribution was cut to norm {settings.get('max_grad_norm', '?')} and noise added for {limit}."


def _choice(findings: Findings) -> str:
    record = findings.record
    if record.selected_round is not None:
        return f"Round {record.selected_round}, by scores of validation patients, who are neither trained on nor in the test."
    decay = record.study.get("strategy", {}).get("ema_decay", 0)
    mean = f", as an exponential mean over the rounds (decay {decay})" if decay else ""
    return f"The last round's{mean}; nothing was chosen by results."


def _metrics(findings: Findings) -> str:
    if findings.measured and findings.measured.classifier:
        return "Area under the ROC curve, calibration, Brier score."
    if findings.patients:
        return "Dice, volumes (Bland and Altman), calibration of voxel probabilities, rank correlation of doubt and error."
    evaluation = findings.record.evaluation
    if evaluation and evaluation.scores:
        return f"Scores from a noisy sum: {listed(list(evaluation.figures))}."
    return ""


def _uncertainty(findings: Findings) -> str:
    if findings.patients:
        runs = "patients and training runs" if findings.seeds > 1 else "patients, one training run"
        return f"95 % intervals by bootstrap over {runs}, in groups widened to Student's t."
    if findings.record.evaluation and findings.record.evaluation.scores:
        return "95 % intervals of the privacy noise, and of noise and patients together."
    return ""


def _numbers(findings: Findings) -> str:
    sites = list(findings.record.sites.values())
    if not sites or any(site.cases_expected is None for site in sites):
        return "Exact counts stay in the hospitals; see 'Who was in the study' for hospitals and answers."
    expected, used = sum(s.cases_expected or 0 for s in sites), sum(s.cases_used or 0 for s in sites)
    return f"{expected} expected, {used} let in; see the flow chart."


def _characteristics(findings: Findings) -> str:
    tested = findings.of(SITE)
    ages = [patient.age for patient in tested if patient.age is not None]
    sexes, diseases = (Counter(filter(None, values)) for values in ((p.sex for p in tested), (p.disease for p in tested)))
    parts = []
    if ages:
        parts.append(f"median age {median(ages):g} ({min(ages):g} to {max(ages):g})")
    if sexes:
        parts.append(listed([f"{n} {({'F': 'women', 'M': 'men'}).get(sex, sex)}" for sex, n in sorted(sexes.items())]))
    if diseases:
        parts.append(listed([f"{disease(name)} {n}" for name, n in diseases.most_common()]))
    return f"Test patients: {'; '.join(parts)}. Training patients: not summarised here." if parts else ""
