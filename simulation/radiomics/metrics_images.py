"""METRICS items 1 to 13, from the study's design to the parameters of its features: what the software knows of them."""

from __future__ import annotations

from typing import Any

from simulation.radiomics.metrics_items import SOURCE
from simulation.radiomics.metrics_known import NO_IMAGES, Answer, Json, Known, counted, estimate, extraction_of, spread
from tasks.radiomics.features import version as engine_version

IBSI = (
    "Against the digital phantom of the Image Biomarker Standardisation Initiative (arXiv 1612.07003) 99 of 102 features agree "
    "to the digits given; kurtosis and the two shorter axis lengths differ by definition"
)


# -- study design ----------------------------------------------------------------------------------------------------------


def _guideline(known: Known) -> Answer:
    return Answer(False, f"This list is {SOURCE}.")


def _eligibility(known: Known) -> Answer:
    out = sum(len(entry.get("left_out") or {}) for entry in known.hospitals.values())
    if not known.hospitals:
        return Answer(False)
    said = f"{known.total('patients')} patients of {len(known.hospitals)} hospitals; {out or 'no'} more could not be used"
    if known.generated:
        mixes = {disease for site in known.generated.sites.values() for disease in site.case_mix}
        said += f". They are generated, from a case mix of {', '.join(sorted(mixes))}, and represent nobody"
    return Answer(False, f"{said}.")


def _reference(known: Known) -> Answer:
    label, sure = known.settings.label, known.settings.certainty
    said = f"Positive is an endpoint {label.endpoint} of {label.positive_from:g} or more"
    if sure:
        use = {
            "exclude": f"labels below {sure.least} of {sure.most} in certainty are left out of training",
            "weight": f"labels count by their certainty of 1 to {sure.most}",
            "all": "labels count whatever their certainty",
        }[sure.use]
        said += f"; {use}"
    if known.generated:
        said += "; the patients are generated, so the truth is known and was used to draw them"
    return Answer(False, f"{said}.")


# -- imaging data ----------------------------------------------------------------------------------------------------------


def _centres(known: Known) -> Answer:
    scanners = list(dict.fromkeys(str(e["scanner"]) for e in known.hospitals.values() if e.get("scanner")))
    if not known.hospitals:
        return Answer(False)
    count = len(known.hospitals)
    said = f"{'Yes' if count > 1 else 'No'}: {counted(count, 'hospital')}" + (" (generated)" if known.generated else "")
    if known.image is None:
        return Answer(True, f"{said}; the study uses no images.")
    return Answer(True, f"{said}" + (f", scanners {', '.join(scanners)}." if scanners else "."))


def _translatable(known: Known) -> Answer:
    return Answer(False, f"The images are the series {known.image.series}.") if known.image else Answer(True, NO_IMAGES)


def _protocol(known: Known) -> Answer:
    if known.image is None:
        return Answer(True, NO_IMAGES)
    if known.generated is None:
        scanners = ", ".join(f"{name}: {e['scanner']}" for name, e in known.hospitals.items() if e.get("scanner"))
        return Answer(False, f"Scanners: {scanners}." if scanners else "")
    made = [site.scanner for site in known.generated.sites.values()]
    fields = ", ".join(f"{name} at {t:g} T" for name, t in dict.fromkeys((s.manufacturer, s.field_strength_t) for s in made))
    return Answer(
        True,
        f"Generated {known.image.series} of {fields}: pixels of {spread([s.pixel_mm for s in made])} mm, matrices of "
        f"{spread([s.matrix for s in made])}, slices of {spread([s.slice_thickness_mm for s in made])} mm with gaps of "
        f"{spread([s.slice_gap_mm for s in made])} mm, gadolinium {spread([s.gadolinium_mmol_per_kg for s in made])} mmol/kg, "
        f"delay {spread([s.delay_min for s in made])} min; every other number stands in the run's settings.",
    )


def _interval(known: Known) -> Answer:
    if known.generated and known.settings.label.endpoint.startswith(("call_", "segment_")):
        return Answer(True, "None: the label is what is seen, or what is there, in the generated scan itself.")
    return Answer(False)


# -- segmentation ----------------------------------------------------------------------------------------------------------


