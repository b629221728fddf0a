"""Typed filters: a tree over named columns that compiles to Lance SQL, and to a plain-Python check.

Guarantee: a compiled filter holds only column names of the given whitelist and values escaped by their
column's type, so hostile text can't leave its quotes (doubling `'` is the only escape that Lance knows; a
backslash is literal). Logic is two-valued: a row without the value matches no comparison, and `Not` matches
exactly the rows that its part does not match; SQL alone would drop the nulls from both. `matches` says the
same in Python and is what the property tests compare against.

It does not know which columns exist (`columns` is an argument), runs no query, and fails with `FilterError`:
an unknown column, a value of another type, NUL or lone surrogates, too long, too many, too deep.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa

from shoal.errors import PermanentError

TEXT_LENGTH_MAX = 4_000  # characters of one value: above any id, URL or S3 key (1,024 bytes)
VALUES_MAX = 1_000  # values of all In of one tree; the SQL of more is slower to plan than to run
NODES_MAX = 200  # nodes of one tree
DEPTH_MAX = 16  # nesting; Lance's parser recurses, and hundreds of levels would end the process
_INTEGER_MAX = 2**63 - 1

ColumnType = Literal["text", "integer", "integer32", "boolean", "time"]
INTEGERS: Mapping[ColumnType, tuple[int, int]] = {
    "integer": (-(2**63), _INTEGER_MAX),
    "integer32": (-(2**31), 2**31 - 1),
}
"""What columns of numbers can hold. Lance fails where a number of the SQL does not fit its column."""
Columns = Mapping[str, ColumnType]
Scalar = str | int | bool | datetime


class QueryError(PermanentError):
    """What was asked can't be answered as it stands: the caller must ask differently (HTTP 400)."""


class FilterError(QueryError):
    """A filter names an unknown column or holds a value that can't be compared with it."""


@dataclass(frozen=True, slots=True)
class Equals:
    column: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    """The value is one of `values`; none of them matches nothing."""

    column: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """`low` and `high`, at least one of them, of a text (by code point), integer or time column."""

    column: str
    low: Scalar | None = None
    high: Scalar | None = None
    low_inclusive: bool = True
    high_inclusive: bool = True


@dataclass(frozen=True, slots=True)
class Prefix:
    """The text begins with `prefix`, exactly and case-sensitively; `%` and `_` mean themselves."""

    column: str
    prefix: str


@dataclass(frozen=True, slots=True)
class IsNull:
    column: str


@dataclass(frozen=True, slots=True)
class And:
    """All parts match; no parts match everything."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some part matches; no parts match nothing."""

    parts: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not:
    part: Filter


Filter = Equals | In | Range | Prefix | IsNull | And | Or | Not


def column_types(schema: pa.Schema) -> dict[str, ColumnType]:
    """The columns of a table that can be filtered, with their types; vectors and lists can't."""
    types: dict[str, ColumnType] = {}
    for field in schema:
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            types[field.name] = "text"
        elif pa.types.is_integer(field.type):
            types[field.name] = "integer" if field.type.bit_width > 32 else "integer32"
        elif pa.types.is_boolean(field.type):
            types[field.name] = "boolean"
        elif pa.types.is_timestamp(field.type):
            types[field.name] = "time"
    return types


def to_sql(tree: Filter, columns: Columns) -> str:
    """The Lance SQL condition of `tree`. Raises FilterError."""
    check(tree, columns)
    return _sql(tree, columns)


def check(tree: Filter, columns: Columns) -> None:
    """Raises FilterError where `tree` is too large or does not fit `columns`."""
    listed = 0
    for nodes, (node, depth) in enumerate(_walk(tree), start=1):
        if nodes > NODES_MAX:
            raise FilterError(f"the filter has more than {NODES_MAX} conditions; ask for fewer")
        if depth > DEPTH_MAX:
            raise FilterError(f"the filter is nested deeper than {DEPTH_MAX}; flatten it")
        match node:
            case Equals(column, value):
                _literal(column, value, columns)
            case In(column, values):
                _type(column, columns)
                listed += len(values)
                if listed > VALUES_MAX:
                    raise FilterError(f"{column}: with it the filter lists more than {VALUES_MAX} values; ask in parts")
                for value in values:
                    _literal(column, value, columns)
            case Range(column, low, high):
                if _type(column, columns) == "boolean":
                    raise FilterError(f"{column}: true and false have no range")
                if low is None and high is None:
                    raise FilterError(f"{column}: a range needs a low or a high end")
                for end in (low, high):
                    if end is not None:
                        _literal(column, end, columns)
            case Prefix(column, prefix):
                if _type(column, columns) != "text":
                    raise FilterError(f"{column}: only text has a prefix")
                _literal(column, prefix, columns)
            case IsNull(column):
                _type(column, columns)
            case And() | Or() | Not():
                pass
            case _:
                raise FilterError(f"not a filter: {type(node).__name__}")


