"""A backup put back answers as the tables did then, whoever wrote meanwhile; half a one is taken for none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

from shoal.cluster.backups import back_up, restore
from shoal.cluster.keys import create_key
from shoal.cluster.output import Format
from shoal.errors import ConfigurationError, TransientError
from shoal.serve_apps.key_store import keys_place, load_ring
from shoal.serve_apps.trail import CHANGES
from shoal.settings import Settings, load
from shoal.store import backups
from shoal.store.fsck_tables import check
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.state_files import read_state
from shoal.store.trail_files import TrailFiles
from tests.fixtures import damage
from tests.fixtures.damage import METADATA, NOW, VECTORS
from tests.fixtures.documents import document, vector


@pytest.fixture
def settings(whole: str, tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path / "home", lancedb_path=shutil.copytree(whole, str(tmp_path / "lancedb")))


def elsewhere(tmp_path: Path, name: str = "new") -> Settings:
    return load(data_dir=tmp_path / f"home-{name}", lancedb_path=str(tmp_path / name))


def silent(_: str) -> None:
    pass


async def answers(place: str) -> list[Any]:
    """Of every mode, with scores: of an index and of an exact scan alike."""
    index = await SearchIndex.open(place, {}, refresh_interval_s=0.0)
    asked = [
        SearchRequest(mode="keyword", query="many text b2", limit=50),
        SearchRequest(mode="vector", vector=vector("many 7"), limit=50),
        SearchRequest(mode="hybrid", query="many 12", vector=vector("many 12"), limit=50),
        SearchRequest(mode="sql", limit=50),
    ]
    found = [[(hit.metadata["id"], hit.metadata["version"], hit.score) for hit in (await index.search(one)).hits]
             for one in asked]  # fmt: skip
    await index.close()
    return found


def wrong(place: str) -> Any:
    report = check(
        place, {}, leaked_before=datetime.now(UTC) + timedelta(seconds=1), index_rows_min=damage.INDEX_ROWS_MIN,
        settle_s=0,
    )  # fmt: skip
    assert report is not None
    return report.findings


async def test_what_is_restored_answers_as_the_tables_did_and_is_gone_on_with(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    create_key(settings, "ci", ["read"], "", 0, Format.table)
    capsys.readouterr()
    before = await answers(settings.tables_uri)
    assert all(before)
    manifest = back_up(settings, str(tmp_path / "backup"), silent)
    damage.open_writer(settings.tables_uri).apply([document("prod:ds:later", 500, content="many")], (), NOW)
    assert await answers(settings.tables_uri) != before
    shutil.rmtree(settings.tables_uri)
    new = elsewhere(tmp_path)
    assert restore(new, str(tmp_path / "backup"), silent).manifest == manifest
    assert await answers(new.tables_uri) == before
    assert wrong(new.tables_uri) == ()
    assert [key.name for key in load_ring(keys_place(new))[0].keys] == ["ci"]
    assert len(TrailFiles(new, CHANGES).segments()) == 1
    heir = damage.open_writer(new.tables_uri)
    heir.apply([document("prod:ds:later", 500, content="many")], (), NOW)
    damage.upkeep(heir)
    assert len(damage.rows(new.tables_uri, METADATA, "id = 'prod:ds:later'")) == 1
    assert wrong(new.tables_uri) == ()


def test_a_backup_holds_the_indexes_so_nothing_is_trained_anew(settings: Settings, tmp_path: Path) -> None:
    back_up(settings, str(tmp_path / "backup"), silent)
    for table in (METADATA, VECTORS):
        made, own = (lance.dataset(f"{place}/{table}.lance") for place in (tmp_path / "backup", settings.tables_uri))
        assert {(one.name, tuple(str(part.uuid) for part in one.segments)) for one in made.describe_indices()} == {
            (one.name, tuple(str(part.uuid) for part in one.segments)) for one in own.describe_indices()
        }
        assert made.describe_indices()


def test_of_tables_that_are_written_all_the_time_each_backup_is_of_one_moment(
    settings: Settings, tmp_path: Path
) -> None:
    writer, ended, failed = damage.open_writer(settings.tables_uri, compact_commits=4), threading.Event(), []

    def write() -> None:
        try:
            for number in range(10_000):
                if ended.is_set():
                    return
                writer.apply([document(f"prod:ds:{number % 9}", 1_000 + number, version=f"w{number:05}",
                                       content=f"written {number}")], (), NOW)  # fmt: skip
                writer.maintain(NOW)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        made = [back_up(settings, str(tmp_path / f"backup{number}"), silent) for number in range(3)]
    finally:
        ended.set()
        thread.join()
    assert failed == []
    sequences = [manifest["commit_sequence"] for manifest in made]
    assert sequences == sorted(sequences)
    assert sequences[0] < sequences[-1], "nothing was written meanwhile"
    for number in range(3):
        new = elsewhere(tmp_path, f"new{number}")
        restore(new, str(tmp_path / f"backup{number}"), silent)
        damage.open_writer(new.tables_uri)  # refuses half a commit
        assert wrong(new.tables_uri) == ()


@pytest.mark.parametrize("made", [0, 2, 4])
def test_one_that_was_cut_is_no_backup_and_its_place_is_not_taken_for_another(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int
) -> None:
    copied: list[str] = []
    clone = lance.LanceDataset.deep_clone

    def cut(self: Any, target: str, *rest: Any, **more: Any) -> Any:
        if len(copied) == made:
            raise OSError("No space left on device (os error 28)")
        copied.append(target)
        return clone(self, target, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(lance.LanceDataset, "deep_clone", cut)
        with pytest.raises(ConfigurationError, match="the disk is full"):
            back_up(settings, str(tmp_path / "backup"), silent)
    with pytest.raises(ConfigurationError, match="no whole backup"):
        restore(elsewhere(tmp_path), str(tmp_path / "backup"), silent)
    if made:
        with pytest.raises(ConfigurationError, match="nothing is ever overwritten"):
            back_up(settings, str(tmp_path / "backup"), silent)


@pytest.mark.parametrize("made", [1, 4])
def test_a_restore_that_was_cut_is_no_collection_and_is_not_begun_over(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: int
) -> None:
    back_up(settings, str(tmp_path / "backup"), silent)
    new, copied = elsewhere(tmp_path), []
    clone = lance.LanceDataset.deep_clone

    def cut(self: Any, target: str, *rest: Any, **more: Any) -> Any:
        if len(copied) == made:
            raise OSError("connection reset")
        copied.append(target)
        return clone(self, target, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(lance.LanceDataset, "deep_clone", cut)
        with pytest.raises(TransientError, match="remove it and try again"):
            restore(new, str(tmp_path / "backup"), silent)
    assert copied
    with pytest.raises(Exception, match=r"metadata|half a commit"):
        damage.open_writer(new.tables_uri).apply([document("prod:ds:x", 1)], (), NOW)
    with pytest.raises(ConfigurationError, match=r"tables at .* already"):
        restore(new, str(tmp_path / "backup"), silent)


def test_half_a_batch_is_not_backed_up(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = damage.open_writer(settings.tables_uri)

    def dies(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer._tables["metadata"], "commit", dies)
    with pytest.raises(KeyboardInterrupt):
        writer.apply([document("prod:ds:half", 500)], (), NOW)
    monkeypatch.setattr(backups, "AGREE_S", 0.2)
    with pytest.raises(TransientError, match="half a batch"):
        backups.open_source(settings, agree_s=0.2)
    damage.open_writer(settings.tables_uri)  # its heir mends it
    back_up(settings, str(tmp_path / "backup"), silent)


def test_a_backup_that_was_written_to_is_refused(settings: Settings, tmp_path: Path) -> None:
    back_up(settings, str(tmp_path / "backup"), silent)
    damage.open_writer(str(tmp_path / "backup"))
    with pytest.raises(ConfigurationError, match="something wrote to them since"):
        restore(elsewhere(tmp_path), str(tmp_path / "backup"), silent)


def test_the_place_of_the_tables_themselves_and_one_with_other_keys_are_refused(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for inside in (settings.tables_uri, f"{settings.tables_uri}/", f"{settings.tables_uri}/_shoal/backup"):
        with pytest.raises(ConfigurationError, match="where the tables themselves are"):
            back_up(settings, inside, silent)
    create_key(settings, "one", ["read"], "", 0, Format.table)
    back_up(settings, str(tmp_path / "backup"), silent)
    new = elsewhere(tmp_path)
    create_key(new, "another", ["read"], "", 0, Format.table)
    capsys.readouterr()
    with pytest.raises(ConfigurationError, match="other keys are in"):
        restore(new, str(tmp_path / "backup"), silent)
    assert read_state(new, backups.MANIFEST) is None


def test_where_no_tables_are_there_is_nothing_to_back_up(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is LANCEDB_PATH right"):
        back_up(elsewhere(tmp_path), str(tmp_path / "backup"), silent)
    with pytest.raises(ConfigurationError, match="no whole backup"):
        restore(elsewhere(tmp_path), str(tmp_path / "nothing"), silent)


def test_vectors_are_restored_bit_by_bit(settings: Settings, tmp_path: Path) -> None:
    back_up(settings, str(tmp_path / "backup"), silent)
    new = elsewhere(tmp_path)
    restore(new, str(tmp_path / "backup"), silent)
    own, copied = (
        {row["id"]: row["content_embedding"] for row in damage.rows(place, VECTORS, "fence IS NULL")}
        for place in (settings.tables_uri, new.tables_uri)
    )
    assert own.keys() == copied.keys()
    assert all(np.array_equal(own[key], copied[key]) for key in own)


def test_the_commands_say_what_they_did_and_end_with_a_clear_error(settings: Settings, tmp_path: Path) -> None:
    backup, new = str(tmp_path / "backup"), str(tmp_path / "new")

    def shoal(tables: str, *words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"LANCEDB_PATH": tables, "SHOAL_DATA_DIR": str(tmp_path / "home")}
        command = [sys.executable, "-c", "from shoal.cluster.cli import main; main()", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    made = shoal(settings.tables_uri, "backup", backup, "-o", "json")
    assert made.returncode == 0, made.stderr
    restored = shoal(new, "restore", backup)
    assert restored.returncode == 0, restored.stderr
    assert f"commit {json.loads(made.stdout)['commit_sequence']}" in restored.stderr
    again = shoal(new, "restore", backup)
    assert again.returncode != 0
    assert "choose an empty place" in again.stderr
    assert "Traceback" not in again.stderr
