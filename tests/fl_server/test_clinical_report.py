"""The clinician's report of studies of every kind: what stands in it, what is said to be missing, what can't get out of it."""

import json
import re
from html.parser import HTMLParser

import measured_run as runs
import pytest

from fl_server.record import CountTable, Matrix, SiteRound
from fl_server.report import HTML, PDF, compose, write
from fl_server.report.checklist import ITEMS, answers, checklist
from fl_server.report.document import Figure, Table, Text
from fl_server.report.findings import Findings
from fl_server.report.measured import Measured, Patient, Volume

SECTIONS = [
    "What was learned",
    "Who was in the study",
    "Results",
    "Calibration: does the model know how sure it may be?",
    "Uncertainty: does its doubt find its errors?",
    "Compared with readers among themselves",
    "Repeatability: the same patient scanned twice",
    "Privacy: what this means for one patient",
    "Checklist for authors",
    "What this does not show",
    "Versions and hashes",
]
SCORES = {
    "dice": 0.88,
    "noise_sd/dice": 0.02,
    "dice/blood_pool": 0.91,
    "noise_sd/dice/blood_pool": 0.02,
    "patients/blood_pool": 31.2,
}


class Page(HTMLParser):
    """Headings, tags and attributes of a page; a tag that is closed but was not opened fails."""

    VOID = ("meta", "br", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.headings, self.attributes = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings[-1] += data


def both(folder):
    """The page's text and the PDF's words."""
    paths = write(folder)
    assert [path.name for path in paths] == [HTML, PDF]
    return paths[0].read_text(), runs.text_of(paths[1].read_bytes())


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    place = runs.folder(tmp_path_factory.mktemp("run"), runs.record(real=False, profile="standard"), runs.patients())
    return place, *both(place)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    place = runs.folder(tmp_path_factory.mktemp("run"), runs.record(scores=SCORES, answers={(2, "south"): "late"}))
    return place, *both(place)


def told(folder, title):
    """All words of one section, its drawings apart."""
    section = next(one for one in compose(Findings(folder)).sections if one.title == title)
    words = [block.words for block in section.blocks if isinstance(block, Text)]
    words += [" | ".join(row) for block in section.blocks if isinstance(block, Table) for row in block.rows]
    return "\n".join(words)


def test_every_section_is_there_in_order_whatever_is_known(measured, alone, tmp_path):
    empty = runs.folder(tmp_path, runs.record(run=0))
    for page in (measured[1], alone[1], both(empty)[0]):
        assert Page(page).headings == SECTIONS


def test_the_verdict_and_its_reasons_are_the_first_lines(alone):
    _, page, words = alone
    assert page.index("Degraded: the study ran to its end") < page.index("round 2: south late") < page.index("<h2>")
    assert "Degraded: the study ran to its end, but not all of it went as planned." in words
    assert words.index("round 2: south late") < words.index("What was learned")


def test_the_page_asks_nothing_of_any_network(measured):
    page = Page(measured[1])
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert all(value.startswith("data:image/png") for _, name, value in page.attributes if name in ("href", "src"))
    assert "url(" not in measured[1]
    assert not re.search(r"https?://", measured[1])
    assert "default-src 'none'" in measured[1]


def test_a_hostile_name_is_shown_and_never_obeyed(tmp_path):
    several = runs.patients(2)
    for one in several:
        one.scanner, one.disease, one.hospital = runs.EVIL, runs.EVIL, runs.EVIL
    about = runs.record(real=False)
    about.reasons, about.versions, about.stopped_early = [runs.EVIL], {runs.EVIL: runs.EVIL}, runs.EVIL
    place = runs.folder(tmp_path, about, several, readers=[runs.EVIL])
    page, words = both(place)
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "\x1b" not in page + words
    Page(page)
    assert "<script>alert(1)</script>" in words


def test_an_equal_study_gives_equal_bytes(measured, tmp_path):
    again = [path.read_bytes() for path in write(measured[0], to=tmp_path / "copy")]
    assert again == [(measured[0] / name).read_bytes() for name in (HTML, PDF)]


def test_groups_are_told_with_their_number_and_small_ones_are_marked(measured):
    words = told(measured[0], "Results")
    assert re.search(r"north \| 6 \(few\) \| 0\.\d+ \(0\.\d+ to 0\.\d+\)", words)
    assert re.search(r"women \| 9 \(few\)", words)
    assert re.search(r"under 45 years \| 6 \(few\)", words)
    assert re.search(r"dilated cardiomyopathy \| 9 \(few\)", words)
    assert "2 training runs" in words


def test_doubt_that_finds_errors_is_said_to(measured):
    words = told(measured[0], SECTIONS[4])
    assert "More doubt does go with more error here" in words
    assert "2 of 18 patients" in words
    assert "trained without dropout" in words


def test_a_model_that_readers_agree_with_less_than_with_one_another_is_told(measured):
    assert "further from the readers than they are from one another" in told(measured[0], SECTIONS[5])


def test_the_coefficient_of_repeatability_stands_in_the_table(measured):
    several = Measured.read(measured[0] / "clinical.json").patients
    gaps = [v.predicted_again_ml - v.predicted_ml for p in several for v in p.volumes[:1]]
    coefficient = 1.96 * (sum(gap**2 for gap in gaps) / len(gaps)) ** 0.5
    assert f"{coefficient:.1f} (" in told(measured[0], SECTIONS[6])


def test_a_record_alone_says_why_each_section_is_empty(alone):
    for title in SECTIONS[3:7]:
        assert "whom only their own hospital may see" in told(alone[0], title)
    assert "Exact counts stay" in told(alone[0], "Checklist for authors")
    assert "exact counts stay in the house" in told(alone[0], "Who was in the study")


def test_a_real_studys_scores_have_the_interval_of_the_noise_and_a_wider_one(alone):
    words = told(alone[0], "Results")
    assert "Blood pool | 31 | 0.910 | 0.871 to 0.949 |" in words
    assert "Results by scanner, sex, age band and disease group can't be told" in words


def crossed(*, hospitals=("north", "south"), noise=0.02):
    """A matrix to which every hospital but the last has given scores."""
    *judges, silent = hospitals
    scores = {model: {site: 0.6 + 0.01 * n for n, site in enumerate(judges)} for model in ("global", *hospitals)}
    spread = {model: dict.fromkeys(row, noise) for model, row in scores.items()}
    sites = {site: SiteRound(answer="used") for site in (*judges, silent)}
    return Matrix(metric="dice", scores=scores, noise_std={}, noise_sd=spread, sites=sites, seconds=1)


@pytest.mark.parametrize("of", ["sums", "patients"])
def test_every_model_at_every_hospital_is_a_picture_with_its_words(of, tmp_path):
    record = runs.record(scores=SCORES) if of == "sums" else runs.record(real=False, profile="standard")
    record.matrix = crossed()
    place = runs.folder(tmp_path, record, *([] if of == "sums" else [runs.patients()]))
    section = next(one for one in compose(Findings(place)).sections if one.title == "Results")
    (figure,) = (block for block in section.blocks if isinstance(block, Figure) and "last model" in block.caption)
    assert "the model of all together: 0.600 at north; the model of north: 0.600 at north" in figure.alt
    assert figure.caption.endswith("No score came from south.")
    (picture,) = figure.drawing.shapes
    assert picture.png.startswith(b"\x89PNG")
    assert 0 < figure.drawing.width <= 490
    page, words = both(place)
    assert "No score came from south." in page
    assert "No score came from south." in words


def test_a_matrix_that_nobody_could_read_is_left_to_the_record(tmp_path):
    record = runs.record(scores=SCORES)
    record.matrix = crossed(hospitals=tuple(f"h{n}" for n in range(60)))
    assert "How 61 models do at every hospital is too much for a page" in told(runs.folder(tmp_path, record), "Results")


def test_a_study_without_scores_says_that_nothing_was_measured(tmp_path):
    place = runs.folder(tmp_path, runs.record())
    assert "was not measured" in told(place, "What was learned")
    assert "set nothing of its privacy promise aside for scores" in told(place, "Results")


def test_a_failed_study_learned_nothing(tmp_path):
    place = runs.folder(tmp_path, runs.record(run=0))
    page, words = both(place)
    assert "Failed: the study did not reach its end." in words
    assert "Nothing was learned" in page
    assert "9 in rounds that were not run" in page


def test_every_planned_answer_is_accounted_for(alone):
    assert "planned 9 answers of hospitals (3 rounds of 3): 8 used and 1 late" in told(alone[0], "Who was in the study")


def test_the_flow_chart_names_every_loss(measured):
    figure = compose(Findings(measured[0])).sections[1].blocks[0]
    words = [shape.text for shape in figure.drawing.shapes if hasattr(shape, "text")]
    assert "Expected: 66 patients in 3 hospitals" in words
    assert "Not let in: 6" in words
    assert "refused at the door: 3" in words
    assert "withdrawn: 3" in words
    assert "Trained on: 42" in words
    assert "Held back, tested: 18" in words
    assert not any("not accounted for" in word for word in words)


def test_a_patient_who_went_missing_is_told(tmp_path):
    about = runs.record(real=False)
    about.sites["north"].cases_withdrawn = 0
    place = runs.folder(tmp_path, about, runs.patients(2))
    assert "not accounted for: 1" in write(place)[0].read_text()


def test_one_patient_is_enough_for_a_report(tmp_path):
    place = runs.folder(tmp_path, runs.record(real=False, profile="small"), runs.patients(1, seeds=1)[:1])
    page, words = both(place)
    assert "1 test patient" in words
    assert "(no interval)" in page
    assert "no evidence of anything else" in page


def test_numbers_that_are_missing_are_not_made_up(tmp_path):
    bare = [
        Patient(
            hospital="north", patient="a", dice={"blood_pool": [float("nan")]}, volumes=[Volume(series="x", structure="y")]
        ),
        Patient(hospital="north", patient="b", dice={"blood_pool": [0.9]}, doubt=float("nan")),
        Patient(hospital="south", patient="c"),
    ]
    place = runs.folder(tmp_path, runs.record(real=False), bare)
    page, _ = both(place)
    assert "nan" not in re.sub(r"data:[^\"]+", "", page).lower().replace("finance", "")
    assert "north | 2 (few) | 0.900 (no interval)" in told(place, "Results")
    assert "not recorded" in told(place, "Results")
    assert "No test patient at west" in page


def test_all_scores_undefined_is_like_none(tmp_path):
    bare = [Patient(hospital="north", patient="a", dice={"blood_pool": [None]})]
    assert "was not measured" in told(runs.folder(tmp_path, runs.record(real=False), bare), "Results")


def test_privacy_is_told_for_each_hospital_with_what_it_bounds(alone):
    words = told(alone[0], "Privacy: what this means for one patient")
    assert "north | 2.00 | 7.4 times | 88 % | 45 %" in words  # e^2 = 7.39; 7.39 / 8.39; 0.1 * 7.39 / (0.9 + 0.739)
    assert "not a strong promise" in words


def test_a_price_that_may_have_grown_since_is_told_as_of_when_it_was(tmp_path):
    about = runs.record()
    for done in about.rounds:
        done.sites["north"].epsilon = 2.0
    about.rounds[-1].sites["north"] = SiteRound(answer="absent", reason="lost on the way", attempts=2)
    words = told(runs.folder(tmp_path, about), "Privacy: what this means for one patient")
    assert f"ε is what it was when the hospital last told: north (round {len(about.rounds) - 1}). It was asked again" in words
    about.rounds[-1].sites["north"].attempts = 0
    words = told(runs.folder(tmp_path, about), "Privacy: what this means for one patient")
    assert "last told" not in words


def test_a_study_without_privacy_says_so_in_a_warning(tmp_path):
    place = runs.folder(tmp_path, runs.record(privacy="none"))
    assert "made no privacy promise" in told(place, "Privacy: what this means for one patient")


def test_patients_of_another_study_are_left_out(tmp_path):
    place = runs.folder(tmp_path, runs.record(real=False), runs.patients(2))
    other = json.loads((place / "clinical.json").read_text())
    other["study_hash"] = "0" * 64
    (place / "clinical.json").write_text(json.dumps(other))
    assert "belongs to another study" in told(place, "What was learned")
    assert not Findings(place).patients


@pytest.mark.parametrize(
    "text", ["no json", "[]", '{"schema": "konsil-clinical/9"}', '{"schema": "konsil-clinical/1", "seeds": 3}']
)
def test_a_file_that_is_none_is_refused_in_words(tmp_path, text):
    place = runs.folder(tmp_path, runs.record())
    (place / "clinical.json").write_text(text)
    with pytest.raises(ValueError, match=r"clinical\.json"):
        write(place)


def test_the_checklist_has_the_44_items_of_claim_2024(measured, alone):
    assert sum(len(items) for _, items in ITEMS) == 44
    for place in (measured[0], alone[0]):
        rows = [row for row in checklist(Findings(place)).blocks[1].rows if len(row) == 3]
        assert [row[0] for row in rows] == [str(n) for n in range(1, 45)]
        assert rows[43] == ("44", "funding", "To be written by the authors.")
    assert set(answers(Findings(measured[0]))) > set(answers(Findings(alone[0])))


def test_an_area_under_the_curve_takes_the_place_of_dice(tmp_path):
    about = runs.record(real=False)
    place = runs.folder(tmp_path, about)
    area = {"value": 0.79, "low": 0.7, "high": 0.86, "patients": 40}
    bins = [{"predicted": 0.2, "observed": 0.25, "low": 0.1, "high": 0.4}, {"predicted": 0.8, "observed": 0.7}]
    found = {"auc": area, "by_hospital": {"north": {**area, "value": 0.81}}, "calibration": bins, "brier": 0.17}
    Measured(study_hash=about.study_hash, classifier=found).write(place / "clinical.json")
    page, words = both(place)
    assert "0.790 (95% interval 0.700 to 0.860)" in words
    assert "0.170" in page
    assert Page(page).headings == SECTIONS


def test_a_study_that_counts_shows_its_counts_and_speaks_of_no_model(tmp_path):
    about = runs.record()
    table = CountTable(fields=["sex"], cells=[["F"], ["M"]], counts=[31, None], fewer_than=5, noise_sd=2.0)
    everybody = CountTable(fields=[], cells=[[]], counts=[60], fewer_than=5, noise_sd=0.0)
    about.counts = [table, everybody]
    place = runs.folder(tmp_path, about)
    page, words = both(place)
    assert "counted their training patients together" in words
    assert "everybody | 60" in told(place, "Results")
    assert "F | 31\nM | fewer than 5" in told(place, "Results")
    assert "within 4 of the truth" in told(place, "Results")
    assert Page(page).headings == SECTIONS


def test_of_very_many_reasons_the_first_stand_in_front(tmp_path):
    about = runs.record()
    about.reasons = [f"reason {n}" for n in range(40)]
    page = both(runs.folder(tmp_path, about))[0]
    assert "reason 11<" in page
    assert "reason 12" not in page
    assert "and 28 more, in record.json" in page
