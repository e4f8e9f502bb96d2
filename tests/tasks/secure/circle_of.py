"""Circles of made-up hospitals with real keys, and one whole round over them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache

import numpy as np
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tasks.secure.circle import FEWEST, Circle, Moment
from tasks.secure.coordinator import CoordinatorRound
from tasks.secure.masks import Vector
from tasks.secure.site import SiteRound

STUDY = "5e" * 32
NOW = Moment(study=STUDY, round=3, attempt=0)


@cache
def key_of(site: str) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def line_of(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def names(count: int) -> list[str]:
    return [f"site{number:02d}" for number in range(count)]


def circle_of(count: int, *, threshold: int | None = None, colluding: int = 1) -> Circle:
    return Circle(
        keys={name: line_of(key_of(name)) for name in names(count)},
        threshold=max(FEWEST, count - 1) if threshold is None else threshold,
        colluding=colluding,
    )


def sites_of(circle: Circle, moment: Moment = NOW) -> dict[str, SiteRound]:
    return {name: SiteRound(circle, moment, site=name, key=key_of(name)) for name in circle.sites}


def whole_round(circle: Circle, vectors: Mapping[str, Vector], *, gone: Mapping[str, Collection[str]] | None = None) -> Vector:
    """The sum as the coordinator sees it; `gone` says before which question which sites stop to answer."""
    gone = gone or {}
    here = set(circle.sites)
    sites = sites_of(circle)
    coordinator = CoordinatorRound(circle, NOW, length=len(next(iter(vectors.values()))))

    here -= set(gone.get("keys", ()))
    roster = coordinator.keys({name: sites[name].keys() for name in here})

    here -= set(gone.get("shares", ()))
    addressed = coordinator.shares({name: sites[name].shares(roster) for name in here})

    here -= set(gone.get("train", ()))
    for name in sorted(here):
        sites[name].accept(addressed[name])
        coordinator.add(name, sites[name].mask(np.array(vectors[name])))
    answered = coordinator.survivors()

    signatures: dict[str, bytes] = {}
    if circle.must_agree:
        here -= set(gone.get("agree", ()))
        signatures = coordinator.agreed({name: sites[name].agree(answered) for name in here})

    here -= set(gone.get("unmask", ()))
    return coordinator.unmask({name: sites[name].unmask(answered, signatures) for name in here})
