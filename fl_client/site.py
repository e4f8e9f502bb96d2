"""The hospital's own settings: one file that the hospital writes and the coordinator never sends.

What stands here decides what a study may cost at most, what name and size the hospital declares in public, and whether a
person has to say yes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from conf.study import Frozen
from fl_client.yaml_file import read_yaml


class Budget(Frozen):
    """The most that this hospital lets its patients' data cost, over all studies, for ever."""

    epsilon: Annotated[float, Field(gt=0)] = 10.0
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-3


class Site(Frozen):
    """One hospital, as it describes itself. Relative paths are relative to the settings file's folder."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    folder: Path  # holds cohort/, ledger.jsonl, approvals.jsonl and what the site keeps between rounds
    key_file: Path = Path("pseudonym.key")  # at least 16 random bytes, mode 0600; makes the pseudonyms
    declared_size: Annotated[int, Field(ge=1)]  # public: a round number near the cohort's size, never the exact count
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2  # share of patients that no training ever sees
    budget: Budget = Budget()
    approve_all: bool = False  # take part in every study within the budget; for rehearsals
    accept_no_privacy: bool = False  # let updates leave without noise (studies with privacy.kind none); for rehearsals
    noise_seed: int | None = None  # rehearsals only: repeatable noise. None draws from the operating system
    device: str = "auto"  # auto, cpu, cuda, cuda:1

    @classmethod
    def load(cls, path: Path | str) -> Site:
        """Read `site.yaml`. Raises `pydantic.ValidationError` for a wrong key or value, `ValueError` for what is no YAML."""
        path = Path(path)
        settings = read_yaml(path)
        for name, default in (("folder", "."), ("key_file", "pseudonym.key")):
            place = settings.get(name, default)
            settings[name] = (path.parent / place).resolve() if isinstance(place, str) else place
        return cls.model_validate(settings)

    def save(self, path: Path | str) -> None:
        """Write the settings as YAML with mode 0600."""
        path = Path(path)
        path.touch(mode=0o600)
        settings = self.model_dump(mode="json")
        settings["folder"] = str(self.folder.resolve())
        path.write_text(yaml.safe_dump(settings, sort_keys=False))

    @property
    def cohort_folder(self) -> Path:
        """Where the de-identified cases lie."""
        return self.folder / "cohort"

    @property
    def models_folder(self) -> Path:
        """Models that later studies lean on, each in a file `<fingerprint>.pt`."""
        return self.folder / "models"

    @property
    def ledger_path(self) -> Path:
        """The privacy ledger, append-only."""
        return self.folder / "ledger.jsonl"
