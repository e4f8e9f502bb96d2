"""What a hospital refuses, whoever asks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from circle_of import NOW, circle_of, key_of, line_of, sites_of
from cryptography.hazmat.primitives.asymmetric import ec
from scipy import stats

from tasks.secure.circle import Circle, Refused
from tasks.secure.keys import SignedKeys, fresh_keys
from tasks.secure.masks import Vector
from tasks.secure.site import SiteRound

FIVE = circle_of(5)  # one may drop out
LOOSE = circle_of(5, threshold=3, colluding=0)  # two may, so lists are signed


def after_keys(circle: Circle = FIVE) -> tuple[dict[str, SiteRound], dict[str, bytes]]:
    sites = sites_of(circle)
    return sites, {name: site.keys() for name, site in sites.items()}


def after_masking(circle: Circle = FIVE, length: int = 8) -> tuple[dict[str, SiteRound], dict[str, Vector]]:
    sites, roster = after_keys(circle)
    sent = {name: site.shares(roster) for name, site in sites.items()}
    masked = {}
    for name, site in sites.items():
        site.accept({sender: sent[sender][name] for sender in sites if sender != name})
        masked[name] = site.mask(np.zeros(length, dtype=np.uint32))
    return sites, masked


def test_a_coordinator_that_puts_its_own_keys_between_two_hospitals_is_refused() -> None:
    sites, roster = after_keys()
    mine = ec.generate_private_key(ec.SECP384R1())
    roster["site01"] = fresh_keys().public(NOW, "site01", mine).to_bytes()
    with pytest.raises(Refused, match="keys of 'site01' are not signed by the key that the study names"):
        sites["site00"].shares(roster)


def test_keys_changed_under_a_true_signature_are_refused() -> None:
    sites, roster = after_keys()
    true = SignedKeys.from_bytes(roster["site01"])
    for changed in ("mask", "encryption", "own_mask"):
        sites, roster = after_keys()
        false = fresh_keys().public(NOW, "site01", key_of("site01"))
        roster["site01"] = replace(true, **{changed: getattr(false, changed)}).to_bytes()
        with pytest.raises(Refused, match="not signed"):
            sites["site00"].shares(roster)


@pytest.mark.parametrize("then", [replace(NOW, round=2), replace(NOW, attempt=1), replace(NOW, study="ab" * 32)])
def test_keys_of_another_round_attempt_or_study_are_refused(then) -> None:
    sites, roster = after_keys()
    roster["site01"] = sites_of(FIVE, then)["site01"].keys()
    with pytest.raises(Refused, match="forged, or of another round"):
        sites["site00"].shares(roster)


def test_a_hospital_that_signs_under_anothers_name_is_refused() -> None:
    sites, roster = after_keys()
    roster["site01"] = roster["site02"]
    with pytest.raises(Refused, match="keys of 'site01' are not signed"):
        sites["site00"].shares(roster)


def test_a_hospital_that_signs_anothers_public_key_as_its_own_is_refused() -> None:
    sites, roster = after_keys()
    copied = fresh_keys()
    for name in ("site01", "site02"):
        roster[name] = copied.public(NOW, name, key_of(name)).to_bytes()  # one encryption key in both
    with pytest.raises(Refused, match="same public key"):
        sites["site00"].shares(roster)


def test_own_keys_that_came_back_changed_are_refused() -> None:
    sites, roster = after_keys()
    roster["site00"] = sites_of(FIVE)["site00"].keys()  # truly signed, of this round: but not what was sent
    with pytest.raises(Refused, match="other keys for this site than it sent"):
        sites["site00"].shares(roster)


def test_a_roster_that_is_short_strange_or_without_oneself_is_refused() -> None:
    sites, roster = after_keys()
    with pytest.raises(Refused, match="3 sites, fewer than the threshold 4"):
        sites["site00"].shares({name: roster[name] for name in ("site00", "site01", "site02")})
    with pytest.raises(Refused, match="missing from the roster"):
        sites["site01"].shares({name: roster[name] for name in roster if name != "site01"})
    with pytest.raises(Refused, match="has nobody, whom the approved study does not name"):
        sites["site02"].shares({**roster, "nobody": roster["site00"]})
    with pytest.raises(Refused, match="keys of 'site04' can't be read"):
        sites["site03"].shares({**roster, "site04": b"short"})


def test_shares_that_were_changed_swapped_or_sealed_over_another_roster_are_refused() -> None:
    sites, roster = after_keys()
    fewer = {name: roster[name] for name in roster if name != "site04"}
    sent = {
        name: sites[name].shares(fewer if name == "site03" else roster) for name in ("site00", "site01", "site02", "site03")
    }
    good = {sender: sent[sender]["site00"] for sender in ("site01", "site02")}
    turned = sent["site03"]["site00"]
    with pytest.raises(Refused, match=r"shares of 'site03' can't be opened.*other keys than this site"):
        sites["site00"].accept({**good, "site03": turned})

    others = {sender: sent[sender]["site01"] for sender in ("site00", "site02")}
    with pytest.raises(Refused, match="can't be opened"):
        sites["site01"].accept({"site00": others["site02"], "site02": others["site00"], "site03": sent["site03"]["site01"]})

    with pytest.raises(Refused, match="2 other sites and this one are fewer than the threshold 4"):
        sites["site02"].accept({sender: sent[sender]["site02"] for sender in ("site00", "site01")})


def test_shares_of_somebody_whose_keys_nobody_saw_are_refused() -> None:
    sites, roster = after_keys()
    sites["site00"].shares({name: roster[name] for name in roster if name != "site04"})
    with pytest.raises(Refused, match="shares came from site04"):
        sites["site00"].accept({name: b"" for name in roster if name != "site00"})


@pytest.mark.parametrize(
    ("survivors", "words"),
    [
        (["site00", "site01", "site02"], "3 sites answered, fewer than the threshold 4"),
        (["site01", "site02", "site03", "site04"], "leaves it out"),
        (["site00", "site01", "site02", "site02"], "names a site twice"),
        (["site00", "site01", "site02", "nobody"], "with whom this site has no masks in common"),
    ],
)
def test_a_list_of_who_answered_that_is_short_or_false_is_refused(survivors: list[str], words: str) -> None:
    sites, _ = after_masking()
    with pytest.raises(Refused, match=words):
        sites["site00"].unmask(survivors)
    with pytest.raises(Refused, match="a second time"):  # and the refusal is for good
        sites["site00"].unmask(list(FIVE.sites))


def test_of_every_site_one_share_is_given_and_never_the_other() -> None:
    sites, _ = after_masking()
    asked = sites["site00"]
    held = dict(asked._openers)
    survivors = ["site00", "site01", "site02", "site03"]
    given = asked.unmask(survivors)
    assert set(given) == set(FIVE.sites)
    for name, share in given.items():
        mask, own = held[name]
        assert share == (own if name in survivors else mask)
        assert mask != own


def test_a_second_list_of_who_answered_is_refused() -> None:
    sites, _ = after_masking()
    sites["site00"].unmask(["site00", "site01", "site02", "site03"])
    with pytest.raises(Refused, match="'unmask' was asked a second time"):
        sites["site00"].unmask(["site00", "site01", "site02", "site04"])


def test_two_lists_are_not_both_unmasked_where_lists_are_signed() -> None:
    one, other = ["site00", "site01", "site02"], ["site00", "site03", "site04"]
    sites, _ = after_masking(LOOSE)
    signed = {name: sites[name].agree(one) for name in one}
    signed |= {name: sites[name].agree(other) for name in ("site03", "site04")}
    for name in ("site03", "site04"):  # site00 signed the first list, so the second has two signatures
        with pytest.raises(Refused, match="2 sites signed this list of who answered, fewer than the threshold 3"):
            sites[name].unmask(other, signed)
    with pytest.raises(Refused, match="signed another list"):
        sites["site02"].unmask(["site00", "site01", "site02", "site03"], signed)
    assert set(sites["site01"].unmask(one, signed)) == set(LOOSE.sites)


def test_a_signed_list_can_not_be_skipped() -> None:
    sites, _ = after_masking(LOOSE)
    with pytest.raises(Refused, match="'unmask' was asked, 'agree' is next"):
        sites["site00"].unmask(list(LOOSE.sites))


def test_questions_are_answered_once_and_in_order() -> None:
    site = sites_of(FIVE)["site00"]
    with pytest.raises(Refused, match="'shares' was asked, 'keys' is next"):
        site.shares({})
    again = sites_of(FIVE)["site00"]
    again.keys()
    with pytest.raises(Refused, match="round 3, attempt 0: 'keys' was asked a second time"):
        again.keys()


def test_a_hospital_that_the_study_does_not_name_or_names_with_another_key_takes_no_part() -> None:
    with pytest.raises(Refused, match="this hospital is called 'elsewhere'"):
        SiteRound(FIVE, NOW, site="elsewhere", key=key_of("elsewhere"))
    with pytest.raises(Refused, match="another public key for 'site00'"):
        SiteRound(FIVE, NOW, site="site00", key=key_of("site01"))


def test_the_same_key_with_a_comment_is_the_same_key() -> None:
    circle = replace(FIVE, keys={name: f"{line_of(key_of(name))} of {name}" for name in FIVE.sites})
    assert SiteRound(circle, NOW, site="site00", key=key_of("site00")).keys()


def test_one_masked_vector_looks_uniform_and_changes_wholly_with_the_attempt() -> None:
    _, first = after_masking(length=100_000)
    _, second = after_masking(length=100_000)
    seen = first["site00"]
    for shift in (0, 8, 16, 24):
        counts = np.bincount((seen >> np.uint32(shift)) & np.uint32(255), minlength=256)
        assert stats.chisquare(counts).pvalue > 1e-6
    assert np.mean(seen == second["site00"]) < 1e-3
    assert abs(np.corrcoef(seen, second["site00"])[0, 1]) < 0.02
    assert abs(np.corrcoef(seen, first["site01"])[0, 1]) < 0.02


def test_secrets_are_not_printed() -> None:
    assert repr(fresh_keys()) == "FreshKeys(...)"


def test_circles_that_protect_nobody_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 3 hospitals, not 2"):
        circle_of(2, threshold=3)
    with pytest.raises(ValueError, match="threshold must lie between 3 and the 5 hospitals, not 2"):
        circle_of(5, threshold=2)
    with pytest.raises(ValueError, match="it must be at least 6"):
        circle_of(9, threshold=5)  # 9 + 1 >= 2 * 5
    with pytest.raises(ValueError, match="colluding must lie between 0 and the threshold 3"):
        circle_of(3, threshold=3, colluding=3)
    same = line_of(key_of("site00"))
    with pytest.raises(ValueError, match="same public key"):
        Circle(keys={"a": same, "b": same + " comment", "c": line_of(key_of("site01"))}, threshold=3)
