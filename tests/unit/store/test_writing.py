"""The table writer on real tables: one writer, whole batches, and the same tables after any kill."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

from shoal.errors import ConfigurationError, DeadReason, FencedError, TransientError
from shoal.records import FENCE_ID, Deletion, Embedded, Outcome, Progress, Writable
from shoal.settings import Settings
from shoal.store import tables as tables_module
from shoal.store.fence import Fence
from shoal.store.maintenance import FOLD_AGE, Maintenance
from shoal.store.schemas import IS_CURRENT, IS_DOCUMENT, TableKind
from shoal.store.tables import FencedTable
from shoal.store.writing import PATIENCE, TableWriter, collection_model, storage_options
from tests.fixtures.documents import MODEL, WIDTH, command, deletion, document, failed, position
from tests.fixtures.upkeep import upkeep as run_upkeep

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
A, B, C = "prod:ds:a.json", "prod:ds:b.json", "prod:ds:c.json"
INDEXED, UNCHANGED, SUPERSEDED = Outcome.INDEXED, Outcome.UNCHANGED, Outcome.SUPERSEDED

Rows = list[dict[str, Any]]


class Killed(BaseException):
    """Stands for SIGKILL: no handler of the code under test may catch it."""


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "lancedb")


def open_writer(place: str, *, model: str = MODEL, width: int = WIDTH, **settings: Any) -> TableWriter:
    return TableWriter.open(place, {}, model, width, settings=Settings(**settings), now=NOW)


def write(writer: TableWriter, *batch: Writable) -> list[Outcome]:
    return [ack.outcome for ack in writer.apply(batch, (), NOW)]


def read(place: str, table: str, columns: Sequence[str], condition: str = IS_DOCUMENT) -> Rows:
    found: Rows = lance.dataset(f"{place}/{table}.lance").to_table(columns=list(columns), filter=condition).to_pylist()
    return found


def current(place: str) -> dict[str, str]:
    return {row["id"]: row["version"] for row in read(place, "scraper_metadata", ["id", "version"], IS_CURRENT)}


def chunks(place: str) -> dict[str, tuple[str, str]]:
    rows = read(place, "scraper_vectors", ["id", "document_version", "content_summary"])
    found = {row["id"]: (row["document_version"], row["content_summary"]) for row in rows}
    assert len(found) == len(rows), "no chunk twice"
    return found


def fence(place: str, table: str = "scraper_metadata") -> Fence:
    (row,) = read(place, table, ["fence"], "fence IS NOT NULL AND fence <> 'deleted'")
    return Fence.from_json(row["fence"])


def interrupt(
    writer: TableWriter, kind: TableKind, monkeypatch: pytest.MonkeyPatch, act: Callable[[Callable[[], None]], None]
) -> None:
    """The next commit of this table's calls `act` with the real commit instead."""
    table = writer._tables[kind]
    real = table.commit

    def commit(*args: Any) -> None:
        monkeypatch.setattr(table, "commit", real)
        act(lambda: real(*args))

    monkeypatch.setattr(table, "commit", commit)


def raising(error: BaseException) -> Callable[[Callable[[], None]], None]:
    def act(commit: Callable[[], None]) -> None:
        raise error

    return act


