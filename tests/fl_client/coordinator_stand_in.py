"""A real SuperLink on loopback, with TLS and node authentication, for tests of a hospital's side.

It is Flower's own, without konsil's gate: hospitals dial it directly. Certificates are made with `openssl`'s rules by
`cryptography`; ports come from the kernel.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_authority(folder: Path, *, days: int = 30) -> None:
    """`ca.crt`, and `server.pem` with `server.key` for 127.0.0.1 that it signed; valid until in `days` days."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    begin, end = now - datetime.timedelta(days=60), now + datetime.timedelta(days=days)

    def start(subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, ends: datetime.datetime) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(ends)
        )

    authority, server = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    usage |= {"encipher_only": False, "decipher_only": False}
    ca = (
        start("test ca", "test ca", authority, now + datetime.timedelta(days=365))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = (
        start("localhost", "test ca", server, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(ca.public_bytes(Encoding.PEM))
    (folder / "server.pem").write_bytes(leaf.public_bytes(Encoding.PEM))
    key = server.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "server.key").touch(mode=0o600)
    (folder / "server.key").write_bytes(key)


class StandIn:
    """One SuperLink in a folder; `with StandIn(folder) as link:`."""

    def __init__(self, folder: Path, *, days: int = 30) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.ca = folder / "ca.crt"
        write_authority(folder, days=days)
        self.home = folder / "flower home"
        self.home.mkdir(exist_ok=True)
        connection = f'[superlink.here]\naddress = "{self.address}"\nroot-certificates = "{self.ca}"\n'
        (self.home / "config.toml").write_text(connection)
        self.environment = {
            **os.environ,
            "FLWR_HOME": str(self.home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "KONSIL_RUNS": str(folder / "runs"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> StandIn:
        self.log = open(self.folder / "superlink.log", "ab")  # noqa: SIM115
        command = [BIN / "flower-superlink", "--host", "127.0.0.1", "--port", str(self.port), "--enable-supernode-auth"]
        command += ["--ssl-ca-certfile", self.ca, "--ssl-certfile", self.folder / "server.pem"]
        command += ["--ssl-keyfile", self.folder / "server.key", "--database", self.folder / "state.db"]
        command += ["--disable-runtime-dependency-installation"]
        self.process = subprocess.Popen(
            [str(part) for part in command], env=self.environment, stdout=self.log, stderr=self.log, cwd=self.folder
        )
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return self
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.1)
        raise RuntimeError(f"no SuperLink: {(self.folder / 'superlink.log').read_text()[-2000:]}")

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.log.close()

    def __enter__(self) -> StandIn:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def flwr(self, *arguments: str, timeout_s: float = 60) -> str:
        """Flower's own command against this SuperLink."""
        done = subprocess.run(
            [str(BIN / "flwr"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"flwr {arguments}: {done.stdout}{done.stderr}")
        return done.stdout

    def register(self, public_key: Path, name: str) -> None:
        self.flwr("supernode", "register", str(public_key), "here", "--name", name)

    def submit(self, app: Path, study: str, *, enrol_timeout_s: int = 60) -> str:
        """Start a run of the app in this folder; its id."""
        config = self.folder / "run.toml"
        config.write_text(f"study = {json.dumps(study)}\nenrol-timeout-s = {enrol_timeout_s}\n")
        told = self.flwr("run", str(app), "here", "--run-config", str(config))
        found = re.search(r"run (\d+)", told)
        if not found:
            raise RuntimeError(told)
        return found.group(1)
