"""konsil-site: what a person at the hospital does: let images in, decide about studies, read the ledger, join.

konsil-site --site site.yaml init --name clinic --declared-size 50    write site.yaml and a key for pseudonyms
konsil-site --site site.yaml admit FOLDER       let images in: DICOM, NIfTI or NRRD with --masks, or Sunnybrook
konsil-site --site site.yaml admit TABLE.csv    let patients without images in; --columns FILE says which columns may pass
konsil-site --site site.yaml cohort             who is inside, in numbers; --study STUDY: and how many of them it can use
konsil-site --site site.yaml studies            what was asked, what was decided, what it would cost
konsil-site --site site.yaml show STUDY         the whole study, as JSON (STUDY: a file, or the beginning of a hash)
konsil-site --site site.yaml approve STUDY      say yes to exactly this study, once
konsil-site --site site.yaml decline STUDY      say no
konsil-site --site site.yaml ledger             every release so far, what they cost together, what is left
konsil-site --site site.yaml segment MODEL [FOLDER] --out FOLDER   masks of a trained model, for this hospital's own eyes
konsil-site --site site.yaml features --study STUDY --out TABLE.parquet   the cohort's radiomic features, to look at here
konsil-site --site site.yaml add-model FILE     keep trained weights that studies name as the model which draws their masks
konsil-site --site site.yaml start --superlink HOST:PORT --root-certificates ca.crt ...   join a federation
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from conf.study import Study, words
from fl_client.approval import Approvals, Decision
from fl_client.privacy import BudgetSpent, Event, Ledger, LedgerBroken
from fl_client.site import Site


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if it did what was asked, 1 with a sentence on standard error if not."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.command != "start":
        _parser().error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        if options.command == "init":
            from fl_client.admission import init

            return init(
                options.site,
                name=options.name,
                declared_size=options.declared_size,
                epsilon=options.epsilon,
                delta=options.delta,
            )
        site = Site.load(options.site)
        if options.command == "start":
            return start(site, options.site, options.superlink, rest)
        if options.command == "ledger":
            return ledger(site)
        if options.command == "studies":
            return studies(site)
        if options.command == "segment":
            from fl_client import segmenting

            return segmenting.segment(
                site,
                options.model,
                options.folder,
                out=options.out,
                study=options.study,
                patients=options.patient,
                labels=options.labels,
                rules=options.series_rules,
            )
        if options.command == "add-model":
            from fl_client.models import add_model  # here: torch takes seconds to import

            return add_model(site, options.file)
        if options.command == "features":
            return _features(site, options)
        if options.command in ("admit", "cohort"):
            from fl_client import admission  # here: image readers take seconds to import

            if options.command == "cohort":
                asked = study_of(site, options.study) if options.study else None
                status = admission.cohort(site)
                if asked is not None:
                    _tell_usable(site, asked)
                return status
            return admission.admit(
                site,
                options.folder,
                masks=options.masks,
                series=options.series,
                rules=options.series_rules,
                labels=options.labels,
                columns=options.columns,
                id_column=options.id_column,
                quiet=options.quiet,
            )
        study = study_of(site, options.study)
        if options.command == "show":
            print(study.model_dump_json(indent=1))
            return 0
        return decide(site, study, "approved" if options.command == "approve" else "declined", who=options.who)
    except ValidationError as error:
        print(f"{options.site}: {words(error)}", file=sys.stderr)
    except (OSError, ValueError, BudgetSpent, LedgerBroken) as error:
        print(error, file=sys.stderr)
    return 1


def _features(site: Site, options: argparse.Namespace) -> int:
    """Write the table that was asked for."""
    from fl_client.features import Wanted, features  # here: pyradiomics takes seconds to import

    if options.study:
        given = [name for name in ("series", "regions", "intensity") if getattr(options, name) is not None]
        if given:
            raise ValueError(f"--{given[0]} stands in the study; with --parameters it can be chosen")
        wanted = Wanted.of_study(study_of(site, options.study), site.models_folder)
    else:
        wanted = Wanted.of_parameters(
            options.parameters, series=options.series, regions=options.regions, intensity=options.intensity
        )
    return features(site, wanted, out=options.out, force=options.force, workers=options.workers)


def study_of(site: Site, said: str) -> Study:
    """The study in a file that the coordinator sent by other means, or one that was put down when a run asked.

    Raises `ValueError` for a file that holds no study, and for a hash that fits none or several.
    """
    approvals = Approvals(site.folder)
    if not Path(said).is_file():
        return approvals.find(said)
    try:
        study = Study.read(Path(said))
    except (ValidationError, TypeError, ValueError) as error:
        problem = words(error) if isinstance(error, ValidationError) else "not a JSON object"
        raise ValueError(f"{said} is no study: {problem}") from None
    approvals.put_down(study)
    return study


def studies(site: Site) -> int:
    """Print every study that was asked for: hash, name, decision, price."""
    approvals = Approvals(site.folder)
    for key, study in approvals.studies.items():
        decision = approvals.decisions.get(key)
        said = f"{decision.decision} by {decision.who} on {decision.when[:10]}" if decision else "not decided"
        paid, scored = _paid(site, study)
        price = _price(site, study, rounds=max(0, study.rounds - paid), scores=scored == 0)
        print(f"{key[:12]}  {study.name}: {said}, {paid} of {study.rounds} rounds paid; {price}")
    if not approvals.studies:
        print(f"{site.name} has not been asked to join a study yet")
    return 0


def decide(site: Site, study: Study, decision: Decision, *, who: str) -> int:
    """Write down a decision about one study; with a yes, say how many patients here the study can use."""
    if decision == "approved":
        if reason := _impossible(site, study):
            raise ValueError(f"not approved: {site.name} would decline study {study.name} all the same: {reason}")
        _tell_usable(site, study)
    epsilon = study.privacy.epsilon if study.privacy.kind == "patient" else None
    paid, scored = _paid(site, study)
    line = Approvals(site.folder).decide(study, decision, who=who, epsilon=epsilon, paid=paid, scored=scored)
    print(f"{line.decision}: study {study.name} ({study.hash}) at {site.name}; {_price(site, study, rounds=study.rounds)}")
    return 0


def ledger(site: Site) -> int:
    """Check the ledger's chain and print it."""
    book = _ledger(site)
    for number, event in enumerate(book.events, start=1):
        print(
            f"{number:4}  {event.study_name} round {event.round}: {event.kind}, {event.steps} noisy sum(s), noise multiplier "
            f"{event.noise_multiplier:.4g}, sampling {event.sample_rate:g}{_doubt(event)}"
        )
    print(f"{len(book.events)} releases, unbroken; epsilon {book.epsilon:.4g} of {book.budget:g} at delta {book.delta:g}")
    repeatable = sum(event.noise == "seeded" for event in book.events)
    if repeatable:
        print(f"{repeatable} of them with repeatable noise: their epsilon protects nobody from whoever knows noise_seed")
    return 0


