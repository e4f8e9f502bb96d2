"""What the coordinator notices, and what it can't."""

from __future__ import annotations

import os

import numpy as np
import pytest
from circle_of import NOW, circle_of, key_of, sites_of
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag

from tasks.secure.circle import Circle, Refused, TooFew, WrongSum
from tasks.secure.coordinator import CoordinatorRound
from tasks.secure.keys import SEALED, SignedKeys, opened, roster_hash, sealed, signed
from tasks.secure.site import SiteRound

LENGTH = 16


def after_vectors(circle: Circle, *, gone: str = "") -> tuple[CoordinatorRound, dict[str, SiteRound], tuple[str, ...]]:
    """A round up to the list of who answered; each site sums ones, `gone` sends nothing."""
    coordinator, sites = CoordinatorRound(circle, NOW, length=LENGTH), sites_of(circle)
    roster = coordinator.keys({name: site.keys() for name, site in sites.items()})
    addressed = coordinator.shares({name: site.shares(roster) for name, site in sites.items()})
    for name, site in sites.items():
        site.accept(addressed[name])
        vector = site.mask(np.ones(LENGTH, dtype=np.uint32))
        if name != gone:
            coordinator.add(name, vector)
    return coordinator, sites, coordinator.survivors()


@pytest.mark.parametrize("gone", ["", "site02"])
def test_one_false_share_is_found_and_the_others_used(gone: str) -> None:
    circle = circle_of(6, threshold=4, colluding=1)
    coordinator, sites, survivors = after_vectors(circle, gone=gone)
    signatures = coordinator.agreed({name: sites[name].agree(survivors) for name in survivors})
    answers = {name: sites[name].unmask(survivors, signatures) for name in survivors}
    answers["site00"] = {name: bytes(32) for name in answers["site00"]}
    assert coordinator.unmask(answers).tolist() == [len(survivors)] * LENGTH
    assert set(coordinator.guilty) == {"site00"}


@pytest.mark.parametrize("gone", ["", "site02"])
def test_where_too_few_true_shares_are_left_there_is_no_sum(gone: str) -> None:
    circle = circle_of(4)
    coordinator, sites, survivors = after_vectors(circle, gone=gone)
    answers = {name: sites[name].unmask(survivors) for name in survivors}
    for liar in survivors[:2]:
        answers[liar] = {name: bytes(32) for name in answers[liar]}
    with pytest.raises(TooFew, match=r"[12] sites sent a share of its own mask of 'site00', fewer than the threshold 3"):
        coordinator.unmask(answers)
    assert coordinator.guilty == {
        survivors[0]: f"accepted its share of a secret of '{survivors[0]}', and then showed something that opens none",
        survivors[1]: f"accepted its share of a secret of '{survivors[0]}', and then showed something that opens none",
    }


@pytest.mark.parametrize("gone", ["", "site02"])
def test_who_shows_nothing_of_one_site_is_guilty_of_that(gone: str) -> None:
    coordinator, sites, survivors = after_vectors(circle_of(4), gone=gone)
    answers = {name: sites[name].unmask(survivors) for name in survivors}
    del answers["site00"]["site03"]
    if gone:  # of four, one vanished and one shows nothing
        with pytest.raises(TooFew, match="2 sites sent a share of its own mask of 'site03'"):
            coordinator.unmask(answers)
    else:
        assert coordinator.unmask(answers).tolist() == [4] * LENGTH
    assert coordinator.guilty == {
        "site00": "accepted its share of a secret of 'site03', and then showed something that opens none"
    }


def test_who_seals_one_false_share_is_found_though_the_others_give_the_sum() -> None:
    circle = circle_of(5)
    coordinator, sites = CoordinatorRound(circle, NOW, length=LENGTH), sites_of(circle)
    roster = coordinator.keys({name: site.keys() for name, site in sites.items()})
    sent = {name: site.shares(roster) for name, site in sites.items()}
    sealing = sites["site03"]._sealing_keys(sender="site03", to="site01")
    seen = roster_hash(NOW, roster)
    sent["site03"]["site01"] = b"".join(sealed(key, os.urandom(16), seen=seen) for key in sealing)
    addressed = coordinator.shares(sent)
    for name, site in sites.items():
        site.accept(addressed[name])
        coordinator.add(name, site.mask(np.ones(LENGTH, dtype=np.uint32)))
    survivors = coordinator.survivors()
    assert coordinator.unmask({name: site.unmask(survivors) for name, site in sites.items()}).tolist() == [5] * LENGTH
    assert coordinator.guilty == {
        "site03": "gave shares of its own mask that don't give back the secret which it had committed to"
    }


