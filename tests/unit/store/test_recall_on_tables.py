"""Recall measured and held on real tables with an index that is poor on purpose: 2 sub-vectors for 32 numbers."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lance
import lancedb
import numpy as np
import pyarrow as pa
import pytest
import pytest_asyncio
from lancedb.index import IvfPq

from shoal.errors import TransientError
from shoal.records import FENCE_ID
from shoal.settings import Settings
from shoal.store import recall_check, search
from shoal.store.fence import Fence
from shoal.store.filters import Equals
from shoal.store.index_views import index_name, training_of
from shoal.store.query_recorder import QueryRecorder
from shoal.store.query_sample import FILE_PREFIX, QuerySample
from shoal.store.reading import session_of
from shoal.store.recall import DEFAULT, FILE, REFINES, Floats, Setting, statistics_of, tuning_of
from shoal.store.recall_measuring import measure, real_queries
from shoal.store.requests import SearchRequest
from shoal.store.schemas import (
    KEYS,
    CollectionFacts,
    TableKind,
    metadata_table,
    revision,
    table_schema,
    table_uri,
    vectors_table,
)
from shoal.store.search import SearchIndex
from shoal.store.state_files import list_states, read_state, write_state
from shoal.store.tables import FencedTable

WIDTH, ROWS, PARTITIONS = 32, 6_000, 24
FACTS = CollectionFacts("hash:32", WIDTH)
KINDS: dict[TableKind, str] = {"metadata": metadata_table("scraper"), "vectors": vectors_table("scraper")}
COLUMN = "content_embedding"


def scattered(rows: int, seed: int) -> Floats:
    """Vectors without clusters: neighbours lie in many partitions."""
    return np.random.default_rng(seed).standard_normal((rows, WIDTH)).astype(np.float32)


def gathered_far_away(rows: int, seed: int) -> Floats:
    """Vectors in one narrow cone: an index trained on the others has one code for nearly all of them."""
    rng = np.random.default_rng(seed)
    return (10 * np.eye(WIDTH)[0] + rng.standard_normal((rows, WIDTH))).astype(np.float32)


def chunk_rows(vectors: Floats, first: int = 0) -> pa.Table:
    schema = table_schema("vectors", FACTS)
    ids = [f"d{number}#0" for number in range(first, first + len(vectors))]
    known = {
        "id": pa.array(ids),
        "metadata_id": pa.array([one.removesuffix("#0") for one in ids]),
        "document_version": pa.array(["1"] * len(ids)),
        "data_source": pa.array(["NYISO"] * len(ids)),
        COLUMN: pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH),
    }
    columns = [known.get(field.name, pa.nulls(len(ids), field.type)) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def write_tables(place: Path) -> None:
    """Chunks with a document each, and as many documents to come; the fence in both."""
    fence = Fence(1, 7, datetime(2026, 1, 20, tzinfo=UTC), FACTS.model, FACTS.width, FACTS.layout)
    documents = [
        {"revision": revision(f"d{number}", "1"), "id": f"d{number}", "version": "1"} for number in range(2 * ROWS)
    ]
    filled: dict[TableKind, list[dict[str, Any]]] = {"metadata": documents, "vectors": []}
    for kind, name in KINDS.items():
        schema = table_schema(kind, FACTS)
        rows = [{KEYS[kind]: FENCE_ID, "fence": fence.to_json()}, *filled[kind]]
        full = pa.Table.from_pylist([dict.fromkeys(schema.names) | row for row in rows], schema)
        lance.write_dataset(full, table_uri(str(place), name))
    add(str(place), scattered(ROWS, seed=1), first=0)


def add(place: str, vectors: Floats, first: int) -> None:
    lance.write_dataset(chunk_rows(vectors, first), table_uri(place, KINDS["vectors"]), mode="append")


def dataset(settings: Settings) -> Any:
    return lance.dataset(table_uri(settings.tables_uri, KINDS["vectors"]))


def train(settings: Settings, sub_vectors: int = 2) -> None:
    dataset(settings).create_index(
        COLUMN, "IVF_PQ", name=index_name(COLUMN), metric="cosine", num_partitions=PARTITIONS,
        num_sub_vectors=sub_vectors, sample_rate=32, replace=True,
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Tables with a trained index: made once, copied for each test."""
    template = tmp_path_factory.getbasetemp() / "trained-tables"
    if not template.exists():
        write_tables(template)
        train(Settings(lancedb_path=str(template)))
    return Settings(lancedb_path=str(shutil.copytree(template, tmp_path / "tables")))


