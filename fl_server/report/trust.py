"""When to believe the model: calibration, doubt against error, readers among themselves, the same patient scanned twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, nan
from statistics import fmean

import numpy as np

from fl_server.report import charts
from fl_server.report.charts import Level
from fl_server.report.document import Block, Figure, Figures, Section, Table, Text
from fl_server.report.findings import SITE, Findings
from fl_server.report.measured import CalibrationBin, Patient, Volume
from fl_server.report.measures import look_first, rank_correlation, reliability, repeatability
from fl_server.report.statistics import agreement, difference
from fl_server.report.words import count, interval, listed, number, structure

NOT_MEASURED = "This was not measured: it needs to see single test patients, whom only their own hospital may see."
NOT_ASKED = "This was not measured in this run; `python -m simulation.clinical RUN` measures it."


def _missing(findings: Findings) -> Text:
    if findings.measured and findings.measured.classifier:
        return Text("This is measured for models that draw outlines, and not for a classifier.", "missing")
    if findings.record.counts:
        return Text("This study counted patients and trained no model.", "missing")
    return Text(NOT_ASKED if findings.patients else NOT_MEASURED, "missing")


# -- calibration -------------------------------------------------------------------------------------------------------


def calibration(findings: Findings) -> Section:
    """Does 80 % mean 80 %, and does a millilitre mean a millilitre?"""
    title = "Calibration: does the model know how sure it may be?"
    classifier = findings.measured.classifier if findings.measured else None
    if classifier and classifier.calibration:
        return Section(title, tuple(_classifier(classifier.calibration, classifier.brier)))
    sites = [patient for patient in findings.of(SITE) if patient.reliability]
    blocks: list[Block] = []
    curves, rows = {}, []
    for name in findings.structures:
        found = reliability([patient.reliability[name] for patient in sites if name in patient.reliability])
        if found:
            curves[structure(name)] = found.points
            told = "says more than is there" if found.excess > 0 else "says less than is there"
            rows.append((structure(name), number(found.error), number(found.excess, sign=True), told, f"{found.voxels:,}"))
    figures = []
    if curves and findings.measured:
        margin = findings.measured.methods.reliability_margin_mm
        caption = "Dashed: a perfect match. Below it the model is too sure of the structure, above it not sure enough."
        drawn = charts.curves(
            curves, title="Probability and truth", x_unit="predicted probability", y_unit="share drawn by the reader"
        )
        figures.append(Figure(drawn, "Share of voxels drawn by the reader by predicted probability.", caption))
        head = ("Structure", "Calibration error", "Mean excess", "In words", "Voxels")
        note = f"A voxel is a point of the image. Counted are those within {margin:g} mm of what was drawn or predicted, "
        note += f"in {count(len(sites), 'test patient')}; voxels of one patient are alike, so no interval is given. "
        note += "Calibration error: mean distance between probability and drawn share, 0 at best."
        blocks += [
            Table(head, tuple(rows), (2, 1.4, 1.2, 2, 1.2), also=(3,), caption="Probability of a voxel"),
            Text(note, "fine"),
        ]
    volumes = _volumes(findings)
    blocks = [*([Figures((*figures, *volumes))] if figures or volumes else []), *blocks]
    if volumes:
        text = "Volumes: one mark per test patient of the hospitals that trained (mean over the series). Line: mean "
        text += "difference; dashed: limits of agreement, between which 95% of patients are expected (Bland and Altman)."
        blocks.insert(1, Text(text, "fine"))
    return Section(title, tuple(blocks) or (_missing(findings),))


def _classifier(bins: Sequence[CalibrationBin], brier: float | None) -> list[Block]:
    known = [one for one in bins if one.predicted is not None and one.observed is not None]
    points = [(one.predicted or 0.0, one.observed or 0.0) for one in known]
    bars = [(one.predicted or 0.0, nan if one.low is None else one.low, nan if one.high is None else one.high) for one in known]
    drawn = charts.curves(
        {"all rows": points}, title="Probability and truth", x_unit="predicted", y_unit="observed share", bars=bars
    )
    text = "Bars: 95% intervals over patients. "
    text += (
        f"The Brier score (mean squared error of the probabilities, 0 at best) is {number(brier)}." if brier is not None else ""
    )
    return [Figure(drawn, "Observed share by predicted probability.", text)]


def _volumes(findings: Findings) -> list[Figure]:
    figures = []
    for name in findings.structures:
        groups: dict[str, list[tuple[float, float]]] = {}
        for patient in findings.of(SITE):
            pairs = [(v.drawn_ml, v.predicted_ml) for v in patient.volumes if v.structure == name]
            known = [(a, b) for a, b in pairs if a is not None and b is not None]
            if known:
                drawn, predicted = fmean(a for a, _ in known), fmean(b for _, b in known)
                groups.setdefault(patient.hospital, []).append(((drawn + predicted) / 2, predicted - drawn))
        title = f"{structure(name)}: model minus reader"
        if chart := _bland_altman(groups, title, "mean of both (ml)", "difference (ml)"):
            figures.append(chart)
    if chart := _ejection_fractions(findings):
        figures.append(chart)
    return figures


def _bland_altman(groups: Mapping[str, Sequence[tuple[float, float]]], title: str, x_unit: str, y_unit: str) -> Figure | None:
    gaps = np.array([gap for several in groups.values() for _, gap in several])
    if len(gaps) < 2:
        return None
    limits = agreement(gaps)
    levels = [
        Level(value, dashed, number(value, 1, sign=True))
        for value, dashed in ((limits.bias, False), (limits.low, True), (limits.high, True))
    ]
    alt = f"{title}, {y_unit}: bias {limits.bias:.1f}, limits of agreement {limits.low:.1f} to {limits.high:.1f}, n = "
    alt += f"{len(gaps)}."
    return Figure(charts.scatter(groups, title=title, x_unit=x_unit, y_unit=y_unit, levels=levels), alt)


def ejection_fraction(patient: Patient, take: Callable[[Volume], float | None]) -> float | None:
    """Stroke volume over end-diastolic volume in percent, of the left ventricle's volumes that `take` picks."""
    blood = {volume.series: take(volume) for volume in patient.volumes if volume.structure == "blood_pool"}
    diastole, systole = blood.get("cine_ed"), blood.get("cine_es")
    return 100 * (diastole - systole) / diastole if diastole and systole is not None else None