def _segmentation(known: Known) -> Answer:
    if known.image is None:
        return Answer(True, NO_IMAGES)
    regions = "divided into the 17 AHA segments by where they lie" if known.image.regions == "aha" else "taken as one region"
    said = []
    if "reader" in known.world.classifier.masks and known.generated:
        readers = [site.reader for site in known.generated.sites.values()]
        said.append(
            "A simulated reader at each hospital drew the contours: the truth, displaced by "
            f"{spread([r.contour_bias_mm for r in readers])} mm systematically and "
            f"{spread([r.contour_sd_mm for r in readers])} mm (standard deviation) along the contour"
        )
    if known.predicted:
        channels = known.world.simulation.task.get("channels")
        levels = f" of {len(channels)} levels" if isinstance(channels, list) else ""
        said.append(f"A U-Net{levels}, trained across the hospitals, drew masks in patients that it had not been trained on")
    whole = known.generated is not None or "reader" not in known.world.classifier.masks
    said = said or ["Masks are the hospitals' readers'"]
    return Answer(whole, f"{'. '.join(said)}. Masks were {regions}.")


def _automated(known: Known) -> Answer:
    if not known.predicted:
        return Answer(True, "Does not apply: no masks of an automated tool are used.")
    dice: dict[str, list[float]] = {}
    for site in known.record.sites.values():
        for structure, value in site.dice.items():
            dice.setdefault(structure, []).append(value)
    if dice:
        mean = ", ".join(f"{name.replace('_', ' ')} {sum(v) / len(v):.3f}" for name, v in dice.items())
        return Answer(True, f"Dice against the readers' masks, mean over {len(known.record.sites)} hospitals: {mean}.")
    arms: Json = known.facts.get("arms") or {}
    pair = [estimate((arms.get(name) or {}).get("auc")) for name in ("forest_unet_private", "forest_private")]
    said = f"AUC with the U-Net's masks {pair[0]}, with the readers' {pair[1]}; overlap was not measured." if all(pair) else ""
    return Answer(False, said)


def _test_masks(known: Known) -> Answer:
    if known.image is None:
        return Answer(True, NO_IMAGES)
    if known.predicted:
        return Answer(True, "Yes, one tool: the U-Net's masks, which nobody corrected. Readers' masks are an arm beside it.")
    if known.generated:
        return Answer(True, "Yes, one reader: each hospital's own simulated reader drew all of its masks.")
    return Answer(False, "The masks are those that the hospitals let in.")


# -- image processing and feature extraction --------------------------------------------------------------------------------


def _preprocessing(known: Known) -> Answer:
    if known.image is None or known.extractor is None:
        return Answer(True, NO_IMAGES)
    settled = known.extractor.settled
    own = settled["set"]
    scale = {
        "none": "grey values as they are stored",
        "remote": "grey values in % of the patient's own left-ventricular range, 0 in remote muscle",
        "myocardium": "grey values standardised within the patient's myocardium",
    }.get(known.image.intensity, known.image.intensity)
    spacing = own.get("resampledPixelSpacing")
    filters = ", ".join(f"{name}{_options(options)}" for name, options in settled["image"].items())
    bins = f"{own['binCount']} bins" if own.get("binCount") else f"bins of width {own.get('binWidth', 25):g}"
    where = f"resampled to {spacing} mm" if spacing else "no resampling"
    how = "slices one by one" if own.get("force2D") else "in three dimensions"
    return Answer(True, f"{scale[0].upper()}{scale[1:]}; {where}; images: {filters}; {bins}; {how}.")


def _options(options: Any) -> str:
    return f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""


def _software(known: Known) -> Answer:
    if known.image is None:
        return Answer(True, NO_IMAGES)
    return Answer(True, f"pyradiomics, as {engine_version()}. {IBSI}.")


def _parameters(known: Known) -> Answer:
    if known.image is None or known.extractor is None:
        return Answer(True, NO_IMAGES)
    classes = ", ".join(
        f"{name} ({len(names)})" if names else name for name, names in known.extractor.settled["feature"].items()
    )
    extraction = extraction_of(known.record) or known.image.identity
    return Answer(
        True,
        f"Hand-crafted features of the classes {classes}; the whole parameter file stands in the study, everything else is "
        f"pyradiomics' default. Extraction {extraction[:16]}: a hospital that would compute other numbers declines.",
    )


ANSWERS = (
    *(_guideline, _eligibility, _reference),
    *(_centres, _translatable, _protocol, _interval),
    *(_segmentation, _automated, _test_masks),
    *(_preprocessing, _software, _parameters),
)
"""Items 1 to 13, in order."""
