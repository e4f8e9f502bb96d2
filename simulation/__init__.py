"""Hospitals that do not exist, run through the code that does.

`InProcessGrid` also serves other Flower apps (docs/flower_plugin.md); it is imported when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from conf.threads import wait_briefly

if TYPE_CHECKING:
    from simulation.grid import InProcessGrid as InProcessGrid

wait_briefly()  # before anything here imports torch


def __getattr__(name: str) -> Any:
    if name == "InProcessGrid":
        return import_module("simulation.grid").InProcessGrid
    raise AttributeError(f"module 'simulation' has no attribute '{name}'")
