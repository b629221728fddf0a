"""XML to `Content`: element paths with ranges and units, prose, feed items; hardened against hostile documents.

Guarantee: no network, no DTD loading, no entity expansion, no recursion, flat memory (elements are freed as they
are read); any input ends in a `Content` or a `BadDocument(EXTRACTION_FAILED)`. libxml2's limits (256 deep,
entity amplification, 10 MB text nodes) stay on; a document that hits one is refused, not cut. A document that is
merely broken is read a second time in recovery, with a warning. Namespaces are dropped from paths, repeated
elements get `[]`, attributes `@`; a SOAP envelope is taken off. It doesn't validate, and doesn't render fields
into text (`description` does that for every format).
"""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from html import unescape
from typing import Any

from lxml import etree

from shoal.documents.charset import clean, decode
from shoal.documents.content import Content, FieldProfile, Section
from shoal.documents.market_xml import MarketSummary
from shoal.documents.profiles import is_prose, profile
from shoal.errors import BadDocument, DeadReason

PATHS_MAX = 400  # distinct element paths; beyond, names are data (one element per id) and would drown the schema
PROSE_CHARS_MAX = 2_000_000  # all prose of one document; the pipeline bounds the chunks, this bounds the memory
PROSE_PIECE_MAX = 100_000
FEED_ITEMS_MAX = 500
LEGEND_MAX = 200
VALUES_MAX = 50_000  # kept per path; beyond, every second one and the extremes: a range stays a range
VALUE_CHARS_MAX = 500
_RESOURCE_LIMIT = 114  # libxml2 XML_ERR_RESOURCE_LIMIT: depth, amplification, text size
_ENCODING_ERRORS = frozenset({31, 32, 81, 6003})  # unknown, unsupported, invalid bytes: try again as what it really is
_SOAP = re.compile(r"^Envelope(?:/Header|/Body|$)/?")
_UNIT_NAME = re.compile(r"(?:^|[._@])(?:uom|units?|unit_?of_?measure|measure_unit(?:\.name)?)$", re.I)
_TITLES = ("doctitle", "reporttitle", "title", "reportname", "name")
_TAG = re.compile(r"<[^<>]{0,2000}>")
_DECLARATION = re.compile(rb"^\s*<\?xml[^>]{0,200}\?>")


def read_xml(data: bytes, *, charset_hint: str | None) -> Content:
    """Read one XML document.

    `charset_hint` (from a header) counts only where the document neither declares nor shows its encoding.
    Raises BadDocument(EXTRACTION_FAILED): not XML at all, or over a limit that only bombs reach.
    """
    warnings: list[str] = []
    try:
        reading = _read(data, recover=False)
    except etree.XMLSyntaxError as error:
        if _code(error) == _RESOURCE_LIMIT:
            raise BadDocument(DeadReason.EXTRACTION_FAILED, f"XML over a safety limit: {_reason(error)}") from None
        again = data
        if _code(error) in _ENCODING_ERRORS or (charset_hint and _DECLARATION.match(data) is None):
            again, charset = _transcode(data, charset_hint)
            warnings.append(f"XML does not match its declared encoding; read as {charset}")
        reading, why = _second_try(again, error)
        if why is not None:
            warnings.append(f"XML is damaged, read as far as possible: {why}")
    return reading.content(tuple(warnings))


def _second_try(data: bytes, first: etree.XMLSyntaxError) -> tuple[_Reading, str | None]:
    """Read again, strictly if the bytes were mended, else in recovery. A reason where recovery was needed."""
    for recover in (False, True):
        try:
            reading = _read(data, recover=recover)
        except etree.XMLSyntaxError as error:
            if _code(error) == _RESOURCE_LIMIT:
                raise BadDocument(DeadReason.EXTRACTION_FAILED, f"XML over a safety limit: {_reason(error)}") from None
            continue
        if reading.elements > 0 and reading.has_content:
            return reading, _reason(first) if recover else None
    raise BadDocument(DeadReason.EXTRACTION_FAILED, f"not readable as XML: {_reason(first)}")


