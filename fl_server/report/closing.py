"""The last pages: what the report does not show, and which software, settings and model it is about."""

from __future__ import annotations

import json

from fl_server.report.document import Bullets as Lines
from fl_server.report.document import Section, Table, Text
from fl_server.report.findings import LEAST_SEEDS, SITE, Findings
from fl_server.report.words import count, listed


def limits(findings: Findings) -> Section:
    """What this report does not show."""
    lines = [
        "Dice, distances and volumes measure agreement with a reader, not benefit to a patient. No diagnosis was made or "
        "tested.",
        "The model is for research only. It is not a medical device, and nobody may be treated by what it says.",
        "Several figures and groups are shown; none is corrected for their number.",
    ]
    if findings.rehearsal:
        lines.append(
            "The hospitals of this study are simulated on one computer. Generated scans are cleaner and more alike than "
            "real ones, and generated readers and second scans are the same program's work as the patients: agreement "
            "with them flatters."
        )
        if findings.patients:
            lines.append(
                "Single patients are in this report because a simulation may see them. From real hospitals they never come."
            )
    else:
        lines.append(
            "No coordinator of a real federation sees a single patient. What needs single patients (subgroups, "
            "calibration, doubt, readers, repeatability) has to be measured inside a hospital, by that hospital."
        )
    if findings.record.verdict != "complete":
        lines.append(
            f"The study ended {findings.record.verdict}: hospitals or rounds are missing from the model, as the reasons say."
        )
    if findings.seeds < LEAST_SEEDS:
        lines.append(f"{count(findings.seeds, 'training run')}: how much is the luck of the training can't be told.")
    tested = {patient.hospital for patient in findings.of(SITE)}
    empty = [name for name in findings.hospitals if findings.patients and name not in tested]
    if empty:
        lines.append(f"No test patient at {listed(empty)}: nothing is known about the model there.")
    return Section("What this does not show", (Lines(tuple(lines)),))


def provenance(findings: Findings) -> Section:
    """Versions and hashes."""
    record = findings.record
    rows = [
        ("Study", record.name),
        ("Study hash (SHA-256)", record.study_hash),
        ("Final model (SHA-256 of its arrays)", record.model_sha256 or "there is none"),
        ("Model the study began with", str(record.study.get("initial_model_sha256") or "freshly drawn weights")),
        ("Versions", ", ".join(f"{name} {version}" for name, version in record.versions.items()) or "not told"),
        ("Run on", ", ".join(part for part in (record.engine, record.device) if part) or "not told"),
        ("Begun and ended (UTC)", f"{record.started or 'not told'} – {record.ended or 'not told'}"),
        ("Training runs (seeds)", ", ".join(map(str, record.seeds or [record.seed]))),
        ("Schema of the record", record.schema_name),
    ]
    if findings.measured:
        rows.append(("Schema of single patients", findings.measured.schema_name))
    table = Table(("What", "Value"), tuple(rows), (1, 2.6), words=2)
    settings = json.dumps(record.study.get("task", {}), sort_keys=True)
    return Section("Versions and hashes", (table, Text(f"Settings of the task: {settings}", "fine")))