def test_what_opens_one_share_opens_neither_the_other_nor_anybody_elses() -> None:
    coordinator, sites, survivors = after_vectors(circle_of(4), gone="site02")
    shown, seen = sites["site00"].unmask(survivors), coordinator._roster_hash
    for name in ("site01", "site02", "site03"):
        masks, own = coordinator._sealed[name]["site00"][:SEALED], coordinator._sealed[name]["site00"][SEALED:]
        right, wrong = (masks, own) if name == "site02" else (own, masks)
        assert len(opened(shown[name], right, seen=seen)) == 16
        others = [sealed[SEALED:] for sender in sites for sealed in [coordinator._sealed[sender].get("site01", b"")] if sealed]
        for share in (wrong, *others):
            with pytest.raises(InvalidTag):
                opened(shown[name], share, seen=seen)


def test_shares_of_another_length_leave_their_site_out_before_anybody_works() -> None:
    circle = circle_of(4)
    coordinator, sites = CoordinatorRound(circle, NOW, length=LENGTH), sites_of(circle)
    roster = coordinator.keys({name: site.keys() for name, site in sites.items()})
    sent = {name: site.shares(roster) for name, site in sites.items()}
    sent["site01"]["site02"] += b"."
    assert sorted(coordinator.shares(sent)) == ["site00", "site02", "site03"]
    assert coordinator.left == {"site01": "sent shares that are not 64 bytes long"}


def test_a_site_that_shares_out_another_secret_than_it_committed_to_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = circle_of(4)
    coordinator, sites = CoordinatorRound(circle, NOW, length=LENGTH), sites_of(circle)
    roster = coordinator.keys({name: site.keys() for name, site in sites.items()})
    sent = {name: site.shares(roster) for name, site in sites.items() if name != "site03"}
    with monkeypatch.context() as patch:
        patch.setattr("tasks.secure.site._split", lambda seed, t, n: [share for _, share in Shamir.split(t, n, bytes(16))])
        sent["site03"] = sites["site03"].shares(roster)
    addressed = coordinator.shares(sent)
    for name, site in sites.items():
        site.accept(addressed[name])
        coordinator.add(name, site.mask(np.ones(LENGTH, dtype=np.uint32)))
    survivors = coordinator.survivors()
    with pytest.raises(WrongSum, match=r"its own mask of 'site03'.*shared out another secret"):
        coordinator.unmask({name: site.unmask(survivors) for name, site in sites.items()})
    assert set(coordinator.guilty) == {"site03"}


def test_keys_that_are_forged_or_unreadable_leave_their_site_out() -> None:
    circle = circle_of(6, threshold=4)
    coordinator, sites = CoordinatorRound(circle, NOW, length=LENGTH), sites_of(circle)
    answers = {name: site.keys() for name, site in sites.items()}
    answers["site00"] = answers["site01"]
    answers["site05"] = b""
    assert sorted(coordinator.keys(answers)) == ["site01", "site02", "site03", "site04"]
    assert "not signed" in coordinator.left["site00"]
    assert "can't be read" in coordinator.left["site05"]


def test_a_site_that_shares_with_some_only_is_left_out() -> None:
    circle = circle_of(4)
    coordinator, sites = CoordinatorRound(circle, NOW, length=LENGTH), sites_of(circle)
    roster = coordinator.keys({name: site.keys() for name, site in sites.items()})
    sent = {name: site.shares(roster) for name, site in sites.items()}
    del sent["site01"]["site02"]
    addressed = coordinator.shares(sent)
    assert sorted(addressed) == ["site00", "site02", "site03"]
    assert sorted(addressed["site00"]) == ["site02", "site03"]
    assert coordinator.left == {"site01": "sent shares for 2 sites, not for the 3 others of the roster"}


