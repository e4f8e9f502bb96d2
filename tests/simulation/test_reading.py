"""The blinded reading: one look for both kinds, a solution that nobody sees, answers that stay, and figures from the books."""

import json
import math
import os
from collections import Counter

import numpy as np
import pytest
from drawn_reading import cohorts
from PIL import Image
from scipy.ndimage import gaussian_filter

from fl_client.cohort import Cohort
from simulation.reading import answers as books
from simulation.reading.__main__ import main
from simulation.reading.answers import Answer, Answered, Answers, reader_name
from simulation.reading.deck import KINDS, Entry, Reading, deal, kept, settle
from simulation.reading.figures import HABERL, figures, fleiss_kappa, share, summary
from simulation.reading.scans import PICTURE_PX, Look, Unsuitable, scan_of
from simulation.reading.summary import text
from tasks.case import Case, Volume
from tasks.synthesis import SynthesisTask
from tasks.synthesis.settings import Settings
from tasks.synthesis.volumes import synthetic

LOOK = Look()


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Two cohorts of generated patients, from scanners of which the one plays the generator."""
    return cohorts(tmp_path_factory.mktemp("reading"))


@pytest.fixture(scope="session")
def deck(folders):
    return deal(*folders, LOOK, seed=1, count=6)


def disc(mm, *, size_mm=160.0, apex_first=False, centre_mm=(4.3, -7.1), slices=8, bright=1.0):
    """A volume with a soft disc, a ring around it and stripes of 12 mm, sampled with these pixels."""
    n = round(size_mm / mm)
    at = (np.arange(n) + 0.5) * mm - size_mm / 2
    down, right = at[:, None] - centre_mm[0], at[None] - centre_mm[1]
    radius = np.hypot(down, right)
    plane = 1 / (1 + np.exp((radius - 25) / 2)) + 0.3 * np.cos(2 * np.pi * right / 12)
    plane = gaussian_filter(plane, 0.5, mode="nearest")  # what a scanner's pixel blurs
    image = np.stack([plane * (1 + number / 10) for number in range(slices)]).astype(np.float32) * bright
    mask = np.repeat(((radius < 25).astype(np.uint8) + (radius < 18))[None], slices, axis=0).astype(np.uint8)
    axis = np.array([0.6, -0.6, -0.53])
    affine = np.eye(4)
    affine[:3, 0] = 8 * axis
    affine[:3, 1], affine[:3, 2] = np.array([0, 0.5, -0.866]) * mm, np.array([0.79, 0.53, 0.31]) * mm
    if apex_first:
        image, mask = image[::-1], mask[::-1]
        affine[:3, 0] *= -1
    return Case("P1", (Volume("cine_ed", np.ascontiguousarray(image), affine, np.ascontiguousarray(mask)),))


def on_its_side(case):
    """The same scan as a scanner stores it whose rows run along the columns of others, and from the other end."""
    volume = case.volumes[0]
    image, mask = (np.ascontiguousarray(one.transpose(0, 2, 1)[:, ::-1]) for one in (volume.image, volume.mask))
    affine = volume.affine[:, [0, 2, 1, 3]] * [1, -1, 1, 1]
    return Case("P1", (Volume("cine_ed", image, affine, mask),))


def grey(case):
    """The scan's grey values, 0 to 255, (slices, rows, columns)."""
    return 255 * np.clip(scan_of(case, LOOK).values, 0, 1)


def test_pixels_size_place_scale_sides_and_order_of_slices_do_not_show():
    plain = grey(disc(2.0))
    others = {
        "finer": disc(1.25),
        "wider": disc(2.0, size_mm=200),
        "as wide as a generator draws": disc(2.0, size_mm=128),
        "elsewhere": disc(2.0, centre_mm=(-3.1, 9.4)),
        "brighter": disc(2.0, bright=900.0),
        "from the apex": disc(2.0, apex_first=True),
        "on its side": on_its_side(disc(2.0)),
    }
    assert plain.shape == (6, 56, 56)
    assert plain[-1].mean() > plain[0].mean()  # base first: towards the apex this phantom is brighter
    for name, case in others.items():
        seen = grey(case)
        assert seen.shape == plain.shape, name
        assert np.abs(seen - plain).mean() < 2.5, name  # of 255 grey values


