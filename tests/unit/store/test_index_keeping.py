"""The writer keeps its indexes right: builds beside it, compaction held back, every step verified, defects healed."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import lance
import psutil
import pytest

from shoal.records import Outcome
from shoal.settings import Settings
from shoal.store import index_keeping, recall
from shoal.store.index_keeping import FTS_OPTIONS, IndexKeeper
from shoal.store.index_policy import Act
from shoal.store.index_state import STATE
from shoal.store.index_views import views
from shoal.store.maintenance import Maintenance
from shoal.store.state_files import read_state, write_state
from shoal.store.tables import FencedTable
from shoal.store.verification import canary_word, coverage, text_canary, vector_canary
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, command, document
from tests.fixtures.upkeep import HANG_S, LOOK_S, upkeep

NOW = datetime(2025, 1, 20, 15, 0, tzinfo=UTC)
WIDTH = 16
HOUR = timedelta(hours=1)
VECTORS, TEXT = "content_embedding_idx", "content_summary_idx"


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "lancedb")


def open_writer(place: str, **settings: Any) -> TableWriter:
    chosen: dict[str, Any] = {"index_rows_min": 256, "compact_commits": 2, **settings}
    return TableWriter.open(place, {}, MODEL, WIDTH, settings=Settings(**chosen), now=NOW)


def write(writer: TableWriter, start: int, count: int, chunks: int = 10, version: str = "v1") -> None:
    items = [
        document(f"prod:ds:{n}", n, version=version, content=f"text {n} {version}", chunks=chunks, width=WIDTH)
        for n in range(start, start + count)
    ]
    assert all(ack.outcome is Outcome.INDEXED for ack in writer.apply(items, (), NOW))


def filled(place: str, **settings: Any) -> TableWriter:
    """600 chunks, indexed."""
    writer = open_writer(place, **settings)
    write(writer, 0, 30)
    write(writer, 30, 30)
    done = upkeep(writer, NOW)
    assert any("train of content_embedding took" in step for step in done)
    return writer


def table(place: str) -> FencedTable:
    found = FencedTable.open("vectors", f"{place}/scraper_vectors.lance", {})
    assert found is not None
    return found


def state(place: str) -> dict[str, Any]:
    found: dict[str, Any] = read_state(Settings(lancedb_path=place), STATE) or {}
    return found


def record(place: str, column: str = "content_embedding") -> dict[str, Any]:
    found: dict[str, Any] = state(place)["tables"]["vectors"][column]
    return found


def begin_build(writer: TableWriter, now: datetime = NOW) -> psutil.Process:
    """Until the child is there. It stands still from its start: a slow disk may hold us for longer than it builds."""
    children: list[int] = []
    start = subprocess.Popen

    def start_still(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = start(*args, **options)
        process.send_signal(signal.SIGSTOP)
        children.append(process.pid)
        return process

    deadline = time.monotonic() + HANG_S
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shoal.store.builds.subprocess.Popen", start_still)
        while not writer.is_building:
            assert writer.maintain(now) is not None
            assert time.monotonic() < deadline
    (child,) = children
    return psutil.Process(child)


def assert_right(place: str, chunks: int) -> None:
    found = table(place)
    assert found.count("fence IS NULL") == chunks
    for name, view in views(found).items():
        assert coverage(view) is None, name
    assert vector_canary(found, "content_embedding", views(found)[VECTORS]) is None
    assert text_canary(found, "content_summary", views(found)[TEXT]) is None


def test_an_alarm_of_recall_trains_the_index_anew_and_one_of_another_training_does_not(place: str) -> None:
    """1. The index is trained. 2. A tenth more is written. 3. Recall is measured on another training, then on this
    one. Nothing more is written meanwhile."""
    writer = filled(place)
    write(writer, 60, 10)
    upkeep(writer, NOW + HOUR)
    trained = record(place)["training"]
    measured = {
        "at": NOW.isoformat(), "recall": 0.8, "target": 0.95, "k": 10, "nprobes": None, "refine": 16,
        "queries": {"real": 64, "made": 0}, "alarm": "recall@10 is 0.800 at best", "index": {"training": "another"},
    }  # fmt: skip
    settings = Settings(lancedb_path=place)
    write_state(settings, recall.FILE, measured)
    assert not any("train of" in step for step in upkeep(writer, NOW + 2 * HOUR))
    write_state(settings, recall.FILE, measured | {"index": {"training": trained}})
    done = upkeep(writer, NOW + 3 * HOUR)
    assert any("train of content_embedding took" in step for step in done)
    found = record(place)
    assert found["trained_rows"] == 700
    assert found["training"] != trained
    assert not any("train of" in step for step in upkeep(writer, NOW + 4 * HOUR)), "that alarm was of the one before"
    assert_right(place, 700)


# --- builds beside the writer ---------------------------------------------------------------------------------


def test_writes_and_queries_go_on_while_an_index_is_built_and_compaction_waits_for_it(place: str) -> None:
    writer = open_writer(place)
    write(writer, 0, 30)
    write(writer, 30, 30)
    # 1. A build is under way. 2. Enough commits come that compaction is due. 3. Other tables are compacted, this
    # one is not, and nothing is cleaned. 4. The build ends; 5. now it is compacted.
    child = begin_build(writer)
    kind = state(place)["build"]["table"]
    assert kind == "vectors"
    for n in range(60, 66):
        write(writer, n, 1)
    done = []
    while (step := writer.maintain(NOW + 10 * HOUR)) is not None:
        done.append(step)
    assert any("compacted metadata" in step for step in done)
    assert not any("compacted vectors" in step or "old versions" in step for step in done)
    found = lance.dataset(f"{place}/scraper_vectors.lance").to_table(columns=["id"], filter="id = 'prod:ds:65#3'")
    assert found.num_rows == 1
    child.resume()
    done = upkeep(writer, NOW + 10 * HOUR)
    assert any("train of content_embedding took" in step for step in done)
    assert any("compacted vectors" in step for step in done)
    assert any("old versions of vectors" in step for step in done)
    assert_right(place, 660)


def test_rows_written_while_an_index_is_built_are_taken_in_after_it(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shoal.store.maintenance.FOLD_ROWS", 50)
    writer = open_writer(place, compact_commits=1_000)
    write(writer, 0, 60)
    # 1. A build is under way. 2. Rows come, and a fold is due that can't touch what is built. 3. The build ends, and
    # nothing more is ever written.
    child = begin_build(writer)
    write(writer, 60, 10)
    while writer.maintain(NOW) is not None:
        pass
    assert views(table(place))[TEXT].unindexed >= 100
    child.resume()
    upkeep(writer, NOW)
    found = views(table(place))
    assert [view.unindexed for view in found.values()] == [0] * len(found)
    assert_right(place, 700)


def test_a_killed_build_leaves_nothing_wrong_is_shown_and_tried_again_later(place: str) -> None:
    writer = open_writer(place)
    write(writer, 0, 30)
    write(writer, 30, 30)
    child = begin_build(writer)
    child.send_signal(signal.SIGKILL)
    done = upkeep(writer, NOW)
    assert any("failed" in step and "SIGKILL" in step for step in done)
    shown = record(place)
    assert shown["failures"] == 1
    assert "SIGKILL" in shown["last_build"]["outcome"]
    assert "waits" in shown["why"]
    assert not any("train" in step for step in upkeep(writer, NOW + timedelta(seconds=1))), "not at once"
    assert any("train of content_embedding took" in step for step in upkeep(writer, NOW + HOUR))
    assert record(place)["failures"] == 0
    assert_right(place, 600)


def test_how_far_a_build_is_is_written_every_ten_seconds_and_not_at_each_look(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = IndexKeeper({}, Settings(), place)
    written: list[int] = []
    monkeypatch.setattr(
        "shoal.store.index_state.write_state", lambda _, __, value: written.append(value["build"]["completed"])
    )

    class Fake:
        stage: dict[str, int]

        def poll(self) -> None:
            return None

    fake: Any = Fake()
    keeper._build, keeper._built = fake, (keeper._indexes[0], Act.TRAIN, 600)
    for second in range(21):
        fake.stage = {"completed": second}
        assert keeper.step(1, NOW + timedelta(seconds=second)) is None
    assert written == [0, 10, 20]


def test_a_writer_that_lost_its_tables_ends_its_build(place: str) -> None:
    from shoal.errors import FencedError

    zombie = open_writer(place)
    write(zombie, 0, 30)
    write(zombie, 30, 30)
    child = begin_build(zombie)
    open_writer(place)
    write_more = [document("prod:ds:99", 99, width=WIDTH)]
    with pytest.raises(FencedError):
        zombie.apply(write_more, (), NOW)
    zombie.close()
    deadline = time.monotonic() + HANG_S
    while child.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_orphans_build_that_lands_late_is_right_and_the_heir_goes_on(place: str) -> None:
    """It changes no row; what it does not cover is scanned, and folded in as ever."""
    from shoal.store.building import Job, build

    writer = filled(place)
    old = lance.dataset(f"{place}/scraper_vectors.lance")
    parameters = {"num_partitions": 2, "num_sub_vectors": 4}
    # 1. A build of this version is finished but for its commit; 2. the heir writes; 3. the build lands.
    write(writer, 10, 5, chunks=3, version="v2")
    write(writer, 60, 5)
    old.create_index("content_embedding", "IVF_PQ", name=VECTORS, metric="cosine", replace=True, **parameters)
    write(writer, 65, 5)
    assert_right(place, 700 - 35)
    upkeep(writer, NOW + HOUR)
    assert_right(place, 700 - 35)
    job = Job(f"{place}/scraper_vectors.lance", "train", "content_embedding", VECTORS, "IVF_PQ", parameters=parameters)
    assert build(job).error is None


def test_what_is_known_of_an_index_stands_beside_the_tables_and_outlives_the_writer(place: str) -> None:
    filled(place)
    shown = record(place)
    assert (shown["kind"], shown["rows"], shown["trained_rows"]) == ("IVF_PQ", 600, 600)
    assert shown["last_build"]["outcome"] == "verified"
    assert shown["last_build"]["cpu_s"] > 0
    assert shown["verified"]["outcome"] == "ok"
    assert record(place, "content_summary")["verified"]["outcome"] == "ok"
    heir = open_writer(place)
    upkeep(heir, NOW)
    assert record(place)["trained_rows"] == 600
    assert record(place)["trained_at"] == shown["trained_at"]
    os.unlink(f"{place}/_shoal/{STATE}")
    upkeep(open_writer(place), NOW)
    assert record(place)["trained_rows"] == 512, "from its two partitions"


def test_a_build_that_its_writer_did_not_outlive_counts_as_failed_and_is_not_begun_at_once(place: str) -> None:
    writer = open_writer(place)
    write(writer, 0, 30)
    write(writer, 30, 30)
    child = begin_build(writer)
    assert state(place)["build"]["what"] == "train"
    del writer
    gc.collect()  # as a kill does it, this closes the child's life line
    deadline = time.monotonic() + HANG_S
    while child.is_running():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    heir = open_writer(place)
    assert not any("train" in step for step in upkeep(heir, NOW))
    assert record(place)["last_build"]["outcome"] == "the writer ended while it built"
    assert any("train of content_embedding took" in step for step in upkeep(heir, NOW + HOUR))
    assert_right(place, 600)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", '{"tables": {"vectors": 3}}', '{"tables": {"vectors": {"x": {"y": 1}}}}',
        '{"tables": {"vectors": {"content_embedding": {"trained_rows": "x", "failures": "y", "last_build": {"at": 3}}}}'
        ', "requests": {"a": 1, "b": {}}, "build": []}',
    ],
)  # fmt: skip
def test_a_damaged_state_file_costs_only_what_was_remembered(place: str, text: str) -> None:
    filled(place)
    Path(f"{place}/_shoal/{STATE}").write_text(text)
    upkeep(open_writer(place), NOW)
    assert record(place)["trained_rows"] == 512


def test_another_kind_by_setting_is_built_and_flat_drops_it(place: str) -> None:
    filled(place)
    done = upkeep(open_writer(place, index_kind="ivf_rq"), NOW)
    assert any("train of content_embedding took" in step for step in done)
    assert record(place)["kind"] == "IVF_RQ"
    assert_right(place, 600)
    upkeep(open_writer(place, index_kind="flat"), NOW)
    assert VECTORS not in views(table(place))
    assert record(place)["kind"] is None


def test_a_full_text_index_made_with_other_options_is_made_anew_once(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = open_writer(place)
    write(writer, 0, 1)
    lance.dataset(f"{place}/scraper_vectors.lance").create_scalar_index(
        "content_summary", "INVERTED", name=TEXT, replace=True, with_position=True
    )
    upkeep(open_writer(place), NOW)
    details = views(table(place))[TEXT].details
    assert (details["base_tokenizer"], details["split_identifiers"]) == ("code", True)
    assert "other options" not in record(place, "content_summary")["why"]
    # A Lance that tells an option otherwise than it was given must not keep the writer busy.
    monkeypatch.setitem(index_keeping._FTS_DETAILS, "max_token_length", 41)
    done = upkeep(again := open_writer(place), NOW + HOUR) + upkeep(again, NOW + 2 * HOUR)
    assert sum("train of content_summary took" in step for step in done) == 1


def test_vectors_are_counted_anew_only_where_a_tenth_came_or_went(place: str) -> None:
    keeper = IndexKeeper({}, Settings(index_rows_min=256), place)
    (index,) = [index for index in keeper._indexes if index.column == "schema_embedding"]
    counted: list[int] = []

    class Fake:
        bound = 1_000

        def count(self, predicate: str) -> int:
            if "IS NOT NULL" in predicate:
                counted.append(self.bound)
            return self.bound

    fake: Any = Fake()
    for bound in (1_000, 999, 950, 910, 1_099, 900, 880, 1_000):
        fake.bound = bound
        keeper._vectors(index, fake, None)
    assert counted == [1_000, 900, 1_000]


def test_the_vectors_of_descriptions_are_indexed_too_and_history_has_none(place: str) -> None:
    writer = open_writer(place)
    for version in ("v1", "v2"):
        items = [
            document(f"prod:ds:{n}", n, version=version, content=f"{version} {n}", chunks=1, width=WIDTH)
            for n in range(300)
        ]
        writer.apply(items, (), NOW)
    done = upkeep(writer, NOW)
    assert any("train of schema_embedding took" in step for step in done)
    shown = state(place)["tables"]["metadata"]["schema_embedding"]
    assert (shown["rows"], shown["trained_rows"], shown["verified"]["outcome"]) == (300, 300, "ok")


# --- verification ---------------------------------------------------------------------------------------------


def _lose_files(place: str, name: str) -> None:
    for index in lance.dataset(f"{place}/scraper_vectors.lance").describe_indices():
        if index.name == name:
            for segment in index.segments:
                for path in Path(f"{place}/scraper_vectors.lance/_indices/{segment.uuid}").iterdir():
                    path.unlink()


@pytest.mark.parametrize(
    ("name", "column", "canary"),
    [(VECTORS, "content_embedding", vector_canary), (TEXT, "content_summary", text_canary)],
)
def test_an_index_that_lost_its_files_is_noticed_and_built_anew(
    place: str, name: str, column: str, canary: Callable[..., str | None]
) -> None:
    writer = filled(place)
    _lose_files(place, name)
    assert "can't be searched" in str(canary(table(place), column, views(table(place))[name]))
    # Any step that is verified meets it: here a compaction, with the fold that follows it.
    write(writer, 60, 1)
    write(writer, 61, 1)
    done = upkeep(writer, NOW)  # and no cleaning, which has a look of its own
    assert any(f"train of {column} took" in step for step in done)
    assert record(place, column)["verified"]["outcome"] == "ok"
    assert_right(place, 620)


def test_a_fold_that_was_skipped_is_noticed(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = filled(place)
    real = Maintenance._on
    skipped: list[str] = []

    def skipping(self: Any, kind: Any, epoch: int, doing: str, operation: Any) -> Any:
        if TEXT in doing and not skipped:
            skipped.append(doing)
            return None
        return real(self, kind, epoch, doing, operation)

    monkeypatch.setattr(Maintenance, "_on", skipping)
    write(writer, 60, 1)
    write(writer, 61, 1)
    done = upkeep(writer, NOW + HOUR)
    assert skipped
    assert any("train of content_summary took" in step and "verified" in step for step in done)
    assert_right(place, 620)
    assert views(table(place))[TEXT].unindexed == 0


@pytest.mark.parametrize("name", [VECTORS, TEXT])
def test_a_fold_that_fails_is_tried_again_and_only_failing_twice_is_a_defect(
    place: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from shoal.errors import TransientError

    writer = filled(place)
    keeper = writer._maintenance._keeper
    (index,) = [index for index in keeper._indexes if (index.kind, index.name) == ("vectors", name)]
    real = Maintenance._on
    fails = True

    def failing(self: Any, kind: Any, epoch: int, doing: str, operation: Any) -> Any:
        if fails and doing == f"folding rows into {name} of":
            raise TransientError("the storage is unwell")
        return real(self, kind, epoch, doing, operation)

    def fold(at: datetime) -> list[str]:
        done = []
        while index.defect is None and (step := writer.maintain(at)) is not None:
            done.append(step)
        return done

    monkeypatch.setattr(Maintenance, "_on", failing)
    # 1. One failure is no defect. 2. After a minute, with nothing more written, it is tried again and goes well.
    write(writer, 60, 1)
    write(writer, 61, 1)
    fold(NOW + HOUR)
    assert index.defect is None
    assert views(table(place))[name].unindexed
    fails = False
    assert not any("folded" in step for step in fold(NOW + HOUR + timedelta(seconds=59)))
    fold(NOW + HOUR + timedelta(seconds=60))
    assert not views(table(place))[name].unindexed
    # 3. Two failures in a row are a defect.
    fails = True
    write(writer, 62, 1)
    write(writer, 63, 1)
    fold(NOW + 2 * HOUR)
    assert index.defect is None
    fold(NOW + 2 * HOUR + timedelta(seconds=60))
    assert "leaves out" in str(index.defect)


def test_a_step_that_loses_rows_is_an_error_and_no_silent_success(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from shoal.errors import TransientError

    writer = filled(place)
    write(writer, 60, 1)
    write(writer, 61, 1)
    real = Maintenance._fold

    def losing(self: Any, kind: Any, epoch: int) -> Any:
        if kind == "vectors":
            self._on(kind, epoch, "folding", lambda dataset: dataset.delete("id = 'prod:ds:3#3'"))
        return real(self, kind, epoch)

    monkeypatch.setattr(Maintenance, "_fold", losing)
    with pytest.raises(TransientError, match="621 rows before the step and 620 after"):
        upkeep(writer, NOW + HOUR)


def test_the_canary_sees_what_the_index_holds_and_not_what_a_scan_finds(place: str) -> None:
    filled(place)
    found = table(place)
    view = views(found)[VECTORS]
    write(open_writer(place), 60, 1)
    fresh = table(place)
    (new,) = {fragment.fragment_id for fragment in fresh.dataset.get_fragments()} - set(view.fragments) - {0}
    lying = replace(view, fragments=(new,))  # it says that it covers rows which it does not
    assert "by its own vector" in str(vector_canary(fresh, "content_embedding", lying))
    assert "by its word" in str(text_canary(fresh, "content_summary", lying))


def test_a_text_index_that_is_ahead_of_the_keys_index_is_whole(place: str) -> None:
    """1. New rows are in no index. 2. The full-text index alone is built anew, as an operator asks, and holds them."""
    writer = filled(place)
    write(writer, 60, 1)
    assert writer._maintenance._keeper.doubt("vectors", TEXT)
    done = upkeep(writer, NOW)
    assert any("train of content_summary took" in step for step in done), done
    found = table(place)
    assert views(found)[TEXT].unindexed < views(found)["id_idx"].unindexed
    assert_right(place, 610)
    # Each of its rows is found, not only the few that a canary happens to draw.
    new = {fragment.fragment_id for fragment in found.dataset.get_fragments()} - set(views(found)["id_idx"].fragments)
    assert text_canary(found, "content_summary", replace(views(found)[TEXT], fragments=tuple(new))) is None


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("the load forecast of NYISO", "forecast"), ("into these there", None), ("", None), ("東京の電力", None),
        ("load2024 forecast_x x_demand peak", "forecast"), ("a b c", None), ("naïve plain", "plain"),
        ("doesn't shouldn't", None), ("should this", None), ("they themselves own wind", "themselves"),
    ],
)  # fmt: skip
def test_the_canarys_word_is_one_that_the_index_must_hold(text: str, word: str | None) -> None:
    assert canary_word(text) == word


def test_the_canarys_words_are_those_that_the_index_keeps() -> None:
    kept = {name: value for name, value in FTS_OPTIONS.items() if name != "with_position"}
    words = """
        about after against because before being below between both doesn during each from further hadn having here
        into mightn more most once other ourselves should shouldn some such than that their themselves then there
        these they this through until very were what when where which while whom will with would wouldn yourself wind
    """.split()  # noqa: SIM905
    dropped = [word for word in words if not lance.tokenize(word, **kept)]
    assert "doesn" in dropped
    assert [word for word in words if canary_word(word) is None] == dropped


# --- what operators ask ---------------------------------------------------------------------------------------


def jobs(place: str) -> dict[str, tuple[str, Any]]:
    rows = lance.dataset(f"{place}/shoal_jobs.lance").to_table(filter="fence IS NULL").to_pylist()
    return {row["command_id"]: (row["status"], json.loads(row["result"] or "{}")) for row in rows}


def ask(writer: TableWriter, command_id: str, kind: str, body: object, offset: int = 0) -> Outcome:
    (ack,) = writer.apply([command(command_id, kind, body, offset=offset)], (), NOW)
    return ack.outcome


def test_a_rebuild_that_was_asked_for_is_done_and_its_job_says_so(place: str) -> None:
    writer = filled(place)
    assert ask(writer, "r1", "index_rebuild", {"columns": ["content_embedding", "content_summary"]}) is Outcome.INDEXED
    assert jobs(place)["r1"][0] == "accepted"
    upkeep(writer, NOW)
    status, result = jobs(place)["r1"]
    assert status == "done"
    assert "verified" in result["content_embedding"]
    assert "verified" in result["content_summary"]
    assert state(place)["requests"]["r1"]["state"] == "done"
    assert ask(writer, "r1", "index_rebuild", {"columns": []}) is Outcome.UNCHANGED, (
        "delivered again it is not done again"
    )
    assert jobs(place)["r1"][0] == "done"
    assert_right(place, 600)


def test_a_request_outlives_the_writer_that_accepted_it(place: str) -> None:
    writer = filled(place)
    ask(writer, "r1", "index_rebuild", {"columns": ["content_embedding"]})
    heir = open_writer(place)
    assert ask(heir, "r1", "index_rebuild", {"columns": ["content_embedding"]}) is Outcome.UNCHANGED
    upkeep(heir, NOW)
    assert jobs(place)["r1"][0] == "done"


def test_optimize_compacts_and_folds_everything_in(place: str) -> None:
    writer = filled(place, compact_commits=1_000)
    for n in range(60, 70):
        write(writer, n, 1)
    assert views(table(place))[VECTORS].unindexed > 0
    ask(writer, "o1", "index_optimize", {})
    upkeep(writer, NOW)
    assert jobs(place)["o1"][0] == "done"
    found = views(table(place))
    assert [view.unindexed for view in found.values()] == [0] * len(found)
    assert len(found[VECTORS].segments) == 1
    assert_right(place, 700)


def test_other_commands_do_not_make_a_rebuild_begin_anew(place: str) -> None:
    writer = filled(place, compact_commits=1_000)
    ask(writer, "r1", "index_rebuild", {"columns": ["content_embedding", "content_summary"]})
    done: list[str] = []
    deadline = time.monotonic() + HANG_S
    # Between any two steps comes another command.
    for number in count():
        if jobs(place)["r1"][0] == "done":
            break
        assert time.monotonic() < deadline
        step = writer.maintain(NOW)
        if step is None:  # a build goes on
            time.sleep(LOOK_S)
            continue
        done.append(step)
        ask(writer, f"other-{number}", "fix_mark", {"fix_ids": ["no such fix"], "status": "approved"}, offset=number)
    assert sum("train of content_embedding took" in step for step in done) == 1
    assert sum("train of content_summary took" in step for step in done) == 1
    assert_right(place, 600)


def test_other_commands_do_not_repeat_the_compaction_of_an_open_optimize(place: str) -> None:
    writer = filled(place, compact_commits=1_000)
    keeper = writer._maintenance._keeper
    ask(writer, "o1", "index_optimize", {})
    assert keeper.new_optimize(), "it wants a compaction"
    ask(writer, "other", "fix_mark", {"fix_ids": ["no such fix"], "status": "approved"}, offset=1)
    assert not keeper.new_optimize(), "that compaction was wanted before"
    ask(writer, "o2", "index_optimize", {}, offset=2)
    assert keeper.new_optimize()


def test_a_rebuild_below_the_size_says_that_there_is_nothing_to_do(place: str) -> None:
    writer = open_writer(place)
    ask(writer, "r1", "index_rebuild", {"columns": ["content_embedding"]})
    upkeep(writer, NOW)
    assert jobs(place)["r1"] == (
        "done", {"content_embedding": "nothing to do: 0 vectors: searched exactly below 256"},
    )  # fmt: skip


def test_a_request_that_names_no_index_is_refused_and_a_failing_one_says_why(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = filled(place)
    assert ask(writer, "bad", "index_rebuild", {"columns": ["fence"]}) is Outcome.DEAD_LETTERED
    assert jobs(place)["bad"][0] == "failed"
    monkeypatch.setattr("shoal.store.builds.sys.executable", "/bin/false")
    ask(writer, "r1", "index_rebuild", {"columns": ["content_embedding"]}, offset=7)
    for hours in range(1, 5):
        upkeep(writer, NOW + hours * HOUR)
    status, result = jobs(place)["r1"]
    assert status == "failed"
    assert "ended with 1" in result["content_embedding"]
    assert_right(place, 600)