@pytest_asyncio.fixture
async def index(settings: Settings) -> AsyncIterator[SearchIndex]:
    opened = await SearchIndex.open(settings.tables_uri, settings=settings, refresh_interval_s=0.0)
    yield opened
    await opened.close()


def now() -> datetime:
    return datetime.now(UTC)


def ask(settings: Settings, queries: Floats, replica: str = "a", at: datetime | None = None) -> None:
    """Leaves questions as a search replica does."""
    sample = QuerySample(256)
    for query in queries:
        sample.note(query)
    write_state(settings, f"{FILE_PREFIX}{replica}.json", sample.to_json(at or now(), WIDTH))


# --- measuring --------------------------------------------------------------------------------


async def test_few_partitions_miss_neighbours_and_the_ladder_finds_a_setting_that_holds(settings: Settings) -> None:
    ask(settings, scattered(32, seed=2))
    found = await measure(settings, now(), queries=32)
    by_setting = {rung.setting: rung.recall for rung in found.rungs}
    assert (found.real, found.made, found.commit_sequence) == (32, 0, 7)
    assert found.index is not None
    assert (found.index.type, found.index.partitions, found.index.indexed_rows) == (
        "IvfPq",
        PARTITIONS,
        ROWS + 1,
    )  # the fence
    table = FencedTable.open("vectors", table_uri(settings.tables_uri, KINDS["vectors"]), {})
    assert table is not None
    assert found.index.training == training_of(table, index_name(COLUMN))[0]  # as the writer names it
    assert by_setting[Setting(5, 4)] < 0.9
    assert found.before is not None
    assert found.before.setting == DEFAULT
    assert found.chosen is not None
    assert found.chosen.recall >= 0.95
    # Trained by chance: the least setting that holds may read more than a search should, and then that is said.
    assert (found.alarm is not None) == (found.chosen.setting.refine > REFINES[-1])


async def test_the_figure_is_that_of_a_search_by_hand(settings: Settings) -> None:
    queries = scattered(8, seed=3).astype(np.float16).astype(np.float32)
    ask(settings, queries)
    found = await measure(settings, now(), queries=8)
    vectors = scattered(ROWS, seed=1)
    units = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    table = await (await lancedb.connect_async(settings.tables_uri)).open_table(KINDS["vectors"])
    hits = 0
    for query in queries:
        true = {f"d{number}#0" for number in np.argsort(-(units @ query))[:10]}
        asked = table.query().nearest_to(query).column(COLUMN).distance_type("cosine").limit(256).nprobes(5)
        hits += len(true & {row["id"] for row in (await asked.refine_factor(4).to_list())[:10]})
    rung = next(rung for rung in found.rungs if rung.setting == Setting(5, 4))
    assert rung.recall == pytest.approx(hits / 80)


async def test_stored_rows_stand_in_for_questions_that_nobody_asked(settings: Settings) -> None:
    ask(settings, scattered(5, seed=4))
    ask(settings, scattered(50, seed=5), replica="dead", at=now() - timedelta(days=2))
    found = await measure(settings, now(), queries=16, sweep=True)
    assert (found.real, found.made) == (5, 11)
    assert list_states(settings, FILE_PREFIX) == [f"{FILE_PREFIX}a.json"]  # whoever measures clears up


