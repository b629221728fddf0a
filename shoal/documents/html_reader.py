"""HTML to `Content`: prose under its headings, tables of data, forms and links that tell of an API.

Documentation pages keep all their text, under breadcrumbs of their headings; pages of data get their tables
described (`html_tables`) and keep their sentences, but few of their rows, links and labels (`html_digest`); directory
listings are summed up. Navigation, scripts and styles are dropped, but the
addresses that scripts call and the JSON they embed are noted, since that is where such pages get their data.
Guarantee: any input ends in a `Content` or a `BadDocument(EXTRACTION_FAILED)`; bombs are refused before the
parser sees them (`html_guard`); the walk is iterative and bounded. Nothing is fetched and no script is run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from shoal.documents.charset import clean, decode
from shoal.documents.content import Content, FieldProfile, Section
from shoal.documents.html_digest import Block, Kind, Line, digest
from shoal.documents.html_guard import guard
from shoal.documents.html_links import LISTED_MAX, Addresses, file_share, flat, listing
from shoal.documents.html_tables import Table, children, read_table
from shoal.errors import BadDocument, DeadReason

TEXT_CHARS_MAX = 4_000_000  # of all sections; the pipeline bounds the chunks, this bounds the memory
TABLES_MAX = 200
FIELDS_MAX = 400
_META = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.I)
_SPACE = re.compile(r"\s+")


def _tags(names: str) -> frozenset[str]:
    return frozenset(names.split())


_DROPPED = _tags(
    "script style noscript template svg canvas iframe object embed select datalist textarea head nav footer map"
    " video audio dialog"
)
_BLOCKS = _tags(
    "address article aside blockquote body center dd details div dl dt fieldset figcaption figure form header hr html"
    " legend li main menu ol p section summary ul br tr td th table tbody caption"
)
_HEADINGS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}
_JUNK = re.compile(
    r"(?:^|[-_ ])(?:nav|navbar|navigation|topnav|menu|submenu|footer|sidebar|breadcrumbs?|cookies?|onetrust|consent|"
    r"share|social|skip|ads?|advert|banner|pagination|comments?|related|newsletter|popup|modal|snb|gnb|lnb|sitemap|"
    r"calendar|datepicker|radcalendar\w*)(?:$|[-_ ])",
    re.I,
)
_CODE_LINE = re.compile(r"\$\(document\)|\bfunction\s*\(|\bvar \w+ ?=")


def read_html(data: bytes | str, *, charset_hint: str | None = None, base_url: str | None = None) -> Content:
    """Read one page. `charset_hint` is a header's, `base_url` resolves relative links.

    Raises BadDocument(EXTRACTION_FAILED) for pathological markup, BadDocument(EMPTY) where nothing is said.
    """
    warnings: tuple[str, ...] = ()
    charset = "utf-8"
    if isinstance(data, bytes):
        meta = _META.search(data[:4096])
        declared = charset_hint or (meta[1].decode("ascii", "replace") if meta else None)
        text, charset, warnings = decode(data, declared)
    else:
        text = data
    markup, guard_warnings = guard(text.encode("utf-8", "replace"))
    try:
        parser = LexborHTMLParser(markup)
    except (SelectolaxError, ValueError, RuntimeError) as error:
        raise BadDocument(DeadReason.EXTRACTION_FAILED, f"not readable as HTML: {str(error)[:200]}") from None
    return _Page(parser, base_url).content(charset, warnings + guard_warnings)


class _Page:
    """One parsed page while its parts are gathered."""

    def __init__(self, parser: LexborHTMLParser, base_url: str | None) -> None:
        self._parser = parser
        self._base = base_url or _saved_from(parser)
        self._headings: list[tuple[int, str]] = []
        self._lines: list[Line] = []
        self._blocks: list[Block] = []
        self._inline: list[str] = []
        self._sections: list[Section] = []
        self._chars = 0
        self._fields: list[FieldProfile] = []
        self._tables = 0
        self._records = 0
        self._tabled = 0  # characters of tables that were described
        self._addresses = Addresses(parser, self._base)
        self._drops_junk = True

    def content(self, charset: str, warnings: tuple[str, ...]) -> Content:
        title = self._title()
        scripts = self._addresses.scripts()
        listed = listing(self._parser, title or "")
        if listed is not None:
            self._sections, self._records = [Section(listed[0])], listed[1]
        else:
            self._read_body()
            self._sections = digest(self._blocks, self._tabled)
        if description := self._meta("description", "og:description"):
            self._sections.insert(0, Section(description))
        extras = [
            text
            for text in (self._addresses.forms(), self._addresses.downloads() if listed is None else None, scripts)
            if text
        ]
        if extras:
            self._sections.append(Section("\n".join(extras)))
        if not self._sections and not title:
            raise BadDocument(DeadReason.EMPTY, "the page has no text")
        if self._chars >= TEXT_CHARS_MAX:
            warnings += (f"text cut after {TEXT_CHARS_MAX} characters",)
        return Content(
            file_format="HTML",
            sections=tuple(self._sections),
            fields=tuple(self._fields[:FIELDS_MAX]),
            title=title or next((text for level, text in self._headings if level <= 2), None),
            charset=charset,
            records=self._records or None,
            warnings=warnings,
            links=self._addresses.links,
        )

    # --- the body ---------------------------------------------------------------------------------

    def _read_body(self) -> None:
        body = self._parser.body or self._parser.root
        if body is None:
            return
        whole = len(_SPACE.sub(" ", body.text(deep=True) or ""))
        root = self._main(body, whole)
        self._walk(root)
        # A drop list that took most of a page was wrong about it: read all of it.
        if (
            whole > 200
            and self._chars + 60 * len(self._fields) < 0.1 * whole
            and (root is not body or self._chars < 200)
        ):
            self._drops_junk = False
            self._blocks, self._fields, self._headings = [], [], []
            self._tables = self._records = self._chars = self._tabled = 0
            self._walk(body)

    @staticmethod
    def _main(body: LexborNode, whole: int) -> LexborNode:
        """The element that holds the page's matter, where the page says which and it holds enough."""
        for selector in ("main", "[role=main]", "article"):
            found = body.css(selector)
            if len(found) == 1 and len(found[0].text(deep=True) or "") > max(200, 0.25 * whole):
                return found[0]
        return body

    def _walk(self, root: LexborNode) -> None:
        stack: list[tuple[LexborNode, bool]] = [(root, False)]
        while stack and self._chars < TEXT_CHARS_MAX:
            node, is_done = stack.pop()
            tag = node.tag
            if tag == "-text":
                self._inline.append(node.text_content or "")
                continue
            if is_done or tag is None:
                self._end(tag or "")
                continue
            if (
                tag.startswith(("-", "!"))
                or tag in _DROPPED
                or (self._drops_junk and node is not root and _is_junk(node))
            ):
                continue
            if tag in _HEADINGS:
                self._heading(_HEADINGS[tag], flat(node))
                continue
            if tag == "pre":
                self._flush_line()
                self._add("```\n" + clean(node.text() or "").strip("\n") + "\n```", Kind.WHOLE)
                continue
            if tag == "table" and self._table(node):
                continue
            if tag in ("ul", "ol", "menu") and self._link_list(node):
                continue
            if tag in _BLOCKS:
                self._flush_line()
            if tag == "li":
                self._inline.append("- ")
            elif tag == "img" and len(alt := node.attributes.get("alt") or "") > 12:
                self._inline.append(f" {alt} ")
            if tag in _BLOCKS:
                stack.append((node, True))
            stack.extend(reversed([(child, False) for child in children(node)]))
        self._flush_line()
        self._flush_section()

    def _end(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._inline.append(" ")
        elif tag:
            self._flush_line()

    def _heading(self, level: int, text: str) -> None:
        if not text:
            return
        self._flush_line()
        self._flush_section()
        self._headings = [(lv, t) for lv, t in self._headings if lv < level]
        self._headings.append((level, text[:200]))

    def _flush_line(self) -> None:
        line = _SPACE.sub(" ", clean("".join(self._inline))).strip()
        self._inline = []
        if line and line != "-" and not _CODE_LINE.search(line):
            self._add(line)

    def _add(self, line: str, kind: Kind = Kind.TEXT, table: int = 0) -> None:
        self._lines.append(Line(line, kind, table))
        self._chars += len(line)

    def _flush_section(self) -> None:
        lines = list(dict.fromkeys(self._lines)) if len(self._lines) < 400 else self._lines
        self._lines = []
        heading = " > ".join(t for _, t in self._headings) or None
        if not lines and self._headings and len(self._headings[-1][1].split()) > 3:
            lines = [Line(self._headings[-1][1])]  # a heading that is all there is
        if lines:
            self._blocks.append(Block(heading, lines))

    # --- parts ------------------------------------------------------------------------------------

    def _table(self, node: LexborNode) -> bool:
        """True when `node` was a table of data and has been described."""
        if self._tables >= TABLES_MAX:
            return True
        caption = node.css_first("caption")
        name = flat(caption) if caption else (self._headings[-1][1] if self._headings else None)
        table = read_table(node, name if caption or self._tables else None)
        if table is None:
            return False
        self._tables += 1
        self._flush_line()
        self._records += table.rows
        self._fields += table.fields[: FIELDS_MAX - len(self._fields)]
        if table.fields:
            self._tabled += len(node.text(deep=True) or "")
        for line, is_row in _said(table, flat(caption) if caption else None):
            # A table without numbers (parameters, definitions) is text, every row of it.
            self._add(line, Kind.ROW if is_row and table.fields else Kind.WHOLE, self._tables)
        return True

    def _link_list(self, node: LexborNode) -> bool:
        """True when `node` is a list of nothing but links: a menu, kept as one line."""
        anchors = node.css("a[href]")
        if len(anchors) < 6:
            return False
        texts = [text for anchor in anchors[:400] if (text := flat(anchor))]
        if sum(map(len, texts)) < 0.8 * len(flat(node)) or file_share(anchors) > 0.3:
            return False
        self._flush_line()
        more = f" and {len(texts) - LISTED_MAX} more" if len(texts) > LISTED_MAX else ""
        self._add(f"Links: {', '.join(dict.fromkeys(t[:80] for t in texts[:LISTED_MAX]))}{more}", Kind.LINKS)
        return True

    def _title(self) -> str | None:
        node = self._parser.css_first("title")
        title = flat(node) if node else ""
        if not title:
            title = self._meta("og:title") or ""
        if not title and (heading := self._parser.css_first("h1, h2")):
            title = flat(heading)
        return title[:300] or None

    def _meta(self, *names: str) -> str | None:
        for node in self._parser.css("meta[content]")[:200]:
            if (node.attributes.get("name") or node.attributes.get("property") or "").lower() in names:
                text = _SPACE.sub(" ", clean(node.attributes.get("content") or "")).strip()
                if len(text) > 10:
                    return text[:1000]
        return None


def _said(table: Table, caption: str | None) -> Iterator[tuple[str, bool]]:
    """The lines about a table, and whether each is one of its rows."""
    headers = [header for header in dict.fromkeys(table.headers) if header]
    if table.is_complete:
        if caption:
            yield caption, False
        yield from ((line, True) for line in table.lines)
        return
    shown = f" with the columns {', '.join(headers[:60])}" if headers else ""
    yield f"Table{f' {caption}' if caption else ''}: {table.rows} rows{shown}", False
    yield from ((line[:600], not line.startswith("Rows: ")) for line in table.lines)


def _is_junk(node: LexborNode) -> bool:
    attributes = node.attributes
    if "hidden" in attributes or (attributes.get("role") or "") in ("navigation", "banner", "contentinfo", "search"):
        return True
    if node.tag not in ("div", "ul", "section", "aside", "header", "span", "p", "li", "table", "form"):
        return False
    name = f"{attributes.get('class') or ''} {attributes.get('id') or ''}"
    return len(name) > 1 and len(name) < 400 and bool(_JUNK.search(name))


def _saved_from(parser: LexborHTMLParser) -> str | None:
    """The address that a browser wrote into a page it saved, or the page's own canonical address."""
    match = re.search(r"<!--\s*saved from url=\(\d+\)(https?://[^\s>]{4,600})", (parser.html or "")[:2000])
    if match:
        return match[1]
    link = parser.css_first("link[rel=canonical][href]")
    url = (link.attributes.get("href") or "") if link else ""
    return url if urlsplit(url).scheme in ("http", "https") else None
