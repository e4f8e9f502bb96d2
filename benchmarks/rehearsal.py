"""The rehearsal as a whole: seconds and memory, and the figures on which the private federation is judged.

    python benchmarks/rehearsal.py                   size=standard: 3 seeds, up to an hour; resumes in --runs
    python benchmarks/rehearsal.py --size small      the three-minute rehearsal

The last line is one JSON object; benchmarks/README.md names its keys.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from simulation.__main__ import main as simulate


def figures(folder: Path) -> dict[str, object]:
    """The benchmark's figures, read from a finished run."""
    record = json.loads((folder / "record.json").read_text())
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]

    def dice(arm: str, role: str, structures: tuple[str, ...] = ("blood_pool", "myocardium")) -> float:
        """Mean over hospitals and seeds of the mean over patients; an arm `alone` is the mean over the hospitals' models."""
        chosen = [r for r in rows if r["role"] == role and (r["arm"] == arm or r["arm"].startswith(f"{arm}/"))]
        groups: dict[tuple[str, str, int], list[float]] = {}
        for row in chosen:
            values = [row["scores"][f"dice/{name}"] for name in structures if f"dice/{name}" in row["scores"]]
            groups.setdefault((row["arm"], row["hospital"], row["seed"]), []).extend(values)
        return round(float(np.mean([np.mean(values) for values in groups.values() if values])), 4)

    private, plain = dice("federation_private", "site"), dice("federation_plain", "site")
    return {
        "profile": record["profile"],
        "verdict": record["verdict"],
        "seeds": len(record["seeds"]),
        "run_s": record["timings"]["total"],
        "peak_memory_mb": record["peak_memory_mb"],
        "epsilon_max": max(site["epsilon"] for site in record["sites"].values()),
        "myocardium_dice": dice("federation_private", "site", ("myocardium",)),
        "blood_pool_dice": dice("federation_private", "site", ("blood_pool",)),
        "gap_to_non_private": round(plain - private, 4),
        "held_out_private": dice("federation_private", "held_out"),
        "held_out_local_mean": dice("alone", "held_out"),
        "held_out_pooled": dice("pooled", "held_out"),
        "held_out_non_private": dice("federation_plain", "held_out"),
        "held_out_pretrained": dice("pretrained", "held_out"),
        "sites_pretrained": dice("pretrained", "site"),
        "phases_s": record["timings"],
    }


def main() -> None:
    """Run the rehearsal and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="standard")
    parser.add_argument("--runs", default="runs", help="folder of runs and cache; an empty one measures a first run")
    parser.add_argument("overrides", nargs="*", help="further settings, key=value")
    options = parser.parse_args()
    name = f"benchmark-{options.size}"
    simulate([f"size={options.size}", f"name={name}", f"runs_folder={options.runs}", *options.overrides])
    print(json.dumps(figures(Path(options.runs) / name)))


if __name__ == "__main__":
    main()
