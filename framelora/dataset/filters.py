"""Filters on windows: one comparison each, parsed and never evaluated as code."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framelora.console import UserError

if TYPE_CHECKING:
    from framelora.schema.data import Pair

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "in": lambda value, options: value in options,
}
PATTERN = re.compile(r"\s*(?:`([^`]+)`|([^\W\d]\w*))\s*(<=|>=|==|!=|<|>|\bin\b)\s*(.+?)\s*", re.DOTALL)


@dataclass(frozen=True)
class Filter:
    """A condition that a window must meet to be kept."""

    text: str
    column: str
    operator: str
    value: Any  # number, text, or a list of them

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Read `COLUMN OPERATOR VALUE`: a name (in backquotes if it has spaces), one of < <= > >= == != in, and a value
        as JSON writes it (`in`: a list).

        Raises:
            UserError: it is not of that form.
        """
        found = PATTERN.fullmatch(text)
        try:
            if found is None:
                raise ValueError
            value = json.loads(found[4])
            numbers = [isinstance(one, int | float) for one in (value if found[3] == "in" else [value])]
            texts = [isinstance(one, str) for one in (value if found[3] == "in" else [value])]
            if not (all(numbers) or all(texts)) or (found[3] in ("<", "<=", ">", ">=") and not all(numbers)):
                raise ValueError
        except (ValueError, TypeError, RecursionError):
            raise UserError(
                f"pair.filters: {text!r} is no filter: write COLUMN OPERATOR VALUE, for example 'motion > 0.5', "
                '\'scene == "wood"\' or \'scene in ["wood", "sea"]\''
            ) from None
        return cls(text, found[1] or found[2], found[3], value)

    def keeps(self, value: str | float | None) -> bool:
        """Whether a value meets the condition. A missing one meets none."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return False
        return OPERATORS[self.operator](value, self.value)

    @property
    def is_text(self) -> bool:
        """Whether the condition is about text, and not about numbers."""
        options = self.value if self.operator == "in" else [self.value]
        return bool(options) and isinstance(options[0], str)


def look_up(
    condition: Filter,
    row: Mapping[str, Any],
    columns: Mapping[tuple[str, str], tuple[str, float]],
    measures: tuple[str, ...],
) -> str | float | None:
    """The value that a condition is about: a measure or fact of the row, or a metadata column of its content.

    Args:
        condition: the filter.
        row: a row of the pairs table.
        columns: text and number of each metadata column, by content id and name.
        measures: columns of the row that filters may name.
    """
    if condition.column in measures:
        value: str | float | None = row[condition.column]
        return value
    text, number = columns.get((str(row["content_id"]), condition.column), (None, math.nan))
    return text if condition.is_text else number


def check_columns(params: Pair, measures: Collection[str], metadata: Collection[str]) -> list[Filter]:
    """The filters, read. Raises `UserError` when one of them, or what the split goes by, names no column."""
    filters = [Filter.parse(text) for text in params.filters]
    known_columns(filters, measures, metadata)
    for parameter, name in (("split_column", params.split_column), ("group_column", params.group_column)):
        if name is not None and name not in metadata:
            found = f"it has {', '.join(sorted(metadata))}" if metadata else "there is none"
            raise UserError(f"pair.{parameter}: no metadata has a column {name!r}: {found}")
    return filters


def known_columns(conditions: list[Filter], measures: Collection[str], metadata: Collection[str]) -> None:
    """Raise `UserError` when a filter names a column that does not exist, or one of two."""
    for condition in conditions:
        known = (condition.column in measures) + (condition.column in metadata)
        if known == 2:
            raise UserError(
                f"pair.filters: {condition.text!r}: {condition.column!r} is both a measure of windows (docs/data.md) "
                f"and a column of the metadata: rename the metadata's column, for example to 'my_{condition.column}'"
            )
        if not known:
            raise UserError(
                f"pair.filters: {condition.text!r}: there is no column {condition.column!r}: "
                f"use one of {', '.join(sorted({*measures, *metadata}))}"
            )
