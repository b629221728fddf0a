"""S3 through boto3: the one place that knows its errors.

One client per store, shared by threads. boto3 retries requests but not the reading of a body, so `get` wraps
both: a truncated or stalled body is fetched again. What is left is told apart as a bad object (BadDocument),
a store that is unwell (TransientError), or something a person must mend (ConfigurationError).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO

import boto3.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
    ResponseStreamingError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as EndpointError,
)
from urllib3.exceptions import HTTPError

from shoal.errors import BadDocument, ConfigurationError, DeadReason, ShoalError, TransientError
from shoal.settings import Settings

ATTEMPTS = 3  # of a whole get with its body; the pipeline retries for longer, and with more patience
FIRST_DELAY_S = 0.2
CONNECTIONS_MAX = 16  # at least the threads that download in one process
_PIECE_BYTES = 64 * 1024

_TRANSIENT_CODES = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "RequestTimeoutException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "RequestTimeTooSkewed",
    "ExpiredToken",
    "OperationAborted",
    "PriorRequestNotComplete",
    "XMinioServerNotInitialized",
}
_REASONS = {
    "NoSuchKey": DeadReason.OBJECT_MISSING,
    "NoSuchVersion": DeadReason.OBJECT_MISSING,
    "MethodNotAllowed": DeadReason.OBJECT_MISSING,  # the version is a delete marker
    "InvalidArgument": DeadReason.OBJECT_MISSING,  # AWS, for a version id that is none
    "404": DeadReason.OBJECT_MISSING,
    "PreconditionFailed": DeadReason.OBJECT_MISMATCH,
    "412": DeadReason.OBJECT_MISMATCH,
    "InvalidObjectState": DeadReason.OBJECT_UNAVAILABLE,  # archived (Glacier)
    "InvalidBucketName": DeadReason.LOCATION_REFUSED,
    "KeyTooLongError": DeadReason.LOCATION_REFUSED,
    "InvalidURI": DeadReason.LOCATION_REFUSED,
}
_REMEDIES = {
    "AccessDenied": "allow s3:GetObject (and s3:ListBucket, or a missing key looks like this too)",
    "AllAccessDisabled": "the bucket is disabled",
    "NoSuchBucket": "check the bucket's name, the region and s3_endpoint_url",
    "InvalidAccessKeyId": "check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY",
    "InvalidToken": "check AWS_SESSION_TOKEN",
    "PermanentRedirect": "set AWS_REGION to the bucket's region",
    "AuthorizationHeaderMalformed": "set AWS_REGION to the bucket's region",
    "IllegalLocationConstraintException": "set AWS_REGION to the bucket's region",
}


@dataclass(frozen=True, slots=True)
class S3Object:
    """A downloaded object; `etag` without quotes, `version_id` None in unversioned buckets."""

    data: bytes
    etag: str | None
    version_id: str | None
    content_type: str | None


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One line of a listing; `etag` without quotes."""

    key: str
    size_bytes: int
    modified_at: datetime
    etag: str | None


