"""Is this the object that was announced? Size and md5 of the stored bytes, or of what they unfold to.

Scrapers announce the size and md5 of the file they fetched, and often store it compressed (contracts 1.1), so
a value that fits either is right. Unfolding is streamed, hashed and thrown away: memory stays flat, and at
`unfolded_bytes_max` it stops, which counts as no match. Pure functions.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import zstandard

_PIECE_BYTES = 256 * 1024
# An ETag is the md5 of the bytes only in this shape, and in S3 only without KMS or multipart uploads.
MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Expected:
    """What was announced; None where it was not. `md5` is lower-case hex."""

    size_bytes: int | None = None
    md5: str | None = None


def mismatch(data: bytes, expected: Expected, unfolded_bytes_max: int) -> str | None:
    """What does not fit, in one line, or None where the bytes are what was announced."""
    if expected.md5 is None and expected.size_bytes is None:
        return None
    stored = Expected(len(data), _md5(data) if expected.md5 else None)
    if _fits(stored, expected):
        return None
    if _fits(_unfolded(data, unfolded_bytes_max), expected):
        return None
    parts = []
    if expected.size_bytes not in (None, stored.size_bytes):
        parts.append(f"{stored.size_bytes} bytes stored, {expected.size_bytes} announced")
    if expected.md5 not in (None, stored.md5):
        parts.append(f"md5 {stored.md5} stored, {expected.md5} announced")
    return "; ".join(parts)


def _fits(found: Expected | None, expected: Expected) -> bool:
    return (
        found is not None
        and expected.size_bytes in (None, found.size_bytes)
        and (expected.md5 is None or expected.md5 == found.md5)
    )


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _unfolded(data: bytes, bytes_max: int) -> Expected | None:
    """Size and md5 of what `data` unfolds to; None where it is not compressed, damaged or too large."""
    pieces = _pieces(data)
    if pieces is None:
        return None
    size, digest = 0, hashlib.md5(usedforsecurity=False)
    try:
        for piece in pieces:
            size += len(piece)
            if size > bytes_max:
                return None
            digest.update(piece)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, ValueError):
        return None
    return Expected(size, digest.hexdigest())


def _pieces(data: bytes) -> Iterator[bytes] | None:
    if data[:2] == b"\x1f\x8b":
        return _gunzipped(data)
    if data[:3] == b"BZh":
        return _read_in_pieces(bz2.BZ2File(io.BytesIO(data)))
    if data[:6] == b"\xfd7zXZ\0":
        return _read_in_pieces(lzma.LZMAFile(io.BytesIO(data)))
    if data[:4] == b"\x28\xb5\x2f\xfd":
        # 2^27: what `zstd --long=27` needs; more would let a small object ask for gigabytes.
        decompressor = zstandard.ZstdDecompressor(max_window_size=2**27)
        return _read_in_pieces(decompressor.stream_reader(data, read_across_frames=True))
    return None


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _read_in_pieces(source: _Readable) -> Iterator[bytes]:
    while piece := source.read(_PIECE_BYTES):
        yield piece


def _gunzipped(data: bytes) -> Iterator[bytes]:
    """All members of a gzip file; what follows the last is ignored, as gzip itself does."""
    while data[:2] == b"\x1f\x8b":
        unzip = zlib.decompressobj(wbits=31)
        rest = data
        while not unzip.eof:
            piece = unzip.decompress(rest, _PIECE_BYTES)
            rest = unzip.unconsumed_tail
            if not piece and not rest and not unzip.eof:
                raise EOFError
            yield piece
        data = unzip.unused_data
