"""The report of a rehearsed study of reference values: the curves, the patients nobody else sees behind them, and single
patients.

Reads `record.json`, `reference_values.json` and `reference_facts.json` of a run's folder. Pictures are PNG inside the page.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fl_client.reference_chart import figure_of, stretches
from fl_client.reference_values import lines
from fl_server.record import Record
from simulation.report import words
from simulation.report.drawing import png
from simulation.report.layout import rendered
from tasks.reference_values.measures import Ventricle
from tasks.reference_values.place import PEOPLE, Place, places, source
from tasks.reference_values.settings import SEXES
from tasks.reference_values.values import Curve, ReferenceValues

VALUES, FACTS = "reference_values.json", "reference_facts.json"
TRUTH = "#b8860b"

LIMITS = (
    words.visible("Single patients and percentiles without noise"),
    "Volumes of generated patients, and how they change with age, sex and body size, are assumed: nobody real can be compared "
    "with these curves.",
    "Curves follow one family (LMS) for each measure and sex; where the words say that the shape is in doubt, they don't fit.",
    "Who is counted is who a hospital has. Reference values of healthy people need a study that selects them.",
)


def page(folder: Path) -> str:
    """The whole report as one HTML text. Raises `FileNotFoundError` for a folder without the three files."""
    values = ReferenceValues.model_validate_json((folder / VALUES).read_text())
    facts = json.loads((folder / FACTS).read_text())
    record = Record.read(folder / "record.json")
    counted = [Ventricle(**one) for one in facts["counted"]]
    pooled = ReferenceValues.model_validate(facts["pooled"])
    contents = {
        "banner": "The patients do not exist: they were drawn, and so were their reference values.",
        "source": source(values),
        "counted": len(counted),
        "lines": [line.strip() for line in lines(values)],
        "charts": [(PEOPLE[sex], png(_chart(values, pooled, counted, sex))) for sex in SEXES],
        "errors": errors(values, pooled),
        "afterwards": "By each hospital's ledger. The curves, and every patient who is compared with them, cost nothing more.",
        "limits": words.limits_of(record, *LIMITS),
        "patients": [_patient(one, values) for one in facts["held_back"]],
    }
    return rendered("reference_values.html", record, contents)


def summary_lines(folder: Path) -> list[str]:
    """The verdict, and medians with their intervals."""
    values = ReferenceValues.model_validate_json((folder / VALUES).read_text())
    return words.opening(Record.read(folder / "record.json")) + lines(values)


def errors(values: ReferenceValues, pooled: ReferenceValues) -> list[dict[str, Any]]:
    """By measure and sex: how far the private percentiles lie from those of all patients without noise, where told."""
    rows = []
    for curve in values.curves:
        other = pooled.curve(curve.measure, curve.sex)
        row: dict[str, Any] = {"measure": curve.measure.words, "people": PEOPLE[curve.sex], "unit": curve.measure.unit}
        if curve.ages and other is not None:
            apart = np.abs(curve.percentiles(curve.ages) - other.percentiles(curve.ages)).mean(0)
            row |= {"told": f"{curve.ages[0]} to {curve.ages[-1]}", "apart": [float(one) for one in apart]}
        rows.append(row)
    return rows


def _chart(values: ReferenceValues, pooled: ReferenceValues, counted: list[Ventricle], sex: str) -> Figure:
    """The private curves; behind them every counted patient, and the 5th, 50th and 95th percentile without noise."""
    figure = figure_of(values, sex)
    for axes, measure in zip(figure.axes, values.settings.measures, strict=True):
        known = [(one.age, one.value(measure)) for one in counted if one.sex == sex]
        own = np.array([pair for pair in known if pair[1] is not None], np.float64).reshape(-1, 2)
        axes.plot(own[:, 0], own[:, 1], ".", color="#8a94a0", markersize=2.4, zorder=1)
        if (curve := pooled.curve(measure, sex)) is not None:
            _dashes(axes, curve)
    return figure


def _dashes(axes: Any, curve: Curve) -> None:
    for ages in stretches(curve.ages):
        axes.plot(ages, curve.percentiles(ages)[:, [0, 2, 4]], "--", color=TRUTH, linewidth=1.0, zorder=3)


def _patient(one: dict[str, Any], values: ReferenceValues) -> dict[str, Any]:
    """A patient held back, as the hospital's own page would show them."""
    found = Ventricle(**one["ventricle"])
    own: list[Place] = places(found, values)
    return {
        "name": one["patient"],
        "hospital": one["hospital"],
        "of": f"{'woman' if found.sex == 'F' else 'man'} of {int(found.age)}",
        "places": own,
        "chart": png(figure_of(values, found.sex, own)),
    }
