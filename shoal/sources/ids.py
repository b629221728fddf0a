"""Document ids, and what an object's location tells: pure functions, the one place that knows their shapes.

`{environment}:{dataset}:{urn}` names a scraped document, `{environment}:s3:{bucket}/{key}` an object known
only from an S3 event (shoal.sources.s3_events); so no dataset may be called `s3` or contain a colon: two
documents would share an id.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

from shoal.errors import BadDocument, DeadReason

S3_DATASET = "s3"
_BUCKET = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._\-]{1,254}", re.ASCII)


def document_id(environment: str, dataset: str, urn: str) -> str:
    """The id of a scraped document."""
    return f"{environment}:{dataset}:{urn}"


@dataclass(frozen=True, slots=True)
class Location:
    """Where an object is: `bucket` and `key` for s3, `path` (absolute, unescaped) for file; the others None."""

    scheme: str
    bucket: str | None = None
    key: str | None = None
    path: PurePosixPath | None = None


def parse_location(location: str) -> Location:
    """Splits `s3://bucket/key` (the key literally, as S3 has it) or `file:///path` (percent-decoded).

    Raises BadDocument(LOCATION_REFUSED) for any other scheme or shape.
    """
    scheme, separator, rest = location.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("s3", "file"):
        shown = scheme[:20] if separator else "none"
        raise BadDocument(
            DeadReason.LOCATION_REFUSED, f"scheme {shown!r}: a location is s3://bucket/key or file:///path"
        )
    if "\0" in rest:
        raise BadDocument(DeadReason.LOCATION_REFUSED, "the location contains a NUL character")
    if scheme == "s3":
        bucket, _, key = rest.partition("/")
        if not _BUCKET.fullmatch(bucket) or not key or len(key.encode()) > 1024:
            raise BadDocument(
                DeadReason.LOCATION_REFUSED, "an s3 location needs a bucket name and a key of at most 1024 bytes"
            )
        return Location("s3", bucket=bucket, key=key)
    host, slash, tail = rest.partition("/")
    path = unquote(slash + tail)
    if host not in ("", "localhost") or not slash or "\0" in path:
        raise BadDocument(DeadReason.LOCATION_REFUSED, "a file location is file:///absolute/path on this machine")
    return Location("file", path=PurePosixPath(path))
