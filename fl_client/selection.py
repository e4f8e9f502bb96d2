"""A study's selection as SQL over the hospital's catalog, and each patient's answer to it in words.

The coordinator's selection is data (`conf/selection.py`); every name and value in it becomes a bound parameter, and columns and
operators are chosen here. SQL's NULL is what "not known" means: it is neither true nor false, and `none` of it is not true.
Each patient's answer depends on that patient alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, Table, and_, exists, not_, or_, select

from conf.selection import All, AnyOf, Condition, NoneOf, Selection, parts
from fl_client.catalog import Catalog, endpoints, patients, quality, scanner, volumes

Compare = Callable[[ColumnElement[Any], Any], ColumnElement[bool]]
_COMPARE: dict[str, Compare] = {
    "=": lambda column, value: column == value,
    "!=": lambda column, value: column != value,
    "<": lambda column, value: column < value,
    "<=": lambda column, value: column <= value,
    ">": lambda column, value: column > value,
    ">=": lambda column, value: column >= value,
    "in": lambda column, value: column.in_(list(value)),
    "not in": lambda column, value: column.not_in(list(value)),
}
_TABLES: dict[str, Table] = {"endpoint": endpoints, "scanner": scanner}


def unselected(catalog: Catalog, selection: Selection, asked: Sequence[str]) -> dict[str, str]:
    """Those of the patients who are not selected, each with the reason; the catalog must be fresh."""
    answer = compiled(selection.where).label("answer")
    known = [_known(field).label(f"known_{number}") for number, field in enumerate(selection.fields)]
    with catalog.reading() as open_:
        lines = {line.patient: line for line in open_.execute(select(patients.c.patient, answer, *known))}
    reasons = {}
    for patient in asked:
        line = lines.get(patient)
        if line is None:
            reasons[patient] = "its case can't be read, so nobody can say whether the study selects it"
        elif line.answer is None:
            missing = [field for number, field in enumerate(selection.fields) if not getattr(line, f"known_{number}")]
            what = ", ".join(missing) or "a value of another kind (a word for a number, or the reverse)"
            reasons[patient] = f"not selected: the study asks for {what}, which is not known of this patient"
        elif not line.answer:
            reasons[patient] = "not selected: it is not one of those whom the study is about"
    return reasons


def compiled(part: All | AnyOf | NoneOf | Condition) -> ColumnElement[bool]:
    """The part as an expression over a line of `patients`: true, false, or NULL where it isn't known."""
    if isinstance(part, Condition):
        return _condition(part)
    inner = [compiled(one) for one in parts(part)]
    if isinstance(part, All):
        return and_(*inner)
    return or_(*inner) if isinstance(part, AnyOf) else not_(or_(*inner))


def _condition(condition: Condition) -> ColumnElement[bool]:
    kind = condition.field.partition(".")[0]
    if condition.op == "known":
        return _known(condition.field) if condition.value else not_(_known(condition.field))
    if kind in ("image", "mask"):
        there = _there(condition.field)
        return there if condition.value else not_(there)
    first = condition.value[0] if isinstance(condition.value, tuple) else condition.value
    column = "text" if isinstance(first, str) else "number"
    return _COMPARE[condition.op](_fact(condition.field, column).scalar_subquery(), condition.value)


def _known(field: str) -> ColumnElement[bool]:
    """Whether anything is known; of images and masks it always is."""
    if field.startswith(("image.", "mask.")):
        return or_(_there(field), not_(_there(field)))
    return exists(_fact(field, "name"))


def _there(field: str) -> ColumnElement[bool]:
    kind, _, series = field.partition(".")
    found = exists().where(volumes.c.patient == patients.c.patient, volumes.c.series == series)
    return found.where(volumes.c.has_mask) if kind == "mask" else found


def _fact(field: str, column: str) -> Select[Any]:
    """The patient's value of a field, or no line."""
    kind, _, name = field.partition(".")
    if kind == "quality":
        series, _, parameter = name.partition(".")
        return select(quality.c[column]).where(
            quality.c.patient == patients.c.patient, quality.c.series == series, quality.c.name == parameter
        )
    table = _TABLES[kind]
    return select(table.c[column]).where(table.c.patient == patients.c.patient, table.c.name == name)
