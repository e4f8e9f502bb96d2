import contextlib
import datetime
import ssl
import stat

import pytest
from cryptography import x509
from pydantic import ValidationError

from fl_server import certificates
from fl_server.__main__ import main
from fl_server.house import House


@pytest.fixture
def house(tmp_path):
    return House.create(tmp_path / "house", hosts=["fl.example.org", "10.0.0.7"], port=8443)


def test_a_coordinator_is_read_as_it_was_made(house):
    assert House.load(house.folder) == house
    assert house.address == "fl.example.org:8443"


def test_nobody_else_can_read_a_key_at_any_place(house):
    secret = {path.name for path in house.folder.iterdir() if stat.S_IMODE(path.stat().st_mode) == 0o600}
    assert secret == {"ca.key", "server.key", "superlink.key", "control.key", "executor.key"}
    assert stat.S_IMODE(house.folder.stat().st_mode) == 0o700


def test_the_certificate_names_every_host_and_this_machine(house):
    names = certificates.read(house.certificate).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7", "127.0.0.1"]


def test_openssl_accepts_the_chain(house):
    context = ssl.create_default_context(cafile=str(house.authority))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(house.certificate, house.key)
    end = {"client": (ssl.MemoryBIO(), ssl.MemoryBIO()), "server": (ssl.MemoryBIO(), ssl.MemoryBIO())}
    client = context.wrap_bio(*end["client"], server_hostname="fl.example.org")
    other = server.wrap_bio(*end["server"], server_side=True)
    for _ in range(4):  # flights of the handshake
        for talks, mine, theirs in ((client, "client", "server"), (other, "server", "client")):
            with contextlib.suppress(ssl.SSLWantReadError):
                talks.do_handshake()
            end[theirs][0].write(end[mine][1].read())
    assert client.getpeercert()["subject"] == ((("commonName", "fl.example.org"),),)


def test_the_authority_can_sign_servers_and_no_authorities(house):
    authority = certificates.read(house.authority)
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    server = certificates.read(house.certificate)
    server.verify_directly_issued_by(authority)
    assert server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert server.not_valid_after_utc - server.not_valid_before_utc == datetime.timedelta(days=397)


def test_a_coordinator_is_not_made_twice(house, capsys):
    before = house.key.read_bytes()
    assert main(["init", str(house.folder), "--host", "other"]) == 1
    assert "a coordinator lives there; its keys are not replaced" in capsys.readouterr().err
    assert house.key.read_bytes() == before


def test_renewing_keeps_the_authority_that_hospitals_trust(house, capsys):
    authority, old = house.authority.read_bytes(), certificates.read(house.certificate)
    assert main(["renew", "--folder", str(house.folder)]) == 0
    new = certificates.read(house.certificate)
    assert new.serial_number != old.serial_number
    assert house.authority.read_bytes() == authority
    new.verify_directly_issued_by(certificates.read(house.authority))


def test_without_the_authoritys_key_nothing_is_renewed(house, capsys):
    house.authority_key.unlink()
    assert main(["renew", "--folder", str(house.folder)]) == 1
    assert "ca.key is not there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hosts": ("a/b",)}, "'a/b' is neither a DNS name nor an IP address"),
        ({"hosts": ("https://a",)}, "neither a DNS name"),
        ({"tls": False, "listen": "0.0.0.0"}, "listen has to be 127.0.0.1, not 0.0.0.0"),
        ({"listen": "localhost"}, "no IP address"),
        ({"superlink_port": 8443}, "both 8443"),
        ({"max_body_mib": 1}, "greater than or equal to 6"),
        ({"portt": 1}, "Extra inputs"),
    ],
)
def test_settings_that_can_not_work_are_refused_in_words(house, wrong, said):
    with pytest.raises(ValidationError, match=said):
        House.model_validate({**house.model_dump(), **wrong})


def test_a_folder_without_settings_says_how_to_make_them(tmp_path, capsys):
    assert main(["serve", "--folder", str(tmp_path)]) == 1
    assert "konsil-study init" in capsys.readouterr().err
