"""API keys and the audit trail with the tables in S3: the server's conditions do what a lock does on disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest

from shoal.cluster.keys import create_key
from shoal.cluster.output import Format
from shoal.serve_apps.key_store import KeyUse, keys_place, load_ring, read_use, use_place
from shoal.serve_apps.trail import CHANGES, SegmentWriter, entry, prune, record_now
from shoal.serve_apps.trail_search import AuditQuery, TrailSearch
from shoal.settings import Settings, load
from shoal.store.trail_files import TrailFiles
from tests.fixtures.s3_server import S3Server

BUCKET = "keys-and-trail"


@pytest.fixture
def settings(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    s3_server.bucket(BUCKET)
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    return load(data_dir=tmp_path, lancedb_path=f"s3://{BUCKET}/{tmp_path.name}")


def test_keys_that_are_made_at_once_are_all_kept_and_a_stale_version_replaces_nothing(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: create_key(settings, f"n{number}", ["read"], "", 0, Format.table), range(4)))
    place = keys_place(settings)
    ring, version = load_ring(place)
    assert sorted(key.name for key in ring.keys) == ["n0", "n1", "n2", "n3"]
    keys = [line for line in capsys.readouterr().out.splitlines() if line.startswith("shoal_")]
    assert all(ring.verify(key, datetime.now(UTC)) for key in keys)
    assert len(keys) == 4
    assert place.replace(b"{}", version)
    assert not place.replace(b"[]", version)
    assert not place.replace(b"[]", None)
    use = KeyUse(use_place(settings))
    now = datetime.now(UTC)
    assert use.is_due("a", now)
    use.write()
    assert read_use(use_place(settings).read().data) == {"a": now}


def test_a_segment_grows_and_is_asked(settings: Settings) -> None:
    now = datetime.now(UTC)
    record_now(settings, entry("change", now, call="by another"))
    writer = SegmentWriter(TrailFiles(settings, CHANGES), lambda: now)
    for number in range(3):
        writer.write(orjson.dumps(entry("change", now, call=f"c{number}")) + b"\n")
    files = TrailFiles(settings, CHANGES)
    assert len(files.segments()) == 2
    found = TrailSearch(settings).read(AuditQuery.read({}), now)
    assert {one["call"] for one in found["entries"]} == {"by another", "c0", "c1", "c2"}
    old = datetime(2100, 1, 1, tzinfo=UTC)
    assert prune({CHANGES: files}, settings, old) == 2
    assert files.segments() == []
