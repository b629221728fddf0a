"""Files of the audit trail beside the tables: `{tables}/_shoal/audit/{kind}/{day}/{segment}.jsonl`, on disk or in S3.

A segment has one owner, which only ever makes it longer: on disk by appending and fsync, in S3, which can't append, by
putting it whole again (segments are small for that). So no two processes write one file, and what was there stays.
Whoever reads takes what is whole: a line that a dying owner left unfinished is skipped by its reader.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from shoal.errors import TransientError
from shoal.settings import Settings
from shoal.store.state_files import DIRECTORY, s3_client, s3_place

TRAIL = "audit"
SEGMENTS_MAX = 20_000
"""Of one kind, as listed at once; a day of a busy replica makes some tens."""

_DAY = re.compile(r"\d{8}")
_NAME = re.compile(r"[0-9A-Za-z-]{1,100}\.jsonl")


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file. Ordered by when it was begun."""

    day: str  # YYYYMMDD, UTC
    name: str
    size_bytes: int = 0


class TrailFiles:
    """The segments of one kind. Blocking; every method raises TransientError."""

    def __init__(self, settings: Settings, kind: str) -> None:
        self._endpoint = settings.s3_endpoint_url
        self._bucket, self._prefix = s3_place(settings, f"{TRAIL}/{kind}")
        self._root = Path(settings.tables_uri) / DIRECTORY / TRAIL / kind
        self.in_s3 = self._bucket is not None

    def append(self, segment: Segment, before: bytes, more: bytes) -> None:
        """Make `segment`, which holds `before`, longer by `more`; durable when it returns."""
        with _unwell(f"audit segment {segment.name}"):
            if self.in_s3:
                s3_client(self._endpoint).put_object(
                    Bucket=self._bucket, Key=self._key(segment), Body=before + more, ContentType="application/jsonl"
                )
                return
            path = self._root / segment.day / segment.name
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                left = memoryview(more)
                while left:
                    left = left[os.write(descriptor, left) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def segments(self, first_day: str = "", last_day: str = "99999999") -> list[Segment]:
        """Those of these days, in order; the latest SEGMENTS_MAX."""
        with _unwell("audit trail"):
            found = self._listed_in_s3() if self.in_s3 else self._listed_on_disk()
            kept = sorted(one for one in found if first_day <= one.day <= last_day)
        return kept[-SEGMENTS_MAX:]

    def read(self, segment: Segment) -> bytes:
        """b"" where it is gone meanwhile."""
        with _unwell(f"audit segment {segment.name}"):
            if not self.in_s3:
                try:
                    return (self._root / segment.day / segment.name).read_bytes()
                except FileNotFoundError:
                    return b""
            try:
                found = s3_client(self._endpoint).get_object(Bucket=self._bucket, Key=self._key(segment))
                return bytes(found["Body"].read())
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                    return b""
                raise

    def remove(self, segment: Segment) -> None:
        """Nothing where it is gone already."""
        with _unwell(f"audit segment {segment.name}"):
            if self.in_s3:
                s3_client(self._endpoint).delete_object(Bucket=self._bucket, Key=self._key(segment))
                return
            path = self._root / segment.day / segment.name
            path.unlink(missing_ok=True)
            if path.parent.is_dir() and not any(path.parent.iterdir()):
                shutil.rmtree(path.parent, ignore_errors=True)

    def _key(self, segment: Segment) -> str:
        return f"{self._prefix}/{segment.day}/{segment.name}"

    def _listed_on_disk(self) -> Iterator[Segment]:
        if not self._root.is_dir():
            return
        for day in self._root.iterdir():
            if not _DAY.fullmatch(day.name):
                continue
            for path in day.iterdir():
                if _NAME.fullmatch(path.name):
                    yield Segment(day.name, path.name, path.stat().st_size)

    def _listed_in_s3(self) -> Iterator[Segment]:
        pages = s3_client(self._endpoint).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._prefix}/"):
            for entry in page.get("Contents", ()):
                day, _, name = str(entry["Key"]).removeprefix(f"{self._prefix}/").partition("/")
                if _DAY.fullmatch(day) and _NAME.fullmatch(name):
                    yield Segment(day, name, int(entry["Size"]))


@contextmanager
def _unwell(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, BotoCoreError, ClientError) as error:
        raise TransientError(f"{what}: {error}", 2.0) from None
