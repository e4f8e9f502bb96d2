"""The report says what the run folder says: no other number, no other verdict, and nothing from any network."""

import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conf.study import Study
from fl_server.record import Record, Round, SiteRecord, SiteRound
from simulation.report import pictures, summary_lines, write_report
from simulation.report.results import ALONE_ELSEWHERE, ALONE_OWN, Run

SITES = {
    "Ahorn": "Siemens Avanto, 1.5 T",
    "Birke": "Philips Ingenia, 3 T",
    "Eiche": "GE Discovery, 3 T",
    "Linde": "Siemens Skyra, 3 T",
    "Ulme": "Canon Orian, 1.5 T",
}
HEART = {"blood_pool": 0.92, "myocardium": 0.81, "right_ventricle": 0.87}
HIPPOCAMPUS = {"anterior": 0.86, "posterior": 0.84}
GAIN = {"pretrained": -0.07, "ensemble": -0.02, "pooled": 0.012, "federation_plain": 0.01, "federation_private": 0.0}
REASON = "the site did not answer within 60 s <deadline>"


def build(
    folder: Path,
    *,
    structures=HEART,
    seeds=(0, 1, 2),
    rounds=12,
    patients=10,
    profile="standard",
    arms=(*GAIN, "alone"),
    verdict="complete",
    overlays=True,
    real=True,
    kind="patient",
    endpoints=True,
):
    """A run folder with drawn scores. Returns them as a list, as they stand in scores.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    study = Study(
        name="five-hospitals",
        konsil_version="0.1.0",
        task={"name": "segmentation"},
        rounds=max(rounds, 1),
        sites=tuple(SITES),
        privacy={"kind": kind, "epsilon": 8.0, "delta": 1e-3},
    )
    record = Record.begin(study, profile=profile, seeds=list(seeds), engine="inprocess", device="2 CPU cores")
    metrics, rows = [], []
    for number in range(1, rounds + 1):
        sites = {}
        for i, name in enumerate(SITES):
            spent = None if kind == "none" else round(7.9 * (number / max(rounds, 1)) ** 0.6 - 0.11 * i, 4)
            sites[name] = SiteRound(answer="used", epsilon=spent)
            for seed in seeds:
                for arm in ("federation_private", "federation_plain"):
                    if arm in arms:
                        grown = {
                            f"dice/{s}": level - 0.35 * np.exp(-number / 3) - 0.012 * i + rng.normal(0, 0.004)
                            for s, level in structures.items()
                        }
                        line = {
                            "arm": arm,
                            "seed": seed,
                            "round": number,
                            "hospital": name,
                            **grown,
                            "epsilon": spent,
                            "time_s": 1.5,
                        }
                        metrics.append(line)
        record.rounds.append(Round(round=number, sites=sites, seconds=3.1, arrays_sha256=f"{number:064x}"))
    if verdict == "degraded":
        record.rounds[1].sites["Eiche"] = SiteRound(
            answer="failed", reason=REASON, epsilon=record.rounds[0].sites["Eiche"].epsilon
        )
        record.rounds[3].sites["Ulme"] = SiteRound(
            answer="declined", reason="budget", epsilon=record.rounds[2].sites["Ulme"].epsilon
        )
        record.rounds[4].sites["Ahorn"] = SiteRound(
            answer="quarantined", reason="not finite", epsilon=record.rounds[4].sites["Ahorn"].epsilon
        )
        record.rounds[5].sites["Birke"] = SiteRound(
            answer="absent", reason="no answer", epsilon=record.rounds[4].sites["Birke"].epsilon
        )
    record.judge()
    hospitals = [(name, "site") for name in SITES] + [("Tanne", "held_out")] + ([("Sunnybrook", "real")] if real else [])
    models = [arm for arm in arms if arm != "alone"] + ([f"alone/{name}" for name in SITES] if "alone" in arms else [])
    for i, (hospital, role) in enumerate(hospitals):
        for p in range(4 if role == "real" else patients):
            ease = {s: rng.normal(0, 0.025) for s in structures}
            for arm, seed in itertools.product(models, seeds):
                if arm == "pretrained" and seed != seeds[0]:
                    continue  # one starting model, whatever the seed
                gain = GAIN.get(arm, -0.015 if arm == f"alone/{hospital}" else -0.06) - 0.012 * i + rng.normal(0, 0.003)
                scores = {
                    f"dice/{s}": float(np.clip(level + ease[s] + gain + rng.normal(0, 0.012), 0, 0.99))
                    for s, level in structures.items()
                }
                scores |= {f"hd95_mm/{s}": float(rng.gamma(6, 0.8)) for s in structures}
                if endpoints:
                    scores |= {f"volume_error_ml/{s}": float(rng.normal(2, 7)) for s in structures} | {
                        "ef_error": float(rng.normal(-0.01, 0.04))
                    }
                if p == 0 and role == "site":
                    scores[f"hd95_mm/{next(iter(structures))}"] = float("nan")  # nothing was outlined
                rows.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "hospital": hospital,
                        "role": role,
                        "patient": f"{hospital[:2]}-{p:03d}",
                        "scores": scores,
                    }
                )
    for i, (name, scanner) in enumerate(SITES.items()):
        values = [r["scores"] for r in rows if r["arm"] == "federation_private" and r["hospital"] == name]
        dice = {s: float(np.mean([v[f"dice/{s}"] for v in values])) for s in structures} if values else {}
        record.sites[name] = SiteRecord(
            declared_size=50, cases_expected=41 + i, cases_used=40 + i, cases_refused=1, scanner=scanner, delta=1e-3, dice=dice,
            epsilon=record.rounds[-1].sites[name].epsilon if record.rounds else None,
        )  # fmt: skip
    if real:
        refused = {"SCD-0005": "contours lie 41 mm outside the image & its slices"}
        record.held_out["real"] = {"Sunnybrook": {"cases_expected": 5, "cases_used": 4, "refused": refused}}
    record.timings = {"patients": 61.2, "pretraining": 120.4, "federation_private": 402.0}
    record.peak_memory_mb = 2210.0
    record.versions = {"konsil": "0.1.0", "torch": "2.13.0", "flwr": "1.41.0"}
    record.write(folder / "record.json")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if overlays:
        draw_overlays(folder / "overlays", rng)
    return rows


def heart(shape, spacing, radius_mm, rng, shift=0.0):
    """Disc, ring and crescent with noise: an image (rows, columns) and its mask."""
    y, x = np.indices(shape)
    y, x = (y - shape[0] / 2) * spacing[0], (x - shape[1] / 2) * spacing[1]
    angle = np.arctan2(y, x)
    r = np.hypot(y + shift, x - 8 + shift) * (1 + 0.04 * np.sin(3 * angle + 7 * shift))
    right = np.hypot((y + 4) / 1.25, x + 18 - 0.4 * shift)
    mask = np.zeros(shape, np.uint8)
    mask[(right < 1.35 * radius_mm) & (r > 1.55 * radius_mm)] = 3
    mask[r < 1.5 * radius_mm] = 2
    mask[r < radius_mm] = 1
    body = (np.hypot(y / 95, x / 130) < 1).astype(float)
    image = 60 * body + np.choose(mask, [0, 150, 25, 140]) - 45 * (np.hypot((y - 10) / 60, (x - 75) / 40) < 1)
    return (image + rng.normal(0, 7, shape) + 20).astype(np.float32), mask


def draw_overlays(folder, rng):
    folder.mkdir()
    spacing = np.array([8.0, 1.8, 1.3])
    for rank, shift in (("best", 0.4), ("median", 1.6), ("worst", 5.0)):
        radii = np.linspace(27, 9, 9)
        pairs = [heart((150, 208), spacing[1:], radius, rng) for radius in radii]
        predicted = [heart((150, 208), spacing[1:], radius * 1.02, rng, shift)[1] for radius in radii]
        np.savez_compressed(
            folder / f"{rank}.npz", image=np.stack([a for a, _ in pairs]), mask=np.stack([m for _, m in pairs]),
            prediction=np.stack(predicted), spacing_mm=spacing, hospital="Birke", patient="Bi-003", series="cine_ed",
            dice=json.dumps({"blood_pool": 0.95 - shift / 20, "myocardium": 0.86 - shift / 15}), arm="federation_private",
        )  # fmt: skip
    views = {}
    for i, (name, scanner) in enumerate({**SITES, "Tanne": "Philips Achieva, 1.5 T"}.items()):
        step = 1.2 + 0.15 * i
        image, mask = heart((int(250 / step), int(300 / step)), (step, step), 24 + i, rng)
        views |= {
            f"{name}/image": image * (1 + i),
            f"{name}/mask": mask,
            f"{name}/spacing_mm": np.array([step, step]),
            f"{name}/label": scanner,
        }
    np.savez_compressed(folder / "scanners.npz", **views)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    rows = build(folder)
    return folder, rows, write_report(folder).read_text()


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


def test_the_numbers_are_those_of_the_scores(full):
    _, rows, text = full
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


def test_the_verdict_comes_first_and_the_sections_in_order(full):
    text = Page(full[2]).text
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


def test_the_page_asks_nothing_of_any_network(full):
    text = full[2]
    assert "http" not in text
    assert not re.search(r"<(script|link|iframe|object|embed|base)\b|@import", text)
    for tag, attributes in Page(text).attributes:
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, name)
    assert re.findall(r"url\((?!#)", text) == []
    assert len(text) < 4_000_000


def test_the_html_is_sound_and_every_picture_says_what_it_shows(full):
    page = Page(full[2])
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"][1:] for tag, attributes in page.attributes if tag == "use"}
    assert targets <= set(ids)
    pictures = [attributes for tag, attributes in page.attributes if tag == "svg"]
    assert len(pictures) > 30
    assert all(len(a.get("aria-label", "")) > 20 or a.get("aria-hidden") == "true" for a in pictures)


def test_a_report_written_twice_is_the_same(full):
    folder, _, text = full
    assert write_report(folder).read_text() == text


def test_a_degraded_rehearsal_says_who_was_missing_and_claims_nothing(tmp_path):
    build(tmp_path, profile="small", seeds=(0,), patients=3, rounds=6, verdict="degraded", real=False, overlays=False)
    text = write_report(tmp_path).read_text()
    page = Page(text)
    assert "Degraded:" in page.text
    assert "Rehearsal-size figures: 40–44 patients per hospital, 1 seed; not evidence." in page.text
    assert f"round 2: Eiche failed ({REASON})" in page.text
    assert "<deadline>" not in text  # escaped
    assert {name: text.count(f'<td class="{name}"') for name in ("used", "failed", "declined", "quarantined", "absent")} == {
        "used": 26,
        "failed": 1,
        "declined": 1,
        "quarantined": 1,
        "absent": 1,
    }
    assert 'class="higher"' not in text
    assert 'class="lower"' not in text
    assert "A difference from the same federation without privacy is not shown" in page.text
    assert "One seed was run" in page.text
    assert "On real patients" not in page.text


def test_three_seeds_and_an_interval_without_zero_make_a_claim(full):
    page = Page(full[2])
    assert "Compared with the same federation without privacy, its mean Dice was 0.0" in page.text
    assert 'class="higher"' in full[2]
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


def test_a_broken_line_is_named(tmp_path):
    build(tmp_path, rounds=1, arms=(), overlays=False)
    (tmp_path / "scores.jsonl").write_text('{"arm": \n')
    with pytest.raises(ValueError, match=r"scores\.jsonl, line 1 is no JSON object"):
        write_report(tmp_path)


def test_the_last_lines_on_the_screen(full):
    folder, rows, _ = full
    lines = summary_lines(folder)
    assert lines[0].startswith("Complete:")
    assert lines[-1] == f"Report: {folder / 'report.html'}"
    ahorn = next(line for line in lines if line.strip().startswith("Ahorn"))
    dice = np.mean(
        [r["scores"]["dice/myocardium"] for r in rows if (r["arm"], r["hospital"]) == ("federation_private", "Ahorn")]
    )
    assert f"myocardium {dice:.3f}" in ahorn
    assert ahorn.endswith("ε 7.90")
    assert any(line.strip().startswith("Tanne") and line.endswith("held out") for line in lines)


def test_local_models_are_told_apart_by_whose_patients_they_met(full):
    folder, rows, _ = full
    run = Run(folder)
    own = run.values("dice/myocardium", ALONE_OWN, "site")
    assert len(own) == 5 * 10 * 3
    alone = next(r for r in rows if (r["arm"], r["patient"], r["seed"]) == ("alone/Birke", "Bi-002", 2))
    assert own[2, "Birke", "Bi-002"] == alone["scores"]["dice/myocardium"]
    elsewhere = run.values("dice/myocardium", ALONE_ELSEWHERE, "held_out")
    by_hand = np.mean(
        [
            r["scores"]["dice/myocardium"]
            for r in rows
            if r["arm"].startswith("alone/") and r["patient"] == "Ta-004" and r["seed"] == 1
        ]
    )
    assert elsewhere[1, "Tanne", "Ta-004"] == pytest.approx(by_hand)


def test_contours_lie_where_the_pixels_are_and_pixels_keep_their_proportion():
    mask = np.zeros((40, 30), np.uint8)
    mask[10:30, 6:18] = 1
    drawn = str(pictures._drawing(np.zeros((40, 30), np.uint8), [(mask, "reader")], (2.0, 1.0), alt="a square"))
    assert 'viewBox="0 0 30.00 80.00"' in drawn
    path = re.search(r'class="reader" d="M([^Z]+)Z', drawn).group(1)
    x, y = np.array([[float(v) for v in point.split()] for point in path.split("L")]).T
    assert (x.min(), x.max(), y.min(), y.max()) == pytest.approx((6, 18, 20, 60), abs=0.3)  # mm


def test_a_structure_around_another_draws_the_common_edge_once():
    y, x = np.indices((60, 60)) - 30
    ring = np.where(np.hypot(x, y) < 20, 2, 0)
    ring[np.hypot(x, y) < 10] = 1
    assert pictures._contours(ring.astype(np.uint8), 1.0, 1.0).count("M") == 2


def test_the_base_is_the_end_with_the_larger_outline_whichever_slice_comes_first():
    stack = np.zeros((9, 20, 20), int)
    for z, n in enumerate((2, 3, 4, 5, 6, 7, 8, 9, 10)):
        stack[z, :n, :n] = 1
    assert dict(pictures._levels(stack, cardiac=True)) == {"base": 7, "mid": 4, "apex": 1}
    assert dict(pictures._levels(stack[::-1], cardiac=True)) == {"base": 1, "mid": 4, "apex": 7}


@pytest.mark.parametrize("width", [1200, 500])
def test_a_browser_shows_it_without_anything_beyond_the_margin(full, tmp_path, width):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium on this machine")
    picture = tmp_path / "page.png"
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --hide-scrollbars"
    )
    flags += f" --disable-component-update --disable-sync --user-data-dir={tmp_path / 'profile'} --window-size={width},9000"
    command = [browser, *flags.split(), f"--screenshot={picture}", (full[0] / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (9000, width)
    assert (pixels[:, -8:] == pixels[0, -1]).all()  # the right margin stays empty
    assert (pixels[:, 20:-20] != pixels[0, -1]).mean() > 0.05
