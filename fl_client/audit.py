"""The hospital's log of what happened: who decided what, and every message that left the house.

One chained line per happening (`fl_client.chain`), in `audit.jsonl` of the hospital's folder. Facts are names of studies,
hashes, sizes, and who at the hospital decided; never an identity or pseudonym of a patient: this is what a hospital shows to
others. Unlike the ledger it decides nothing.
"""

from __future__ import annotations

from pathlib import Path

from fl_client.chain import Body, Chain, ChainBroken

Fact = str | int | float | bool | None | list[str]


class AuditBroken(ChainBroken):
    """The log isn't what was written. A person has to look."""


class AuditLog:
    """The log at `path`; any number of processes may append."""

    def __init__(self, path: Path) -> None:
        self._chain = Chain(path, "audit log", AuditBroken)

    def append(self, happening: str, **facts: Fact) -> None:
        """Write one line; when this returns it is on the disk. Raises `OSError`, and `AuditBroken` for a damaged end."""
        self._chain.path.parent.mkdir(parents=True, exist_ok=True)
        with self._chain.end() as book:
            book.append({"happening": happening, **facts})

    @property
    def lines(self) -> tuple[Body, ...]:
        """Every line, oldest first, after checking the whole chain. Raises `AuditBroken` naming the first that isn't right."""
        return self._chain.bodies
