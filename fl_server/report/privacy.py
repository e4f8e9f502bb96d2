"""The privacy statement, in words for a patient's doctor: what was promised, what it bounds, and what it does not promise."""

from __future__ import annotations

from math import exp
from typing import Any

from fl_server.record import Record
from fl_server.report.document import Block, Bullets, Section, Table, Text
from fl_server.report.findings import Findings
from fl_server.report.measures import best_guess, raised
from fl_server.report.words import epsilon, listed, number, printable, share

STRONG, REASONABLE = 1.0, 10.0
"""Epsilon up to which a guarantee is called strong, and reasonable: Ponomareva et al. 2023, JAIR 77:1113."""
PRIOR = 0.1


def privacy(findings: Findings) -> Section:
    """The section."""
    title = "Privacy: what this means for one patient"
    settings: dict[str, Any] = findings.record.study.get("privacy", {})
    if not findings.private:
        text = "This study made no privacy promise: what the hospitals sent was neither limited for each patient nor "
        text += "hidden in noise. Images stayed in the houses, but such updates can reveal images they were computed "
        text += "from."
        return Section(title, (Text(text, "warning"),))
    delta = float(settings.get("delta", 0.0))
    rows, worst = [], 0.0
    for name, site in findings.record.sites.items():
        if site.epsilon is None:
            rows.append((name, "not told", "–", "–", "–"))
            continue
        spent, own = site.epsilon, site.delta if site.delta is not None else delta
        worst = max(worst, spent)
        rows.append((name, epsilon(spent), _times(spent), share(best_guess(spent, own)), share(raised(PRIOR, spent))))
    promised = settings.get("epsilon")
    limit = f"Promised was ε of at most {epsilon(float(promised))} at δ = {delta:g}. " if promised is not None else ""
    meaning = (
        f"{limit}The unit is the patient: all images of one patient together. ε (epsilon) says how much more anybody who "
        "sees all that a hospital sent, and knows whatever else there is to know, can learn about whether one patient "
        f"took part: the odds can grow by at most the factor in the table. δ (delta) = {delta:g} is a small allowance by "
        "which this bound may be missed. ε = 0 would tell nothing; smaller is better."
    )
    spent_column = "ε when last told" if _unheard(findings.record) else "ε spent"
    head = ("Hospital", spent_column, "Odds grow at most", "Best guess is right", f"From {share(PRIOR)} to at most")
    columns = (
        "Best guess is right: how often somebody who at first thinks both equally likely can at most be right about one "
        f"patient (50 % is a coin). Last column: how far a suspicion of {share(PRIOR)} can grow, δ left out. Both are "
        "limits over all attacks and all patients; attacks that are known reach less."
    )
    blocks: list[Block] = [Text(meaning), Table(head, tuple(rows), (2, 1, 1.6, 1.6, 1.7)), Text(columns, "fine")]
    blocks.append(
        Text(_strength(worst)) if worst else Text("No hospital told what it spent: none released anything.", "missing")
    )
    if unheard := _unheard(findings.record):
        blocks.append(
            Text(
                f"ε is what it was when the hospital last told: {listed(unheard)}. It was asked again later, and what it paid "
                "then, if it did, is not known here; the hospital's own ledger may say more."
            )
        )
    if findings.rehearsal and findings.seeds > 1:
        blocks.append(
            Text(
                f"The study was rehearsed {findings.seeds} times with other random numbers; this is the price of one run. "
                f"In earnest, {findings.seeds} runs would cost up to {findings.seeds} times as much.",
            )
        )
    blocks.append(Bullets(_not_promised(findings)))
    return Section(title, tuple(blocks))


def _unheard(record: Record) -> list[str]:
    """Hospitals that may have paid after they last told of their ledger, each with the question with which it told."""
    told = {name: record.told_in(name) for name in record.sites}
    return [f"{printable(name)} ({what})" for name, what in told.items() if what]


def _times(spent: float) -> str:
    factor = exp(min(spent, 700.0))
    return f"{number(factor, 1 if factor < 100 else 0)} times" if factor < 1e6 else "over a million times"


def _strength(worst: float) -> str:
    if worst <= STRONG:
        kind = "a strong promise"
    elif worst <= REASONABLE:
        kind = "what is usual for a trained model, and not a strong promise: the limits in the table alone rule out little"
    else:
        kind = "a weak promise: the limits in the table rule out almost nothing"
    return f"By the usual reading the highest ε here, {epsilon(worst)}, is {kind} (Ponomareva et al. 2023)."


def _not_promised(findings: Findings) -> tuple[str, ...]:
    lines = [
        "Not promised: that nothing is learned about patients of a kind. That people with a disease have such images is "
        "what the study is for, and it would come out the same without any one of them.",
        "Not promised: protection from the hospital's own staff, who see the images as always, or from what is published "
        "elsewhere.",
        "Not covered: a patient treated in two of the hospitals. The ε of both add up for that person.",
        "Not covered: other studies. Each hospital's ledger adds up what all of them spent and refuses what is over its "
        "own limit.",
    ]
    if findings.rehearsal:
        lines.append(
            "In a rehearsal the noise may be repeatable, so that a run can be done again; a hospital's own noise is not."
        )
    return tuple(lines)
