"""Bytes of a fetched document to its Extraction: unfold, sniff, decode, read, find traits, describe, chunk.

The one entrance to this room. Pure and bounded in output; the caller runs it in a process that can be killed, since
a C library inside can't be interrupted. Everything that is wrong with the bytes is a BadDocument: EMPTY, TOO_LARGE,
UNSUPPORTED_FORMAT (a binary no reader takes) or EXTRACTION_FAILED (of a format, but damaged). An HTML error page or
a JSON error body is still a document.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from shoal.documents import archives, sniff
from shoal.documents.api_text import api_text, fitted
from shoal.documents.charset import clean, decode
from shoal.documents.chunking import TokenBudget, chunk_sections
from shoal.documents.compression import decompress
from shoal.documents.content import Content
from shoal.documents.context import Context, Limits
from shoal.documents.csv_reader import read_csv
from shoal.documents.description import describe
from shoal.documents.html_reader import read_html
from shoal.documents.json_reader import read_json
from shoal.documents.pdf_reader import read_pdf
from shoal.documents.pickle_reader import read_pickle
from shoal.documents.schema import schema_json
from shoal.documents.spreadsheets import read_spreadsheet
from shoal.documents.text_reader import read_text
from shoal.documents.traits import RAW_CHARS_MAX, find_traits
from shoal.documents.xml_reader import read_xml
from shoal.errors import BadDocument, DeadReason
from shoal.records import Extraction

__all__ = ["Context", "Limits", "TokenBudget", "extract_document"]

WARNINGS_MAX = 20
_COMPRESSED_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz", ".z", ".zz")
_CONTENT_TYPES = {
    "JSON": "application/json", "CSV": "text/csv", "XML": "application/xml", "HTML": "text/html",
    "ZIP": "application/zip", "PDF": "application/pdf", "PICKLE": "application/octet-stream",
    "MARKDOWN": "text/markdown", "TEXT": "text/plain", "CODE": "text/plain", "XLS": "application/vnd.ms-excel",
    "XLSX": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "ODS": "application/vnd.oasis.opendocument.spreadsheet",
}  # fmt: skip


def extract_document(data: bytes, context: Context, limits: Limits, tokens: TokenBudget) -> Extraction:
    """The text, schema and traits of one document. Raises BadDocument and nothing else, whatever the bytes are."""
    if not data.strip(b" \t\r\n\0\x0b\x0c"):
        raise BadDocument(DeadReason.EMPTY, "the object has no content")
    body, layers = decompress(data, limits.decompressed_bytes_max)
    if not body.strip(b" \t\r\n\0\x0b\x0c"):
        raise BadDocument(DeadReason.EMPTY, f"nothing inside the {layers[-1] if layers else 'object'}")
    if len(body) > limits.decompressed_bytes_max:
        raise BadDocument(DeadReason.TOO_LARGE, f"{len(body)} bytes are more than {limits.decompressed_bytes_max}")
    try:
        content, raw_head = _read(body, _inner_name(context.name), context, limits)
        traits = find_traits(content, context.source_url, raw_head, context.collected_at)
        sections = describe(content, context, layers)
        chunks, chunk_warnings = chunk_sections(sections, tokens, limits.chunks_max)
        return Extraction(
            file_format=content.file_format,
            content_type=context.content_type or _CONTENT_TYPES.get(content.file_format),
            charset=content.charset,
            title=clean(content.title)[:300] if content.title else None,
            chunks=chunks,
            schema=schema_json(content.fields, content.records),
            api_text=fitted(api_text(content, traits, context), tokens.count, tokens.max_tokens),
            traits=traits,
            warnings=tuple(clean(warning)[:300] for warning in (*content.warnings, *chunk_warnings)[:WARNINGS_MAX]),
        )
    except BadDocument:
        raise
    except Exception as error:  # the input is hostile: a reader's own failure is this document's, not the system's
        raise BadDocument(DeadReason.EXTRACTION_FAILED, f"{type(error).__name__}: {str(error)[:200]}") from error


def _read(body: bytes, name: str, context: Context | None, limits: Limits) -> tuple[Content, str]:
    """The content of unfolded bytes, and the head of their text where they are text (for traits).

    `context` is of the document itself, None for a file within an archive.
    """
    binary = sniff.binary_format(body)
    if binary is not None:
        return _read_binary(body, binary, context, limits), ""
    return _read_text(body, name, context.content_type if context else None, context.source_url if context else None)


def _read_text(body: bytes, name: str, content_type: str | None, url: str | None) -> tuple[Content, str]:
    declared = sniff.declared_charset(content_type)
    decoded = decode(body, declared)
    text = decoded.text
    if not text.strip("\ufeff\0 \t\r\n"):
        raise BadDocument(DeadReason.EMPTY, "the text is blank")
    match sniff.text_format(text, name, content_type):
        case "JSON":
            content = _read_json(text, name, content_type)
        case "XML":  # parsed as bytes: it declares its own charset
            content = read_xml(body, charset_hint=declared)
        case "HTML":
            content = read_html(body, charset_hint=declared, base_url=url)
        case _:
            content = read_csv(text, name=name) or read_text(text, name)
    if content.charset is None:
        content = replace(content, charset=decoded.charset, warnings=(*decoded.warnings, *content.warnings))
    return content, text[:RAW_CHARS_MAX]


def _read_json(text: str, name: str, content_type: str | None) -> Content:
    try:
        return read_json(text)
    except BadDocument:
        # What only resembled JSON (a script, a log in brackets) is text; what claims to be JSON is damaged.
        head = text[:200].lstrip("\ufeff \t\r\n")
        if sniff.hint(name, content_type) == "JSON" or head.startswith(('{"', '[{"', '[["')):
            raise
        return read_text(text, name)


def _read_binary(body: bytes, binary: str, context: Context | None, limits: Limits) -> Content:
    if binary == "OLE":
        return read_spreadsheet(body, "XLS", limits.decompressed_bytes_max)
    if binary == "ZIP":
        office = archives.is_office(body)
        if office in ("XLSX", "ODS"):
            return read_spreadsheet(body, office, limits.decompressed_bytes_max)
        if office is None and context is not None:

            def member(data: bytes, name: str) -> Content:
                return _read_member(data, name, limits)

            return archives.read_zip(body, limits.decompressed_bytes_max, member)
        binary = office or "ZIP within a zip"
    if binary == "PDF":
        return read_pdf(body)
    if binary == "PICKLE":
        return read_pickle(body, lambda text: _read_text(text, "", None, context.source_url if context else None)[0])
    raise BadDocument(DeadReason.UNSUPPORTED_FORMAT, f"{binary} is not read")


def _read_member(data: bytes, name: str, limits: Limits) -> Content:
    """A file within an archive: read like any other, but no archive in it is opened."""
    if not data.strip(b" \t\r\n\0"):
        raise BadDocument(DeadReason.EMPTY, "empty")
    body, _ = decompress(data, limits.decompressed_bytes_max)
    return _read(body, _inner_name(name), None, limits)[0]


def _inner_name(name: str) -> str:
    """`load.csv.gz` as `load.csv`: the ending that tells the format."""
    path = PurePosixPath(name)
    return path.stem if path.suffix.lower() in _COMPRESSED_SUFFIXES else path.name