def test_a_vector_of_another_kind_or_a_second_one_is_not_added() -> None:
    coordinator, sites = CoordinatorRound(circle_of(4), NOW, length=LENGTH), sites_of(circle_of(4))
    roster = coordinator.keys({name: site.keys() for name, site in sites.items()})
    coordinator.shares({name: site.shares(roster) for name, site in sites.items()})
    with pytest.raises(ValueError, match="'site00' sent float64"):
        coordinator.add("site00", np.zeros(LENGTH))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'site01' sent uint32 of shape \(3,\)"):
        coordinator.add("site01", np.zeros(3, dtype=np.uint32))
    coordinator.add("site02", np.zeros(LENGTH, dtype=np.uint32))
    with pytest.raises(ValueError, match="sent one before"):
        coordinator.add("site02", np.zeros(LENGTH, dtype=np.uint32))
    with pytest.raises(TooFew, match=r"1 sites sent a vector, fewer than the threshold 3 \(site00: sent float64"):
        coordinator.survivors()


def test_below_the_threshold_the_sum_stays_under_its_masks() -> None:
    circle = circle_of(4)
    coordinator, sites, survivors = after_vectors(circle)
    with pytest.raises(TooFew, match="2 sites sent shares to unmask with, fewer than the threshold 3"):
        coordinator.unmask({name: sites[name].unmask(survivors) for name in survivors[:2]})
    assert coordinator._sum.tolist() != [4] * LENGTH


def test_a_mask_left_on_is_not_a_sum() -> None:
    # what a coordinator learns that takes off every own mask but not those in common with the site whose vector it drops
    circle = circle_of(4)
    coordinator, sites, survivors = after_vectors(circle)
    answers = {name: sites[name].unmask(survivors) for name in survivors}
    alone = CoordinatorRound(circle, NOW, length=LENGTH)
    alone.__dict__.update({**coordinator.__dict__, "_sum": coordinator._sum.copy()})
    assert coordinator.unmask(answers).tolist() == [4] * LENGTH
    alone._sharing = ("site00", "site01", "site02")
    assert len(set(alone.unmask(answers).tolist())) > 1


@pytest.mark.parametrize("which", ["of low order", "the same twice"])
def test_keys_that_agree_on_nothing_leave_their_site_out_before_anybody_works(which: str) -> None:
    sites = sites_of(circle := circle_of(5, threshold=4))
    answers = {name: one.keys() for name, one in sites.items()}
    bad = sorted(sites)[0]
    known = SignedKeys.from_bytes(answers[bad])
    halves = (bytes(32) if which == "of low order" else known.encryption) + known.encryption + known.own_mask
    answers[bad] = halves + signed(key_of(bad), NOW.context("keys", bad) + halves)
    server = CoordinatorRound(circle, NOW, length=4)
    assert bad not in server.keys(answers)
    assert "nobody can agree on a secret with" in server.left[bad]
    with pytest.raises(Refused, match="nobody can agree on a secret with"):
        sites[sorted(sites)[1]].shares(answers)


def test_one_false_share_among_many_is_passed_by() -> None:
    circle = circle_of(12, threshold=8, colluding=1)
    sites, server = sites_of(circle), CoordinatorRound(circle, NOW, length=4)
    roster = server.keys({name: one.keys() for name, one in sites.items()})
    shares = server.shares({name: one.shares(roster) for name, one in sites.items()})
    for name, one in sites.items():
        one.accept(shares[name])
        server.add(name, one.mask(np.full(4, 3, dtype=np.uint32)))
    survivors = server.survivors()
    agreed = server.agreed({name: one.agree(survivors) for name, one in sites.items()})
    answers = {name: one.unmask(survivors, agreed) for name, one in sites.items()}
    liar = sorted(sites)[0]
    answers[liar] = {name: bytes(32) for name in answers[liar]}
    assert server.unmask(answers).tolist() == [36] * 4
    assert set(server.guilty) == {liar}
