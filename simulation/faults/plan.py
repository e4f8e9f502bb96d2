"""The plan: which faults there are, at which hospital, in which rounds (`conf/faults/*.yaml`).

For example `{fault: offline, site: donau, rounds: [3, 5]}` and `{fault: nan_update, site: isar, rounds: 2}`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, SerializeAsAny

import conf
from conf.study import Frozen
from simulation.faults import answers, coordinator, crashes, house, wire
from simulation.faults.fault import AtCoordinator, Fault, InHospital, OnWire

KINDS: tuple[type[Fault], ...] = (
    *(crashes.CrashBeforeTraining, crashes.CrashBeforeLedger, crashes.CrashInTraining, crashes.CrashBeforeReply),
    *(answers.NanUpdate, answers.ExplodingUpdate, answers.SignFlippedUpdate),
    *(answers.WrongShapes, answers.WrongNames, answers.WrongDtype),
    *(house.DiskFull, house.CorruptCase, house.EmptyCohort, house.BudgetSpentElsewhere, house.OlderVersion, house.ClockOff),
    *(wire.Offline, wire.Partition, wire.Slow, wire.LateReply, wire.LostReply, wire.DuplicateReply),
    *(coordinator.CoordinatorKilled, coordinator.SuperLinkKilled),
)
KNOWN: dict[str, type[Fault]] = {kind.model_fields["fault"].annotation.__args__[0]: kind for kind in KINDS}  # type: ignore[union-attr]
"""Every fault that konsil knows, by name."""


def fault_of(settings: Any) -> Fault:
    """The fault that these settings are. Raises `ValueError`, naming those that there are."""
    if isinstance(settings, Fault):
        return settings
    name = settings.get("fault") if isinstance(settings, dict) else None
    if name not in KNOWN:
        raise ValueError(f"no such fault as {name!r}; there are {', '.join(KNOWN)}")
    return KNOWN[name].model_validate(settings)


class Plan(Frozen):
    """The faults of a study."""

    plan: tuple[Annotated[SerializeAsAny[Fault], BeforeValidator(fault_of)], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.plan)

    @property
    def identity(self) -> str:
        """Hash of the plan; of none, the empty text."""
        return hashlib.sha256(repr(self.told()).encode()).hexdigest() if self.plan else ""

    def told(self) -> list[dict[str, Any]]:
        """As `record.faults` has it."""
        return [fault.told() for fault in self.plan]

    def inside(self, site: str) -> tuple[InHospital, ...]:
        """The faults inside one hospital, from the inside outwards.

        Slowness comes first: a process that another fault starts is as slow.
        """
        faults = [fault for fault in self.plan if isinstance(fault, InHospital) and site in fault.hospitals]
        return tuple(sorted(faults, key=lambda fault: not isinstance(fault, wire.Slow)))

    @property
    def on_wire(self) -> tuple[OnWire, ...]:
        """The faults between hospitals and coordinator."""
        return tuple(fault for fault in self.plan if isinstance(fault, OnWire))

    @property
    def at_coordinator(self) -> tuple[AtCoordinator, ...]:
        """The faults of the coordinator."""
        return tuple(fault for fault in self.plan if isinstance(fault, AtCoordinator))

    def require(self, *, sites: Sequence[str], rounds: int, processes: bool) -> None:
        """Raise `ValueError`, in words, for a plan that a study of these hospitals and rounds can't have.

        `processes`: hospitals and coordinator are processes of their own (`make federation`), not parts of this one.
        """
        for number, fault in enumerate(self.plan):
            where = f"faults.plan.{number}"
            if unknown := sorted(set(fault.hospitals) - set(sites)):
                raise ValueError(f"{where}: no hospital {', '.join(unknown)} in this study; there are {', '.join(sites)}")
            if fault.rounds[1] > rounds:
                raise ValueError(f"{where}: {fault.fault} is planned for round {fault.rounds[1]}; the study has {rounds}")
            if processes and not fault.in_federation:
                can = ", ".join(name for name, kind in KNOWN.items() if kind.in_federation)
                raise ValueError(f"{where}: {fault.fault} is made in the simulator only; real processes can have {can}")
            if not processes and fault.fault == "superlink_killed":
                raise ValueError(f"{where}: the simulator has no SuperLink that could be killed; make federation has one")


NO_FAULTS = Plan()
"""Nothing goes wrong on purpose."""


def planned(name: str) -> Plan:
    """The plan of this name in `conf/faults`. Raises `ValueError`, naming those that there are."""
    folder = Path(next(iter(conf.__path__))) / "faults"
    path = folder / f"{name}.yaml"
    if not path.exists():
        raise ValueError(f"no plan named {name}; there are {', '.join(sorted(file.stem for file in folder.glob('*.yaml')))}")
    settings = yaml.safe_load(path.read_text())
    return Plan.model_validate(settings.get("faults", settings))