def _code(error: etree.XMLSyntaxError) -> int:
    return int(getattr(error, "code", 0) or 0)


def _reason(error: etree.XMLSyntaxError) -> str:
    return str(error).splitlines()[0][:200] if str(error) else "no element found"


def _transcode(data: bytes, hint: str | None) -> tuple[bytes, str]:
    """The document as UTF-8 without its declaration, and the charset it was taken for."""
    decoded = decode(data, hint)
    return _DECLARATION.sub(b"", decoded.text.encode("utf-8", "replace"), count=1), decoded.charset


def _read(data: bytes, *, recover: bool) -> _Reading:
    reading = _Reading()
    events = etree.iterparse(
        io.BytesIO(data),
        events=("start", "end"),
        recover=recover,
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        for event, element in events:
            if event == "start":
                reading.start(element)
            else:
                reading.end(element)
    except (ValueError, LookupError, UnicodeError) as error:  # lxml, of names or bytes it can't make text of
        raise BadDocument(DeadReason.EXTRACTION_FAILED, f"not readable as XML: {str(error)[:200]}") from None
    root = events.root
    reading.charset = root.getroottree().docinfo.encoding if root is not None else None
    return reading


@dataclass(slots=True)
class _Open:
    """An element whose end has not come yet."""

    path: str
    names: set[str] = field(default_factory=set)  # of its children so far, to find the repeated ones
    pieces: list[str] = field(default_factory=list)  # texts of children, kept while the element may be prose
    chars: int = 0
    is_mixed: bool = False

    def add(self, text: str) -> None:
        if self.chars < PROSE_PIECE_MAX:
            self.pieces.append(text[: PROSE_PIECE_MAX - self.chars])
            self.chars += len(text) + 1


class _Values:
    """The texts of one path: all of them up to a bound, then an even thinning that still takes every new extreme."""

    __slots__ = ("_high", "_low", "_stride", "count", "kept")

    def __init__(self) -> None:
        self.count = 0
        self.kept: list[str] = []
        self._stride = 1
        self._low = self._high = ""

    def add(self, text: str) -> None:
        self.count += 1
        if self.count % self._stride and _order(self._low) <= _order(text) <= _order(self._high):
            return
        self.kept.append(text[:VALUE_CHARS_MAX])
        if len(self.kept) >= VALUES_MAX:
            self._low, self._high = min(self.kept, key=_order), max(self.kept, key=_order)
            self.kept = [self._low, *self.kept[::2], self._high]
            self._stride *= 2


def _order(text: str) -> tuple[float, str]:
    """Numbers by size, all else by text (which orders ISO times)."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


class _Reading:
    """What has been seen of a document while its elements stream past."""

    def __init__(self) -> None:
        self.elements = 0
        self.charset: str | None = None
        self._root = ""
        self._namespace = ""
        self._open: list[_Open] = []
        self._locals: dict[str, str] = {}
        self._values: dict[str, _Values] = {}
        self._branches: Counter[str] = Counter()  # elements that hold others or attributes, per path
        self._repeated: set[str] = set()
        self._hidden_paths = 0
        self._units: dict[str, dict[str, None]] = {}  # unit texts by the path of their parent, in order
        self._legend: dict[str, str] = {}
        self._prose: dict[str, str] = {}  # text -> local name of its element; a dict to say each text once
        self._prose_chars = 0
        self._titles: dict[str, tuple[str, str]] = {}  # the first of each name, with its path
        self._market = MarketSummary("")
        self._feed: list[Section] = []
        self._item: dict[str, str] | None = None
        self.links: dict[str, None] = {}

    @property
    def has_content(self) -> bool:
        return bool(self._values or self._prose or self._feed)

    def start(self, element: Any) -> None:
        self.elements += 1
        name = self._local(element.tag)
        if not self._open:
            self._root, path = name, name
        else:
            parent = self._open[-1]
            path = f"{parent.path}/{name}"
            if not parent.names:
                self._text_of(parent, element.getparent().text)
            if name in parent.names:
                self._repeated.add(path)
            elif len(parent.names) < PATHS_MAX:
                parent.names.add(name)
        if self.elements == 1 or (self._root == "Envelope" and path.count("/") == 2):
            self._market = MarketSummary(name)
            self._namespace = element.tag[1:].split("}")[0] if element.tag.startswith("{") else ""
        self._open.append(_Open(path))
        self._market.start(name)
        if name in ("item", "entry") and self._is_feed:
            self._item = {}
        if element.attrib:
            self._attributes(element, path, name)

    def end(self, element: Any) -> None:
        opened = self._open.pop()
        path, name = opened.path, opened.path.rsplit("/", 1)[-1]
        previous = element.getprevious()
        if self._open and previous is not None:
            self._text_of(self._open[-1], previous.tail)
            element.getparent().remove(previous)  # what is read is freed: memory stays flat
        if opened.names or element.attrib:
            self._branches[path] += 1
        if opened.names:
            self._text_of(opened, element[-1].tail if len(element) else None)
            text = " ".join(opened.pieces) if opened.is_mixed else ""
        else:
            text = " ".join(clean(element.text or "").split())
            if text:
                self._leaf(path, name, text)
        if opened.is_mixed and not any(parent.is_mixed for parent in self._open):
            self._add_prose(name, text)
        if text and self._open:
            self._open[-1].add(text)
        if self._item is not None:
            if name in ("item", "entry"):
                self._add_item()
            elif text and name not in self._item:
                self._item[name] = text[:PROSE_PIECE_MAX]
        element.clear(keep_tail=True)

    @property
    def _is_feed(self) -> bool:
        return self._root in ("rss", "feed", "RDF")

    def _local(self, tag: object) -> str:
        if not isinstance(tag, str):  # an entity or a comment in place of an element
            return "?"
        name = self._locals.get(tag)
        if name is None:
            name = tag.rsplit("}", 1)[-1][:120]
            if len(self._locals) < 10_000:
                self._locals[tag] = name
        return name

    @staticmethod
    def _text_of(opened: _Open, text: str | None) -> None:
        if text and not text.isspace():
            opened.is_mixed = True
            opened.add(" ".join(clean(text).split()))

    def _attributes(self, element: Any, path: str, name: str) -> None:
        identity = label = None
        for key, value in element.attrib.items():
            short = self._local(key)
            if key.startswith("{http://www.w3.org/2001/XMLSchema-instance}"):
                continue
            value = " ".join(clean(value).split())
            if not value:
                continue
            identity = value if short.lower() == "id" else identity
            label = value if short.lower() in ("name", "label", "title") else label
            self._leaf(f"{path}/@{short}", f"@{short}", value)
            if short == "href" and self._item is not None:
                self._item.setdefault("link", value[:2000])
        if identity and label and len(self._legend) < LEGEND_MAX:
            self._legend[identity[:120]] = label[:120]

    def _leaf(self, path: str, name: str, text: str) -> None:
        self._market.leaf(path, text)
        values = self._values.get(path)
        if values is None:
            if len(self._values) >= PATHS_MAX:
                self._hidden_paths += 1
                return
            values = self._values[path] = _Values()
        values.add(text)
        if _UNIT_NAME.search(name) and len(text) <= 30:
            self._units.setdefault(path.rsplit("/", 1)[0], {})[text] = None
        if name.lower() in _TITLES:
            self._titles.setdefault(name.lower(), (path, text[:300]))
        if is_prose(text):
            self._add_prose(name, text)

    def _add_prose(self, name: str, text: str) -> None:
        if self._item is None and self._prose_chars < PROSE_CHARS_MAX and text not in self._prose:
            self._prose[text] = name
            self._prose_chars += len(text)

    def _add_item(self) -> None:
        item, self._item = self._item or {}, None
        if len(self._feed) >= FEED_ITEMS_MAX:
            return
        title = _plain(item.get("title", ""))
        lines = [title] if title else []
        for key in ("pubDate", "published", "updated", "date", "creator", "author", "category", "link"):
            if key in item:
                lines.append(f"{key}: {item[key]}")
        body = max((item.get(k, "") for k in ("encoded", "content", "description", "summary")), key=len)
        if body:
            lines.append(_plain(body))
        if lines:
            self._feed.append(Section("\n".join(lines), title or None))

    def content(self, warnings: tuple[str, ...]) -> Content:
        """What was read, as a `Content`."""
        if not self.elements:
            raise BadDocument(DeadReason.EXTRACTION_FAILED, "not readable as XML: no element found")
        if self._hidden_paths:
            warnings += (f"more than {PATHS_MAX} element paths; {self._hidden_paths} values left out",)
        title = self._market.title() or self._title()
        sections = []
        fields = self._fields()
        if summary := self._market.text(fields):
            sections.append(Section(summary))
        elif overview := self._overview(title):
            sections.append(Section(overview))
        sections += self._feed
        sections += [Section(text if len(text) > 200 else f"{name}: {text}") for text, name in self._prose.items()]
        if self._is_feed and len(self._feed) >= FEED_ITEMS_MAX:
            warnings += (f"feed cut after {FEED_ITEMS_MAX} items",)
        records = max(
            (n for path, n in self._branches.items() if path in self._repeated), default=len(self._feed) or None
        )
        return Content(
            file_format="XML",
            sections=tuple(sections),
            fields=tuple(fields),
            title=title,
            charset=(self.charset or "utf-8").lower(),
            records=records,
            warnings=warnings,
        )

    def _title(self) -> str | None:
        """The first text named like a title that doesn't belong to one of many records."""
        for name in _TITLES:
            path, text = self._titles.get(name, ("", ""))
            if text and (self._is_feed or "[]" not in self._shown(path)):
                return text
        return None

    def _overview(self, title: str | None) -> str:
        """Root, schema and the repeated elements: the shape that the fields don't say in words."""
        root = next((p for p in self._branches if not _SOAP.match(f"{p}/") or _SOAP.sub("", p)), self._root)
        name = _SOAP.sub("", root).split("/")[0] or self._root
        lines = [f"{title}: XML document {name}" if title else f"XML document {name}"]
        if self._namespace:
            lines[0] += f" ({self._namespace[:120]})"
        repeated = sorted((p for p in self._branches if p in self._repeated), key=lambda p: -self._branches[p])[:6]
        for path in repeated:
            lines.append(f"{self._branches[path]} {path.rsplit('/', 1)[-1]} records ({self._shown(path)})")
        if self._legend:
            lines.append(f"Series: {', '.join(dict.fromkeys(self._legend.values()))}"[:2000])
        return "\n".join(lines)

    def _fields(self) -> list[FieldProfile]:
        units = self._market.units()
        fields = []
        for path, values in self._values.items():
            name = path.rsplit("/", 1)[-1]
            label = self._legend.get(name.removeprefix("@"))
            shown = self._shown(path)
            found = profile(
                f"{shown} ({label})" if label else shown, values.kept, count=values.count, name=label or name
            ).profile
            if found.type.startswith(("number", "integer")) and (unit := units.get(name) or self._unit_beside(path)):
                found = replace(found, unit=unit)
            fields.append(found)
        return fields

    def _unit_beside(self, path: str) -> str | None:
        """`<v unit="MW">1</v>`, or a unit named by an element or attribute next to this one, if by one only."""
        parent, name = path.rsplit("/", 1) if "/" in path else ("", path)
        if name in ("mRID", "position", "revisionNumber", "code", "id", "@id"):
            return None
        for place in (path, parent):
            if len(beside := self._units.get(place, {})) == 1:
                return next(iter(beside))
        return None

    def _shown(self, path: str) -> str:
        """The path as people read it: without a SOAP envelope, with `[]` on what repeats."""
        parts = path.split("/")
        prefix, shown = "", []
        for part in parts:
            prefix = f"{prefix}/{part}" if prefix else part
            shown.append(f"{part}[]" if prefix in self._repeated else part)
        text = "/".join(shown)
        return _SOAP.sub("", text) or text


def _plain(text: str) -> str:
    """Text of a feed's HTML: tags off, entities resolved, white space folded."""
    return " ".join(unescape(_TAG.sub(" ", text)).split())
