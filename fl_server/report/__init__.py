"""The study report for a clinician: one page and one PDF that say what was reached, for whom it holds, and what it cost.

It reads `record.json` and, where somebody could look at single test patients, `clinical.json` beside it. A coordinator of real
hospitals has the record alone; every section then says in a sentence why it has nothing to show.
"""

from __future__ import annotations

import os
from pathlib import Path

from fl_server.report.document import Document
from fl_server.report.findings import Findings

__all__ = ["HTML", "PDF", "compose", "write"]

HTML, PDF = "clinical_report.html", "clinical_report.pdf"
MOST_REASONS = 12
"""Of a verdict that is not complete, in the report's first lines."""


def write(folder: Path, *, to: Path | None = None) -> list[Path]:
    """Write both into `to` (default: the run folder itself) and return their paths.

    Raises `FileNotFoundError` without record.json, `ValueError` for a record or a clinical.json that this konsil can't read.
    """
    from fl_server.report.html import html
    from fl_server.report.pdf import pdf

    document = compose(Findings(folder))
    place = folder if to is None else to
    place.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in ((HTML, html(document).encode()), (PDF, pdf(document))):
        part = place / f"{name}.part"
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(place / name)
        paths.append(place / name)
    return paths


def compose(findings: Findings) -> Document:
    """The report, section by section, before it is a page."""
    from fl_server.report.checklist import checklist
    from fl_server.report.closing import limits, provenance
    from fl_server.report.cohort import cohort
    from fl_server.report.learned import learned
    from fl_server.report.privacy import privacy
    from fl_server.report.results import results
    from fl_server.report.trust import calibration, readers, rescans, uncertainty
    from fl_server.report.words import VERDICTS, printable

    record = findings.record
    kicker = "konsil study report for clinicians" + (f" · profile {record.profile}" if record.profile else "")
    return Document(
        title=printable(record.name),
        kicker=printable(kicker),
        outcome=record.verdict,
        verdict=VERDICTS[record.verdict],
        reasons=(*_first(record.reasons), *_first(record.remarks)),
        sections=(
            learned(findings),
            cohort(findings),
            results(findings),
            calibration(findings),
            uncertainty(findings),
            readers(findings),
            rescans(findings),
            privacy(findings),
            checklist(findings),
            limits(findings),
            provenance(findings),
        ),
    )


def _first(reasons: list[str]) -> tuple[str, ...]:
    """The first reasons, and how many more there are."""
    rest = len(reasons) - MOST_REASONS
    return (*reasons[:MOST_REASONS], *([f"and {rest} more, in record.json"] if rest > 0 else []))
