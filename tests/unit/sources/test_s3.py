"""S3's faults, scripted: a server that answers what each test tells it to, and boto3's errors as they come."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, ConnectTimeoutError, NoCredentialsError, ReadTimeoutError

from shoal.errors import BadDocument, ConfigurationError, DeadReason, TransientError
from shoal.settings import load
from shoal.sources.s3 import ATTEMPTS, S3Store, translated

BODY = b"0123456789" * 100


class Scripted(ThreadingHTTPServer):
    """Answers each request with the next of `script`: bytes to send of a body that is announced as `length`."""

    daemon_threads = True

    def __init__(self) -> None:
        self.script: list[tuple[int, bytes, int]] = []
        self.requests: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    server: Scripted

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        status, body, length = self.server.script.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"abc"')
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scripted]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    server = Scripted()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def store(server: Scripted, tmp_path: Path) -> S3Store:
    endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    return S3Store(load(data_dir=tmp_path, s3_endpoint_url=endpoint), pause=lambda _: None)


def test_a_truncated_body_is_fetched_again(server, store):
    server.script = [(200, BODY[:100], len(BODY)), (200, BODY[:999], len(BODY)), (200, BODY, len(BODY))]
    found = store.get("bucket", "key", 10_000)
    assert (found.data, found.etag) == (BODY, "abc")
    assert len(server.requests) == 3


def test_a_body_that_stays_truncated_is_an_unwell_store_not_a_bad_document(server, store):
    server.script = [(200, BODY[:100], len(BODY))] * ATTEMPTS
    with pytest.raises(TransientError):
        store.get("bucket", "key", 10_000)
    assert len(server.requests) == ATTEMPTS


def test_a_body_over_the_limit_is_not_read(server, store):
    server.script = [(200, b"", 5_000_000_000)]
    with pytest.raises(BadDocument) as caught:
        store.get("bucket", "key", 10_000)
    assert caught.value.reason is DeadReason.TOO_LARGE
    assert len(server.requests) == 1


def answer(code: str, status: int, **headers: str) -> ClientError:
    response = {
        "Error": {"Code": code, "Message": "said so"},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return ClientError(response, "GetObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "status"),
    [("SlowDown", 503), ("InternalError", 500), ("RequestTimeTooSkewed", 403), ("ExpiredToken", 400), ("Odd", 502),
     ("TooManyRequests", 429)],
)  # fmt: skip
def test_an_unwell_store_is_transient(code, status):
    assert isinstance(translated(answer(code, status), "b"), TransientError)


def test_the_store_may_say_how_long_to_wait():
    error = translated(answer("SlowDown", 503, **{"retry-after": "7"}), "b")
    assert isinstance(error, TransientError)
    assert error.retry_after_s == 7


@pytest.mark.parametrize(
    ("code", "status"),
    [("AccessDenied", 403), ("NoSuchBucket", 404), ("InvalidAccessKeyId", 403), ("SignatureDoesNotMatch", 403),
     ("PermanentRedirect", 301), ("KMS.DisabledException", 400), ("SomethingNew", 403)],
)  # fmt: skip
def test_what_a_person_must_mend_names_the_bucket_and_the_remedy(code, status):
    error = translated(answer(code, status), "feeds")
    assert isinstance(error, ConfigurationError)
    assert "feeds" in str(error)
    assert "; " in str(error)


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        ("NoSuchKey", 404, DeadReason.OBJECT_MISSING),
        ("404", 404, DeadReason.OBJECT_MISSING),
        ("NoSuchVersion", 404, DeadReason.OBJECT_MISSING),
        ("PreconditionFailed", 412, DeadReason.OBJECT_MISMATCH),
        ("InvalidObjectState", 403, DeadReason.OBJECT_UNAVAILABLE),
        ("KeyTooLongError", 400, DeadReason.LOCATION_REFUSED),
        ("NeverSeen", 400, DeadReason.OBJECT_UNAVAILABLE),
    ],
)
def test_what_is_wrong_with_one_object_is_a_bad_document(code, status, reason):
    error = translated(answer(code, status), "b")
    assert isinstance(error, BadDocument)
    assert error.reason is reason


def test_network_failures_are_transient_and_missing_keys_are_not():
    assert isinstance(translated(ReadTimeoutError(endpoint_url="x"), "b"), TransientError)
    assert isinstance(translated(ConnectTimeoutError(endpoint_url="x"), "b"), TransientError)
    assert isinstance(translated(NoCredentialsError(), "b"), ConfigurationError)
