"""Real images: hippocampus crops dealt out over four hospitals, a 3D U-Net federated with and without privacy.

The data are not in the repository: set KONSIL_DATA to the folder that holds hippocampus/images and hippocampus/labels.
The last line is one JSON object; benchmarks/README.md names its keys.
"""

from __future__ import annotations

import json

from finished_run import command_line, finished_run, largest_epsilon, rounded_mean


def main() -> None:
    """Federate twice and print mean Dice over both structures and all sites' test patients."""
    options = command_line(__doc__).parse_args()
    record, rows = finished_run("benchmark-hippocampus", options.runs, ["hospitals=hippocampus", *options.overrides])

    def dice(arm: str, role: str) -> float | None:
        chosen = [row["scores"] for row in rows if row["arm"] == arm and row["role"] == role]
        return rounded_mean([value for scores in chosen for key, value in scores.items() if key.startswith("dice/")])

    result = {
        "verdict": record["verdict"],
        "dice_non_private": dice("federation_plain", "site"),
        "dice_private": dice("federation_private", "site"),
        "dice_non_private_held_out": dice("federation_plain", "held_out"),
        "dice_private_held_out": dice("federation_private", "held_out"),
        "epsilon": largest_epsilon(record),
        "patients": sum(site["cases_used"] for site in record["sites"].values()),
        "refused": sum(site["cases_refused"] for site in record["sites"].values()),
        "seeds": len(record["seeds"]),
        "run_s": record["timings"]["total"],
        "peak_memory_mb": record["peak_memory_mb"],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
