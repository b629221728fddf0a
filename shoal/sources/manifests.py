"""Manifests: rows that describe files, which are members of the tar.zst archives beside it, or lie beside it.

`members` reads each archive once, as a stream, and hands out the members that a row names, in the archive's
order; then what lies beside the manifest. It never writes by a name that an archive gives, opens regular
members only, and takes no decompression window above 128 MiB (`zstd --long=27`). A row that no archive and
no file has is told to `on_problem`, as is an archive that can't be read to its end.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any

import zstandard
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shoal.errors import ConfigurationError
from shoal.sources.versions import parse_time

MANIFEST_NAME = "MANIFEST.json"
MANIFEST_BYTES_MAX = 256 * 1024 * 1024
ZSTD_WINDOW_BYTES_MAX = 2**27


class Row(BaseModel):
    """One file of a manifest; further fields are ignored, an empty text is none."""

    model_config = ConfigDict(frozen=True)

    file: Annotated[str, Field(min_length=1, max_length=1024)]
    dataset: Annotated[str, Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    data_type: str = "other"
    publish_time: datetime
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    content_type: str | None = None
    url: str | None = None

    @field_validator("publish_time", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        return (parse_time(value) or value) if isinstance(value, str) else value

    @field_validator("publish_time")
    @classmethod
    def _utc(cls, value: datetime) -> datetime:
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class _Rows(BaseModel):
    files: list[Row]


@dataclass(frozen=True, slots=True)
class Manifest:
    """The rows by `file`, and where they lie."""

    directory: Path
    rows: dict[str, Row]

    @classmethod
    def find(cls, path: Path) -> Manifest | None:
        """The manifest that `path` is or holds, or None. Raises ConfigurationError where it is malformed."""
        place = path / MANIFEST_NAME if path.is_dir() else path
        if place.name != MANIFEST_NAME or not place.is_file():
            return None
        if place.stat().st_size > MANIFEST_BYTES_MAX:
            raise ConfigurationError(f"{place}: a manifest has at most {MANIFEST_BYTES_MAX} bytes; split it")
        try:
            rows = _Rows.model_validate_json(place.read_bytes()).files
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"{place}: {where or 'content'}: {first['msg']}") from None
        return cls(place.parent, {row.file: row for row in rows})


def members(manifest: Manifest, on_problem: Callable[[str], None]) -> Iterator[tuple[Row, IO[bytes]]]:
    """(row, its bytes as a file to be read before the next is asked for) of every row that can be found."""
    left = dict(manifest.rows)
    for archive in sorted(manifest.directory.glob("*.tar.zst")):
        try:
            yield from _archived(archive, left)
        except (zstandard.ZstdError, tarfile.TarError, EOFError) as error:
            on_problem(f"{archive.name} could not be read to its end: {error}")
    for name, row in left.items():
        path = manifest.directory / name
        inside = ".." not in PurePosixPath(name).parts and path.resolve().is_relative_to(manifest.directory.resolve())
        if not inside or not path.is_file():
            on_problem(f"{name}: in no archive, and no file beside {MANIFEST_NAME}")
            continue
        with path.open("rb") as file:
            yield row, file


def _archived(archive: Path, left: dict[str, Row]) -> Iterator[tuple[Row, IO[bytes]]]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    with (
        archive.open("rb") as raw,
        decompressor.stream_reader(raw, read_across_frames=True) as stream,
        tarfile.open(fileobj=stream, mode="r|") as tar,
    ):
        for member in tar:
            name = member.name.removeprefix("./")
            if not member.isreg() or name not in left:
                continue
            file = tar.extractfile(member)
            if file is not None:
                yield left.pop(name), file
