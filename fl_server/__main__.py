"""konsil-study: what a coordinator does.

    konsil-study init FOLDER --host NAME            make a coordinator's folder: keys, certificates, settings
    konsil-study serve                              run the coordinator until it is stopped
    konsil-study join-token NAME                    a word that lets the hospital of this name register its key, once
    konsil-study register NAME KEY                  register a hospital's public key (a file, or the key itself)
    konsil-study unregister NAME                    shut a hospital out
    konsil-study sites                              who is registered, and who is there
    konsil-study start study.json [--wait]          start a study on the running coordinator
    konsil-study start study=segmentation sites=[a,b] rounds=8
    konsil-study stop RUN                           stop a study that runs
    konsil-study show study.json [KEY=VALUE ...]    the study as it will be identified: hash, price, settings
    konsil-study record runs/<name>/record.json     what came of it; the exit code is the verdict
    konsil-study run study.json --superlink NAME    start it with Flower's own command on a SuperLink of yours
    konsil-study renew                              a new server certificate from the same authority

Commands that need the coordinator's folder take it from --folder, else from KONSIL_COORDINATOR, else it is the working folder.
A study file is JSON; keys that are left out have their defaults. `start` without a file composes one of conf/federation/;
KEY=VALUE changes either.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from conf.study import Study, words
from fl_server.counts import lines
from fl_server.record import Record

EXIT = {"complete": 0, "degraded": 3, "failed": 4}
"""Exit codes of `konsil-study record` and `start --wait`; 1 is a mistake in the command or a file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 with a sentence on standard error if it can't be done."""
    options = _parser().parse_args(arguments)
    about = getattr(options, "file", None) or "konsil-study"
    try:
        code: int = options.run(options)
        return code
    except ValidationError as error:
        print(f"{about}: {words(error)}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"{about}: {error}", file=sys.stderr)
    return 1


def show(study: Study) -> int:
    """Print the hash that the sites approve, the price, and every setting."""
    privacy = study.privacy
    price = f"epsilon {privacy.epsilon:g}, delta {privacy.delta:g}" if privacy.kind == "patient" else "no privacy"
    print(f"{study.hash}  {study.name}: {study.rounds} rounds, {len(study.sites)} sites, {price} for a patient of each site")
    print(study.model_dump_json(indent=1))
    return 0


def run(study: Study, superlink: str, *, app: Path, stream: bool) -> int:
    """Start the study with `flwr run` and return its exit code.

    The study goes into a TOML file: on the command line Flower would cut it at its quotes.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "run.toml"
        config.write_text(f"study = {json.dumps(study.to_json())}\n")  # a JSON string is a TOML basic string
        command = ["flwr", "run", str(app), superlink, "--run-config", str(config), *(["--stream"] if stream else [])]
        return subprocess.run(command, check=False).returncode


def record(path: Path) -> int:
    """Print the verdict and its reasons."""
    found = Record.read(path)
    print(f"{found.name} ({found.study_hash[:12]}): {found.verdict}, {len(found.rounds)} rounds")
    for reason in found.reasons:
        print(f"  {reason}")
    for line in lines(found):
        print(line)
    for name, site in found.sites.items():
        price = "no answer with a price" if site.epsilon is None else f"epsilon {site.epsilon:.4g} (delta {site.delta:g})"
        print(f"  {name}: {price}")
    return EXIT[found.verdict]


# -- the coordinator's folder ---------------------------------------------------------------------------------------


def init(options: argparse.Namespace) -> int:
    """Make a coordinator's folder."""
    from fl_server.certificates import fingerprint, read
    from fl_server.house import SETTINGS, House

    house = House.create(
        options.folder,
        hosts=options.host,
        listen=options.listen,
        port=options.port,
        public_port=options.public_port,
        tls=not options.behind_proxy,
    )
    print(f"made {house.folder / SETTINGS}; hospitals will dial {house.address}")
    print(f"they need {house.authority}, whose SHA-256 is {fingerprint(read(house.authority))}")
    print(f"next: konsil-study serve --folder {house.folder}")
    return 0


def serve(options: argparse.Namespace) -> int:
    """Run the coordinator."""
    from fl_server.house import House
    from fl_server.serve import serve

    return serve(House.load(options.folder))


def renew(options: argparse.Namespace) -> int:
    """Make a new server certificate."""
    from fl_server.certificates import read
    from fl_server.house import House

    house = House.load(options.folder)
    house.renew()
    end = read(house.certificate).not_valid_after_utc
    print(f"{house.certificate} is valid until {end:%Y-%m-%d}; a running coordinator takes it when it is started again")
    return 0


def join_token(options: argparse.Namespace) -> int:
    """Print a new join token."""
    from fl_server.house import House
    from fl_server.tokens import Tokens

    house = House.load(options.folder)
    print(Tokens(house.tokens).give(options.name, valid_s=options.days * 24 * 3600))
    print(f"for {options.name}, once, within {options.days:g} days; shown only now", file=sys.stderr)
    return 0


def register(options: argparse.Namespace) -> int:
    """Register a hospital's key by hand."""
    from fl_server.control import control
    from fl_server.house import House

    path = Path(options.key)
    text = options.key if options.key.startswith(("ecdsa-", "-----BEGIN")) else path.read_text()
    with control(House.load(options.folder)) as talk:
        talk.register(options.name, text)
    print(f"{options.name} may connect")
    return 0


def unregister(options: argparse.Namespace) -> int:
    """Shut a hospital out."""
    from fl_server.control import control
    from fl_server.house import House

    with control(House.load(options.folder)) as talk:
        talk.unregister(options.name)
    print(f"{options.name} may not connect any more")
    return 0


def sites(options: argparse.Namespace) -> int:
    """List the registered hospitals."""
    from fl_server.control import control
    from fl_server.house import House

    with control(House.load(options.folder)) as talk:
        for site in talk.sites():
            seen = f"last came {site.last_seen}" if site.last_seen else "never seen"
            print(f"{site.name}: {site.status}, {seen}, key {site.key_sha256[:16]}")
    return 0


def _shown(first: Path, changes: Sequence[str]) -> Study:
    """The study of a file as it stands, or as `start` would make it of what was changed or composed."""
    if not changes and "=" not in str(first):
        return Study.read(first)
    from fl_server.start import study_of

    return study_of(_settings([str(first), *changes]), registered=[], models=Path())


def start(options: argparse.Namespace) -> int:
    """Start a study on the running coordinator; with `--wait` the verdict is the exit code."""
    from fl_server.control import control
    from fl_server.house import House
    from fl_server.start import follow, require_room, require_weights, study_of, written

    house = House.load(options.folder)
    with control(house) as talk:
        registered = [site.name for site in talk.sites()]
        study = study_of(_settings(options.study), registered=registered, models=house.models)
        if strangers := sorted(set(study.sites) - set(registered)):
            raise ValueError(
                f"no hospital is registered as {', '.join(strangers)}; there are {', '.join(registered) or 'none'}"
            )
        require_room(house, study, replace=options.replace)
        require_weights(house, study, options.initial)
        before = written(house.runs / study.name / "record.json")
        run = talk.start(study, enrol_timeout_s=house.enrol_timeout_s)
        print(f"{study.name} ({study.hash}) has started as run {run}: {study.rounds} rounds, {', '.join(study.sites)}")
        path = house.runs / study.name / "record.json"
        if not options.wait:
            print(f"konsil-study record {path} says what comes of it")
            return 0
        try:
            follow(house, talk, study, run, before=before)
        except KeyboardInterrupt:
            print(f"the study goes on; konsil-study record {path}, or konsil-study stop {run}", file=sys.stderr)
            return 130
        return record(path)


def stop(options: argparse.Namespace) -> int:
    """Stop a study that runs."""
    from fl_server.control import control
    from fl_server.house import House

    with control(House.load(options.folder)) as talk:
        talk.stop(options.number)
    print(f"run {options.number} is being stopped; what its rounds have made stays in its folder")
    return 0


def _settings(arguments: Sequence[str]) -> dict[str, Any]:
    """A study's settings: of a file that comes first, or composed from conf/federation/; then KEY=VALUE."""
    import conf

    if arguments and "=" not in arguments[0]:
        settings = json.loads(Path(arguments[0]).read_text())
        if not isinstance(settings, dict):
            raise ValueError(f"{arguments[0]} must hold an object of settings")
        for key, value in _changes(arguments[1:]).items():
            *path, last = key.split(".")
            place = settings
            for name in path:
                place = place.setdefault(name, {})
                if not isinstance(place, dict):
                    raise ValueError(f"{key}: {name} is a value and holds no settings")
            place[last] = value
        return settings
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    home = Path(next(iter(conf.__path__)))
    groups = {folder.name for root in (home, home / "federation") for folder in root.iterdir() if folder.is_dir()}
    studies = sorted(file.stem for file in (home / "federation" / "study").glob("*.yaml"))
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise ValueError(f"{argument!r} is no KEY=VALUE; a study's file comes first")
        if key == "study" and value not in studies:
            raise ValueError(f"study: no such choice as {value}; study is one of {', '.join(studies)}")
    # keys that conf/ leaves at their defaults are taken, too; the Study knows which there are
    offered = [text if text.partition("=")[0] in groups or text[0] in "+~" else f"++{text}" for text in arguments]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(home / "federation")):
            settings = OmegaConf.to_container(compose("start", overrides=offered), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line for line in str(error).splitlines() if line.strip() and not line.startswith("See https")]
        raise ValueError("\n".join(lines)) from None
    return {str(key): value for key, value in settings.items()} if isinstance(settings, dict) else {}


