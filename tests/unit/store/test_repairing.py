"""Repairs: the writer mends what is damaged, loses no row, and leaves whole tables alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal.errors import FencedError
from shoal.records import Ack, Outcome
from shoal.store.fsck import Code
from shoal.store.fsck_tables import Report, check
from shoal.store.repairing import NAMES_MAX
from shoal.store.writing import TableWriter
from tests.fixtures import damage
from tests.fixtures.damage import FIXES, JOBS, METADATA, NOW, VECTORS, A, B
from tests.fixtures.documents import command, document


@pytest.fixture
def place(whole: str, tmp_path: Path) -> str:
    return shutil.copytree(whole, str(tmp_path / "lancedb"))


def look(place: str) -> Report:
    found = check(
        place, {}, leaked_before=datetime.now(UTC) - timedelta(hours=1), settle_s=0,
        index_rows_min=damage.INDEX_ROWS_MIN,
    )  # fmt: skip
    assert found is not None
    return found


def repair(writer: TableWriter, number: int = 1, **body: Any) -> Ack:
    (ack,) = writer.apply([command(f"repair-{number}", "repair", body, offset=number)], (), NOW)
    return ack


def contents(place: str) -> dict[str, list[Any]]:
    """Every document row of the tables but the jobs', as it is, with its copies."""
    found = {}
    for table in (METADATA, VECTORS, FIXES):
        rows = damage.rows(place, table, f"{damage.KEYS[table]} <> '__fence__'")
        found[table] = sorted(repr(sorted(row.items())) for row in rows)
    return found


def job(place: str, number: int = 1) -> dict[str, Any]:
    (row,) = damage.rows(place, JOBS, f"command_id = 'repair-{number}'")
    return row


EXACT_COPIES: list[tuple[str, Callable[[str], None], dict[str, list[str]]]] = [
    ("row", damage.twice(METADATA, f"revision = '{A}@v2'"), {"documents": [A]}),
    ("history", damage.twice(METADATA, f"revision = '{A}@v1'"), {"documents": [A]}),
    ("tombstone", damage.twice(METADATA, "fence = 'deleted'"), {"documents": ["prod:ds:dead"]}),
    ("mark", damage.twice(METADATA, "fence LIKE '{\"removed%'"), {"documents": ["prod:ds:gone"]}),
    ("chunk", damage.twice(VECTORS, f"id = '{A}#1'"), {"documents": [A]}),
    ("fix", damage.twice(FIXES, "id = 'c1'"), {"fixes": ["c1"]}),
    ("orphan", damage.orphan, {"documents": ["prod:ds:nobody"]}),
    ("stale chunk", damage.stale_chunk, {"documents": [A]}),
]


@pytest.mark.parametrize(("plant", "body"), [each[1:] for each in EXACT_COPIES], ids=[each[0] for each in EXACT_COPIES])
def test_what_was_too_much_goes_and_all_else_is_as_before(
    place: str, plant: Callable[[str], None], body: dict[str, list[str]]
) -> None:
    before = contents(place)
    plant(place)
    assert contents(place) != before
    assert look(place).errors
    writer = damage.open_writer(place)
    assert repair(writer, **body).outcome is Outcome.INDEXED
    assert contents(place) == before
    assert look(place).findings == ()
    assert job(place)["status"] == "done"


def test_a_job_that_is_there_twice_is_there_once_again(place: str) -> None:
    damage.twice(JOBS, "command_id = 'c1'")(place)
    writer = damage.open_writer(place)
    repair(writer, jobs=["c1"])
    assert look(place).findings == ()
    assert len(damage.rows(place, JOBS, "command_id = 'c1'")) == 1
    assert job(place)["status"] == "done"


def test_of_copies_that_differ_the_newest_stays(place: str) -> None:
    (row,) = damage.rows(place, METADATA, f"revision = '{A}@v2'")
    damage.append(place, METADATA, [{**row, "title": "older", "indexed_at": row["indexed_at"] - timedelta(days=1)}])
    damage.append(place, METADATA, [{**row, "title": "newer", "indexed_at": row["indexed_at"] + timedelta(days=1)}])
    repair(damage.open_writer(place), documents=[A])
    assert [each["title"] for each in damage.rows(place, METADATA, f"revision = '{A}@v2'")] == ["newer"]


