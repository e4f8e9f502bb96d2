"""What a person at the hospital has said about studies: yes or no, to one hash, at a stated price.

A study that comes for the first time is put down in `studies/` to be read; who decides writes one line in
`approvals.jsonl`. Nothing is run under a hash that nobody said yes to, unless the site's own settings say so. One yes is good
for the study's rounds once: a coordinator that starts anew, or asks for rounds again, has to be approved again, because every
repetition costs privacy.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from conf.study import Study
from fl_client.audit import AuditLog
from fl_client.site import Site

log = logging.getLogger("konsil.approval")

Decision = Literal["approved", "declined"]


class Declined(Exception):
    """The hospital does not do what it was asked. The text goes to the coordinator: it names no patient and no file."""


class Approval(BaseModel):
    """One line of `approvals.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hash: str
    study: str  # its name, for the reader
    decision: Decision
    who: str
    when: str  # ISO 8601, UTC
    epsilon: float | None  # the price that was named at the time of the decision; None: a study without privacy
    paid: int = 0  # rounds of the study that stood in the ledger then: a yes covers the study's rounds from there on
    scored: int = 0  # releases of scores that stood there: a yes covers one more
    validated: int = 0  # scores between rounds that stood there: a yes covers as many more as the study asks for
    crossed: int = 0  # models judged for the matrix that stood there: a yes covers the study's models once more
    until: str | None = None  # the last day of a yes, YYYY-MM-DD, UTC; None: until its rounds are done


class Approvals:
    """The studies a hospital has been asked to join, and what was decided. The last line about a hash counts."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "approvals.jsonl"
        self.studies_folder = folder / "studies"

    def put_down(self, study: Study) -> None:
        """Keep the study's text, so that a person can read what was asked. A copy that a power failure emptied is made anew."""
        self.studies_folder.mkdir(parents=True, exist_ok=True)
        path = self.studies_folder / f"{study.hash}.json"
        if not path.exists() or path.stat().st_size == 0:
            part = path.with_suffix(f".{os.getpid()}.part")
            with open(part, "w") as file:
                file.write(study.to_json())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)

    def find(self, start_of_hash: str) -> Study:
        """The study that was put down under this hash, or the only one whose hash starts so. Raises `ValueError`."""
        found = [study for key, study in self.studies.items() if start_of_hash and key.startswith(start_of_hash)]
        if len(found) != 1:
            raise ValueError(f"{len(found)} studies have a hash that starts with '{start_of_hash}'; name one in full")
        return found[0]

    @property
    def studies(self) -> dict[str, Study]:
        """Every study that was put down and can be read, by hash. One that can't hides no other; the log names its file."""
        found = {}
        for path in sorted(self.studies_folder.glob("*.json")):
            try:
                found[path.stem] = Study.from_json(path.read_text())
            except (
                OSError,
                ValueError,
                TypeError,
            ) as error:  # an older konsil's, another user's, or emptied
                log.warning("%s can't be read and is left out: %s", path, type(error).__name__)
        return found

    def decide(
        self,
        study: Study,
        decision: Decision,
        *,
        who: str,
        epsilon: float | None,
        paid: int = 0,
        scored: int = 0,
        validated: int = 0,
        crossed: int = 0,
        until: str | None = None,
    ) -> Approval:
        """Write the decision, and make sure that it is on the disk.

        `paid` rounds, `scored` scores, `validated` scores between rounds and `crossed` models of the matrix stand in the
        ledger. A yes is good until the end of the day `until` (YYYY-MM-DD, UTC). The audit log gets its line first.
        A line that a crash left half-written is cut off first: whoever was deciding had not been told that it was done.
        """
        when = datetime.now(UTC).isoformat(timespec="seconds")
        line = Approval(
            hash=study.hash,
            study=study.name,
            decision=decision,
            who=who,
            when=when,
            epsilon=epsilon,
            paid=paid,
            scored=scored,
            validated=validated,
            crossed=crossed,
            until=until,
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        AuditLog(self.path.parent / "audit.jsonl").append(
            decision, study=study.hash, name=study.name, who=who, epsilon=epsilon, until=until
        )
        with open(self.path, "a+b") as file:  # every write goes to the end
            fcntl.flock(file, fcntl.LOCK_EX)  # or a line that another process is writing might be cut
            file.seek(0)
            file.truncate(len(_whole_lines(file.read())))
            file.write(line.model_dump_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        return line

    @property
    def decisions(self) -> dict[str, Approval]:
        """The decision in force for each hash. A half-written last line is none. Raises `ValueError` naming a wrong line."""
        if not self.path.exists():
            return {}
        lines = []
        for number, line in enumerate(_whole_lines(self.path.read_bytes()).splitlines(), start=1):
            try:
                lines.append(Approval.model_validate(json.loads(line)))
            except ValueError:
                raise ValueError(f"{self.path} line {number} is not a decision; a person has to look") from None
        return {line.hash: line for line in lines}


def _whole_lines(data: bytes) -> bytes:
    """`data` up to the end of its last whole line."""
    return data[: data.rfind(b"\n") + 1]


def require_approval(site: Site, study: Study, *, paid: int, wanted: int) -> None:
    """Return if the hospital takes part in `wanted` further rounds of this study; otherwise raise `Declined` with the reason.

    `paid` rounds of it stand in the ledger.
    """
    approval = in_force(site, study)
    if approval is None:
        return
    left = approval.paid + study.rounds - paid
    if wanted > left:
        raise Declined(
            f"of the {study.rounds} rounds of study {study.name} ({study.hash[:12]}) that {site.name} approved, {left} are "
            f"left; {wanted} need another approval"
        )


def require_approved_scores(site: Site, study: Study, *, scored: int) -> None:
    """Return if the hospital gives the study's scores; otherwise raise `Declined`. `scored` of them stand in the ledger."""
    if not study.privacy.evaluation_share:
        raise Declined(f"study {study.name} sets nothing of its promise aside for scores (privacy.evaluation_share is 0)")
    approval = in_force(site, study)
    if approval is not None and scored > approval.scored:
        raise Declined(
            f"{site.name} has given the scores of study {study.name} ({study.hash[:12]}) that it approved; "
            "more need another approval"
        )


def require_approved_validations(site: Site, study: Study, *, validated: int, wanted: int) -> None:
    """Return if the hospital gives `wanted` further scores between rounds; otherwise raise `Declined`.

    `validated` of them stand in the ledger.
    """
    if not study.validations:
        raise Declined(f"study {study.name} asks for no scores between rounds (it has no validation)")
    approval = in_force(site, study)
    if approval is not None and wanted > (left := approval.validated + study.validations - validated):
        raise Declined(
            f"of the {study.validations} scores between rounds of study {study.name} ({study.hash[:12]}) that {site.name} "
            f"approved, {left} are left; {wanted} need another approval"
        )


def require_approved_matrix(site: Site, study: Study, *, crossed: int, wanted: int) -> None:
    """Return if the hospital judges `wanted` further models for the study's matrix; otherwise raise `Declined`.

    `crossed` of them stand in the ledger.
    """
    if not study.privacy.matrix_share:
        raise Declined(f"study {study.name} sets nothing of its promise aside for a matrix (privacy.matrix_share is 0)")
    approval = in_force(site, study)
    models = len(study.sites) + 1
    if approval is not None and wanted > (left := approval.crossed + models - crossed):
        raise Declined(
            f"of the {models} models of the matrix of study {study.name} ({study.hash[:12]}) that {site.name} approved, {left} "
            f"are left; {wanted} need another approval"
        )


def in_force(site: Site, study: Study) -> Approval | None:
    """The yes in force, or None where nobody is asked. Raises `Declined` in every other case."""
    if site.name not in study.sites:
        raise Declined(f"study {study.name} does not name {site.name} among its sites")
    if study.privacy.kind == "none" and not site.accept_no_privacy:
        raise Declined(f"study {study.name} has privacy.kind 'none'; {site.name} lets nothing leave without noise")
    approvals = Approvals(site.folder)
    approvals.put_down(study)
    approval = approvals.decisions.get(study.hash)
    if approval is None:
        if site.approve_all:
            return None
        raise Declined(f"nobody at {site.name} has approved study {study.name} ({study.hash[:12]}) yet")
    if approval.until is not None and f"{datetime.now(UTC):%Y-%m-%d}" > approval.until:
        raise Declined(f"the yes of {site.name} to study {study.name} ({study.hash[:12]}) was good until {approval.until}")
    if approval.decision == "declined":
        raise Declined(f"{site.name} declined study {study.name} ({study.hash[:12]}) on {approval.when[:10]}")
    return approval
