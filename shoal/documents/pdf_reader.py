"""PDF to `Content`: the text of its pages under their bookmarks or first lines, its title and metadata.

Rows of numbers lose their numbers and keep their words (what the rows are about); lines that stand on every page
are told once. A PDF of scanned pages is described (pages, title) with a warning, since only its text is missing.
Bounded in pages, characters and processor time; PDFium can't be interrupted within a page, there the caller's
deadline holds. No script, form or link of the file is run. Raises BadDocument(EXTRACTION_FAILED) for what is
encrypted or broken. Not for use by two threads at once: PDFium is one per process.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import pypdfium2

from shoal.documents.charset import clean
from shoal.documents.content import Content, Section
from shoal.errors import BadDocument, DeadReason

PAGES_MAX = 500  # a market manual has some hundreds; the chunks are bounded below that anyway
PAGE_CHARS_MAX = 100_000
TEXT_CHARS_MAX = 1_000_000
SECONDS_MAX = 20.0  # of processor, looked at after each page; ordinary pages take 5 ms
BOOKMARKS_MAX = 500
ROWS_CHARS_MAX = 1500  # the words of one table's rows
_HYPHEN = re.compile("[\x02\ufffe]\r?\n?")  # how PDFium marks a word that was broken at the end of a line
_SPACE = re.compile(r"[^\S\n]+")
_NUMBER = re.compile(r"[-+(]?[$€£₹]?\d[\d.,:/%)]*|[-–—]+")
_DATE = re.compile(r"D:(\d{4})(\d\d)(\d\d)")
_TOOL_TITLE = re.compile(
    r"^(?:Microsoft \w+ - |untitled|document\d*$|slide 1$|.*\.(?:docx?|xlsx?|pptx?|indd|pdf)$)", re.I
)
_SAID = ("Author", "Subject", "Keywords")


def read_pdf(data: bytes) -> Content:
    """Read one PDF. Raises BadDocument(EXTRACTION_FAILED) where it is encrypted or damaged."""
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        what = "encrypted" if "password" in str(error).lower() or "security" in str(error).lower() else "damaged"
        raise BadDocument(DeadReason.EXTRACTION_FAILED, f"the PDF is {what}: {str(error)[:160]}") from None
    try:
        return _read(document)
    finally:
        document.close()


def _read(document: pypdfium2.PdfDocument) -> Content:
    count = len(document)
    if count == 0:
        raise BadDocument(DeadReason.EXTRACTION_FAILED, "the PDF has no pages that can be read")
    pages, warnings = _pages(document, count)
    metadata = {name: _SPACE.sub(" ", clean(text)).strip() for name, text in document.get_metadata_dict().items()}
    lines = _without_repeated([_lines(text) for text in pages])
    title = metadata.get("Title", "")
    if not title or _TOOL_TITLE.match(title):
        title = next((line for page in lines[:2] for line in page[:12] if _is_title(line)), "")
    facts = [f"PDF of {count} {'page' if count == 1 else 'pages'}"]
    facts += [f"{name}: {metadata[name][:300]}" for name in _SAID if metadata.get(name)]
    if created := _DATE.match(metadata.get("CreationDate", "")):
        facts.append(f"written {'-'.join(created.groups())}")
    said = ". ".join(facts) + "."
    sections: list[Section] = []
    bookmarks = _bookmarks(document)
    under = ""
    for number, page in enumerate(lines):
        under = bookmarks.get(number, under)
        if text := "\n".join(_told(page)):
            above = under or (page[0] if _is_title(page[0]) else "")
            parts = [part[:160] for part in dict.fromkeys((title, above)) if part]
            sections.append(Section(text if sections else f"{said}\n{text}", " > ".join(parts) or None))
    if not sections:
        sections.append(Section(said, title[:200] or None))
        warnings.append("the PDF has no text: its pages are images")
    return Content("PDF", tuple(sections), title=title[:300] or None, warnings=tuple(warnings))


def _pages(document: pypdfium2.PdfDocument, count: int) -> tuple[list[str], list[str]]:
    """The text of each page, and warnings of what was left out."""
    texts: list[str] = []
    warnings: list[str] = []
    left = TEXT_CHARS_MAX
    lost = unread = 0
    began = time.process_time()
    for number in range(min(count, PAGES_MAX)):
        if left <= 0 or time.process_time() - began > SECONDS_MAX:
            break
        text = ""
        try:
            page = document[number]
            try:
                words = page.get_textpage()
                try:
                    text = words.get_text_range(0, min(words.count_chars(), PAGE_CHARS_MAX, left))
                finally:
                    words.close()
            finally:
                page.close()
        except pypdfium2.PdfiumError:
            unread += 1
        lost += text.count("\ufffd")
        left -= len(text)
        texts.append(clean(_HYPHEN.sub("", text)).replace("\ufffd", ""))
    if len(texts) < count:
        warnings.append(f"only the first {len(texts)} of {count} pages were read")
    if unread:
        warnings.append(f"{unread} pages are damaged and were left out")
    if lost:
        warnings.append(f"{lost} characters have no meaning in the PDF's fonts and were left out")
    return texts, warnings


def _lines(text: str) -> list[str]:
    return [line for raw in text.split("\n") if (line := _SPACE.sub(" ", raw).strip())]


def _without_repeated(pages: Sequence[list[str]]) -> list[list[str]]:
    """Heads and feet that stand on most pages are kept once; page numbers don't make them differ."""
    if len(pages) < 3:
        return list(pages)
    shapes = Counter(shape for page in pages for shape in {_shape(line) for line in (*page[:3], *page[-3:])})
    told: set[str] = set()
    kept = []
    for page in pages:
        out = []
        for line in page:
            shape = _shape(line)
            if shapes[shape] <= len(pages) // 2:
                out.append(line)
            elif shape not in told:
                told.add(shape)
                out.append(line)
        kept.append(out)
    return kept


def _shape(line: str) -> str:
    return re.sub(r"\d+", "#", line)


def _told(lines: Sequence[str]) -> Iterator[str]:
    """The lines of a page; a table's rows of numbers become the words in them."""
    rows: list[str] = []
    for line in [*lines, ""]:
        words = line.split()
        numbers = sum(1 for word in words if _NUMBER.fullmatch(word))
        if words and numbers >= 3 and numbers * 2 >= len(words):
            rows.append(" ".join(word for word in words if any(map(str.isalpha, word))))
            continue
        if rows:
            names = ", ".join(dict.fromkeys(name for name in rows if name))
            if names:
                yield (names if len(rows) == 1 else f"Table of {len(rows)} rows: {names}")[:ROWS_CHARS_MAX]
            rows = []
        if any(map(str.isalpha, line)):
            yield line


def _is_title(line: str) -> bool:
    letters = sum(map(str.isalpha, line))
    return 6 <= len(line) <= 120 and letters >= 0.6 * len(line) and " " in line and line[-1] not in ".,;:"


def _bookmarks(document: pypdfium2.PdfDocument) -> dict[int, str]:
    """The breadcrumb of the first bookmark on each page that has one."""
    found: dict[int, str] = {}
    trail: list[str] = []
    try:
        for at, bookmark in enumerate(document.get_toc(max_depth=5)):
            if at >= BOOKMARKS_MAX:
                break
            trail[bookmark.level :] = [_SPACE.sub(" ", clean(bookmark.get_title())).strip()[:100]]
            target = bookmark.get_dest()
            number = target.get_index() if target is not None else None
            if number is not None:
                found.setdefault(number, " > ".join(part for part in trail if part))
    except (pypdfium2.PdfiumError, ValueError):  # a broken outline takes nothing from the pages
        pass
    return found
