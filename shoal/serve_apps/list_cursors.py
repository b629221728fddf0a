"""Opaque cursors of lists that are ordered by a few plain values: where the next page begins. Pure.

base64url of JSON. Whoever makes one up can ask for another page of what he may ask for anyway.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import orjson

from shoal.serve_apps.models import InvalidParameter


def no_cursor() -> InvalidParameter:
    return InvalidParameter("cursor", "was damaged, or belongs to another list: start again without it")


def encode(of: str, *values: str | int) -> str:
    """The cursor behind the entry with these values in the list `of`."""
    return base64.urlsafe_b64encode(orjson.dumps([of, *values])).decode().rstrip("=")


def decode(of: str, cursor: str, kinds: Sequence[type]) -> list[Any]:
    """The values, of these kinds. Raises InvalidParameter."""
    try:
        found = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (ValueError, binascii.Error):
        raise no_cursor() from None
    if not isinstance(found, list) or len(found) != len(kinds) + 1 or found[0] != of:
        raise no_cursor()
    if any(type(value) is not kind for value, kind in zip(found[1:], kinds, strict=True)):
        raise no_cursor()
    return found[1:]
