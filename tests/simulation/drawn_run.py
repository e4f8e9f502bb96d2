"""A run folder whose scores were drawn instead of computed: five hospitals, a held-out one and a real one.

The report reads nothing but the run folder, so a second gives it what an hour of training would. Pictures of discs and
rings stand in for hearts.
"""

import itertools
import json
from pathlib import Path

import numpy as np

from conf.study import Study
from fl_server.record import Record, Round, SiteRecord, SiteRound

SITES = {
    "Ahorn": "Siemens Avanto, 1.5 T",
    "Birke": "Philips Ingenia, 3 T",
    "Eiche": "GE Discovery, 3 T",
    "Linde": "Siemens Skyra, 3 T",
    "Ulme": "Canon Orian, 1.5 T",
}
HEART = {"blood_pool": 0.92, "myocardium": 0.81, "right_ventricle": 0.87}
HIPPOCAMPUS = {"anterior": 0.86, "posterior": 0.84}
GAIN = {"pretrained": -0.07, "ensemble": -0.02, "pooled": 0.012, "federation_plain": 0.01, "federation_private": 0.0}
REASON = "the site did not answer within 60 s <deadline>"


def build(
    folder: Path,
    *,
    structures=HEART,
    seeds=(0, 1, 2),
    rounds=12,
    patients=10,
    profile="standard",
    arms=(*GAIN, "alone"),
    verdict="complete",
    overlays=True,
    real=True,
    kind="patient",
    endpoints=True,
):
    """A run folder with drawn scores. Returns them as a list, as they stand in scores.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    study = Study(
        name="five-hospitals",
        konsil_version="0.1.0",
        task={"name": "segmentation"},
        rounds=max(rounds, 1),
        sites=tuple(SITES),
        privacy={"kind": kind, "epsilon": 8.0, "delta": 1e-3},
    )
    record = Record.begin(study, profile=profile, seeds=list(seeds), engine="inprocess", device="2 CPU cores")
    metrics, rows = [], []
    for number in range(1, rounds + 1):
        sites = {}
        for i, name in enumerate(SITES):
            spent = None if kind == "none" else round(7.9 * (number / max(rounds, 1)) ** 0.6 - 0.11 * i, 4)
            sites[name] = SiteRound(answer="used", epsilon=spent)
            for seed in seeds:
                for arm in ("federation_private", "federation_plain"):
                    if arm in arms:
                        grown = {
                            f"dice/{s}": level - 0.35 * np.exp(-number / 3) - 0.012 * i + rng.normal(0, 0.004)
                            for s, level in structures.items()
                        }
                        line = {
                            "arm": arm,
                            "seed": seed,
                            "round": number,
                            "hospital": name,
                            **grown,
                            "epsilon": spent,
                            "time_s": 1.5,
                        }
                        metrics.append(line)
        record.rounds.append(Round(round=number, sites=sites, seconds=3.1, arrays_sha256=f"{number:064x}"))
    if verdict == "degraded":
        record.rounds[1].sites["Eiche"] = SiteRound(
            answer="failed", reason=REASON, epsilon=record.rounds[0].sites["Eiche"].epsilon
        )
        record.rounds[3].sites["Ulme"] = SiteRound(
            answer="declined", reason="budget", epsilon=record.rounds[2].sites["Ulme"].epsilon
        )
        record.rounds[4].sites["Ahorn"] = SiteRound(
            answer="quarantined", reason="not finite", epsilon=record.rounds[4].sites["Ahorn"].epsilon
        )
        record.rounds[5].sites["Birke"] = SiteRound(
            answer="absent", reason="no answer", epsilon=record.rounds[4].sites["Birke"].epsilon
        )
        record.rounds[5].sites["Ulme"] = SiteRound(answer="late", reason="after the end", seconds=99.0)
    record.judge()
    hospitals = [(name, "site") for name in SITES] + [("Tanne", "held_out")] + ([("Sunnybrook", "real")] if real else [])
    models = [arm for arm in arms if arm != "alone"] + ([f"alone/{name}" for name in SITES] if "alone" in arms else [])
    for i, (hospital, role) in enumerate(hospitals):
        for p in range(4 if role == "real" else patients):
            ease = {s: rng.normal(0, 0.025) for s in structures}
            for arm, seed in itertools.product(models, seeds):
                if arm == "pretrained" and seed != seeds[0]:
                    continue  # one starting model, whatever the seed
                gain = GAIN.get(arm, -0.015 if arm == f"alone/{hospital}" else -0.06) - 0.012 * i + rng.normal(0, 0.003)
                scores = {
                    f"dice/{s}": float(np.clip(level + ease[s] + gain + rng.normal(0, 0.012), 0, 0.99))
                    for s, level in structures.items()
                }
                scores |= {f"hd95_mm/{s}": float(rng.gamma(6, 0.8)) for s in structures}
                if endpoints:
                    scores |= {f"volume_error_ml/{s}": float(rng.normal(2, 7)) for s in structures} | {
                        "ef_error": float(rng.normal(-0.01, 0.04))
                    }
                if p == 0 and role == "site":
                    scores[f"hd95_mm/{next(iter(structures))}"] = float("nan")  # nothing was outlined
                rows.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "hospital": hospital,
                        "role": role,
                        "patient": f"{hospital[:2]}-{p:03d}",
                        "scores": scores,
                    }
                )
    for i, (name, scanner) in enumerate(SITES.items()):
        values = [r["scores"] for r in rows if r["arm"] == "federation_private" and r["hospital"] == name]
        dice = {s: float(np.mean([v[f"dice/{s}"] for v in values])) for s in structures} if values else {}
        record.sites[name] = SiteRecord(
            declared_size=50, cases_expected=41 + i, cases_used=40 + i, cases_refused=1, scanner=scanner, delta=1e-3, dice=dice,
            epsilon=record.rounds[-1].sites[name].epsilon if record.rounds else None,
        )  # fmt: skip
    if real:
        refused = {"SCD-0005": "contours lie 41 mm outside the image & its slices"}
        record.held_out["real"] = {"Sunnybrook": {"cases_expected": 5, "cases_used": 4, "refused": refused}}
    record.timings = {"patients": 61.2, "pretraining": 120.4, "federation_private": 402.0, "total": 583.6}
    record.memory_mb = {"patients": 1404.2, "federation_private": 2210.0}
    record.peak_memory_mb = 2210.0
    record.versions = {"konsil": "0.1.0", "torch": "2.13.0", "flwr": "1.41.0"}
    record.write(folder / "record.json")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if overlays:
        draw_overlays(folder / "overlays", rng)
    return rows


def heart(shape, spacing, radius_mm, rng, shift=0.0):
    """Disc, ring and crescent with noise: an image (rows, columns) and its mask."""
    y, x = np.indices(shape)
    y, x = (y - shape[0] / 2) * spacing[0], (x - shape[1] / 2) * spacing[1]
    angle = np.arctan2(y, x)
    r = np.hypot(y + shift, x - 8 + shift) * (1 + 0.04 * np.sin(3 * angle + 7 * shift))
    right = np.hypot((y + 4) / 1.25, x + 18 - 0.4 * shift)
    mask = np.zeros(shape, np.uint8)
    mask[(right < 1.35 * radius_mm) & (r > 1.55 * radius_mm)] = 3
    mask[r < 1.5 * radius_mm] = 2
    mask[r < radius_mm] = 1
    body = (np.hypot(y / 95, x / 130) < 1).astype(float)
    image = 60 * body + np.choose(mask, [0, 150, 25, 140]) - 45 * (np.hypot((y - 10) / 60, (x - 75) / 40) < 1)
    return (image + rng.normal(0, 7, shape) + 20).astype(np.float32), mask


def draw_overlays(folder, rng):
    folder.mkdir()
    spacing = np.array([8.0, 1.8, 1.3])
    for rank, shift in (("best", 0.4), ("median", 1.6), ("worst", 5.0)):
        radii = np.linspace(27, 9, 9)
        pairs = [heart((150, 208), spacing[1:], radius, rng) for radius in radii]
        predicted = [heart((150, 208), spacing[1:], radius * 1.02, rng, shift)[1] for radius in radii]
        np.savez_compressed(
            folder / f"{rank}.npz", image=np.stack([a for a, _ in pairs]), mask=np.stack([m for _, m in pairs]),
            prediction=np.stack(predicted), spacing_mm=spacing, hospital="Birke", patient="Bi-003", series="cine_ed",
            dice=json.dumps({"blood_pool": 0.95 - shift / 20, "myocardium": 0.86 - shift / 15}), arm="federation_private",
        )  # fmt: skip
    views = {}
    for i, (name, scanner) in enumerate({**SITES, "Tanne": "Philips Achieva, 1.5 T"}.items()):
        step = 1.2 + 0.15 * i
        image, mask = heart((int(250 / step), int(300 / step)), (step, step), 24 + i, rng)
        views |= {
            f"{name}/image": image * (1 + i),
            f"{name}/mask": mask,
            f"{name}/spacing_mm": np.array([step, step]),
            f"{name}/label": scanner,
        }
    np.savez_compressed(folder / "scanners.npz", **views)