def test_of_several_current_versions_the_greatest_stays_and_the_others_are_history(place: str) -> None:
    before = contents(place)
    damage.two_current(place)
    writer = damage.open_writer(place)
    repair(writer, documents=[A])
    found = {row["version"]: row for row in damage.rows(place, METADATA, f"id = '{A}'")}
    assert found["v2"]["superseded_at"] is None
    assert found["v1"]["superseded_at"] == NOW
    assert found["v1"]["schema_embedding"] is None
    assert look(place).findings == ()
    assert contents(place)[VECTORS] == before[VECTORS]
    assert writer.statistics().documents == len(damage.rows(place, METADATA, "superseded_at IS NULL AND fence IS NULL"))


def test_vectors_and_times_survive_being_put_anew(place: str) -> None:
    (before,) = damage.rows(place, VECTORS, f"id = '{A}#1'")
    damage.twice(VECTORS, f"id = '{A}#1'")(place)
    repair(damage.open_writer(place), documents=[A])
    (after,) = damage.rows(place, VECTORS, f"id = '{A}#1'")
    np.testing.assert_array_equal(after.pop("content_embedding"), before.pop("content_embedding"))
    assert after == before


def test_a_repair_of_whole_tables_changes_nothing(place: str) -> None:
    before = contents(place)
    writer = damage.open_writer(place)
    ids = [row["id"] for row in damage.rows(place, METADATA, "fence IS NULL")]
    repair(writer, documents=ids, fixes=["c1", "c2"], jobs=["c1"])
    assert contents(place) == before
    assert '"removed":{}' in job(place)["result"]


def test_what_was_mended_meanwhile_is_left_alone(place: str) -> None:
    # 1. The check sees an orphan. 2. Its document is announced. 3. The repair comes late.
    damage.orphan(place)
    writer = damage.open_writer(place)
    writer.apply([document("prod:ds:nobody", 300, content="now it is somebody")], (), NOW)
    before = contents(place)
    repair(writer, documents=["prod:ds:nobody"])
    assert contents(place) == before
    assert look(place).findings == ()


def test_a_repair_beside_documents_sees_what_came_before_it(place: str) -> None:
    damage.orphan(place)
    writer = damage.open_writer(place)
    first, second = document("prod:ds:x", 300), document(B, 301, version="v3", content="b3")
    mend = command("repair-1", "repair", {"documents": ["prod:ds:nobody", "prod:ds:x", B]})
    acks = writer.apply([first, mend, second], (), NOW)
    assert [ack.outcome for ack in acks] == [Outcome.INDEXED] * 3
    assert look(place).findings == ()
    assert acks[0].commit_sequence < acks[1].commit_sequence < acks[2].commit_sequence


def test_a_repair_that_came_before_is_not_done_again(place: str) -> None:
    writer = damage.open_writer(place)
    repair(writer, documents=[A])
    damage.twice(VECTORS, f"id = '{A}#1'")(place)
    heir = damage.open_writer(place)
    assert repair(heir, documents=[A]).outcome is Outcome.UNCHANGED
    assert [each.code for each in look(place).findings] == [Code.DUPLICATE_KEY]
    assert repair(heir, 2, documents=[A]).outcome is Outcome.INDEXED
    assert look(place).findings == ()


@pytest.mark.parametrize(
    "body",
    [
        {"documents": "x"}, {"documents": [1]}, {"indexes": [["nowhere", "x"]]}, {"indexes": ["id_idx"]},
        {"fixes": {}}, {"documents": [str(n) for n in range(NAMES_MAX + 1)]},
    ],
)  # fmt: skip
def test_a_repair_that_asks_wrongly_fails_by_itself(place: str, body: dict[str, Any]) -> None:
    before = contents(place)
    writer = damage.open_writer(place)
    good = document("prod:ds:new", 300)
    acks = writer.apply([command("repair-1", "repair", body), good], (), NOW)
    assert [ack.outcome for ack in acks] == [Outcome.DEAD_LETTERED, Outcome.INDEXED]
    assert job(place)["status"] == "failed"
    assert len(contents(place)[VECTORS]) == len(before[VECTORS]) + 2


