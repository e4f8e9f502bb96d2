"""The hospital's own settings: one file that the hospital writes and the coordinator never sends.

What stands here decides what a study may cost at most, what name and size the hospital declares in public, and whether a
person has to say yes first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, Field, model_validator

from conf.study import Frozen, SiteName
from fl_client.yaml_file import read_yaml

AETitle = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,16}$")]
Port = Annotated[int, Field(ge=1, le=65535)]
Modality = Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,16}$")]


def _web_address(text: str) -> str:
    """An address that starts with https://, or http:// on this machine, without the / at its end."""
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or parts.query or parts.fragment or "@" in parts.netloc or not text.isascii() or not text.isprintable():
        raise ValueError("an address such as https://pacs.clinic.example/dicom-web is right, without a password in it")
    if parts.scheme != "https" and not (parts.scheme == "http" and host in ("127.0.0.1", "::1", "localhost")):
        raise ValueError("it must begin with https://: images and names would go through the network for everybody to read")
    return text.rstrip("/")


_PATHS = {
    "": ("folder", "key_file", "identity_folder", "quality_reference"),
    "arrivals": ("watch", "series_rules"),
    "coordinator": ("root_certificates", "key"),
    "dicom tls": ("certificate", "key", "authority"),
    "archive tls": ("certificate", "key", "authority"),
    "dicomweb": ("credentials", "authority", "certificate", "key"),
}
"""Settings that are paths, by section: relative ones are relative to the settings file's folder."""


class Budget(Frozen):
    """The most that this hospital lets its patients' data cost, over all studies, for ever."""

    epsilon: Annotated[float, Field(gt=0)] = 10.0
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-3


class Peer(Frozen):
    """A DICOM node that may send images here, or that results are sent to."""

    ae_title: AETitle
    address: str  # IP address; a title alone is no security
    port: Port = 104


class TransportSecurity(Frozen):
    """Files for mutual TLS: our certificate and key, and the authority that signed the other side's."""

    certificate: Path
    key: Path
    authority: Path


class DicomDoor(Frozen):
    """The port at which the archive delivers images (C-STORE) and asks whether anybody is there (C-ECHO)."""

    ae_title: AETitle = "KONSIL"
    host: str = "127.0.0.1"  # the address of the hospital's own network that it listens on
    port: Port = 11112
    peers: tuple[Peer, ...] = ()  # who may send; nobody else is let in
    tls: TransportSecurity | None = None
    max_associations: Annotated[int, Field(ge=1, le=100)] = 8


class Arrivals(Frozen):
    """What becomes of images that have arrived."""

    quiet_s: Annotated[float, Field(gt=0)] = 60.0  # a study is complete when nothing of it has come for so long
    min_free_gib: Annotated[float, Field(ge=0)] = 5.0  # with less room on the disk nothing is accepted
    watch: Path | None = None  # a folder whose files are taken in as if they had been sent
    keep_originals_days: Annotated[float, Field(ge=0)] = 0.0  # how long originals stay after they were de-identified
    series_rules: Path | None = None  # as --series-rules of konsil-site admit
    labels: str | None = None  # as --labels: the name of a label map, or a file
    retain: tuple[Literal["dates", "device", "descriptors", "characteristics"], ...] = ("dates", "descriptors")  # of PS3.15
    accept_faces: bool = False  # let images of the head in, from which a face can be made; else they go to quarantine


class Coordinator(Frozen):
    """Whom this hospital dials. It opens connections to nobody else."""

    address: str  # HOST:PORT
    root_certificates: Path | None = None  # None: no TLS, which only a rehearsal on one machine may do
    key: Path = Path("node.key")  # this hospital's own key, which the coordinator has registered


class Page(Frozen):
    """The hospital's own page, for its own people."""

    host: str = "127.0.0.1"
    port: Port = 8787
    names: tuple[str, ...] = ()  # other names that a proxy with TLS in front of it has; it answers under no further ones


class Archive(Frozen):
    """Where masks and reports go back to, for research use only."""

    peer: Peer
    ae_title: AETitle = "KONSIL"  # how we call ourselves
    tls: TransportSecurity | None = None


class SavedQuery(Frozen):
    """Studies that are fetched again and again: of the last `days`, and of what else is set, all of it."""

    days: Annotated[int, Field(ge=0, le=36500)]  # by StudyDate; 0 is today alone
    modality: Modality | None = None  # a study that has a series of it
    description: Annotated[str, Field(min_length=1, max_length=64)] | None = None  # of the study; * stands for anything


