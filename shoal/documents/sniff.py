"""What kind of file this is, from its bytes first, then its text, then its name and content type.

Content wins: a JSON error body named `.csv` is JSON, an HTML page named `.json` is HTML. Binaries that no reader
takes are named here, so that the refusal can say what they are. Reads at most the first kilobytes (and, for zip,
the names in the directory); never raises.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

# Longest first where one begins with another. None of these can be the start of text.
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"%PDF-", "PDF"),
    (b"PK\x03\x04", "ZIP"),
    (b"PK\x05\x06", "ZIP"),  # an empty archive
    (b"PK\x07\x08", "ZIP"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "OLE"),
    (b"\x89PNG\r\n\x1a\n", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF87a", "GIF image"),
    (b"GIF89a", "GIF image"),
    (b"\x7fELF", "ELF executable"),
    (b"MZ\x90\x00", "Windows executable"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"Obj\x01", "Avro"),
    (b"SQLite format 3\x00", "SQLite"),
    (b"7z\xbc\xaf\x27\x1c", "7z archive"),
    (b"Rar!\x1a\x07", "RAR archive"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
    (b"CDF\x01", "NetCDF"),
    (b"CDF\x02", "NetCDF"),
    (b"GRIB", "GRIB"),
    (b"\xca\xfe\xba\xbe", "Java class"),
    (b"\x00asm", "WebAssembly"),
    (b"wOFF", "font"),
    (b"wOF2", "font"),
    (b"OggS", "Ogg media"),
    (b"ID3", "MP3 audio"),
    (b"fLaC", "FLAC audio"),
    (b"II*\x00", "TIFF image"),
    (b"MM\x00*", "TIFF image"),
    (b"{\\rtf", "RTF"),
)
_PICKLE = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?[\]})(\x8c-\x8f\x88\x89XcKBCGJMNTU]", re.DOTALL)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")

_MARKUP = re.compile(
    r"<(?:!doctype\s+html|html|head|body|title|table|div|script|style|p|h[1-6]|span|ul|form|a)\b", re.I
)
_JSONP = re.compile(
    r"(?:/\*.{0,200}?\*/\s*)?(?:[A-Za-z_$][\w$.\[\]]{0,80}\s*=\s*|[A-Za-z_$][\w$.]{0,80}\s*\(\s*)[\[{]", re.S
)
_SUFFIXES = {
    ".json": "JSON", ".jsonl": "JSON", ".ndjson": "JSON", ".geojson": "JSON",
    ".csv": "CSV", ".tsv": "CSV", ".psv": "CSV",
    ".xml": "XML", ".rss": "XML", ".atom": "XML", ".xsd": "XML", ".kml": "XML", ".gml": "XML",
    ".html": "HTML", ".htm": "HTML", ".xhtml": "HTML", ".aspx": "HTML", ".php": "HTML",
}  # fmt: skip
_TYPES = {
    "application/json": "JSON", "text/json": "JSON", "application/x-ndjson": "JSON", "application/geo+json": "JSON",
    "text/csv": "CSV", "application/csv": "CSV", "text/tab-separated-values": "CSV",
    "text/xml": "XML", "application/xml": "XML", "application/rss+xml": "XML", "application/atom+xml": "XML",
    "text/html": "HTML", "application/xhtml+xml": "HTML",
}  # fmt: skip


def binary_format(data: bytes | bytearray) -> str | None:
    """ZIP, OLE (old Office), PDF, PICKLE, or the name of a binary that nothing here reads; None for text."""
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] in (b"WEBP", b"WAVE", b"AVI "):
        return "RIFF media"
    if data[4:8] == b"ftyp":
        return "MP4 media"
    if data[257:262] == b"ustar":
        return "TAR archive"
    if _PICKLE.match(data):
        return "PICKLE"
    head = data[:8192]
    # Some feeds carry a stray control byte; text has few of them.
    stray = len(_CONTROL.findall(head))
    return "unknown binary" if stray > max(4, len(head) // 50) and not _utf16_or_bom(head) else None


def text_format(text: str, name: str, content_type: str | None) -> str:
    """JSON, XML, HTML, CSV (any separator) or TEXT. What the text shows outranks what it is called."""
    head = text[:4096].lstrip("\ufeff \t\r\n")
    hinted = hint(name, content_type)
    first = head[:1]
    if first == "<":
        lower = head[:600].lower()
        if lower.startswith("<?xml") and "<html" not in lower:
            return "XML"
        if hinted == "XML" and "<html" not in lower and "<!doctype html" not in lower:
            return "XML"
        if _MARKUP.match(head) or "<html" in lower or hinted == "HTML" or _MARKUP.search(head):
            return "HTML"
        return "XML" if re.match(r"<[A-Za-z_!?][^<>]*>", head) else "TEXT"
    if first and first in "{[":
        return "JSON" if hinted == "JSON" or _json_like(head) else "TEXT"
    if hinted == "JSON" and (first == '"' or re.match(r"-?\d|true\b|false\b|null\b", head)):
        return "JSON"
    if first == '"' and re.match(r'"\s*[\[{](?:\s|\\[nrt]|[\[{])*(?:\\"|[\]}])', head):
        return "JSON"
    if _JSONP.match(head) and text.rstrip()[-2:].strip(" ;\n")[-1:] in (")", "}", "]"):
        return "JSON"
    if hinted == "HTML" and _MARKUP.search(head):
        return "HTML"
    return "CSV" if hinted == "CSV" else "TEXT"


def hint(name: str, content_type: str | None) -> str | None:
    """What the name's ending, else the content type, claims: JSON, CSV, XML, HTML or None."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(name).suffixes[-2:]]
    for suffix in reversed(suffixes):
        if suffix in _SUFFIXES:
            return _SUFFIXES[suffix]
    return _TYPES.get((content_type or "").split(";")[0].strip().lower())


def declared_charset(content_type: str | None) -> str | None:
    """The charset parameter of a content type, or None."""
    match = re.search(r"charset\s*=\s*[\"']?([\w.:-]{2,40})", content_type or "", re.I)
    return match.group(1) if match else None


def _json_like(head: str) -> bool:
    return bool(re.match(r"[\[{]\s*(?:[\[{\"\]}]|-?\d|true\b|false\b|null\b|NaN\b|-?Infinity\b|$)", head))


def _utf16_or_bom(head: bytes | bytearray) -> bool:
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return True
    half = len(head) // 2
    even, odd = head[0::2].count(0), head[1::2].count(0)
    return half > 1 and (odd > 0.4 * half > 4 * even or even > 0.4 * half > 4 * odd)
