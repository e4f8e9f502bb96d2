"""The model card: what a reader has to know before using a model, as JSON and, under the field's usual headings, as Markdown.

Headings: Mitchell et al. 2019, Model Cards for Model Reporting, doi:10.1145/3287560.3287596, figure 1. Nothing is told that
the record doesn't hold; what it doesn't hold is said to be missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from conf.study import Study
from fl_server.record import Evaluation, Record
from fl_server.registry.learned import PRIVATE, Learned
from fl_server.report.findings import NOT_RECORDED, Findings
from fl_server.report.statistics import mean

SCHEMA = "konsil-model-card/1"
DRAWS = 2000
"""Bootstrap draws of patients behind an interval."""
INTENDED = "Research only. This is no medical device, and nothing here is for diagnosis or treatment."


USES = (
    "Meant for: trying the method, comparison, a start for further training.",
    "Out of scope: any decision about a patient; images of other kinds than named under Training Data.",
)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Site(_Part):
    """One hospital, as far as the record tells."""

    name: str
    declared_size: int | None
    scanner: str
    rounds_used: int
    cases_used: int | None
    epsilon: float | None
    delta: float | None


class Score(_Part):
    """One number of quality, of whom, and its 95 % interval where there is one."""

    metric: str
    of: str
    value: float
    low: float | None = None
    high: float | None = None
    patients: int | None = None
    basis: str  # where the number comes from


class Card(_Part):
    """Everything that the page tells."""

    schema_name: str = SCHEMA
    name: str
    version: int | None
    remark: str = ""
    study: str
    study_hash: str
    model_sha256: str
    task: dict[str, Any]
    verdict: str
    reasons: list[str]
    rehearsal: bool  # generated hospitals on one machine, no patients
    sites: list[Site]
    rounds: int
    rounds_planned: int
    chosen: str  # how the model was chosen among the rounds' ones
    strategy: dict[str, Any]
    training: dict[str, Any]
    started_from: dict[str, Any] | None
    privacy: list[str]
    scores: list[Score]
    missing: list[str]
    limits: list[str]
    intended_use: str = INTENDED
    versions: dict[str, str]


def card_of(learned: Learned, *, name: str, version: int | None, remark: str = "") -> Card:
    """The card of a model."""
    record = learned.record
    scores = _scores(learned)
    return Card(
        name=name,
        version=version,
        remark=remark,
        study=record.name,
        study_hash=record.study_hash,
        model_sha256=learned.sha256,
        task=learned.settings,
        verdict=record.verdict,
        reasons=record.reasons,
        rehearsal=_rehearsal(record),
        sites=_sites(record),
        rounds=len(record.rounds),
        rounds_planned=int(record.study["rounds"]),
        chosen=_chosen(record),
        strategy=dict(record.study["strategy"]),
        training=dict(record.study["training"]),
        started_from=_started_from(learned),
        privacy=privacy_in_words(record),
        scores=scores,
        missing=_missing(record, scores),
        limits=_limits(record),
        versions=record.versions,
    )


def privacy_in_words(record: Record) -> list[str]:
    """The privacy statement, a sentence each; it begins with NONE where nothing was promised."""
    promise = record.study["privacy"]
    if promise["kind"] == "none":
        return [
            "NONE. The hospitals trained without differential privacy: no noise was added, and nothing bounds what the "
            "weights tell of a single patient. Treat them as patient data."
        ]
    said = [
        "The unit is one patient with all images: the promise is about whether a patient took part at all, not about single "
        "images or slices.",
        f"The study was planned for epsilon {promise['epsilon']:g} at delta {promise['delta']:g}; each hospital priced it "
        "again at its own delta, and could refuse. At the planned numbers: whatever anyone sees of the study, and whatever "
        "else they know, whether one patient took part changes the odds of any conclusion by a factor of at most "
        f"e^{promise['epsilon']:g} (e^epsilon), except with a probability of about {promise['delta']:g}.",
    ]
    if record.study["strategy"]["name"] == "sum":
        said.append("Each patient added a vector of length 1 at most to a sum, and each hospital Gaussian noise, once.")
    else:
        said.append(
            "In each step each patient's gradient, over all images of the patient, was cut to a length of "
            f"{promise['max_grad_norm']:g} at most, and Gaussian noise was added to their sum inside the hospital "
            "(DP-SGD, Abadi et al. 2016)."
        )
    for name, site in record.sites.items():
        if site.epsilon is None:
            said.append(f"{name}: no answer with a price stands in the record.")
        else:
            delta = f"{site.delta:g}" if site.delta is not None else "that its own ledger holds"
            told = _told(record, name)
            said.append(f"{name}: spent epsilon {site.epsilon:.4g} at delta {delta}, as the hospital's own ledger {told}.")
    return said


def _told(record: Record, site: str) -> str:
    """Whether a hospital's epsilon is the last word: who was asked again and sent no price may have paid before it failed."""
    what = record.told_in(site)
    if not what:
        return "says"
    return f"said with its answer for {what}; it was asked again later, and what it paid then, if it did, is not known here"


