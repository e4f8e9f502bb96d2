import pytest

from fl_client.__main__ import main
from fl_client.daemon import start
from fl_client.founding import Founding, asked, found
from fl_client.keys import public_key
from fl_client.preflight import rules
from fl_client.sharing import replaceable
from fl_client.site import Site


def answers(*said):
    """Somebody at the terminal; what was asked stands in `.heard`."""
    left = list(said)

    def ask(question):
        ask.heard.append(question)
        return left.pop(0)

    ask.heard = []
    return ask


def test_only_what_no_flag_said_is_asked_and_an_empty_answer_takes_the_default():
    ask = answers("clinic", "", "", "PACS@10.0.0.5", "", "10.0.0.7:104")
    new = asked({"declared_size": 50}, ask=ask)
    assert new == Founding("clinic", 50, peer="PACS@10.0.0.5", listen="10.0.0.7:104")
    assert len(ask.heard) == 6
    assert ask.heard[1].endswith("epsilon [10.0]: ")


def test_a_question_without_a_default_is_asked_until_it_is_answered(capsys):
    ask = answers("", "clinic", "many", "50", "", "", "")
    assert asked({}, ask=ask) == Founding("clinic", 50)
    assert "'many' is no whole number" in capsys.readouterr().err


def test_an_archive_by_host_name_is_asked_for_again(capsys):
    ask = answers("", "", "PACS@pacs.clinic.example", "PACS@10.0.0.5", "", "localhost:104", "10.0.0.7:104")
    assert asked({"name": "clinic", "declared_size": 50}, ask=ask).peer == "PACS@10.0.0.5"
    told = capsys.readouterr().err
    assert "'pacs.clinic.example' is no IP address, and names can be forged; a number such as 10.0.0.5 is right" in told
    assert "the place to listen: 'localhost' is no IP address" in told


@pytest.mark.parametrize(("listen", "is_told"), [("127.0.0.1:11112", True), ("[::1]:11112", True), ("10.0.0.7:11112", False)])
def test_a_door_that_the_archive_can_never_reach_is_told_when_the_hospital_is_founded(tmp_path, capsys, listen, is_told):
    new = Founding("clinic", 50, peer="PACS@10.0.0.5", listen=listen)
    assert found(tmp_path / "clinic" / "site.yaml", new) == 0
    assert ("and not by the archive 10.0.0.5: mend dicom.host" in capsys.readouterr().err) == is_told


def test_nothing_is_asked_about_a_dicom_port_that_nobody_sends_to():
    ask = answers("", "", "")
    asked({"name": "clinic", "declared_size": 50}, ask=ask)
    assert len(ask.heard) == 3


def test_the_settings_have_the_door_that_was_asked_for_and_the_public_key_is_told(tmp_path, capsys):
    path = tmp_path / "clinic" / "site.yaml"
    words = ["--name", "clinic", "--declared-size", "50", "--peer", "0123@10.0.0.5", "--listen", "10.0.0.7:11113"]
    assert main(["--site", str(path), "init", *words]) == 0
    site = Site.load(path)
    assert (site.dicom.host, site.dicom.port, site.dicom.ae_title) == ("10.0.0.7", 11113, "KONSIL")
    assert [(peer.ae_title, peer.address) for peer in site.dicom.peers] == [("0123", "10.0.0.5")]
    assert site.identity_folder == path.parent / "identity"
    assert f"{public_key(path.parent / 'node.key')} clinic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"peer": "PACS"}, "the archive is named as TITLE@ADDRESS"),
        ({"peer": "PACS@pacs.clinic.example"}, "the archive's address: 'pacs.clinic.example' is no IP address"),
        ({"peer": "PACS@1.2.3.4", "listen": "localhost:11112"}, "the place to listen: 'localhost' is no IP address"),
        ({"peer": "PACS@1.2.3.4", "listen": "11112"}, "a place to listen is named as ADDRESS:PORT"),
        ({"name": "a b"}, "name: "),
        ({"delta": 0.5}, "budget.delta: "),
        ({"peer": "PA CS IS LONG@1.2.3.4"}, "dicom.peers.0.ae_title: "),
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_written(tmp_path, given, told):
    with pytest.raises(ValueError, match="^" + told):
        found(tmp_path / "clinic" / "site.yaml", Founding(**{"name": "clinic", "declared_size": 5, **given}))
    assert not (tmp_path / "clinic").exists()


