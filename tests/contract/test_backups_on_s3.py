"""Backups to S3, from disk and from S3, and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cluster.backups import back_up, restore
from shoal.cluster.keys import create_key
from shoal.cluster.output import Format
from shoal.errors import ConfigurationError
from shoal.serve_apps.key_store import keys_place, load_ring
from shoal.serve_apps.trail import CHANGES
from shoal.settings import Settings, load
from shoal.store.requests import SearchRequest
from shoal.store.search import SearchIndex
from shoal.store.trail_files import TrailFiles
from shoal.store.writing import storage_options
from tests.fixtures import damage
from tests.fixtures.documents import vector
from tests.fixtures.s3_server import S3Server


async def found(settings: Settings) -> list[tuple[str, float]]:
    index = await SearchIndex.open(settings.tables_uri, storage_options(settings), refresh_interval_s=0.0)
    page = await index.search(
        SearchRequest(mode="hybrid", query="many 12", vector=vector("many 12"), limit=40)
    )  # fmt: skip
    await index.close()
    return [(hit.metadata["id"], hit.score) for hit in page.hits]


async def test_from_disk_to_s3_to_s3_to_disk_everything_is_found_as_before(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    bucket = s3_server.bucket("backups")
    damage.build(str(tmp_path / "lancedb"))
    places = [str(tmp_path / "lancedb"), f"s3://{bucket}/tables", str(tmp_path / "moved")]
    settings = [load(data_dir=tmp_path / "home", lancedb_path=place) for place in places]
    create_key(settings[0], "ci", ["read"], "", 0, Format.table)
    capsys.readouterr()
    before = await found(settings[0])
    assert len(before) == 40
    for step, (own, new) in enumerate([(settings[0], settings[1]), (settings[1], settings[2])]):
        backup = f"s3://{bucket}/backup{step}"
        made = back_up(own, backup, print)
        with pytest.raises(ConfigurationError, match="nothing is ever overwritten"):
            back_up(own, backup, print)
        assert restore(new, backup, print).manifest == made
        assert await found(new) == before
        assert [key.name for key in load_ring(keys_place(new))[0].keys] == ["ci"]
        assert len(TrailFiles(new, CHANGES).segments()) == 1
