"""The 30 items of METRICS, and what a person has to write where no software can know the answer.

Kocak B, Akinci D'Antonoli T, Mercaldo N et al.: METhodological RadiomICs Score (METRICS). Insights into Imaging 15:8 (2024),
https://doi.org/10.1186/s13244-023-01572-w. Numbers and categories are theirs; the items are said in our own words. METRICS
weighs them into a score; that is a judgement, and no program that is part of the study may make it.
"""

from __future__ import annotations

from dataclasses import dataclass

SOURCE = (
    "METRICS (Kocak et al. 2024, Insights into Imaging 15:8). Numbers and categories are its own; the items are paraphrased"
)


@dataclass(frozen=True)
class Item:
    """One item: its number and category in METRICS, what it asks for, and what a person has to write."""

    number: int
    section: str
    item: str
    to_write: str


def _items() -> tuple[Item, ...]:
    found: list[Item] = []
    for section, asked in _ASKED.items():
        found += [Item(len(found) + number, section, item, to_write) for number, (item, to_write) in enumerate(asked, 1)]
    return tuple(found)


_ASKED = {
    "Study design": (
        (
            "A checklist or guideline for radiomics or machine learning was followed",
            "which one guided design and reporting (CLEAR, for instance), and where it stands filled in",
        ),
        (
            "Who was eligible, and whether these are the patients that the model is meant for",
            "criteria of inclusion and exclusion, the period, whether patients were consecutive, the vote of the ethics "
            "committee",
        ),
        (
            "A reference standard of high quality, clearly defined",
            "what the label rests on (histology, follow-up, consensus of how many experts), and why that is good enough",
        ),
    ),
    "Imaging data": (
        ("Images from more than one centre", "the centres that the images come from"),
        (
            "Images as clinical routine or a guideline for protocols makes them",
            "which guideline or routine the images follow, and what would differ where the model is to be used",
        ),
        (
            "Imaging protocol with the parameters of acquisition",
            "scanner, sequence, resolution, contrast agent and its delay, at each hospital",
        ),
        (
            "Time between the images and the reference standard",
            "how long it was, and why that is short enough for this question",
        ),
    ),
    "Segmentation": (
        (
            "How regions were segmented",
            "who drew them, with how much experience and which tool, blinded to what, and how disagreement was settled",
        ),
        (
            "Fully automated segmentation judged against an expert's",
            "overlap with an expert's masks (Dice) on patients that the model had not seen, with examples",
        ),
        (
            "Masks of the test patients by one reader or one automated tool",
            "whether one reader, or one tool without corrections, made the masks that the model was tested on",
        ),
    ),
    "Image processing and feature extraction": (
        ("Preprocessing that suits the images, fully described", "what was done to the images before features were taken"),
        ("Standardised software for feature extraction", "the software, its version, and how it agrees with the IBSI"),
        ("All parameters of the extraction", "the parameter file, or that all are the software's defaults"),
    ),
    "Feature processing": (
        (
            "Features that are not robust were removed",
            "how features hold under another scan and other contours, and which were left out for it",
        ),
        ("Redundant features were removed", "how the columns were chosen from all features, and on whose data"),
        ("Number of features against the amount of data", "why so many features are fit for so many patients"),
        ("Robustness of end-to-end deep learning", "how the network's answer holds under another scan"),
    ),
    "Preparation for modeling": (
        (
            "Training and test data divided properly",
            "how patients were divided before anything was learned, and what was fitted on training patients alone",
        ),
        (
            "Confounding factors",
            "which factors (age, sex, severity, scanner) differ between the classes, and what was done about it",
        ),
    ),
    "Metrics and comparison": (
        ("Measures of performance that suit the task", "area under the curve, sensitivity, specificity, a confusion matrix"),
        ("Uncertainty of the results", "intervals, and how they were made"),
        ("Calibration", "whether probabilities mean what they say"),
        (
            "One kind of image, or proof that one is not enough",
            "why several kinds of images are needed, and a comparison with one",
        ),
        (
            "Compared with a non-radiomic approach, or clinical value shown",
            "what clinical practice does today (a reader's call, a measured size), how well it does on the same patients, and "
            "what a decision would gain",
        ),
        (
            "Compared with simple or classical statistical models",
            "a simple model on the same patients, and whether it is worse",
        ),
    ),
    "Testing": (
        ("Internal testing", "the result on patients of the same hospitals that no training has seen"),
        ("External testing", "the result at a hospital none of whose patients took part in training or in any choice"),
    ),
    "Open science": (
        ("Data available", "which images, masks or tables others can have, where, and on what terms"),
        ("Code available", "where the code can be had, with instructions"),
        ("Model available", "where the trained model can be had, with instructions"),
    ),
}

ITEMS = _items()
