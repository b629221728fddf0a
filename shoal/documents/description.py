"""What is embedded of a data document: a text that a person's question finds, never the numbers themselves.

It begins with a line in plain words (who, what, which period), then the most telling field names, the values of
categories (zones, fuels), units and the meaning of abbreviations; then notes and prose of the file, then a line
per field. Bounded whatever the file's size. Pure; never raises.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from shoal.documents import market, schema
from shoal.documents.charset import clean
from shoal.documents.content import Content, FieldProfile, Section
from shoal.documents.context import Context
from shoal.documents.words import split_words, spoken, unique

NAMES_CHARS_MAX = 280
VALUES_CHARS_MAX = 480
VALUES_OF_ONE_CHARS_MAX = 170
# About three chunks of the local model; more repeats more of the same. Less where the file says in words what it is.
FIELD_LINES_CHARS_MAX = 2400
FIELD_LINES_BESIDE_TEXT_CHARS_MAX = 1200
CATEGORIES_MAX = 5
NAME_WORDS_MAX = 5
NOTE_CHARS_MAX = 1200
PROSE_FORMATS = frozenset({"HTML", "PDF", "MARKDOWN", "TEXT", "CODE"})

# Names that tell nothing of what the data is about; listed last.
_DULL_TEXT = """
id $id _id guid uuid objectid key index idx type status color colour class css style href rel url link self version
success error message messages code format offset limit count total page pages size length result results response
data items rows records values value v x y lat lon latitude longitude geometry coordinates shape created updated
modified rel order sort sorted by api query command timezone zone_id execution request mime parameters parameter meta
links kind row start active metadata search specification nhits feature flags facets is current name
"""
_DULL = frozenset(_DULL_TEXT.split())
_PLAIN_VALUE = re.compile(r"[^\W\d_]{2}")
_HASH = re.compile(r"[0-9a-f]{8,}(?:-[0-9a-f]{4,})*|\d+")
_DIGITS = re.compile(r"\d+")


def heading(context: Context) -> str:
    """The line that stands above every chunk of the document: whose data, of what kind, which dataset."""
    source = context.data_source.strip()
    where = ", ".join(market.places(source, context.dataset))
    if source and where and _folded(source) not in map(_folded, where.replace(",", " ").split()):
        where = f"{source} ({where})"  # people ask by either
    kind = market.DATA_TYPES.get(context.data_type, spoken(context.data_type) if context.data_type else "")
    parts = unique(part for part in (where or source, kind if kind != "other" else "", spoken(context.dataset)) if part)
    return clean(": ".join([parts[0], ", ".join(parts[1:])]) if len(parts) > 1 else "".join(parts))[:180]


def _folded(name: str) -> str:
    """`Hydro-Québec` and `HYDROQUEBEC` alike."""
    return "".join(c for c in unicodedata.normalize("NFKD", name).casefold() if c.isalnum())


def name_line(content: Content, context: Context) -> str:
    """What the file calls itself, and the words under which it was announced."""
    dataset = f"Dataset {context.dataset[:80]}" if context.dataset else ""
    stem = PurePosixPath(context.name).stem
    file = f"File {context.name[:80]}" if context.name and not _HASH.fullmatch(stem) else ""
    title = f"{content.title[:160]}." if content.title else ""
    return clean(" ".join(part for part in (title, dataset, file) if part))


def lead(content: Content, collected_at: datetime | None, layers: Sequence[str] = ()) -> str:
    """Format, size, period, step, when collected."""
    facts = [content.file_format + (f" in {' in '.join(reversed(layers))}" if layers else "")]
    if content.records:
        facts.append(f"{content.records} {'record' if content.records == 1 else 'records'}")
    low, high, step = schema.period(content.fields, content.records)
    if low and high:
        facts.append(f"data of {low}" if low == high else f"data from {low} to {high}")
    if step:
        facts.append(step)
    if collected_at is not None:
        facts.append(f"collected {collected_at.day} {collected_at:%B %Y}")
    return ", ".join(facts) + "."


def summary(content: Content, context: Context, layers: Sequence[str] = ()) -> str:
    """The densest text of the document, most telling lines first."""
    lines = [name_line(content, context), lead(content, context.collected_at, layers)]
    categories = [line for _, line in _categories(content.fields)]
    names = _telling_names(content.fields)
    if names and sum(name.isascii() for name in names) >= 0.5 * len(names):  # else their meaning says more
        lines.append(f"Fields: {_cut(names, NAMES_CHARS_MAX)}.")
    words = [context.dataset, context.data_type, *(schema.own_name(field) for field in content.fields[:120])]
    words += [value for field in content.fields[:60] if field.type == "string" for value in field.values[:24]]
    said = set(split_words(" ".join([*names, *categories])[:4000], chars_max=4000))
    if known := [meaning for meaning in market.meanings(words, 16) if not set(meaning.lower().split()) <= said]:
        lines.append(f"Meaning: {', '.join(known)}.")
    lines += categories
    if units := unique(field.unit for field in content.fields if field.unit and " " not in field.unit)[:8]:
        lines.append(f"Units: {', '.join(units)}.")
    if context.source_url and (place := _place(context.source_url)):
        lines.append(f"From {place}")
    return clean("\n".join(line for line in lines if line))


def describe(content: Content, context: Context, layers: Sequence[str] = ()) -> list[tuple[Section, bool]]:
    """The sections of a document in the order of their worth; True marks prose, whose chunks overlap."""
    head = heading(context) or clean(content.title or "")[:180]
    if content.file_format in PROSE_FORMATS:
        sections = [(Section(summary(content, context, layers), head), False)] if _tells_more(content, context) else []
        for section in content.sections:
            above = section.heading or content.title or head
            sections.append((Section(clean(section.text), clean(above)[:300]), True))
        if lines := schema.field_lines(_still_to_tell(content.fields), FIELD_LINES_CHARS_MAX):
            sections.append((Section("\n".join(lines), head), False))
        return sections
    notes = [section for section in content.sections if section.heading is None and len(section.text) <= NOTE_CHARS_MAX]
    texts = [summary(content, context, layers), *(clean(section.text) for section in notes)]
    if not any(schema.MEMBER in field.path and content.file_format == "ZIP" for field in content.fields):
        said = sum(len(section.text) for section in content.sections)
        room = FIELD_LINES_CHARS_MAX if said < 400 else FIELD_LINES_BESIDE_TEXT_CHARS_MAX
        texts += schema.field_lines(_still_to_tell(content.fields), room)
    sections = [(Section("\n".join(text for text in texts if text), head), False)]
    for section in content.sections:
        if section not in notes:
            above = f"{head} > {section.heading}" if section.heading else head
            sections.append((Section(clean(section.text), clean(above)[:300]), section.heading is not None))
    return sections


def _tells_more(content: Content, context: Context) -> bool:
    """Whether the summary says of prose what its text does not. A chunk of format and day alone is noise: half of an
    index of short texts, near to every short question."""
    if any((context.data_source, context.dataset, context.source_url, content.fields, content.records)):
        return True
    if not _HASH.fullmatch(PurePosixPath(context.name).stem) and context.name:
        return True
    said = " ".join(f"{section.heading or ''} {section.text}" for section in content.sections)
    return not any(map(str.isalnum, said)) or bool(content.title and content.title[:160] not in said)


def _still_to_tell(fields: Sequence[FieldProfile]) -> list[FieldProfile]:
    """The fields without those whose values the summary tells, and without single dull ones (page size 1000)."""
    told = {id(field) for field, _ in _categories(fields)}
    usual = max((field.count for field in fields), default=0)
    kept = []
    for field in fields:
        dull = field.count <= 2 < usual and all(word in _DULL for word in split_words(schema.own_name(field)))
        if id(field) not in told and not dull:
            kept.append(field)
    return kept


def brief(content: Content, chars_max: int) -> str:
    """A member of an archive in a few lines: lead, notes, fields."""
    texts = [f"{content.title}." if content.title else "", lead(content, None)]
    texts += [clean(section.text)[:400] for section in content.sections[:2]]
    used = sum(map(len, texts))
    texts += schema.field_lines(content.fields, max(200, chars_max - used))
    return clean("\n".join(text for text in texts if text))[:chars_max]


def _telling_names(fields: Sequence[FieldProfile]) -> list[str]:
    """Names as words, dull ones last, each once; of long runs of like names (h1, h2, ...) only the first."""
    telling: list[str] = []
    dull: list[str] = []
    seen: set[str] = set()
    for field in fields:
        words = split_words(schema.own_name(field))
        pattern = _DIGITS.sub("#", " ".join(words))
        if not words or pattern in seen or field.type in ("object", "array") or not pattern.strip("# "):
            continue
        seen.add(pattern)
        is_dull = _is_dull(words) or words[-1] in ("id", "guid", "uuid", "rid") or words[0] == "column"
        (dull if is_dull else telling).append(" ".join(words[-NAME_WORDS_MAX:]))
    return telling + dull[: max(0, 8 - len(telling))]


def _is_dull(words: Sequence[str]) -> bool:
    return all(word in _DULL or word.isdigit() for word in words)


def _categories(fields: Sequence[FieldProfile]) -> Iterator[tuple[FieldProfile, str]]:
    """Fields that name things (zones, fuels, plants, statuses), each with the line of its values."""
    usual = max((field.count for field in fields), default=0)
    seen: set[tuple[str, ...]] = set()
    scored = []
    for at, field in enumerate(fields):
        if "string" not in field.type and field.type != "object":
            continue
        values = tuple(v for v in field.values if _PLAIN_VALUE.search(v) and not v.startswith(("http", "#")))
        if not values or values in seen or schema.is_code(values):
            continue
        seen.add(values)
        words = split_words(schema.own_name(field))
        dull = all(word in _DULL for word in words)
        scored.append(
            (dull, field.count < 0.3 * usual, len(values) == 1, -min(len(values), 12), at, words, values, field)
        )
    best = sorted(scored, key=lambda entry: entry[:5])[:CATEGORIES_MAX]
    chosen = sorted([entry for entry in best if not entry[0]] or best[:2], key=lambda entry: entry[4])
    left = VALUES_CHARS_MAX
    for *_, words, values, field in chosen:
        if left < 20:
            return
        text = _cut([_said(v) for v in schema.collapsed(values)], min(left, VALUES_OF_ONE_CHARS_MAX))
        yield field, f"{' '.join(words[-NAME_WORDS_MAX:])}: {text}."
        left -= len(text)


def _said(value: str) -> str:
    """`battery_charging` as a person would say it; other values as they are."""
    return value.replace("_", " ") if value.islower() else value


def _cut(items: Sequence[str], chars_max: int) -> str:
    text = ""
    for item in unique(items):
        if len(text) + len(item) + 2 > chars_max:
            return text + ", …" if text else item[:chars_max]
        text += (", " if text else "") + item
    return text


def _place(url: str) -> str | None:
    """Host and path of a URL: no credentials, no query."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return None
    return f"{host}{parts.path}"[:140] if host else None
