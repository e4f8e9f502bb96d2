"""A model for programs that don't have konsil: `konsil-study export`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from fl_server.commands import Commands

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from fl_server.registry.learned import Learned

KINDS = ("torchscript", "onnx", "monai", "json")


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The command and its options."""
    out = commands.add_parser("export", parents=[house], help="a model as TorchScript, ONNX, a MONAI bundle or JSON")
    out.set_defaults(run=export)
    out.add_argument("model", metavar="RUN_OR_MODEL", help="a run's folder, NAME[:VERSION] of the registry, or a study's name")
    out.add_argument("--as", dest="kind", choices=KINDS, required=True, help="json: of a forest")
    out.add_argument("--to", type=Path, default=None, help="a new folder (default: NAME-KIND)")
    out.add_argument("--json", action="store_true", help="for scripts")


def export(options: argparse.Namespace) -> int:
    """Write the model into a new folder."""
    from fl_server.registry.export import export as write

    start = time.monotonic()
    learned, name, version, key = _found(options)
    to = options.to or Path(f"{name}-{options.kind}")
    files = write(learned, options.kind, to, name=name, version=version, key=key)
    size, seconds = sum(file.stat().st_size for file in files), time.monotonic() - start
    if options.json:
        said = {"folder": str(to), "files": [str(file) for file in files], "bytes": size, "seconds": round(seconds, 2)}
        print(json.dumps({**said, "signed": key is not None}, indent=1))
        return 0
    print(f"{to}: {len(files)} files, {size / 1e6:.1f} MB, in {seconds:.1f} s, {'signed' if key else 'not signed'}")
    for file in files:
        print(f"  {file.relative_to(to)}")
    if options.kind == "monai":
        from fl_server.registry.bundle import RUN

        print(f"in {to}: {RUN}")
    return 0


def _found(options: argparse.Namespace) -> tuple[Learned, str, int | None, Ed25519PrivateKey | None]:
    """The model, its name and version, and the key that signs it if it is registered."""
    from fl_server import runs
    from fl_server.house import House
    from fl_server.registry.learned import of_run
    from fl_server.registry.shelf import Shelf

    path = Path(options.model)
    if path.is_dir():
        learned = of_run(path)
        return learned, learned.record.name, None, None
    if path.is_absolute() or len(path.parts) > 1:
        raise ValueError(f"{path}: no such folder")
    house = House.load(options.folder)
    shelf = Shelf(house.folder)
    label = options.model
    known = {version.name for version in shelf.versions()}
    if label.partition(":")[0] in known:
        version = shelf.find(label)
        return shelf.open(version.label), version.name, version.number, shelf.key()
    try:
        learned = of_run(runs.find(house.runs, label), models=house.models)
    except ValueError as error:
        models = f"no model '{label}' is registered; " if ":" in label or "no study" in str(error) else ""
        raise ValueError(f"{models}{error}") from None
    return learned, learned.record.name, None, None
