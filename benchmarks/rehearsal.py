"""The rehearsal as a whole: seconds and memory, and the figures on which the private federation is judged.

    python benchmarks/rehearsal.py                   size=standard: 3 seeds, up to an hour; resumes in --runs
    python benchmarks/rehearsal.py --size small      the three-minute rehearsal

The last line is one JSON object; benchmarks/README.md names its keys.
"""

from __future__ import annotations

import json
from typing import Any

from finished_run import command_line, finished_run, largest_epsilon, rounded_mean


def figures(record: dict[str, Any], rows: list[dict[str, Any]]) -> dict[str, object]:
    """The benchmark's figures; None for an arm that the settings left out."""

    def dice(arm: str, role: str, structures: tuple[str, ...] = ("blood_pool", "myocardium")) -> float | None:
        """Mean over hospitals and seeds of the mean over patients; an arm `alone` is the mean over the hospitals' models."""
        chosen = [r for r in rows if r["role"] == role and (r["arm"] == arm or r["arm"].startswith(f"{arm}/"))]
        groups: dict[tuple[str, str, int], list[float]] = {}
        for row in chosen:
            values = [row["scores"][f"dice/{name}"] for name in structures if f"dice/{name}" in row["scores"]]
            groups.setdefault((row["arm"], row["hospital"], row["seed"]), []).extend(values)
        return rounded_mean([sum(values) / len(values) for values in groups.values() if values])

    private, plain = dice("federation_private", "site"), dice("federation_plain", "site")
    return {
        "profile": record["profile"],
        "verdict": record["verdict"],
        "seeds": len(record["seeds"]),
        "run_s": record["timings"]["total"],
        "peak_memory_mb": record["peak_memory_mb"],
        "epsilon_max": largest_epsilon(record),
        "myocardium_dice": dice("federation_private", "site", ("myocardium",)),
        "blood_pool_dice": dice("federation_private", "site", ("blood_pool",)),
        "gap_to_non_private": None if private is None or plain is None else round(plain - private, 4),
        "held_out_private": dice("federation_private", "held_out"),
        "held_out_local_mean": dice("alone", "held_out"),
        "held_out_pooled": dice("pooled", "held_out"),
        "held_out_non_private": dice("federation_plain", "held_out"),
        "held_out_pretrained": dice("pretrained", "held_out"),
        "sites_pretrained": dice("pretrained", "site"),
        "phases_s": record["timings"],
        "memory_mb": record["memory_mb"],
    }


def main() -> None:
    """Run the rehearsal and print its figures."""
    parser = command_line(__doc__)
    parser.add_argument("--size", default="standard")
    options = parser.parse_args()
    overrides = [f"size={options.size}", *options.overrides]
    print(json.dumps(figures(*finished_run(f"benchmark-{options.size}", options.runs, overrides))))


if __name__ == "__main__":
    main()
