import pytest
from PIL import Image

from simulation import contact_sheet


@pytest.mark.parametrize("rows", [contact_sheet.ROWS[4:6], contact_sheet.RIGHT_HEARTS[2:3]])
def test_the_contact_sheet_is_a_small_page_with_coloured_contours(tmp_path, rows):
    page = contact_sheet.write_contact_sheet(tmp_path / "new" / "page.png", rows)
    assert page.stat().st_size < 700_000
    image = Image.open(page).convert("RGB")
    colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert set(contact_sheet.COLOURS) & colours
    assert image.width > 800