def _started_from(learned: Learned) -> dict[str, Any] | None:
    wanted = learned.record.study.get("initial_model_sha256")
    if wanted is None:
        return None
    return {"weights": wanted, **(learned.start or {"source": "not told: nothing lay beside the weights"})}


def _rehearsal(record: Record) -> bool:
    return bool(record.profile) or record.engine in ("inprocess", "ray")


def _sites(record: Record) -> list[Site]:
    found = []
    for name, site in record.sites.items():
        used = sum(r.sites[name].answer == "used" for r in record.rounds if name in r.sites)
        facts = site.model_dump(include={"declared_size", "scanner", "cases_used", "epsilon", "delta"})
        found.append(Site(name=name, rounds_used=used, **facts))
    return found


def _chosen(record: Record) -> str:
    if record.selected_round is not None:
        chosen = f"the model of round {record.selected_round}, chosen by scores of patients set aside for that"
        noisy = "; of models whose scores the noise doesn't tell apart, the latest is taken"
        return chosen + (noisy if record.study.get("privacy", {}).get("kind") == "patient" else "")
    decay = record.study["strategy"].get("ema_decay", 0.0)
    return f"the mean of the rounds' models, weighted by {decay:g}^(rounds to come)" if decay else "the model of the last round"


def _limits(record: Record) -> list[str]:
    found = []
    if _rehearsal(record):
        found.append(
            "It was trained in a rehearsal, on generated patients of generated hospitals. No patient's image was trained on."
        )
    if record.verdict != "complete":
        found.append(f"The study ended {record.verdict}; the reasons stand at the top and are part of what this model is.")
    if len(record.sites) < 3:
        found.append(f"{len(record.sites)} hospitals took part; it can't be said how the model does at others.")
    if any(site.cases_used is None for site in record.sites.values()):
        found.append("Real hospitals keep exact numbers of patients to themselves: sizes are those that they declared.")
    found.append("Scanners, sequences and patients other than those named here were not tried.")
    if record.study["task"].get("name") == "segmentation":
        found.append("The masks say where the network thinks a structure is; volumes computed from them carry its bias.")
    return found


# -- numbers ------------------------------------------------------------------------------------------------------------


def _scores(learned: Learned) -> list[Score]:
    record = learned.record
    found = _of_patients(learned.scores) if learned.scores else _of_means(record)
    found += _of_groups(learned)
    if record.evaluation is not None:
        found += _of_sum(record.evaluation, "patients held back by the hospitals", "one noisy sum after the last round")
    if record.matrix is not None:
        for hospital, value in record.matrix.scores.get("global", {}).items():
            noise = record.matrix.noise_std.get(hospital, 0.0)
            basis = f"one noisy sum at the hospital (noise {noise:g} on each of its numbers)"
            found.append(Score(metric=record.matrix.metric, of=f"{hospital}, validation patients", value=value, basis=basis))
    return found


