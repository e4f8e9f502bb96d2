"""What the coordinator notices, and what it can't."""

from __future__ import annotations

import numpy as np
import pytest
from circle_of import NOW, circle_of, key_of, sites_of
from Crypto.Protocol.SecretSharing import Shamir

from tasks.secure.circle import Circle, Refused, TooFew, WrongSum
from tasks.secure.coordinator import CoordinatorRound
from tasks.secure.keys import SignedKeys, signed
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
    answers["site00"] = {name: bytes(16) for name in answers["site00"]}
    assert coordinator.unmask(answers).tolist() == [len(survivors)] * LENGTH


@pytest.mark.parametrize("gone", ["", "site02"])
def test_where_too_few_true_shares_are_left_there_is_no_sum(gone: str) -> None:
    circle = circle_of(4)
    coordinator, sites, survivors = after_vectors(circle, gone=gone)
    answers = {name: sites[name].unmask(survivors) for name in survivors}
    for liar in survivors[:2]:
        answers[liar] = {name: bytes(16) for name in answers[liar]}
    with pytest.raises(WrongSum, match="some site sent a false share"):
        coordinator.unmask(answers)


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
    answers[liar] = {name: bytes(16) for name in answers[liar]}
    assert server.unmask(answers).tolist() == [36] * 4