class S3Store:
    """Gets and puts objects. Thread-safe; the client is made at the first use."""

    def __init__(self, settings: Settings, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._endpoint_url = settings.s3_endpoint_url
        self._pause = pause
        self._lock = threading.Lock()
        self._made: Any = None

    def get(
        self, bucket: str, key: str, bytes_max: int, *, version_id: str | None = None, if_match: str | None = None
    ) -> S3Object:
        """The object, whole: that version, or the current one, which must have the etag `if_match` if given.

        Raises BadDocument(OBJECT_MISSING | OBJECT_MISMATCH | TOO_LARGE | OBJECT_UNAVAILABLE |
        LOCATION_REFUSED), TransientError, ConfigurationError.
        """
        request: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if version_id is not None:
            request["VersionId"] = version_id
        elif if_match is not None:
            request["IfMatch"] = f'"{if_match}"'
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return self._get(request, bytes_max)
            except (BotoCoreError, ClientError, HTTPError) as error:
                ours = translated(error, bucket)
                # A refused request was retried by boto3 already; a broken body was not.
                if isinstance(error, ClientError) or not isinstance(ours, TransientError) or attempt == ATTEMPTS:
                    raise ours from error
            self._pause(FIRST_DELAY_S * 2**attempt * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
        raise AssertionError("unreachable")

    def _get(self, request: dict[str, Any], bytes_max: int) -> S3Object:
        response = self._client().get_object(**request)
        body, length = response["Body"], response.get("ContentLength")
        try:
            if length is not None and length > bytes_max:
                raise _too_large(length, bytes_max)
            pieces, size = [], 0
            for piece in body.iter_chunks(_PIECE_BYTES):
                size += len(piece)
                if size > bytes_max:
                    raise _too_large(size, bytes_max)
                pieces.append(piece)
        finally:
            body.close()
        if length is not None and size != length:
            raise IncompleteReadError(actual_bytes=size, expected_bytes=length)
        version_id = response.get("VersionId")
        return S3Object(
            data=b"".join(pieces),
            etag=(response.get("ETag") or "").strip('"') or None,
            version_id=version_id if version_id != "null" else None,
            content_type=response.get("ContentType"),
        )

    def is_alive(self, bucket: str) -> bool:
        """Whether the bucket answers, and lets us in. Never raises."""
        try:
            self._client().head_bucket(Bucket=bucket)
        except (BotoCoreError, ClientError, HTTPError, ShoalError):
            return False
        return True

    def objects(self, bucket: str, prefix: str, after: str = "") -> Iterator[ListedObject]:
        """The objects whose keys begin with `prefix` and come after `after`, in order, page by page.

        Raises TransientError, ConfigurationError, BadDocument(LOCATION_REFUSED).
        """
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        if after:
            request["StartAfter"] = after
        while True:
            try:
                page = self._client().list_objects_v2(**request)
            except (BotoCoreError, ClientError, HTTPError) as error:
                raise translated(error, bucket) from error
            for each in page.get("Contents", ()):
                etag = (each.get("ETag") or "").strip('"') or None
                yield ListedObject(each["Key"], int(each["Size"]), each["LastModified"], etag)
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def put(self, bucket: str, key: str, body: BinaryIO, content_type: str | None = None) -> None:
        """Store `body`, a seekable file, of at most 5 GB. Raises TransientError, ConfigurationError, BadDocument."""
        more = {"ContentType": content_type} if content_type else {}
        try:
            self._client().put_object(Bucket=bucket, Key=key, Body=body, **more)
        except (BotoCoreError, ClientError, HTTPError) as error:
            raise translated(error, bucket) from error

    def presigned(
        self, bucket: str, key: str, expires_s: int, *, version_id: str | None = None, disposition: str | None = None
    ) -> str:
        """A URL by which whoever has it may read the object for `expires_s`; asks nobody. Raises ConfigurationError."""
        request: dict[str, Any] = {"Bucket": bucket, "Key": key}
        if version_id is not None:
            request["VersionId"] = version_id
        if disposition is not None:
            # The type is not the uploader's to say: a browser must not show what it gets as a page of that store.
            request |= {"ResponseContentDisposition": disposition, "ResponseContentType": "application/octet-stream"}
        try:
            return str(self._client().generate_presigned_url("get_object", Params=request, ExpiresIn=expires_s))
        except (BotoCoreError, ClientError) as error:
            raise translated(error, bucket) from error

    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made

    def _make(self) -> Any:
        compatible: dict[str, Any] = {}
        if self._endpoint_url:
            # Compatible servers rarely have a DNS name per bucket, and not all know AWS's newer checksums.
            compatible = {
                "s3": {"addressing_style": "path"},
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            }
        config = Config(
            connect_timeout=5,
            read_timeout=30,
            max_pool_connections=CONNECTIONS_MAX,
            retries={"mode": "standard", "total_max_attempts": 3},
            user_agent_extra="shoal",
            **compatible,
        )
        try:
            # A session of our own: boto3's default one is shared by the process, and not safe to make in a thread.
            return boto3.session.Session().client("s3", endpoint_url=self._endpoint_url, config=config)
        except (BotoCoreError, ValueError) as error:
            raise ConfigurationError(f"S3: {error}; check s3_endpoint_url and the AWS_ variables") from error


def translated(error: Exception, bucket: str) -> ShoalError:
    """Our error for one of boto3's."""
    if isinstance(error, ClientError):
        return _translated_response(error, bucket)
    if isinstance(error, NoCredentialsError | PartialCredentialsError | ProfileNotFound | NoRegionError):
        return ConfigurationError(f"S3 s3://{bucket}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if isinstance(error, ParamValidationError):
        return BadDocument(DeadReason.LOCATION_REFUSED, f"S3 refuses this bucket or key: {str(error)[:200]}")
    transient = (
        EndpointError,
        HTTPClientError,
        CredentialRetrievalError,
        IncompleteReadError,
        ResponseStreamingError,
        FlexibleChecksumError,
        TokenRetrievalError,
        HTTPError,
    )
    if isinstance(error, transient):
        return TransientError(f"S3 s3://{bucket}: {str(error)[:300]}")
    return ConfigurationError(f"S3 s3://{bucket}: {str(error)[:300]}")


def _translated_response(error: ClientError, bucket: str) -> ShoalError:
    details = error.response.get("Error", {})
    code = str(details.get("Code", ""))
    about = error.response.get("ResponseMetadata", {})
    status = int(about.get("HTTPStatusCode", 0))
    text = f"S3 s3://{bucket}: {code} {str(details.get('Message', ''))[:200]}"
    if code in _TRANSIENT_CODES or status >= 500 or status == 429:
        return TransientError(text, _retry_after_s(about))
    if (reason := _REASONS.get(code)) is not None:
        return BadDocument(reason, text)
    if (remedy := _REMEDIES.get(code)) is not None or status in (401, 403) or code.startswith("KMS"):
        return ConfigurationError(f"{text}; {remedy or 'check the permissions of the AWS_ keys'}")
    # An answer nobody foresaw is about this object: others must not wait for it.
    return BadDocument(DeadReason.OBJECT_UNAVAILABLE, text)


def _retry_after_s(about: Mapping[str, Any]) -> float | None:
    try:
        return float(about.get("HTTPHeaders", {}).get("retry-after"))
    except (TypeError, ValueError):
        return None


def _too_large(size: int, bytes_max: int) -> BadDocument:
    return BadDocument(DeadReason.TOO_LARGE, f"{size} bytes or more; object_bytes_max is {bytes_max}")
