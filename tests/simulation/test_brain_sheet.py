from PIL import Image

from simulation import brain_sheet
from simulation.contact_sheet import COLOURS


def test_the_page_of_brains_has_a_row_for_each_and_contours_of_both_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(brain_sheet, "SEEDS", (3, 5))
    page = brain_sheet.write_brain_sheet(tmp_path / "new" / "page.png")
    with Image.open(page) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
        height = image.height
    assert set(COLOURS[:2]) <= colours
    monkeypatch.setattr(brain_sheet, "SEEDS", (3,))
    with Image.open(brain_sheet.write_brain_sheet(page)) as image:
        assert 2 * image.height == height
