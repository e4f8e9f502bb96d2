"""Which patients a study is about: conditions on what is known of a patient, joined by all, any and none.

A coordinator says whom a study wants as data, and never as a query: `{"field": "endpoint.age", "op": ">=", "value": 50}` inside
`{"all": [...]}`, `{"any": [...]}` or `{"none": [...]}`. Every hospital compiles it to SQL of its own. What is not known of a
patient makes a condition neither true nor false, as NULL does in SQL; only those are selected for whom the whole is true.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, Tag, model_validator

from conf.frozen import Frozen

DEEPEST, MOST_CONDITIONS, MOST_VALUES, LONGEST_TEXT = 6, 64, 64, 64
"""A selection is read by a person who approves it; beyond this nobody could."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9_=-]{0,63}"
_FIELD = re.compile(rf"endpoint\.{_NAME}|(image|mask)\.{_NAME}|scanner\.{_NAME}|quality\.{_NAME}\.{_NAME}")
FIELDS = "endpoint.<name>, image.<series>, mask.<series>, scanner.<name> or quality.<series>.<name>"
"""What there is: clinical values, whether an image or a mask of a series is there, facts of the scanner, quality parameters."""

Op = Literal["=", "!=", "<", "<=", ">", ">=", "in", "not in", "known"]
Text = Annotated[StrictStr, Field(max_length=LONGEST_TEXT)]
Whole = Annotated[StrictInt, Field(ge=-(2**53), le=2**53)]
Value = StrictBool | Whole | StrictFloat | Text
_OPEN = {"all": " and ", "any": " or ", "none": " or "}


class Condition(Frozen):
    """One comparison. `in` and `not in` take a list, `known` true or false; `image` and `mask` are true or false."""

    field: str
    op: Op
    value: Value | Annotated[tuple[Value, ...], Field(min_length=1, max_length=MOST_VALUES)]

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        require_field(self.field)
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        if isinstance(self.value, tuple) != (self.op in ("in", "not in")):
            raise ValueError(f"{self.field} {self.op}: 'in' and 'not in' take a list, every other comparison one value")
        if self.op == "known" or self.field.startswith(("image.", "mask.")):
            if not isinstance(self.value, bool) or self.op not in ("=", "known"):
                raise ValueError(f"{self.field} {self.op}: only '=' and 'known' with true or false are asked here")
            return self
        texts = [isinstance(value, str) for value in values]
        if any(isinstance(value, bool) for value in values) or len(set(texts)) != 1:
            raise ValueError(f"{self.field} {self.op}: numbers or words are compared, not both, and neither true nor false")
        if texts[0] and self.op in ("<", "<=", ">", ">="):
            raise ValueError(f"{self.field} {self.op}: words have no order; numbers are right")
        return self


class All(Frozen):
    """True if every part is."""

    all: Parts


class AnyOf(Frozen):
    """True if one part is."""

    any: Parts


class NoneOf(Frozen):
    """True if every part is false; what isn't known of a patient is not false."""

    none: Parts


def _kind(part: Any) -> str | None:
    keys = set(part) if isinstance(part, dict) else set(type(part).model_fields) if isinstance(part, Frozen) else set()
    return next((key for key in ("all", "any", "none") if key in keys), "field" if "field" in keys else None)


Part = Annotated[
    Annotated[All, Tag("all")]
    | Annotated[AnyOf, Tag("any")]
    | Annotated[NoneOf, Tag("none")]
    | Annotated[Condition, Tag("field")],
    Discriminator(
        _kind,
        custom_error_type="selection",
        custom_error_message="a part of a selection is {all: [...]}, {any: [...]}, {none: [...]} or {field, op, value}",
    ),
]
Parts = Annotated[tuple[Part, ...], Field(min_length=1, max_length=MOST_CONDITIONS)]


class Selection(Frozen):
    """The whole of it, with bounded depth and size. Raises `pydantic.ValidationError` for more."""

    where: Part

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if (deep := _depth(self.where)) > DEEPEST:
            raise ValueError(f"a selection is at most {DEEPEST} levels deep, not {deep}")
        if (many := len(list(conditions(self.where)))) > MOST_CONDITIONS:
            raise ValueError(f"a selection has at most {MOST_CONDITIONS} conditions, not {many}")
        return self

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields that are asked for, sorted."""
        return tuple(sorted({condition.field for condition in conditions(self.where)}))

    def __str__(self) -> str:
        """The selection in words, for the person who approves it."""
        return _words(self.where, outermost=True)


for _model in (All, AnyOf, NoneOf, Selection):
    _model.model_rebuild()


def require_field(field: str) -> None:
    """Raise `ValueError`, saying which fields there are, for a name that is none."""
    if not _FIELD.fullmatch(field):
        raise ValueError(f"no field {field[:LONGEST_TEXT]!r}; there are {FIELDS}")


def parts(part: All | AnyOf | NoneOf) -> tuple[All | AnyOf | NoneOf | Condition, ...]:
    """What a joining part joins."""
    return part.all if isinstance(part, All) else part.any if isinstance(part, AnyOf) else part.none


def conditions(part: All | AnyOf | NoneOf | Condition) -> Iterator[Condition]:
    """Every comparison in it."""
    if isinstance(part, Condition):
        yield part
    else:
        for inner in parts(part):
            yield from conditions(inner)


def _depth(part: All | AnyOf | NoneOf | Condition) -> int:
    return 1 if isinstance(part, Condition) else 1 + max(_depth(inner) for inner in parts(part))


def _words(part: All | AnyOf | NoneOf | Condition, *, outermost: bool = False) -> str:
    if isinstance(part, Condition):
        if part.field.startswith(("image.", "mask.")) and part.op == "=":
            return f"{'has' if part.value else 'lacks'} {part.field}"
        if part.op == "known":
            return f"{part.field} is {'known' if part.value else 'not known'}"
        value = ", ".join(map(str, part.value)) if isinstance(part.value, tuple) else str(part.value)
        return f"{part.field} {part.op} {value}"
    joint = " and " if isinstance(part, All) else " or "
    inside = joint.join(_words(inner) for inner in parts(part))
    if isinstance(part, NoneOf):
        return f"not ({inside})"
    return inside if outermost or len(parts(part)) == 1 else f"({inside})"