def _ejection_fractions(findings: Findings) -> Figure | None:
    groups: dict[str, list[tuple[float, float]]] = {}
    for patient in findings.of(SITE):
        drawn, predicted = (ejection_fraction(patient, take) for take in (lambda v: v.drawn_ml, lambda v: v.predicted_ml))
        if drawn is not None and predicted is not None:
            groups.setdefault(patient.hospital, []).append(((drawn + predicted) / 2, predicted - drawn))
    return _bland_altman(groups, "Ejection fraction: model minus reader", "mean of both (%)", "difference (points)")


# -- doubt -------------------------------------------------------------------------------------------------------------


def uncertainty(findings: Findings) -> Section:
    """Does the model's doubt find its errors, and whom should a person look at first?"""
    title = "Uncertainty: does its doubt find its errors?"
    tested = [
        patient for patient in findings.patients if patient.role in (SITE, "held_out") and isfinite(findings.error(patient))
    ]
    kinds: dict[str, Callable[[Patient], float | None]] = {
        "Monte Carlo dropout": lambda one: one.doubt,
        "entropy of one pass": lambda one: one.entropy,
    }
    figures, rows = list[Figure](), list[tuple[str, ...]]()
    sentences: list[str] = []
    for name, take in kinds.items():
        known = [(patient, value) for patient in tested if (value := take(patient)) is not None]
        doubt, error = [value for _, value in known], [findings.error(patient) for patient, _ in known]
        rho, first = rank_correlation(doubt, error), look_first(doubt, error)
        if first is None:
            continue
        groups: dict[str, list[tuple[float, float]]] = {}
        for (patient, value), wrong in zip(known, error, strict=True):
            groups.setdefault(patient.hospital, []).append((value, wrong))
        drawn = charts.scatter(groups, title=name[:1].upper() + name[1:], x_unit="doubt", y_unit="error (1 − mean Dice)")
        told = f"{number(rho.value, 2)}" + (f" ({number(rho.low, 2)} to {number(rho.high, 2)})" if isfinite(rho.low) else "")
        figures.append(Figure(drawn, f"Error against doubt by {name}: rank correlation {told}, n = {first.patients}."))
        caught = f"{first.caught} of {first.looked} (by chance {number(first.expected, 1)})"
        rows.append((name, str(first.patients), told, caught, number(1 - first.error_looked), number(1 - first.error_rest)))
        if not sentences:
            sentences.append(_whom(first.looked, first.patients, first.caught, rho.low, rho.high))
    if not figures:
        return Section(title, (_missing(findings),))
    head = ("Doubt by", "n", "Rank correlation (95%)", "Worst tenth found", "Dice of those", "Dice of the others")
    table = Table(
        head, tuple(rows), (2, 0.6, 2, 2.2, 1.3, 1.4), caption="If a person looks first at the tenth with the most doubt"
    )
    return Section(title, (Text(" ".join(sentences)), Figures(tuple(figures)), table, Text(_how(findings), "fine")))