def matches(tree: Filter, row: Mapping[str, Any]) -> bool:
    """Whether `row` matches `tree`: the meaning that the compiled SQL must have."""
    match tree:
        case Equals(column, value):
            return row[column] is not None and bool(row[column] == value)
        case In(column, values):
            return row[column] is not None and row[column] in values
        case Range(column, low, high, low_inclusive, high_inclusive):
            value = row[column]
            if value is None:
                return False
            above = low is None or value > low or (low_inclusive and value == low)
            below = high is None or value < high or (high_inclusive and value == high)
            return above and below
        case Prefix(column, prefix):
            return row[column] is not None and row[column].startswith(prefix)
        case IsNull(column):
            return row[column] is None
        case And(parts):
            return all(matches(part, row) for part in parts)
        case Or(parts):
            return any(matches(part, row) for part in parts)
        case Not(part):
            return not matches(part, row)


def columns_of(tree: Filter) -> frozenset[str]:
    """The columns that `tree` names."""
    return frozenset(node.column for node, _ in _walk(tree) if not isinstance(node, And | Or | Not))


def conjuncts(tree: Filter | None) -> tuple[Filter, ...]:
    """The parts that must all match: `tree` itself, or the parts of its outer Ands."""
    if tree is None:
        return ()
    if isinstance(tree, And):
        return tuple(leaf for part in tree.parts for leaf in conjuncts(part))
    return (tree,)


def _walk(tree: Filter) -> Iterator[tuple[Filter, int]]:
    stack = [(tree, 1)]
    while stack:
        node, depth = stack.pop()
        yield node, depth
        if isinstance(node, And | Or):
            stack.extend((part, depth + 1) for part in node.parts)
        elif isinstance(node, Not):
            stack.append((node.part, depth + 1))


def _type(column: str, columns: Columns) -> ColumnType:
    kind = columns.get(column) if isinstance(column, str) else None
    if kind is None:
        raise FilterError(f"there is no column {str(column)[:60]!r} to filter by; known: {', '.join(sorted(columns))}")
    return kind


def _literal(column: str, value: Scalar, columns: Columns) -> str:
    kind = _type(column, columns)
    if kind == "text" and isinstance(value, str):
        if len(value) > TEXT_LENGTH_MAX:
            raise FilterError(f"{column}: the value is longer than {TEXT_LENGTH_MAX} characters")
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise FilterError(f"{column}: the value holds a character that no text can hold")
        return "'" + value.replace("'", "''") + "'"
    if kind in INTEGERS and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > _INTEGER_MAX:
            raise FilterError(f"{column}: the number does not fit 64 bits")
        return str(int(value))
    if kind == "boolean" and isinstance(value, bool):
        return "true" if value else "false"
    if kind == "time" and isinstance(value, datetime):
        if value.utcoffset() is None:
            raise FilterError(f"{column}: the time names no zone")
        try:
            return f"timestamp '{value.astimezone(UTC).isoformat(timespec='microseconds')}'"
        except OverflowError:
            raise FilterError(f"{column}: the time is out of range") from None
    raise FilterError(f"{column} is compared with {kind}, not with {type(value).__name__}")


def _beyond(column: str, value: Scalar, columns: Columns) -> int:
    """-1 where `value` is below all that the column can hold, 1 where above, else 0."""
    if isinstance(value, int) and (bounds := INTEGERS.get(columns[column])):
        return (value > bounds[1]) - (value < bounds[0])
    return 0


def _sql(tree: Filter, columns: Columns) -> str:
    match tree:
        case Equals(column, value):
            return "false" if _beyond(column, value, columns) else f"{column} = {_literal(column, value, columns)}"
        case In(column, values):
            fitting = [value for value in values if not _beyond(column, value, columns)]
            listed = ", ".join(_literal(column, value, columns) for value in fitting)
            return f"{column} in ({listed})" if fitting else "false"
        case Range(column, low, high, low_inclusive, high_inclusive):
            below = 0 if low is None else _beyond(column, low, columns)
            above = 0 if high is None else _beyond(column, high, columns)
            if below > 0 or above < 0:
                return "false"
            # An end beyond what the column can hold bounds nothing; yet no range holds a null.
            low, high = (None if below else low), (None if above else high)
            if low is None and high is None:
                return f"{column} is not null"
            ends = []
            if low is not None:
                ends.append(f"{column} {'>=' if low_inclusive else '>'} {_literal(column, low, columns)}")
            if high is not None:
                ends.append(f"{column} {'<=' if high_inclusive else '<'} {_literal(column, high, columns)}")
            return "(" + " and ".join(ends) + ")"
        case Prefix(column, prefix):
            return f"starts_with({column}, {_literal(column, prefix, columns)})"
        case IsNull(column):
            return f"{column} is null"
        case And(parts):
            return "(" + " and ".join(_sql(part, columns) for part in parts) + ")" if parts else "true"
        case Or(parts):
            return "(" + " or ".join(_sql(part, columns) for part in parts) + ")" if parts else "false"
        case Not(part):
            return f"(({_sql(part, columns)}) is not true)"
