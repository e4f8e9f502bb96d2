"""The coordinator's folder and its server: `konsil-study init, serve, renew`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_server.commands import Commands


def add(commands: Commands, house: argparse.ArgumentParser) -> None:
    """The commands and their options."""
    made = commands.add_parser("init", help="make a coordinator's folder: keys, certificates, settings")
    made.set_defaults(run=init)
    made.add_argument("folder", type=Path)
    made.add_argument("--host", action="append", required=True, help="name or address that hospitals dial; may be repeated")
    made.add_argument("--listen", default="127.0.0.1", help="address to listen on; 0.0.0.0: every network (default: 127.0.0.1)")
    made.add_argument("--port", type=int, default=8443, help="to listen on (default: 8443)")
    made.add_argument("--public-port", type=int, default=None, help="that hospitals dial, if it is another one")
    made.add_argument("--behind-proxy", action="store_true", help="without TLS, on loopback, for a proxy that ends TLS")
    up = commands.add_parser("serve", parents=[house], help="run the coordinator until it is stopped")
    up.set_defaults(run=serve)
    new = commands.add_parser("renew", parents=[house], help="a new server certificate from the same authority")
    new.set_defaults(run=renew)


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
