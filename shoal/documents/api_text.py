"""One kind of text for both sides of `similar-apis`: the scrape that is indexed and the API that is asked about.

`api_text` says what is known of the API behind a scrape, `describe_api` what a caller says of an API (any JSON),
and both end in the same composition: who, the words of host and path, what it is about, its fields with units,
how it authenticates and pages. So two descriptions of one API land near each other, whichever side had the URL.
At most about PIECES_MAX word pieces (the local model reads 256), the most telling parts first; `fitted` makes
that exact for a model's own tokens. Secrets in URLs are redacted, numbers and examples are left out. Pure,
bounded against hostile nesting, never raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from shoal.documents import market, market_codes
from shoal.documents.charset import clean
from shoal.documents.content import Content
from shoal.documents.context import Context
from shoal.documents.schema import own_name
from shoal.documents.traits import template_url
from shoal.documents.words import known_unit, split_words, spoken, unique
from shoal.records import ApiTraits
from shoal.redaction import is_secret

PIECES_MAX = 200  # by our estimate, which is within a fifth of the tokenizer's count but for rare scripts
TEXT_CHARS_MAX = 1100
FIELDS_CHARS_MAX = 420  # about half: names are what tells two APIs of one operator apart
TOPIC_CHARS_MAX = 260
FIELDS_MAX = 60
SPEC_NODES_MAX = 2_000  # of a caller's JSON; a whole OpenAPI document has more, its beginning tells enough
SPEC_DEPTH_MAX = 12


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# Host and path words that nearly every API has: they would make all of them alike.
_COMMON = _set(
    "www com org net gov edu io co http https api apis rest v1 v2 v3 v4 data public static json csv xml html php aspx"
    " asp query date id uk au ca us eu int get files file download services service web index default latest f fmt"
    " format resultformat version limit offset page size start end sort filter callback rows count lang language"
    " timezone _"
)
_DULL_FIELDS = _set(
    "id guid uuid index key href rel self link url version success error message code meta mrid position"
)
_DIGITS = re.compile(r"\d+")
_WORD = re.compile(r"\w+|[^\w\s]")
_HOLDER = re.compile(r"[./]([^./$\[\]{}*@]{2,40})(?:\[\])?[./][^./]+$")
_TELLING_VALUE = re.compile(r"[A-Za-z][A-Za-z_]{3,39}")
_CODED = (market_codes.DOCUMENT_TYPES, market_codes.AREAS, market_codes.OASIS_REPORTS)
_UPPER_UNIT = re.compile(r"[\[(]([^\])]{1,12})[\])]")


@dataclass(slots=True)
class _Parts:
    """What either side knows, before it is composed."""

    method: str = "GET"
    url: str | None = None
    auth: str | None = None
    paging: str | None = None
    fields: list[str] = field(default_factory=list)  # "name unit"
    topic: list[str] = field(default_factory=list)  # most telling first
    params: list[str] = field(default_factory=list)  # words of request parameters
    names: list[str] = field(default_factory=list)  # of sources and datasets: their places and meanings are added


def api_text(content: Content, traits: ApiTraits, context: Context) -> str:
    """The text of an indexed document, embedded as its `schema_embedding`."""
    kind = market.DATA_TYPES.get(context.data_type) or ("" if context.data_type == "other" else context.data_type)
    parts = _Parts(
        url=context.source_url or traits.api_endpoint,
        auth=traits.auth_method,
        paging=traits.pagination_type,
        names=[context.data_source, context.dataset],
        topic=[kind.replace("_", " "), spoken(context.dataset), content.title or ""],
    )
    dataset = context.dataset.upper()
    parts.topic[1:1] = [name for code, name in market_codes.OASIS_REPORTS.items() if dataset.find(code) >= 0][-1:]
    for profile in content.fields[: 4 * FIELDS_MAX]:
        if holder := _HOLDER.search(profile.path):  # `entries` of `$.entries[].price`: APIs are told by these too
            parts.fields.append(spoken(holder[1]))
        if profile.type not in ("object", "array"):
            parts.fields.append(_field(own_name(profile), profile.unit))
    for section in content.sections[:2]:
        if "XML document " not in section.text[:200]:  # the overview repeats title and element names
            parts.topic.append(section.text[:200])
    return _compose(parts)


def describe_api(spec: Mapping[str, Any]) -> str:
    """The same text from a caller's description: `endpoint`, `method`, `auth_required`, fields, anything nested."""
    parts = _Parts(method="GET")
    texts: list[str] = []
    params: list[tuple[str, str]] = []
    auth_required: bool | None = None
    for path, value in _leaves(spec):
        key = path[-1].lower().replace("-", "_") if path else ""
        inside = {part.lower() for part in path[:-1]}
        if isinstance(value, bool):
            if key in ("auth_required", "authentication_required", "requires_auth", "auth", "requires_key"):
                auth_required = value
            continue
        if not isinstance(value, str):
            if inside & _PARAM_PLACES:
                params.append((path[-1][:60], ""))
            elif inside & _FIELD_PLACES:  # an example response: the number says nothing, its name does
                parts.fields.append(_field(path[-1], None))
            continue
        text = value.strip()
        if not text:
            continue
        if key in _URL_KEYS and ("/" in text or "." in text) and " " not in text:
            parts.url = _joined(parts.url, text)
        elif key in ("method", "http_method", "verb") and text.isascii() and text.isalpha() and len(text) <= 7:
            parts.method = text.upper()
        elif key in _AUTH_KEYS or inside & _AUTH_KEYS:
            parts.auth = parts.auth or _auth(text)
        elif key in ("pagination", "paging", "pagination_type") or inside & {"pagination", "paging"}:
            parts.paging = parts.paging or text[:20].lower()
        elif inside & _PARAM_PLACES or key in _PARAM_PLACES:
            name, value = (path[-1], text) if key not in _PARAM_PLACES and key != "name" else text.partition("=")[::2]
            params.append((name[:60], value[:200]))
        elif inside & _FIELD_PLACES or key in _FIELD_PLACES:
            parts.fields += _fields_of(path, key, text)
        elif key not in _SKIPPED and not is_secret(key, text):
            (parts.topic if key in _TOPIC_KEYS else texts).append(text[:400])
    if auth_required is not None and parts.auth is None:
        parts.auth = "required" if auth_required else "none"
    parts.topic += texts
    parts.params = _told(params)
    if kind := _kind(" ".join([*parts.topic[:3], *_place_words(parts.url)[1]])):
        parts.topic.insert(0, kind)
    return _compose(parts)


