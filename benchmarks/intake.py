"""How fast images come in, beside DCMTK's storescp, and what becomes of files of many makers.

The same generated images go to our door, to storescp, and to our door without flushing to the disk, by the same storescu, in
turns. Then every file of KONSIL_DATA/dicom_files is taken in through the watch folder: each ends as a part of a case, in a
refusal, or in the quarantine, and no traceback is ever written.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from fl_client.intake.incoming import Incoming
from fl_client.site import DicomDoor, Peer, Site
from simulation.federation.archive import dcmtk

DATA = Path(os.environ.get("KONSIL_DATA", Path(__file__).parents[1] / "../shared/data"))


def generate(folder: Path, *, ct: int, mr: int) -> int:
    """Noise of 512 x 512 as CT and 256 x 256 as MR, 16 bits; the number of files."""
    rng = np.random.default_rng(0)
    for kind, modality, number, size in ((CTImageStorage, "CT", ct, 512), (MRImageStorage, "MR", mr, 256)):
        study, series = generate_uid(), generate_uid()
        for i in range(number):
            image = Dataset()
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = kind
            image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            image.PatientName, image.PatientID, image.Modality = "Abendroth^Annelore", "MRN-0815", modality
            image.StudyInstanceUID, image.SeriesInstanceUID, image.InstanceNumber = study, series, i + 1
            image.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            image.FrameOfReferenceUID = series
            image.ImagePositionPatient, image.ImageOrientationPatient = [0, 0, i], [1, 0, 0, 0, 1, 0]
            image.PixelSpacing, image.SliceThickness = [1, 1], 1
            image.Rows = image.Columns = size
            image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
            image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
            image.PixelData = rng.integers(0, 4096, (size, size)).astype("<u2").tobytes()
            image.save_as(folder / f"{modality}{i:04d}.dcm", enforce_file_format=True)
    return ct + mr


def serve(identity: Path, port: int, *, fsync: bool) -> None:
    """Our door in this process, until SIGTERM."""
    from fl_client.intake.receive import DicomReceiver

    peers = (Peer(ae_title="STORESCU", address="127.0.0.1"),)
    receiver = DicomReceiver(DicomDoor(peers=peers), Incoming(identity, clean=identity / "clean", fsync=fsync), port=port)
    receiver.start()
    used = resource.getrusage(resource.RUSAGE_SELF)
    before = used.ru_utime + used.ru_stime
    signal.sigwait({signal.SIGTERM})
    used = resource.getrusage(resource.RUSAGE_SELF)
    receiver.stop()
    (identity / "cpu_s").write_text(str(used.ru_utime + used.ru_stime - before))


def one_run(kind: str, images: Path, number: int, folder: Path) -> tuple[float, float]:
    """(images per second, CPU ms per image) of one receiver that gets all images once."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder.mkdir()
    if kind == "storescp":
        command = [str(dcmtk("storescp")), "-od", str(folder), str(port)]
    else:
        command = [sys.executable, __file__, "--serve", str(folder), "--port", str(port), "--receiver", kind]
    receiver = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _wait_for(port)
        began = time.perf_counter()
        sent = subprocess.run(
            [str(dcmtk("storescu")), "-aec", "KONSIL", "+sd", "127.0.0.1", str(port), str(images)],
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - began
        if sent.returncode:
            raise RuntimeError(f"storescu failed against {kind}: {sent.stderr[-500:]}")
        if kind == "storescp":
            ticks = Path(f"/proc/{receiver.pid}/stat").read_text().rpartition(")")[2].split()
            cpu_s = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
    finally:
        receiver.terminate()
        receiver.wait()
    if kind != "storescp":
        cpu_s = float((folder / "cpu_s").read_text())
    here = sum(path.is_file() and path.stat().st_size > 10_000 for path in folder.rglob("*"))
    if here != number:
        raise RuntimeError(f"{kind} holds {here} of {number} images")
    shutil.rmtree(folder)
    return number / seconds, 1000 * cpu_s / number


def _wait_for(port: int) -> None:
    for _ in range(300):
        listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout if shutil.which("ss") else ""
        if f":{port} " in listening:
            return
        time.sleep(0.1)
    raise RuntimeError("the receiver did not start within 30 seconds")


def deidentification_ms(images: Path, folder: Path) -> tuple[float, float]:
    """Median wall ms and mean CPU ms to de-identify one file, from disk to disk."""
    from fl_client.intake.clean import Cleaned, deidentify_file
    from fl_client.intake.deidentify import Deidentifier
    from fl_client.intake.way_back import WayBack

    folder.mkdir()
    key, way_back, times = Deidentifier(secrets.token_bytes(32)), WayBack(folder / "map.sqlite"), []
    cpu_before, some = time.process_time(), sorted(images.iterdir())[::5]
    for path in some:
        began = time.perf_counter()
        became = deidentify_file(path, folder / "clean", deidentify=key, way_back=way_back)
        times.append(time.perf_counter() - began)
        if not isinstance(became, Cleaned):
            raise RuntimeError(f"a generated image did not pass: {became.reason}")
    return 1000 * statistics.median(times), 1000 * (time.process_time() - cpu_before) / len(some)


def other_makers(files: Path, folder: Path) -> dict[str, int]:
    """What became of every file below a folder."""
    from fl_client.cohort import Cohort
    from fl_client.intake.arrivals import Arrivals
    from fl_client.intake.watch import WatchFolder

    folder.mkdir()
    key = folder / "pseudonym.key"
    key.write_text(secrets.token_hex(32))
    key.chmod(0o600)
    rules = folder / "series.yaml"
    rules.write_text("rules: [{name: mr}, {name: ct, modality: CT}]")  # whatever MR or CT series there is
    arrivals_settings = {"series_rules": rules, "min_free_gib": 0}
    site = Site.model_validate(
        {
            "name": "bench",
            "folder": folder,
            "key_file": key,
            "identity_folder": folder / "identity",
            "declared_size": 20,
            "arrivals": arrivals_settings,
        }
    )
    said = folder / "said.log"
    handler = logging.FileHandler(said)
    logging.getLogger().addHandler(handler)
    try:
        arrivals = Arrivals(site)
        incoming = Incoming(site.identity_folder, clean=arrivals.clean)
        counts: Counter[str] = WatchFolder(files, incoming, quiet_s=0).look(all_quiet=True)
        counts += arrivals.work(all_quiet=True)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    cohort = Cohort(site.cohort_folder)
    files_in = sum(path.is_file() and not path.is_symlink() for path in files.rglob("*"))
    apart = {line["file"] for line in incoming.quarantine.lines()}
    accounted = counts["cleaned"] + counts["again"] + len(apart)
    return {
        "files_in": files_in,
        "cases": len(cohort.patients),
        "refused": counts["refused"],
        "quarantined": len(apart),
        "copies": counts["again"],
        "cleaned": counts["cleaned"],
        "unaccounted": files_in - accounted,
        "failed": counts["failed"],
        "tracebacks": said.read_text().count("Traceback"),
    }


def main() -> None:
    """Print figures, and one JSON object on the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ct", type=int, default=200, help="images of 512 x 512 (default: 200)")
    parser.add_argument("--mr", type=int, default=200, help="images of 256 x 256 (default: 200)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each receiver (default: 3)")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--receiver", choices=("ours", "ours_unflushed"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        serve(options.serve, options.port, fsync=options.receiver == "ours")
        return
    with tempfile.TemporaryDirectory(prefix="konsil-intake-") as name:
        folder = Path(name)
        images = folder / "images"
        images.mkdir()
        number = generate(images, ct=options.ct, mr=options.mr)
        rates: dict[str, list[float]] = {"ours": [], "storescp": [], "ours_unflushed": []}
        cpu: dict[str, list[float]] = {kind: [] for kind in rates}
        for repeat in range(options.repeats):
            for kind in rates:
                rate, cpu_ms = one_run(kind, images, number, folder / f"{kind}-{repeat}")
                rates[kind].append(rate)
                cpu[kind].append(cpu_ms)
                print(f"{kind}: {rate:.1f} images/s, {cpu_ms:.1f} ms CPU per image", flush=True)
        result: dict[str, float | int | None] = {
            "images": number,
            "images_per_s": round(statistics.median(rates["ours"]), 1),
            "storescp_images_per_s": round(statistics.median(rates["storescp"]), 1),
            "unflushed_images_per_s": round(statistics.median(rates["ours_unflushed"]), 1),
            "cpu_ms_per_image": round(statistics.median(cpu["ours"]), 2),
            "storescp_cpu_ms_per_image": round(statistics.median(cpu["storescp"]), 2),
        }
        wall_ms, cpu_ms = deidentification_ms(images, folder / "deidentified")
        result |= {"deidentification_ms": round(wall_ms, 1), "deidentification_cpu_ms": round(cpu_ms, 1)}
        if (DATA / "dicom_files").is_dir():
            result |= other_makers(DATA / "dicom_files", folder / "others")
        else:
            print(f"no files of other makers at {DATA / 'dicom_files'}; set KONSIL_DATA")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
