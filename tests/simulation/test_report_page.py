"""The page says what the run folder says: no other number, no other verdict, and nothing from any network."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from typing import get_args

import numpy as np
import pytest
from drawn_run import HEART, HIPPOCAMPUS, REASON, SITES, build
from PIL import Image

from fl_server.record import Answer, Record
from simulation.report import summary_lines, write_report


class Page(HTMLParser):
    """Text, attributes and whether every element is closed in order."""

    VOID = ("meta", "br", "img", "link", "hr", "input")

    def __init__(self, text):
        super().__init__()
        self.open, self.words, self.attributes, self.cells = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
            if {"td", "th"} & set(self.open):
                self.cells[-1] += " ".join(data.split()) + " "

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def site_mean(rows, arm, key):
    """Mean over seeds of the mean over hospitals of the mean over patients, the slow way."""
    by_seed = []
    for seed in sorted({r["seed"] for r in rows}):
        by_site = []
        for site in SITES:
            chosen = [r["scores"][key] for r in rows if (r["arm"], r["seed"], r["hospital"]) == (arm, seed, site)]
            by_site.append(np.mean(chosen))
        by_seed.append(np.mean(by_site))
    return np.mean(by_seed)


def test_the_numbers_are_those_of_the_scores(full_report):
    _, rows, text = full_report
    page = Page(text)
    for structure, name in (("blood_pool", "Blood pool"), ("myocardium", "Myocardium"), ("right_ventricle", "Right ventricle")):
        assert f"{name} Dice {site_mean(rows, 'federation_private', f'dice/{structure}'):.3f} 95% CI" in page.text
    for site in SITES:
        chosen = [r["scores"] for r in rows if (r["arm"], r["hospital"]) == ("federation_private", site)]
        start = page.cells.index(f"{site} ", page.cells.index("Scanner "))
        row = page.cells[start : start + 9]
        assert row[1].strip() == SITES[site]
        assert row[5].startswith(f"{np.mean([s['dice/blood_pool'] for s in chosen]):.3f} ")
        assert f"HD95 {np.nanmean([s['hd95_mm/myocardium'] for s in chosen]):.1f} mm" in row[6]
        assert row[8].strip() == f"{100 * np.mean([abs(s['ef_error']) for s in chosen]):.1f}"
    gap = [
        np.mean([site_mean(rows, arm, f"dice/{s}") for s in HEART]) for arm in ("federation_private", "federation_plain")
    ]  # every patient has all structures, so the order of the means doesn't matter
    assert f"Dice change by privacy −{gap[1] - gap[0]:.3f}" in page.text
    elsewhere = [
        v
        for r in rows
        if (r["arm"], r["role"]) == ("federation_private", "held_out")
        for k, v in r["scores"].items()
        if "dice" in k
    ]
    assert f"Dice at held-out hospital {np.mean(elsewhere):.3f}" in page.text
    assert "Highest ε spent 7.90 at δ = 0.001" in page.text


def test_the_verdict_comes_first_and_the_sections_in_order(full_report):
    text = Page(full_report[2]).text
    places = [
        text.index(words)
        for words in (
            "konsil study report",
            "Complete: every hospital was used in every round.",
            "5 hospitals trained one model together",
            "Blood pool Dice",
            "What it cost in privacy",
            "Hospital by hospital",
            "Who answered in each round",
            "Round by round",
            "Was federating worth it?",
            "Luck of the seed",
            "Which model on which hospital",
            "Best, median and worst patient",
            "The scanners side by side",
            "Volumes and function",
            "What this does not show",
            "Provenance",
        )
    ]
    assert places == sorted(places)
    assert "Sunnybrook, SCD-0005 : contours lie 41 mm" in text


def costs(page):
    start = page.cells.index("Phase ")
    return [cell.strip() for cell in page.cells[start:]]


def test_seconds_and_peak_memory_stand_side_by_side_for_each_phase(full_report):
    assert costs(Page(full_report[2])) == [
        *("Phase", "Seconds", "Peak memory MiB"),
        *("patients", "61.2", "1,404"),
        *("pretraining", "120.4", "–"),  # of this phase the record tells no memory
        *("federation private", "402.0", "2,210"),
        *("total", "583.6", "2,210"),
    ]


def test_a_record_of_an_older_konsil_tells_the_seconds_by_phase_alone(tmp_path):
    build(tmp_path, seeds=(0,), patients=3, rounds=6, real=False, overlays=False)
    record = json.loads((tmp_path / "record.json").read_text())
    del record["memory_mb"]
    (tmp_path / "record.json").write_text(json.dumps(record))
    cells = costs(Page(write_report(tmp_path).read_text()))
    assert cells == [
        "Phase",
        "Seconds",
        "patients",
        "61.2",
        "pretraining",
        "120.4",
        "federation private",
        "402.0",
        "total",
        "583.6",
    ]
    del record["timings"], record["peak_memory_mb"]
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert "Phase " not in Page(write_report(tmp_path).read_text()).cells


def test_the_page_asks_nothing_of_any_network(full_report):
    text = full_report[2]
    assert "http" not in text
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import", text)
    for tag, attributes in Page(text).attributes:
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, name)
    assert re.findall(r"url\((?!#)", text) == []
    assert len(text) < 4_000_000


def test_the_html_is_sound_and_every_picture_says_what_it_shows(full_report):
    page = Page(full_report[2])
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for tag, attributes in page.attributes if tag == "use"}
    assert targets <= set(ids)
    pictures = [attributes for tag, attributes in page.attributes if tag == "svg"]
    assert len(pictures) > 30
    assert all(len(a.get("aria-label", "")) > 20 or a.get("aria-hidden") == "true" for a in pictures)


def test_real_patients_are_told_by_structure_with_the_error_of_the_volume(full_report):
    _, rows, text = full_report
    chosen = [r["scores"] for r in rows if (r["arm"], r["role"]) == ("federation_private", "real")]
    page = Page(text)
    blood = f"{np.mean([s['dice/blood_pool'] for s in chosen]):.3f}"
    assert f"On 4 real patients from Sunnybrook it was {blood} for the blood pool (95% CI" in page.text
    start = page.cells.index("Sunnybrook ", page.cells.index("Data "))
    volume = f"{np.mean([s['volume_error_ml/blood_pool'] for s in chosen]):+.0f}".replace("-", "−")
    assert f"volume {volume} ml" in page.cells[start + 2]


def test_a_report_written_twice_is_the_same(full_report):
    folder, _, text = full_report
    assert write_report(folder).read_text() == text


def test_a_degraded_rehearsal_says_who_was_missing_and_claims_nothing(tmp_path):
    build(tmp_path, profile="small", seeds=(0,), patients=3, rounds=6, verdict="degraded", real=False, overlays=False)
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert "Degraded:" in page.text
    assert "Rehearsal-size figures: 40–44 patients per hospital, 6 rounds, 1 seed; not evidence." in page.text
    assert f"round 2: Eiche failed ({REASON})" in page.text
    assert "<deadline>" not in text  # escaped
    assert {name: text.count(f'<td class="{name}"') for name in get_args(Answer)} == {
        "used": 25,
        "failed": 1,
        "declined": 1,
        "quarantined": 1,
        "late": 1,
        "absent": 1,
    }
    assert 'class="higher"' not in text
    assert 'class="lower"' not in text
    assert "A difference from the same federation without privacy is not shown" in page.text
    assert "One seed was run" in page.text
    assert "On real patients" not in page.text


def test_a_start_that_cost_patients_something_is_named_beside_what_the_study_cost(tmp_path):
    build(tmp_path, profile="small", seeds=(0,), patients=3, rounds=6, real=False, overlays=False)
    assert "comes on top" not in Page(write_report(tmp_path).read_text()).text
    (tmp_path / "settings.json").write_text(json.dumps({"pretraining": {"intensities": ["runs/grey"]}}))
    (tmp_path / "start.json").write_text(json.dumps({"source": "the scale of study grey"}))
    text = Page(write_report(tmp_path).read_text()).text
    cost = text[text.index("What it cost in privacy") :]
    assert cost.index("All arms began with the scale of study grey. What that has cost") < cost.index("ledger says")


def test_three_seeds_and_an_interval_without_zero_make_a_claim(full_report):
    page = Page(full_report[2])
    assert "Compared with the same federation without privacy, its mean Dice was 0.0" in page.text
    assert 'class="higher"' in full_report[2]
    start = page.cells.index("Starting model, no hospital data ", page.cells.index("Compared with "))
    assert "higher" in page.cells[start + 1]  # one starting model against three seeds
    assert page.cells[start + 4].strip() == "3"


def test_nothing_at_all_is_reported_as_failed(tmp_path):
    build(tmp_path, rounds=0, arms=(), overlays=False, real=False, profile="small")
    text = Page(write_report(tmp_path).read_text()).text
    assert "Failed: the study did not reach its end." in text
    assert "No round was run" in text
    (tmp_path / "scores.jsonl").unlink()
    (tmp_path / "metrics.jsonl").unlink()
    assert "Failed:" in Page(write_report(tmp_path).read_text()).text
    assert summary_lines(tmp_path)[0] == "Failed: the study did not reach its end."


@pytest.mark.parametrize(
    ("task", "title"),
    [
        ("segmentation", "konsil study report"),
        ("synthesis", "konsil generator of scans"),
        ("intensity_scale", "konsil intensity scale"),
    ],
)
def test_every_kind_of_report_gives_every_reason_and_the_screen_the_first(tmp_path, task, title):
    build(tmp_path, rounds=0, arms=(), overlays=False, real=False)
    record = Record.read(tmp_path / "record.json")
    record.study["task"] = {"name": task}
    record.verdict, record.reasons = "degraded", [f"round {number}: nobody answered" for number in range(1, 9)]
    record.write(tmp_path / "record.json")
    text = Page(write_report(tmp_path).read_text()).text
    assert title in text
    places = [text.index(words) for words in [*record.reasons[:6], "2 more", *record.reasons[6:]]]
    assert places == sorted(places)
    screen = summary_lines(tmp_path)
    assert screen[1:6] == [f"  {reason}" for reason in record.reasons[:5]]
    assert screen[6] == "  and 3 more, in the report"


def test_other_organs_and_a_study_without_privacy_are_reported_in_their_own_words(tmp_path):
    build(
        tmp_path, structures=HIPPOCAMPUS, endpoints=False, real=False, overlays=False, kind="none", arms=("federation_plain",)
    )
    text = Page(write_report(tmp_path).read_text()).text
    assert "Anterior Dice" in text
    assert "ocardium" not in text
    assert "EF error" not in text
    assert "This study ran without a privacy promise" in text
    assert "ε spent" not in text


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_it_without_anything_beyond_the_margin(full_report, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    picture = tmp_path / "page.png"
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --hide-scrollbars"
    )
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --window-size={width},9000"
    command = [browser, *flags.split(), f"--screenshot={picture}", (full_report[0] / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (9000, width)
    assert (pixels[:, -8:] == pixels[0, -1]).all()  # the right margin stays empty
    assert (pixels[:, 20:-20] != pixels[0, -1]).mean() > 0.05