def test_hostile_names_are_names(place: str) -> None:
    before = contents(place)
    repair(damage.open_writer(place), documents=["x') OR ('1'='1", "__fence__", "\ud800", ""], jobs=["__fence__"])
    assert contents(place) == before
    assert look(place).findings == ()


def indexes(place: str, table: str) -> set[str]:
    return {index.name for index in damage.dataset(place, table).describe_indices()}


@pytest.mark.parametrize(
    ("kind", "table", "name", "done"),
    [
        ("vectors", VECTORS, "content_summary_idx", "train of content_summary took"),
        ("vectors", VECTORS, "content_embedding_idx", "train of content_embedding took"),
        ("metadata", METADATA, "id_idx", "indexed id of metadata anew"),
    ],
)
def test_an_index_that_leaves_rows_out_is_made_anew_and_is_there_till_then(
    place: str, kind: str, table: str, name: str, done: str
) -> None:
    damage.index_claims_more(name, table)(place)
    writer = damage.open_writer(place)
    before = indexes(place, table)
    repair(writer, indexes=[[kind, name], [kind, "no_such_idx"]])
    told = []
    while (step := writer.maintain(NOW)) is not None:
        told.append(step)
        assert indexes(place, table) >= before, step
    told.append(damage.upkeep(writer))
    assert done in "; ".join(told)
    assert look(place).findings == ()


def test_what_a_repair_asks_of_an_index_is_done_though_upkeep_finds_it_right(place: str) -> None:
    writer = damage.open_writer(place)
    repair(writer, indexes=[["vectors", "content_summary_idx"]])
    done = damage.upkeep(writer)
    assert "compacted vectors" in done  # and verified its indexes
    assert done.count("train of content_summary took") == 1


def lost_key_index(place: str) -> None:
    held = damage.dataset(place, VECTORS)
    (segment,) = next(each for each in held.describe_indices() if each.name == "id_idx").segments
    shutil.rmtree(Path(held.uri) / "_indices" / str(segment.uuid))


@pytest.mark.parametrize("plant", [damage.index_claims_more("id_idx"), lost_key_index], ids=["incomplete", "no files"])
def test_a_key_index_that_hides_the_fence_is_made_anew_before_anything_is_written(
    place: str, plant: Callable[[str], None]
) -> None:
    before = contents(place)
    plant(place)
    assert look(place).errors
    damage.open_writer(place)
    assert contents(place) == before
    assert look(place).findings == ()


def test_a_repair_killed_half_way_loses_nothing_and_comes_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. A chunk and its row are there twice, and there is an orphan. 2. The writer dies between the two tables.
    before = contents(place)
    damage.twice(VECTORS, f"id = '{A}#1'")(place)
    damage.twice(METADATA, f"revision = '{A}@v2'")(place)
    damage.orphan(place)
    writer = damage.open_writer(place)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer._metadata, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        repair(writer, documents=[A, "prod:ds:nobody"])
    assert Code.HALF_WRITTEN_BATCH in {each.code for each in look(place).findings}
    # 3. The next one takes it back; no key is lost. 4. The log delivers the command again.
    heir = damage.open_writer(place)
    keys = {row["id"] for row in damage.rows(place, VECTORS, "fence IS NULL")}
    assert keys >= {f"{A}#{n}" for n in range(3)}
    assert repair(heir, documents=[A, "prod:ds:nobody"]).outcome is Outcome.INDEXED
    assert contents(place) == before
    assert look(place).findings == ()


def test_a_zombies_repair_is_refused(place: str) -> None:
    damage.twice(VECTORS, f"id = '{A}#1'")(place)
    zombie = damage.open_writer(place)
    damage.open_writer(place)
    before = contents(place)
    with pytest.raises(FencedError):
        repair(zombie, documents=[A])
    assert contents(place) == before
