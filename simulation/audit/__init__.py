"""`konsil-simulate audit=quick`: konsil attacked through the code that hospitals run, instead of a rehearsal.

    check.py       what a check is: a name, a claim, and what was found
    drawn.py       patients made to go wrong, and small hospitals' files
    houses.py      small hospitals on a disk, and a coordinator that asks them
    gate.py ... secure.py      checks that can be certain: one counterexample refutes the promise
    canary.py, membership.py, inversion.py      attacks that measure how much leaves
    catalogue.py   all of them, in order
    attack.py      runs them; page.py writes what was found

What passes proves nothing about what was not tried (docs/audit.md). Whether the checks can find anything is measured by
benchmarks/seeded_bugs.py, which breaks konsil on purpose and looks who notices.
"""
