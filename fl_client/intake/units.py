"""Units of measurement, and what may be converted into what: factors within one kind of quantity, by UCUM code.

Conversions that depend on the substance (mmol/L of cholesterol to mg/dL) are not here: a site's mapping states their factor. A
unit that isn't listed is never guessed. Source: The Unified Code for Units of Measure, 2.1 (ucum.org).
"""

from __future__ import annotations

UCUM = "http://unitsofmeasure.org"

_KINDS: tuple[dict[str, float], ...] = (
    {"m": 1, "dm": 0.1, "cm": 0.01, "mm": 0.001, "[in_i]": 0.0254, "[ft_i]": 0.3048},
    {"kg": 1, "g": 1e-3, "mg": 1e-6, "ug": 1e-9, "[lb_av]": 0.45359237},
    {"L": 1, "dL": 0.1, "mL": 1e-3, "uL": 1e-6},
    {"mm[Hg]": 1, "kPa": 7.500616827, "Pa": 0.007500616827},
    {
        "g/L": 1,
        "g/dL": 10,
        "mg/dL": 0.01,
        "mg/L": 1e-3,
        "ug/mL": 1e-3,
        "ug/L": 1e-6,
        "ng/mL": 1e-6,
        "ng/L": 1e-9,
        "pg/mL": 1e-9,
    },
    {"mol/L": 1, "mmol/L": 1e-3, "umol/L": 1e-6, "nmol/L": 1e-9, "pmol/L": 1e-12},
    {"10*9/L": 1, "10*3/uL": 1, "10*12/L": 1e3, "10*6/uL": 1e3, "/uL": 1e-3},
    {"d": 1, "h": 1 / 24, "min": 1 / 1440, "s": 1 / 86400, "ms": 1 / 86_400_000, "wk": 7},
    {"1": 1, "%": 0.01},
    {"/min": 1, "{beats}/min": 1, "/s": 60},
    {"mL/min/{1.73_m2}": 1, "mL/min/1.73.m2": 1},
    {"kg/m2": 1},
    {"g/m2": 1},
    {"mL/m2": 1},
    {"fL": 1},
    {"pg": 1},
    {"{score}": 1},
    {"U/L": 1, "[iU]/L": 1},
)
_FAHRENHEIT, _CELSIUS = "[degF]", "Cel"
_WRITTEN = {
    "mmHg": "mm[Hg]",
    "mm Hg": "mm[Hg]",
    "°C": _CELSIUS,
    "°F": _FAHRENHEIT,
    "bpm": "/min",
    "l": "L",
    "ml": "mL",
    "dl": "dL",
    "mg/dl": "mg/dL",
    "g/dl": "g/dL",
    "g/l": "g/L",
    "mg/l": "mg/L",
    "mmol/l": "mmol/L",
    "umol/l": "umol/L",
    "µmol/l": "umol/L",
    "µmol/L": "umol/L",
    "ng/ml": "ng/mL",
    "pg/ml": "pg/mL",
    "G/l": "10*9/L",
    "kg/m^2": "kg/m2",
    "kg/m²": "kg/m2",
    "in": "[in_i]",
    "lb": "[lb_av]",
}
"""How units are written where no UCUM code is given; anything else must be the UCUM code itself."""


def unit_of(*, system: str | None, code: str | None, written: str | None) -> str | None:
    """The UCUM code of a quantity's unit: its code where the system says so, else what is written where it has one meaning."""
    if code and system in (UCUM, None):
        return _WRITTEN.get(code, code)
    return _WRITTEN.get(written, written) if written and not code else None


def is_known(unit: str) -> bool:
    """Whether it stands in the tables."""
    return unit in (_FAHRENHEIT, _CELSIUS) or any(unit in kind for kind in _KINDS)


def factor(unit: str, wanted: str) -> float | None:
    """What a value in `unit` is multiplied with to be in `wanted`; None if that isn't known."""
    if unit == wanted:
        return 1.0
    return next((kind[unit] / kind[wanted] for kind in _KINDS if unit in kind and wanted in kind), None)


def converted(value: float, unit: str, wanted: str) -> float | None:
    """The value in the wanted unit, to 12 digits; None if nobody knows how."""
    if (unit, wanted) == (_FAHRENHEIT, _CELSIUS):
        return float(f"{(value - 32) / 1.8:.12g}")
    if (unit, wanted) == (_CELSIUS, _FAHRENHEIT):
        return float(f"{value * 1.8 + 32:.12g}")
    times = factor(unit, wanted)
    return None if times is None else value if times == 1 else float(f"{value * times:.12g}")