def _whom(looked: int, of: int, caught: int, low: float, high: float) -> str:
    text = f"A person who looks at the {looked} of {of} patients with the most doubt finds {caught} of the {looked} "
    text += "worst outlines. "
    if isfinite(low) and low > 0:
        return text + "More doubt does go with more error here, so doubt can decide whom a person looks at first."
    if isfinite(high) and high < 0:
        return text + "More doubt goes with less error here: do not use it to choose whom to look at."
    return text + "That doubt goes with error is not shown here: do not rely on it to choose whom to look at."


def _how(findings: Findings) -> str:
    methods = findings.measured.methods if findings.measured else None
    text = "Patients of all hospitals that trained and of those that took no part; the first training run's model. "
    if methods and methods.passes:
        text += f"Monte Carlo dropout: {methods.passes} passes, in each of which {100 * methods.dropout:g} % of the "
        text += "network's channels are left out at random; doubt is how far the passes' outlines disagree (1 − Dice). "
        if not methods.trained_with_dropout:
            text += "The network was trained without dropout, so doubt ranks patients and its size means nothing by itself. "
    return text + "Entropy: how undecided the probabilities of a single pass are, 0 to 1, mean over what was outlined."


# -- readers -----------------------------------------------------------------------------------------------------------


def readers(findings: Findings) -> Section:
    """Is the model closer to the readers than they are to one another?"""
    title = "Compared with readers among themselves"
    known = [patient for patient in findings.of(SITE) if patient.readers]
    rows = []
    for name in findings.structures:
        both = {
            (0, patient.hospital, patient.patient): (agree.readers, agree.model)
            for patient in known
            if (agree := patient.readers.get(name)) and agree.readers is not None and agree.model is not None
        }
        if not both:
            continue
        among = {key: pair[0] for key, pair in both.items() if pair[0] is not None}
        model = {key: pair[1] for key, pair in both.items() if pair[1] is not None}
        gap = difference(model, among)
        if gap.low > 0:
            told = "closer to the readers than they are to one another"
        elif gap.high < 0:
            told = "further from the readers than they are from one another"
        else:
            told = "no difference shown"
        means = (number(fmean(among.values())), number(fmean(model.values())))
        rows.append(
            (
                structure(name),
                str(len(both)),
                *means,
                f"{number(gap.value, sign=True)} ({interval(gap, sign=True) or '–'})",
                told,
            )
        )
    if not rows:
        return Section(title, (_missing(findings),))
    names = findings.measured.methods.readers if findings.measured else []
    text = f"The same scans were read by {count(len(names), 'generated reader')} (the hospitals' own, each with habits "
    text += "of contouring; they are programs that agree more than people may). Between the readers: mean Dice over all "
    text += "pairs; with the model: mean Dice of the model with each of them, on the same patients. The interval is over "
    text += "patients, for these readers and the first training run's model."
    head = ("Structure", "n", "Readers among themselves", "Model with readers", "Difference (95%)", "In words")
    return Section(title, (Table(head, tuple(rows), (1.6, 0.5, 1.4, 1.3, 2.3, 2.4), also=(5,)), Text(text, "fine")))


# -- rescans -----------------------------------------------------------------------------------------------------------