async def test_an_index_that_no_longer_fits_raises_the_alarm_or_looks_harder_and_training_mends_it(
    settings: Settings,
) -> None:
    """1. The index holds. 2. As many rows come that are nothing like those it was trained on, and are folded in.
    3. Questions about them. 4. A new training."""
    ask(settings, scattered(16, seed=6))
    sound = await measure(settings, now(), queries=16)
    assert sound.chosen is not None
    add(settings.tables_uri, gathered_far_away(ROWS, seed=7), first=ROWS)
    dataset(settings).optimize.optimize_indices(index_names=[index_name(COLUMN)], num_indices_to_merge=1)
    ask(settings, gathered_far_away(16, seed=8))
    decayed = await measure(settings, now(), queries=16)
    assert decayed.index is not None
    assert decayed.index.indexed_rows == 2 * ROWS + 1
    assert sound.index is not None
    assert decayed.index.training == sound.index.training  # folding trains nothing
    assert decayed.before is not None
    assert decayed.before.recall < 0.95
    assert decayed.chosen is not None
    assert decayed.alarm is not None
    assert decayed.chosen.setting.refine > sound.chosen.setting.refine
    train(settings, sub_vectors=16)
    mended = await measure(settings, now(), queries=16)
    assert mended.index is not None
    assert mended.index.training != sound.index.training
    assert mended.alarm is None


async def test_without_an_index_every_search_is_exact(settings: Settings) -> None:
    dataset(settings).drop_index(index_name(COLUMN))
    found = await measure(settings, now(), queries=4)
    assert (found.index, found.chosen, found.alarm) == (None, None, None)
    assert found.to_json()["recall"] == 1.0


async def test_an_index_that_could_not_be_trained_counts_as_none(tmp_path: Path) -> None:
    settings = Settings(lancedb_path=str(tmp_path))
    lance.write_dataset(chunk_rows(scattered(20, seed=1)), table_uri(str(tmp_path), KINDS["vectors"]))
    table = await (await lancedb.connect_async(tmp_path)).open_table(KINDS["vectors"])
    await table.create_index(COLUMN, config=IvfPq(num_partitions=1, num_sub_vectors=2))
    assert len(await table.list_indices()) == 1
    assert (await measure(settings, now(), queries=4)).index is None


# --- the process ------------------------------------------------------------------------------


