"""Counting for the hospital's own eyes: `konsil-site count`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pydantic import ValidationError

from conf.selection import Selection
from conf.study import LARGEST, words
from fl_client.commands import Commands
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The command and its options."""
    count = commands.add_parser("count", help="how many patients here fit a selection, exactly; the numbers stay here")
    count.add_argument("--where", type=Path, required=True, help="JSON file with a selection, or a study that has one")
    count.add_argument("--list", action="store_true", help="also name who fits, by pseudonym")
    count.set_defaults(run=_count)


def _count(site: Site, options: argparse.Namespace) -> int:
    """Print exact numbers; 0 whatever they are."""
    from fl_client.catalog import Catalog  # here: SQLAlchemy takes its time to import
    from fl_client.cohort import Cohort
    from fl_client.selection import unselected

    selection = selection_in(options.where)
    catalog = Catalog.of(site)
    cohort = Cohort(site.cohort_folder)
    print(f"patients at {site.name} with {selection}:")
    for side in ("train", "test"):
        asked = cohort.split(side, test_fraction=site.test_fraction)
        left_out = unselected(catalog, selection, asked)
        unknown = sum("not known of this patient" in reason for reason in left_out.values())
        print(f"  {side}: {len(asked) - len(left_out)} of {len(asked)}; of {unknown} it is not known")
        for patient in (patient for patient in asked if patient not in left_out and options.list):
            print(f"    {patient}")
    print("these numbers are exact and for this hospital alone; a coordinator asks with a study of the task count")
    return 0


def selection_in(path: Path) -> Selection:
    """The selection in a JSON file: by itself (`{"all": ...}`), as it stands in a study, or that of a whole study."""
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} is larger than {LARGEST} bytes and no selection")
    try:
        found = json.loads(path.read_text())
    except (ValueError, RecursionError):
        raise ValueError(f"{path} isn't JSON") from None
    if isinstance(found, dict) and "selection" in found:
        found = found["selection"]
    if isinstance(found, dict) and "where" not in found:
        found = {"where": found}
    try:
        return Selection.model_validate_json(json.dumps(found), strict=True)
    except ValidationError as error:
        raise ValueError(f"{path}: {words(error)}") from None