_URL_KEYS = _set("endpoint url base_url uri path href host server api_endpoint api_url route")
_AUTH_KEYS = _set("auth auth_method auth_type authentication authorization security securityschemes auth_required")
_TOPIC_KEYS = _set("name title description summary source provider operator topic data_type purpose tags category")
_PARAM_PLACES = _set("params parameters query query_params arguments args headers request body")
_FIELD_PLACES = _set(
    "fields response response_fields responses schema response_schema columns properties attributes items keys output"
    " example example_response sample sample_response data_fields metrics record series"
)
_SKIPPED = _set(
    "type format example default pattern content_type accept version openapi swagger operationid limit in required"
)
_TYPES = _set(
    "string number integer int float double boolean bool object array null datetime date-time date time timestamp any"
    " str decimal long list dict text enum"
)


def fitted(text: str, count: Callable[[str], int], tokens_max: int) -> str:
    """`text`, cut at words until it has at most `tokens_max` tokens by the model's own `count`."""
    while text and (tokens := count(text)) > tokens_max:
        words = text.split(" ")
        keep = min(len(words) - 1, int(len(words) * tokens_max / tokens))
        text = " ".join(words[:keep]) if keep > 0 else text[: max(0, int(len(text) * tokens_max / tokens) - 1)]
    return text


