"""The names and phrases by which an API tells how it authenticates, pages, limits and updates.

Data for `traits`: regular expressions over single names (anchored) and over prose (each needs the verb or the noun
that makes it a statement about an API). All are linear: bounded gaps, no nested repetition.
"""

from __future__ import annotations

import re
from typing import Final


def _name(*alternatives: str) -> re.Pattern[str]:
    """A whole name, in any case; `~` stands for an optional - or _."""
    return re.compile(rf"(?:{'|'.join(alternatives).replace('~', '[-_]?')})$", re.I)


KEY_NAMES: Final = _name(
    "(?:x[-_])?api~key", "app~id", "app~key", "api~token", "security~token", "(?:ocp-apim-)?subscription~key", "key",
    "auth~key", "license~key", "user~key", "service~key",
)  # fmt: skip
BEARER_NAMES: Final = _name("access~token", "bearer", "jwt", "token")
PAGE_NAMES: Final = _name("page", "page~(?:num|number|no|index|id)", "currentpage", "pg", "p")
OFFSET_NAMES: Final = _name(
    "offset", r"\$?skip", "start~row", "start~index", "resultoffset", "first~result", "start~at", "from~row"
)
CURSOR_NAMES: Final = _name(
    "(?:next|after|end)?~cursor", "(?:next~)?(?:page|continuation|scroll|skip)~token", "next~token", "continuation",
    r"\$skiptoken", "next~marker", "scroll~id", "starting~after", "resumption~token",
)  # fmt: skip
TOTAL_PAGES: Final = _name("total~pages?", "page~count", "last~page", "num~pages", "pages~total")
NEXT_LINK: Final = re.compile(
    r"(?:^|\.)(?:_?links?\.next(?:\.href)?|paging\.next|nextLink|next_page_url|nextPageUrl|next_url|next_link)$", re.I
)

_UNIT = r"(?P<unit>seconds?|secs?|minutes?|mins?|hours?|days?|weeks?|months?)"
_UPDATE = (
    r"(?:(?<!last )(?:updat|refresh|publish|recalculat|releas|poll|regenerat)(?:ed|es|e|ing)"
    r"|(?:is|are) (?:issued|produced|posted)|new data|update (?:frequency|interval|rate)|refresh rate)"
)
FRESH_EVERY: Final = re.compile(
    rf"\b{_UPDATE}\b[^.\n]{{0,40}}?\b(?:every|each|per|in intervals of)\s+"
    rf"(?P<n>\d{{1,3}}|one|two|five|ten|fifteen|thirty|sixty)?[ -]?{_UNIT}\b",
    re.I,
)
FRESH_WORD: Final = re.compile(
    rf"\b{_UPDATE}\b[^.\n]{{0,25}}?\b(?P<word>hourly|daily|weekly|monthly|in real[- ]time|continuously|twice a day"
    r"|once a day)\b"
    r"|\b(?P<word2>hourly|daily|weekly|monthly|real[- ]time)[ -](?:updates?|refresh(?:ed)?|updated|published)\b",
    re.I,
)
_NUMBER = r"(?P<n>\d{1,3}(?:,\d{3})+|\d{1,7})"
_PER = r"(?P<k>\d{1,4})?[ -]?(?P<unit>seconds?|secs?|s|minutes?|mins?|hours?|hrs?|h|days?|d|months?)\b"
RATE: Final = re.compile(
    rf"\b{_NUMBER}\s*(?:api\s+)?(?:requests?|calls?|queries|hits|transactions)\s*(?:per|/|an?|each|every|in|within)\s*{_PER}",
    re.I,
)
RATE_LIMIT: Final = re.compile(
    rf"\b(?:rate[- ]?limit\w{{0,5}}|throttl\w{{1,5}}|quota)\b[^.\n]{{0,40}}?\b{_NUMBER}\s*(?:per|/)\s*{_PER}", re.I
)
META_REFRESH: Final = re.compile(r"http-equiv\s*=\s*[\"']?refresh[\"']?\s{1,20}content\s*=\s*[\"']?(\d{1,5})\b", re.I)
AUTH_PROSE: Final = tuple(
    (method, re.compile(pattern, re.I))
    for method, pattern in (
        (
            "none",
            r"\bno (?:authentication|api[- ]?key|registration|login) (?:is )?(?:required|needed|necessary)"
            r"|\bwithout (?:authentication|an? api[- ]?key)"
            r"|\bdoes(?: not|n't) require (?:authentication|an? api[- ]?key)",
        ),
        ("oauth2", r"\bOAuth ?2(?:\.0)?\b|\bclient[_ ]credentials (?:grant|flow)\b"),
        ("mtls", r"\b(?:mutual TLS|mTLS)\b|\bclient certificates? (?:is|are|must be|required)"),
        ("bearer", r"\bAuthorization:\s*Bearer\b|\bbearer token\b|WWW-Authenticate:\s*Bearer"),
        (
            "basic",
            r"\b(?:WWW-Authenticate|Authorization):\s*Basic\b|\b(?:HTTP )?basic auth(?:entication)?\b|\bHTTP Basic\b",
        ),
        (
            "api_key",
            r"\b(?:requires?|needs?|missing|invalid|include|obtain|request|register for|pass|provided?)\b[^.\n]{0,40}"
            r"\b(?:api|subscription|access)[- ]?(?:key|token)\b|\bX-Api-Key\b|\bOcp-Apim-Subscription-Key\b|\bapi_key=",
        ),
    )
)
