"""Who sums together and what they agreed on, the round in question, and what can go wrong.

A circle is public: it is part of the study that a person at every hospital approves. Everything that is signed, encrypted or
derived from a key is bound to one study, one round, one attempt and one purpose by the bytes made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FEWEST = 3
"""Of two hospitals each knows the other's numbers from the sum."""


class SecureSumError(Exception):
    """A secure sum did not come about; the message says why, in words."""


class Refused(SecureSumError):
    """A hospital does not go on with this round: what the coordinator sent is wrong, or was asked before."""


class TooFew(SecureSumError):
    """Fewer hospitals than the threshold are left; the coordinator learns nothing from this attempt."""


class WrongSum(SecureSumError):
    """The masks can't be taken off, or the sum is none that the hospitals can have; it must not be used."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One try at one round of a study; a try that failed is not repeated but followed by the next `attempt`."""

    study: str  # SHA-256 of the study
    round: int
    attempt: int = 0

    def context(self, purpose: str, *names: str) -> bytes:
        """Bytes that no other study, round, attempt, purpose or names give: every part stands behind its length."""
        parts = ("konsil secure sum 2", self.study, str(self.round), str(self.attempt), purpose, *names)
        return b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)


@dataclass(frozen=True, kw_only=True)
class Circle:
    """The hospitals of a secure sum.

    Parameters
    ----------
    keys
        Public key of every hospital by its name, one line in OpenSSH's format (`ecdsa-sha2-nistp384 AAAA...`): the key that
        `fl_client/keys.py` makes and the coordinator's roster holds.
    threshold
        So many hospitals must be left at the end of a round. Below it nothing is learnt.
    colluding
        So many may tell the coordinator all they know without harm to the others' patients.

    Raises
    ------
    ValueError
        For numbers that protect nobody. `2 * threshold > sites + colluding`, else two groups of hospitals could be asked for
        different shares of the same secret (Bonawitz et al. 2017, on active adversaries).
    """

    keys: Mapping[str, str]
    threshold: int
    colluding: int = 1

    def __post_init__(self) -> None:
        count = len(self.keys)
        if count < FEWEST:
            raise ValueError(
                f"a secure sum needs at least {FEWEST} hospitals, not {count}: of two each knows the other's numbers"
            )
        if not FEWEST <= self.threshold <= count:
            raise ValueError(f"threshold must lie between {FEWEST} and the {count} hospitals, not {self.threshold}")
        if not 0 <= self.colluding < self.threshold:
            raise ValueError(f"colluding must lie between 0 and the threshold {self.threshold}, not {self.colluding}")
        if 2 * self.threshold <= count + self.colluding:
            least = (count + self.colluding) // 2 + 1
            raise ValueError(
                f"a threshold of {self.threshold} among {count} hospitals of which {self.colluding} may collude lets a "
                f"coordinator ask two groups for both shares of one hospital; it must be at least {least}"
            )
        lines = [" ".join(line.split()[:2]) for line in self.keys.values()]
        if len(set(lines)) < count:
            raise ValueError("two hospitals of the circle have the same public key; each needs its own")

    @property
    def sites(self) -> tuple[str, ...]:
        """All names, in the order that everybody uses."""
        return tuple(sorted(self.keys))

    @property
    def must_agree(self) -> bool:
        """Whether the hospitals sign the list of who answered before they unmask (Bonawitz et al. 2017, "consistency check").

        Not needed where all but one must be left: a hospital answers one list only, and so leaves out one hospital at most.
        Two different ones left out would take 2 * (threshold - colluding) answers of honest hospitals, more than there are.
        Below that, a coordinator could leave out other hospitals in every list and unmask a sum of few (tests/tasks/secure/
        test_secure_lists.py tries every such lie on small circles).
        """
        return self.threshold < len(self.keys) - 1

    @property
    def noise_shares(self) -> int:
        """Of so many hospitals the noise is in every sum, whatever the others do."""
        return self.threshold - self.colluding
