"""The S3 server of the tests keeps the promises that the store's commits stand on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError

from tests.fixtures.s3_server import S3Server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "conditional-put"


@pytest.fixture
def client(s3_server: S3Server) -> Iterator[S3Client]:
    s3_server.bucket(BUCKET)
    client = s3_server.client()
    yield client
    client.close()


def put(client: S3Client, key: str, body: bytes, **conditions: Any) -> str:
    """The new ETag, or the error's code."""
    try:
        return client.put_object(Bucket=BUCKET, Key=key, Body=body, **conditions)["ETag"]
    except ClientError as error:
        return error.response["Error"]["Code"]


def read(client: S3Client, key: str) -> bytes:
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def test_if_none_match_creates_an_object_only_once(client: S3Client) -> None:
    assert put(client, "once", b"first", IfNoneMatch="*").startswith('"')
    assert put(client, "once", b"second", IfNoneMatch="*") == "PreconditionFailed"
    assert read(client, "once") == b"first"


def test_if_match_replaces_only_the_version_that_was_read(client: S3Client) -> None:
    etag = put(client, "swap", b"first")
    assert put(client, "swap", b"stale", IfMatch='"00000000000000000000000000000000"') == "PreconditionFailed"
    assert read(client, "swap") == b"first"
    assert put(client, "swap", b"second", IfMatch=etag).startswith('"')
    assert put(client, "swap", b"third", IfMatch=etag) == "PreconditionFailed"
    assert read(client, "swap") == b"second"


def test_if_match_on_a_missing_object_is_refused(client: S3Client) -> None:
    assert put(client, "absent", b"x", IfMatch='"00000000000000000000000000000000"') in {
        "NoSuchKey",
        "PreconditionFailed",
    }


def test_of_concurrent_conditional_puts_one_wins(s3_server: S3Server, client: S3Client) -> None:
    if s3_server.kind == "moto":
        pytest.skip("moto checks the condition and writes in two steps")
    with ThreadPoolExecutor(16) as pool:
        for round_ in range(5):
            key = f"race-{round_}"
            created = list(pool.map(lambda n, key=key: put(client, key, b"%d" % n, IfNoneMatch="*"), range(16)))
            winners = [n for n, answer in enumerate(created) if answer.startswith('"')]
            assert len(winners) == 1
            assert read(client, key) == b"%d" % winners[0]
            etag = created[winners[0]]
            swapped = list(pool.map(lambda n, key=key, e=etag: put(client, key, b"new %d" % n, IfMatch=e), range(16)))
            assert sum(answer.startswith('"') for answer in swapped) == 1


def test_missing_keys_and_buckets_are_told_apart(client: S3Client) -> None:
    for bucket, key, code in ((BUCKET, "never", "NoSuchKey"), ("no-such-bucket", "never", "NoSuchBucket")):
        with pytest.raises(ClientError) as caught:
            client.get_object(Bucket=bucket, Key=key)
        assert caught.value.response["Error"]["Code"] == code


def test_keys_may_hold_equals_signs_spaces_and_umlauts(client: S3Client) -> None:
    key = "nyiso/year=2025/month=01/day=20/Übersicht load+forecast %.csv"
    put(client, key, b"x")
    assert read(client, key) == b"x"
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix="nyiso/")["Contents"]
    assert [entry.get("Key") for entry in listed] == [key]
