"""The matrix of a study as a picture: every model on every hospital's patients, as a heat map with its numbers.

A row is a model, a column a hospital whose validation patients judged it; what a hospital's own model is worth at home is
outlined, so that reading along a row shows how a model travels, and down a column what a hospital gains from the others.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Literal

import numpy as np

from fl_server.record import Matrix

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GLOBAL = "global"
DPI = 160
"""Dots per inch of a picture, unless asked otherwise."""
LONGEST_NAME = 16
"""Letters of a hospital's name that are shown; longer ones are cut in the middle."""


def matrix_plot(matrix: Matrix, *, title: str = "") -> Figure:
    """The figure, in inches as large as its cells need. Raises `ValueError` for a matrix without a model or a hospital."""
    from matplotlib.colors import Normalize  # here: matplotlib takes a second to import
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    models, hospitals = list(matrix.scores), list(matrix.sites)
    if not models or not hospitals:
        raise ValueError(f"a matrix of {len(models)} models and {len(hospitals)} hospitals is no picture")
    values = np.array([[matrix.scores[model].get(site, np.nan) for site in hospitals] for model in models])
    noise = np.array([[matrix.noise_sd.get(model, {}).get(site, 0.0) for site in hospitals] for model in models])
    crowded = max(len(models), len(hospitals)) > 30
    cell = 0.32 if crowded else 0.85
    figure = Figure(figsize=(2.9 + cell * len(hospitals), 1.7 + 0.75 * cell * len(models)), layout="constrained")
    axes = figure.add_subplot()
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
    middle, reach = (low + high) / 2, max(high - low, 0.1) / 2  # a tenth at least: small differences are not made to look large
    scale = Normalize(middle - reach, middle + reach)
    axes.set_facecolor("0.92")
    image = axes.imshow(np.ma.masked_invalid(values), cmap="cividis", norm=scale, aspect="auto")
    for row, model in enumerate(models):
        for column, site in enumerate(hospitals):
            value = values[row, column]
            if model == site:
                axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="#d1495b", linewidth=2))
            if crowded:
                continue
            dark = np.isfinite(value) and scale(value) < 0.55
            text = "–" if not np.isfinite(value) else f"{value:.2f}"
            if np.isfinite(value) and noise[row, column] > 0:
                text += f"\n± {noise[row, column]:.2f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if dark else "black")
    small = 7 if crowded else 9
    axes.set_xticks(range(len(hospitals)), [_short(name) for name in hospitals], rotation=45, ha="right", fontsize=small)
    axes.set_yticks(range(len(models)), ["all together" if m == GLOBAL else _short(m) for m in models], fontsize=small)
    axes.set_xlabel("on the validation patients of")
    axes.set_ylabel("model of")
    if GLOBAL in models:
        axes.axhline(models.index(GLOBAL) + 0.5, color="white", linewidth=3)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=matrix.metric, shrink=0.8)
    notes = [
        *(["± what the noise alone does"] if noise.any() else []),
        *(["– can't be told"] if np.isnan(values).any() else []),
    ]
    notes += ["outlined: its own patients"] if set(models) & set(hospitals) else []
    axes.set_title("\n".join([*([title] if title else []), "; ".join(notes)]), fontsize=9, loc="left")
    return figure


def matrix_picture(matrix: Matrix, *, kind: Literal["png", "svg", "pdf"] = "png", title: str = "", dpi: int = DPI) -> bytes:
    """The picture's bytes. SVG and PDF hold no date and no random names, so that equal matrices give equal files."""
    from matplotlib import rc_context  # here: matplotlib takes a second to import

    out = BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[kind]
    with rc_context({"svg.hashsalt": "konsil"}):
        matrix_plot(matrix, title=title).savefig(out, format=kind, dpi=dpi, metadata=metadata)
    return out.getvalue()


def _short(name: str) -> str:
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
