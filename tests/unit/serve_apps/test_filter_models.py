"""The JSON form of filters: what is written is what is meant, and what can't be meant is refused by its place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from shoal.serve_apps.filter_models import FilterTree
from shoal.serve_apps.models import invalid_parameter
from shoal.store.conditions import FILTERS
from shoal.store.filters import (
    DEPTH_MAX,
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
    check,
    matches,
)

ADAPTER: TypeAdapter[Any] = TypeAdapter(FilterTree)
DAY = datetime(2025, 1, 20, tzinfo=UTC)
JUST = timedelta(microseconds=1)
TITLE = {"column": "title"}


def read(value: Any) -> Filter:
    tree: Filter = ADAPTER.validate_python(value).filter()
    check(tree, FILTERS)
    return tree


def test_every_kind_of_node_becomes_its_typed_filter() -> None:
    tree = {
        "and": [
            {"column": "data_source", "eq": "NYISO"},
            {"or": [{"column": "dataset", "prefix": "nyiso_"}, {"column": "file_format", "in": ["CSV", "JSON"]}]},
            {"column": "year", "gt": 2024, "lte": 2026},
            {"not": {"column": "title", "is_null": True}},
            {"column": "title", "is_null": False},
            {"column": "collection_success", "eq": True},
        ]
    }
    assert read(tree) == And(
        (
            Equals("data_source", "NYISO"),
            Or((Prefix("dataset", "nyiso_"), In("file_format", ("CSV", "JSON")))),
            Range("year", 2024, 2026, low_inclusive=False),
            Not(IsNull("title")),
            Not(IsNull("title")),
            Equals("collection_success", True),
        )
    )


@pytest.mark.parametrize(
    ("test", "matching", "others"),
    [
        ({"eq": "2025-01-20"}, [DAY, DAY + timedelta(days=1) - JUST], [DAY - JUST, DAY + timedelta(days=1)]),
        ({"in": ["2025-01-20", "2025-01-22"]}, [DAY, DAY + timedelta(days=2)], [DAY + timedelta(days=1)]),
        ({"lte": "2025-01-20"}, [DAY, DAY + timedelta(days=1) - JUST], [DAY + timedelta(days=1)]),
        ({"lt": "2025-01-20"}, [DAY - JUST], [DAY]),
        ({"gte": "2025-01-20"}, [DAY], [DAY - JUST]),
        ({"gt": "2025-01-20"}, [DAY + timedelta(days=1)], [DAY, DAY + timedelta(days=1) - JUST]),
        ({"gt": "2025-01-20T00:00:00Z"}, [DAY + JUST], [DAY]),
        ({"lte": "2025-01-20T01:00:00+01:00"}, [DAY], [DAY + JUST]),
        ({"gte": "2025-01-20T00:00:00"}, [DAY], [DAY - JUST]),
        ({"gte": "2025-01-20", "lte": "2025-01-20"}, [DAY], [DAY - JUST, DAY + timedelta(days=1)]),
        ({"eq": "2025-01-20T00:00:00Z"}, [DAY], [DAY + JUST]),
    ],
)
def test_a_date_stands_for_its_whole_day_and_a_time_for_itself(
    test: dict[str, Any], matching: list[datetime], others: list[datetime]
) -> None:
    tree = read({"column": "collected_at", **test})
    assert all(matches(tree, {"collected_at": at}) for at in matching)
    assert not any(matches(tree, {"collected_at": at}) for at in [*others, None])


def deep(levels: int) -> Any:
    tree: Any = {**TITLE, "eq": "x"}
    for _ in range(levels):
        tree = {"not": tree}
    return tree


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("title = 'x'", "body"),
        (["and"], "body"),
        ({}, "body"),
        ({"nor": []}, "body"),
        ({"and": {}}, "and"),
        ({"and": [{"or": [3]}]}, "and.0.or.0"),
        ({"and": [], "or": []}, "or"),
        ({**TITLE}, "body"),
        ({**TITLE, "eq": None}, "body"),
        ({**TITLE, "eq": "a", "prefix": "a"}, "body"),
        ({**TITLE, "eq": "a", "gt": "a"}, "body"),
        ({**TITLE, "gt": "a", "gte": "a"}, "body"),
        ({**TITLE, "eq": ["a"]}, "eq"),
        ({**TITLE, "eq": 1.5}, "eq"),
        ({**TITLE, "like": "a%"}, "like"),
        ({**TITLE, "in_": ["a"]}, "in_"),
        ({"not": {**TITLE, "prefix": 7}}, "not.prefix"),
        ({"column": ["title"], "eq": "a"}, "column"),
        (deep(DEPTH_MAX), "body"),
        (deep(100_000), "body"),
    ],
)
def test_what_is_no_filter_is_refused_by_its_place(value: Any, place: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ADAPTER.validate_python(value)
    assert invalid_parameter(caught.value).parameter.startswith(place)


@pytest.mark.parametrize(
    "value",
    [
        {"column": "fence", "is_null": False},
        {"column": "content_embedding", "is_null": True},
        {"column": "1=1) or (title", "eq": "x"},
        {"column": "year", "eq": "2025"},
        {"column": "year", "eq": True},
        {"column": "title", "eq": 1},
        {"column": "collected_at", "eq": 1737331200},
        {"column": "collected_at", "gt": "yesterday"},
        {"column": "collected_at", "lte": "9999-12-31"},
        {"column": "title", "eq": "a\0b"},
    ],
)
def test_what_does_not_fit_its_column_is_refused(value: Any) -> None:
    with pytest.raises(FilterError):
        read(value)


def test_the_deepest_tree_that_is_allowed_is_read() -> None:
    assert read(deep(DEPTH_MAX - 1))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(
            st.sampled_from(["and", "or", "not", "column", "eq", "in", "gt", "lte", "prefix", "is_null", "x"]),
            part | st.sampled_from(["title", "year", "collected_at", "fence", "2025-01-20"]),
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(JSON)
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_filter_or_a_named_refusal(value: Any) -> None:
    try:
        read(value)
    except (ValidationError, FilterError):
        pass
