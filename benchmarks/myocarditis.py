"""The myocarditis study of six generated hospitals: masks drawn under privacy, then segments classified under privacy.

One run of `konsil-simulate study=myocarditis`; figures are those of its `radiomics.json`. The run resumes; what is finished is
not trained again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulation.__main__ import main as simulate

COMPLETE, DEGRADED = 0, 3
NAME = "benchmark-myocarditis"


def myocarditis(runs: str, overrides: Sequence[str]) -> dict[str, object]:
    """Run the study and read what came of it. Ends the program with the run's exit status unless complete or degraded."""
    status = simulate(["study=myocarditis", "size=standard", f"name={NAME}", f"runs_folder={runs}", *overrides])
    if status not in (COMPLETE, DEGRADED):
        sys.exit(status)
    folder = Path(runs) / NAME
    return {"myocarditis": figures(json.loads((folder / "radiomics.json").read_text()), folder)}


def figures(facts: dict[str, Any], folder: Path) -> dict[str, object]:
    """AUC by arm, over all and over certain segments, and what the patients paid."""
    record = json.loads((folder / "record.json").read_text())
    arms = facts["arms"]

    def area(arm: str, which: str = "auc") -> float | None:
        told = (arms.get(arm) or {}).get(which)
        return None if told is None or told["value"] is None else round(told["value"], 4)

    def masks(kind: str, which: str) -> dict[str, float | None]:
        return {"expert_masks": area(f"forest_{kind}", which), "unet_masks": area(f"forest_unet_{kind}", which)}

    hospitals = facts["hospitals"].values()
    return {
        "expert_masks": area("forest_private"),
        "unet_masks": area("forest_unet_private"),
        "certain_only": masks("private", "auc_certain"),
        "same_segments": facts.get("masks"),
        "no_privacy": masks("plain", "auc_certain"),
        "logistic_private": area("logistic_private", "auc_certain"),
        "mlp_private": area("mlp_private", "auc_certain"),
        "pooled_random_forest": area("pooled_random_forest", "auc_certain"),
        "alone_random_forest": area("alone_random_forest", "auc_certain"),
        "epsilon": {
            "expert_masks": arms["forest_private"]["epsilon"],
            "unet_masks": (arms.get("forest_unet_private") or {}).get("epsilon"),
            "federation": max((s["epsilon"] for s in record["sites"].values() if s["epsilon"] is not None), default=None),
        },
        "patients": sum(entry["patients"] for entry in hospitals),
        "segments": sum(entry["rows"] for entry in hospitals),
        "positive": sum(entry["positive"] for entry in hospitals),
        "verdict": record["verdict"],
        "run_s": record["timings"].get("total"),
    }
