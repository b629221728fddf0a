"""Documents one by one over REST: read, the raw file, push, delete, and the jobs of the last two."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson
import pytest

from shoal.errors import TransientError
from shoal.records import Position
from shoal.settings import load
from shoal.sources.messages import RawMessage, parse_message

ID = "prod:nyiso_load:2025/load.json"
DOCUMENTS = "/api/v1/collections/scraper/documents"
PUSHED = {"dataset": "nyiso_load", "urn": "2025/load.csv", "data_source": "nyiso", "data_type": "load"}
AT = {"collected_at": "2025-01-20T14:30:00Z"}
BYTES = b"zone,load\nWest,1350\n"


def a_row(**fields: Any) -> dict[str, Any]:
    row = {
        "id": ID, "version": "20250120T143000Z", "sha256_hash": "a" * 64, "urn": "2025/load.json", "chunk_count": 3,
        "superseded_at": None, "s3_path": None, "version_id": None, "content_type": "application/json",
        "validation_status": "indexed", "warnings": [], "indexed_at": datetime(2025, 1, 20, tzinfo=UTC),
    }  # fmt: skip
    return {**row, **fields}


async def push(http: Any, params: dict[str, str], content: Any, headers: dict[str, str] | None = None) -> Any:
    return await http.post(
        DOCUMENTS, params=params, content=content, headers={"Content-Type": "text/csv"} | (headers or {})
    )


@pytest.fixture
def stored(stand: Any) -> Any:
    """A document whose raw file is `data` at `name` under an allowed directory."""

    def put(data: bytes, name: str = "load.json", **fields: Any) -> Path:
        place = stand.settings.home / "objects" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        stand.index.documents.rows = [a_row(s3_path=place.as_uri(), **fields)]
        return place

    return put


@pytest.fixture
def descriptors() -> Iterator[None]:
    """No file stays open."""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


# --- read -------------------------------------------------------------------------------------


async def test_a_document_is_shown_with_its_chunks_page_by_page(http: Any, stand: Any) -> None:
    stand.index.documents.rows = [a_row()]
    stand.index.documents.pieces = [{"chunk_index": n, "content_summary": f"text {n}"} for n in range(3)]
    first = (await http.get(f"{DOCUMENTS}/{ID}?chunks=2")).json()
    assert (first["document"]["id"], first["next_chunk"]) == (ID, 2)
    assert [chunk["text"] for chunk in first["chunks"]] == ["text 0", "text 1"]
    rest = (await http.get(f"{DOCUMENTS}/{ID}?chunks=2&first_chunk=2")).json()
    assert ([chunk["text"] for chunk in rest["chunks"]], rest["next_chunk"]) == (["text 2"], None)
    assert [one["version"] for one in first["versions"]] == ["20250120T143000Z"]


async def test_an_older_version_is_shown_without_chunks(http: Any, stand: Any) -> None:
    stand.index.documents.rows = [a_row(), a_row(version="old", superseded_at=datetime(2025, 1, 20, tzinfo=UTC))]
    stand.index.documents.pieces = [{"chunk_index": 0, "content_summary": "of the current one"}]
    old = (await http.get(f"{DOCUMENTS}/{ID}?version=old")).json()
    assert (old["document"]["version"], old["chunks"]) == ("old", [])


@pytest.mark.parametrize("path", [f"{DOCUMENTS}/nothing", f"{DOCUMENTS}/nothing/raw", f"{DOCUMENTS}/{ID}?version=none"])
async def test_what_is_not_there_is_404(http: Any, stand: Any, path: str) -> None:
    stand.index.documents.rows = [a_row()]
    assert (await http.get(path)).status_code == 404


async def test_who_has_the_document_gets_304(http: Any, stand: Any) -> None:
    stand.index.documents.rows = [a_row()]
    tag = (await http.get(f"{DOCUMENTS}/{ID}")).headers["etag"]
    assert (await http.get(f"{DOCUMENTS}/{ID}", headers={"If-None-Match": tag})).status_code == 304


# --- raw --------------------------------------------------------------------------------------


async def test_a_local_file_is_streamed_as_an_attachment(http: Any, stored: Any, descriptors: None) -> None:
    data = os.urandom(700_000)
    stored(data, urn='a/"odd"\r\nname é.json', content_type="text/html\r\nX: y")
    answer = await http.get(f"{DOCUMENTS}/{ID}/raw")
    assert (answer.status_code, answer.content) == (200, data)
    assert answer.headers["content-disposition"].startswith(
        'attachment; filename="_odd___name__.json"; filename*=UTF-8'
    )
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert answer.headers["x-shoal-sha256"] == "a" * 64


async def test_a_raw_file_is_never_compressed_on_its_way(http: Any, stored: Any) -> None:
    stored(b"a" * 50_000)
    answer = await http.get(f"{DOCUMENTS}/{ID}/raw", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers
    assert answer.headers["content-length"] == "50000"


async def test_a_file_that_grew_is_not_sent_longer_than_was_said(http: Any, stored: Any, descriptors: None) -> None:
    place = stored(b"a" * 300_000)
    async with http.stream("GET", f"{DOCUMENTS}/{ID}/raw") as answer:
        with place.open("ab") as file:
            file.write(b"b" * 100_000)
        assert len(await answer.aread()) == 300_000


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "file:///etc/../etc/passwd",
        "file://elsewhere/etc/passwd",
        "{objects}/../secret",
        "{objects}/link",
        "{objects}/%2e%2e/secret",
        "{objects}",
        "http://169.254.169.254/latest/meta-data",
        "gopher://x/y",
        "file:///{objects}/\x00",
    ],
)
async def test_no_location_leads_outside_of_the_allowed_places(
    http: Any, stand: Any, location: str, descriptors: None
) -> None:
    objects = stand.settings.home / "objects"
    objects.mkdir(parents=True)
    (stand.settings.home / "secret").write_text("secret")
    (objects / "link").symlink_to("/etc/passwd")
    stand.index.documents.rows = [a_row(s3_path=location.replace("{objects}", objects.as_uri()))]
    answer = await http.get(f"{DOCUMENTS}/{ID}/raw")
    assert (answer.status_code, answer.json()["type"]) == (403, "urn:shoal:problem:location-refused")
    assert "passwd" not in answer.text


async def test_a_file_that_was_taken_away_is_gone(http: Any, stored: Any) -> None:
    stored(b"{}").unlink()
    assert (await http.get(f"{DOCUMENTS}/{ID}/raw")).status_code == 410


async def test_content_that_came_in_the_message_has_no_raw_file(http: Any, stand: Any) -> None:
    stand.index.documents.rows = [a_row(s3_path=None)]
    answer = await http.get(f"{DOCUMENTS}/{ID}/raw")
    assert (answer.status_code, "in the message" in answer.json()["detail"]) == (410, True)


async def test_an_object_in_s3_is_handed_out_as_a_url_of_short_life(
    http: Any, stand: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    stand.index.documents.rows = [a_row(s3_path="s3://scrapes/nyiso/a b.json", version_id="v1")]
    answer = await http.get(f"{DOCUMENTS}/{ID}/raw")
    assert (answer.status_code, answer.headers["cache-control"]) == (307, "private, no-store")
    url = urlsplit(answer.headers["location"])
    asked = parse_qs(url.query)
    assert "scrapes" in (url.hostname or "") + url.path
    assert url.path.endswith("/nyiso/a%20b.json")
    assert asked["versionId"] == ["v1"]
    assert asked["response-content-disposition"][0].startswith("attachment")
    assert int((asked.get("X-Amz-Expires") or ["60"])[0]) <= 60
    assert "hunter2" not in answer.text + answer.headers["location"]


async def test_a_bucket_that_is_not_allowed_is_refused(stand: Any, client_of: Any, tmp_path: Path) -> None:
    stand.settings = load(data_dir=tmp_path, allowed_buckets="scrapes")
    stand.index.documents.rows = [a_row(s3_path="s3://other/key")]
    async with client_of(stand) as http:
        assert (await http.get(f"{DOCUMENTS}/{ID}/raw")).status_code == 403


# --- push -------------------------------------------------------------------------------------


async def test_a_pushed_file_is_stored_and_announced_as_the_flow_reads_it(http: Any, stand: Any) -> None:
    answer = await push(http, PUSHED | AT, content=BYTES, headers={"Content-Type": "text/csv"})
    job = answer.json()
    assert (answer.status_code, job["status"]) == (202, "accepted")
    assert answer.headers["location"] == f"/api/v1/jobs/{job['job_id']}"
    assert (job["document_id"], job["sha256_hash"]) == (
        "prod:nyiso_load:2025/load.csv", hashlib.sha256(BYTES).hexdigest()
    )  # fmt: skip
    # 1. it was announced under the document's key, in the topic that the flow reads
    assert (stand.log.topics, stand.log.keys) == (["scraper-notifications"], [b"prod:nyiso_load:2025/load.csv"])
    # 2. and the flow understands it: an announcement of these bytes, which lie where it may read
    raw = RawMessage(Position("c", "scraper-notifications", 0, 0, 0), b"k", orjson.dumps(stand.log.sent[0]), ())
    (work,) = parse_message(raw, stand.settings)
    place = Path(urlsplit(work.location).path)
    assert place.read_bytes() == BYTES
    assert place.is_relative_to(stand.settings.file_roots[0])
    assert (work.document_id, work.version, work.data_source) == (job["document_id"], "20250120T143000Z", "NYISO")


async def test_the_same_push_sent_again_is_the_same_job(http: Any, stand: Any) -> None:
    headers = {"Idempotency-Key": "once"}
    first = (await push(http, PUSHED | AT, content=BYTES, headers=headers)).json()
    again = (await push(http, PUSHED | AT, content=BYTES, headers=headers)).json()
    assert first == again
    assert stand.log.sent[0] == stand.log.sent[1]


async def test_an_idempotency_key_needs_the_version_named(http: Any, stand: Any) -> None:
    answer = await push(http, PUSHED, content=BYTES, headers={"Idempotency-Key": "once"})
    assert (answer.status_code, answer.json()["parameter"]) == (422, "collected_at")
    assert stand.log.sent == []


@pytest.mark.parametrize(
    ("changed", "parameter"),
    [
        ({"dataset": ""}, "dataset"),
        ({"dataset": "a:b"}, "dataset"),
        ({"dataset": "s3"}, "dataset"),
        ({"environment": "moon"}, "environment"),
        ({"urn": "a\x00b"}, "urn"),
        ({"urn": "a" * 201}, "urn"),
        ({"collected_at": "soon"}, "collected_at"),
        ({"collected_at": "0001-01-01"}, "collected_at"),
        ({"color": "red"}, "color"),
    ],
)
async def test_a_push_that_would_become_a_dead_letter_is_refused_at_once(
    http: Any, stand: Any, changed: dict[str, str], parameter: str
) -> None:
    answer = await push(http, PUSHED | changed, content=BYTES)
    assert (answer.status_code, answer.json()["parameter"]) == (422, parameter)
    assert stand.log.sent == []
    assert not list(stand.settings.home.glob("objects/**/*.csv"))


async def test_an_empty_file_and_a_form_are_refused(http: Any) -> None:
    assert (await push(http, PUSHED, content=b"")).json()["parameter"] == "body"
    form = await http.post(DOCUMENTS, params=PUSHED, files={"file": b"x"})
    assert (form.status_code, form.json()["type"]) == (415, "urn:shoal:problem:unsupported-media-type")


@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "Text/Plain;charset=utf-8", "application/x-www-form-urlencoded"]
)
async def test_a_page_in_a_browser_can_not_push_unasked(http: Any, stand: Any, content_type: str) -> None:
    answer = await http.post(DOCUMENTS, params=PUSHED, content=BYTES, headers={"Content-Type": content_type})
    assert (answer.status_code, stand.log.sent) == (415, [])


async def test_a_push_may_be_larger_than_other_bodies_and_has_a_bound_of_its_own(
    stand: Any, client_of: Any, limits: Any
) -> None:
    stand.limits = limits(body_bytes=10, push_bytes=3_000_000)
    data = os.urandom(2_500_000)

    async def pieces(count: int) -> Any:
        for _ in range(count):
            yield b"a" * 100_000

    async with client_of(stand) as http:
        assert (await push(http, PUSHED, content=data)).status_code == 202
        assert (await push(http, PUSHED, content=pieces(31))).status_code == 413
        assert (await http.post("/api/v1/collections/scraper/search", content=b"a" * 11)).status_code == 413
    assert len(stand.log.sent) == 1


async def test_a_log_that_is_down_takes_no_push(http: Any, stand: Any) -> None:
    stand.log.error = TransientError("Kafka is down", 3.0)
    answer = await push(http, PUSHED, content=BYTES)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


async def test_the_job_of_a_push_is_done_when_the_tables_have_that_version(http: Any, stand: Any) -> None:
    job = (await push(http, PUSHED | AT, content=BYTES)).json()
    place = f"/api/v1/jobs/{job['job_id']}"
    # 1. nothing is there yet
    assert (await http.get(place)).json()["status"] == "accepted"
    # 2. other bytes, another version, another document are not it
    mine = {"id": job["document_id"], "version": job["version"], "sha256_hash": job["sha256_hash"]}
    stand.index.documents.rows = [
        a_row(**{**mine, "sha256_hash": "b" * 64}), a_row(**{**mine, "version": "x"}), a_row(**{**mine, "id": "a:b:c"})
    ]  # fmt: skip
    assert (await http.get(place)).json()["status"] == "accepted"
    # 3. it is there
    stand.index.documents.rows.append(a_row(**mine))
    done = (await http.get(place)).json()
    assert (done["status"], done["result"]["chunk_count"]) == ("done", 3)
    # 4. or it is there, and could not be read
    stand.index.documents.rows = [a_row(**mine, validation_status="error", warnings=["no text in it"])]
    failed = (await http.get(place)).json()
    assert (failed["status"], failed["error"]) == ("failed", "no text in it")


# --- delete -----------------------------------------------------------------------------------


async def test_a_deletion_is_a_tombstone_and_its_job_is_done_when_the_tables_remember_it(http: Any, stand: Any) -> None:
    documents = stand.index.documents
    documents.rows = [a_row()]
    answer = await http.delete(f"{DOCUMENTS}/{ID}")
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    assert (stand.log.topics, stand.log.keys, stand.log.sent) == (["scraper-notifications"], [ID.encode()], [None])
    place = answer.headers["location"]
    assert (await http.get(place)).json()["status"] == "accepted"
    # an older deletion is not this one
    documents.tombstones[ID] = datetime.now(UTC) - timedelta(days=1)
    assert (await http.get(place)).json()["status"] == "accepted"
    documents.tombstones[ID] = datetime.now(UTC)
    assert (await http.get(place)).json() == {
        "job_id": answer.json()["job_id"], "status": "done", "kind": "delete", "error": None, "document_id": ID,
    }  # fmt: skip


async def test_what_is_deleted_already_is_told_and_not_deleted_again(http: Any, stand: Any) -> None:
    stand.index.documents.tombstones[ID] = datetime.now(UTC)
    answer = await http.delete(f"{DOCUMENTS}/{ID}")
    assert (answer.status_code, answer.json()["status"]) == (200, "done")
    assert stand.log.sent == []


async def test_what_never_was_is_404_and_nothing_is_sent(http: Any, stand: Any) -> None:
    assert (await http.delete(f"{DOCUMENTS}/{ID}")).status_code == 404
    assert stand.log.sent == []


@pytest.mark.parametrize(
    "job_id", ["delete-1-!!", "delete-1-AA", "delete-1-_w", "push-1-2-3", "delete-999999999999999-YTpiOmM", "delete--"]
)
async def test_the_id_of_no_job_is_404_or_refused(http: Any, job_id: str) -> None:
    assert (await http.get(f"/api/v1/jobs/{job_id}")).status_code in (404, 422)
