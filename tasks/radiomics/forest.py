"""A forest whose trees are drawn before anybody looks at a patient, so that only its leaves hold what was learned.

Every site draws the same trees from a seed and public bounds, and counts its patients in the leaves. One patient, with all
segments together, moves the counts by a vector of length at most 1; what is learned is one sum, which a site can publish with
noise. Random trees with private leaf counts: Jagannathan et al. 2009; Bojarski et al. 2014 (arXiv 1410.6973); shrinking leaves
towards their ancestors: Agarwal et al. 2022 (arXiv 2202.00858).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from sklearn.ensemble import RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier
from sklearn.tree._tree import Tree

from conf.study import Frozen
from tasks.radiomics.bounded import ceil_sqrt, shortened

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_GRID_BITS = 32  # split points lie on 2^32 steps between a feature's bounds
_WEIGHT_ONE = 1 << 12  # a row's weight in whole steps
_MIXING_ONE = 1 << 10  # the steps of the class mixing
_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Feature(Frozen):
    """One column of the table: its public bounds, and the scale on which split points are spread between them.

    Bounds come from what is known before the data: physics, the definition of the feature, another collection. The smallest
    and largest value of the hospitals' own patients are facts about these two patients and must not stand here.
    """

    name: Annotated[str, Field(min_length=1)]
    lower: Annotated[float, Field(gt=-1e37, lt=1e37)]
    upper: Annotated[float, Field(gt=-1e37, lt=1e37)]
    scale: Literal["linear", "log"] = "linear"  # log: for positive features with a long tail

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if not np.float32(self.lower) < np.float32(self.upper):
            raise ValueError(f"feature '{self.name}': lower bound {self.lower:g} is not below upper bound {self.upper:g}")
        if self.scale == "log" and not self.lower > 0:
            raise ValueError(f"feature '{self.name}': a log scale needs a lower bound above 0, not {self.lower:g}")
        return self

    def at(self, step: int) -> float:
        """The value at `step` of 2^32 steps from lower to upper, to float32.

        Found by halving, with sums, products and square roots alone: these are exactly rounded on every machine, where
        exponentials and logarithms are not.
        """
        low, high, start, width = self.lower, self.upper, 0, 1 << _GRID_BITS
        while step != start and width > 1:
            width //= 2
            middle = math.sqrt(low) * math.sqrt(high) if self.scale == "log" else low + (high - low) / 2
            if step >= start + width:
                low, start = middle, start + width
            else:
                high = middle
        return float(np.float32(self.upper if step >= 1 << _GRID_BITS else low))


class Settings(Frozen):
    """Everything that determines the trees and what a patient adds to them. All of it is public.

    `class_share` divides a patient's squared length 1 between the two things that a leaf holds: which class, and how many
    patients. At (classes - 1) / classes a leaf holds plain counts of each class; above, less noise falls on the class and
    more on the number, which ranks better where noise is the limit. Without noise it makes no difference.

    The defaults were chosen on scikit-learn's breast-cancer table at epsilon 0.5 and 3. All trees count everybody: were each
    patient counted in one tree only, a tree would hold 1 / trees of them under noise only 1 / sqrt(trees) of this.
    """

    features: Annotated[tuple[Feature, ...], Field(min_length=1)]
    classes: tuple[int, ...] | tuple[str, ...]
    trees: Annotated[int, Field(ge=1, le=4096)] = 256
    depth: Annotated[int, Field(ge=1, le=10)] = 4
    seed: Annotated[int, Field(ge=0)] = 0
    central: Annotated[float, Field(gt=0, le=1)] = 0.5  # share of a node's box, around its middle, in which it may split
    class_share: Annotated[float, Field(ge=0.01, le=0.99)] = 0.75
    shrinkage: Annotated[float, Field(ge=0)] = 3.0  # pull to the parent node, in patients per patient of noise

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [feature.name for feature in self.features]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"bounds given twice for {', '.join(twice)}")
        if len(self.classes) < 2 or not _ascending(self.classes):
            raise ValueError(f"classes must be two or more, different and in ascending order, not {list(self.classes)}")
        return self

    @classmethod
    def for_columns(cls, columns: Sequence[str], bounds: Sequence[Feature], **settings: Any) -> Self:
        """Settings for a table with these columns, in this order. Raises `ValueError` naming columns without bounds."""
        known = {feature.name: feature for feature in bounds}
        if missing := [name for name in columns if name not in known]:
            raise ValueError(f"no public bounds for {', '.join(missing)}; there are bounds for {', '.join(known)}")
        return cls(features=tuple(known[name] for name in columns), **settings)


@dataclass(frozen=True, eq=False)
class Structure:
    """The trees, complete and of one depth. Node i's children are 2i+1 (value <= threshold) and 2i+2.

    `feature` and `threshold` (trees, 2^depth - 1), thresholds being float32 values; `missing_left` likewise: the side of a
    missing value, which is that of the middle of the feature's bounds on its scale.
    """

    settings: Settings
    feature: Indices
    threshold: Floats
    missing_left: npt.NDArray[np.bool_]

    @classmethod
    def draw(cls, settings: Settings) -> Structure:
        """Draw the trees from the settings alone; the same everywhere, to the bit.

        Features are dealt like cards, every one before any comes twice. A node splits uniformly, on the feature's scale,
        within the central share of what its ancestors left of the bounds.
        """
        raw = _draws(settings.seed)
        nodes, full = 2**settings.depth - 1, 1 << _GRID_BITS
        feature = np.zeros((settings.trees, nodes), np.intp)
        threshold = np.zeros((settings.trees, nodes))
        deck: list[int] = []
        for tree in range(settings.trees):
            boxes: list[dict[int, tuple[int, int]]] = [{} for _ in range(nodes)]  # steps left to a node, where not all
            for node in range(nodes):
                if not deck:
                    deck = list(range(len(settings.features)))
                chosen = deck.pop(next(raw) % len(deck))
                low, high = boxes[node].get(chosen, (0, full))
                margin = int((high - low) * (1 - settings.central) / 2)
                step = low + margin + next(raw) % (high - low - 2 * margin + 1)
                feature[tree, node], threshold[tree, node] = chosen, settings.features[chosen].at(step)
                if 2 * node + 2 < nodes:
                    boxes[2 * node + 1] = boxes[node] | {chosen: (low, step)}
                    boxes[2 * node + 2] = boxes[node] | {chosen: (step, high)}
        middle = np.array([item.at(full // 2) for item in settings.features])
        return cls(settings, feature, threshold, middle[feature] <= threshold)

    @property
    def digest(self) -> str:
        """SHA-256 of settings and drawn trees: two sites that differ here must not be summed."""
        parts = (self.feature.astype("<i8"), self.threshold.astype("<f8"), self.missing_left.astype("u1"))
        settled = self.settings.model_dump_json().encode()  # what a patient adds depends on more than the trees
        return hashlib.sha256(settled + b"".join(part.tobytes() for part in parts)).hexdigest()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(trees, leaves, classes), in which order a contribution is flattened."""
        return self.settings.trees, 2**self.settings.depth, len(self.settings.classes)

    def leaves(self, X: npt.ArrayLike) -> Indices:
        """The leaf of every row in every tree, (trees, rows), for a table (rows, features) in the settings' order.

        A value beyond a bound, or infinite, falls where the bound falls: no tree splits there. A missing one (NaN) falls where
        the middle of the bounds falls. Values are compared as float32, as scikit-learn does. Raises `ValueError` for another
        number of columns.
        """
        table = np.asarray(X, dtype=np.float64)
        columns = len(self.settings.features)
        if table.ndim != 2 or table.shape[1] != columns:
            raise ValueError(
                f"a table of {columns} columns is needed (the features with bounds), not one of shape {table.shape}"
            )
        values = np.clip(table, -_FLOAT32_MAX, _FLOAT32_MAX).astype(np.float32).astype(np.float64)
        rows, trees = np.arange(len(values))[None], np.arange(self.settings.trees)[:, None]
        node = np.zeros((self.settings.trees, len(values)), np.intp)
        for _ in range(self.settings.depth):
            value = values[rows, self.feature[trees, node]]
            left = np.where(np.isnan(value), self.missing_left[trees, node], value <= self.threshold[trees, node])
            node = 2 * node + np.where(left, 1, 2)
        leaf: Indices = node - (2**self.settings.depth - 1)
        return leaf

    def contribution(self, X: npt.ArrayLike, y: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Floats:
        """What ONE patient with rows `X`, labels `y` (rows,) adds to the total: a vector of L2 norm at most 1.

        `weights` (rows,) from 0 to 1 tell how certain each label is; without them all are 1. A patient of one certain row
        has norm 1, and so has, by clipping, practically every patient of more. No rows: zeros.

        The bound, for any rows: let v be the patient's weighted leaf counts, mixed over the classes, in whole numbers, and
        u what one certain row would have, v's norm for it being at most u. The result is v / r in steps of 2^-30, cut off
        towards zero, with a whole number r that is at least u and at least the square root of the sum of v's squares,
        computed in integers of any size. Each entry's square is thus at most v_i^2 / r^2, and these add up to at most 1.
        Bounded values aren't needed for it; the cut loses less than 1e-9 per entry. Results are whole multiples of
        2^-30, so a sum of fewer than 2^23 patients is exact and the same in any order, over any sites.

        Raises `ValueError` for labels that aren't among the classes, and for weights outside 0..1.
        """
        rows = self.leaves(X)
        return self._bounded(rows, self._classes_of(y, rows.shape[1]), _steps_of(weights, rows.shape[1]))

    def total(
        self,
        X: npt.ArrayLike,
        y: npt.ArrayLike,
        patients: npt.ArrayLike,
        weights: npt.ArrayLike | None = None,
    ) -> Floats:
        """The exact sum of the contributions of all patients of a table; `patients` (rows,) says whose each row is."""
        rows = self.leaves(X)
        count = rows.shape[1]
        labels, steps, names = self._classes_of(y, count), _steps_of(weights, count), np.asarray(patients)
        if names.shape != (count,):
            raise ValueError(f"one patient per row is needed: {count} rows, but patients of shape {names.shape}")
        total = np.zeros(math.prod(self.shape))
        _, owner = np.unique(names, return_inverse=True)
        order = np.argsort(owner, kind="stable")
        for mine in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1) if count else ():
            total += self._bounded(rows[:, mine], labels[mine], steps[mine])
        return total

    def probabilities(self, total: npt.ArrayLike, *, noise_std: float) -> Floats:
        """Class probabilities of every leaf, (trees, leaves, classes), from the sum over sites.

        `noise_std` is the known standard deviation of the noise on each entry of `total` (for n sites that each add
        multiplier z, z * sqrt(n)); 0 if there is none. From the root, where it is the mean over trees, each node's class
        fraction is pulled to its parent's as if lambda = 1 + shrinkage * noise_std * sqrt(trees) patients more had the
        parent's; lambda depends on no patient.

        Raises `ValueError` for a total of another length, and, where there is no noise, for a class that never occurs.
        """
        return self._shrunk(total, noise_std)[0]

    def predict_proba(self, probabilities: Floats, X: npt.ArrayLike) -> Floats:
        """Mean over trees of the probabilities of each row's leaf, (rows, classes)."""
        trees = np.arange(self.settings.trees)[:, None]
        mean: Floats = probabilities[trees, self.leaves(X)].sum(axis=0) / self.settings.trees
        return mean

    def to_sklearn(self, total: npt.ArrayLike, *, noise_std: float) -> RandomForestClassifier:
        """The forest as scikit-learn's own, with the same predictions: it pickles, predicts and explains like one.

        Node sizes and impurities, from which `feature_importances_` and tree explanations are made, are the noisy ones.
        Missing values go the same side. Where `predict_proba` here takes infinite values as the bound, scikit-learn
        refuses them.
        """
        settings = self.settings
        probabilities, patients = self._shrunk(total, noise_std)
        columns, classes = len(settings.features), np.array(settings.classes)
        forest = RandomForestClassifier(n_estimators=settings.trees, max_depth=settings.depth, random_state=0)
        forest.estimators_ = []
        for tree in range(settings.trees):
            one = DecisionTreeClassifier(max_depth=settings.depth, random_state=0)
            one.tree_ = self._sklearn_tree(tree, probabilities[tree], patients[tree])
            one.max_features_ = columns
            forest.estimators_.append(one)
        for model in (forest, *forest.estimators_):
            model.n_features_in_, model.n_outputs_ = columns, 1
            model.classes_, model.n_classes_ = classes, len(classes)
        forest.feature_names_in_ = np.array([item.name for item in settings.features], dtype=object)
        return forest

    def _classes_of(self, y: npt.ArrayLike, rows: int) -> Indices:
        labels = np.asarray(y)
        if labels.shape != (rows,):
            raise ValueError(f"one label per row is needed: {rows} rows, but labels of shape {labels.shape}")
        known = {label: index for index, label in enumerate(self.settings.classes)}
        if strange := sorted({str(label) for label in labels.tolist() if label not in known}):
            raise ValueError(f"no class {', '.join(strange[:5])}; the classes are {', '.join(map(str, known))}")
        return np.array([known[label] for label in labels.tolist()], np.intp)

    def _bounded(self, rows: Indices, labels: Indices, steps: npt.NDArray[np.int64]) -> Floats:
        mixing = _mixing(self.settings)
        counts = np.zeros(self.shape, np.int64)
        np.add.at(counts, (np.arange(self.settings.trees)[:, None], rows, labels[None]), steps[None])
        mixed = (counts @ mixing).ravel()
        where = np.flatnonzero(mixed)
        entries = [int(entry) for entry in mixed[where]]
        result = np.zeros(mixed.size)
        result[where] = shortened(entries, unit=self._unit)
        return result

    @property
    def _unit(self) -> int:
        row = sum(int(entry) ** 2 for entry in _mixing(self.settings)[0])
        return ceil_sqrt(self.settings.trees * row * _WEIGHT_ONE**2)

    def _shrunk(self, total: npt.ArrayLike, noise_std: float) -> tuple[Floats, Floats]:
        settings = self.settings
        flat = np.asarray(total, dtype=np.float64)
        if flat.shape != (math.prod(self.shape),) or not np.isfinite(flat).all():
            raise ValueError(f"the total must be {math.prod(self.shape)} finite numbers, not an array of shape {flat.shape}")
        if not 0 <= noise_std < math.inf:
            raise ValueError(f"noise_std must be 0 or a positive number, not {noise_std}")
        patients = flat.reshape(self.shape) * (self._unit / _WEIGHT_ONE) @ np.linalg.inv(_mixing(settings))
        levels = [patients]
        while levels[0].shape[1] > 1:
            levels.insert(0, levels[0].reshape(settings.trees, -1, 2, len(settings.classes)).sum(axis=2))
        root = levels[0].mean(axis=0)[0]  # (classes,) the same patients in every tree, other noise
        if noise_std == 0 and (never := [str(c) for c, n in zip(settings.classes, root, strict=True) if n < 1e-3]):
            raise ValueError(f"no patient of any site is of class {', '.join(never)}; a forest can't learn a class without one")
        root = np.maximum(root, 1)  # one patient at least, where noise hides a class
        pull = 1 + settings.shrinkage * noise_std * math.sqrt(settings.trees)
        fraction = np.broadcast_to(root / root.sum(), levels[0].shape)
        for level in levels[1:]:
            parent = np.repeat(fraction, 2, axis=1)
            raw = level.sum(axis=2, keepdims=True)
            size = np.maximum(raw, 0)
            fraction = np.maximum((level + (size - raw) / len(settings.classes) + pull * parent) / (size + pull), 0)
            fraction = fraction / fraction.sum(axis=2, keepdims=True)
        return fraction, np.maximum(levels[-1].sum(axis=2), 1e-3)  # no empty node: explanations divide by sizes

    def _sklearn_tree(self, tree: int, probabilities: Floats, patients: Floats) -> Any:
        inner, leaves, classes = self.feature.shape[1], *self.shape[1:]
        size, value = np.zeros(inner + leaves), np.zeros((inner + leaves, classes))
        size[inner:], value[inner:] = patients, probabilities
        for node in reversed(range(inner)):
            both = slice(2 * node + 1, 2 * node + 3)
            size[node] = size[both].sum()
            value[node] = size[both] @ value[both] / size[node]
        order = list(_depth_first(0, inner))  # as scikit-learn numbers the nodes of a tree that it grows itself
        place = np.argsort(order)
        result = Tree(len(self.settings.features), np.array([classes], dtype=np.intp), 1)
        nodes = np.zeros(len(order), dtype=result.__getstate__()["nodes"].dtype)
        split = np.array(order) < inner
        chosen = np.array(order)[split]
        nodes["left_child"], nodes["right_child"], nodes["feature"], nodes["threshold"] = -1, -1, -2, -2.0
        nodes["left_child"][split], nodes["right_child"][split] = place[2 * chosen + 1], place[2 * chosen + 2]
        nodes["feature"][split], nodes["threshold"][split] = self.feature[tree, chosen], self.threshold[tree, chosen]
        nodes["missing_go_to_left"][split] = self.missing_left[tree, chosen]
        nodes["impurity"] = (1 - (value**2).sum(axis=1))[order]  # Gini
        nodes["weighted_n_node_samples"] = size[order]
        nodes["n_node_samples"] = np.maximum(np.rint(size[order]), 1)
        values = np.ascontiguousarray(value[order][:, None, :])
        result.__setstate__({"max_depth": self.settings.depth, "node_count": len(order), "nodes": nodes, "values": values})
        return result


