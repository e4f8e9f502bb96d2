"""Sums over hospitals in which no hospital's own numbers are seen, by nobody.

The protocol of Bonawitz et al. 2017 ("Practical Secure Aggregation for Privacy-Preserving Machine Learning") with signed keys,
summing whole numbers modulo 2**32 that carry discrete Gaussian noise (Kairouz, Liu, Steinke 2021), so that the noise of the sum
is that of one hospital instead of one at each. No file here knows how messages travel: `site.SiteRound` and
`coordinator.CoordinatorRound` take and give plain values. One round, one line a question to every site still in it:

1. keys       fresh public keys, signed by the site             `SiteRound.keys`
2. shares     everybody's signed keys; back: encrypted shares   `SiteRound.shares`
3. train      shares for this site; back: the masked vector     `SiteRound.accept`, `Grid.encode`, `SiteRound.mask`
4. agree      who answered; back: a signature on that list      `SiteRound.agree`, only if `Circle.must_agree`
5. unmask     who answered; back: what opens one share of each  `SiteRound.unmask`

What is assumed
---------------
* The public keys in the study are the hospitals': a person approved them with the study. The coordinator may otherwise do what
  it wants: it can't sit between two hospitals (keys are signed), use keys of another round or study (the signature names them),
  or show two lists of who answered and take both answers (`Circle.must_agree`).
* At most `colluding` hospitals work with the coordinator. They may tell it all their secrets, and take their noise out of the
  sum.
* Then the coordinator learns the sum over at least `threshold` hospitals, with the noise of at least `threshold - colluding`,
  and nothing else; of a round that ends below the threshold it learns nothing. The sum itself is what the ledger charges.
* If more hospitals than `colluding` work with it, the promise falls back to the noise that a site itself added:
  `own_noise_multiplier` of the event in its ledger (`price.event`).
* Not covered: a hospital that sends wrong numbers (it can spoil a sum, as it can without masks), and who took part, and when.

Who ends a round
----------------
A hospital that shares out another secret than it committed to, or shows something else than it was given, is known for certain
(`CoordinatorRound.guilty`), and no other hospital can make it look so: the last answer holds the key under which a share was
sealed, and the coordinator opens with it what it has passed on. Who says that it can't open what another sealed for it can't be
told from who sealed rubbish; `blame.at_fault` counts.

Secrets live in memory for one round and are written nowhere. A site that restarts between two questions has forgotten them
and has dropped out of that round, which goes on without it: a secret on a disk outlives the round, and a site that could take
a round up again could be asked the last question twice.
"""
