"""How good the model is: by hospital, scanner, sex, age and disease, each with an interval and the number of patients."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import isfinite, nan

from PIL import Image

from fl_server.matrix_plot import DPI, GLOBAL, matrix_picture
from fl_server.report import charts
from fl_server.report.charts import Row
from fl_server.report.document import Block, Figure, Section, Table, Text
from fl_server.report.drawing import Drawing
from fl_server.report.findings import LEAST_SEEDS, SITE, Findings
from fl_server.report.measured import Area, Patient
from fl_server.report.measures import Z, sum_interval
from fl_server.report.statistics import FEWEST, Estimate, group, mean
from fl_server.report.words import count, interval, listed, number, structure

FEW = 10
"""Patients below which a group is marked as small."""
STRUCTURES_ACROSS = 3
MOST_MODELS = 40
"""In the picture of the matrix; with more, nobody can read it."""


def results(findings: Findings) -> Section:
    """The section."""
    if findings.measured and findings.measured.classifier:
        return Section("Results", tuple(_classifier(findings)))
    if not any(findings.dice(findings.of(SITE)).values()):
        return Section("Results", tuple(_from_sums(findings)))
    groups = _groups(findings)
    rows, told = [], []
    for kind, parts in groups:
        rows.append(Row(kind, nan, nan, nan, None, ""))
        for name, patients in parts:
            estimate = _overall(findings, kind, patients)
            if not estimate:
                continue
            said = f"{number(estimate.value)}  {_ci(estimate)}"
            rows.append(
                Row(name, estimate.value, estimate.low, estimate.high, estimate.patients, said, estimate.patients < FEW)
            )
            told.append(f"{name} {number(estimate.value)} ({interval(estimate) or 'no interval'}, n = {estimate.patients})")
    blocks: list[Block] = [
        Figure(
            charts.forest(rows, unit="mean Dice over the structures (axis does not start at 0)"),
            "Mean Dice by group. " + "; ".join(told) + ".",
            f"Dot and bar: mean and 95% interval. Hollow and grey: fewer than {FEW} patients; below {FEWEST} there is no "
            "interval, because none over so few would mean what it says.",
        ),
        Text(_covers(findings), "fine"),
    ]
    blocks += _tables(findings, groups)
    if lowest := _lowest(findings, groups):
        blocks.append(Text(lowest))
    blocks += _crossed(findings)
    return Section("Results", tuple(blocks))


Groups = list[tuple[str, list[tuple[str, list[Patient]]]]]


def _groups(findings: Findings) -> Groups:
    sites = findings.of(SITE)
    found: Groups = [("All hospitals that trained", [("each hospital alike", sites)])]
    own = [(name, [one for one in sites if one.hospital == name]) for name in findings.hospitals]
    found.append(("By hospital", [(name, patients) for name, patients in own if patients]))
    for role, title in (("held_out", "Hospitals that took no part"), ("real", "Real patients elsewhere")):
        others = findings.of(role)  # type: ignore[arg-type]  # both are roles
        names = dict.fromkeys(one.hospital for one in others)
        if names:
            found.append((title, [(name, [one for one in others if one.hospital == name]) for name in names]))
    return found + [(kind, list(parts.items())) for kind, parts in findings.groups().items()]


def _overall(findings: Findings, kind: str, patients: list[Patient], name: str | None = None) -> Estimate:
    """Over all hospitals each hospital counts alike, as in every other report; in a group each patient does."""
    values = findings.dice(patients, name)
    return mean(values) if kind.startswith("All hospitals") else group(values)


def _ci(estimate: Estimate) -> str:
    found = interval(estimate)
    return f"({found})" if found else "(no interval)"


def _covers(findings: Findings) -> str:
    """What the intervals are about."""
    seeds = findings.seeds
    if seeds > 1:
        luck = f"the luck of which patients were tested and of {count(seeds, 'training run')} with other random numbers"
    else:
        luck = "the luck of which patients were tested; that of the one training run is not in them"
    text = f"The intervals cover {luck}. They come from a bootstrap (patients are drawn again and again from those "
    text += "tested), widened to Student's t in groups. Hospitals were not sampled: no interval tells of a further "
    text += "hospital. Groups overlap and none is corrected for the number of comparisons: a group's lower mean is a "
    text += "reason to look, no proof."
    if 1 < seeds < LEAST_SEEDS:
        text += f" With {seeds} training runs their luck is known poorly."
    return text


def _tables(findings: Findings, groups: Groups) -> list[Block]:
    tables: list[Block] = []
    names = findings.structures
    for start in range(0, len(names), STRUCTURES_ACROSS):
        some = names[start : start + STRUCTURES_ACROSS]
        rows: list[tuple[str, ...]] = []
        for kind, parts in groups:
            rows.append((kind,))
            for label, patients in parts:
                cells = []
                for name in some:
                    estimate = _overall(findings, kind, patients, name)
                    cells.append(f"{number(estimate.value)} {_ci(estimate)}" if estimate else "not measured")
                n = len(patients)
                rows.append((label, f"{n}{' (few)' if n < FEW else ''}", *cells))
        head = ("Group", "Patients", *(structure(name) for name in some))
        tables.append(
            Table(head, tuple(rows), (2.3, 1, *([2.4] * len(some))), caption="Mean Dice with 95% interval, by structure")
        )
    return tables


def _lowest(findings: Findings, groups: Groups) -> str:
    """The group in which the model did worst, among those large enough for an interval."""
    found = [
        (estimate.value, name, kind, estimate)
        for kind, parts in groups
        if kind.startswith("By ") and len(parts) > 1
        for name, patients in parts
        if (estimate := _overall(findings, kind, patients)) and isfinite(estimate.low)
    ]
    if not found:
        return "No group is large enough to say in whom the model did worst."
    value, name, kind, estimate = min(found)[:4]
    return (
        f"The lowest mean of a group with at least {FEWEST} patients is {number(value)} ({interval(estimate)}): {name}, "
        f"{kind.lower()}, {count(estimate.patients, 'patient')}."
    )


# -- where single patients are not seen --------------------------------------------------------------------------------


def _from_sums(findings: Findings) -> list[Block]:
    """What a real federation tells: noisy sums over all hospitals' patients, or by hospital, and nothing finer."""
    record, blocks = findings.record, list[Block]()
    if record.counts:
        return _counts(findings)
    evaluation = record.evaluation
    if evaluation and evaluation.scores:
        rows = [_sum_row(name, value, evaluation.scores) for name, value in evaluation.scores.items() if "/" not in name]
        rows += [
            _sum_row(name, value, evaluation.scores) for name, value in evaluation.scores.items() if name.startswith("dice/")
        ]
        head = ("Score", "Patients, as told", "Value", "95%, noise alone", "95%, noise and patients")
        blocks.append(Table(head, tuple(rows), (2, 1.4, 1, 1.8, 1.8), caption="What the hospitals' patients say together"))
        answered = [name for name, site in evaluation.sites.items() if site.answer == "used"]
        blocks.append(
            Text(
                f"One sum over the patients held back at {listed(answered) or 'no hospital'}, with noise on it that "
                "protects each of them. The first interval covers the privacy noise alone. The second also covers which "
                "patients happened to be there; how much they differ can't be read from a sum, so it takes the largest "
                "difference possible and is wider than it would have to be. The number of patients is noisy, too.",
                "fine",
            )
        )
    elif evaluation and evaluation.total:
        blocks.append(Text("The hospitals gave scores, but the noise of the privacy promise drowns them.", "missing"))
    else:
        blocks.append(
            Text(
                "How good the model is was not measured: the study set nothing of its privacy promise aside for scores, "
                "or no hospital gave any.",
                "missing",
            )
        )
    blocks += _matrix(findings)
    blocks += _crossed(findings)
    blocks.append(
        Text(
            "Results by scanner, sex, age band and disease group can't be told: each would be a further release about "
            "few patients, with a price of its own, and none was made.",
            "missing",
        )
    )
    return blocks


