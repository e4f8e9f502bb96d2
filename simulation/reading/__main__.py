"""`python -m simulation.reading REAL SYNTHETIC --answers FOLDER`: serve a blinded reading on this machine, or sum it up."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from simulation.reading import answers
from simulation.reading.deck import Deck, deal, kept, settle
from simulation.reading.scans import Look


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it. Returns 0, or 1 with a sentence on standard error if it can't be done."""
    options = _parser().parse_args(arguments)
    try:
        if options.summary:
            return _sum_up(options.answers, as_json=options.json)
        if options.real is None or options.synthetic is None:
            raise ValueError("a reading needs two folders, that of the real scans and that of the synthetic ones")
        if options.json:
            raise ValueError("--json goes with --summary")
        if options.seed < 0:
            raise ValueError(f"--seed is a number from 0 on, not {options.seed}")
        look = Look(series=options.series, slices=options.slices, field_mm=options.field_mm)
        deck = deal(options.real, options.synthetic, look, seed=options.seed, count=options.count)
        return _serve(deck, options.answers, options.port)
    except ValidationError as error:
        first = error.errors()[0]
        said = f"--{str(first['loc'][0]).replace('_', '-')} {first['input']}: {first['msg'].lower()}"
        print(f"simulation.reading: {said}", file=sys.stderr)
    except (OSError, ValueError) as error:
        print(f"simulation.reading: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulation.reading", description=__doc__)
    parser.add_argument("real", type=Path, nargs="?", help="a cohort of patients' scans")
    parser.add_argument("synthetic", type=Path, nargs="?", help="a cohort of scans that a generator drew")
    parser.add_argument("--answers", type=Path, required=True, metavar="FOLDER", help="where answers are kept; made if new")
    parser.add_argument("--port", type=int, default=8792, help="on 127.0.0.1; 0: any that is free (8792)")
    parser.add_argument("--count", type=int, help="scans of each reader, half of them real (40, or as many as there are)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice and of every reader's order (0)")
    parser.add_argument("--series", default="cine_ed", help="which of each patient's images (cine_ed)")
    parser.add_argument("--slices", type=int, default=6, help="of each scan (6)")
    parser.add_argument("--field-mm", type=float, default=112.0, help="side of the square that is shown (112)")
    parser.add_argument("--summary", action="store_true", help="print how often readers were right, and how far they agree")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    return parser


def _sum_up(folder: Path, *, as_json: bool) -> int:
    from simulation.reading.figures import HABERL, summary
    from simulation.reading.summary import text

    reading = kept(folder)
    found = summary(answers.read(folder, reading), reading)
    if as_json:
        import json

        print(json.dumps({**found.model_dump(mode="json"), "anchor": HABERL._asdict()}, indent=1))
    else:
        print(text(found))
    return 0


def _serve(deck: Deck, folder: Path, port: int) -> int:
    """Serve until somebody says stop."""
    import uvicorn

    from fl_client.sharing import make_folder
    from fl_server.commands.page import listen
    from fl_server.page.guard import Door, ensure_token, token, token_path
    from fl_server.page.serving import configured
    from simulation.reading.page import page_app

    for place, why in deck.left_out.items():
        print(f"left out {place}: {why}", file=sys.stderr)
    make_folder(folder)
    settle(deck.reading, folder)
    path = token_path(folder)
    ensure_token(path)
    listening: socket.socket = listen("127.0.0.1", port)
    with listening:
        door = Door(
            name="Real or synthetic?",
            runs=folder,
            token=lambda: token(path),
            where="Whoever runs this reading has the token.",
            port=listening.getsockname()[1],
        )
        book = answers.Answers(folder, deck.reading)
        print(f"{len(deck.scans)} scans, half of them real: http://{door.host}:{door.port}/", flush=True)
        print(f"log in with a name or code of each reader's own, and the token in {path}", flush=True)
        uvicorn.Server(configured(page_app(door, deck, book))).run(sockets=[listening])
        book.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