def rescans(findings: Findings) -> Section:
    """Does the same patient, scanned again, get the same answer?"""
    title = "Repeatability: the same patient scanned twice"
    known = [p for p in findings.of(SITE) if any(v.predicted_again_ml is not None for v in p.volumes)]
    kinds = list(dict.fromkeys((v.structure, v.series) for p in known for v in p.volumes))
    rows, groups, levels, first_kind = list[tuple[str, ...]](), dict[str, list[tuple[float, float]]](), list[Level](), ""
    for name, series in kinds:
        volumes = [(p, v) for p in known for v in p.volumes if (v.structure, v.series) == (name, series)]
        model = repeatability(*_pairs(volumes, lambda v: v.predicted_ml, lambda v: v.predicted_again_ml))
        reader = repeatability(*_pairs(volumes, lambda v: v.drawn_ml, lambda v: v.drawn_again_ml))
        if model is None:
            continue
        bounds = f" ({number(model.low, 1)} to {number(model.high, 1)})" if isfinite(model.low) else ""
        cells = (
            number(model.change, 1, sign=True),
            number(model.coefficient, 1) + bounds,
            number(reader.coefficient, 1) if reader else "–",
        )
        rows.append((structure(name), series.replace("_", " "), str(model.patients), *cells))
        if not first_kind:
            first_kind = f"{structure(name)}, {series.replace('_', ' ')}"
            for patient, v in volumes:
                if v.predicted_ml is not None and v.predicted_again_ml is not None:
                    point = ((v.predicted_ml + v.predicted_again_ml) / 2, v.predicted_again_ml - v.predicted_ml)
                    groups.setdefault(patient.hospital, []).append(point)
            levels = [
                Level(0.0),
                *(Level(s * model.coefficient, True, number(s * model.coefficient, 1, sign=True)) for s in (-1, 1)),
            ]
    if not rows:
        return Section(title, (_missing(findings),))
    rows += _function(known)
    drawn = charts.scatter(
        groups, title=first_kind, x_unit="mean of both scans (ml)", y_unit="second − first (ml)", levels=levels
    )
    head = ("Structure", "Series", "n", "Mean change (ml)", "Model: coefficient (95%)", "Reader: coefficient")
    table = Table(head, tuple(rows), (1.7, 1.2, 0.6, 1.4, 2.2, 1.5), words=2, caption="Change of volume between two scans")
    note = "Each generated patient was scanned a second time on the same scanner: planned, breathed and received anew. "
    note += "The coefficient of repeatability is the change that 95% of patients stay below when nothing but the scan "
    note += "has changed; a smaller change at follow-up can't be told from chance. The reader's holds the same two scans "
    note += "drawn by the same generated reader: what planning and slices alone do to a volume. "
    return Section(
        title,
        (
            Figure(drawn, f"Second minus first scan, {first_kind}.", "Dashed: the coefficient of repeatability."),
            table,
            Text(note + _again(findings, known), "fine"),
        ),
    )


def _function(known: Sequence[Patient]) -> list[tuple[str, ...]]:
    """The row of the ejection fraction; none where the two phases were not measured."""
    both = []
    for first, second in (
        (lambda v: v.predicted_ml, lambda v: v.predicted_again_ml),
        (lambda v: v.drawn_ml, lambda v: v.drawn_again_ml),
    ):
        pairs = [(ejection_fraction(p, first), ejection_fraction(p, second)) for p in known]
        whole = [(a, b) for a, b in pairs if a is not None and b is not None]
        both.append(repeatability([a for a, _ in whole], [b for _, b in whole]))
    model, reader = both
    if model is None:
        return []
    bounds = f" ({number(model.low, 1)} to {number(model.high, 1)})" if isfinite(model.low) else ""
    cells = (number(model.change, 1, sign=True), number(model.coefficient, 1) + bounds)
    return [
        ("Ejection fraction (points)", "both", str(model.patients), *cells, number(reader.coefficient, 1) if reader else "–")
    ]


def _pairs(
    volumes: Sequence[tuple[Patient, Volume]], first: Callable[[Volume], float | None], second: Callable[[Volume], float | None]
) -> tuple[list[float], list[float]]:
    known = [(a, b) for _, v in volumes if (a := first(v)) is not None and (b := second(v)) is not None]
    return [a for a, _ in known], [b for _, b in known]


def _again(findings: Findings, known: Sequence[Patient]) -> str:
    """Dice on the first and on the second scan."""
    parts = []
    for name in findings.structures:
        pairs = [(p.dice[name][0], p.dice_again.get(name)) for p in known if p.dice.get(name)]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        if both:
            parts.append(
                f"{structure(name).lower()} {number(fmean(a for a, _ in both))} and {number(fmean(b for _, b in both))}"
            )
    return f"Mean Dice on the first and on the second scan: {listed(parts)}." if parts else ""