def _of_patients(rows: Sequence[Mapping[str, Any]]) -> list[Score]:
    """Means over test patients, all and by hospital, with percentile bootstrap intervals over patients."""
    groups: dict[tuple[str, str], list[float]] = {}
    roles = {"site": "all hospitals that trained", "held_out": "hospitals that did not train", "real": "real patients"}
    for row in rows:
        for metric, value in row["scores"].items():
            if metric.startswith("dice/") or "/" not in metric:
                for of in (roles.get(row["role"], row["role"]), row["hospital"]):
                    groups.setdefault((metric, of), []).append(float(value))
    found = []
    for (metric, of), values in groups.items():
        low, high = _interval(values)
        basis = "test patients, this model; percentile bootstrap over patients"
        found.append(
            Score(metric=metric, of=of, value=float(np.mean(values)), low=low, high=high, patients=len(values), basis=basis)
        )
    order = {of: index for index, of in enumerate(roles.values())}
    return sorted(found, key=lambda score: (order.get(score.of, len(order)), score.of, score.metric))


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    if len(values) < 3:
        return None, None
    rng = np.random.default_rng(0)
    means = np.asarray(values)[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _of_groups(learned: Learned) -> list[Score]:
    """Means by scanner, sex, age and disease, where somebody measured single test patients (`clinical.json`)."""
    findings = Findings(learned.folder)
    found = []
    for kind, groups in findings.groups().items():
        for name, patients in groups.items():
            for structure in findings.structures if name != NOT_RECORDED else ():
                first = {key: value for key, value in findings.dice(patients, structure).items() if key[0] == 0}  # this model
                if estimate := mean(first):
                    low, high = (float(x) if np.isfinite(x) else None for x in (estimate.low, estimate.high))
                    basis = "test patients, this model; mean over hospitals, percentile bootstrap over their patients"
                    facts: dict[str, Any] = {
                        "value": float(estimate.value),
                        "low": low,
                        "high": high,
                        "patients": estimate.patients,
                    }
                    found.append(Score(metric=f"dice/{structure}", of=f"{kind.lower()}: {name}", basis=basis, **facts))
    return found


def _of_means(record: Record) -> list[Score]:
    """What the record holds as means, without intervals."""
    basis = "mean that stands in the record"
    found = [
        Score(metric=f"dice/{structure}", of=name, value=value, basis=basis)
        for name, site in record.sites.items()
        for structure, value in site.dice.items()
    ]
    for role, hospitals in record.held_out.items():
        for name, entry in hospitals.items():
            for metric, value in entry.get("arms", {}).get(PRIVATE, {}).items():
                if metric.startswith("dice/"):
                    found.append(Score(metric=metric, of=f"{name} ({role.replace('_', ' ')})", value=value, basis=basis))
    return found


def _of_sum(evaluation: Evaluation, of: str, basis: str) -> list[Score]:
    noise = f"{basis}, noise {evaluation.noise_std:g} on each of its numbers" if evaluation.noise_std else basis
    return [Score(metric=name, of=of, value=value, basis=noise) for name, value in evaluation.scores.items()]


def _missing(record: Record, scores: Sequence[Score]) -> list[str]:
    found = []
    if not scores:
        found.append("No score of this model stands in the record: how good it is, nobody has measured.")
    elif all(score.low is None for score in scores):
        found.append("No interval stands in the record: how sure these numbers are can't be told.")
    if not any(score.of.partition(",")[0] in record.sites for score in scores):
        found.append("No scores by hospital.")
    lacking = [kind for kind in ("sex", "age", "disease") if not any(score.of.startswith(f"by {kind}") for score in scores)]
    if lacking:
        found.append(f"No scores by {', '.join(lacking)}.")
    return found


# -- the page -----------------------------------------------------------------------------------------------------------


def page(card: Card) -> str:
    """The card as Markdown."""
    title = card.name if card.version is None else f"{card.name}, version {card.version}"
    lines = [f"# Model card: {title}", "", f"**{card.intended_use}**", ""]
    lines += [f"Verdict of the study: **{card.verdict}**.", *_bullets(card.reasons), ""]
    lines += ["## Model Details", "", *_bullets(_details(card)), ""]
    lines += ["## Intended Use", "", card.intended_use, ""]
    lines += _bullets([f"Task: {_task_in_words(card.task)}", *USES])
    lines += ["", "## Factors", "", *_bullets([_factors(card), *card.missing]), ""]
    lines += ["## Metrics", "", _metrics_in_words(card), ""]
    whose = sorted({f"{score.of}: {score.basis}" for score in card.scores})
    lines += ["## Evaluation Data", "", *_bullets(whose or ["None."]), ""]
    lines += ["## Training Data", "", *_table_of_sites(card.sites), ""]
    lines += ["## Quantitative Analyses", "", *_table_of_scores(card.scores, card.sites), ""]
    lines += ["## Ethical Considerations", "", "### Privacy", "", *_bullets(card.privacy), ""]
    if card.started_from is not None:
        lines += ["What the weights that training started from tell of anybody is not covered by this.", ""]
    lines += ["## Caveats and Recommendations", "", *_bullets(card.limits), ""]
    return "\n".join(lines)


def _details(card: Card) -> list[str]:
    strategy = ", ".join(f"{key} {value}" for key, value in _changed(card.strategy, "strategy").items()) or "all defaults"
    training = ", ".join(f"{key} {value}" for key, value in _changed(card.training, "training").items()) or "all defaults"
    found = [f"Remark: {card.remark}"] if card.remark else []
    found += [
        f"Study {card.study}, hash {card.study_hash}; weights {card.model_sha256}.",
        f"Trained by {len(card.sites)} hospitals in {card.rounds} of {card.rounds_planned} rounds with "
        f"{card.strategy['name']}; it is {card.chosen}.",
        f"Strategy, where not at its default: {strategy}.",
        f"Local training, where not at its default: {training}.",
    ]
    if card.started_from is None:
        found.append("Training started from weights drawn at random.")
    else:
        found.append(f"Training started from weights {card.started_from['weights']}: {_start_in_words(card.started_from)}.")
    versions = ", ".join(f"{name} {number}" for name, number in card.versions.items())
    found.append(f"Made with {versions or 'versions that the record does not name'}.")
    return found


def _factors(card: Card) -> str:
    kinds = list(dict.fromkeys(score.of.partition(":")[0] for score in card.scores if score.of.startswith("by ")))
    if any(score.of.partition(",")[0] in {site.name for site in card.sites} for score in card.scores):
        kinds.insert(0, "by hospital")
    return f"Scores are given {', '.join(kinds)}." if kinds else "No score is told apart by anything."


def _start_in_words(start: Mapping[str, Any]) -> str:
    words = str(start["source"])
    if "source_sha256" in start:
        words += f" (SHA-256 {start['source_sha256']})"
    if "matched" in start:
        words += f", {len(start['matched'])} arrays taken over"
        words += f", drawn anew: {', '.join(start['fresh'])}" if start["fresh"] else ", none drawn anew"
    return words


def _task_in_words(task: Mapping[str, Any]) -> str:
    if task["name"] != "segmentation":
        return f"{task['name']}, as its settings in card.json say."
    from tasks.segmentation import build

    settings = build({key: value for key, value in task.items() if key != "name"}).settings
    return (
        f"segmentation of {', '.join(settings.structures)} in {settings.spatial_dims}D, on images {', '.join(settings.series)}."
    )


def _metrics_in_words(card: Card) -> str:
    if not card.scores:
        return "None were measured."
    names = sorted({score.metric for score in card.scores})
    dice = (
        " Dice is twice the overlap over the sum of both volumes, 1 at best." if any("dice" in name for name in names) else ""
    )
    return f"{', '.join(names)}.{dice} Intervals, where given, are 95 %."


def _changed(settings: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Settings that are not at their defaults, but for the name."""
    default = Study.model_fields[part].default.model_dump(mode="json")
    return {key: value for key, value in settings.items() if key != "name" and value != default.get(key)}


def _bullets(sentences: Sequence[str]) -> list[str]:
    return [f"- {sentence}" for sentence in sentences]


def _table_of_sites(sites: Sequence[Site]) -> list[str]:
    rows = ["| hospital | declared size | cases used | scanner | rounds used |", "|---|---|---|---|---|"]
    for site in sites:
        cells = (site.name, site.declared_size, site.cases_used, site.scanner or None, site.rounds_used)
        rows.append("| " + " | ".join("not told" if cell is None else _cell(str(cell)) for cell in cells) + " |")
    return rows


def _table_of_scores(scores: Sequence[Score], sites: Sequence[Site]) -> list[str]:
    scanners = {site.name: f"{site.name}, {site.scanner}" for site in sites if site.scanner}
    if not scores:
        return ["No score of this model stands in the record."]
    rows = ["| metric | of | value | 95 % interval | patients |", "|---|---|---|---|---|"]
    for score in scores:
        between = "none" if score.low is None or score.high is None else f"{score.low:.3f} to {score.high:.3f}"
        count = "not told" if score.patients is None else str(score.patients)
        rows.append(
            f"| {_cell(score.metric)} | {_cell(scanners.get(score.of, score.of))} | {score.value:.3f} | {between} | {count} |"
        )
    return rows


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
