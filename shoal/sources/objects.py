"""Reading what was announced: from disk, from S3, or inline; always whole, bounded, and verified.

What the announcement says of the object (version, etag, size, md5) is checked against what is there. An
object that was overwritten after a scraper announced it is another object: a dead letter, or a warning by
setting. After an S3 event it is only an event that came late: the current bytes are read, with a warning, and
the newer event finds them unchanged.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shoal.errors import BadDocument, DeadReason
from shoal.records import Announcement
from shoal.settings import Settings
from shoal.sources.ids import Location, parse_location
from shoal.sources.local_files import read_file
from shoal.sources.s3 import S3Store
from shoal.sources.s3_events import is_s3_event_id
from shoal.sources.verification import MD5, Expected, mismatch

_S3_ETAG = re.compile(r"[0-9a-f]{32}(-[1-9][0-9]{0,4})?")


@dataclass(frozen=True, slots=True)
class ObjectBody:
    """The bytes as stored, and what the store says of them. `warnings` belong to the document's row."""

    data: bytes
    etag: str | None = None
    version_id: str | None = None
    content_type: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Stored bytes."""
        return len(self.data)


class ObjectReader:
    """Reads announced objects. Blocking; thread-safe."""

    def __init__(self, settings: Settings, s3: S3Store | None = None) -> None:
        self._settings = settings
        self._s3 = s3 or S3Store(settings)

    def read(self, announcement: Announcement) -> ObjectBody:
        """The verified body. Raises BadDocument(LOCATION_REFUSED | OBJECT_MISSING | TOO_LARGE | EMPTY |
        OBJECT_MISMATCH | OBJECT_UNAVAILABLE | ACCESS_REFUSED), TransientError, ConfigurationError."""
        etag = _plain_etag(announcement.etag)
        warnings = []
        if announcement.etag and etag is None:
            warnings.append("the announced etag is not of an etag's shape and was ignored")
        body = self._body(announcement, etag)
        if not body.data:
            raise BadDocument(DeadReason.EMPTY, "the object has no bytes")
        stale = self._stale(announcement, body, etag)
        if stale is not None:
            if self._settings.checksum_mismatch == "dead_letter" and not is_s3_event_id(announcement.document_id):
                raise BadDocument(DeadReason.OBJECT_MISMATCH, f"the object is not what was announced: {stale}")
            warnings.append(f"the object is not what was announced: {stale}")
        return ObjectBody(body.data, body.etag, body.version_id, body.content_type, tuple(warnings))

    def is_alive(self, dependency: str) -> bool:
        """Whether `s3://bucket` or the local disk answers us at all, whatever it makes of a single object. Never
        raises: an answer that refuses us is none."""
        scheme, _, bucket = dependency.partition("://")
        if scheme == "s3":
            return self._s3.is_alive(bucket)
        try:
            return scheme != "file" or any(next(root.iterdir(), root) for root in self._settings.file_roots)
        except OSError:
            return False

    def _body(self, announcement: Announcement, etag: str | None) -> ObjectBody:
        bytes_max = self._settings.object_bytes_max
        if announcement.location is None:
            data = announcement.content or b""
            if len(data) > bytes_max:
                raise BadDocument(DeadReason.TOO_LARGE, f"{len(data)} bytes; object_bytes_max is {bytes_max}")
            return ObjectBody(data)
        location = parse_location(announcement.location)
        if location.path is not None:
            return ObjectBody(read_file(location.path, self._settings.file_roots, bytes_max))
        return self._from_s3(location, announcement.version_id, etag, bytes_max)

    def _from_s3(self, location: Location, version_id: str | None, etag: str | None, bytes_max: int) -> ObjectBody:
        bucket, key = location.bucket or "", location.key or ""
        if self._settings.allowed_buckets and bucket not in self._settings.allowed_buckets:
            raise BadDocument(DeadReason.LOCATION_REFUSED, f"bucket {bucket!r} is not among allowed_buckets")
        try:
            found = self._s3.get(bucket, key, bytes_max, version_id=version_id, if_match=etag)
        except BadDocument as error:
            if error.reason is not DeadReason.OBJECT_MISMATCH:
                raise
            # What is there now decides: with its etag, `_stale` says what the setting makes of it.
            found = self._s3.get(bucket, key, bytes_max)
        return ObjectBody(found.data, found.etag, found.version_id, found.content_type)

    def _stale(self, announcement: Announcement, body: ObjectBody, etag: str | None) -> str | None:
        unfolded_bytes_max = self._settings.decompressed_bytes_max
        is_md5 = etag is not None and MD5.fullmatch(etag) is not None
        # Some stores' etags are no md5, and a file has none: then an etag that is an md5 is held against the bytes.
        if etag is not None and etag != body.etag and (is_md5 or body.etag is not None):
            wrong = mismatch(body.data, Expected(md5=etag), unfolded_bytes_max) if is_md5 else "another etag"
            if wrong is not None:
                return f"etag {body.etag} stored, {etag} announced" if body.etag else wrong
        expected = Expected(announcement.expected_size_bytes, announcement.expected_md5)
        return mismatch(body.data, expected, unfolded_bytes_max)


def _plain_etag(etag: str | None) -> str | None:
    """An etag without quotes and weakness mark, or None where it can't be one of S3's."""
    plain = (etag or "").removeprefix("W/").strip('"').lower()
    return plain if _S3_ETAG.fullmatch(plain) else None