def start_check(settings: Settings) -> subprocess.Popen[str]:
    """As the supervisor starts it: stdin stays open while it may go on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shoal.store.recall_check"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(recall_check.line_for(settings))
    process.stdin.flush()
    return process


def run_check(settings: Settings) -> tuple[int, str, str]:
    process = start_check(settings)
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        code = process.wait(100)
        return code, process.stdout.read(), process.stderr.read()
    finally:
        process.communicate()


def test_the_process_measures_writes_what_it_found_and_rests_until_it_is_due(settings: Settings) -> None:
    version = dataset(settings).version
    code, said, _ = run_check(settings)
    assert (code, said.split(" ")[0]) == (0, "recall@10")
    written = read_state(settings, FILE)
    figures, tuning = statistics_of(written), tuning_of(written)
    assert figures is not None
    assert (figures.queries_real, figures.queries_made) == (0, 64)
    assert tuning is not None
    assert (tuning.partitions, tuning.indexed_rows) == (PARTITIONS, ROWS + 1)
    assert recall_check.check(settings, now()) == "not due"
    assert dataset(settings).version == version  # it only reads
    train(settings)  # another training is measured at once
    assert recall_check.check(settings, now()) != "not due"


def test_a_look_removes_old_samples_though_no_measuring_is_due(settings: Settings) -> None:
    assert recall_check.check(settings, now()).startswith("recall@10")
    for name in ("a", "b"):
        write_state(settings, f"{FILE_PREFIX}{name}.json", {})
    at_s = time.time() - 86_460
    os.utime(Path(settings.tables_uri) / "_shoal" / f"{FILE_PREFIX}a.json", (at_s, at_s))
    assert recall_check.check(settings, now()) == "not due"
    assert list_states(settings, FILE_PREFIX) == [f"{FILE_PREFIX}b.json"]


def test_the_process_ends_with_whoever_started_it(settings: Settings) -> None:
    process = start_check(settings)
    out, _ = process.communicate(timeout=100)  # closes its stdin
    assert (process.returncode, out, read_state(settings, FILE)) == (0, "", None)


def test_absent_tables_are_said_and_nothing_is_written(tmp_path: Path) -> None:
    settings = Settings(lancedb_path=str(tmp_path / "none"))
    code, _, said = run_check(settings)
    assert (code, "no tables yet" in said) == (3, True)
    assert read_state(settings, FILE) is None


# --- searches ---------------------------------------------------------------------------------


def tuned(settings: Settings, setting: Setting, at: datetime | None = None, depth: int = 256) -> None:
    value = {
        "at": (at or now()).isoformat(), "nprobes": setting.nprobes, "refine": setting.refine, "depth": depth,
        "index": {"type": "IvfPq", "partitions": PARTITIONS, "training": "x", "indexed_rows": ROWS},
    }  # fmt: skip
    write_state(settings, FILE, value)


async def plan(index: SearchIndex, **asked: Any) -> str:
    vector = scattered(1, seed=9)[0]
    page = await index.search(SearchRequest(mode="vector", vector=vector, limit=5, explain=True, **asked))
    assert page.explain is not None
    return str(page.explain["vector_plan"])


async def test_searches_take_the_setting_that_was_measured(settings: Settings, index: SearchIndex) -> None:
    every = "minimum_nprobes=20, maximum_nprobes=None"
    assert every in await plan(index)
    tuned(settings, Setting(7, 3))
    await index._tables.tunings.look()
    found = await plan(index)
    assert "minimum_nprobes=7, maximum_nprobes=Some(7)" in found
    assert f"k={3 * 256}" in found
    assert every in await plan(index, filters=Equals("data_source", "NYISO"))  # that was not measured


async def test_a_setting_that_is_stale_or_damaged_or_absent_is_not_taken(
    settings: Settings, index: SearchIndex
) -> None:
    for spoil in (
        lambda: tuned(settings, Setting(7, 3), at=now() - timedelta(days=2)),
        lambda: write_state(settings, FILE, {"nprobes": 10**9, "refine": -1}),
        lambda: (Path(settings.tables_uri) / "_shoal" / FILE).write_bytes(b"{"),
        lambda: (Path(settings.tables_uri) / "_shoal" / FILE).unlink(),
    ):
        tuned(settings, Setting(7, 3))
        await index._tables.tunings.look()
        assert "minimum_nprobes=7" in await plan(index)
        spoil()
        await index._tables.tunings.look()
        assert "maximum_nprobes=None" in await plan(index)


async def test_partitions_that_hold_too_few_rows_never_shorten_an_answer(
    settings: Settings, index: SearchIndex
) -> None:
    tuned(settings, Setting(1, 1), depth=2_000)
    await index._tables.tunings.look()
    sizes = [
        len(await index._tables.nearest("vectors", query, "", ("id",), 900, narrow=False)) for query in scattered(4, 9)
    ]
    assert sizes == [900] * 4  # a partition has 250


async def test_distances_of_indexed_schema_vectors_are_exact_too(settings: Settings) -> None:
    """Apis are compared by the metadata's vectors, and shown with their distance."""
    vectors, column = scattered(600, seed=11), "schema_embedding"
    schema = table_schema("metadata", FACTS)
    known = {
        "revision": pa.array([f"s{number}@1" for number in range(600)]),
        column: pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), WIDTH),
    }
    rows = [known.get(field.name, pa.nulls(600, field.type)) for field in schema]
    place = table_uri(settings.tables_uri, KINDS["metadata"])
    lance.write_dataset(pa.Table.from_arrays(rows, schema=schema), place, mode="append").create_index(
        column, "IVF_PQ", name=index_name(column), metric="cosine", num_partitions=4, num_sub_vectors=2, sample_rate=32
    )
    index = await SearchIndex.open(settings.tables_uri, settings=settings)
    query = scattered(1, seed=12)[0]
    found = await index._tables.nearest("metadata", query, "fence IS NULL", ("revision",), 100, narrow=False)
    units = vectors / np.linalg.norm(vectors, axis=1)[:, None]
    exact = 1 - units @ (query / np.linalg.norm(query))
    assert found[0]["revision"] == f"s{np.argmin(exact)}@1"
    shown = {int(row["revision"][1:-2]): row["_distance"] for row in found}
    assert shown == pytest.approx({number: exact[number] for number in shown}, abs=1e-5)
    await index.close()


