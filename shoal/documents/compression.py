"""Unfolds compressed bodies: gzip (also of several members), zlib, bzip2, xz and zstandard.

The output is bounded while it is made, so a bomb costs its bound and no more. Names of formats are those of
`sniff`. Raises BadDocument: TOO_LARGE past the bound, EXTRACTION_FAILED for a stream that ends early or is
damaged. Does not know archives (archives.py).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import Protocol

import zstandard

from shoal.errors import BadDocument, DeadReason

_STEP_BYTES = 1 << 20
_LAYERS_MAX = 3
_XZ_MEMORY_MAX = 128 * 1024 * 1024  # a hostile header may ask for gigabytes of dictionary
_ZSTD_WINDOW_MAX = 1 << 27  # bytes; what `zstd --long=27` writes


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def compression(data: bytes) -> str | None:
    """The compression that `data` begins with, or None: gzip, zlib, bzip2, xz, zstd."""
    if data[:3] == b"\x1f\x8b\x08":
        return "gzip"
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return "zstd"
    if data[:6] == b"\xfd7zXZ\x00":
        return "xz"
    if data[:3] == b"BZh" and data[3:4].isdigit() and data[4:10] == b"1AY&SY":
        return "bzip2"
    if len(data) > 2 and data[0] == 0x78 and data[1] in (0x01, 0x5E, 0x9C, 0xDA) and _is_zlib(data):
        return "zlib"
    return None


def decompress(data: bytes, bytes_max: int) -> tuple[bytes, tuple[str, ...]]:
    """The innermost bytes and the names of the layers removed, outermost first (at most three are)."""
    layers: tuple[str, ...] = ()
    while len(layers) < _LAYERS_MAX and (kind := compression(data)) is not None:
        data = _unfold(kind, data, bytes_max)
        layers = (*layers, kind)
    return data, layers


def _unfold(kind: str, data: bytes, bytes_max: int) -> bytes:
    out = bytearray()
    rest = data
    try:
        if kind == "zstd":
            return _zstd(data, bytes_max)
        while rest:
            stream = _stream(kind)
            rest = _one_member(stream, rest, out, bytes_max, kind)
            rest = rest.lstrip(b"\0")  # padding between and after members
            if compression(rest) != kind:  # trailing bytes that begin no further member are ignored, as gzip does
                break
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, zstandard.ZstdError, MemoryError) as error:
        raise BadDocument(DeadReason.EXTRACTION_FAILED, f"damaged {kind} stream: {str(error)[:200]}") from None
    return bytes(out)


def _stream(kind: str) -> _Stream:
    match kind:
        case "gzip":
            return _Zlib(31)
        case "zlib":
            return _Zlib(15)
        case "bzip2":
            return bz2.BZ2Decompressor()
        case _:
            return lzma.LZMADecompressor(memlimit=_XZ_MEMORY_MAX)


def _one_member(stream: _Stream, data: bytes, out: bytearray, bytes_max: int, kind: str) -> bytes:
    """Appends one member to `out` and returns the bytes behind it."""
    feed = data
    while True:
        piece = stream.decompress(feed, _STEP_BYTES)
        feed = b""
        out += piece
        if len(out) > bytes_max:
            raise BadDocument(DeadReason.TOO_LARGE, f"{kind} unfolds to more than {bytes_max} bytes")
        if stream.eof:
            return stream.unused_data
        if not piece:
            raise BadDocument(DeadReason.EXTRACTION_FAILED, f"{kind} stream ends early")


class _Zlib:
    """zlib.decompressobj with the interface of the other two: pending input is kept inside."""

    def __init__(self, wbits: int) -> None:
        self._inner = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: bytes, max_length: int = 0, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


def _zstd(data: bytes, bytes_max: int) -> bytes:
    out = bytearray()
    with zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX).stream_reader(
        data, read_across_frames=True
    ) as reader:
        while piece := reader.read(_STEP_BYTES):
            out += piece
            if len(out) > bytes_max:
                raise BadDocument(DeadReason.TOO_LARGE, f"zstd unfolds to more than {bytes_max} bytes")
    # The reader takes a cut stream for a whole one. Its size is known to be harmless now: ask one that tells.
    judge = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX).decompressobj(read_across_frames=False)
    if zstandard.frame_content_size(data) > len(out) or (judge.decompress(data) is not None and not judge.eof):
        raise BadDocument(DeadReason.EXTRACTION_FAILED, "zstd stream ends early")
    return bytes(out)


def _is_zlib(data: bytes) -> bool:
    if int.from_bytes(data[:2], "big") % 31:
        return False
    try:
        return bool(zlib.decompressobj(15).decompress(data[:4096], 64))
    except zlib.error:
        return False
