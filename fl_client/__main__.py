"""konsil-site: what a person at the hospital does: let images in, decide about studies, read the ledger, join.

konsil-site --site site.yaml init --name clinic --declared-size 50    write site.yaml and a key for pseudonyms
konsil-site --site site.yaml admit FOLDER       let images in: DICOM, NIfTI or NRRD with --masks, or Sunnybrook
konsil-site --site site.yaml admit TABLE.csv    let patients without images in; --columns FILE says which columns may pass
konsil-site --site site.yaml admit FHIR --mapping FILE   let clinical values in: a FHIR bundle, NDJSON, or a folder of them
konsil-site --site site.yaml count --where FILE how many patients fit a selection, exactly, for this hospital's own eyes
konsil-site --site site.yaml deidentify FOLDER --out FOLDER   copies of DICOM files for colleagues, without their patients
konsil-site --site site.yaml intake             receive images and let their patients in; --once: what lies there
konsil-site --site site.yaml pull patient       fetch studies from the archive over DICOMweb; also: accession, study, query
konsil-site --site site.yaml quarantine         what may not pass, and why; release: judge it again; drop: delete it
konsil-site --site site.yaml cohort             every case expected, inside or not, and why; --study STUDY: whom it can use
konsil-site --site site.yaml studies            what was asked, what was decided, what it would cost
konsil-site --site site.yaml show STUDY         the whole study, as JSON (STUDY: a file, or the beginning of a hash)
konsil-site --site site.yaml approve STUDY      say yes to exactly this study, once
konsil-site --site site.yaml decline STUDY      say no
konsil-site --site site.yaml ledger             every release so far, what they cost together, what is left
konsil-site --site site.yaml segment MODEL [FOLDER] --out FOLDER   masks of a trained model, for this hospital's own eyes
konsil-site --site site.yaml return MODEL       masks and a report of a trained model back to the archive, research use only
konsil-site --site site.yaml features --study STUDY --out TABLE.parquet   the cohort's radiomic features, to look at here
konsil-site --site site.yaml add-model FILE     keep trained weights that studies name as the model which draws their masks
konsil-site --site site.yaml join - --coordinator HOST:PORT --root-certificates ca.crt   make a key, register it by a token
konsil-site --site site.yaml check              whether this hospital can work, and what to mend
konsil-site --site site.yaml start              run, in the foreground: receive images, take part in studies
konsil-site --site site.yaml page               the hospital's own page in a browser; page-token: new tokens for it
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from conf.study import words
from fl_client.chain import ChainBroken
from fl_client.commands import (
    clinical,
    daemon,
    deidentify,
    house,
    images,
    intake,
    page,
    pull,
    quality,
    quarantine,
    returning,
    studies,
    user_name,
)
from fl_client.privacy import BudgetSpent
from fl_client.sharing import kept_to
from fl_client.site import Site

MODULES = (house, images, deidentify, clinical, intake, pull, quarantine, quality, studies, returning, daemon, page)
"""Where the commands stand, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what was asked, 1 with a sentence on standard error if not."""
    options = _parser().parse_args(arguments)
    if getattr(options, "who", "") is None:
        options.who = user_name()
    try:
        if "run_without_site" in options:
            with kept_to(options.site.absolute().parent):
                return int(options.run_without_site(options))
        site = Site.load(options.site)
        with kept_to(site.folder):
            return int(options.run(site, options))
    except ValidationError as error:
        print(f"{options.site}: {words(error)}", file=sys.stderr)
    except (OSError, ValueError, BudgetSpent, ChainBroken) as error:
        print(error, file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="konsil-site", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(os.environ.get("KONSIL_SITE", "site.yaml"))
    parser.add_argument(
        "--site",
        type=Path,
        default=default,
        help=f"the hospital's settings file ($KONSIL_SITE, else ./site.yaml; now {default})",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module in MODULES:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