def _changes(arguments: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, the values read as YAML."""
    import yaml

    changes = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise ValueError(f"{argument!r} is no KEY=VALUE")
        changes[key] = yaml.safe_load(value)
    return changes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="konsil-study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    for name, what, function in (
        ("show", "a study file", lambda options: show(_shown(options.file, options.change))),
        ("record", "a record.json", lambda options: record(options.file)),
        ("run", "a study file", lambda o: run(Study.read(o.file), o.superlink, app=o.app, stream=o.stream)),
    ):
        command = commands.add_parser(name)
        command.set_defaults(run=function)
        command.add_argument("file", type=Path, help=what)
        if name == "show":
            command.add_argument("change", nargs="*", help="KEY=VALUE")
        if name == "run":
            command.add_argument("--superlink", default="local", help="its name in Flower's config.toml (default: local)")
            command.add_argument("--app", type=Path, default=Path(), help="folder of konsil's pyproject.toml (default: here)")
            command.add_argument("--stream", action="store_true", help="show the ServerApp's log until the run ends")

    made = commands.add_parser("init")
    made.set_defaults(run=init)
    made.add_argument("folder", type=Path)
    made.add_argument("--host", action="append", required=True, help="name or address that hospitals dial; may be repeated")
    made.add_argument("--listen", default="127.0.0.1", help="address to listen on; 0.0.0.0: every network (default: 127.0.0.1)")
    made.add_argument("--port", type=int, default=8443, help="to listen on (default: 8443)")
    made.add_argument("--public-port", type=int, default=None, help="that hospitals dial, if it is another one")
    made.add_argument("--behind-proxy", action="store_true", help="without TLS, on loopback, for a proxy that ends TLS")

    house = argparse.ArgumentParser(add_help=False)
    house.add_argument(
        "--folder",
        type=Path,
        default=Path(os.environ.get("KONSIL_COORDINATOR", ".")),
        help="the coordinator's folder (default: KONSIL_COORDINATOR, else the working folder)",
    )
    for name, command_function in (("serve", serve), ("sites", sites), ("renew", renew)):
        commands.add_parser(name, parents=[house]).set_defaults(run=command_function)
    for name, command_function in (("join-token", join_token), ("register", register), ("unregister", unregister)):
        command = commands.add_parser(name, parents=[house])
        command.set_defaults(run=command_function)
        command.add_argument("name", help="the hospital's, as in its site.yaml")
        if name == "register":
            command.add_argument("key", help="its public key, or a file with it")
        if name == "join-token":
            command.add_argument("--days", type=float, default=7.0, help="that the token is good for (default: 7)")
    started = commands.add_parser("start", parents=[house])
    started.set_defaults(run=start)
    started.add_argument("study", nargs="*", help="a study's file and KEY=VALUE, or only KEY=VALUE")
    started.add_argument("--wait", action="store_true", help="tell of every round; the exit code is the verdict")
    started.add_argument("--replace", action="store_true", help="in place of the results of an earlier study of this name")
    started.add_argument("--initial", type=Path, default=None, help="weights that the study names as initial_model_sha256")
    stopped = commands.add_parser("stop", parents=[house])
    stopped.set_defaults(run=stop)
    stopped.add_argument("number", type=int, help="of the run, as `start` said it")
    return parser


if __name__ == "__main__":
    sys.exit(main())