def start(site: Site, settings: Path, superlink: str, options: Sequence[str]) -> int:
    """Become Flower's SuperNode with this site's settings in its node configuration. Returns only if that fails.

    Flower's own SuperNode runs the app that the coordinator sends: join only coordinators whose code you trust.
    """
    rehearsing = {
        "noise_seed: the noise can be repeated and protects nobody": site.noise_seed is not None,
        "accept_no_privacy: updates may leave without noise": site.accept_no_privacy,
        "approve_all: nobody is asked": site.approve_all,
    }
    for warning in (text for text, is_set in rehearsing.items() if is_set):
        print(f"{settings}: for rehearsals only: {warning}", file=sys.stderr)
    command = ["flower-supernode", "--superlink", superlink, "--node-config", f'site="{settings.resolve()}"', *options]
    os.execvp(command[0], command)


def _price(site: Site, study: Study, *, rounds: int, scores: bool = True) -> str:
    """What the study says it costs, and where the ledger would stand after `rounds` more of it and its scores."""
    if study.privacy.kind == "none":
        return "no privacy: updates would leave without noise"
    from fl_client.price import planned  # here: tasks import torch
    from tasks.task import load_for

    book = _ledger(site)
    try:
        events = planned(site, study, load_for(study, models=site.models_folder), rounds=rounds, scores=scores)
    except ValueError as error:
        return f"price epsilon {study.privacy.epsilon:g} (delta {study.privacy.delta:g}); it can't be run here: {error}"
    after = book.planned(events)
    over = " (over the budget: it will be refused)" if after > site.budget.epsilon else ""
    return (
        f"price epsilon {study.privacy.epsilon:g} (delta {study.privacy.delta:g}); the ledger stands at {book.epsilon:.4g} and "
        f"would stand at {after:.4g} of {site.budget.epsilon:g} (delta {site.budget.delta:g}){over}"
    )


def _impossible(site: Site, study: Study) -> str:
    """Why this site would decline the study whatever a person says; empty if nothing stands against it."""
    from tasks.task import load_for  # here: tasks import torch

    if site.name not in study.sites:
        return f"it names {', '.join(study.sites)} and not {site.name}"
    if study.privacy.kind == "none" and not site.accept_no_privacy:
        return "it has privacy.kind 'none', and site.yaml doesn't accept releases without noise"
    try:
        load_for(study)  # without the site's models: a model may be added after the yes
    except ValueError as error:
        return str(error)
    return ""


def _tell_usable(site: Site, study: Study) -> None:
    from fl_client.suitability import tell_usable  # here: tasks import torch

    tell_usable(site, study)


