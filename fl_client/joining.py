"""`konsil-site join`: make the hospital's key and have the coordinator register it.

With a token, which the coordinator's person gave to the hospital's by other means, the public key is sent to the coordinator's
`/konsil/join`. Without one it is printed, and the coordinator's person registers it by hand.
"""

from __future__ import annotations

import json
import os
import shutil
import ssl
from pathlib import Path

import httpx
import yaml

from fl_client.keys import make_key, public_key
from fl_client.sharing import is_shared
from fl_client.site import Coordinator, Site
from fl_client.supernode import require_this_machine
from fl_client.yaml_file import read_yaml

REFUSED_CHARACTERS = 500
"""At most so much of the coordinator's answer is shown."""


class JoinRefused(ValueError):
    """The coordinator did not register this hospital's key."""


def join(settings: Path, *, token: str = "", address: str = "", root_certificates: Path | None = None) -> int:
    """Write the coordinator down, make a key if there is none, and register it with `token` or print it.

    `address` (HOST:PORT) and `root_certificates` are needed where `site.yaml` names no coordinator yet; the file of
    certificates is copied beside it. Where the group shares the house's folder, the intake's user writes the coordinator down
    (an address and no token), and the trainer's makes the key. Raises `ValueError` in words, `JoinRefused` for a coordinator
    that says no, and `OSError`.
    """
    site = Site.load(settings)
    if address:
        site = _write_down(settings, site, address, root_certificates)
    coordinator = site.coordinator
    if coordinator is None:
        raise ValueError(f"{settings} names no coordinator yet: add --coordinator HOST:PORT --root-certificates ca.crt")
    if not coordinator.key.exists():
        if address and not token and is_shared(site.folder):
            print(f"{settings} names the coordinator now; next: konsil-site join - as the trainer's user, whose key it will be")
            return 0
        make_key(coordinator.key, comment=site.name)
        print(f"wrote {coordinator.key} (readable by you alone) and its public half {coordinator.key}.pub")
    line = f"{public_key(coordinator.key)} {site.name}"
    if not token:
        print(f"the coordinator has to register this key for {site.name}:\n{line}")
        return 0
    register(site, coordinator, token=token, line=line)
    print(f"{coordinator.address} has registered {site.name}; next: konsil-site check, konsil-site start")
    return 0


def register(site: Site, coordinator: Coordinator, *, token: str, line: str) -> None:
    """Send the public key with the token. Raises `JoinRefused` with its reason, `ValueError` if nobody answers."""
    from fl_client.reach import in_words  # here: it builds on this module

    asked = {"token": token, "name": site.name, "public_key": line}
    try:
        with client(coordinator) as talk:
            answer = talk.post("/konsil/join", json=asked)
    except httpx.HTTPError as error:
        raise ValueError(f"{coordinator.address}: {in_words(error)}") from None
    if answer.status_code != httpx.codes.OK:
        raise JoinRefused(f"{coordinator.address} did not register {site.name}: {reason(answer)}")


def client(coordinator: Coordinator, *, timeout_s: float = 60.0) -> httpx.Client:
    """A connection to the coordinator's own endpoints. Raises `ValueError` for missing certificates, `OSError`."""
    if coordinator.root_certificates is None:
        require_this_machine(coordinator.address)
        return httpx.Client(base_url=f"http://{coordinator.address}", timeout=timeout_s)
    return httpx.Client(base_url=f"https://{coordinator.address}", verify=tls_context(coordinator), timeout=timeout_s)


def tls_context(coordinator: Coordinator) -> ssl.SSLContext:
    """Trust in the coordinator's authority and in no other. Raises `ValueError` for a file that holds no certificates."""
    path = coordinator.root_certificates
    if path is not None and path.is_dir():
        raise ValueError(f"{path} is a folder; name the file with the certificate of the coordinator's authority")
    try:
        return ssl.create_default_context(cafile=path)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: it holds the certificate of the coordinator's authority") from None
    except ssl.SSLError as error:
        raise ValueError(f"{path} holds no certificates: {error}") from None


def reason(answer: httpx.Response) -> str:
    """What the coordinator said, cut to a line that can be printed."""
    try:
        told = str(json.loads(answer.text)["reason"])
    except (ValueError, KeyError, TypeError):
        told = answer.text or answer.reason_phrase
    return f"{answer.status_code} {''.join(c if c.isprintable() else ' ' for c in told[:REFUSED_CHARACTERS])}"


def _write_down(settings: Path, site: Site, address: str, root_certificates: Path | None) -> Site:
    """Add the coordinator to the settings file, whose other lines and comments stay as they are."""
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise ValueError(f"the coordinator's address is HOST:PORT, such as coordinator.example.org:8443, not {address!r}")
    said = Coordinator(address=address, root_certificates=root_certificates)
    if site.coordinator is not None:
        if site.coordinator.address == address:
            return site
        raise ValueError(f"{settings} names the coordinator {site.coordinator.address} already; change it there, by hand")
    if "coordinator" in read_yaml(settings):
        raise ValueError(f"{settings} has an empty section coordinator; take it out, or fill it in by hand")
    section: dict[str, str] = {"address": said.address}
    if root_certificates is not None:
        tls_context(said)
        own = settings.parent / "coordinator.crt"
        if root_certificates.resolve() != own.resolve():
            shutil.copyfile(root_certificates, own)
            _as_closed_as(own, settings)
        section["root_certificates"] = own.name
    else:
        require_this_machine(address)
    section["key"] = os.path.relpath(site.folder / "node.key", settings.parent) if is_shared(site.folder) else "node.key"
    old = settings.read_text()
    new = old + ("" if old.endswith("\n") else "\n") + yaml.safe_dump({"coordinator": section}, sort_keys=False)
    part = settings.with_name(f"{settings.name}.{os.getpid()}.part")
    part.touch(mode=0o600)
    part.write_text(new)
    _as_closed_as(part, settings)
    Site.load(part)  # else the old file stays
    part.replace(settings)
    return Site.load(settings)


def _as_closed_as(new: Path, old: Path) -> None:
    """Give a file the mode and group of another: the other role reads the settings by its group."""
    info = old.stat()
    if new.stat().st_gid != info.st_gid:
        try:
            os.chown(new, -1, info.st_gid)
        except PermissionError:
            raise ValueError(f"you are not in the group of {old} (gid {info.st_gid}); let its owner do this") from None
    new.chmod(info.st_mode & 0o777)
