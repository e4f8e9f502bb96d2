"""The radiomics task: rows per patient, and either leaves to count or a perceptron to descend with.

Both learn from the same arrays, which hold what the hospital has and no choice of a learner: `rows` (rows, 3 + columns), label,
certainty, region and then the columns, and `scanner`, its name in UTF-8.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tasks.case import Case
from tasks.radiomics import histogram, perceptron
from tasks.radiomics.extraction import Extraction
from tasks.radiomics.forest import Structure
from tasks.radiomics.harmonise import scanner_name
from tasks.radiomics.rows import Rows, rows_of
from tasks.radiomics.settings import PerceptronLearner, Settings
from tasks.task import NOISE_SD, Arrays, State

Floats = npt.NDArray[np.float64]


class RadiomicsTask(ABC):
    """What both learners share: how a case becomes rows, what its labels weigh, how the model's answers are judged."""

    def __init__(self, settings: Settings, *, models: Path | None = None) -> None:
        self.settings = settings
        self._extraction = Extraction(settings.image, models) if settings.image else None

    @cached_property
    def hash(self) -> str:
        """Identity of the prepared rows."""
        return self.settings.hash

    def prepare(self, case: Case) -> Arrays:
        """`rows` and `scanner`, see above; two small files, because a round opens those of every patient."""
        rows = rows_of(case, self.settings, self._extraction)
        scanner = np.frombuffer(scanner_name(case.scanner).encode(), np.uint8)
        return {"rows": np.column_stack([rows.y, rows.certainty, rows.region, rows.X]), "scanner": scanner}

    def rows(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Rows:
        """What was prepared, with X as the learner takes it: harmonised across scanners where the study settles how."""
        table = np.array(arrays["rows"], np.float64)
        X = table[:, 3:]
        if self.settings.harmonisation is not None:
            count = len(self.settings.radiomic)
            X[:, :count] = self.settings.harmonisation.apply(X[:, :count], bytes(arrays["scanner"]).decode())
        return Rows(X, table[:, 0], table[:, 1], table[:, 2].astype(np.int64))

    def weights(self, rows: Rows) -> Floats:
        """What each row's label counts, (rows,) from 0 to 1: by certainty and class; 0 without a label."""
        weight = np.ones(len(rows.y))
        rule = self.settings.certainty
        if rule is not None and rule.use != "all":
            certainty = np.nan_to_num(rows.certainty, nan=0.0)
            weight = (certainty >= rule.least).astype(float) if rule.use == "exclude" else np.clip(certainty / rule.most, 0, 1)
        negative, positive = self.settings.class_weights
        weight = weight * np.where(rows.y > 0, positive, negative) / max(negative, positive)
        return np.where(np.isnan(rows.y), 0.0, weight)

    @abstractmethod
    def predict(self, state: State, X: npt.ArrayLike) -> Floats:
        """Probability of being positive, (rows,), of X as `rows` gives it. Raises `ValueError` for a state that is no model."""

    # -- judging, on patients held back -------------------------------------------------------------------------------

    @property
    def judgement_length(self) -> int:
        """Twice the bins: negatives, then positives."""
        return 2 * self.settings.bins

    def judgement(self, state: State, arrays: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """The patient's part of the histogram of answers by class."""
        rows = self.rows(arrays)
        weights = self.weights(rows)
        used = weights > 0
        probability = self.predict(state, rows.X[used])
        return histogram.contribution(probability, rows.y[used], bins=self.settings.bins, weights=weights[used])

    metrics = ("auc",)

    def scores(self, total: npt.ArrayLike, noise_std: float) -> dict[str, float]:
        """Area under the ROC curve with its 95 % interval, Brier score, calibration error; nothing if a class is drowned.

        Of Brier score and calibration error (`ece`) lower is better; beside the latter stands what chance makes of it.
        """
        found = histogram.curves(total, bins=self.settings.bins, noise_std=noise_std)
        told = {
            "auc": found.auc,
            NOISE_SD + "auc": found.auc_noise_sd,
            "auc_low": found.low,
            "auc_high": found.high,
            "brier": found.brier,
            NOISE_SD + "brier": found.brier_noise_sd,
            "ece": found.ece,
            "ece_by_chance": found.ece_by_chance,
            "negatives": found.negatives,
            "positives": found.positives,
        }
        return {name: float(value) for name, value in told.items() if value is not None} if found.auc is not None else {}


class ForestTask(RadiomicsTask):
    """The forest: a counting task. See `tasks.task.CountingTask` for what each method promises."""

    counted = "leaf counts"

    @cached_property
    def structure(self) -> Structure:
        """The trees, drawn from the settings."""
        return Structure.draw(self.settings.forest)

    @property
    def length(self) -> int:
        """Trees times leaves times classes."""
        return math.prod(self.structure.shape)

    def contribution(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Floats:
        """The patient's leaf counts, all segments together of length at most 1."""
        rows = self.rows(arrays)
        weights = self.weights(rows)
        used = weights > 0
        return self.structure.contribution(rows.X[used], rows.y[used].astype(np.int64), weights[used])

    def predict(self, state: State, X: npt.ArrayLike) -> Floats:
        """Probability of being positive, (rows,)."""
        probabilities = self.structure.probabilities(
            state["total"].numpy(), noise_std=math.sqrt(float(state["noise_variance"][0]))
        )
        positive: Floats = self.structure.predict_proba(probabilities, X)[:, 1]
        return positive


class PerceptronTask(RadiomicsTask):
    """Logistic regression or a small network: a gradient task. See `tasks.task.GradientTask`."""

    def model(self) -> torch.nn.Module:
        """A new network; without a hidden layer it starts at even odds."""
        learner = self.settings.learner
        hidden = learner.hidden if isinstance(learner, PerceptronLearner) else ()
        return perceptron.Perceptron(len(self.settings.columns), hidden)

    def example(
        self, arrays: Mapping[str, npt.NDArray[Any]], views: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`views` rows of one patient, dealt out evenly: (views, columns); label and weight (views, 2)."""
        rows = self.rows(arrays)
        count = len(rows.y)
        chosen = np.concatenate([rng.permutation(count) for _ in range(-(-views // count))])[:views]
        X = perceptron.scaled(rows.X[chosen], self.settings.columns)
        target = np.stack([np.nan_to_num(rows.y), self.weights(rows)], axis=1)[chosen].astype(np.float32)
        return torch.from_numpy(X), torch.from_numpy(target)

    def drawn(self, rng: np.random.Generator) -> Arrays:
        """One row with a label for each region of a heart, of an unknown scanner."""
        rows = 16
        known = np.column_stack([rng.integers(0, 2, rows), np.ones(rows), np.arange(1, rows + 1)])
        columns = rng.uniform(0, 1, (rows, len(self.settings.columns)))
        return {"rows": np.column_stack([known, columns]), "scanner": np.frombuffer(b"drawn", np.uint8)}

    def loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Weighted cross-entropy, (rows,)."""
        return perceptron.loss(output, target)

    def trainable(self, model: torch.nn.Module) -> list[str]:
        """All parameters."""
        return [name for name, _ in model.named_parameters()]

    def score(self, model: torch.nn.Module, case: Case, *, full: bool = True) -> dict[str, float]:
        """Mean Brier score of the patient's labelled rows; an area under a curve needs several patients."""
        rows = self.rows(self.prepare(case))
        known = ~np.isnan(rows.y)
        error = self.predict(model.state_dict(), rows.X[known]) - rows.y[known]
        return {"brier": float(np.mean(error**2))}

    def predict(self, state: State, X: npt.ArrayLike) -> Floats:
        """Probability of being positive, (rows,)."""
        model = self.model()
        model.load_state_dict(dict(state))
        with torch.no_grad():
            logits = model(torch.from_numpy(perceptron.scaled(X, self.settings.columns)))
        probability: Floats = torch.sigmoid(logits.double()).numpy()
        return probability
