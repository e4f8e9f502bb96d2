"""The door between Flower's SuperNode and our worker: an address on this machine that no other user can use or pretend to be.

The SuperNode hands out the coordinator's messages at a port on 127.0.0.1, which every local user can reach. A shared secret
keeps others from taking messages, and a certificate made anew at every start keeps them from handing any to the worker. All of
it lies in one folder of mode 0700:

    address.json  secret  certificate.pem  certificate.key
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Loopback:
    """Where the SuperNode listens, and how both sides know each other."""

    folder: Path
    port: int

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.port}"

    @property
    def secret_file(self) -> Path:
        """Who takes messages signs its requests with these bytes."""
        return self.folder / "secret"

    @property
    def certificate(self) -> Path:
        """Of the SuperNode's side; its own authority."""
        return self.folder / "certificate.pem"

    @property
    def certificate_key(self) -> Path:
        """Its private key."""
        return self.folder / "certificate.key"

    @classmethod
    def make(cls, folder: Path) -> Loopback:
        """A free port, a new secret and a new certificate, for the SuperNode that starts now. Raises `OSError`."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        with socket.socket() as probe:
            probe.bind((HOST, 0))  # the kernel chooses; who takes the port before us only makes us start again
            made = cls(folder, probe.getsockname()[1])
        private = ec.generate_private_key(ec.SECP256R1())
        write_private(made.secret_file, secrets.token_bytes(32))
        write_private(made.certificate_key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        write_private(made.certificate, _self_signed(private).public_bytes(Encoding.PEM))
        write_private(
            folder / "address.json", json.dumps({"port": made.port, "pid": os.getpid()}).encode()
        )  # last: all is there
        return made

    @classmethod
    def read(cls, folder: Path) -> Loopback | None:
        """The door of the SuperNode that started last; None before the first one."""
        try:
            return cls(folder, int(json.loads((folder / "address.json").read_text())["port"]))
        except (OSError, ValueError, KeyError):
            return None


def write_private(path: Path, content: bytes) -> None:
    """Write a whole file of mode 0600 in place of an old one. Raises `OSError`."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(file, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(file)
    part.replace(path)


def _self_signed(private: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "konsil SuperNode")])
    now = datetime.datetime.now(datetime.UTC)
    public = private.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=3650))  # longer than any process lives; each start makes another
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(private, hashes.SHA256())
    )
