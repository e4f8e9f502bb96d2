"""The radiomics page says what radiomics.json says, takes a section away with its key, and never shows a number that isn't."""

import base64
import io
import json
import re
import shutil
import subprocess
from html import escape

import numpy as np
import pytest
from drawn_radiomics import SITES, build
from PIL import Image
from test_report_page import Page, costs

from fl_server.record import Record
from simulation.report import summary_lines, write_report
from simulation.report.feature_map import MISSING, MOST_ROWS, feature_map
from simulation.report.radiomics_words import feature

SECTIONS = {  # key of radiomics.json -> heading that is there because of it
    "arms": "How well it ranks",
    "federated": "What a real federation would see",
    "bullseye": "Segment by segment: truth, prediction, uncertainty",
    "feature_map": "Feature map",
    "importance": "What it looks at",
    "shapley": "Single predictions, explained",
    "harmonisation": "Do the scanners still show?",
    "robustness": "Which columns survive another scanner and another hand",
    "checklist": "Checklist",
}
ALWAYS = ["What was asked, and of whom", "The promise, in words", "What this does not show", "Provenance"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The folder of a run with everything in it, what its radiomics.json holds, and the text of its report."""
    folder = tmp_path_factory.mktemp("radiomics")
    data = build(folder)
    return folder, data, write_report(folder).read_text()


@pytest.fixture(scope="module")
def page(report):
    return Page(report[2])


@pytest.fixture
def rewritten(tmp_path):
    """Write another radiomics.json into a small run folder, and read its report."""
    build(tmp_path, arms=(), drop=("feature_map", "bullseye"))

    def write(data):
        (tmp_path / "radiomics.json").write_text(data if isinstance(data, str) else json.dumps(data))
        return write_report(tmp_path).read_text()

    return write


def few(data):
    """The same with fewer arms, rows and pictures, which take a report its time."""
    arms = {key: data["arms"][key] for key in ("forest_private", "forest_plain", "alone_random_forest")}
    rows = {key: values[:40] for key, values in data["feature_map"].items()}
    importance = {"forest_private": data["importance"]["forest_private"]}
    parts = {key: data[key][:1] for key in ("bullseye", "shapley")}
    return {**data, "arms": arms, "feature_map": rows, "importance": importance, "bullseye_mean": {}, **parts}


def headings(text):
    return re.findall(r"<h2>(.*?)</h2>", text)


def row(page, name, after):
    """Cells of the row that begins with this name, in the table that holds the heading `after`."""
    cells = [" ".join(cell.split()) for cell in page.cells]
    start = cells.index(name, cells.index(after))
    return cells[start : start + 9]


def image(text, alt):
    """Pixels of the raster image in the drawing with this alternative text, at its own size."""
    drawing = text[text.index(f'aria-label="{alt}') :]
    found = re.search(r"data:image/png;base64,\s*([A-Za-z0-9+/=\s]+)\"", drawing[: drawing.index("</svg>")])
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found.group(1)))).convert("RGB"))


def test_the_sections_come_in_the_order_in_which_they_are_read(report, page):
    assert headings(report[2]) == [
        "What was asked, and of whom",
        "How well it ranks",
        "What a real federation would see",
        "Can its probabilities be believed?",
        "Was federating worth it?",
        "Segment by segment: truth, prediction, uncertainty",
        "Feature map",
        "What it looks at",
        "Single predictions, explained",
        "Do the scanners still show?",
        "Which columns survive another scanner and another hand",
        "Checklist",
        "The promise, in words",
        "What this does not show",
        "Provenance",
    ]
    places = [
        page.text.index(words)
        for words in ("Complete: every hospital", "6 hospitals learned", "AUC, certain segments", "What was asked")
    ]
    assert places == sorted(places)


def test_the_key_figures_are_those_of_the_private_forest(report, page):
    arms = report[1]["arms"]
    private, plain, unet = (arms[key] for key in ("forest_private", "forest_plain", "forest_unet_private"))
    certain, every = private["auc_certain"], private["auc"]
    assert (
        f"AUC, certain segments {certain['value']:.3f} 95% CI {certain['low']:.3f} to {certain['high']:.3f} "
        f"AUC, all segments {every['value']:.3f} " in page.text
    )
    assert "ε spent 2.99 highest of 6 hospitals, per patient, δ = 0.001" in page.text
    youden = private["youden"]
    assert f"Sensitivity / specificity {youden['sensitivity']:.2f} / {youden['specificity']:.2f}" in page.text
    assert f"at the Youden threshold, {youden['threshold']:.2f}" in page.text
    by_privacy = certain["value"] - plain["auc_certain"]["value"]
    by_masks = unet["auc_certain"]["value"] - certain["value"]
    assert f"AUC change by privacy −{-by_privacy:.3f}" in page.text
    assert f"AUC change by U-Net's masks −{-by_masks:.3f}" in page.text
    assert f"Brier score {private['brier']:.3f}" in page.text
    assert f"{100 * certain['value']:.0f} of 100 pairs" in page.text


def test_every_hospital_stands_with_scanner_patients_positives_epsilon_and_auc(report, page):
    data = report[1]["feature_map"]
    for i, (name, scanner) in enumerate(SITES.items()):
        positive = sum(p for n, p in zip(data["row_hospital"], data["row_positive"], strict=True) if n == name)
        auc = report[1]["arms"]["forest_private"]["by_hospital"][name]
        assert row(page, name, "Scanner")[1:7] == [
            scanner,
            "8",
            "128",
            f"{positive} {100 * positive / 128:.0f}%",
            f"{np.ceil((2.99 - 0.015 * i) * 100 - 1e-9) / 100:.2f}",
            f"{auc['value']:.3f} {auc['low']:.3f} to {auc['high']:.3f}",
        ]


def test_what_is_known_of_no_hospital_has_no_column(rewritten):
    cells = [" ".join(cell.split()) for cell in Page(rewritten({})).cells]
    assert cells[: cells.index("alster")] == ["Hospital", "Scanner", "Patients", "ε spent"]


def test_counts_by_hospital_are_taken_from_the_key_of_that_name_first(rewritten):
    told = {"alster": {"patients": 41, "rows": 41, "positive": 13, "scanner": "Cleveland"}}
    assert row(Page(rewritten({"hospitals": told})), "alster", "Scanner")[1:5] == ["Cleveland", "41", "13 32%", "2.99"]


def test_every_arm_stands_with_learner_masks_epsilon_auc_and_brier(report, page):
    said = {"forest": "federated forest", "logistic": "logistic regression", "mlp": "neural network"}
    for arm in report[1]["arms"].values():
        cells = row(page, arm["label"], "Learner")
        assert cells[1:4] == [
            said.get(arm["learner"], arm["learner"]),
            "U-Net" if arm["masks"] == "unet" else "expert",
            "none" if arm["epsilon"] is None else "3.00",
        ]
        for cell, key in zip(cells[4:6], ("auc", "auc_certain"), strict=True):
            assert cell == "{value:.3f} {low:.3f} to {high:.3f}".format(**arm[key])
        assert cells[6] == f"{arm['brier']:.3f}"


def test_noisy_histograms_stand_beside_the_exact_numbers_with_the_error_of_the_noise(report, page):
    noisy, exact = report[1]["federated"]["forest_private"], report[1]["arms"]["forest_private"]
    assert row(page, "AUC", "With noise")[1:3] == [f"{noisy['auc']:.3f} ± 0.009", f"{noisy['auc_exact']:.3f}"]
    assert row(page, "Brier score", "With noise")[1:3] == [f"{noisy['brier']:.3f} ± 0.006", f"{exact['brier']:.3f}"]
    cuts = [f"{cut['sensitivity']:.2f} / {cut['specificity']:.2f}" for cut in (noisy["youden"], exact["youden"])]
    cuts[0] += " ± 0.04 / ± 0.05"
    assert row(page, "Youden threshold sens. / spec.", "With noise")[1:3] == cuts
    assert "the noise moved it by −0.012. Noise of this size alone moves it by 0.009" in page.text


def test_what_a_federation_could_not_see_is_said(rewritten):
    why = "no curve can be drawn: counted were 2.1 positives where the noise alone has a standard deviation of 4.4"
    text = rewritten({"federated": {"forest_private": {"words": why, "auc": None, "noise_std": 4.4, "bins": 20}}})
    assert SECTIONS["federated"] in headings(text)
    assert f"N{why[1:]}." in Page(text).text


def test_calibration_is_told_with_the_error_that_chance_alone_would_make(page):
    assert "calibration error 0.041 , by chance alone 0.027" in page.text


def test_the_label_and_what_counts_as_certain_are_those_of_the_study(page):
    assert "Positive means “call_NN” (NN: the segment) of 1 or more." in page.text
    assert "Of a segment the reader was certain from a certainty of 3 on." in page.text
    assert "Promised to every patient: ε at most 3.00 over everything that is asked." in page.text


def test_each_segment_of_a_bulls_eye_shows_its_own_number(report):
    told = re.findall(r'aria-label="Bull&#x27;s eye of the (.*?) patient, (.*?) by segment: (.*?)\."', report[2])
    assert len(told) == 9
    blocks = {block["which"]: block for block in report[1]["bullseye"]}
    for which, title, numbers in told:
        key, factor, digits = {
            "truth (1: positive)": ("truth", 1, 0),
            "predicted probability, %": ("prediction", 100, 0),
            "uncertainty of the prediction": ("uncertainty", 1, 2),
        }[title]
        values = blocks[which][key]
        shown = [f"{k} " + ("–" if v is None else f"{factor * v:.{digits}f}") for k, v in enumerate(values, start=1)]
        assert numbers == ", ".join(shown)


def test_where_the_reader_erred_or_was_unsure_is_said(report, page):
    block = report[1]["bullseye"][1]
    pairs = list(zip(block["truth"], block["call"], block["certainty"], strict=True))
    other = [str(k) for k, (truth, call, _) in enumerate(pairs, start=1) if truth is not None and truth != call]
    unsure = [str(k) for k, (*_, grade) in enumerate(pairs, start=1) if grade is not None and grade < 3]
    assert f"The reader called segments {', '.join(other)} otherwise and was unsure (certainty below 3) about" in page.text
    assert f"about {', '.join(unsure)}." in page.text


def test_single_predictions_add_up_from_the_average_to_the_prediction(report):
    for entry in report[1]["shapley"]:
        told = re.search(
            rf'aria-label="Prediction {entry["prediction"]:.3f} for [^"]*from the average 0.410: ([^"]*)"', report[2]
        )
        parts = [float(part.rsplit(" ", 1)[1].replace("−", "-")) for part in told.group(1).rstrip(".").split("; ")]
        assert sum(parts) == pytest.approx(entry["prediction"] - entry["base"], abs=0.006)
        assert len(parts) == 9  # eight, and the others together
        largest = max(entry["values"], key=lambda v: abs(v["shapley"]))
        assert told.group(1).startswith(f"{feature(largest['column'])} = ")


def test_columns_are_listed_by_robustness_and_hollow_below_the_threshold(report, page):
    rows = report[1]["robustness"]
    robust = [r for r in rows if min(r["icc_rescan"], r["icc_mask"]) >= 0.75]
    assert f"{len(robust)} of {len(rows)} columns keep an intraclass correlation (ICC) of 0.75 or more" in page.text
    for r in rows:
        cells = row(page, f"{feature(r['column'])} {r['column']}", "Rescanned on another scanner")
        assert cells[1:3] == [f"{r['icc_rescan']:.3f}", f"{r['icc_mask']:.3f}"]
    below = sum(value < 0.75 for r in rows for value in (r["icc_rescan"], r["icc_mask"]))
    assert report[2].count('<rect class="short"') == below + 1  # and one in the legend


def test_open_items_of_the_checklist_are_marked_and_counted(report, page):
    assert "3 of 6 items are filled in by the software" in page.text
    assert report[2].count('<b class="filled">✓ filled</b>') == 3
    assert report[2].count('<b class="open">open</b>') == 3
    assert "pyradiomics 3.1.4, feature hash 9f2c1b" in page.text


def test_the_scanners_share_is_told_before_and_after_harmonisation(page):
    assert row(page, "Entropy, original", "Before")[1:3] == ["0.52", "0.03"]
    assert "The AUC was 0.722 (95% CI 0.690 to 0.750) before and 0.739 (95% CI 0.710 to 0.770) after" in page.text


def test_the_heat_map_shows_at_most_400_rows_and_grey_where_a_value_is_missing(report, page):
    values = report[1]["feature_map"]["values"]
    assert "400 of 768 segments are shown" in page.text
    pixels = image(report[2], "Clustered heat map of 400 segments and 32 columns")
    assert pixels.shape == (MOST_ROWS, 32, 3)
    kept = np.unique(np.linspace(0, len(values) - 1, MOST_ROWS).astype(int))
    missing = sum(value is None for i in kept for value in values[i])
    grey = tuple(int(MISSING[i : i + 2], 16) for i in (1, 3, 5))
    assert int((pixels == grey).all(axis=2).sum()) == missing > 100


def test_rows_that_are_alike_stand_together(rewritten):
    rng = np.random.default_rng(3)
    kind = rng.permutation([0, 1, 2] * 10)
    values = (np.array([-2.0, 0.0, 2.0])[kind][:, None] * [1, 1, -1, -1] + rng.normal(0, 0.1, (30, 4))).round(2)
    data = {"columns": ["a", "b", "c", "d"], "rows": [str(k) for k in kind], "values": values.tolist()}
    pixels = image(rewritten({"feature_map": data}), "Clustered heat map of 30 patients and 4 columns").astype(int)
    redness = pixels[:, :, 0] - pixels[:, :, 2]  # above 0 red, below 0 blue
    changes = np.abs(np.diff(np.digitize(redness[:, 0], [-80, 80])))
    assert np.count_nonzero(changes) == 2  # three blocks of rows
    assert np.count_nonzero(np.diff(np.sign(redness[0]))) <= 1  # two blocks of columns


def test_a_ragged_or_empty_heat_map_is_none():
    assert feature_map({"columns": ["a", "b"], "values": [[1, 2], [1]]}) is None
    assert feature_map({"columns": ["a", "b"], "values": [[1, None], [2, None]]}) is None
    assert feature_map({"columns": ["a", "b"], "values": []}) is None
    assert feature_map(None) is None


def test_a_section_is_there_exactly_if_its_key_is(report, rewritten):
    found = {key: set(headings(rewritten({key: few(report[1])[key]}))) - set(ALWAYS) for key in SECTIONS}
    assert found.pop("arms") == {SECTIONS["arms"], "Can its probabilities be believed?", "Was federating worth it?"}
    assert found == {key: {heading} for key, heading in SECTIONS.items() if key != "arms"}
    assert headings(rewritten({})) == ALWAYS


def nulled(value, rng, share):
    """The same with so many of its numbers and words null."""
    if isinstance(value, dict):
        return {key: nulled(inner, rng, share) for key, inner in value.items()}
    if isinstance(value, list):
        return [nulled(inner, rng, share) for inner in value]
    return None if rng.random() < share else value


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_nulls_anywhere_are_neither_an_error_nor_a_word(report, rewritten, share):
    rng = np.random.default_rng(8)
    for key, part in few(report[1]).items():
        text = rewritten({key: nulled(part, rng, share)})
        words = re.sub(r"<pre>.*?</pre>|<style>.*?</style>", "", text, flags=re.DOTALL)
        assert not re.search(r"\b(nan|None|inf|null)\b", words), key


@pytest.mark.parametrize("empty", [{}, [], None, 7, "x"])
def test_a_key_without_what_it_should_hold_counts_as_missing(rewritten, empty):
    assert headings(rewritten(dict.fromkeys([*SECTIONS, "columns", "bullseye_mean"], empty))) == ALWAYS


def test_what_is_no_json_object_is_refused_in_words(rewritten):
    with pytest.raises(ValueError, match=r"radiomics\.json must hold a JSON object, not list"):
        rewritten([])
    with pytest.raises(ValueError, match=r"radiomics\.json is no JSON"):
        rewritten("{")


def test_names_that_others_chose_are_shown_as_they_are_and_run_nothing(rewritten):
    evil = "<b>$a$ & b_1</b>"
    estimate = {"value": 0.7, "low": 0.6, "high": 0.8}
    arm = {"label": evil, "auc": estimate, "by_hospital": {evil: {**estimate, "patients": 5}}, "learner": evil}
    text = rewritten(
        {
            "arms": {"forest_private": arm, evil: arm},
            "importance": {evil: [{"column": evil, "mean": 0.1, "sd": 0.01}]},
            "checklist": [{"number": 1, "section": evil, "item": evil, "filled": True, "text": evil}],
        }
    )
    assert "<b>$a$" not in text
    assert Page(text).text.count(evil) >= 7


def test_the_page_asks_nothing_of_any_network_and_every_picture_says_what_it_shows(report, page):
    text = report[2]
    assert "http" not in text
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import", text)
    for tag, attributes in page.attributes:
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, name)
    assert re.findall(r"url\((?!#)", text) == []
    assert len(text) < 3_000_000
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for tag, attributes in page.attributes if tag == "use"} <= set(ids)
    pictures = [attributes for tag, attributes in page.attributes if tag == "svg"]
    assert len(pictures) > 40
    assert all(len(a.get("aria-label", "")) > 20 or a.get("aria-hidden") == "true" for a in pictures)


def test_a_report_written_twice_is_the_same(report, rewritten):
    assert rewritten(few(report[1])) == rewritten(few(report[1]))


def test_the_promise_is_to_the_patient_and_generated_data_are_no_evidence(page):
    assert "The promise is to the patient and not to the segment" in page.text
    assert "had one patient, with all images, segments and clinical values, been added or removed" in page.text
    assert f"by at most a factor of {np.exp(2.99):.1f} (e to the power of 2.99" in page.text
    assert "trained each classifier 10 times, and ε is that of one" in page.text
    assert "Generated data are no evidence about patients" in page.text


def test_seconds_stand_beside_the_peak_memory_of_each_phase_where_the_record_tells_it(tmp_path):
    build(tmp_path, arms=(), drop=("feature_map", "bullseye"))
    plain = ("Phase", "Seconds", "hospitals", "212.4", "features", "95.1", "total", "401.0")
    assert costs(Page(write_report(tmp_path).read_text()))[: len(plain)] == list(plain)
    record = Record.read(tmp_path / "record.json")
    record.memory_mb, record.peak_memory_mb = {"hospitals": 1404.2, "features": 310.0}, 1404.2
    record.write(tmp_path / "record.json")
    assert costs(Page(write_report(tmp_path).read_text())) == [
        *("Phase", "Seconds", "Peak memory MiB"),
        *("hospitals", "212.4", "1,404"),
        *("features", "95.1", "310"),
        *("total", "401.0", "1,404"),
    ]


def test_a_study_without_privacy_says_so_and_a_small_one_is_no_evidence(tmp_path):
    build(tmp_path, kind="none", profile="small", arms=("forest_plain",), verdict="degraded", drop=list(SECTIONS)[1:])
    text = write_report(tmp_path).read_text()
    words = Page(text).text
    assert "This study ran without a privacy promise" in words
    assert "Rehearsal-size figures (profile small); not evidence." in words
    assert "round 1: spree declined (another feature hash <9f2c>)" in words
    assert "ε spent 2" not in words
    assert "Generated data are no evidence" in words


def test_the_last_lines_on_the_screen_tell_auc_and_epsilon_by_arm_and_hospital(report):
    folder, data, _ = report
    lines = summary_lines(folder)
    assert lines[0] == "Complete: every hospital was used in every round."
    private, alone = data["arms"]["forest_private"], data["arms"]["alone_random_forest"]
    assert lines[1].split("  AUC ")[1] == (
        f"{private['auc']['value']:.3f}, certain segments {private['auc_certain']['value']:.3f}  ε 3.00"
    )
    assert f"  AUC {alone['auc']['value']:.3f}, certain segments {alone['auc_certain']['value']:.3f}  no ε" in lines[9]
    assert lines[10] == "Federated forest with privacy, by hospital:"
    assert lines[11] == f"  alster  AUC {private['by_hospital']['alster']['value']:.3f}  ε 2.99"
    assert lines[-1] == f"Report: {folder / 'report.html'}"
    assert len(lines) == 1 + len(data["arms"]) + 1 + len(SITES) + 1


@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_it_without_an_error_or_anything_beyond_the_margin(report, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    frame = tmp_path / "frame.html"  # no window is narrower than 500, a frame is
    width_of = (
        "const shown = this.contentDocument.documentElement; document.title = shown.scrollWidth + ' of ' + shown.clientWidth"
    )
    style = f"border:0;width:{width}px;height:900px"
    frame.write_text(f'<iframe style="{style}" onload="{width_of}" srcdoc="{escape(report[2])}"></iframe>')
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --hide-scrollbars"
    )
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --window-size=1300,1000"
    flags += " --enable-logging=stderr --dump-dom"
    shown = subprocess.run([browser, *flags.split(), frame.as_uri()], check=True, capture_output=True, timeout=120, text=True)
    assert re.search(r"<title>(.*?)</title>", shown.stdout).group(1) == f"{width} of {width}"
    assert "CONSOLE" not in shown.stderr
