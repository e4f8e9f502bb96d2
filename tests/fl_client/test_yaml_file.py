"""Files that a person writes by hand, and mistakes in them, as `konsil-site` tells them."""

import pytest

from fl_client.__main__ import main
from fl_client.yaml_file import read_yaml

BAD = [
    (b"name: a\n\tfolder: .\n", ", line 2: not YAML: found character '\\t' that cannot start any token"),
    (b"name: [a\n", ", line 2: not YAML"),
    (b"7\n", " holds a int; lines of the form 'name: value' are right"),
    (b"- a\n", " holds a list"),
    (b"", " holds nothing"),
    (b"name: \xff\n", " is not UTF-8 text"),
    (b"name: a\0\n", ": not YAML"),
    (b"day: 2001-99-99\n", ": not YAML"),
    (b"name: !!python/object:os.system x\n", ", line 1: not YAML"),
]


@pytest.mark.parametrize(("content", "words"), BAD)
def test_a_file_that_is_no_yaml_is_told_with_its_line(tmp_path, content, words):
    path = tmp_path / "site.yaml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"site\.yaml") as told:
        read_yaml(path)
    assert str(told.value).startswith(f"{path}{words}")


@pytest.mark.parametrize("text", ["name: a\n\tfolder: .\n", "7\n", "name: a\nfolder: 5\n", "name: a\nkey_file:\n"])
def test_bad_settings_are_a_sentence_of_the_command(tmp_path, capsys, text):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    assert main(["--site", str(path), "ledger"]) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--series-rules", "--labels"])
def test_bad_rules_and_label_maps_are_a_sentence_of_the_command(tmp_path, capsys, hospitals, option):
    site, key = hospitals.sites["a"], hospitals.site("a").key_file
    key.touch(mode=0o600)
    key.write_bytes(b"sixteen bytes at least")
    bad = tmp_path / "bad.yaml"
    bad.write_text("rules:\n\t- name: cine\n")
    assert main(["--site", str(site), "admit", str(tmp_path), option, str(bad)]) == 1
    assert f"{bad}, line 2: not YAML" in capsys.readouterr().err