def _counts(findings: Findings) -> list[Block]:
    """The tables of a study that counted patients."""
    blocks: list[Block] = []
    for table in findings.record.counts:
        head = (*(table.fields or ["who"]), "Training patients")
        rows = tuple(
            (*(cells or ["everybody"]), f"fewer than {table.fewer_than}" if n is None else str(n))
            for cells, n in zip(table.cells, table.counts, strict=True)
        )
        caption = "Training patients of all hospitals together"
        blocks.append(Table(head, rows, (1.0,) * len(head), words=len(head) - 1, caption=caption))
        told = "The counts are exact."
        if table.noise_sd:
            told = f"On each number lies noise with a standard deviation of {number(table.noise_sd, 1)}: 95% of numbers are "
            told += f"within {number(Z * table.noise_sd, 0)} of the truth."
        blocks.append(Text(told, "fine"))
    return blocks


def _sum_row(name: str, value: float, scores: dict[str, float]) -> tuple[str, ...]:
    label = "Dice, all structures" if name == "dice" else structure(name.removeprefix("dice/"))
    told = [number for key, number in scores.items() if key.startswith("patients/")]
    patients = scores.get(f"patients/{name.removeprefix('dice/')}", max(told, default=nan))
    noise, both = sum_interval(value, scores.get(f"noise_sd/{name}", nan), patients)
    return (label, number(patients, 0), number(value), _bounds(noise), _bounds(both))


