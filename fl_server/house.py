"""The coordinator's folder: its settings, its keys, Flower's database and the studies' results.

`House.create` makes it once. `coordinator.yaml` says where the coordinator listens and what hospitals dial; everything
secret lies beside it with mode 0600. Nothing in it concerns a patient.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

import yaml
from pydantic import Field, field_validator, model_validator

from conf.study import Frozen
from fl_server import certificates
from fl_server.tracking import Tracking

SETTINGS = "coordinator.yaml"
LOOPBACK = "127.0.0.1"
Port = Annotated[int, Field(ge=1, le=65535)]
_NAME = re.compile(r"^(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9][A-Za-z0-9-]{0,62})*$")


class Page(Frozen):
    """Where the page about the studies listens, for the coordinator's own people; hospitals never reach it."""

    host: str = LOOPBACK
    port: Port = 8790
    names: tuple[str, ...] = ()  # further host names under which it answers: those of a proxy with TLS

    @property
    def address(self) -> str:
        """Where a browser on this machine finds it."""
        return f"http://[{self.host}]:{self.port}/" if ":" in self.host else f"http://{self.host}:{self.port}/"


class House(Frozen):
    """A coordinator, as it describes itself. Relative paths are relative to the settings file's folder."""

    folder: Path
    hosts: Annotated[tuple[str, ...], Field(min_length=1)]  # DNS names or IP addresses that hospitals dial
    public_port: Port  # ... and the port: that of the gate, or of a proxy before it
    listen: str = LOOPBACK  # address of the gate on this machine; 0.0.0.0 is every network that it has
    port: Port = 8443  # of the gate
    tls: bool = True  # false: plain HTTP on the loopback interface, for a proxy on this machine that ends TLS
    superlink_port: Port  # on the loopback interface, for the gate and the coordinator's own commands
    certificate: Path = Path("server.crt")
    key: Path = Path("server.key")
    authority: Path = Path("ca.crt")  # what hospitals get
    max_body_mib: Annotated[int, Field(ge=6, le=2047)] = 16  # of one request; Flower sends weights in pieces of 5 MiB
    request_timeout_s: Annotated[float, Field(gt=0)] = 120.0  # in which a request has to arrive
    max_connections: Annotated[int, Field(ge=8)] = 256
    enrol_timeout_s: Annotated[float, Field(ge=0)] = 600.0  # how long a study waits for hospitals that are not there
    quorum_timeout_s: Annotated[float, Field(ge=0)] = 14 * 86400.0  # ... while fewer than its quorum take part: people decide
    tracking: Tracking = Tracking()  # studies in MLflow and TensorBoard, where these are installed
    page: Page | None = None  # `serve` runs the page, too; true: with its defaults

    @field_validator("page", mode="before")
    @classmethod
    def _page_is_wanted(cls, page: object) -> object:
        return {True: Page(), False: None}.get(page, page) if isinstance(page, bool) else page

    @field_validator("hosts")
    @classmethod
    def _are_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if not _NAME.match(host) and not _is_address(host):
                raise ValueError(f"{host!r} is neither a DNS name nor an IP address")
        return hosts

    @model_validator(mode="after")
    def _plain_only_at_home(self) -> Self:
        if not _is_address(self.listen):
            raise ValueError(f"listen: {self.listen!r} is no IP address; 0.0.0.0 is every network of this machine")
        if not self.tls and not ipaddress.ip_address(self.listen).is_loopback:
            raise ValueError(f"tls: false is for a proxy on this machine; listen has to be {LOOPBACK}, not {self.listen}")
        if self.superlink_port == self.port:
            raise ValueError(f"port and superlink_port are both {self.port}; they must differ")
        if self.page is not None and self.page.port in (self.port, self.superlink_port):
            raise ValueError(f"page.port is {self.page.port}, as port or superlink_port is; they must differ")
        return self

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        hosts: Sequence[str],
        listen: str = LOOPBACK,
        port: int = 8443,
        public_port: int | None = None,
        tls: bool = True,
    ) -> House:
        """Make the folder, an authority, the server's certificate and the settings.

        Raises `FileExistsError` if the folder is a coordinator's already, `ValueError` for names that can't be.
        """
        folder = folder.resolve()
        if (folder / SETTINGS).exists():
            raise FileExistsError(f"{folder / SETTINGS} exists: a coordinator lives there; its keys are not replaced")
        house = cls(
            folder=folder,
            hosts=tuple(hosts),
            public_port=public_port or port,
            listen=listen,
            port=port,
            tls=tls,
            superlink_port=_free_port(besides=port),
            certificate=folder / "server.crt",
            key=folder / "server.key",
            authority=folder / "ca.crt",
        )
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority, authority_key = certificates.make_authority(house.hosts[0])
        certificates.write(authority, house.authority)
        certificates.write_key(authority_key, house.authority_key)
        house.renew()
        inner, inner_key = certificates.make_server([LOOPBACK], authority, authority_key, days=certificates.AUTHORITY_DAYS)
        certificates.write(inner, house.inner_certificate)
        certificates.write_key(inner_key, house.inner_key)
        for path in (house.control_key, house.executor_key):
            certificates.write_secret(secrets.token_hex(32).encode(), path)
        settings = house.model_dump(mode="json", exclude={"folder"})
        for name in ("certificate", "key", "authority"):
            settings[name] = Path(settings[name]).name
        (folder / SETTINGS).write_text(yaml.safe_dump(settings, sort_keys=False))
        return house

    @classmethod
    def load(cls, folder: Path) -> House:
        """Read `coordinator.yaml`. Raises `ValidationError` or `ValueError` in words, `FileNotFoundError` if there is none."""
        folder = folder.resolve()
        path = folder / SETTINGS
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file; `konsil-study init {folder} --host NAME` makes one")
        try:
            settings = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML: {error}") from None
        if not isinstance(settings, dict):
            raise ValueError(f"{path} must hold settings, one `name: value` in a line")
        for name in ("certificate", "key", "authority"):
            settings[name] = folder / str(settings.get(name, cls.model_fields[name].default))
        return cls.model_validate({**settings, "folder": folder})

    def renew(self) -> None:
        """Make a new server certificate and key, signed by the authority that hospitals trust already."""
        if not self.authority_key.exists():
            raise ValueError(f"{self.authority_key} is not there; a new certificate has to be signed with it")
        authority, authority_key = certificates.read(self.authority), certificates.read_key(self.authority_key)
        names = dict.fromkeys([*self.hosts, "localhost", LOOPBACK])
        certificate, key = certificates.make_server(list(names), authority, authority_key)
        certificates.write_key(key, self.key)
        certificates.write(certificate, self.certificate)

    @property
    def address(self) -> str:
        """HOST:PORT that hospitals dial."""
        host = self.hosts[0]
        return f"[{host}]:{self.public_port}" if ":" in host else f"{host}:{self.public_port}"

    @property
    def superlink(self) -> str:
        """HOST:PORT of Flower's SuperLink, on the loopback interface."""
        return f"{LOOPBACK}:{self.superlink_port}"

    @property
    def authority_key(self) -> Path:
        """Signs certificates; needed for `renew` alone, and may lie elsewhere between."""
        return self.folder / "ca.key"

    @property
    def inner_certificate(self) -> Path:
        """The SuperLink's own, for the loopback interface."""
        return self.folder / "superlink.crt"

    @property
    def inner_key(self) -> Path:
        """Key of `inner_certificate`."""
        return self.folder / "superlink.key"

    @property
    def control_key(self) -> Path:
        """What the coordinator's own commands show to the SuperLink's control API."""
        return self.folder / "control.key"

    @property
    def executor_key(self) -> Path:
        """What the process that starts studies shows to the SuperLink."""
        return self.folder / "executor.key"

    @property
    def database(self) -> Path:
        """Flower's: registered hospitals, runs, messages under way."""
        return self.folder / "state.db"

    @property
    def runs(self) -> Path:
        """A folder for each study, with its record and model."""
        return self.folder / "runs"

    @property
    def models(self) -> Path:
        """Weights that studies start from, each in a file `<fingerprint>.pt`."""
        return self.folder / "models"

    @property
    def tokens(self) -> Path:
        """Join tokens that were given out, as hashes."""
        return self.folder / "tokens.json"

    @property
    def flower_home(self) -> Path:
        """Where Flower unpacks apps."""
        return self.folder / "flower"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _free_port(*, besides: int) -> int:
    """A loopback port that nobody uses now, below those that the kernel gives to outgoing connections."""
    for _ in range(100):
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as probe:
            if port != besides and probe.connect_ex((LOOPBACK, port)) != 0:
                return port
    raise ValueError(f"found no free port between 20000 and 32000 on {LOOPBACK}")
