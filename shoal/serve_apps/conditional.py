"""ETags on reads: who has the same answer already gets 304 and no body.

The tag is of what the answer says and weak, since how fresh it is (`freshness`, times of asking) is left out. The
tables' version would be cheaper, and useless: it moves with every commit of anything, three times a second under load.
"""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
from fastapi import Request
from starlette.responses import Response

from shoal.serve_apps.problems import JsonResponse

_OPTIONS = orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS
_BEFORE_ASKED = "no-cache, private"  # may be kept, must be asked for again


def conditional(request: Request, body: dict[str, Any], stable: dict[str, Any] | None = None) -> Response:
    """200 with an ETag, or 304. `stable`: the body without what changes by itself; by default without `freshness`."""
    kept = {name: value for name, value in (stable or body).items() if name != "freshness"}
    tag = f'W/"{hashlib.sha256(orjson.dumps(kept, option=_OPTIONS)).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": _BEFORE_ASKED}
    if _names(request.headers.get("if-none-match", ""), tag):
        return Response(status_code=304, headers=headers)
    return JsonResponse(body, headers=headers)


def _names(header: str, tag: str) -> bool:
    """Whether If-None-Match names it; the comparison is the weak one (RFC 9110, 13.1.2)."""
    given = {part.strip().removeprefix("W/") for part in header[:8000].split(",")}
    return "*" in given or tag.removeprefix("W/") in given