def test_a_document_is_written_with_every_column_its_announcement_gives(place: str) -> None:
    writer = open_writer(place)
    item = document(A, 7, version="20250120T143000Z", s3_guid="guid", source_url="https://example.test/load")
    (ack,) = writer.apply([item], [Progress("cluster", "topic", 0, 8)], NOW)
    assert ack.outcome is INDEXED
    (row,) = read(place, "scraper_metadata", ["*"])
    expected = {
        "revision": f"{A}@20250120T143000Z", "id": A, "urn": "a.json", "s3_bucket": "scrapes",
        "s3_key": "year=2025/month=01/day=20/7.json", "year": 2025, "month": 1, "day": 20, "data_source": "NYISO",
        "file_format": "JSON", "validation_status": "indexed", "chunk_count": 2, "superseded_at": None,
        "kafka_offset": 7, "kafka_timestamp_ms": 1007, "embedding_model": MODEL, "extra": '{"s3_guid":"guid"}',
        "indexed_at": NOW, "source_url": "https://example.test/load", "title": "a title",
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    (first, second) = sorted(read(place, "scraper_vectors", ["*"]), key=lambda row: int(row["chunk_index"]))
    assert (first["id"], second["id"]) == (f"{A}#0", f"{A}#1")
    assert (first["content_schema"], second["content_schema"]) == ("{}", None)
    assert item.vectors is not None
    np.testing.assert_array_equal(np.array([first["content_embedding"], second["content_embedding"]]), item.vectors)
    assert fence(place).positions() == {("cluster", "topic", 0): 8}
    assert ack.commit_sequence == fence(place).commit_sequence == fence(place, "scraper_vectors").commit_sequence


def test_progress_never_goes_back_and_the_sequence_always_grows(place: str) -> None:
    writer = open_writer(place)
    sequences = [
        writer.apply([document(A, offset)], [Progress("cluster", "topic", 0, done)], NOW)[0].commit_sequence
        for offset, done in ((1, 9), (2, 4), (3, 5))
    ]
    assert sequences == sorted(set(sequences))
    assert fence(place).positions() == {("cluster", "topic", 0): 9}
    reopened = open_writer(place)
    assert reopened.apply([document(B, 9)], (), NOW)[0].commit_sequence > sequences[-1]
    assert fence(place).positions() == {("cluster", "topic", 0): 9}


def test_a_zombie_is_fenced_and_nothing_of_its_batch_is_in_the_tables(place: str) -> None:
    # 1. One writer works; 2. another opens the tables; 3. the first, unaware, goes on.
    zombie = open_writer(place)
    write(zombie, document(A, 1))
    heir = open_writer(place)
    with pytest.raises(FencedError):
        write(zombie, document(A, 2, version="v2"), document(B, 3), command("c1", "fix", FIX))
    assert (current(place), set(chunks(place))) == ({A: "v1"}, {f"{A}#0", f"{A}#1"})
    assert read(place, "scraper_fixes", ["id"]) == []
    # 4. It stays out, also when it looks at the tables anew; the heir is not disturbed.
    with pytest.raises(FencedError):
        write(zombie, document(B, 3))
    assert write(heir, document(B, 3)) == [INDEXED]
    assert fence(place).epoch == heir.statistics().epoch


def test_a_zombie_between_its_two_commits_is_rolled_back_by_its_heir(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = open_writer(place)
    write(zombie, document(A, 1))
    heirs: list[TableWriter] = []

    def act(commit: Callable[[], None]) -> None:  # its chunks are in; now the heir opens; then it goes on
        heirs.append(open_writer(place))
        commit()

    interrupt(zombie, "metadata", monkeypatch, act)
    with pytest.raises(FencedError):
        write(zombie, document(A, 2, version="v2", content="other", chunks=3), document(B, 3))
    assert current(place) == {A: "v1"}
    assert chunks(place) == {f"{A}#{n}": ("v1", f"text part {n}") for n in range(2)}
    assert write(heirs[0], document(B, 3)) == [INDEXED]


@pytest.mark.parametrize("kind", ["vectors", "fixes", "metadata", "jobs"])
def test_a_kill_before_any_commit_of_a_batch_is_mended_by_the_next_start(
    place: str, kind: TableKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(place)
    write(writer, document(A, 1, chunks=3), document(B, 2), document(C, 3))
    whole = current(place), chunks(place)
    batch = [document(A, 4, version="v2", content="new", chunks=1), deletion(C, 5), command("c1", "fix", FIX)]
    interrupt(writer, kind, monkeypatch, raising(Killed()))
    with pytest.raises(Killed):
        write(writer, *batch)
    heir = open_writer(place)
    if kind != "jobs":  # before the last commit of documents: it is as if the batch had never been
        assert (current(place), chunks(place)) == whole
    assert heir.statistics().documents == len(current(place))
    write(heir, *batch)
    assert current(place) == {A: "v2", B: "v1"}
    assert chunks(place) == {
        f"{A}#0": ("v2", "new part 0"), f"{B}#0": ("v1", "text part 0"), f"{B}#1": ("v1", "text part 1"),
    }  # fmt: skip
    assert [(row["id"], row["count"]) for row in read(place, "scraper_fixes", ["id", "count"])] == [("c1", 1)]
    assert [row["status"] for row in read(place, "shoal_jobs", ["status"])] == ["done"]


@pytest.mark.parametrize("kind", ["vectors", "metadata"])
def test_a_commit_whose_answer_was_lost_is_told_from_one_that_did_not_land(
    place: str, kind: TableKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(commit: Callable[[], None]) -> None:
        commit()
        raise TransientError("connection reset")

    writer = open_writer(place)
    interrupt(writer, kind, monkeypatch, lost)
    if kind == "metadata":  # all of it is in, which the writer finds out
        assert write(writer, document(A, 1)) == [INDEXED]
    else:
        with pytest.raises(TransientError, match="reset"):
            write(writer, document(A, 1))
        assert chunks(place) == {}
    assert write(writer, document(A, 1)) == [UNCHANGED if kind == "metadata" else INDEXED]
    assert len(chunks(place)) == 2


def test_a_commit_that_is_still_on_its_way_can_not_land_after_the_writer_gave_it_up(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(place)
    write(writer, document(A, 1))
    late: list[tuple[str, Any]] = []
    real = lance.LanceDataset.commit

    def stuck(base: Any, transaction: Any, **options: Any) -> Any:
        if "metadata" not in str(base.uri) or late:
            return real(base, transaction, **options)
        late.append((base.uri, transaction))
        raise OSError("Generic S3 error: timed out")

    monkeypatch.setattr(lance.LanceDataset, "commit", staticmethod(stuck))
    with pytest.raises(TransientError, match="timed out"):
        write(writer, document(A, 2, version="v2", content="new"))
    monkeypatch.undo()
    with pytest.raises(tables_module.CommitConflictError):
        real(*late[0], max_retries=0)
    assert current(place) == {A: "v1"}
    assert {version for version, _ in chunks(place).values()} == {"v1"}


def test_a_commit_that_others_upkeep_refuses_is_planned_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(place)
    for offset in range(6):
        write(writer, document(A, offset, version=f"v{offset}", content=str(offset)))

    def act(commit: Callable[[], None]) -> None:  # the batch's chunks are in; somebody compacts what it touches
        lance.dataset(f"{place}/scraper_metadata.lance").optimize.compact_files()
        commit()

    interrupt(writer, "metadata", monkeypatch, act)
    assert write(writer, document(A, 7, version="v7", content="7")) == [INDEXED]
    assert current(place) == {A: "v7"}
    assert set(chunks(place).values()) == {("v7", "7 part 0"), ("v7", "7 part 1")}


def test_fewer_chunks_than_before_leave_none_behind(place: str) -> None:
    writer = open_writer(place)
    write(writer, document(A, 1, chunks=9), document(B, 1, chunks=2))
    assert write(writer, document(A, 2, version="v2", content="short", chunks=1)) == [INDEXED]
    assert set(chunks(place)) == {f"{A}#0", f"{B}#0", f"{B}#1"}
    assert write(writer, document(A, 3, version="v3", content="none", chunks=0)) == [INDEXED]
    assert set(chunks(place)) == {f"{B}#0", f"{B}#1"}
    assert fence(place, "scraper_vectors").commit_sequence == fence(place).commit_sequence


def test_a_version_that_becomes_history_keeps_its_row_but_no_vector(place: str) -> None:
    writer = open_writer(place)
    write(writer, document(A, 1), document(B, 1))
    write(writer, document(A, 2, version="v2", content="new"))
    columns = ["version", "superseded_at", "title", "schema_embedding", "chunk_count"]
    old, new = sorted(read(place, "scraper_metadata", columns, f"id = '{A}'"), key=lambda row: str(row["version"]))
    assert (old["superseded_at"], old["title"], old["schema_embedding"], old["chunk_count"]) == (
        NOW,
        "a title",
        None,
        2,
    )
    assert new["superseded_at"] is None
    assert len(new["schema_embedding"]) == WIDTH


def test_a_deleted_document_is_gone_from_both_tables(place: str) -> None:
    writer = open_writer(place)
    write(writer, document(A, 1), document(A, 2, version="v2", content="b"), document(B, 3, location="s3://scrapes/b"))
    assert write(writer, deletion(A, 4), deletion(None, 5, s3_path="s3://scrapes/b")) == [Outcome.DELETED] * 2
    assert read(place, "scraper_metadata", ["id"]) == []
    assert chunks(place) == {}
    assert write(writer, document(A, 1)) == [SUPERSEDED]
    assert write(writer, document(A, 6)) == [INDEXED]
    assert writer.statistics().documents == 1


def test_the_fence_row_is_no_document_to_anybody(place: str) -> None:
    writer = open_writer(place)
    item = document(A, 1)
    acks = writer.apply([deletion(FENCE_ID, 1), document(FENCE_ID, 2), item, command(FENCE_ID, "fix", FIX)], (), NOW)
    assert [ack.outcome for ack in acks] == [
        Outcome.DEAD_LETTERED,
        Outcome.DEAD_LETTERED,
        INDEXED,
        Outcome.DEAD_LETTERED,
    ]
    assert current(place) == {A: "v1"}
    assert fence(place).epoch == fence(place, "shoal_jobs").epoch == 1


HOSTILE = [
    "prod:ds:it's", "prod:ds:' OR '1'='1", "prod:ds:\\'; --", "prod:ds:new\nline\ttab", 'prod:ds:"quoted"',
    "prod:ds:Größe-日本-🐟", "prod:ds:a%@#b", "prod:ds:`x`", "prod:ds:%s{}$1", "x', fence = 'y",
]  # fmt: skip


def test_hostile_ids_and_versions_are_only_text(place: str) -> None:
    writer = open_writer(place)
    write(writer, document(A, 0))
    first = [document(name, 1, version=name, chunks=2) for name in HOSTILE]
    assert write(writer, *first) == [INDEXED] * len(HOSTILE)
    assert write(writer, *first) == [UNCHANGED] * len(HOSTILE)
    newer = [document(name, 2, version=name + "z", content="new", chunks=1) for name in HOSTILE]
    assert write(writer, *newer) == [INDEXED] * len(HOSTILE)
    assert current(place) == {A: "v1", **{name: name + "z" for name in HOSTILE}}
    assert set(chunks(place)) == {f"{A}#0", f"{A}#1", *(f"{name}#0" for name in HOSTILE)}
    assert write(writer, *(deletion(name, 3) for name in HOSTILE)) == [Outcome.DELETED] * len(HOSTILE)
    assert current(place) == {A: "v1"}
    assert set(chunks(place)) == {f"{A}#0", f"{A}#1"}


def test_text_that_utf8_can_not_hold_does_not_stop_a_batch(place: str) -> None:
    writer = open_writer(place)
    item = document(A, 1, content="half a \ud83d pair", source_url="https://x/\udc00")
    assert write(writer, item, document(B, 2)) == [INDEXED, INDEXED]
    assert chunks(place)[f"{A}#0"][1] == "half a ? pair part 0"


def test_keys_that_utf8_can_not_hold_refuse_their_own_item_alone(place: str) -> None:
    writer = open_writer(place)
    batch = [
        document("prod:ds:\ud800", 1), document(A, 2, version="\ud800"), document(A, 3, version="nul\0"),
        deletion("prod:ds:\ud800", 4), deletion(None, 5, s3_path="s3://\ud800"), deletion(None, 6, s3_path="s3://\0"),
        command("\ud800", "fix", FIX), command("c\0", "fix", FIX),
        command("m", "fix_mark", '{"id": "\\u0000", "wrong": true}'), document(B, 7),
    ]  # fmt: skip
    dead = Outcome.DEAD_LETTERED
    assert write(writer, *batch) == [
        dead,
        dead,
        dead,
        dead,
        Outcome.DELETED,
        Outcome.DELETED,
        dead,
        dead,
        dead,
        INDEXED,
    ]
    assert current(place) == {B: "v1"}


def test_a_batch_of_more_ids_than_one_lookup_takes_is_found_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables_module, "LOOKUP_KEYS_MAX", 7)
    writer = open_writer(place)
    batch = [document(f"prod:ds:{number}", number, chunks=1) for number in range(50)]
    assert write(writer, *batch) == [INDEXED] * 50
    assert write(writer, *batch) == [UNCHANGED] * 50
    paths = [str(item.fetched.announcement.location) for item in batch]
    assert writer.resolve_paths(paths) == {path: f"prod:ds:{number}" for number, path in enumerate(paths)}


def test_another_model_or_width_is_refused_by_name(place: str) -> None:
    assert collection_model(place, {}) is None
    writer = open_writer(place)
    assert collection_model(place, {}) == (MODEL, WIDTH)
    with pytest.raises(ConfigurationError, match=rf"{MODEL} .*not other"):
        open_writer(place, model="other")
    with pytest.raises(ConfigurationError, match=r"width 8.*width 16"):
        open_writer(place, width=16)
    with pytest.raises(ConfigurationError, match="not other"):
        write(writer, replace(document(A, 1), model="other"))
    assert write(writer, document(A, 1)) == [INDEXED], "the refused openings took no epoch"


def test_a_place_that_can_not_be_written_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises((ConfigurationError, TransientError), match="file"):
        open_writer(str(tmp_path / "file"))


def test_what_is_half_created_is_completed(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FencedTable.create

    def create(kind: TableKind, *args: Any) -> FencedTable:
        if kind == "fixes":
            raise Killed
        return real(kind, *args)

    monkeypatch.setattr(FencedTable, "create", create)
    with pytest.raises(Killed):
        open_writer(place)
    monkeypatch.undo()
    assert write(open_writer(place), document(A, 1), command("c1", "fix", FIX)) == [INDEXED, INDEXED]


# --- commands -------------------------------------------------------------------------------------------------

FIX = {
    "scraper_name": "nyiso_load", "error_type": "KeyError", "error_message": "KeyError: 'x' at line 12",
    "summary": "the field was renamed", "diff": "- x\n+ y", "outcome": "worked",
}  # fmt: skip
FIX_FIELDS = ["id", "count", "merged_into", "marked_wrong_by", "outcome"]


def fixes(place: str) -> dict[str, tuple[Any, ...]]:
    rows = read(place, "scraper_fixes", FIX_FIELDS)
    return {row["id"]: (row["count"], row["merged_into"], row["marked_wrong_by"]) for row in rows}


def test_a_command_is_applied_once_however_often_it_is_delivered(place: str) -> None:
    writer = open_writer(place)
    item = command("c1", "fix", FIX, text="KeyError x")
    assert write(writer, item, item) == [INDEXED, UNCHANGED]
    assert write(open_writer(place), item) == [UNCHANGED]
    assert fixes(place) == {"c1": (1, None, None)}
    (job,) = read(place, "shoal_jobs", ["command_id", "status", "error", "result", "commit_sequence", "applied_at"])
    assert (job["command_id"], job["status"], job["error"]) == ("c1", "done", None)
    assert job["commit_sequence"] <= fence(place).commit_sequence
    (row,) = read(place, "scraper_fixes", ["error_embedding", "reported_by", "error_type"])
    assert (len(row["error_embedding"]), row["reported_by"], row["error_type"]) == (WIDTH, "an agent", "KeyError")


def test_the_same_fix_reported_again_counts_instead_of_standing_twice(place: str) -> None:
    writer = open_writer(place)
    again = {**FIX, "error_message": "KeyError:  'x' at line 99"}
    write(writer, command("c1", "fix", FIX, text="x"), command("c2", "fix", again, text="x"))
    write(writer, command("c3", "fix", again), command("c4", "fix", {**FIX, "outcome": "failed"}))
    assert fixes(place) == {
        "c1": (3, None, None), "c2": (1, "c1", None), "c3": (1, "c1", None), "c4": (1, None, None),
    }  # fmt: skip
    (row,) = read(place, "scraper_fixes", ["error_embedding"], "id = 'c1'")
    assert row["error_embedding"] is not None, "counting keeps the vector"


def test_a_fix_is_marked_wrong_and_right_again_also_by_a_repeated_report_of_it(place: str) -> None:
    writer = open_writer(place)
    write(writer, command("c1", "fix", FIX), command("c2", "fix", FIX))
    write(writer, command("m1", "fix_mark", {"id": "c2", "wrong": True, "by": "ann"}))
    assert fixes(place)["c1"] == (2, None, "ann")
    write(writer, command("m2", "fix_mark", {"id": "c1", "wrong": False, "by": "bob"}))
    assert fixes(place)["c1"] == (2, None, None)


def test_the_same_change_in_other_words_is_the_same_fix_and_another_change_is_not(place: str) -> None:
    writer = open_writer(place)
    numbered = {**FIX, "summary": "said otherwise", "diff": "@@ -1 +1 @@\n- x\n+ y\n"}
    moved = {**FIX, "summary": "again", "diff": "@@ -80 +81 @@\n- x\n+ y"}
    write(writer, command("c1", "fix", numbered), command("c2", "fix", moved))
    write(writer, command("c3", "fix", {**FIX, "diff": "- x\n+ z"}))
    write(writer, command("c4", "fix", {**FIX, "diff": None}), command("c5", "fix", {**FIX, "diff": None}))
    assert fixes(place) == {
        "c1": (2, None, None), "c2": (1, "c1", None), "c3": (1, None, None),
        "c4": (2, None, None), "c5": (1, "c4", None),
    }  # fmt: skip


def test_a_mark_says_why_survives_a_report_in_the_same_batch_and_an_outcome_can_be_corrected(place: str) -> None:
    writer = open_writer(place)
    write(writer, command("c1", "fix", FIX))
    mark = command("m1", "fix_mark", {"id": "c1", "wrong": True, "by": "ann", "note": "hides it"})
    write(writer, mark, command("c2", "fix", FIX))
    assert fixes(place)["c1"] == (2, None, "ann: hides it")
    write(writer, command("m2", "fix_mark", {"id": "c1", "outcome": "failed"}), command("c3", "fix", FIX))
    rows = {row["id"]: row for row in read(place, "scraper_fixes", FIX_FIELDS)}
    assert (rows["c1"]["outcome"], rows["c1"]["marked_wrong_by"]) == ("failed", "ann: hides it")
    assert (rows["c3"]["outcome"], rows["c3"]["merged_into"]) == ("worked", None), "it is no report of a failure"
    (job,) = read(place, "shoal_jobs", ["result"], "command_id = 'm1'")
    assert '"note":"hides it"' in job["result"]


@pytest.mark.parametrize(
    ("kind", "body", "says"),
    [
        ("drop_everything", {}, "unknown kind"),
        ("fix", "not json", "not JSON"),
        ("fix", [1], "no JSON object"),
        ("fix", {**FIX, "summary": 3}, "summary is no text"),
        ("fix", {**FIX, "outcome": "perhaps"}, "outcome"),
        ("fix", {"summary": "x"}, "scraper_name"),
        ("fix_mark", {"id": "none", "wrong": True, "by": "ann"}, "no fix"),
        ("fix_mark", {"id": 3, "wrong": "yes"}, "fix_mark is"),
        ("fix_mark", {"id": "c2"}, "fix_mark is"),
        ("fix_mark", {"id": "c2", "outcome": "perhaps"}, "fix_mark is"),
    ],
)
def test_a_wrong_command_fails_by_itself_and_its_job_says_why(place: str, kind: str, body: object, says: str) -> None:
    writer = open_writer(place)
    bad, good, after = writer.apply([command("c1", kind, body), command("c2", "fix", FIX), document(A, 1)], (), NOW)
    assert (good.outcome, after.outcome) == (INDEXED, INDEXED)
    assert bad.failure is not None
    assert bad.failure.reason is DeadReason.SCHEMA_INVALID
    (job,) = read(place, "shoal_jobs", ["status", "error"], "command_id = 'c1'")
    assert job["status"] == "failed"
    assert says in job["error"]
    assert set(fixes(place)) == {"c2"}


def test_a_wrong_command_delivered_twice_in_one_batch_stops_nobody(place: str) -> None:
    writer = open_writer(place)
    assert write(writer, command("c1", "unknown", {}), command("c1", "unknown", {}), document(A, 1))[2] is INDEXED
    assert write(writer, command("c1", "fix", FIX, offset=9)) == [INDEXED], "a command that failed may be sent again"


def test_a_command_that_failed_fails_again_when_it_is_redelivered_and_not_when_it_is_sent_again(place: str) -> None:
    writer = open_writer(place)
    mark = {"id": "c2", "wrong": True, "by": "ann"}
    first, fix = command("m1", "fix_mark", mark, offset=1), command("c2", "fix", FIX, offset=2)
    assert write(writer, first) == [Outcome.DEAD_LETTERED]
    assert write(writer, fix) == [INDEXED]
    heir = open_writer(place)  # the first one was killed before its offsets were committed
    (ack, _) = heir.apply([first, fix], (), NOW)
    assert ack.failure is not None
    assert ack.failure.message == "no fix 'c2'"
    assert fixes(place)["c2"] == (1, None, None)
    assert write(heir, command("m1", "fix_mark", mark, offset=3)) == [INDEXED]
    assert fixes(place)["c2"] == (1, None, "ann")


@pytest.mark.parametrize("cut", [1, 2])
def test_a_mark_before_its_fix_is_refused_also_after_a_kill_between_their_commits(
    place: str, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fix is in its table then, and no job says so; `cut`: how many come again in the first batch."""
    batch = [
        command("m1", "fix_mark", {"id": "c2", "wrong": True, "by": "ann"}, offset=1),
        command("c2", "fix", FIX, offset=2),
    ]
    writer = open_writer(place)
    interrupt(writer, "jobs", monkeypatch, raising(Killed()))
    with pytest.raises(Killed):
        write(writer, *batch)
    assert fixes(place) == {"c2": (1, None, None)}
    heir = open_writer(place)
    acks = write(heir, *batch[:cut]) + (write(heir, *batch[cut:]) if batch[cut:] else [])
    assert acks == [Outcome.DEAD_LETTERED, INDEXED]
    assert fixes(place) == {"c2": (1, None, None)}
    assert write(heir, command("m2", "fix_mark", {"id": "c2", "wrong": True, "by": "bob"}, offset=3)) == [INDEXED]
    assert fixes(place) == {"c2": (1, None, "bob")}


def test_a_command_for_another_collection_is_refused(place: str) -> None:
    writer = open_writer(place)
    item = command("c1", "fix", FIX)
    (ack,) = writer.apply([replace(item, command=replace(item.command, collection="other"))], (), NOW)
    assert ack.failure is not None
    assert ack.failure.reason is DeadReason.COLLECTION_REFUSED
    assert read(place, "shoal_jobs", ["command_id"]) == []


# --- upkeep ---------------------------------------------------------------------------------------------------


def upkeep(writer: TableWriter, now: datetime = NOW) -> list[str]:
    return run_upkeep(writer, now)


def test_the_indexes_a_reader_can_not_do_without_are_there_at_once(place: str) -> None:
    open_writer(place)
    names = {index.name for index in lance.dataset(f"{place}/scraper_vectors.lance").describe_indices()}
    assert {"content_summary_idx", "id_idx"} <= names


def test_compaction_between_commits_joins_fragments_and_disturbs_nothing(place: str) -> None:
    writer = open_writer(place, compact_commits=5)
    done: list[str] = []
    for offset in range(12):
        write(writer, document(f"prod:ds:{offset % 4}", offset, version=f"{offset:02}", content=f"text {offset}"))
        done.append(writer.maintain(NOW) or "")
    assert any("compacted vectors" in step for step in done + upkeep(writer))
    write(writer, document("prod:ds:0", 20, version="20", content="last", chunks=1))
    assert current(place) == {"prod:ds:0": "20", "prod:ds:1": "09", "prod:ds:2": "10", "prod:ds:3": "11"}
    assert set(chunks(place)) == {"prod:ds:0#0", *(f"prod:ds:{n}#{m}" for n in (1, 2, 3) for m in (0, 1))}
    assert len(lance.dataset(f"{place}/scraper_vectors.lance").get_fragments()) < 9
    assert writer.statistics().chunks == 7


def test_upkeep_is_left_undone_while_nothing_is_due(place: str) -> None:
    writer = open_writer(place)
    write(writer, document(A, 1))
    first, *others = upkeep(writer)
    assert first.startswith("kept the state")
    assert all("orphans" in step for step in others), "what a killed writer left is looked for once"
    before = lance.dataset(f"{place}/scraper_vectors.lance").version
    assert upkeep(writer) == []
    assert lance.dataset(f"{place}/scraper_vectors.lance").version == before


def test_cleanup_removes_what_is_older_than_its_age_and_nothing_younger(place: str) -> None:
    writer = open_writer(place, cleanup_age_s=600)
    write(writer, document(A, 1))
    upkeep(writer)
    upkeep(writer, NOW + FOLD_AGE)  # the new row goes into the indexes, which makes versions
    versions = len(lance.dataset(f"{place}/scraper_vectors.lance").versions())
    done = upkeep(writer, NOW + timedelta(seconds=300))
    assert [step for step in done if "removed 0 old versions of vectors" in step]
    assert len(lance.dataset(f"{place}/scraper_vectors.lance").versions()) == versions


def test_upkeep_ends_a_zombie_too_and_leaves_the_tables_alone(place: str) -> None:
    zombie = open_writer(place, compact_commits=2)
    for offset in range(4):
        write(zombie, document(A, offset, version=str(offset)))
    open_writer(place)
    before = lance.dataset(f"{place}/scraper_metadata.lance").version
    with pytest.raises(FencedError):
        zombie.maintain(NOW)
    assert lance.dataset(f"{place}/scraper_metadata.lance").version == before


def test_upkeep_goes_on_after_a_failed_step_though_no_batch_comes(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer(place)
    write(writer, document(A, 1))
    with monkeypatch.context() as patch:
        patch.setattr(Maintenance, "step", _fails)
        with pytest.raises(TransientError):
            writer.maintain(NOW)
        assert writer.maintain(NOW + timedelta(seconds=59)) is None, "not at once"
        assert "anew" in str(writer.maintain(NOW + timedelta(seconds=60)))
        with pytest.raises(TransientError):
            writer.maintain(NOW + timedelta(seconds=60))
    assert upkeep(writer, NOW + timedelta(seconds=119)) == []
    done = [step for _ in range(2) for step in upkeep(writer, NOW + timedelta(seconds=120))]
    assert any("kept the state" in step for step in done), "what was owed before"
    write(writer, document(B, 2))
    assert set(current(place)) == {A, B}


def test_a_zombie_whose_upkeep_failed_is_ended_when_it_looks_again(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zombie = open_writer(place)
    with monkeypatch.context() as patch:
        patch.setattr(Maintenance, "step", _fails)
        with pytest.raises(TransientError):
            zombie.maintain(NOW)
    open_writer(place)
    before = lance.dataset(f"{place}/scraper_metadata.lance").version
    with pytest.raises(FencedError):
        zombie.maintain(NOW + timedelta(seconds=60))
    assert lance.dataset(f"{place}/scraper_metadata.lance").version == before


def _fails(*_: object) -> None:
    raise TransientError("the storage is unwell")


def test_the_vector_index_comes_with_enough_rows_and_grows_with_them(place: str) -> None:
    writer = open_writer(place, index_rows_min=256, compact_commits=2)
    offset = hours = 0

    def fill(count: int) -> list[str]:
        nonlocal offset, hours
        for _ in range(2):
            start, offset = offset, offset + count // 2
            write(writer, *(document(f"prod:ds:{n}", n, content=f"text {n}", chunks=8) for n in range(start, offset)))
        hours += 1
        return upkeep(writer, NOW + timedelta(hours=hours))

    trained = "train of content_embedding took"
    assert not any("train" in step for step in fill(20))
    assert any(trained in step for step in fill(80))
    assert not any(trained in step for step in fill(20))
    dataset = lance.dataset(f"{place}/scraper_vectors.lance")
    assert len(dataset.get_ivf_model("content_embedding_idx").centroids) == 3, "folding rows in keeps the partitions"
    indexed = {index.name: index.num_rows_indexed for index in dataset.describe_indices()}
    assert indexed["content_embedding_idx"] >= 960
    assert writer.statistics().unindexed_rows == 0
    done = fill(120)
    assert any("1920 vectors outgrew the training on 800" in step for step in done)
    assert any(trained in step for step in done)
    centroids = lance.dataset(f"{place}/scraper_vectors.lance").get_ivf_model("content_embedding_idx").centroids
    assert len(centroids) == 7
    wanted = document("prod:ds:5", 5, content="text 5", chunks=8)
    assert wanted.vectors is not None
    nearest = {"column": "content_embedding", "q": wanted.vectors[3], "k": 1, "nprobes": 7, "refine_factor": 10}
    found = lance.dataset(f"{place}/scraper_vectors.lance").to_table(columns=["id"], nearest=nearest).to_pylist()
    assert found[0]["id"] == "prod:ds:5#3"


def test_a_long_log_with_kills_redelivery_and_upkeep_ends_in_what_it_says(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tables, not the plan: real merges with indexes, deletions, compaction and rollbacks in between."""
    draw = random.Random(20250120)
    log: list[Embedded | Deletion] = []
    expected: dict[str, Embedded] = {}
    for offset in range(120):
        name = f"prod:ds:{draw.randrange(15)}'s"
        if draw.random() < 0.15:
            log.append(deletion(name, offset))
            expected.pop(name, None)
            continue
        item = document(
            name, offset, version=f"{offset:04}", content=f"text {offset}", chunks=draw.randrange(5),
            at=position(offset),
        )  # fmt: skip
        log.append(item)
        expected[name] = item
        if draw.random() < 0.1:
            log[-1] = failed(name, offset, version=f"{offset:04}", content=f"broken {offset}")
            expected[name] = log[-1]
    for name in list(expected):  # a failed version hides no good one
        good: Embedded | None = None
        for entry in log:
            if isinstance(entry, Deletion):
                good = None if entry.document_id == name else good
            elif entry.fetched.announcement.document_id == name and entry.fetched.failure is None:
                good = entry
        expected[name] = good or expected[name]

    writer = open_writer(place, compact_commits=3)
    done = 0
    while done < len(log):
        end = min(len(log), done + draw.randrange(1, 25))
        batch = log[max(0, done - draw.randrange(0, 10)) : end]
        if draw.random() < 0.3:
            interrupt(writer, draw.choice(["vectors", "metadata"]), monkeypatch, raising(Killed()))
        try:
            write(writer, *batch)
            done = end
        except Killed:
            writer = open_writer(place, compact_commits=3)
        if draw.random() < 0.5:
            upkeep(writer)
    assert current(place) == {name: item.fetched.announcement.version for name, item in expected.items()}
    wanted = {
        f"{name}#{chunk.index}": (item.fetched.announcement.version, chunk.text)
        for name, item in expected.items()
        for chunk in (item.fetched.extraction.chunks if item.fetched.extraction else ())
    }
    assert chunks(place) == wanted
    statistics = writer.statistics()
    assert (statistics.documents, statistics.chunks) == (len(expected), len(wanted))


def test_storage_options_name_the_endpoint_and_keys_for_s3_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    assert storage_options(Settings(lancedb_path="/somewhere")) == {}
    assert storage_options(Settings(lancedb_path="s3://tables/db")) == {
        **PATIENCE,
        "aws_access_key_id": "key", "aws_secret_access_key": "secret", "aws_region": "us-east-1",
        "aws_endpoint": "http://127.0.0.1:9000", "allow_http": "true",
    }  # fmt: skip
