"""The registry: `konsil-study models list, show, verify, register, withdraw, key`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fl_server.commands import Commands


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The commands and their options."""
    models = commands.add_parser("models", help="the registry: signed versions of models, with cards")
    doing = models.add_subparsers(dest="doing", required=True, metavar="WHAT")
    listed = doing.add_parser("list", parents=[house], help="all versions, and whether they stand")
    listed.set_defaults(run=show_all)
    shown = doing.add_parser("show", parents=[house], help="a model's card")
    shown.set_defaults(run=show)
    verified = doing.add_parser("verify", parents=[house], help="whether every file is as it was when it was signed")
    verified.set_defaults(run=verify)
    verified.add_argument("model", nargs="?", default="", help="NAME[:VERSION], or an exported folder (default: all)")
    verified.add_argument("--key", type=Path, default=None, help="public key to check by (default: the registry's)")
    kept = doing.add_parser("register", parents=[house], help="keep a run's model as a new version")
    kept.set_defaults(run=register)
    kept.add_argument("model", metavar="RUN", help="a study's name, or a run's folder")
    kept.add_argument("--name", default="", help="of the model (default: the study's)")
    kept.add_argument("--remark", default="", help="a sentence for the card")
    kept.add_argument("--even-failed", action="store_true", help="also of a study that failed; its card says so")
    gone = doing.add_parser("withdraw", parents=[house], help="say that a version is not to be used any more, and why")
    gone.set_defaults(run=withdraw)
    gone.add_argument("--reason", required=True, help="whoever used the model will read it")
    gone.add_argument("--deprecated", action="store_true", help="only say that there is a better one")
    public = doing.add_parser("key", parents=[house], help="the public key, to hand on")
    public.set_defaults(run=key)
    for command in (shown, gone):
        command.add_argument("model", help="NAME, which is the latest version that stands, or NAME:VERSION")
    for command in (listed, shown, verified, kept, gone, public):
        command.add_argument("--json", action="store_true", help="for scripts")


def show_all(options: argparse.Namespace) -> int:
    """List the versions."""
    from fl_server.house import House
    from fl_server.registry.shelf import Shelf

    versions = Shelf(House.load(options.folder).folder).versions()
    rows = [
        {"name": v.name, "version": v.number, "standing": v.standing, "reason": v.reason, "registered": v.when}
        for v in versions
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    for version in versions:
        why = f": {version.reason}" if version.reason else ""
        print(f"{version.label}  {version.when[:10] or 'no date'}  {version.standing}{why}")
    if not versions:
        print("no model is registered: konsil-study models register RUN")
    return 0


def show(options: argparse.Namespace) -> int:
    """Print a card."""
    from fl_server.house import House
    from fl_server.registry.shelf import Shelf

    version = Shelf(House.load(options.folder).folder).find(options.model)
    if options.json:
        card = json.loads((version.folder / "card.json").read_text())
        print(json.dumps({**card, "standing": version.standing, "reason": version.reason}, indent=1))
        return 0
    if version.standing != "registered":
        print(f"{version.standing.upper()}: {version.reason}\n")
    print((version.folder / "card.md").read_text(), end="")
    return 0


def verify(options: argparse.Namespace) -> int:
    """Check seals; 1 if anything is not as it was signed."""
    from fl_server.house import House
    from fl_server.registry import seal
    from fl_server.registry.shelf import Shelf

    found: dict[str, list[str]] = {}
    if options.model and Path(options.model).is_dir():
        public = seal.read_public(options.key) if options.key else Shelf(House.load(options.folder).folder).public
        found[options.model] = seal.problems(Path(options.model), public)
    else:
        if options.key is not None:
            raise ValueError("--key is for an exported folder; the registry has its own")
        shelf = Shelf(House.load(options.folder).folder)
        versions = [shelf.find(options.model)] if options.model else shelf.versions()
        found = {version.label: shelf.problems(version) for version in versions}
        if not options.model:
            found["the log"] = shelf.gaps()
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for name, problems in found.items():
            print(f"{name}: {'; '.join(problems) or 'as it was signed'}")
    return 1 if any(found.values()) else 0


def register(options: argparse.Namespace) -> int:
    """Keep a run's model."""
    from fl_server import runs
    from fl_server.house import House
    from fl_server.registry.learned import of_run
    from fl_server.registry.shelf import Shelf

    house = House.load(options.folder)
    path = Path(options.model)
    folder = path if (path / "record.json").exists() else runs.find(house.runs, options.model)
    version = Shelf(house.folder).register(
        of_run(folder, models=house.models), name=options.name, even_failed=options.even_failed, remark=options.remark
    )
    if options.json:
        print(json.dumps({"name": version.name, "version": version.number, "folder": str(version.folder)}, indent=1))
    else:
        print(f"{version.label} is registered: {version.folder}")
    return 0


def withdraw(options: argparse.Namespace) -> int:
    """Withdraw a version, or call it deprecated."""
    from fl_server.house import House
    from fl_server.registry.shelf import Shelf, Standing

    standing: Standing = "deprecated" if options.deprecated else "withdrawn"
    version = Shelf(House.load(options.folder).folder).set_standing(options.model, standing, options.reason)
    if options.json:
        print(json.dumps({"name": version.name, "version": version.number, "standing": version.standing}, indent=1))
    else:
        print(f"{version.label} is {version.standing}: {version.reason}")
    return 0


def key(options: argparse.Namespace) -> int:
    """Print the public key."""
    from fl_server.house import House
    from fl_server.registry import seal
    from fl_server.registry.shelf import Shelf

    public = Shelf(House.load(options.folder).folder).public
    pem, digest = seal.public_pem(public).decode(), seal.fingerprint(public)
    print(json.dumps({"pem": pem, "sha256": digest}, indent=1) if options.json else f"{pem}SHA-256 {digest}")
    return 0
