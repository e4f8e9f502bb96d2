"""A radiomics run folder whose numbers were drawn instead of learned: six hospitals, about eight patients each.

Scores come from two normal distributions (Swets 1986), curves and AUC from scikit-learn over them, everything else from a
generator. The report reads nothing but the folder, so a second gives it what an hour of training would.
"""

import json
from pathlib import Path

import numpy as np
from sklearn.metrics import brier_score_loss, roc_auc_score, roc_curve

from conf.study import Study
from fl_server.record import Record, Round, SiteRecord, SiteRound

SITES = {
    "alster": "SIEMENS 1.5 T",
    "isar": "SIEMENS 3 T",
    "donau": "PHILIPS 1.5 T",
    "spree": "GE MEDICAL SYSTEMS 1.5 T",
    "rhein": "PHILIPS 3 T",
    "limmat": "CANON 3 T",
}
RADIOMIC = [
    f"{image}_{feature}"
    for image in ("original", "log-sigma-2-0-mm-3D", "log-sigma-4-0-mm-3D", "wavelet-LL")
    for feature in (
        *("firstorder_Mean", "firstorder_90Percentile", "firstorder_Skewness", "firstorder_Entropy"),
        *("glcm_JointEntropy", "glcm_Idm", "glszm_ZonePercentage"),
    )
]
CLINICAL = ["age", "ef", "edv_ml", "sex"]
GAP = {  # label, masks, epsilon, learner, distance of the two classes in standard deviations
    "forest_private": ("Federated forest with privacy", "expert", 3.0, "forest", 0.95),
    "forest_plain": ("Federated forest without privacy", "expert", None, "forest", 1.08),
    "forest_unet_private": ("Federated forest with privacy, U-Net masks", "unet", 3.0, "forest", 0.88),
    "logistic_private": ("Federated logistic regression with privacy", "expert", 3.0, "logistic", 0.8),
    "mlp_private": ("Federated neural network with privacy", "expert", 3.0, "mlp", 0.6),
    "pooled_random_forest": ("All data in one place, random forest", "expert", None, "random forest", 1.25),
    "pooled_boosting": ("All data in one place, boosting", "expert", None, "boosting", 1.2),
    "alone_random_forest": ("Each hospital alone, random forest", "expert", None, "random forest", 0.7),
    "union_of_trees": ("Union of the hospitals' trees", "expert", None, "random forest", 1.0),
}


