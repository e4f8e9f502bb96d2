"""Real images: hippocampus crops dealt out over four hospitals, a 3D U-Net federated with and without privacy.

The data are not in the repository: set KONSIL_DATA to the folder that holds hippocampus/images and hippocampus/labels.
The last line is one JSON object; benchmarks/README.md names its keys.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from simulation.__main__ import main as simulate


def main() -> None:
    """Federate twice and print mean Dice over both structures and all sites' test patients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("overrides", nargs="*", help="further settings, key=value")
    options = parser.parse_args()
    name = "benchmark-hippocampus"
    simulate(["hospitals=hippocampus", f"name={name}", f"runs_folder={options.runs}", *options.overrides])
    folder = Path(options.runs) / name
    record = json.loads((folder / "record.json").read_text())
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]

    def dice(arm: str, role: str) -> float:
        values = [
            v for r in rows if r["arm"] == arm and r["role"] == role for k, v in r["scores"].items() if k.startswith("dice/")
        ]
        return round(float(np.mean(values)), 4)

    result = {
        "dice_non_private": dice("federation_plain", "site"),
        "dice_private": dice("federation_private", "site"),
        "dice_non_private_held_out": dice("federation_plain", "held_out"),
        "dice_private_held_out": dice("federation_private", "held_out"),
        "epsilon": max(site["epsilon"] for site in record["sites"].values()),
        "patients": sum(site["cases_used"] for site in record["sites"].values()),
        "refused": sum(site["cases_refused"] for site in record["sites"].values()),
        "seeds": len(record["seeds"]),
        "run_s": record["timings"]["total"],
        "peak_memory_mb": record["peak_memory_mb"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
