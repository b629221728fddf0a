"""What an HTML page tells of where data comes from: links to data, forms, scripts, listings of directories.

Pages of data are often drawn by scripts; the addresses that these call, the labels they show and the keys of the
JSON they embed say more than the page's text. Everything is bounded and redacted; nothing is fetched or run.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urldefrag, urljoin

from selectolax.lexbor import LexborHTMLParser, LexborNode

from shoal.documents.charset import clean
from shoal.redaction import redact_url

LINKS_MAX = 60
LISTED_MAX = 40  # link texts of one navigation list, names of a directory listing
_SPACE = re.compile(r"\s+")
_DATA_FILE = re.compile(r"\.(?:csv|tsv|json|geojson|xml|xlsx?|ods|zip|gz|parquet|txt|rss|atom|kml)$", re.I)
_API = re.compile(
    r"(?:^|[/._-])(?:api|apis|rest|graphql|odata|ajax|json|ashx|asmx|svc|feed|query|ws|webservice)(?:[/._?-]|$|v\d)",
    re.I,
)
_IN_SCRIPT = re.compile(r"[\"'`]((?:https?:)?//[^\s\"'`<>\\]{6,400}|/?[\w.~-]*/[^\s\"'`<>\\]{3,300})[\"'`]")
_SCRIPT_ASSET = re.compile(
    r"\.(?:js|css|png|jpe?g|gif|svg|ico|woff2?|map|html?)(?:[?#]|$)|google|gstatic|facebook|jquery", re.I
)
_JSON_KEY = re.compile(r"[\"']([A-Za-z_][\w .()/%-]{1,40})[\"']\s*:")


class Addresses:
    """The addresses of one parsed page, gathered part by part; `links` in the order they were found."""

    def __init__(self, parser: LexborHTMLParser, base_url: str | None) -> None:
        self._parser = parser
        self._base = base_url
        self._links: dict[str, None] = {}

    @property
    def links(self) -> tuple[str, ...]:
        return tuple(self._links)

    def forms(self) -> str | None:
        """What a form asks for: the parameters of the request behind it."""
        lines = []
        for form in self._parser.css("form")[:5]:
            names = [
                name.rsplit("$", 1)[-1]
                for node in form.css("input[name], select[name]")[:40]
                if (name := node.attributes.get("name"))
                and not name.startswith(("__", "javax"))
                and (node.attributes.get("type") or "").lower()
                not in ("hidden", "password", "submit", "button", "image")
            ]
            if len(names) >= 1:
                target = self._note_link(form.attributes.get("action") or "") or "this page"
                method = (form.attributes.get("method") or "get").upper()[:4]
                lines.append(f"Form: {method} {target} with {', '.join(n[:60] for n in dict.fromkeys(names))}")
        return "\n".join(lines) or None

    def downloads(self) -> str | None:
        """Links to data files and APIs, with the words on them."""
        lines = []
        for anchor in self._parser.css("a[href]")[:5000]:
            href = anchor.attributes.get("href") or ""
            path = href.split("?")[0].split("#")[0]
            if (_DATA_FILE.search(path) or _API.search(path)) and (url := self._note_link(href)):
                text = flat(anchor)[:100]
                lines.append(f"{text}: {url}" if text and text not in url else url)
            if len(lines) >= LISTED_MAX:
                break
        return "Data links:\n" + "\n".join(dict.fromkeys(lines)) if lines else None

    def scripts(self) -> str | None:
        """Addresses and JSON in scripts. A page drawn by scripts has its data nowhere else."""
        keys: Counter[str] = Counter()
        labels: dict[str, None] = {}
        for script in self._parser.css("script")[:200]:
            source = (script.text() or "")[:400_000]
            for match in _IN_SCRIPT.finditer(source):
                path = match[1].split("?")[0]
                if (
                    len(self._links) < LINKS_MAX
                    and not _SCRIPT_ASSET.search(match[1])
                    and (_API.search(path) or _DATA_FILE.search(path))
                ):
                    self._note_link(match[1])
            if (script.attributes.get("src") is None) and len(source) > 200:
                keys.update(match[1] for match in _JSON_KEY.finditer(source))
                labels.update(dict.fromkeys(_labels(source)))
        lines = []
        if labels:
            lines.append(f"Labels in scripts: {', '.join(list(labels)[:60])}"[:2000])
        if repeated := [key for key, n in keys.most_common(40) if n >= 8]:
            lines.append(f"Data in scripts with the fields: {', '.join(repeated)}")
        if self._links:
            lines.append(f"Addresses in scripts: {', '.join(list(self._links)[:20])}"[:2000])
        return "\n".join(lines) or None

    def _note_link(self, href: str) -> str | None:
        href = href.strip()
        if not href or href.startswith(("#", "javascript:", "mailto:", "data:", "tel:")) or len(href) > 600:
            return None
        try:
            url = redact_url(urldefrag(urljoin(self._base or "", href)).url)
        except ValueError:
            return None
        if len(self._links) < LINKS_MAX:
            self._links[url] = None
        return url


def listing(parser: LexborHTMLParser, title: str) -> tuple[str, int] | None:
    """A server's listing of a directory summed up (kinds of files, their names), and how many files; else None."""
    body = parser.body
    anchors = parser.css("a[href]")
    if body is None or len(anchors) < 3:
        return None
    names = [name for a in anchors[:50_000] if (name := (a.attributes.get("href") or "").split("?")[0].rstrip("/"))]
    says_so = bool(
        re.match(r"(?:Index of|Directory listing|Listing of)\b", title, re.I)
    ) or "[To Parent Directory]" in (anchors[0].text() or "")
    if not says_so and not (file_share(anchors) > 0.8 and len(anchors) > 20 and not parser.css_first("p, h2, td p")):
        return None
    files = [name.rsplit("/", 1)[-1] for name in names if "." in name.rsplit("/", 1)[-1].strip(".")]
    folders = [name for name in names if "." not in name.rsplit("/", 1)[-1]]
    kinds = Counter(name.rsplit(".", 1)[-1].lower()[:10] for name in files)
    lines = [f"Directory listing {title}: {len(files)} files, {len(folders)} folders"]
    if kinds:
        lines.append("Kinds of files: " + ", ".join(f"{n} {kind}" for kind, n in kinds.most_common(8)))
    patterns = Counter(re.sub(r"\d+", "#", name) for name in files)
    lines.append("Names like: " + ", ".join(pattern[:100] for pattern, _ in patterns.most_common(12)))
    if folders:
        lines.append("Folders: " + ", ".join(f.rsplit("/", 1)[-1][:60] for f in folders[:LISTED_MAX]))
    shown = files if len(files) <= LISTED_MAX else [*files[: LISTED_MAX // 2], "…", *files[-LISTED_MAX // 2 :]]
    lines.append("Files: " + ", ".join(name[:120] for name in shown))
    return "\n".join(lines), len(files)


def _labels(source: str) -> Iterator[str]:
    """Titles of charts and axes, and captions: the words that a page drawn by scripts shows."""
    for match in re.finditer(
        r"(?:title|text|name|caption|label|legendText|subtitle)[\"']?\s*:\s*[\"']([^\"'\\]{3,80})[\"']", source, re.I
    ):
        text = _SPACE.sub(" ", match[1]).strip()
        if (
            sum(c.isalpha() for c in text) > 0.6 * len(text)
            and (" " in text or len(text) > 5)
            and not re.search(r"[<>{};#]", text)
        ):
            yield text


def flat(node: LexborNode) -> str:
    return _SPACE.sub(" ", clean((node.text(deep=True, separator=" ") or "")[:20_000])).strip()


def file_share(anchors: list[LexborNode]) -> float:
    files = sum(1 for a in anchors if _DATA_FILE.search((a.attributes.get("href") or "").split("?")[0]))
    return files / max(1, len(anchors))