def test_without_a_terminal_what_is_missing_is_named(tmp_path, capsys):
    assert main(["--site", str(tmp_path / "site.yaml"), "init", "--name", "clinic"]) == 1
    assert "--declared-size: say it, or start this at a terminal, where it asks" in capsys.readouterr().err


def test_a_place_to_listen_without_an_archive_is_refused_and_nothing_is_written(tmp_path, capsys):
    words = ["--name", "clinic", "--declared-size", "50", "--listen", "10.0.0.7:11112", "--ae-title", "US"]
    assert main(["--site", str(tmp_path / "clinic" / "site.yaml"), "init", *words]) == 1
    assert (
        "--ae-title and --listen: that is for an archive which sends images here; name it with --peer"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "clinic").exists()


@pytest.fixture
def shared(tmp_path):
    """The folder of a house for two users, and where its settings go."""
    (tmp_path / "house").mkdir()
    (tmp_path / "house").chmod(0o2770)
    (tmp_path / "identity").mkdir(mode=0o700)
    return tmp_path


FOR_TWO = ("--folder", "house", "--identity", "identity")


def test_of_a_house_for_two_users_the_group_reads_the_settings_and_only_the_intake_the_key_for_pseudonyms(shared, capsys):
    settings = shared / "site.yaml"
    assert main(["--site", str(settings), "init", "--name", "clinic", "--declared-size", "50", *FOR_TWO]) == 0
    site = Site.load(settings)
    assert (site.folder, site.key_file) == (shared / "house", shared / "identity" / "pseudonym.key")
    assert settings.stat().st_mode & 0o777 == 0o640
    assert site.key_file.stat().st_mode & 0o777 == 0o600
    assert not list(shared.rglob("node.key"))
    assert "the trainer's" in capsys.readouterr().out
    assert main(["--site", str(settings), "join", "--coordinator", "127.0.0.1:8443"]) == 0
    assert settings.stat().st_mode & 0o777 == 0o640
    assert not list(shared.rglob("node.key"))
    assert main(["--site", str(settings), "join"]) == 0  # the trainer's user
    assert (shared / "house" / "node.key").stat().st_mode & 0o777 == 0o600


def test_where_the_trainer_could_exchange_the_settings_nothing_is_founded(shared, capsys):
    settings = shared / "house" / "site.yaml"
    given = ["--name", "clinic", "--declared-size", "50"]
    assert main(["--site", str(settings), "init", *given]) == 1
    assert f"{shared / 'house'} has mode 2770, so others could exchange {settings}" in capsys.readouterr().err
    assert list((shared / "house").iterdir()) == []


def test_an_intake_whose_settings_or_identities_could_be_exchanged_does_not_start(shared, capsys):
    settings = shared / "house" / "site.yaml"
    (shared / "in").mkdir()
    settings.write_text(f"name: clinic\ndeclared_size: 50\nidentity_folder: ../identity\narrivals: {{watch: {shared}/in}}\n")
    with pytest.raises(ValueError, match="others could exchange"):
        start(settings, "intake")
    found = [finding.text for finding in rules(Site.load(settings), settings) if finding.level == "mend"]
    assert any("others could exchange" in text for text in found)


def test_what_can_be_exchanged_is_told_but_not_under_the_sticky_bit(shared):
    inside = shared / "house" / "site.yaml"
    inside.touch(mode=0o640)
    assert replaceable(shared / "identity") == []
    (told,) = replaceable(inside)
    assert told.startswith(f"{shared / 'house'} has mode 2770")
    (shared / "house").chmod(0o3770)
    assert replaceable(inside) == []
    inside.chmod(0o660)
    assert len(replaceable(inside)) == 1
