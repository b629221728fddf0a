"""Reading announced objects: what holds for a file on disk holds for an object in S3, word for word."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shoal.errors import BadDocument, ConfigurationError, DeadReason
from shoal.records import Announcement, Position
from shoal.settings import Settings, load
from shoal.sources.objects import ObjectReader

DATA = b'{"load": [1, 2, 3]}' * 50
MD5 = hashlib.md5(DATA).hexdigest()


@dataclass
class Place:
    """Somewhere objects can be put: `put(name, bytes)` returns a location."""

    settings: Settings
    put: Callable[[str, bytes], str]
    missing: str

    def reader(self, **changed: Any) -> ObjectReader:
        return ObjectReader(self.settings.model_copy(update=changed))


@pytest.fixture(params=["file", pytest.param("s3", marks=pytest.mark.integration)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    if request.param == "file":
        settings = load(data_dir=tmp_path)
        root = tmp_path / "objects"
        root.mkdir()

        def put_file(name: str, data: bytes) -> str:
            (root / name).write_bytes(data)
            return (root / name).as_uri()

        yield Place(settings, put_file, (root / "missing").as_uri())
        return
    server = request.getfixturevalue("s3_server")
    for name, value in server.env().items():
        monkeypatch.setenv(name, value)
    bucket, client = server.bucket("objects-contract"), server.client()

    def put_object(name: str, data: bytes) -> str:
        client.put_object(Bucket=bucket, Key=name, Body=data)
        return f"s3://{bucket}/{name}"

    yield Place(load(data_dir=tmp_path), put_object, f"s3://{bucket}/missing")
    client.close()


def announced(location: str | None, **known: Any) -> Announcement:
    at = datetime(2025, 1, 20, tzinfo=UTC)
    plain = Announcement(
        Position("c", "t", 0, 0, 0), "scraper", "prod:d:u", "", location, None, "d", "prod", "u", "S", "t", "d", at
    )
    return replace(plain, **known)


def refused(reader: ObjectReader, announcement: Announcement) -> DeadReason:
    with pytest.raises(BadDocument) as caught:
        reader.read(announcement)
    return caught.value.reason


@pytest.mark.parametrize("name", ["plain.json", "with blank ü+%41.json"])
def test_the_bytes_come_back_as_they_were_stored(place, name):
    location = place.put(name, DATA)
    body = place.reader().read(announced(location))
    assert (body.data, body.size, body.warnings) == (DATA, len(DATA), ())


def test_size_and_md5_that_fit_the_stored_bytes_are_accepted(place):
    location = place.put("a.json", DATA)
    body = place.reader().read(announced(location, expected_size_bytes=len(DATA), expected_md5=MD5, etag=f'"{MD5}"'))
    assert body.warnings == ()


def test_size_and_md5_that_fit_the_unfolded_bytes_are_accepted(place):
    packed = gzip.compress(DATA)
    location = place.put("a.json.gz", packed)
    body = place.reader().read(announced(location, expected_size_bytes=len(DATA), expected_md5=MD5))
    assert (body.data, body.warnings) == (packed, ())


@pytest.mark.parametrize("wrong", [{"expected_md5": "0" * 32}, {"expected_size_bytes": 1}, {"etag": "0" * 32}], ids=str)
def test_what_is_not_what_was_announced_is_dead_or_warned_of_by_setting(place, wrong):
    location = place.put("a.json", DATA)
    assert refused(place.reader(), announced(location, **wrong)) is DeadReason.OBJECT_MISMATCH
    body = place.reader(checksum_mismatch="warn").read(announced(location, **wrong))
    assert body.data == DATA
    assert len(body.warnings) == 1


def test_a_truncated_object_does_not_fit_its_md5(place):
    location = place.put("a.json", DATA[:-1])
    assert refused(place.reader(), announced(location, expected_md5=MD5)) is DeadReason.OBJECT_MISMATCH


def test_an_etag_that_can_be_none_is_ignored_with_a_warning(place):
    body = place.reader().read(announced(place.put("a.json", DATA), etag="v1-of-something"))
    assert "etag" in body.warnings[0]


def test_a_missing_object_is_missing(place):
    assert refused(place.reader(), announced(place.missing)) is DeadReason.OBJECT_MISSING


def test_an_object_without_bytes_is_empty(place):
    assert refused(place.reader(), announced(place.put("empty", b""))) is DeadReason.EMPTY


def test_an_object_over_the_limit_is_too_large_and_one_at_the_limit_is_not(place):
    location = place.put("big", b"x" * 1025)
    assert refused(place.reader(object_bytes_max=1024), announced(location)) is DeadReason.TOO_LARGE
    assert place.reader(object_bytes_max=1025).read(announced(location)).size == 1025


def test_an_object_overwritten_after_its_event_is_read_as_it_is_now(place):
    """The newer event follows and finds it unchanged; a burst of overwrites must not flood the dead letters."""
    event = announced(place.put("a.json", DATA), document_id="prod:s3:bucket/a.json", etag="0" * 32)
    body = place.reader().read(event)
    assert body.data == DATA
    assert "not what was announced" in body.warnings[0]


def test_an_inline_body_obeys_the_same_limits(tmp_path):
    reader = ObjectReader(load(data_dir=tmp_path, object_bytes_max=1024))
    assert reader.read(announced(None, content=DATA)).data == DATA
    assert refused(reader, announced(None, content=b"x" * 1025)) is DeadReason.TOO_LARGE
    assert refused(reader, announced(None)) is DeadReason.EMPTY


@pytest.fixture
def s3(s3_server, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in s3_server.env().items():
        monkeypatch.setenv(name, value)
    return s3_server


def test_a_bucket_that_is_not_allowed_is_refused_without_asking_it(s3, tmp_path):
    reader = ObjectReader(load(data_dir=tmp_path, allowed_buckets="ours,theirs", s3_endpoint_url="http://127.0.0.1:9"))
    assert refused(reader, announced("s3://elsewhere/key")) is DeadReason.LOCATION_REFUSED


def test_a_bucket_that_is_not_there_is_for_a_person_to_mend(s3, tmp_path):
    with pytest.raises(ConfigurationError, match="no-such-bucket-here"):
        ObjectReader(load(data_dir=tmp_path)).read(announced("s3://no-such-bucket-here/key"))


def test_a_wrong_key_is_for_a_person_to_mend(s3, tmp_path, monkeypatch):
    bucket = s3.bucket("objects-contract")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    if s3.kind == "moto":
        pytest.skip("moto does not check signatures")
    with pytest.raises(ConfigurationError, match="AWS_SECRET_ACCESS_KEY"):
        ObjectReader(load(data_dir=tmp_path)).read(announced(f"s3://{bucket}/key"))


def test_an_old_version_is_read_where_the_event_names_it(s3, tmp_path):
    client, bucket = s3.client(), s3.bucket("objects-versions")
    try:
        client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    except client.exceptions.ClientError:
        pytest.skip("this server keeps no versions here")
    first = client.put_object(Bucket=bucket, Key="k", Body=b"first")
    client.put_object(Bucket=bucket, Key="k", Body=b"second")
    client.close()
    reader = ObjectReader(load(data_dir=tmp_path))
    old = reader.read(announced(f"s3://{bucket}/k", version_id=first["VersionId"], etag=first["ETag"]))
    assert (old.data, old.version_id, old.warnings) == (b"first", first["VersionId"], ())
    assert reader.read(announced(f"s3://{bucket}/k")).data == b"second"


def test_a_place_that_answers_is_alive_and_one_that_refuses_us_is_not(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheme, _, rest = place.missing.partition("://")
    dependency = f"{scheme}://{rest.partition('/')[0]}"
    assert place.reader().is_alive(dependency)
    if scheme == "s3":
        assert not place.reader().is_alive("s3://no-such-bucket-here")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        assert not place.reader().is_alive(dependency)
    else:
        place.settings.file_roots[0].rmdir()
        assert not place.reader().is_alive(dependency)
