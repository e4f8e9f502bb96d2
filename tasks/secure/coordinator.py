"""The coordinator's part in one secure sum: passes on what it can't read, adds up what it can't tell apart, takes the masks
off.

Only one vector is ever held, the running sum. A hospital that answers wrongly is left out with a reason (`left`), like one
that does not answer; the attempt ends with `TooFew` when fewer than the threshold are left. Shares that don't give back the
very secrets that a hospital committed to are found, so that nobody's false share turns the sum into noise unseen. Whose fault
it was is certain (`guilty`): a share is shown by what opens it as it was sealed, so that who shows something else is told from
who sealed another share than it should. Source: Bonawitz et al. 2017, figure 4; that what opens a share is shown is ours.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag

from tasks.secure import keys, masks
from tasks.secure.circle import Circle, Moment, SecureSumError, TooFew, WrongSum
from tasks.secure.keys import SEALED, SEED, SignedKeys

_MOST_TRIES = 200  # sets of shares tried for one secret, should some be false


class CoordinatorRound:
    """One attempt at one round, as the coordinator sees it. Call the methods in the order they stand in.

    Parameters
    ----------
    circle, moment
        As the sites have them, from the study.
    length
        Numbers in the vector that is summed.
    about
        What the sum is about, as the sites know it: see `SiteRound.mask`.
    """

    def __init__(self, circle: Circle, moment: Moment, *, length: int, about: bytes = b"") -> None:
        self.circle, self.moment, self.length, self.about = circle, moment, length, about
        self.left: dict[str, str] = {}
        """Sites that are out of this attempt, and why, in words."""
        self.guilty: dict[str, str] = {}
        """Sites that were shown to break the protocol, and how, in words; nobody else's doing looks like it."""
        self._roster: dict[str, SignedKeys] = {}
        self._roster_hash = b""
        self._sharing: tuple[str, ...] = ()
        self._sealed: dict[str, Mapping[str, bytes]] = {}  # by sender, by whom they are for
        self._answered: set[str] = set()
        self._closed = False
        self._trusted: set[int] = set()
        self._sum = np.zeros(length, dtype=np.uint32)

    def keys(self, answers: Mapping[str, bytes]) -> dict[str, bytes]:
        """The roster for question `shares`, from the answers to `keys`: the same for every site in it."""
        good: dict[str, bytes] = {}
        for site in self.circle.sites:
            if site not in answers:
                self.left[site] = "sent no keys"
                continue
            try:
                known = SignedKeys.from_bytes(answers[site])
            except ValueError as error:
                self.left[site] = f"sent keys that can't be read: {error}"
                continue
            if not known.usable:
                self.left[site] = "sent public keys that nobody can agree on a secret with"
                continue
            if not known.signed_by(self.circle.keys[site], self.moment, site):
                self.left[site] = "sent keys that are not signed by the key the study names for it, for this round and attempt"
                continue
            self._roster[site], good[site] = known, answers[site]
        self._enough(len(good), "sent keys")
        self._roster_hash = keys.roster_hash(self.moment, good)
        return good

    def shares(self, answers: Mapping[str, Mapping[str, bytes]]) -> dict[str, dict[str, bytes]]:
        """For every site that goes on, by name: what question `train` brings it, the shares addressed to it by sender."""
        whole = set(self._roster)
        for site in sorted(whole):
            if site not in answers:
                self.left[site] = "sent no shares"
            elif set(answers[site]) != whole - {site}:
                self.left[site] = (
                    f"sent shares for {len(answers[site])} sites, not for the {len(whole) - 1} others of the roster"
                )
            elif any(len(both) != 2 * SEALED for both in answers[site].values()):
                self.left[site] = f"sent shares that are not {2 * SEALED} bytes long"
        self._sharing = tuple(sorted(whole - set(self.left)))
        self._sealed = {site: answers[site] for site in self._sharing}
        self._enough(len(self._sharing), "sent shares")
        return {to: {sender: answers[sender][to] for sender in self._sharing if sender != to} for to in self._sharing}

    def add(self, site: str, vector: masks.Vector) -> None:
        """Add one masked vector to the sum, as it comes.

        Raises `ValueError` for one that can't be added; the site is out then.
        """
        if self._closed or site not in self._sharing or site in self._answered:
            raise ValueError(f"'{site}' is not asked for a vector in this attempt, sent one before, or comes too late")
        if vector.dtype != np.uint32 or vector.shape != (self.length,):
            self.left[site] = f"sent {vector.dtype} of shape {vector.shape}, not uint32 of ({self.length},)"
            raise ValueError(f"'{site}' {self.left[site]}")
        np.add(self._sum, vector, out=self._sum)
        self._answered.add(site)

    def survivors(self) -> tuple[str, ...]:
        """Who answered: what questions `agree` and `unmask` bring. After this no vector can be added."""
        self._closed = True
        for site in self._sharing:
            if site not in self._answered:
                self.left.setdefault(site, "sent no vector")
        self._enough(len(self._answered), "sent a vector")
        return tuple(sorted(self._answered))

    def agreed(self, answers: Mapping[str, bytes]) -> dict[str, bytes]:
        """The signatures that question `unmask` brings, where `circle.must_agree`."""
        good = {site: answers[site] for site in sorted(self._answered & set(answers))}
        self._enough(len(good), "signed the list of who answered")
        return good

    def unmask(self, answers: Mapping[str, Mapping[str, bytes]]) -> masks.Vector:
        """The sum modulo 2**32 over `survivors()`, from the answers to `unmask`. The vector is this object's own: use it once.

        Raises `TooFew`, and `WrongSum` where shares were false and too few good ones are left to tell. `guilty` has whose fault
        that was, and who showed something false in vain.
        """
        answers = {site: answers[site] for site in sorted(self._answered & set(answers))}
        self._enough(len(answers), "sent shares to unmask with")
        seeds, troubles = dict[str, bytes](), list[SecureSumError]()
        for name in self._sharing:  # all of them: who is guilty has to be known of a sum that is lost as well
            try:
                seeds[name] = self._recovered(name, answers)
            except SecureSumError as trouble:
                troubles.append(trouble)
        if troubles:
            raise troubles[0]
        for name, seed in seeds.items():
            if name in self._answered:
                masks.subtract(self._sum, keys.own_mask_key(seed, self.moment, name))
            else:
                self._take_off_pairs(name, seed)
        return self._sum

    def _recovered(self, name: str, answers: Mapping[str, Mapping[str, bytes]]) -> bytes:
        """The seed of its own mask of a site that answered, else that of its masks with others."""
        place = {site: index for index, site in enumerate(sorted(self._roster), start=1)}
        which, fits = ("its own mask", self._is_own) if name in self._answered else ("its masks with others", self._is_mask)
        found = {site: self._share(name, site, answer.get(name, b"")) for site, answer in answers.items()}
        shares = [(place[site], share) for site, share in found.items() if share is not None]
        threshold = self.circle.threshold
        if len(shares) < threshold:
            raise TooFew(f"{len(shares)} sites sent a share of {which} of '{name}', fewer than the threshold {threshold}")
        for some in self._choices(shares):
            seed = Shamir.combine(some, False)
            if fits(name, seed):
                self._trusted = {index for index, _ in some}
                return seed
            said = f"gave shares of {which} that don't give back the secret which it had committed to"
            self.guilty.setdefault(name, said)
        raise WrongSum(
            f"no {threshold} of the {len(shares)} shares of {which} of '{name}' give the secret it committed to: "
            f"'{name}' shared out another secret; this attempt has no sum"
        )

    def _share(self, name: str, holder: str, shown: bytes) -> bytes | None:
        """The share of a secret of `name` that was sealed for `holder`; None, and the holder guilty, if it shows another thing.

        It had opened that share before it sent its vector, so that only what it shows can be wrong.
        """
        if name == holder:
            if len(shown) == SEED:
                return shown
        else:
            both = self._sealed[name][holder]
            with suppress(InvalidTag, ValueError):
                share = both[SEALED:] if name in self._answered else both[:SEALED]
                return keys.opened(shown, share, seen=self._roster_hash)
        self.guilty.setdefault(holder, f"accepted its share of a secret of '{name}', and then showed something that opens none")
        return None

    def _choices(self, shares: list[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
        """Sets of shares to try: of the sites whose shares were right the last time, then any."""
        threshold = self.circle.threshold
        if len(good := [share for share in shares if share[0] in self._trusted]) == threshold:
            yield good
        if math.comb(len(shares), threshold) <= _MOST_TRIES:
            yield from map(list, itertools.combinations(shares, threshold))
            return
        draw = random.SystemRandom()
        for _ in range(_MOST_TRIES):
            yield draw.sample(shares, threshold)

    def _is_own(self, name: str, seed: bytes) -> bool:
        return keys.own_commitment(seed, self.moment, name) == self._roster[name].own_mask

    def _is_mask(self, name: str, seed: bytes) -> bool:
        return keys.public_half(keys.mask_private(seed, self.moment, name)) == self._roster[name].mask

    def _take_off_pairs(self, gone: str, seed: bytes) -> None:
        """Those masks that the survivors put on for a site whose vector never came."""
        private = keys.mask_private(seed, self.moment, gone)
        for name in sorted(self._answered):
            key = keys.pair_mask_key(private, self._roster[name].mask, self.moment, gone, name, self.about)
            (masks.subtract if name < gone else masks.add)(self._sum, key)

    def _enough(self, count: int, what: str) -> None:
        if count < self.circle.threshold:
            reasons = "; ".join(f"{site}: {why}" for site, why in sorted(self.left.items()))
            raise TooFew(
                f"{count} sites {what}, fewer than the threshold {self.circle.threshold}" + (f" ({reasons})" if reasons else "")
            )