async def test_a_search_survives_a_new_training_and_the_cleanup_of_the_old_index(settings: Settings) -> None:
    """1. A reader has searched by index. 2. The index is trained anew, the table rewritten, and everything older is
    deleted at once. 3. Its next search finds what it found."""
    index = await SearchIndex.open(settings.tables_uri, settings=settings, refresh_interval_s=3_600.0)
    request = SearchRequest(mode="vector", vector=scattered(1, seed=1)[0], limit=5)
    before = await index.search(request)
    train(settings)
    dataset(settings).optimize.compact_files()
    train(settings)
    dataset(settings).cleanup_old_versions(timedelta(0), delete_unverified=True)
    after = await index.search(request)
    assert after.hits[0].metadata["id"] == before.hits[0].metadata["id"] == "d0"
    await index.close()


async def test_searches_leave_their_questions_and_filtered_ones_do_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "QueryRecorder", partial(QueryRecorder, write_s=0.0))
    index = await SearchIndex.open(settings.tables_uri, settings=settings)
    asked = scattered(3, seed=10)
    await index.search(SearchRequest(mode="vector", vector=asked[0], filters=Equals("data_source", "NYISO")))
    await index.search(SearchRequest(mode="vector", vector=asked[1]))
    while not (found := real_queries(settings, WIDTH, 10, now())):
        await asyncio.sleep(0.01)
    assert found[0] == pytest.approx(asked[1], abs=1e-2)
    assert len(found) == 1
    assert len(list_states(settings, FILE_PREFIX)) == 1
    await index.close()
    assert list_states(settings, FILE_PREFIX) == []


async def test_a_sample_that_is_being_written_at_the_end_does_not_outlive_it() -> None:
    files: dict[str, Any] = {}
    began, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def write(name: str, value: Any) -> None:
        loop.call_soon_threadsafe(began.set)
        assert go.wait(60)
        files[name] = value

    recorder = QueryRecorder(8, WIDTH, write, files.pop, write_s=0.0)
    recorder.note(scattered(1, seed=1)[0])
    await began.wait()
    loop.call_soon(go.set)
    await recorder.close()
    assert files == {}


async def test_a_setting_of_none_keeps_no_question(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    recorder = QueryRecorder(0, WIDTH, lambda name, _: written.append(name), written.append, write_s=0.0)
    recorder.note(scattered(1, seed=1)[0])
    await asyncio.sleep(0)
    await recorder.close()
    assert (recorder._due, written) == (None, [])


async def test_many_questions_are_written_once_and_a_store_that_is_away_stops_nothing() -> None:
    written: list[Any] = []
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    def write(_: str, value: Any) -> None:
        written.append(value)
        loop.call_soon_threadsafe(done.set)
        raise TransientError("away")

    recorder = QueryRecorder(8, WIDTH, write, lambda _: None, write_s=0.0)
    for query in scattered(20, seed=1):
        recorder.note(query)
    await done.wait()
    assert [len(value["vectors"]) for value in written] == [8]
    await recorder.close()


def test_the_caches_are_as_large_as_the_settings_say() -> None:
    small = Settings(index_cache_bytes=20 * 1024**2, metadata_cache_bytes=17 * 1024**2)
    with pytest.MonkeyPatch.context() as patch:
        made: list[dict[str, int]] = []
        patch.setattr(lancedb, "Session", lambda **sizes: made.append(sizes))
        session_of(small)
    assert made == [{"index_cache_size_bytes": 20 * 1024**2, "metadata_cache_size_bytes": 17 * 1024**2}]