# What an announcement calls `data_type`, as a caller's words show it; the first that matches.
_KINDS = tuple(
    (market.DATA_TYPES[kind], re.compile(pattern, re.I))
    for kind, pattern in (
        ("outage", r"outage|unavailab"),
        ("interchange", r"interchange|exchange(?!.{0,20}(?:price|day.ahead))|tie.?flow|cross.?border|interconnect"),
        ("renewable_forecast", r"(?:wind|solar|renewable|\bvg).{0,40}forecast|forecast.{0,40}(?:wind|solar|renewable)"),
        ("load_forecast", r"(?:load|demand).{0,40}forecast|forecast.{0,40}(?:load|demand)"),
        ("price", r"\blmps?\b|price|tariff|marginal value"),
        ("ancillary_services", r"ancillary|reserves?\b"),
        ("fuel_mix", r"fuel.?(?:mix|type)"),
        ("generation", r"generat|production|wind|solar"),
        ("load", r"\bload\b|demand|consumption"),
    )
)


def _kind(text: str) -> str | None:
    return next((kind for kind, pattern in _KINDS if pattern.search(text[:600])), None)


def _leaves(spec: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], object]]:
    """The scalars of a nested JSON value with their keys, breadth first, bounded in number and depth."""
    queue: list[tuple[tuple[str, ...], object]] = [((), spec)]
    at = 0
    while at < len(queue) and at < SPEC_NODES_MAX:
        path, value = queue[at]
        at += 1
        if isinstance(value, Mapping):
            if len(path) < SPEC_DEPTH_MAX:
                room = SPEC_NODES_MAX - len(queue)
                for key, child in list(value.items())[: max(0, room)]:
                    name = clean(str(key))[:120]
                    queue.append(((*path, name), child))
                    if isinstance(child, Mapping | list) and {p.lower() for p in path} & _FIELD_PLACES:
                        queue.append(((*path, "fields"), name))  # a parent's own name, as in {properties: {load: {…}}}
        elif isinstance(value, list | tuple):
            if len(path) < SPEC_DEPTH_MAX:
                queue += [(path, child) for child in value[: max(0, min(200, SPEC_NODES_MAX - len(queue)))]]
        elif isinstance(value, str | bool | int | float):
            yield path, clean(value[:2000]) if isinstance(value, str) else value


def _fields_of(path: tuple[str, ...], key: str, text: str) -> list[str]:
    """Field names of one leaf: `fields: [load_mw]`, `fields: {load: MW}`, `{name: load, unit: MW}`, `load, price`."""
    if key in ("type", "format", "description", "example", "title", "$ref", "in"):
        return [text[:80]] if key in ("description", "title") else []
    if key in ("name", "field", "column", "path", "id"):
        return [_field(text[:80], None)]
    if key in ("unit", "units"):
        return [text[:20]]
    if key in _FIELD_PLACES:
        return [_field(name.strip()[:80], None) for name in re.split(r"[,;\n]", text)[:FIELDS_MAX] if name.strip()]
    unit = known_unit(text)
    if unit or text.lower() in _TYPES or len(text) > 40 or any(c.isdigit() for c in text):
        return [_field(path[-1], unit)]
    return [_field(path[-1], None), text]


def _joined(url: str | None, text: str) -> str:
    """A base address and a path, in whichever order they were given."""
    if url and "://" in url and text.startswith("/"):
        return url.rstrip("/") + text
    if url and "://" in text and url.startswith("/"):
        return text.rstrip("/") + url
    return url or text


def _auth(text: str) -> str:
    low = text.lower()
    for method, signs in (
        ("none", ("none", "no auth", "public", "not required", "false", "open", "anonymous")),
        ("oauth2", ("oauth", "client_credentials")),
        ("basic", ("basic", "username", "password")),
        ("api_key", ("key", "token=", "securitytoken", "apikey")),
        ("bearer", ("bearer", "jwt", "token")),
        ("cookie", ("cookie", "session")),
        ("mtls", ("mtls", "certificate", "mutual")),
    ):
        if any(sign in low for sign in signs):
            return method
    return "required"


def _field(name: str, unit: str | None) -> str:
    words = spoken(_UPPER_UNIT.sub(" ", name))
    unit = unit or next((known_unit(match) or "" for match in _UPPER_UNIT.findall(name)), "")
    return f"{words} {unit}".strip() if unit and unit.lower() not in words.split() and len(unit) <= 12 else words


