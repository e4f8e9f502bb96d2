"""Faults on purpose: what goes wrong in hospitals, on the wire and at the coordinator, one class of a few lines each.

A fault acts where it would in reality: around the hospital's own ClientApp, in its own folder, on the wire between it and the
coordinator, or on the coordinator's process. The code that is tried knows nothing of it. A plan (`conf/faults/*.yaml`) says
which faults there are, at which hospital, in which rounds.

    fault.py       what a fault is               answers.py, crashes.py, house.py   at a hospital
    plan.py        all of them, and the plan     wire.py                            between hospital and coordinator
    hospital.py    a hospital with faults        coordinator.py                     at the coordinator
    grid.py        a wire with faults            accounting.py                      nothing may be lost without a word
"""