def build(folder: Path, *, patients=8, profile="standard", verdict="complete", kind="patient", arms=tuple(GAP), drop=()):
    """Write record.json and radiomics.json; return what the latter holds. `drop`: keys left out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(11)
    _record(folder, patients, profile, verdict, kind)
    names = list(SITES)
    site = np.repeat(np.arange(len(names)), patients * 16)
    patient = np.repeat(np.arange(len(names) * patients), 16)
    ill = rng.random(patient.max() + 1) < 0.7
    y = (rng.random(len(site)) < np.where(ill[patient], 0.55, 0.12)).astype(int)
    sure = rng.random(len(site)) < 0.77
    columns = RADIOMIC + CLINICAL
    data = {
        "columns": [
            {
                "name": name,
                "kind": "clinical" if name in CLINICAL else "radiomic",
                "lower": 0.0,
                "upper": 100.0,
                "scale": "linear",
            }
            for name in columns
        ],
        "robustness": [
            {"column": name, "icc_rescan": float(rng.beta(5, 1.6)), "icc_mask": float(rng.beta(9, 1.6))} for name in RADIOMIC
        ],
        "arms": {key: _arm(key, y, sure, site, patient, names, rng) for key in arms},
        "federated": {},
        "bullseye": [_bullseye(which, rng) for which in ("best", "median", "worst")],
        "bullseye_mean": {
            "truth": [*np.round(rng.uniform(0.2, 0.6, 16), 3).tolist(), None],
            "prediction": [*np.round(rng.uniform(0.3, 0.55, 16), 3).tolist(), None],
        },
        "feature_map": _feature_map(columns, y, site, patient, names, rng),
        "importance": {
            key: [
                {"column": name, "mean": float(mean), "sd": float(mean / 4 + 0.002)}
                for name, mean in zip(columns, np.sort(rng.gamma(0.6, 0.012, len(columns)))[::-1], strict=True)
            ]
            for key in ("forest_private", "forest_plain", "pooled_random_forest")
        },
        "shapley": [_shapley(i, columns, rng) for i in range(3)],
        "harmonisation": _harmonisation(rng),
        "checklist": CHECKLIST,
    }
    for key in ("forest_private", "forest_unet_private"):
        if key in data["arms"]:
            data["federated"][key] = _federated(data["arms"][key], rng)
    data = {key: value for key, value in data.items() if key not in drop}
    (folder / "radiomics.json").write_text(json.dumps(data))
    return data


def _record(folder, patients, profile, verdict, kind):
    study = Study(
        name="myocarditis",
        konsil_version="0.1.0",
        task={
            "name": "radiomics",
            "label": {"endpoint": "call_NN", "positive_from": 1.0},
            "certainty": {"endpoint": "certainty_NN", "least": 3},
        },
        rounds=1,
        sites=tuple(SITES),
        privacy={"kind": kind, "epsilon": 3.0, "delta": 1e-3},
    )
    record = Record.begin(study, profile=profile, seeds=[0], engine="inprocess", device="2 CPU cores")
    for i, (name, scanner) in enumerate(SITES.items()):
        spent = None if kind == "none" else round(2.99 - 0.015 * i, 4)
        record.sites[name] = SiteRecord(cases_used=patients, scanner=scanner, epsilon=spent, delta=1e-3)
    answers = {name: SiteRound(answer="used", epsilon=record.sites[name].epsilon) for name in SITES}
    if verdict == "degraded":
        answers["spree"] = SiteRound(answer="declined", reason="another feature hash <9f2c>")
    record.rounds.append(Round(round=1, sites=answers, seconds=4.2, arrays_sha256="ab" * 32))
    record.judge()
    record.timings = {"hospitals": 212.4, "features": 95.1, "total": 401.0}
    record.versions = {"konsil": "0.1.0", "scikit-learn": "1.9.0"}
    record.write(folder / "record.json")


def _estimate(y, score, spread=0.028):
    auc = float(roc_auc_score(y, score))
    return {"value": auc, "low": auc - spread, "high": min(auc + spread, 1.0)}


def _arm(key, y, sure, site, patient, names, rng):
    label, masks, epsilon, learner, gap = GAP[key]
    evidence = gap * 1.15 * y + rng.normal(0, 1, len(y)) * np.where(sure, 0.9, 1.5) - 0.7
    score = 1 / (1 + np.exp(-evidence))
    grid = np.linspace(0, 1, 101)
    folds, risen = [], []
    for fold in range(10):
        here = patient % 10 == fold
        fpr, tpr, _ = roc_curve(y[here], score[here])
        risen.append(np.interp(grid, fpr, tpr))
        folds.append(
            {"fold": fold, "auc": float(roc_auc_score(y[here], score[here])), "fpr": fpr.tolist(), "tpr": tpr.tolist()}
        )
    fpr, tpr, thresholds = roc_curve(y, score)
    best, wanted = int(np.argmax(tpr - fpr)), int(np.argmax(tpr >= 0.9))
    cuts = [
        {"threshold": float(thresholds[k]), "sensitivity": float(tpr[k]), "specificity": float(1 - fpr[k])}
        for k in (best, wanted)
    ]
    return {
        "label": label,
        "masks": masks,
        "epsilon": epsilon,
        "learner": learner,
        "folds": folds,
        "roc": {"fpr": grid.tolist(), "tpr": np.mean(risen, 0).tolist(), "tpr_sd": np.std(risen, 0).tolist()},
        "auc": _estimate(y, score),
        "auc_certain": _estimate(y[sure], score[sure]),
        "by_hospital": {
            name: {**_estimate(y[site == i], score[site == i], 0.07), "patients": int((site == i).sum() // 16)}
            for i, name in enumerate(names)
        },
        "youden": cuts[0],
        "at_sensitivity": {"wanted": 0.9, **cuts[1]},
        "calibration": _calibration(y, score),
        "brier": float(brier_score_loss(y, score)),
        "ece": 0.0412,
        "ece_by_chance": 0.0273,
    }


def _calibration(y, score):
    bins = np.clip((score * 10).astype(int), 0, 9)
    found = []
    for b in np.unique(bins):
        here = bins == b
        share, n = float(y[here].mean()), int(here.sum())
        half = 1.96 * np.sqrt(max(share * (1 - share), 0.01) / n)
        found.append(
            {
                "predicted": float(score[here].mean()),
                "observed": share,
                "low": max(share - half, 0.0),
                "high": min(share + half, 1.0),
                "count": n,
            }
        )
    return found


def _federated(arm, rng):
    grid = np.linspace(0, 1, 33)
    tpr = np.clip(np.maximum.accumulate(np.interp(grid, arm["roc"]["fpr"], arm["roc"]["tpr"]) + rng.normal(0, 0.02, 33)), 0, 1)
    tpr[0], tpr[-1] = 0, 1
    exact = arm["auc"]["value"]
    calibration = [
        {
            **b,
            "observed": float(np.clip(b["observed"] + rng.normal(0, 0.04), 0, 1)),
        }
        for b in arm["calibration"]
    ]
    return {
        "auc": exact - 0.0123,
        "auc_noise_sd": 0.0091,
        "low": exact - 0.048,
        "high": exact + 0.024,
        "auc_exact": exact,
        "fpr": grid.tolist(),
        "tpr": tpr.tolist(),
        "youden": {
            "threshold": 0.44,
            "sensitivity": 0.66,
            "specificity": 0.71,
            "sensitivity_noise_sd": 0.041,
            "specificity_noise_sd": 0.052,
        },
        "at_sensitivity": {"wanted": 0.9, "threshold": 0.21, "sensitivity": 0.91, "specificity": 0.33},
        "calibration": calibration,
        "brier": arm["brier"] + 0.004,
        "brier_noise_sd": 0.0062,
        "noise_std": 1.87,
        "bins": 32,
        "epsilon": 1.0,
    }


def _bullseye(which, rng):
    truth = (rng.random(17) < 0.4).astype(int).tolist()
    off = {"best": 0.12, "median": 0.3, "worst": 0.55}[which]
    call = [1 - t if rng.random() < 0.15 else t for t in truth]
    prediction = [float(np.clip(t + rng.normal(0, off) * (1 - 2 * t), 0.02, 0.98)) for t in truth]
    missing = {16} | ({2} if which == "worst" else set())
    return {
        "which": which,
        "hospital": "isar",
        "patient": f"G0100{int(100 * off):04d}",
        **{
            key: [None if i in missing else value for i, value in enumerate(values)]
            for key, values in (
                ("truth", truth),
                ("call", call),
                ("certainty", rng.integers(1, 6, 17).tolist()),
                ("prediction", prediction),
                ("uncertainty", rng.uniform(0.04, 0.21, 17).tolist()),
            )
        },
    }


def _feature_map(columns, y, site, patient, names, rng):
    loading = rng.normal(0, 1, (3, len(columns)))
    hidden = np.column_stack([1.6 * y + rng.normal(0, 0.6, len(y)), rng.normal(0, 1, 6)[site], rng.normal(0, 1, len(y))])
    values = hidden @ loading + rng.normal(0, 0.7, (len(y), len(columns)))
    values = (values - values.mean(0)) / values.std(0)
    values[rng.random(values.shape) < 0.01] = np.nan
    values[np.ix_(site == 3, [columns.index("ef")])] = np.nan
    return {
        "columns": columns,
        "rows": [f"{names[s]}-{p:03d}" for s, p in zip(site, patient, strict=True)],
        "row_hospital": [names[s] for s in site],
        "row_positive": y.tolist(),
        "values": [[None if np.isnan(v) else round(float(v), 3) for v in row] for row in values],
    }


def _shapley(i, columns, rng):
    parts = rng.normal(0, 0.05, len(columns)) * (rng.random(len(columns)) < 0.5)
    values = [
        {"column": name, "value": None if j == 3 else float(rng.normal(200, 90)), "shapley": float(part)}
        for j, (name, part) in enumerate(zip(columns, parts, strict=True))
    ]
    prediction = 0.41 + float(parts.sum())
    return {
        "hospital": "donau",
        "patient": f"G0200000{i}",
        "segment": 3 + i,
        "base": 0.41,
        "prediction": prediction,
        "values": values,
    }


def _harmonisation(rng):
    columns = RADIOMIC[:4]
    spread = np.array([-1.64, -0.67, 0, 0.67, 1.64])
    before = {
        s: {c: (rng.normal(0, 1.1) + spread * rng.uniform(0.7, 1.4)).round(3).tolist() for c in columns} for s in SITES.values()
    }
    after = {s: {c: (rng.normal(0, 0.1) + spread).round(3).tolist() for c in columns} for s in SITES.values()}
    return {
        "columns": columns,
        "before": before,
        "after": after,
        "scanner_share_before": dict(zip(columns, (0.41, 0.33, 0.18, 0.52), strict=True)),
        "scanner_share_after": dict(zip(columns, (0.02, 0.01, 0.0, 0.03), strict=True)),
        "auc_before": {"value": 0.7217, "low": 0.69, "high": 0.75},
        "auc_after": {"value": 0.7391, "low": 0.71, "high": 0.77},
    }


CHECKLIST = [
    {
        "number": "1",
        "section": "Title",
        "item": "Relevant title, specifying the radiomic methodology",
        "filled": False,
        "text": "",
    },
    {
        "number": "23",
        "section": "Methods: data",
        "item": "Image acquisition protocol",
        "filled": True,
        "text": "Generated late enhancement scans of six scanner profiles, 1.5 and 3 T; pixel size and slice thickness in the "
        "settings below.",
    },
    {
        "number": "24",
        "section": "Methods: data",
        "item": "Non-radiomic predictor variables",
        "filled": True,
        "text": "age, sex, ef, edv_ml",
    },
    {
        "number": "31",
        "section": "Methods: segmentation",
        "item": "Who performed the segmentation, with how much experience",
        "filled": False,
        "text": "",
    },
    {
        "number": "37",
        "section": "Methods: features",
        "item": "Feature extraction: software and parameters",
        "filled": True,
        "text": "pyradiomics 3.1.4, feature hash 9f2c1b",
    },
    {"number": "58", "section": "Open science", "item": "Sharing of data, code and model", "filled": False, "text": ""},
]