def _ascending(classes: Sequence[Any]) -> bool:
    return all(first < second for first, second in pairwise(classes))


def _mixing(settings: Settings) -> npt.NDArray[np.int64]:
    """(classes, classes) whole numbers: what one row of a class (first axis) puts into the entries of its leaf.

    What the classes have in common is scaled by one number and what differs between them by another, such that a row has
    length 1 and `class_share` of its square is in the difference.
    """
    classes = len(settings.classes)
    common = math.sqrt(classes * (1 - settings.class_share))
    contrast = math.sqrt(classes * settings.class_share / (classes - 1))
    other = round(_MIXING_ONE * (common - contrast) / classes)
    own = other + round(_MIXING_ONE * contrast)
    return cast(
        "npt.NDArray[np.int64]", np.full((classes, classes), other, np.int64) + np.eye(classes, dtype=np.int64) * (own - other)
    )


def _steps_of(weights: npt.ArrayLike | None, rows: int) -> npt.NDArray[np.int64]:
    if weights is None:
        return np.full(rows, _WEIGHT_ONE, np.int64)
    given = np.asarray(weights, dtype=np.float64)
    if given.shape != (rows,) or not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"weights must be one number from 0 to 1 per row; there are {rows} rows")
    return np.floor(given * _WEIGHT_ONE).astype(np.int64)


def _draws(seed: int) -> Iterator[int]:
    bits = np.random.PCG64(seed)  # its stream is promised to stay, other than what Generator makes of it
    while True:
        yield from bits.random_raw(1024).tolist()


def _depth_first(node: int, inner: int) -> Iterator[int]:
    yield node
    if node < inner:
        yield from _depth_first(2 * node + 1, inner)
        yield from _depth_first(2 * node + 2, inner)