def test_detail_that_a_generator_can_not_draw_is_in_no_scan():
    def finest(mm):  # stripes of 2.5 mm: pixels of 2 mm can't carry them
        case = disc(mm)
        volume = case.volumes[0]
        at = np.arange(volume.image.shape[2]) * mm
        stripes = (np.asarray(volume.image) + 0.5 * np.cos(2 * np.pi * at / 2.5)).astype(np.float32)
        return Case("P1", (Volume("cine_ed", stripes, volume.affine, volume.mask),))

    without = grey(disc(1.0))
    assert np.abs(grey(finest(1.0)) - without).mean() < 1


def test_what_a_generator_draws_for_a_mask_lies_where_the_mask_lay(folders):
    settings = Settings()
    case = next(iter(Cohort(folders[0])))
    drawn = synthetic(SynthesisTask(settings).model(), case, np.random.default_rng(0), settings, steps=1)

    def blood(one):  # the mask in the image's place
        volume = one.volumes[0]
        pool = (np.asarray(volume.mask) == 1).astype(np.float32)
        return scan_of(Case("P1", (Volume("cine_ed", pool, volume.affine, volume.mask),)), LOOK).values > 0.5

    real, synthetic_ = blood(case), blood(drawn)
    assert 2 * (real & synthetic_).sum() / (real.sum() + synthetic_.sum()) > 0.95
    assert len(scan_of(case, LOOK).picture(0)) == len(scan_of(drawn, LOOK).picture(0))


