"""The filter tree as callers write it: JSON nodes of one kind each, validated here, then the store's typed tree.

    {"and": [{"column": "data_source", "eq": "NYISO"},
             {"or": [{"column": "dataset", "prefix": "nyiso_"}, {"column": "file_format", "in": ["CSV", "JSON"]}]},
             {"column": "collected_at", "gte": "2025-01-20"},
             {"not": {"column": "title", "is_null": true}}]}

A date where a time is compared stands for its whole day (UTC): `lte` includes it, `gt` begins after it. Text is
compared exactly; the store escapes it. Nesting is bounded before anything recurses. Fails with InvalidParameter
that names the node, or the store's FilterError for a column or a value that does not fit.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    Tag,
    model_validator,
)

from shoal.serve_apps.times import time_bound
from shoal.store.conditions import FILTERS
from shoal.store.filters import (
    DEPTH_MAX,
    NODES_MAX,
    TEXT_LENGTH_MAX,
    VALUES_MAX,
    And,
    Equals,
    Filter,
    FilterError,
    In,
    IsNull,
    Not,
    Or,
    Prefix,
    Range,
    Scalar,
)

Text = Annotated[StrictStr, Field(max_length=TEXT_LENGTH_MAX)]
Value = StrictBool | StrictInt | Text
_RANGE = ("gt", "gte", "lt", "lte")
_INCLUSIVE = ("gte", "lte")
_TESTS = ("eq", "in_", "prefix", "is_null")


class Node(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=False)


class Condition(Node):
    """One column, one test: eq, in, prefix, is_null, or a range of at most two ends."""

    column: str = Field(max_length=60, description="A column of documents or a trait.", examples=["data_source"])
    eq: Value | None = Field(None, description="Equal; a date means that day.")
    in_: tuple[Value, ...] | None = Field(None, alias="in", max_length=VALUES_MAX, description="Any of these.")
    prefix: Text | None = Field(None, description="Text that begins so, exactly.")
    gt: Value | None = None
    gte: Value | None = None
    lt: Value | None = None
    lte: Value | None = None
    is_null: bool | None = Field(None, description="Whether the column has no value.")

    @model_validator(mode="after")
    def _one_test(self) -> Condition:
        tests = [name for name in _TESTS if getattr(self, name) is not None]
        ends = [name for name in _RANGE if getattr(self, name) is not None]
        if len(tests) + bool(ends) != 1:
            raise ValueError("needs one of eq, in, prefix, is_null, or the ends of one range (gt, gte, lt, lte)")
        if {"gt", "gte"} <= set(ends) or {"lt", "lte"} <= set(ends):
            raise ValueError("a range has one low end (gt or gte) and one high end (lt or lte)")
        return self

    def filter(self) -> Filter:
        """Raises FilterError."""
        if self.eq is not None:
            return self._equal(self.eq)
        if self.in_ is not None:
            if FILTERS.get(self.column) == "time":
                return Or(tuple(self._equal(value) for value in self.in_))
            return In(self.column, self.in_)
        if self.prefix is not None:
            return Prefix(self.column, self.prefix)
        if self.is_null is not None:
            return IsNull(self.column) if self.is_null else Not(IsNull(self.column))
        low, low_inclusive = self._end("gt", "gte")
        high, high_inclusive = self._end("lt", "lte")
        return Range(self.column, low, high, low_inclusive, high_inclusive)

    def _end(self, *names: str) -> tuple[Scalar | None, bool]:
        """The end that is given, and whether it belongs to the range."""
        for name in names:
            value: Value | None = getattr(self, name)
            if value is None:
                continue
            if FILTERS.get(self.column) != "time":
                return value, name in _INCLUSIVE
            first, behind = self._moments(value)
            if behind is None:
                return first, name in _INCLUSIVE
            return (behind if name in ("gt", "lte") else first), name in ("gt", "gte")
        return None, True

    def _equal(self, value: Value) -> Filter:
        if FILTERS.get(self.column) != "time":
            return Equals(self.column, value)
        first, behind = self._moments(value)
        if behind is None:
            return Equals(self.column, first)
        return Range(self.column, first, behind, high_inclusive=False)

    def _moments(self, value: Value) -> tuple[datetime, datetime | None]:
        """A time, or the midnights where a date begins and ends."""
        if not isinstance(value, str):
            raise FilterError(f"{self.column[:60]} is compared with a date or a time, as text")
        try:
            behind, is_date = time_bound(value, is_end=True)
            return (time_bound(value, is_end=False)[0], behind) if is_date else (behind, None)
        except ValueError as error:
            raise FilterError(f"{self.column[:60]}: {error}") from None


class AllOf(Node):
    """All parts match; none matches everything."""

    parts: tuple[FilterNode, ...] = Field(alias="and", max_length=NODES_MAX)

    def filter(self) -> Filter:
        return And(tuple(part.filter() for part in self.parts))


class AnyOf(Node):
    """Some part matches; none matches nothing."""

    parts: tuple[FilterNode, ...] = Field(alias="or", max_length=NODES_MAX)

    def filter(self) -> Filter:
        return Or(tuple(part.filter() for part in self.parts))


class Negation(Node):
    """Exactly the documents that the part does not match, also those without a value."""

    part: FilterNode = Field(alias="not")

    def filter(self) -> Filter:
        return Not(self.part.filter())


def _kind(value: Any) -> str | None:
    """Which node `value` is, by its key; None: no node."""
    if isinstance(value, Node):
        return {AllOf: "<and>", AnyOf: "<or>", Negation: "<not>", Condition: "<column>"}[type(value)]
    if not isinstance(value, dict):
        return None
    return next((f"<{key}>" for key in ("and", "or", "not", "column") if key in value), None)


def _shallow(value: Any) -> Any:
    """Refuses what is nested too deeply, without recursion: what comes after this recurses."""
    stack = [(value, 1)]
    while stack:
        node, depth = stack.pop()
        if depth > DEPTH_MAX:
            raise ValueError(f"nested deeper than {DEPTH_MAX}; flatten it")
        if isinstance(node, dict):
            for key in ("and", "or"):
                parts = node.get(key)
                stack.extend((part, depth + 1) for part in (parts if isinstance(parts, list | tuple) else ()))
            if "not" in node:
                stack.append((node["not"], depth + 1))
    return value


FilterNode = Annotated[
    Annotated[AllOf, Tag("<and>")]
    | Annotated[AnyOf, Tag("<or>")]
    | Annotated[Negation, Tag("<not>")]
    | Annotated[Condition, Tag("<column>")],
    Discriminator(
        _kind,
        custom_error_type="no_filter",
        custom_error_message='a filter is an object with "and", "or", "not" or "column"',
    ),
]
"""A node: its kind is told by its key. Tags in angle brackets are no part of what the caller wrote."""

FilterTree = Annotated[FilterNode, BeforeValidator(_shallow)]

for _model in (AllOf, AnyOf, Negation):
    _model.model_rebuild()