def _compose(parts: _Parts) -> str:
    place, path = _place_words(parts.url)
    alike = {_DIGITS.sub("#", name): name for name in reversed(parts.fields)}  # h1 … h96 say no more than h1
    fields = [name for name in unique(alike[_DIGITS.sub("#", n)] for n in parts.fields) if name and not _is_dull(name)]
    own = [*parts.names, *place, *path]
    who = market.places(*parts.names, *place)
    topic = unique(_fold(text) for text in parts.topic if text and text.strip())
    said = " ".join([*topic, *fields, *path]).lower()
    meanings = [m for m in market.meanings([*own, *topic, *fields], 8) if m.lower() not in said]
    source = [name for name in unique(parts.names[:1]) if name]
    pieces = [
        " ".join(unique([*who, *source, *place])),
        " ".join(unique([*path, *parts.params])),
        _cut(topic, TOPIC_CHARS_MAX, ". "),
        f"fields: {_cut(fields[:FIELDS_MAX], FIELDS_CHARS_MAX, ', ')}" if fields else "",
        ", ".join(meanings),
        f"auth: {parts.auth.replace('_', ' ')}" if parts.auth else "",
        f"paging: {parts.paging}" if parts.paging else "",
    ]
    text = f"{parts.method} " + " | ".join(piece for piece in pieces if piece)
    return _roughly_fitted(_fold(clean(text))[:TEXT_CHARS_MAX])


def _place_words(url: str | None) -> tuple[list[str], list[str]]:
    """The telling words of a URL: those of its host, and those of its path and query names."""
    if not url:
        return [], []
    address = url if "://" in url else f"https://{url}" if not url.startswith("/") else f"https://-{url}"
    try:
        parts = urlsplit(template_url(address))
    except ValueError:
        return [], []
    host = [word for word in re.split(r"[.:]", parts.hostname or "") if word.strip("-") and word not in _COMMON]
    path = [word for segment in parts.path.split("/") for word in split_words(segment)]
    path = [word for word in path if word not in _COMMON and not word.isdigit()]
    return host, [*path, *_told(parse_qsl(urlsplit(address).query)[:30])]


def _told(params: Sequence[tuple[str, str]]) -> list[str]:
    """What request parameters tell: their names, values that are words, and market codes in plain words."""
    told: list[str] = []
    for name, value in params[:30]:
        if is_secret(name, value):
            continue
        if spoken(name) not in _COMMON:
            told.append(spoken(name))
        if meaning := next((table[value] for table in _CODED if value in table and len(value) > 2), None):
            told.append(meaning)
        elif _TELLING_VALUE.fullmatch(value) and value.lower() not in _TYPES | {"true", "false", "redacted"}:
            told.append(spoken(value))
    return told


def _roughly_fitted(text: str) -> str:
    """`text` cut at a word where its estimated word pieces reach PIECES_MAX."""
    pieces = 0
    for match in _WORD.finditer(text):
        pieces += _pieces(match[0])
        if pieces > PIECES_MAX:
            return text[: match.start()].rstrip(" ,|.:")
    return text.rstrip()


def _pieces(word: str) -> int:
    """About how many word pieces the local model's tokenizer makes of one word; other models need fewer."""
    if max(word) < "ɐ":
        return 1 + (len(word) - 1) // (2 if any(map(str.isdigit, word)) else 4)
    return sum(3 if "가" <= char <= "힣" else 1 for char in word)  # Hangul falls apart into its letters


def _is_dull(name: str) -> bool:
    words = name.split()
    return len(words) == 1 and (words[0] in _DULL_FIELDS or words[0].isdigit() or len(words[0]) == 1)


def _fold(text: str) -> str:
    return " ".join(text.split())


def _cut(items: list[str], chars_max: int, glue: str) -> str:
    text = ""
    for item in items:
        if len(text) + len(item) + len(glue) > chars_max:
            room = chars_max - len(text) - len(glue)
            return f"{text}{glue}{item[:room]}" if text and room > 20 and " " in item else text or item[:chars_max]
        text += (glue if text else "") + item
    return text
