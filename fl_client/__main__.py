"""konsil-site: what a person at the hospital does: let images in, decide about studies, read the books, join, run.

First day
  init            write site.yaml and the keys; asks, or takes flags: --name clinic --declared-size 50 --peer PACS@10.0.0.5
  check           whether this hospital can work, and what to mend
  join            - --coordinator HOST:PORT --root-certificates ca.crt: make a key, register it by a token that is asked for
  public-key      the key by which the coordinator knows this hospital
Every day
  start           run, in the foreground: receive images, take part in studies; --only intake, trainer or page
  status          what runs, what waits for a person, what is left of the budget
  page            the hospital's own page in a browser; page-token: new tokens for it
  pause, resume   answer "not now" to every study, and go on; stop-now: nothing leaves any more, whoever asks
Images and data
  admit           FOLDER: DICOM, NIfTI or NRRD with --masks, Sunnybrook; TABLE.csv with --columns; FHIR with --mapping
  intake          receive images and let their patients in; --once: what lies there
  pull            fetch studies from the archive over DICOMweb: patient, accession, study or query
  cohort          every case expected, inside or not, and why; --study STUDY: whom it can use
  quality         image quality against a range; --patient: where one stands
  quarantine      what may not pass, and why; release: judge it again; drop: delete it
  synthetic       which synthetic cases train beside the patients, and where they come from
  add-synthetic   FOLDER --origin TEXT: let cases that are nobody's train beside the patients
  remove-synthetic  take them away again
  count           --where FILE: how many patients fit a selection, exactly, for this hospital's own eyes
  withdraw        take a patient out, at once and for every later round
  deidentify      FOLDER --out FOLDER: copies of DICOM files for colleagues, without their patients
Studies
  studies         what was asked, what was decided, what it would cost
  show            what a study would do here, in words; --json: every setting (a file, or the beginning of a hash)
  approve         say yes to exactly this study, once
  decline         say no
Books
  ledger          where the budget went and what is left; --study: what one more would cost; --plot FILE; --all
  audit-log       what was asked, decided, admitted, and every message that left
  support-bundle  a zip for whoever helps, without any identity
Models
  segment         MODEL --out FOLDER: masks of a trained model, where it is unsure, and whom to look at first
  calibrate       MODEL: learn from held-back patients how sure a model may be, for segment and return
  return          MODEL: masks and a report back to the archive, research use only
  features        --study STUDY --out TABLE.parquet: the cohort's radiomic features, to look at here
  personalise     STUDY MODEL --steps N: a model for this hospital alone, trained further on its own patients
  add-model       FILE: keep trained weights that studies name as the model which draws their masks
  add-reference-values  RUN: keep a study's percentile curves by age and sex, which patients are then compared with
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from conf.imports import import_monai_alone
from conf.study import words
from fl_client.chain import ChainBroken
from fl_client.commands import (
    clinical,
    daemon,
    deidentify,
    house,
    images,
    intake,
    ledger,
    page,
    personalising,
    pull,
    quality,
    quarantine,
    reference,
    returning,
    studies,
    synthetic,
    uncertainty,
    user_name,
)
from fl_client.intake.incoming import InUse
from fl_client.privacy import BudgetSpent
from fl_client.sharing import kept_to
from fl_client.site import Site

MODULES = (
    house,
    images,
    synthetic,
    deidentify,
    clinical,
    intake,
    pull,
    quarantine,
    quality,
    studies,
    ledger,
    returning,
    personalising,
    uncertainty,
    reference,
    daemon,
    page,
)
"""Where the commands stand, in the order of the help."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what was asked, 1 with a sentence on standard error if not."""
    options = _parser().parse_args(arguments)
    import_monai_alone()
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
    except OSError as error:  # the system's own words come with a number and the file last
        print(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else error, file=sys.stderr)
    except (ValueError, InUse, BudgetSpent, ChainBroken) as error:
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
