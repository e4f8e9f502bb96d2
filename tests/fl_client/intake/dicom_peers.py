"""Senders for tests of the DICOM door: small generated images, DCMTK's programs, certificates that last a day."""

from __future__ import annotations

import datetime
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from fl_client.intake.incoming import Incoming
from fl_client.intake.receive import DicomReceiver
from fl_client.site import DicomDoor, Peer
from simulation.federation.archive import dcmtk

SENDER = Peer(ae_title="PACS", address="127.0.0.1")


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if dcmtk(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed here: {', '.join(missing)}")


def image(number: int = 1, *, size: int = 16, **elements: Any) -> Dataset:
    """One MR slice of a person who does not exist; the same number gives the same bytes."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["image", str(number)])
    dataset.PatientName, dataset.PatientID = "Abendroth^Annelore", "MRN-0815"
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    dataset.Modality, dataset.InstanceNumber = "MR", number
    dataset.Rows = dataset.Columns = size
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.PixelData = np.random.default_rng(number).integers(0, 4096, (size, size)).astype("<u2").tobytes()
    dataset.update(elements)
    return dataset


def write_images(folder: Path, number: int, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(1, number + 1):
        image(i, **settings).save_as(folder / f"{i:04d}.dcm", enforce_file_format=True)
    return folder


@contextmanager
def open_door(identity: Path, *, fsync: bool = True, min_free_bytes: int = 0, **settings: Any) -> Iterator[DicomReceiver]:
    """The door on a port that the system chooses, with one peer unless told otherwise."""
    incoming = Incoming(identity, clean=identity.with_name("clean"), min_free_bytes=min_free_bytes, fsync=fsync)
    receiver = DicomReceiver(DicomDoor(**{"peers": (SENDER,), **settings}), incoming, port=0)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


def storescu(
    port: int, files: Path | Sequence[Path], *options: str, sender: str = "PACS", called: str = "KONSIL"
) -> subprocess.CompletedProcess[str]:
    """DCMTK's sender; `files` are files or a folder."""
    what = ["+sd", "+r", str(files)] if isinstance(files, Path) and files.is_dir() else None
    paths = [str(files)] if isinstance(files, Path) else [str(path) for path in files]
    command = [str(dcmtk("storescu")), "-R", "-v", "-aet", sender, "-aec", called, *options, "127.0.0.1", str(port)]
    arguments = [*command[:-2], *(what[:2] if what else []), *command[-2:], *(what[2:] if what else paths)]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60)


def answers(sent: subprocess.CompletedProcess[str], status: str = "Success") -> int:
    """How many images were answered with this status."""
    return (sent.stdout + sent.stderr).count(f"Received Store Response ({status}")


def originals(identity: Path) -> list[Path]:
    return sorted((identity / "incoming").rglob("*.dcm"))


def certificates(folder: Path) -> dict[str, Path]:
    """An authority, two certificates that it signed, and one that signed itself; files by name."""
    folder.mkdir()
    files: dict[str, Path] = {}
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("authority", authority_key, "authority", authority_key, authority=True)
    pairs = {"ours": authority_key, "theirs": authority_key, "stranger": None}
    files["authority.crt"] = folder / "authority.crt"
    files["authority.crt"].write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    for name, signer in pairs.items():
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = "authority" if signer is not None else name
        certificate = _certificate(name, key, issuer, signer or key)
        files[f"{name}.crt"], files[f"{name}.key"] = folder / f"{name}.crt", folder / f"{name}.key"
        files[f"{name}.crt"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files[f"{name}.key"].write_bytes(
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
    return files


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    signer: ec.EllipticCurvePrivateKey,
    *,
    authority: bool = False,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(signer, hashes.SHA256())
    )
