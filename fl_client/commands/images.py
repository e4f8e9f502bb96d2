"""Images, tables and models: `konsil-site admit, cohort, segment, features, add-model`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fl_client.commands import Commands, add_heat_maps, add_members, whole
from fl_client.commands.studies import study_of
from fl_client.site import Site


def add(commands: Commands) -> None:
    """The commands and their options."""
    door = commands.add_parser("admit", help="let images in, or a table of patients")
    door.add_argument(
        "folder",
        type=Path,
        help="DICOM files, images (with --masks), the Sunnybrook layout, a table (TABLE.csv), or FHIR (with --mapping)",
    )
    door.add_argument("--masks", type=Path, help="folder of masks, named as the images or by DICOM patient and series")
    door.add_argument("--series", default="cine_ed", help="with --masks: what the images are (default: cine_ed)")
    door.add_argument("--series-rules", type=Path, help="YAML file that says which DICOM series are wanted")
    door.add_argument("--labels", help="label map: a file, or a name in conf/labels")
    door.add_argument(
        "--columns", type=Path, help="YAML file: which columns of a table may pass, and what stands for a missing value"
    )
    door.add_argument("--id-column", help="a table's column of patient identifiers (default: the first)")
    door.add_argument("--mapping", type=Path, help="YAML file: which clinical values FHIR bundles or NDJSON files give")
    door.add_argument("--quiet", action="store_true", help="don't list the admitted")
    door.set_defaults(run=_admit)
    inside = commands.add_parser("cohort", help="count who is inside")
    inside.add_argument("--study", help="also count whom this study can use: its file, or the beginning of its hash")
    inside.add_argument("--list", action="store_true", help="one line per patient: inside, refused or in quarantine, and why")
    inside.set_defaults(run=_cohort)
    masks = commands.add_parser("segment", help="masks of a trained model; they stay here")
    masks.add_argument("model", type=Path, help="model.pt of a run, or the run's folder")
    masks.add_argument("folder", type=Path, nargs="?", help="DICOM files (default: the patients that were let in)")
    masks.add_argument("--out", type=Path, required=True, help="a new folder for the masks")
    masks.add_argument("--study", help="a study's file, or the beginning of its hash (default: record.json beside the model)")
    masks.add_argument("--patient", action="append", default=[], help="pseudonym; may be given several times (default: all)")
    masks.add_argument("--series-rules", type=Path, help="YAML file that says which DICOM series is which")
    masks.add_argument("--labels", default="cardiac", help="label map with the codes for DICOM SEG (default: cardiac)")
    add_members(masks)
    add_heat_maps(masks)
    masks.set_defaults(run=_segment)
    model = commands.add_parser("add-model", help="keep a trained model that studies lean on")
    model.add_argument("file", type=Path, help="model.pt of a run, or the run's folder")
    model.set_defaults(run=_add_model)
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
    table.add_argument("--workers", type=whole(1), help="processes (default: one per core)")
    table.set_defaults(run=_features)


def _admit(site: Site, options: argparse.Namespace) -> int:
    from fl_client import admission  # here: image readers take seconds to import

    if options.mapping:
        return admission.admit_clinical(site, options.folder, mapping=options.mapping, quiet=options.quiet)
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


def _cohort(site: Site, options: argparse.Namespace) -> int:
    from fl_client import admission

    asked = study_of(site, options.study) if options.study else None
    status = admission.cohort(site, everybody=options.list)
    if asked is not None:
        from fl_client.suitability import tell_usable  # here: tasks import torch

        tell_usable(site, asked)
    return status


def _segment(site: Site, options: argparse.Namespace) -> int:
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
        members=options.members,
        also=options.also,
        heat_maps=options.heat_maps,
    )


def _add_model(site: Site, options: argparse.Namespace) -> int:
    from fl_client.models import add_model  # here: torch takes seconds to import

    return add_model(site, options.file)


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
