"""Who was there: the flow of patients, of hospitals and of their answers, with every loss named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from fl_server.record import SiteRecord
from fl_server.report import charts
from fl_server.report.document import Block, Figure, Section, Table, Text
from fl_server.report.findings import SITE, Findings
from fl_server.report.flow import SIDE, STEP, Step, flow, packed
from fl_server.report.learned import answers_in_words
from fl_server.report.words import count, listed


def cohort(findings: Findings) -> Section:
    """The section."""
    sites = findings.record.sites
    known = bool(sites) and all(site.cases_expected is not None and site.cases_used is not None for site in sites.values())
    blocks: list[Block] = [_patients(findings)] if known else _hospitals(findings)
    blocks.append(_table(findings))
    blocks += _answers(findings)
    return Section("Who was in the study", tuple(blocks))


def _sum(findings: Findings, take: Callable[[SiteRecord], int | None]) -> int:
    return sum(take(site) or 0 for site in findings.record.sites.values())


def _by_site(findings: Findings, take: Callable[[SiteRecord], int | None], *, all_of_them: bool = True) -> tuple[str, ...]:
    told = {name: take(site) or 0 for name, site in findings.record.sites.items()}
    return packed([f"{name} {n}" for name, n in told.items() if n or all_of_them], STEP if all_of_them else SIDE)


def _patients(findings: Findings) -> Block:
    """Where exact counts are known: patients from expected to tested."""
    expected, used = _sum(findings, lambda s: s.cases_expected), _sum(findings, lambda s: s.cases_used)
    refused, withdrawn = _sum(findings, lambda s: s.cases_refused), _sum(findings, lambda s: s.cases_withdrawn)
    lost = [f"refused at the door: {refused}", *(f"  {line}" for line in _by_site(findings, _refused, all_of_them=False))]
    withdrawals = any(site.cases_withdrawn is not None for site in findings.record.sites.values())
    lost += [f"withdrawn: {withdrawn if withdrawals else 'not told'}"]
    if rest := expected - used - refused - withdrawn:
        lost.append(f"not accounted for: {rest}")
    steps = [
        Step(
            f"Expected: {count(expected, 'patient')} in {count(len(findings.hospitals), 'hospital')}",
            _by_site(findings, lambda s: s.cases_expected),
            lost=f"Not let in: {expected - used}",
            lost_lines=tuple(lost),
        ),
        Step(f"Let in: {count(used, 'patient')}", _by_site(findings, lambda s: s.cases_used)),
    ]
    tested = findings.of(SITE)
    ends = []
    if tested:
        by_hospital = Counter(patient.hospital for patient in tested)
        training = used - len(tested)
        elsewhere = Counter(patient.hospital for patient in findings.patients if patient.role != SITE)
        width = charts.FULL / (3 if elsewhere else 2) - 12
        trained = [f"{name} {(site.cases_used or 0) - by_hospital[name]}" for name, site in findings.record.sites.items()]
        ends = [
            Step(f"Trained on: {training}", packed(trained, width)),
            Step(f"Held back, tested: {len(tested)}", packed([f"{n} {by_hospital[n]}" for n in findings.hospitals], width)),
        ]
        if elsewhere:
            others = packed([f"{name} {n}" for name, n in elsewhere.items()], width)
            ends.append(Step(f"Tested elsewhere: {sum(elsewhere.values())}", others))
    caption = "From the patients that the hospitals expected to those that the figures below are about."
    alt = f"{expected} patients expected, {refused} refused, {withdrawn} withdrawn, {used} let in, {len(tested)} tested."
    return Figure(flow(steps, ends), alt, caption)


def _refused(site: SiteRecord) -> int | None:
    return site.cases_refused


def _hospitals(findings: Findings) -> list[Block]:
    """Of a real study: hospitals, and what they declare in public."""
    answers = findings.answers()
    took_part = [name for name, row in answers.items() if "used" in row]
    sizes = tuple(
        f"{name}: {f'about {site.declared_size} patients' if site.declared_size else 'size not declared'}"
        for name, site in findings.record.sites.items()
    )
    others = {name: listed(list(dict.fromkeys(row))) for name, row in answers.items() if name not in took_part}
    missing = tuple(f"{name}: {kinds or 'no round was run'}" for name, kinds in others.items())
    steps = [
        Step(
            f"Asked to take part: {count(len(answers), 'hospital')}",
            sizes,
            lost=f"Never used: {len(missing)}",
            lost_lines=missing,
        ),
        Step(
            f"Used in at least one round: {count(len(took_part), 'hospital')}",
            tuple(f"{name}: {answers[name].count('used')} of {findings.planned_rounds} rounds" for name in took_part),
        ),
    ]
    alt = f"{len(answers)} hospitals were asked, {len(took_part)} were used in at least one round."
    return [
        Figure(flow(steps), alt, "From the hospitals that were asked to those whose answers made the model."),
        Text(
            "How many patients each hospital expected, let in and refused is not told: exact counts stay in the house, "
            "and every hospital can read its own in its ledger and on its page. Declared sizes are rounded and public.",
            "missing",
        ),
    ]


def _table(findings: Findings) -> Table:
    head = ("Hospital", "Scanner", "Declared", "Expected", "Let in", "Refused", "Withdrawn", "Tested")
    tested = Counter(patient.hospital for patient in findings.of(SITE))
    rows = [
        (
            name,
            site.scanner or "not told",
            *(_told(n) for n in (site.declared_size, site.cases_expected, site.cases_used, site.cases_refused)),
            _told(site.cases_withdrawn),
            str(tested[name]) if findings.patients else "not told",
        )
        for name, site in findings.record.sites.items()
    ]
    return Table(head, tuple(rows), (2, 2.4, 1.2, 1.2, 1, 1, 1.3, 1), words=2, caption="Patients by hospital")


def _told(n: int | None) -> str:
    return "not told" if n is None else str(n)


def _answers(findings: Findings) -> list[Block]:
    """Every planned hospital and round, accounted for."""
    planned = findings.planned_rounds * len(findings.hospitals)
    kinds = Counter(answer for row in findings.answers().values() for answer in row)
    not_run = planned - sum(kinds.values())
    parts = [f"{n} {kind}" for kind, n in sorted(kinds.items(), key=lambda item: (item[0] != "used", item[0]))]
    parts += [f"{not_run} in rounds that were not run"] if not_run > 0 else []
    text = f"The study planned {count(planned, 'answer')} of hospitals ({count(findings.planned_rounds, 'round')} of "
    text += f"{len(findings.hospitals)}): {listed(parts) or 'none came'}."
    blocks: list[Block] = [Text(text)]
    shown = not any((findings.folder / "overlays").glob("*.npz"))  # on the first page, where there is no picture of patients
    if findings.record.rounds and set(kinds) != {"used"} and not shown:
        legend = "One square for each hospital and round. Why an answer was not used stands in the reasons on the first page."
        blocks.append(Figure(charts.rounds(findings.answers()), answers_in_words(findings), legend))
    if findings.record.resumed:
        after = listed([str(one.after_round) for one in findings.record.resumed])
        blocks.append(Text(f"The coordinator was interrupted and went on after round {after}."))
    if findings.record.faults:
        n = count(len(findings.record.faults), "fault")
        blocks.append(Text(f"{n} were made on purpose, to see whether the study survives them.", "warning"))
    return blocks