@pytest.mark.parametrize(
    ("case", "why"),
    [
        (disc(2.0, size_mm=112), "it ends within 112 mm around the structures"),
        (disc(3.0, size_mm=180), "its pixels of 3 mm are coarser than the grid of 2 mm for all"),
        (disc(2.0, slices=4), "the structures are outlined on 4 of its slices, and 6 are shown"),
        (disc(2.0, bright=0.0), "it has no contrast around the structures"),
        (disc(2.0, bright=np.nan), "it has no contrast around the structures"),
        (Case("P1", ()), "it has no cine_ed with a mask"),
        (
            Case("P1", (Volume("cine_ed", np.ones((8, 80, 80), np.float32), np.eye(4), np.zeros((8, 80, 80), np.uint8)),)),
            "nothing is outlined on it",
        ),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_scan_that_would_stand_out_is_not_shown(case, why):
    with pytest.raises(Unsuitable, match=why):
        scan_of(case, LOOK)


def test_every_picture_has_the_same_number_of_bytes_and_nothing_beside_its_pixels(deck, tmp_path):
    pictures = [scan.picture(number) for scan in deck.scans.values() for number in range(LOOK.slices)]
    assert len({len(one) for one in pictures}) == 1
    assert len(set(pictures)) == len(pictures)
    path = tmp_path / "one.png"
    for one in pictures:
        path.write_bytes(one)
        with Image.open(path) as image:
            assert (image.size, image.mode, image.info) == ((PICTURE_PX, PICTURE_PX), "L", {})


def test_half_of_the_scans_are_real_and_each_reader_has_an_order_of_their_own(deck, folders):
    assert Counter(deck.reading.kinds.values()) == {"real": 3, "synthetic": 3}
    again = deal(*folders, LOOK, seed=1, count=6)
    orders = {reader: deck.reading.order(reader) for reader in ("anna", "bruno", "c 3")}
    assert all(again.reading.order(reader) == order for reader, order in orders.items())
    assert len(set(orders.values())) == 3
    assert all(sorted(order) == sorted(deck.scans) for order in orders.values())
    assert deal(*folders, LOOK, seed=2, count=6).reading.order("anna") != orders["anna"]


def test_a_kind_is_first_as_often_as_the_other():
    scans = {f"{number:016x}": Entry(kind=KINDS[number % 2], patient=str(number)) for number in range(20)}
    reading = Reading(real="a", synthetic="b", seed=0, look=LOOK, scans=scans)
    first = Counter(reading.kinds[reading.order(f"reader {number}")[0]] for number in range(400))
    assert 160 < first["real"] < 240  # four standard deviations of an even coin


# -- bad input --------------------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    """What is said on standard error by a command that must not serve."""
    assert main([*map(str, arguments), "--port", "0"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_folders_that_give_no_reading_are_refused_in_words(folders, tmp_path, capsys):
    real, synthetic = folders
    to = ("--answers", tmp_path / "answers")
    empty = Cohort(tmp_path / "empty").folder
    assert f"{empty} is a cohort without patients" in refused(capsys, real, empty, *to)
    assert f"{tmp_path} is no cohort" in refused(capsys, tmp_path, synthetic, *to)
    assert "they are two folders" in refused(capsys, real, real, *to)
    said = refused(capsys, real, synthetic, *to, "--count", "8")
    assert f"4 real scans are wanted and {real} has 3" in said
    assert "an even number from 4 on" in refused(capsys, real, synthetic, *to, "--count", "5")
    assert "an even number from 4 on" in refused(capsys, real, synthetic, *to, "--count", "0")
    said = refused(capsys, real, synthetic, *to, "--series", "lge")
    assert "has 0; of 3 others the first can't be shown: it has no lge with a mask" in said
    assert "--slices 0" in refused(capsys, real, synthetic, *to, "--slices", "0")
    assert "--seed is a number from 0 on" in refused(capsys, real, synthetic, *to, "--seed", "-1")
    assert "needs two folders" in refused(capsys, real, *to)
    assert not (tmp_path / "answers").exists()


def test_the_same_scan_in_both_folders_is_refused(folders, tmp_path, capsys):
    real, _ = folders
    copy = Cohort(tmp_path / "copy")
    for case in Cohort(real):
        copy.admit(case)
    assert "is the same scan as real/" in refused(capsys, real, copy.folder, "--answers", tmp_path / "answers")


def test_folders_in_the_wrong_order_are_refused(folders, deck, tmp_path, capsys):
    real, synthetic = folders
    drawn = Cohort(tmp_path / "drawn")
    drawn.admit(disc_named("G90000001"))
    said = refused(capsys, drawn.folder, real, "--answers", tmp_path / "answers")
    assert "holds scans that a generator drew; the folder of the real scans comes first" in said
    settle(deck.reading, tmp_path)
    assert "the other way round" in refused(capsys, synthetic, real, "--answers", tmp_path, "--seed", "1", "--count", "6")
    assert "has answers to another reading" in refused(capsys, real, synthetic, "--answers", tmp_path, "--seed", "2")


def disc_named(patient):
    return Case(patient, disc(2.0).volumes)


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def book(deck, tmp_path):
    settle(deck.reading, tmp_path)
    opened = Answers(tmp_path, deck.reading)
    yield opened
    opened.close()


def test_an_answer_is_on_the_disk_before_anything_else_happens_and_stays(book, deck, tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append((os.fstat(file).st_ino, os.fstat(file).st_size)))
    book.add("anna", 1, "real", 4)
    path = tmp_path / "answers.jsonl"
    assert flushed == [(path.stat().st_ino, path.stat().st_size)]
    line = json.loads(path.read_text())
    assert (line["reader"], line["position"], line["answer"], line["certainty"]) == ("anna", 1, "real", 4)
    assert line["scan"] == deck.reading.order("anna")[0]
    book.add("anna", 1, "real", 4)  # a form sent twice
    with pytest.raises(Answered, match="scan 1 was answered “real, 4”, and that stays"):
        book.add("anna", 1, "synthetic", 4)
    with pytest.raises(ValueError, match="scan 3 isn't the next one"):
        book.add("anna", 3, "real", 1)
    assert len(path.read_text().splitlines()) == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_line_cut_short_by_a_kill_goes_and_all_before_it_stay(book, deck, tmp_path):
    book.add("anna", 1, "real", 4)
    book.add("bruno", 1, "synthetic", 2)
    book.close()
    path = tmp_path / "answers.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[1][:40])
    assert {reader: len(theirs) for reader, theirs in books.read(tmp_path, deck.reading).items()} == {"anna": 1, "bruno": 1}
    again = Answers(tmp_path, deck.reading)
    assert path.read_bytes() == whole
    again.add("anna", 2, "real", 5)
    again.close()
    assert len(books.read(tmp_path, deck.reading)["anna"]) == 2
    book._file = os.open(path, os.O_RDONLY)  # for the fixture to close


def test_an_answer_that_does_not_fit_on_the_disk_leaves_nothing(book, tmp_path, monkeypatch):
    book.add("anna", 1, "real", 4)
    before = (tmp_path / "answers.jsonl").read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))
    with pytest.raises(OSError, match="only a part"):
        book.add("anna", 2, "real", 4)
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    assert len(book.of("anna")) == 1


def test_a_second_process_and_a_changed_line_are_refused(book, deck, tmp_path):
    with pytest.raises(ValueError, match="another process serves the reading"):
        Answers(tmp_path, deck.reading)
    book.add("anna", 1, "real", 4)
    path = tmp_path / "answers.jsonl"
    line = path.read_text()
    for changed, why in (
        (line + line, "line 2: not the answer that follows"),
        (line.replace(deck.reading.order("anna")[0], deck.reading.order("anna")[1]), "line 1: not the answer that follows"),
        (line.replace('"certainty":4', '"certainty":7'), "line 1: this is no answer"),
    ):
        path.write_text(changed)
        with pytest.raises(ValueError, match=why):
            books.read(tmp_path, deck.reading)


def test_answers_without_their_solution_are_not_given_another(deck, tmp_path):
    (tmp_path / "answers.jsonl").write_text("")
    with pytest.raises(ValueError, match="choose another folder"):
        settle(deck.reading, tmp_path)
    with pytest.raises(ValueError, match="no reading was begun there"):
        kept(tmp_path)


def test_a_reader_who_comes_back_may_type_the_name_with_other_capitals():
    assert reader_name("  Dr.  Müller ") == reader_name("dr. mu\u0308ller") == "dr. müller"
    for wrong in ("", " ", "_a", "a/b", "<b>", "x" * 41, "a\x00b"):
        with pytest.raises(ValueError, match="a name or code has 1 to 40 letters"):
            reader_name(wrong)


# -- figures ----------------------------------------------------------------------------------------------------------

FLEISS_1971 = [
    [0, 0, 0, 0, 14],
    [0, 2, 6, 4, 2],
    [0, 0, 3, 5, 6],
    [0, 3, 9, 2, 0],
    [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0],
    [3, 2, 6, 3, 0],
    [2, 5, 3, 2, 2],
    [6, 5, 2, 1, 0],
    [0, 2, 2, 3, 7],
]
"""Ten subjects, five categories, fourteen readers."""


def test_kappa_is_that_of_the_textbook():
    assert fleiss_kappa(np.array(FLEISS_1971)) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(np.array([[3, 0], [0, 3]])) == 1
    assert fleiss_kappa(np.array([[1, 1], [1, 1]])) == -1
    assert fleiss_kappa(np.array([[3, 0], [3, 0]])) is None
    with pytest.raises(ValueError, match="the same two or more readers"):
        fleiss_kappa(np.array([[3, 0], [1, 1]]))
    with pytest.raises(ValueError, match="the same two or more readers"):
        fleiss_kappa(np.array([[1, 0], [0, 1]]))


def tail(right, of, p):
    """The probability of `right` or more of `of`, summed up."""
    return sum(math.comb(of, k) * p**k * (1 - p) ** (of - k) for k in range(right, of + 1))


@pytest.mark.parametrize(("right", "of"), [(1, 2), (22, 40), (3, 16), (39, 40), (192, 400)])
def test_the_interval_is_exact(right, of):
    found = share(right, of)
    assert found.value == right / of
    assert tail(right, of, found.low) == pytest.approx(0.025, rel=1e-6)
    assert 1 - tail(right + 1, of, found.high) == pytest.approx(0.025, rel=1e-6)


def test_the_interval_at_the_ends():
    assert share(0, 20)[3:] == (0.0, pytest.approx(1 - 0.025 ** (1 / 20)))
    assert share(20, 20)[3:] == (pytest.approx(0.025 ** (1 / 20)), 1.0)
    assert share(0, 0)[2:] == (None, None, None)
    with pytest.raises(ValueError, match="5 of 4 is no share"):
        share(5, 4)


def given(reading, reader, said):
    """A reader's answers: `said` maps a scan's number (of six, by name) to (answer, certainty)."""
    names = sorted(reading.scans)
    return tuple(
        Answer(reader=reader, position=n + 1, scan=names[n], answer=call, certainty=level, at="2026-01-01T00:00:00+00:00")
        for n, (call, level) in enumerate(said)
    )


def reading_of(kinds):
    scans = {f"{n:016x}": Entry(kind=kind, patient=str(n)) for n, kind in enumerate(kinds)}
    return Reading(real="a", synthetic="b", seed=0, look=LOOK, scans=scans)


def test_the_summary_counts_every_answer_once_and_kappa_only_among_those_who_finished():
    reading = reading_of(["real", "real", "synthetic", "synthetic"])
    calls = {
        "anna": [("real", 5), ("synthetic", 1), ("synthetic", 5), ("synthetic", 2)],
        "bruno": [("real", 3), ("real", 3), ("real", 3), ("synthetic", 3)],
        "late": [("synthetic", 5)],
    }
    by = {reader: given(reading, reader, said) for reader, said in calls.items()}
    anna = figures(by["anna"], reading.kinds)
    assert [one[:2] for one in (anna.accuracy, anna.sensitivity, anna.specificity)] == [(3, 4), (2, 2), (1, 2)]
    assert {level: one[:2] for level, one in anna.by_certainty.items()} == {
        1: (0, 1),
        2: (1, 1),
        3: (0, 0),
        4: (0, 0),
        5: (2, 2),
    }
    found = summary(by, reading)
    assert found.finished == ("anna", "bruno")
    assert found.all_answers.accuracy[:2] == (6, 8)
    # by hand: two of four scans agreed on; both categories half of all calls
    assert found.kappa == pytest.approx((0.5 - 0.5) / (1 - 0.5))
    said = text(found)
    assert "late (not finished: 1 of 4)" in said
    assert "accuracy     0.75 [0.35-0.97], 6 of 8" in said
    assert "Fleiss' kappa 0.00" in said
    assert "Haberl 2025, EJNMMI 52:2355: accuracy 0.48 [0.46-0.51], kappa 0.18" in said
    assert (HABERL.accuracy, HABERL.low, HABERL.high, HABERL.kappa) == (0.48, 0.46, 0.51, 0.18)


def test_the_command_sums_up_for_people_and_programs(book, deck, tmp_path, capsys):
    for position in range(1, 7):
        kind = deck.reading.kinds[deck.reading.order("anna")[position - 1]]
        book.add("anna", position, kind, 5)
        book.add("bruno", position, "real", 1)
    assert main(["--answers", str(tmp_path), "--summary", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["readers"]["anna"]["accuracy"][:3] == [6, 6, 1.0]
    assert found["readers"]["bruno"]["sensitivity"][:3] == [0, 3, 0.0]
    assert found["all_answers"]["accuracy"][:3] == [9, 12, 0.75]
    # by hand: they agree on the 3 real scans of 6; 9 of 12 calls are real
    assert found["kappa"] == pytest.approx((0.5 - (0.75**2 + 0.25**2)) / (1 - (0.75**2 + 0.25**2)))
    assert found["anchor"]["kappa"] == 0.18
    assert main(["--answers", str(tmp_path), "--summary"]) == 0
    assert "2 of 2 readers have finished" in capsys.readouterr().out
    assert main(["--answers", str(tmp_path / "none"), "--summary"]) == 1
    assert "no reading was begun there" in capsys.readouterr().err
