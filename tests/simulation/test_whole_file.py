"""A file is there whole or as it was."""

from pathlib import Path

import pytest

from simulation.whole_file import write_whole


def test_what_was_there_stays_until_the_new_text_is_written(tmp_path, monkeypatch):
    path = tmp_path / "gate.json"
    write_whole(path, "erstes, größer")
    assert path.read_text(encoding="utf-8") == "erstes, größer"
    write = Path.write_text

    def half(self, text, **options):
        write(self, text[:3], **options)
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, "zweites")
    assert path.read_text(encoding="utf-8") == "erstes, größer"
