"""A zip is one document: its members are named, sized and described, as far as bounds allow; nothing is written.

Entry count and total size are bounded while members are read (headers lie), nesting is one deep, encrypted or
damaged members are noted. Paths within the archive are only ever text. Raises BadDocument: TOO_LARGE for a bomb,
EXTRACTION_FAILED for a directory that can't be read, UNSUPPORTED_FORMAT is left to the caller.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePosixPath

from shoal.documents.charset import clean
from shoal.documents.content import Content, FieldProfile, Section
from shoal.documents.description import brief
from shoal.documents.schema import MEMBER
from shoal.errors import BadDocument, DeadReason

ENTRIES_MAX = 10_000  # more than this is an attack or a repository, not a scrape
DESCRIBED_MAX = 24
NAMES_SHOWN = 60
NAMES_CHARS_MAX = 1000
DESCRIPTION_CHARS_MAX = 5_000
MEMBER_CHARS_MIN = 240
FIELDS_MAX = 400
_STEP_BYTES = 1 << 20
_FAILURES = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, NotImplementedError, RuntimeError, KeyError)

ReadMember = Callable[[bytes, str], Content]


def is_office(data: bytes) -> str | None:
    """XLSX, ODS, DOCX, ... for the zips that are office documents, by their entries; None for a plain archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = {info.filename for info in archive.infolist()[:ENTRIES_MAX]}
            kind = b""
            if "mimetype" in names and archive.getinfo("mimetype").file_size < 200:
                kind = archive.read("mimetype").strip()
    except _FAILURES:
        return None
    if "xl/workbook.xml" in names or "xl/workbook.bin" in names:
        return "XLSX"
    if kind.startswith(b"application/vnd.oasis.opendocument."):
        return "ODS" if b"spreadsheet" in kind else kind.rsplit(b".", 1)[-1].decode("ascii", "replace")
    if "word/document.xml" in names:
        return "DOCX"
    if "ppt/presentation.xml" in names:
        return "PPTX"
    return None


def unfolded_size(data: bytes, bytes_max: int) -> int:
    """Bytes that the entries of a zip really unfold to, read and counted; BadDocument where past `bytes_max`."""
    total = 0
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = _entries(archive)
            if sum(info.file_size for info in entries) > bytes_max:
                raise _too_large(bytes_max)
            for info in entries:
                with archive.open(info) as member:
                    while piece := member.read(_STEP_BYTES):
                        total += len(piece)
                        if total > bytes_max:
                            raise _too_large(bytes_max)
    except _FAILURES as error:
        raise BadDocument(DeadReason.EXTRACTION_FAILED, f"damaged zip: {str(error)[:160]}") from None
    return total


def read_zip(data: bytes, bytes_max: int, read_member: ReadMember) -> Content:
    """Describe an archive. `read_member(bytes, name)` gives a member's content or raises BadDocument."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _read(archive, bytes_max, read_member)
    except _FAILURES as error:
        raise BadDocument(DeadReason.EXTRACTION_FAILED, f"damaged zip: {str(error)[:160]}") from None


def _read(archive: zipfile.ZipFile, bytes_max: int, read_member: ReadMember) -> Content:
    entries = [info for info in _entries(archive) if not info.is_dir()]
    left = bytes_max
    sections: list[Section] = []
    fields: list[FieldProfile] = []
    warnings: list[str] = []
    formats: Counter[str] = Counter()
    records = 0
    shown_chars = 0
    described: set[str] = set()
    only: Content | None = None
    seen_shapes: dict[tuple[str, ...], str] = {}
    for at, info in enumerate(entries):
        name = _shown_name(info)
        if at >= DESCRIBED_MAX:
            formats[PurePosixPath(name).suffix.lstrip(".").upper() or "file"] += 1
            continue
        if info.flag_bits & 0x1:
            formats["encrypted"] += 1
            warnings.append(f"member {name} is encrypted")
            continue
        try:
            body = _member(archive, info, left, bytes_max)
            left -= len(body)
            content = read_member(body, name)
        except BadDocument as error:
            if error.reason is DeadReason.TOO_LARGE:
                raise
            formats["unreadable"] += 1
            warnings.append(f"member {name}: {error.message}"[:200])
            continue
        except _FAILURES as error:
            formats["unreadable"] += 1
            warnings.append(f"member {name} is damaged: {str(error)[:100]}")
            continue
        only = content
        formats[content.file_format] += 1
        records += content.records or 0
        shape = tuple(field.path for field in content.fields)
        if shape and shape in seen_shapes and len(entries) > 3:
            text = f"{content.records or 0} records, the same fields as {seen_shapes[shape]}"
        else:
            seen_shapes.setdefault(shape, name)
            text = brief(content, max(MEMBER_CHARS_MIN, (DESCRIPTION_CHARS_MAX - shown_chars) // (len(entries) - at)))
            fields += [replace(field, path=f"{name}{MEMBER}{field.path}") for field in content.fields]
        shown_chars += len(text)
        if shown_chars <= DESCRIPTION_CHARS_MAX:
            sections.append(Section(f"{name}, {info.file_size} bytes: {text}"))
            described.add(info.filename)
        warnings += [f"{name}: {warning}"[:200] for warning in content.warnings[:3]]
    if only is not None and len(entries) == 1:  # a wrapping, not a collection: described as the file itself
        sections = list(only.sections)
        fields = list(only.fields)
        described.clear()
    return Content(
        file_format="ZIP",
        sections=(
            Section(_listing([e for e in entries if e.filename not in described], len(entries), formats)),
            *sections,
        ),
        title=only.title if only is not None and len(entries) == 1 else None,
        fields=tuple(fields[:FIELDS_MAX]),
        records=records or None,
        warnings=tuple(warnings[:30]),
    )


def _entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > ENTRIES_MAX:
        raise BadDocument(DeadReason.TOO_LARGE, f"the zip has {len(entries)} entries, more than {ENTRIES_MAX}")
    return entries


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, left: int, bytes_max: int) -> bytes:
    out = bytearray()
    with archive.open(info) as member:
        while piece := member.read(_STEP_BYTES):
            out += piece
            if len(out) > left:
                raise _too_large(bytes_max)
    return bytes(out)


def _too_large(bytes_max: int) -> BadDocument:
    return BadDocument(DeadReason.TOO_LARGE, f"the zip unfolds to more than {bytes_max} bytes")


def _shown_name(info: zipfile.ZipInfo) -> str:
    return clean(info.filename).replace("\n", " ")[-160:]


def _listing(entries: list[zipfile.ZipInfo], total: int, formats: Counter[str]) -> str:
    """How many files of which kinds, and the names of `entries`, which have no description of their own."""
    kinds = ", ".join(f"{n} {kind}" for kind, n in formats.most_common(8))
    text = f"Zip archive of {total} {'file' if total == 1 else 'files'} ({kinds or 'empty'})"
    if not entries:
        return text + "."
    names = ", ".join(_shown_name(info) for info in entries[:NAMES_SHOWN])
    return f"{text}: {names}"[:NAMES_CHARS_MAX] + ("" if len(names) < 900 and len(entries) <= NAMES_SHOWN else ", …")
