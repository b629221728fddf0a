"""What a document or its URL tells of the API it came from: endpoint, auth, rate limit, freshness, paging.

Every trait has evidence (the words or names it was read from) or is None: an agent that writes a scraper is
better served by nothing than by a guess. Strongest evidence first: an OpenAPI document's own declarations, names
in the URL, keys of the body, prose with a verb that makes it a promise ("updated every 5 minutes", where "bake
for 40 minutes" is none), and last the step of a time series in the data. Pure; never raises; values that could
be secrets are not in the evidence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from shoal.documents import openapi
from shoal.documents import trait_words as words
from shoal.documents.content import Content, FieldProfile
from shoal.records import ApiTraits
from shoal.redaction import redact_url

RAW_CHARS_MAX = 2_000_000  # worth handing to find_traits: an OpenAPI document is read whole
HEAD_CHARS_MAX = 20_000  # searched of any other text; an API says who it is at the beginning
_EVIDENCE_CHARS_MAX = 160
_FIELDS_MAX = 2_000

_NUMBERS = {"one": 1, "two": 2, "five": 5, "ten": 10, "fifteen": 15, "thirty": 30, "sixty": 60}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FRESHNESS = (
    (90, "realtime"),
    (450, "5min"),
    (1_500, "15min"),
    (3 * 3_600, "hourly"),
    (36 * 3_600, "daily"),
    (10 * 86_400, "weekly"),
    (45 * 86_400, "monthly"),
)
_RESOLUTION = re.compile(r"P(?:T(\d{1,4})([SMH])|(\d{1,3})([DWMY]))")
_OFFSET_FIELDS = ({"total", "limit", "records"}, {"total", "limit", "offset"}, {"nhits", "rows", "start"})
_UPKEEP = re.compile(r"expir|creat|insert|modif|publish|posted|changed")
_STEPS_S = (60, 240, 300, 600, 900, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400, 604_800)
_DATE_SEGMENT = re.compile(r"(?:19|20)\d{2}-?(?:0[1-9]|1[0-2])(?:-?(?:0[1-9]|[12]\d|3[01]))?(?:[T_-]?\d{2,6}Z?)?")
_ID_SEGMENT = re.compile(r"\d{5,}|[0-9a-f]{16,}|[0-9a-f]{8}-[0-9a-f-]{20,}", re.I)
_FILE_DATE = re.compile(r"(?<!\d)(?:19|20)\d{2}[-_]?(?:0[1-9]|1[0-2])(?:[-_]?(?:0[1-9]|[12]\d|3[01]))?(?!\d)")


def find_traits(
    content: Content, source_url: str | None, raw_head: str, collected_at: datetime | None = None
) -> ApiTraits:
    """The traits of the API behind a document.

    `raw_head` is the beginning of its decoded text, headers included where they were kept. `collected_at` dates
    the collection: a series that ended long before it is an archive, and its step no freshness.
    """
    head = raw_head[:HEAD_CHARS_MAX]
    evidence: dict[str, str] = {}
    spec = openapi.read_openapi(raw_head)
    endpoint = _endpoint(source_url, content, head, spec, evidence)
    query = _query_names(source_url)
    keys = _keys(content, head)
    prose = _prose(content, head)
    auth = _auth(source_url, query, spec, prose, evidence)
    paging = _paging(query, keys, head, spec, evidence)
    rate = _rate(prose, evidence)
    freshness = _freshness(content, source_url, prose, head, collected_at, evidence)
    return ApiTraits(endpoint, auth, rate, freshness, paging, evidence)


def template_url(url: str) -> str:
    """The endpoint of `url`: scheme, host, path with dates and ids as `{date}`, `{id}`, and templated query names.

    Raises ValueError for what is no http(s) URL.
    """
    parts = urlsplit(redact_url(url.strip()))
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError("not an http(s) URL")
    segments = []
    for segment in parts.path.split("/"):
        if _DATE_SEGMENT.fullmatch(segment):
            segment = "{date}"
        elif _ID_SEGMENT.fullmatch(segment):
            segment = "{id}"
        else:
            segment = _FILE_DATE.sub("{date}", segment)
        segments.append(segment[:120])
    names = dict.fromkeys(
        name[:60] for name, _ in parse_qsl(parts.query, keep_blank_values=True) if name not in ("_", "t")
    )
    query = "&".join(f"{name}={{{name.lstrip('$')}}}" for name in list(names)[:20])
    return f"{parts.scheme}://{parts.netloc}{'/'.join(segments)}" + (f"?{query}" if query else "")


def typical_step(field: FieldProfile) -> int | None:
    """The distance in seconds of a column of times, from its range and how many distinct ones there are.

    None unless it is a usual step (5 minutes, an hour, a day …): then the column has no large gaps.
    """
    if field.type != "date-time" or not field.low or not field.high or not field.distinct or field.distinct < 4:
        return None
    try:
        low, high = datetime.fromisoformat(field.low), datetime.fromisoformat(field.high)
        step = (high - low).total_seconds() / (field.distinct - 1)
    except (ValueError, TypeError, OverflowError):
        return None
    return next((usual for usual in _STEPS_S if abs(step - usual) <= 0.03 * usual), None)


# --- each trait -------------------------------------------------------------------------------------


def _endpoint(
    url: str | None, content: Content, head: str, spec: Mapping[str, Any] | None, evidence: dict[str, str]
) -> str | None:
    candidates: list[tuple[str, str]] = []
    if url:
        candidates.append((url, "source url"))
    if spec is not None:
        candidates += [(address, "OpenAPI servers") for address in openapi.servers(spec)]
    elif not url:
        for pattern, said in (
            (r"<!--\s*saved from url=\(\d+\)(https?://[^\s>]{4,600})", "saved from url"),
            (
                r'"(?:@odata\.context|@odata\.id|self|selfLink|request_url|requestUrl)"\s*:\s*"(https?://[^"\s]{4,600})"',
                "self link",
            ),
        ):
            if match := re.search(pattern, head[:20_000]):
                candidates.append((match[1], said))
    for candidate, said in candidates:
        try:
            endpoint = template_url(candidate)
        except ValueError:
            continue
        evidence["api_endpoint"] = said
        return endpoint
    return None


def _auth(
    url: str | None,
    query: Sequence[str],
    spec: Mapping[str, Any] | None,
    prose: str,
    evidence: dict[str, str],
) -> str | None:
    if spec is not None and (found := openapi.authentication(spec)) is not None:
        evidence["auth_method"] = found[1][:_EVIDENCE_CHARS_MAX]
        return found[0]
    for name in query:
        if words.KEY_NAMES.match(name):
            evidence["auth_method"] = f"query parameter {name}"
            return "api_key"
        if words.BEARER_NAMES.match(name):
            evidence["auth_method"] = f"query parameter {name}"
            return "bearer" if "access" in name.lower() else "api_key"
    if url and re.match(r"[a-z]+://[^/?#\s]*@", url, re.I):
        evidence["auth_method"] = "user and password in the URL"
        return "basic"
    for method, pattern in words.AUTH_PROSE:
        if match := pattern.search(prose):
            evidence["auth_method"] = _around(prose, match)
            return method
    return None


def _paging(
    query: Sequence[str], keys: Sequence[str], head: str, spec: Mapping[str, Any] | None, evidence: dict[str, str]
) -> str | None:
    names = list(query) + (openapi.parameters(spec) if spec is not None else [])
    for kind, pattern in (("cursor", words.CURSOR_NAMES), ("offset", words.OFFSET_NAMES), ("page", words.PAGE_NAMES)):
        for name in names:
            if pattern.match(name) and (name.lower() != "p" or spec is not None):
                evidence["pagination_type"] = f"parameter {name}"
                return kind
    lasts = [key.rsplit(".", 1)[-1].removesuffix("[]") for key in keys]
    for key, last in zip(keys, lasts, strict=True):
        if words.CURSOR_NAMES.match(last):
            evidence["pagination_type"] = f"field {key}"
            return "cursor"
        if last == "exceededTransferLimit":
            evidence["pagination_type"] = f"field {key} (ArcGIS: resultOffset)"
            return "offset"
        if last in ("@odata.nextLink", "odata.nextLink") or words.NEXT_LINK.search(key):
            evidence["pagination_type"] = f"field {key}"
            return _kind_of_link(head) or "link"
        if words.TOTAL_PAGES.match(last):
            evidence["pagination_type"] = f"field {key}"
            return "page"
    if {"count", "next", "previous", "results"} <= set(lasts):
        evidence["pagination_type"] = "fields count, next, previous, results"
        return _kind_of_link(head) or "link"
    for wanted in _OFFSET_FIELDS:
        if wanted <= set(lasts):
            evidence["pagination_type"] = f"fields {', '.join(sorted(wanted))}"
            return "offset"
    if re.search(r"^link:\s*<[^>]+>;\s*rel=\"?next", head[:4000], re.I | re.M) or re.search(
        r"\"rel\"\s*:\s*\"next\"|<link[^>]{1,200}rel=\"next\"", head, re.I
    ):
        evidence["pagination_type"] = "link rel=next"
        return _kind_of_link(head) or "link"
    return None


def _kind_of_link(head: str) -> str | None:
    """How the next link pages: by the names of its parameters."""
    match = re.search(r"\"next[\w@.]*\"\s*:\s*(?:\{\s*\"href\"\s*:\s*)?\"([^\"]{5,1000})\"", head) or re.search(
        r"nextLink\"\s*:\s*\"([^\"]{5,1000})\"", head
    )
    if match is None:
        return None
    names = [name for name, _ in parse_qsl(match[1].partition("?")[2], keep_blank_values=True)]
    for kind, pattern in (("cursor", words.CURSOR_NAMES), ("offset", words.OFFSET_NAMES), ("page", words.PAGE_NAMES)):
        if any(pattern.match(name) for name in names):
            return kind
    return None


def _rate(prose: str, evidence: dict[str, str]) -> str | None:
    match = words.RATE.search(prose) or words.RATE_LIMIT.search(prose)
    if match is None:
        return None
    number = int(match["n"].replace(",", ""))
    unit = match["unit"].lower()
    per = (
        "s"
        if unit.startswith("s")
        else "month"
        if unit.startswith("mo")
        else "min"
        if unit.startswith("m")
        else "hour"
        if unit.startswith("h")
        else "day"
    )
    several = match["k"] if match["k"] and match["k"] != "1" else ""
    if not 0 < number <= 10_000_000:
        return None
    evidence["rate_limit"] = _around(prose, match)
    return f"{number}/{several}{per}"


def _freshness(
    content: Content,
    url: str | None,
    prose: str,
    head: str,
    collected_at: datetime | None,
    evidence: dict[str, str],
) -> str | None:
    if match := words.FRESH_EVERY.search(prose):
        unit = match["unit"].lower()
        seconds = 30 * 86_400 if unit.startswith("mo") else _SECONDS[unit[0]]
        number = match["n"] or "1"
        evidence["data_freshness"] = _around(prose, match)
        return _named(_NUMBERS.get(number.lower(), 0) * seconds or int(number) * seconds)
    if match := words.FRESH_WORD.search(prose):
        word = (match["word"] or match["word2"]).lower().replace("-", " ")
        evidence["data_freshness"] = _around(prose, match)
        named = {"twice a day": "daily", "once a day": "daily"}
        return "realtime" if "real" in word or "contin" in word else named.get(word, word)
    if (match := words.META_REFRESH.search(head[:20_000])) and 5 <= int(match[1]) <= 86_400:
        evidence["data_freshness"] = f"the page refreshes itself every {match[1]} s"
        return _named(int(match[1]))
    if url and (
        match := re.search(
            r"(?<![a-z0-9])(real[-_]?time|(\d{1,2})[-_]?min(?:ute)?s?|hourly|daily|weekly|monthly)(?![a-z])",
            unquote(url.split("?")[0]),
            re.I,
        )
    ):
        evidence["data_freshness"] = f"url: {match[0]}"
        word = match[0].lower()
        return _named(int(match[2]) * 60) if match[2] else "realtime" if word.startswith("real") else word
    return _series_freshness(content, collected_at, evidence)


def _series_freshness(content: Content, collected_at: datetime | None, evidence: dict[str, str]) -> str | None:
    """The step of the data: a resolution that the document states, else the finest step of a column of times."""
    stated: list[tuple[int, str]] = []
    steps: list[tuple[int, str]] = []
    for field in content.fields[:_FIELDS_MAX]:
        last = re.split(r"[./]", field.path)[-1].lower()
        if last == "resolution" and field.values and "Available_Period" not in field.path:  # that is an outage's curve
            if seconds := _iso_duration_s(field.values[0]):
                stated.append((seconds, f"{field.path} {field.values[0]}"))
        elif not _UPKEEP.search(last) and (step := typical_step(field)) is not None:
            # Dates beside an hour column repeat: the data are finer than their days.
            is_date_of_many = step >= 86_400 and field.count > 1.5 * (field.distinct or 1)
            if not is_date_of_many and not _is_archive(field, collected_at):
                steps.append((step, f"{field.path}: a value every {step} s"))
    if not stated and not steps:
        return None
    step, said = min(stated or steps)
    evidence["data_freshness"] = said[:_EVIDENCE_CHARS_MAX]
    return _named(step)


def _iso_duration_s(text: str) -> int | None:
    match = _RESOLUTION.fullmatch(text)
    if match is None:
        return None
    if match[1]:
        return int(match[1]) * {"S": 1, "M": 60, "H": 3_600}[match[2]]
    return int(match[3]) * {"D": 86_400, "W": 604_800, "M": 30 * 86_400, "Y": 365 * 86_400}[match[4]]


def _is_archive(field: FieldProfile, collected_at: datetime | None) -> bool:
    """A series that ended more than 45 days before it was collected says how fine it is, not how fresh."""
    if collected_at is None or not field.high:
        return False
    try:
        ended = datetime.fromisoformat(field.high)
    except ValueError:
        return False
    ended = ended if ended.tzinfo else ended.replace(tzinfo=collected_at.tzinfo)
    return (collected_at - ended).total_seconds() > 45 * 86_400


def _named(seconds: int) -> str:
    return next((name for bound, name in _FRESHNESS if seconds <= bound), "static")


# --- where traits are read from -----------------------------------------------------------------------


def _query_names(url: str | None) -> list[str]:
    if not url:
        return []
    try:
        return [name for name, _ in parse_qsl(urlsplit(url).query, keep_blank_values=True)][:100]
    except ValueError:
        return []


def _keys(content: Content, head: str) -> list[str]:
    """Paths of the body's fields, `$.` taken off; of JSON also the bare keys, since null values may have no field."""
    paths = [field.path.removeprefix("$").lstrip(".").replace("[]", "") for field in content.fields[:_FIELDS_MAX]]
    if content.file_format == "JSON":
        # Keys at the head and tail of the text: pagers sit there, and `next: null` has no profile.
        known = set(paths)
        for match in re.finditer(
            r"\"((?:next|links?|total|page|cursor|count|previous|results|exceeded|@?odata)[\w.@-]{0,40})\"\s*:",
            head,
            re.I,
        ):
            if match[1] not in known and len(known) < 2 * _FIELDS_MAX:
                known.add(match[1])
                paths.append(match[1])
    return paths


def _prose(content: Content, head: str) -> str:
    """Sentences that could promise something: the sections, and for small bodies (errors, headers) the text itself."""
    said = "\n".join(section.text[:4000] for section in content.sections[:40])
    if content.file_format in ("JSON", "XML", "TEXT") and len(head) < 4000:
        said += "\n" + head
    return said[:HEAD_CHARS_MAX]


def _around(text: str, match: re.Match[str]) -> str:
    """The words of a match on one line, without what could be a secret."""
    said = " ".join(match[0].split())
    return re.sub(r"[A-Za-z0-9+/_-]{32,}", "…", said)[:_EVIDENCE_CHARS_MAX]
