import contextlib
import json
import stat
import threading

import pytest
from pydantic import ValidationError

from fl_server import tokens
from fl_server.__main__ import main
from fl_server.tokens import TokenRefused, Tokens

KEY, OTHER_KEY = "a" * 64, "b" * 64


@pytest.fixture
def kept(tmp_path):
    return Tokens(tmp_path / "tokens.json")


def test_a_token_opens_once_for_the_name_it_was_given_for(kept):
    token = kept.give("clinic")
    assert kept.take(token, name="clinic", key_sha256=KEY) is True
    with pytest.raises(TokenRefused, match="has been used"):
        kept.take(token, name="clinic", key_sha256=OTHER_KEY)


def test_a_hospital_whose_answer_got_lost_may_ask_again_with_the_same_key(kept):
    token = kept.give("clinic")
    assert kept.take(token, name="clinic", key_sha256=KEY) is True
    assert kept.take(token, name="clinic", key_sha256=KEY) is False


def test_a_stranger_hears_the_same_of_a_wrong_token_as_of_one_for_another_name(kept):
    token = kept.give("clinic")
    said = []
    for shown, name in (("guessed", "clinic"), (token, "north"), ("", "clinic"), (token + "x", "clinic")):
        with pytest.raises(TokenRefused) as refused:
            kept.take(shown, name=name, key_sha256=KEY)
        said.append(str(refused.value))
    assert len(set(said)) == 1
    assert kept.take(token, name="clinic", key_sha256=KEY)  # and none of that used it up


def test_an_expired_token_is_refused_and_says_so(kept, monkeypatch):
    token = kept.give("clinic", valid_s=60)
    now = tokens.time.time()
    monkeypatch.setattr(tokens.time, "time", lambda: now + 61)
    with pytest.raises(TokenRefused, match="expired"):
        kept.take(token, name="clinic", key_sha256=KEY)


def test_a_new_token_makes_the_earlier_one_of_the_same_name_void(kept):
    first, other = kept.give("clinic"), kept.give("north")
    second = kept.give("clinic")
    with pytest.raises(TokenRefused):
        kept.take(first, name="clinic", key_sha256=KEY)
    assert kept.take(second, name="clinic", key_sha256=KEY)
    assert kept.take(other, name="north", key_sha256=OTHER_KEY)


def test_a_token_whose_registration_came_to_nothing_is_good_again(kept):
    token = kept.give("clinic")
    kept.take(token, name="clinic", key_sha256=KEY)
    kept.put_back(token)
    assert kept.take(token, name="clinic", key_sha256=OTHER_KEY) is True


def test_who_reads_the_file_can_not_join(kept):
    token = kept.give("clinic")
    text = kept.path.read_text()
    assert token not in text
    assert stat.S_IMODE(kept.path.stat().st_mode) == 0o600
    with pytest.raises(TokenRefused):
        kept.take(json.loads(text)[0]["sha256"], name="clinic", key_sha256=KEY)


def test_tokens_outlive_the_process_and_are_forgotten_long_after_they_expired(kept, monkeypatch):
    token = kept.give("clinic", valid_s=60)
    again = Tokens(kept.path)
    assert again.take(token, name="clinic", key_sha256=KEY)
    now = tokens.time.time()
    monkeypatch.setattr(tokens.time, "time", lambda: now + 100 * 24 * 3600)
    again.give("north")
    assert [entry["name"] for entry in json.loads(kept.path.read_text())] == ["north"]


@pytest.mark.parametrize("name", ["", "../x", "a b", "a\n", "ü", "-a", "x" * 65])
def test_a_name_that_no_hospital_can_have_gets_no_token(kept, name):
    with pytest.raises(ValidationError):
        kept.give(name)


def test_of_many_who_show_one_token_at_the_same_time_one_gets_in(kept):
    token = kept.give("clinic")
    let_in, start = [], threading.Barrier(8)

    def show(number):
        start.wait()
        with contextlib.suppress(TokenRefused):
            let_in.append(Tokens(kept.path).take(token, name="clinic", key_sha256=f"{number:064d}"))

    threads = [threading.Thread(target=show, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert let_in == [True]


@pytest.mark.parametrize("days", ["-1", "0", "nan", "inf", "seven"])
def test_no_token_is_given_for_a_time_that_is_over_or_has_no_end(tmp_path, capsys, days):
    with pytest.raises(SystemExit) as ended:
        main(["join-token", "north", "--folder", str(tmp_path), "--days", days])
    assert ended.value.code == 2
    assert f"'{days}' is no number of days above 0, 366 at most" in capsys.readouterr().err
