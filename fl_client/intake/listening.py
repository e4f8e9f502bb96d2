"""What the DICOM door needs before it can open: addresses that are numbers, and files for TLS that belong together.

The door is built from this, and `konsil-site check` asks the same: what it finds in order, the door doesn't refuse. No DICOM
library is imported, so that founding a hospital can use it, too.
"""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from fl_client.site import DicomDoor, TransportSecurity


@dataclass(frozen=True)
class Listening:
    """The door's settings, ready to be used."""

    host: str  # our own address in its usual form
    titles: Mapping[str, frozenset[str]]  # a peer's address: titles that may call from there
    tls: ssl.SSLContext | None

    @classmethod
    def of(cls, door: DicomDoor) -> Listening:
        """Raises `ValueError` in words for an address that is none and for files that are none, `PermissionError`."""
        titles: dict[str, set[str]] = {}
        for peer in door.peers:
            titles.setdefault(ip_address(peer.address), set()).add(peer.ae_title)
        host = ip_address(door.host, "dicom.host")
        names = {address: frozenset(known) for address, known in titles.items()}
        return cls(host, names, tls_context(door.tls) if door.tls else None)


def ip_address(text: str, setting: str = "dicom.peers") -> str:
    """An IP address in its usual form. Raises `ValueError` for a host name: names can be forged, and DNS be down."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        right = "a number such as 10.0.0.5 is right"
        raise ValueError(f"{setting}: {text!r} is no IP address, and names can be forged; {right}") from None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def out_of_reach(door: DicomDoor) -> list[str]:
    """Peers on other machines, if the door listens on this machine alone: they can never connect. Raises `ValueError`."""
    if not _is_here(ip_address(door.host, "dicom.host")):
        return []
    return [peer.address for peer in door.peers if not _is_here(ip_address(peer.address))]


def _is_here(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


def tls_context(files: TransportSecurity) -> ssl.SSLContext:
    """TLS 1.2 or newer in which both sides show a certificate.

    Raises `ValueError` in words for files that are missing, hold something else or don't belong together, `PermissionError`.
    """
    for name in ("certificate", "key", "authority"):
        path = getattr(files, name)
        try:
            path.open("rb").close()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise ValueError(f"dicom.tls.{name} {path} is missing") from None

    def encrypted() -> NoReturn:  # else OpenSSL asks at the terminal, where nobody is
        raise ValueError(f"dicom.tls.key {files.key} is locked with a password, and nobody is there to say it")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate, files.key, encrypted)
    except ssl.SSLError as error:
        pair = f"dicom.tls.certificate {files.certificate} and dicom.tls.key {files.key}"
        raise ValueError(f"{pair} are no certificate and its own key: {error.reason or error}") from None
    try:
        context.load_verify_locations(files.authority)
    except ssl.SSLError as error:
        raise ValueError(f"dicom.tls.authority {files.authority} holds no certificates: {error.reason or error}") from None
    context.verify_mode = ssl.CERT_REQUIRED
    return context
