from PIL import Image

from simulation import contact_sheet


def test_the_contact_sheet_is_a_small_page_with_coloured_contours(tmp_path, monkeypatch):
    monkeypatch.setattr(contact_sheet, "ROWS", contact_sheet.ROWS[4:6])
    page = contact_sheet.write_contact_sheet(tmp_path / "new" / "page.png")
    assert page.stat().st_size < 700_000
    image = Image.open(page).convert("RGB")
    colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert set(contact_sheet.COLOURS) & colours
    assert image.width > 800
