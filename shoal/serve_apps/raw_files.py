"""The raw file behind a document: where it is, and how it is handed out. Blocking; for threads.

Objects in S3 are handed out as a presigned URL of short life, so their bytes pass by; local files are opened, within
the allowed directories and nowhere else, and streamed. The rules are those by which the flow reads (`allowed_roots`,
`allowed_buckets`): a row of the tables can't name a place that a message could not. Fails with BadDocument (its reason
says what is wrong with the place), TransientError, ConfigurationError.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from shoal.errors import BadDocument, DeadReason
from shoal.settings import Settings
from shoal.sources.ids import parse_location
from shoal.sources.local_files import open_file
from shoal.sources.s3 import S3Store

URL_LIFE_S = 60
"""Long enough to follow a redirect, too short to be passed on; a download that has begun goes on."""
PIECE_BYTES = 256 * 1024
_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,60}/[A-Za-z0-9!#$&^_.+-]{1,60}(; ?charset=[A-Za-z0-9_.:-]{1,40})?")


@dataclass(frozen=True, slots=True)
class Presigned:
    """Whoever has `url` may read the object for `URL_LIFE_S`."""

    url: str


@dataclass(slots=True)
class OpenFile:
    """A local file to be streamed; `close` it. `content_type`: as it was told, or of bytes."""

    descriptor: int
    size_bytes: int
    content_type: str
    disposition: str
    sha256: str

    def read(self, left: int) -> bytes:
        """The next bytes, at most `left`; b'' where the file has become shorter."""
        return os.read(self.descriptor, min(PIECE_BYTES, left))

    def close(self) -> None:
        """Safe to repeat."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class RawFiles:
    """One per process; thread-safe."""

    def __init__(self, settings: Settings, s3: S3Store | None = None) -> None:
        self._roots, self._buckets = settings.file_roots, settings.allowed_buckets
        self._s3 = s3 or S3Store(settings)

    def find(self, row: Mapping[str, Any]) -> Presigned | OpenFile:
        """The file of a metadata row."""
        if not row.get("s3_path"):
            raise BadDocument(DeadReason.OBJECT_MISSING, "its content came in the message itself: no file was stored")
        location = parse_location(row["s3_path"])
        disposition = attachment(str(row.get("urn") or row.get("id") or "file"))
        if location.path is None:
            bucket, key = location.bucket or "", location.key or ""
            if self._buckets and bucket not in self._buckets:
                raise BadDocument(DeadReason.LOCATION_REFUSED, f"bucket {bucket!r} is not among allowed_buckets")
            version = row.get("version_id") or None
            url = self._s3.presigned(bucket, key, URL_LIFE_S, version_id=version, disposition=disposition)
            return Presigned(url)
        descriptor, size = open_file(location.path, self._roots)
        told = str(row.get("content_type") or "")
        kind = told if _TYPE.fullmatch(told) else "application/octet-stream"
        return OpenFile(descriptor, size, kind, disposition, str(row.get("sha256_hash") or ""))


def attachment(name: str) -> str:
    """The Content-Disposition (RFC 6266) that has a browser keep a file under `name` and not show it."""
    base = name.rsplit("/", 1)[-1][-150:] or "file"
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", base).lstrip(".") or "file"
    exact = quote(base.encode(errors="replace"), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"