def _paid(site: Site, study: Study) -> tuple[int, int]:
    """Rounds and scores of the study in the ledger."""
    from fl_client.price import rounds_paid, scores_paid

    events = _ledger(site).events
    return rounds_paid(study, events), scores_paid(study, events)


def _doubt(event: Event) -> str:
    if event.noise_multiplier == 0:
        return ", NO NOISE"
    return ", repeatable noise" if event.noise == "seeded" else ""


def _ledger(site: Site) -> Ledger:
    budget = site.budget
    return Ledger(site.ledger_path, epsilon=budget.epsilon, delta=budget.delta, accept_no_privacy=site.accept_no_privacy)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="konsil-site", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--site", type=Path, required=True, help="the hospital's settings file, site.yaml")
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("init", help="write the settings and a random key for pseudonyms")
    new.add_argument("--name", required=True, help="the hospital's name, as studies will call it")
    new.add_argument("--declared-size", type=int, required=True, help="a round number near the number of patients; public")
    new.add_argument("--epsilon", type=float, default=10.0, help="the most that patients' data may cost, for ever (default 10)")
    new.add_argument("--delta", type=float, default=1e-3, help="well below one over the number of patients (default 0.001)")
    door = commands.add_parser("admit", help="let images in, or a table of patients")
    door.add_argument(
        "folder", type=Path, help="DICOM files, images (with --masks), the Sunnybrook layout, or a table (TABLE.csv)"
    )
    door.add_argument("--masks", type=Path, help="folder of masks named as the NIfTI or NRRD images")
    door.add_argument("--series", default="cine_ed", help="with --masks: what the images are (default: cine_ed)")
    door.add_argument("--series-rules", type=Path, help="YAML file that says which DICOM series are wanted")
    door.add_argument("--labels", help="label map: a file, or a name in conf/labels")
    door.add_argument(
        "--columns", type=Path, help="YAML file: which columns of a table may pass, and what stands for a missing value"
    )
    door.add_argument("--id-column", help="a table's column of patient identifiers (default: the first)")
    door.add_argument("--quiet", action="store_true", help="don't list the admitted")
    inside = commands.add_parser("cohort", help="count who is inside")
    inside.add_argument("--study", help="also count whom this study can use: its file, or the beginning of its hash")
    commands.add_parser("studies", help="what was asked and what was decided")
    commands.add_parser("ledger", help="check and print the privacy ledger")
    for name in ("show", "approve", "decline"):
        command = commands.add_parser(name)
        command.add_argument("study", help="a study's file, or its hash or as much of the beginning as is unique")
        if name != "show":
            command.add_argument("--who", default=getpass.getuser(), help="who decides (default: the user's name)")
    masks = commands.add_parser("segment", help="masks of a trained model; they stay here")
    masks.add_argument("model", type=Path, help="model.pt of a run, or the run's folder")
    masks.add_argument("folder", type=Path, nargs="?", help="DICOM files (default: the patients that were let in)")
    masks.add_argument("--out", type=Path, required=True, help="a new folder for the masks")
    masks.add_argument("--study", help="a study's file, or the beginning of its hash (default: record.json beside the model)")
    masks.add_argument("--patient", action="append", default=[], help="pseudonym; may be given several times (default: all)")
    masks.add_argument("--series-rules", type=Path, help="YAML file that says which DICOM series is which")
    masks.add_argument("--labels", default="cardiac", help="label map with the codes for DICOM SEG (default: cardiac)")
    model = commands.add_parser("add-model", help="keep a trained model that studies lean on")
    model.add_argument("file", type=Path, help="model.pt of a run, or the run's folder")
    table = commands.add_parser("features", help="radiomic features of the cohort as a table; it stays here")
    source = table.add_mutually_exclusive_group(required=True)
    source.add_argument("--study", help="a radiomics study's file, or the beginning of its hash")
    source.add_argument("--parameters", type=Path, help="a pyradiomics parameter file (YAML), with --series")
    table.add_argument("--series", help="with --parameters: which images, such as lge")
    table.add_argument("--regions", help="with --parameters: aha (17 segments, the default), or a value of the mask")
    table.add_argument("--intensity", help="with --parameters: scale of grey values: none (the default), remote, myocardium")
    table.add_argument(
        "--out", type=Path, required=True, help="the table: NAME.parquet or NAME.csv; NAME.json says what is in it"
    )
    table.add_argument("--force", action="store_true", help="write over a table of this name")
    table.add_argument("--workers", type=int, help="processes (default: one per core)")
    joined = commands.add_parser("start", help="join a federation; further options go to flower-supernode")
    joined.add_argument("--superlink", required=True, help="HOST:PORT of the coordinator's SuperLink")
    return parser


if __name__ == "__main__":
    sys.exit(main())
