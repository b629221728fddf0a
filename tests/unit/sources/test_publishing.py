from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import zstandard

from shoal.errors import ConfigurationError
from shoal.records import Announcement, Position
from shoal.settings import Settings
from shoal.sources.messages import RawMessage, parse_message
from shoal.sources.objects import ObjectReader
from shoal.sources.publishing import Prepared, prepare


def understood(prepared: Prepared, settings: Settings) -> Announcement:
    """The message as a reader will see it, its object read and verified."""
    position = Position("c", settings.kafka_topics[0], 0, 0, 0)
    (work,) = parse_message(RawMessage(position, prepared.key, prepared.value), settings)
    assert isinstance(work, Announcement)
    assert work.document_id.encode() == prepared.key
    assert ObjectReader(settings).read(work).size == prepared.size_bytes
    return work


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "pile"
    for name in ("b/two.json", "a/one.csv", "a/.hidden", ".git/config", "top.txt"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name)
        os.utime(top / name, (1_737_383_400, 1_737_383_400))
    (top / "a" / "again").symlink_to(top)
    (top / "broken").symlink_to(top / "nowhere")
    os.mkfifo(top / "fifo")
    return top


def test_a_directory_is_walked_in_order_without_hidden_files_links_to_directories_and_pipes(tree, settings):
    assert [prepared.urn for prepared in prepare([tree], settings)] == ["top.txt", "a/one.csv", "b/two.json"]


def test_a_plain_file_is_described_by_its_directories_and_its_time(tree, settings):
    _, one, _ = (understood(prepared, settings) for prepared in prepare([tree], settings))
    assert (one.dataset, one.data_source, one.data_type) == ("a", "PILE", "other")
    assert one.version == "20250120T143000Z"
    assert one.collected_at == datetime(2025, 1, 20, 14, 30, tzinfo=UTC)
    assert one.content_type == "text/csv"
    assert one.document_id == "prod:a:a/one.csv"


def test_what_is_given_wins(tree, settings):
    (one,) = prepare(
        [tree / "a/one.csv"], settings, dataset="load", source="nyiso", data_type="load", environment="dev"
    )
    found = understood(one, settings)
    assert found.document_id == "dev:load:one.csv"
    assert (found.data_source, found.data_type) == ("NYISO", "load")


def test_a_directory_called_like_the_reserved_dataset_can_be_published(tmp_path, settings):
    (tmp_path / "s3").mkdir()
    (tmp_path / "s3" / "a b:c.json").write_text("{}")
    (one,) = prepare([tmp_path / "s3"], settings)
    assert understood(one, settings).dataset == "s3_files"


def test_an_object_never_changes_after_it_was_announced(tree, settings):
    (first,) = prepare([tree / "top.txt"], settings)
    (tree / "top.txt").write_text("changed")
    (second,) = prepare([tree / "top.txt"], settings)
    assert first.document_id == second.document_id
    assert first.location != second.location
    understood(first, settings)
    understood(second, settings)


def test_publishing_again_stores_nothing_twice(tree, settings):
    for _ in range(2):
        list(prepare([tree], settings))
    stored = [path for path in (settings.home / "objects").rglob("*") if path.is_file()]
    assert len(stored) == 3


def test_a_path_that_is_not_there_or_a_wrong_target_is_told_before_anything_is_stored(tree, settings):
    with pytest.raises(ConfigurationError, match="nowhere"):
        prepare([tree, tree / "nowhere"], settings)
    with pytest.raises(ConfigurationError, match="s3://bucket/prefix"):
        prepare([tree], settings, to="gs://bucket")
    assert not list((settings.home / "objects").rglob("*/*"))


MakeManifest = Callable[..., Path]


@pytest.fixture
def manifest(tmp_path: Path) -> MakeManifest:
    """Writes a manifest directory: `archived` and `beside` map a file's name to its bytes."""

    def make(archived: dict[str, bytes], beside: dict[str, bytes], extra: list[dict[str, Any]] = []) -> Path:  # noqa: B006
        top = tmp_path / "manifest"
        top.mkdir()
        rows = [
            {
                "file": name, "sha256": hashlib.sha256(data).hexdigest(), "url": "", "source": "CAISO",
                "data_type": "load", "dataset": "caiso_load", "publish_time": "2017-09-04T19:40:15Z",
                "content_type": "text/csv", "status": None, "licence": "MIT",
            }
            for name, data in (archived | beside).items()
        ]  # fmt: skip
        (top / "MANIFEST.json").write_text(json.dumps({"set": "dev", "files": rows + extra}))
        for name, data in beside.items():
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_bytes(data)
        tarred = io.BytesIO()
        with tarfile.open(fileobj=tarred, mode="w") as tar:
            for name, data in archived.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
            link = tarfile.TarInfo("link.csv")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        (top / "files-x.tar.zst").write_bytes(zstandard.compress(tarred.getvalue()))
        return top

    return make


def test_a_manifest_row_describes_its_file_wherever_it_lies(manifest, settings):
    top = manifest({"caiso/a.csv": b"a"}, {"caiso/b.csv": b"b"})
    for path in (top, top / "MANIFEST.json"):
        found = [understood(prepared, settings) for prepared in prepare([path], settings)]
        assert [work.urn for work in found] == ["caiso/a.csv", "caiso/b.csv"]
        first = found[0]
        assert (first.dataset, first.data_source, first.data_type) == ("caiso_load", "CAISO", "load")
        assert first.version == "20170904T194015Z"
        assert first.content_type == "text/csv"
        assert first.source_url is None


def test_what_a_manifest_names_and_nobody_has_is_told_and_the_others_go_on(manifest, settings):
    ghosts = [
        {"file": name, "source": "s", "dataset": "d", "publish_time": "2017-09-04T19:40:15Z"}
        for name in ("ghost.csv", "../outside.csv", "/etc/passwd", "link.csv")
    ]
    top = manifest({"a.csv": b"a"}, {}, ghosts)
    (top.parent / "outside.csv").write_text("not ours")
    problems: list[str] = []
    assert [prepared.urn for prepared in prepare([top], settings, on_problem=problems.append)] == ["a.csv"]
    assert len(problems) == 4
    assert all(ghost["file"] in problem for ghost, problem in zip(ghosts, problems, strict=True))


def test_a_file_that_is_not_what_its_manifest_says_is_told_and_not_stored(manifest, settings):
    top = manifest({"a.csv": b"a"}, {"b.csv": b"b"})
    (top / "b.csv").write_bytes(b"other")
    problems: list[str] = []
    assert [prepared.urn for prepared in prepare([top], settings, on_problem=problems.append)] == ["a.csv"]
    assert "sha256" in problems[0]
    assert not list((settings.home / "objects").glob(".draft-*"))


def test_a_damaged_archive_costs_only_what_cannot_be_read(manifest, settings):
    top = manifest({"a.csv": b"a"}, {"b.csv": b"b"})
    archive = top / "files-x.tar.zst"
    archive.write_bytes(archive.read_bytes()[:20])
    problems: list[str] = []
    assert [prepared.urn for prepared in prepare([top], settings, on_problem=problems.append)] == ["b.csv"]
    assert any("files-x.tar.zst" in problem for problem in problems)


@pytest.mark.parametrize("content", ["not json", "[]", '{"files": [{"file": "a"}]}', '{"files": 3}'])
def test_a_malformed_manifest_is_named(tmp_path, settings, content):
    (tmp_path / "MANIFEST.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"MANIFEST\.json"):
        list(prepare([tmp_path], settings))