def _bounds(bounds: tuple[float, float]) -> str:
    return f"{number(bounds[0])} to {number(bounds[1])}" if isfinite(bounds[0]) else "–"


def _matrix(findings: Findings) -> list[Block]:
    matrix = findings.record.matrix
    found = matrix.scores.get("global", {}) if matrix else {}
    if not matrix or not found:
        return []
    noise = matrix.noise_sd.get("global", {})
    rows = []
    for name, value in found.items():
        half = Z * noise[name] if name in noise else nan
        rows.append(
            (name, number(value), _bounds((max(value - half, 0.0), min(value + half, 1.0)) if isfinite(half) else (nan, nan)))
        )
    caption = f"By hospital: {matrix.metric} on its validation patients"
    return [
        Table(("Hospital", "Value", "95%, noise alone"), tuple(rows), (2, 1, 2), caption=caption),
        Text("These patients helped to choose the model, so the figures flatter it a little.", "fine"),
    ]


def _crossed(findings: Findings) -> list[Block]:
    """Every hospital's last model on every hospital's patients, as a picture."""
    matrix = findings.record.matrix
    if matrix is None or not any(model != GLOBAL and row for model, row in matrix.scores.items()):
        return []
    if len(matrix.scores) > MOST_MODELS:
        return [
            Text(f"How {len(matrix.scores)} models do at every hospital is too much for a page: record.json has it.", "fine")
        ]
    png = matrix_picture(matrix)
    with Image.open(BytesIO(png)) as image:
        width, height = (side * 72 / DPI for side in image.size)
    fits = min(1.0, charts.FULL / width)
    drawn = Drawing(width * fits, height * fits)
    drawn.picture(0, 0, width * fits, height * fits, png)
    told = [
        f"the model of {'all together' if model == GLOBAL else model}: "
        + ", ".join(f"{number(value)} at {site}" for site, value in row.items())
        for model, row in matrix.scores.items()
    ]
    caption = "Every hospital's last model, and that of all together, on every hospital's validation patients."
    if matrix.silent:
        caption += f" No score came from {listed(matrix.silent)}."
    return [Figure(drawn, f"{matrix.metric} of {'; '.join(told)}.", caption)]


# -- a classifier ------------------------------------------------------------------------------------------------------


def _classifier(findings: Findings) -> list[Block]:
    found = findings.measured.classifier if findings.measured else None
    if found is None:
        return []
    areas: Sequence[tuple[str, Area]] = [
        ("All hospitals", found.auc.model_copy(update={"patients": findings.tested})),
        *found.by_hospital.items(),
    ]
    rows = [Row("Area under the ROC curve", nan, nan, nan, None, "")]
    for name, area in areas:
        value, low, high = (nan if bound is None else bound for bound in (area.value, area.low, area.high))
        said = f"{number(value)}  ({number(low)} to {number(high)})" if isfinite(low) else f"{number(value)}  (no interval)"
        rows.append(Row(name, value, low, high, area.patients or 0, said, (area.patients or 0) < FEW))
    return [
        Figure(
            charts.forest(rows, unit="area under the ROC curve (0.5: guessing)"),
            "Area under the ROC curve by hospital.",
            "n: patients, whom the interval resamples whole, because what is said of one patient is alike.",
        ),
        Text("Results by scanner, sex, age band and disease group were not computed for this classifier.", "missing"),
    ]
