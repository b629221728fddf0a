"""Looks at HTML before the parser does, and refuses what the parser would choke on.

lexbor's cost is quadratic in nesting depth and in attributes per tag, and its C call can't be interrupted: a
hundred thousand nested divs hold a worker for minutes. One linear pass over the tags finds these shapes first.
Deep nesting and attribute bombs are refused; piles of unclosed formatting tags (`<b><b><b>`, which the HTML
algorithm rebuilds in every following paragraph) are taken out, since they carry no structure. The pass is
bounded by a budget of bytes looked at, whatever the quotes and comments are like.
"""

from __future__ import annotations

import re

from shoal.errors import BadDocument, DeadReason

DEPTH_MAX = 1500  # 2 ms in lexbor; real pages stay under 100, generated ones under 500
ATTRIBUTES_MAX = 1000  # of one tag: 1 ms in lexbor; real ones stay under 60
FORMATTING_MAX = 200  # unclosed formatting tags open at once; sloppy real pages reach some dozens
ROOT_TAGS_MAX = 50  # each further <html> or <body> merges its attributes into the first
_LONG_TAG = 4096  # shorter tags can't hold enough attributes to matter

_TAG_NAME = re.compile(rb"/?[a-z][a-z0-9]*")
_TAG_END = re.compile(rb"(?:[^>\"']|\"[^\"]*\"|'[^']*')*+>")
_QUOTED = re.compile(rb"=\s*+(?:\"[^\"]*\"|'[^']*')")
_BETWEEN = re.compile(rb"[\s/]+")
_FORMATTING = frozenset(b"a b big code em font i nobr s small strike strong tt u".split())
_FORMATTING_TAG = re.compile(rb"</?(?:a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)(?=[\s/>])[^<>]*>", re.I)
# Elements that are never open (void), or that the next of their kind closes by itself.
_NOT_NESTING = frozenset(
    b"area base br col embed hr img input link meta param source track wbr p li dt dd option tr td th thead"
    b" tbody tfoot colgroup caption rt rp html head body".split()
)
# `<div/>` opens a div; only in SVG does the slash close.
_SVG = frozenset(
    b"g path rect circle ellipse line polyline polygon use stop defs image text tspan symbol lineargradient".split()
)
_RAW = (b"script", b"style", b"textarea", b"title", b"xmp", b"iframe", b"noembed", b"noframes")


def guard(markup: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The markup that may be parsed (UTF-8), and warnings. Raises BadDocument(EXTRACTION_FAILED) for bombs."""
    lower = markup.lower()  # ASCII letters only, so positions stay
    open_tags: dict[bytes, int] = {}
    depth = depth_high = formatting = formatting_high = roots = 0
    budget = 4 * len(lower) + 4096
    position = lower.find(b"<")
    while position >= 0:
        start = position + 1
        if lower.startswith(b"!--", start):
            end = lower.find(b"-->", start + 1)
            if end < 0:
                break
            position = lower.find(b"<", end)
            continue
        match = _TAG_NAME.match(lower, start)
        if match is None:
            position = lower.find(b"<", start)
            continue
        name = match.group()
        end = lower.find(b">", start)
        if end < 0:
            break
        if b'"' in lower[start:end] or b"'" in lower[start:end]:
            whole = _TAG_END.match(lower, match.end())
            budget -= (whole.end() if whole else len(lower)) - start
            if budget < 0:
                raise _bomb("its quotes never end")
            end = whole.end() - 1 if whole else end
        if end - start > _LONG_TAG and _attributes(lower[start:end]) > ATTRIBUTES_MAX:
            raise _bomb(f"one tag has more than {ATTRIBUTES_MAX} attributes")
        if name[:1] == b"/":
            name = name[1:]
            if open_tags.get(name, 0) > 0:
                open_tags[name] -= 1
                if name in _FORMATTING:
                    formatting -= 1
                else:
                    depth -= 1
        elif name in _FORMATTING:
            formatting += 1
            open_tags[name] = open_tags.get(name, 0) + 1
        elif name in (b"html", b"body"):
            roots += 1
        elif name not in _NOT_NESTING and not (
            lower[end - 1 : end] == b"/" and name in _SVG and open_tags.get(b"svg", 0) > 0
        ):
            depth += 1
            open_tags[name] = open_tags.get(name, 0) + 1
        depth_high = max(depth_high, depth)
        formatting_high = max(formatting_high, formatting)
        if name in _RAW and not match.group().startswith(b"/"):
            close = lower.find(b"</" + name, end)
            if close < 0:
                break
            end = close - 1
        position = lower.find(b"<", end + 1)
    if depth_high > DEPTH_MAX:
        raise _bomb(f"nested more than {DEPTH_MAX} deep")
    if roots > ROOT_TAGS_MAX:
        raise _bomb(f"more than {ROOT_TAGS_MAX} root tags")
    if formatting_high > FORMATTING_MAX:
        return _FORMATTING_TAG.sub(b" ", markup), ("unclosed formatting tags were left out",)
    return markup, ()


def _attributes(tag: bytes) -> int:
    """How many attributes a tag may have: names need white space, a slash or a quoted value between them."""
    bare, quoted = _QUOTED.subn(b"", tag)
    return max(quoted, len(_BETWEEN.findall(bare)))


def _bomb(why: str) -> BadDocument:
    return BadDocument(DeadReason.EXTRACTION_FAILED, f"pathological HTML: {why}")