class DicomWeb(Frozen):
    """The archive's DICOMweb door, from which `konsil-site pull` fetches studies (QIDO-RS, WADO-RS)."""

    url: Annotated[str, AfterValidator(_web_address)]  # where /studies lies: https://pacs.clinic.example/dicom-web
    credentials: Path | None = None  # a file of mode 0600 with `token`, or with `user` and `password`
    authority: Path | None = None  # whose certificates are trusted; None: those that this machine trusts
    certificate: Path | None = None  # ours, where the archive asks for one, with its key
    key: Path | None = None
    modalities: tuple[Modality, ...] = ("CT", "MR", "PT", "RTSTRUCT", "SEG")  # of series that are fetched; others stay there
    connections: Annotated[int, Field(ge=1, le=8)] = 2
    largest_mib: Annotated[int, Field(ge=1, le=16384)] = 1024  # of one instance, which is held in memory while it comes
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0  # without a byte from the archive
    most_studies: Annotated[int, Field(ge=1, le=10000)] = 500  # in one pull; more are refused rather than fetched
    queries: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")], SavedQuery] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: set both, or neither")
        return self


class Site(Frozen):
    """One hospital, as it describes itself. Relative paths are relative to the settings file's folder."""

    name: SiteName
    folder: Path  # holds cohort/, ledger.jsonl, approvals.jsonl and what the site keeps between rounds
    key_file: Path = Path("pseudonym.key")  # at least 16 random bytes, mode 0600; makes the pseudonyms
    declared_size: Annotated[int, Field(ge=1, le=10_000_000)]  # public: a round number near the true one, never that
    test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.2  # share of patients that no training ever sees
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.15  # of the others: who don't train where a study validates
    budget: Budget = Budget()
    approve_all: bool = False  # take part in every study within the budget; for rehearsals
    accept_no_privacy: bool = False  # let updates leave without noise (studies with privacy.kind none); for rehearsals
    noise_seed: int | None = None  # rehearsals only: repeatable noise. None draws from the operating system
    device: str = "auto"  # auto, cpu, cuda, cuda:1
    identity_folder: Path = Path("identity")  # originals, quarantine and the way back to patients: the intake's alone
    minimum_cohort: Annotated[int, Field(ge=1)] = 10  # with fewer usable patients nobody here can approve a study
    quality_reference: Path | None = None  # ranges that the images' quality is compared with; None: those that konsil brings
    dicom: DicomDoor | None = None
    arrivals: Arrivals = Arrivals()
    coordinator: Coordinator | None = None
    page: Page | None = None
    archive: Archive | None = None
    dicomweb: DicomWeb | None = None

    @classmethod
    def load(cls, path: Path | str) -> Site:
        """Read `site.yaml`. Raises `pydantic.ValidationError` for a wrong key or value, `ValueError` for what is no YAML."""
        path = Path(path)
        settings = read_yaml(path)
        for name, default in (("folder", "."), ("key_file", "pseudonym.key"), ("identity_folder", "identity")):
            settings.setdefault(name, default)
        for section, names in _PATHS.items():
            part: Any = settings
            for key in section.split():
                part = part.get(key) if isinstance(part, dict) else None
            for name in names if isinstance(part, dict) else ():
                if isinstance(part.get(name), str):
                    part[name] = (path.parent / part[name]).resolve()
        arrivals = settings.get("arrivals")
        labels = arrivals.get("labels") if isinstance(arrivals, dict) else None
        if isinstance(arrivals, dict) and isinstance(labels, str) and Path(labels).suffix:  # a file, and not the name of a map
            arrivals["labels"] = str((path.parent / labels).resolve())
        return cls.model_validate(settings)

    def save(self, path: Path | str) -> None:
        """Write the settings as YAML with mode 0600."""
        path = Path(path)
        path.touch(mode=0o600)
        settings = self.model_dump(mode="json", exclude_none=True)
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
    def reference_values_path(self) -> Path:
        """Percentile curves by age and sex that patients here are compared with, if the hospital keeps any."""
        return self.folder / "reference_values.json"

    @property
    def ledger_path(self) -> Path:
        """The privacy ledger, append-only."""
        return self.folder / "ledger.jsonl"
