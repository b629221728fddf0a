"""Filters: compiled SQL on a real table means what the Python evaluator says, whatever the values hold."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from lancedb.index import Bitmap, BTree

from shoal.errors import PermanentError
from shoal.store.conditions import CHUNK_FILTERS, FILTERS, METADATA_FILTERS, split
from shoal.store.filters import (
    DEPTH_MAX,
    NODES_MAX,
    TEXT_LENGTH_MAX,
    VALUES_MAX,
    And,
    Columns,
    Equals,
    Filter,
    FilterError,
    In,
    IsNull,
    Not,
    Or,
    Prefix,
    Range,
    columns_of,
    conjuncts,
    matches,
    to_sql,
)

COLUMNS: Columns = {"name": "text", "size": "integer", "year": "integer32", "ok": "boolean", "at": "time"}
HOSTILE = (
    "", "'", "''", "x' OR '1'='1", "a\\", "\\'", "a\\b'c\"d%_", "%", "_", "; DROP TABLE t", "1=1 -- c", "/* */",
    "café", "Ünï", "😀", "\u2028", "\n", "\ufeff", "null", "NULL", "true", "name", "`name`", '"name"', "$1", "?", "{0}",
    "a", "A", "ab", "a%", "\x7f", "ﬁ", "İ",
)  # fmt: skip
NOW = datetime(2025, 1, 20, 14, 30, tzinfo=UTC)
TIMES = (
    None,
    NOW,
    NOW + timedelta(microseconds=1),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
)
SIZES = (None, 0, -1, 1, 2**63 - 1, -(2**63) + 1)
YEARS = (None, 2025, -1, 2**31 - 1, -(2**31))
FLAGS = (None, True, False)
ROWS: list[dict[str, Any]] = [
    {
        "key": number,
        "name": name,
        "size": SIZES[number % len(SIZES)],
        "year": YEARS[number % len(YEARS)],
        "ok": FLAGS[number % len(FLAGS)],
        "at": TIMES[number * 7 % len(TIMES)],
    }
    for number, name in enumerate([*HOSTILE, None, None])
]

texts = st.sampled_from(HOSTILE) | st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8
)
integers = st.sampled_from([size for size in SIZES if size is not None]) | st.integers(-(2**63) + 1, 2**63 - 1)
years = st.sampled_from([year for year in YEARS if year is not None]) | integers  # also what no year can be
times = st.sampled_from([at for at in TIMES if at is not None]) | st.datetimes(timezones=st.just(UTC))
values: dict[str, st.SearchStrategy[Any]] = {
    "name": texts,
    "size": integers,
    "year": years,
    "ok": st.booleans(),
    "at": times,
}


def _ranges(column: str) -> st.SearchStrategy[Filter]:
    ends = st.none() | values[column]
    return st.builds(Range, st.just(column), ends, ends, st.booleans(), st.booleans()).filter(
        lambda one: one.low is not None or one.high is not None
    )


leaves: st.SearchStrategy[Filter] = st.one_of(
    st.sampled_from(sorted(COLUMNS)).flatmap(
        lambda column: st.one_of(
            st.builds(Equals, st.just(column), values[column]),
            st.builds(In, st.just(column), st.lists(values[column], max_size=4).map(tuple)),
            st.builds(IsNull, st.just(column)),
        )
    ),
    st.sampled_from(["name", "size", "year", "at"]).flatmap(_ranges),
    st.builds(Prefix, st.just("name"), texts),
)
trees: st.SearchStrategy[Filter] = st.recursive(
    leaves,
    lambda parts: st.one_of(
        st.builds(Not, parts),
        st.builds(And, st.lists(parts, max_size=3).map(tuple)),
        st.builds(Or, st.lists(parts, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[set[int]]]:
    """Runs a condition on three equal tables: without indexes, with BTREE, with BITMAP; two fragments each."""
    uri: Path = tmp_path_factory.mktemp("filters")
    schema = pa.schema(
        [("key", pa.int64()), ("name", pa.string()), ("size", pa.int64()), ("year", pa.int32()), ("ok", pa.bool_()),
         ("at", pa.timestamp("us", "UTC"))]
    )  # fmt: skip
    connection = lancedb.connect(uri)
    tables = []
    for index in (None, BTree(), Bitmap()):
        table = connection.create_table(f"t{len(tables)}", pa.Table.from_pylist(ROWS[:20], schema))
        for column in ("name", "size", "ok", "at"):
            if isinstance(index, BTree) or (index and column != "at"):  # a BITMAP can't hold times
                table.create_index(column, config=index)
        table.add(pa.Table.from_pylist(ROWS[20:], schema))
        tables.append(table)

    def run(condition: str) -> list[set[int]]:
        answers = []
        for table in tables:
            answer = table.search().where(condition).select(["key"]).to_arrow()
            answers.append(set(answer["key"].to_pylist()))
            assert table.count_rows(condition) == answer.num_rows
        return answers

    return run


@given(trees)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(Equals("name", "x' OR '1'='1"))
@example(Equals("name", "a\\"))
@example(Prefix("name", "a\\b'c\"d%_"))
@example(Prefix("name", ""))
@example(Equals("year", 2**62))
@example(Not(Equals("year", 2**31)))
@example(Equals("year", -(2**31)))
@example(In("year", (2**31, 2025, -(2**40))))
@example(In("year", (2**31,)))
@example(Range("year", -(2**31) - 1, 2**31))
@example(Range("year", 2**31, None))
@example(Range("year", None, 2**31 - 1, high_inclusive=False))
@example(Not(Range("year", 2025, 2**62)))
@example(Not(Or(())))
@example(Not(In("name", ())))
@example(Not(Equals("ok", True)))
@example(Not(Not(IsNull("at"))))
@example(Range("at", datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)))
def test_compiled_sql_means_what_the_evaluator_says(found: Callable[[str], list[set[int]]], tree: Filter) -> None:
    expected = {row["key"] for row in ROWS if matches(tree, row)}
    assert found(to_sql(tree, COLUMNS)) == [expected] * 3


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_value_finds_its_own_row_only(found: Callable[[str], list[set[int]]], value: str) -> None:
    (own,) = [row["key"] for row in ROWS if row["name"] == value]
    assert found(to_sql(Equals("name", value), COLUMNS)) == [{own}] * 3
    assert found(to_sql(Or((Equals("name", value), In("name", ()))), COLUMNS)) == [{own}] * 3


def test_a_time_of_another_zone_means_the_same_instant(found: Callable[[str], list[set[int]]]) -> None:
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-5, minutes=-30)))
    assert found(to_sql(Equals("at", elsewhere), COLUMNS)) == found(to_sql(Equals("at", NOW), COLUMNS))


@pytest.mark.parametrize(
    "tree",
    [
        Equals("name = name or name", "x"),
        Equals("name'", "x"),
        Equals("", "x"),
        Equals("fence", "x"),
        IsNull("1=1) or (true"),
        Equals("name", 1),
        Equals("name", None),  # type: ignore[arg-type]
        Equals("name", ["x"]),  # type: ignore[arg-type]
        Equals("size", "1 or true"),
        Equals("size", True),
        Equals("size", 1.5),  # type: ignore[arg-type]
        Equals("size", float("nan")),  # type: ignore[arg-type]
        Equals("size", 2**63),
        Equals("size", -(2**70)),
        Equals("ok", 1),
        Equals("at", "2025-01-01"),
        Equals("at", datetime(2025, 1, 1)),
        Equals("at", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=5)))),
        Equals("name", "a\0b"),
        Equals("name", "\ud800"),
        Equals("name", "x" * (TEXT_LENGTH_MAX + 1)),
        In("name", tuple(map(str, range(VALUES_MAX + 1)))),
        And((In("name", tuple(map(str, range(VALUES_MAX)))), Not(In("size", (1,))))),
        In("name", ("a", 1)),
        Range("name"),
        Range("ok", False, True),
        Range("size", "a"),
        Prefix("size", "1"),
        Prefix("name", "a\0"),
        And((Equals("name", "x"),) * (NODES_MAX + 1)),
        "name = 'x'",  # type: ignore[list-item]
    ],
)
def test_what_does_not_fit_is_refused(tree: Filter) -> None:
    with pytest.raises(FilterError):
        to_sql(tree, COLUMNS)
    assert issubclass(FilterError, PermanentError)


def test_deep_nesting_is_refused_before_anything_recurses() -> None:
    tree: Filter = Equals("name", "x")
    for _ in range(DEPTH_MAX - 1):
        tree = Not(tree)
    assert to_sql(tree, COLUMNS)
    for _ in range(100_000):
        tree = Not(tree)
    with pytest.raises(FilterError, match="nested"):
        to_sql(tree, COLUMNS)


def test_the_deepest_and_widest_tree_runs(found: Callable[[str], list[set[int]]]) -> None:
    tree: Filter = Equals("name", "a")
    for _ in range(DEPTH_MAX - 2):
        tree = Not(tree)
    wide = In("name", ("a", *("x" * 20 + str(number) for number in range(VALUES_MAX - 1))))
    both = And((tree, wide))
    assert found(to_sql(both, COLUMNS)) == [{row["key"] for row in ROWS if matches(both, row)}] * 3


def test_the_real_columns_leave_out_the_fence_the_vectors_and_the_chunks_own_keys() -> None:
    assert {"id", "dataset", "collected_at", "sha256_hash", "validation_status"} <= METADATA_FILTERS.keys()
    assert {"dataset", "collected_at", "auth_method", "pagination_type"} <= CHUNK_FILTERS.keys()
    assert not {"fence", "content_embedding", "schema_embedding"} & FILTERS.keys()
    assert not {"id", "metadata_id", "document_version"} & CHUNK_FILTERS.keys()
    assert (METADATA_FILTERS["year"], METADATA_FILTERS["file_size_bytes"]) == ("integer32", "integer")


def test_a_filter_is_split_between_the_tables_or_refused() -> None:
    dataset, auth, urn = Equals("dataset", "d"), Equals("auth_method", "none"), Equals("urn", "u")
    tree = And((dataset, And((auth, urn))))
    assert split(tree, CHUNK_FILTERS) == (And((dataset, auth)), And((urn,)))
    assert split(tree, METADATA_FILTERS) == (And((dataset, urn)), And((auth,)))
    assert split(None, CHUNK_FILTERS) == (None, None)
    assert split(Or((dataset, auth)), CHUNK_FILTERS) == (And((Or((dataset, auth)),)), None)
    with pytest.raises(FilterError, match="auth_method, urn"):
        split(Or((auth, urn)), CHUNK_FILTERS)
    with pytest.raises(FilterError, match="nothing"):
        split(Or((Equals("nothing", "x"), urn)), CHUNK_FILTERS)


def test_columns_and_conjuncts_of_a_tree() -> None:
    tree = And((Equals("a", "x"), And((Not(IsNull("b")),)), Or((Prefix("c", ""), Range("a", "x")))))
    assert columns_of(tree) == {"a", "b", "c"}
    assert len(conjuncts(tree)) == 3
    assert conjuncts(None) == ()
