"""Parses JSON and its relatives: NaN, JSON Lines, a call or an assignment around it, JSON written as a string.

Strict and fast first, lenient only where that fails. Raises BadDocument EXTRACTION_FAILED for text that no leniency
turns into JSON and for nesting no parser takes. Knows nothing of what the value means (json_reader.py).
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from shoal.errors import BadDocument, DeadReason

_CALL = re.compile(
    r"\s*(?:/\*.{0,200}?\*/)?\s*(?:(?:var|let|const)\s+)?[A-Za-z_$][\w$.\[\]]{0,80}\s*[=(]\s*(?=[\[{\"])", re.S
)


def parse_json(text: str) -> tuple[Any, list[str]]:
    """The parsed value, and warnings that name the leniency it took. Raises BadDocument EXTRACTION_FAILED."""
    text = text.lstrip("\ufeff \t\r\n")
    try:
        return _unwrapped(orjson.loads(text)), []
    except (orjson.JSONDecodeError, UnicodeEncodeError, RecursionError) as error:
        reason = str(error)
    warnings: list[str] = []

    def constant(name: str) -> None:
        if not warnings:
            warnings.append(f"JSON holds {name}, which is not JSON; read as null")

    try:
        return _unwrapped(json.loads(text, parse_constant=constant, parse_int=_integer, strict=False)), warnings
    except RecursionError:
        raise BadDocument(DeadReason.EXTRACTION_FAILED, "the JSON is nested too deeply") from None
    except (ValueError, MemoryError):
        pass
    if (call := _CALL.match(text)) is not None:
        inner = text[call.end() :].rstrip(" \t\r\n;)")
        try:
            return _unwrapped(_loads(inner)), ["the JSON is wrapped in a call or an assignment"]
        except (ValueError, RecursionError):
            pass
    lines = _lines(text)
    if lines is not None:
        return lines
    if "recursion" in reason.lower() or "nest" in reason.lower():
        raise BadDocument(DeadReason.EXTRACTION_FAILED, "the JSON is nested too deeply") from None
    raise BadDocument(DeadReason.EXTRACTION_FAILED, f"not JSON: {reason[:160]}") from None


def _loads(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text, parse_constant=lambda _: None, parse_int=_integer, strict=False)


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits[:300])


def _unwrapped(value: Any) -> Any:
    """JSON written as a string of JSON, up to two times."""
    for _ in range(2):
        if not (isinstance(value, str) and value.lstrip()[:1] in ("{", "[")):
            break
        try:
            value = orjson.loads(value)
        except (orjson.JSONDecodeError, UnicodeEncodeError):
            break
    return value


def _lines(text: str) -> tuple[Any, list[str]] | None:
    """JSON Lines: most lines are a value of their own."""
    rows: list[Any] = []
    bad = 0
    for line in text.splitlines():
        line = line.strip().rstrip(",")
        if not line:
            continue
        try:
            rows.append(orjson.loads(line))
        except (orjson.JSONDecodeError, UnicodeEncodeError):
            bad += 1
            if bad > 5 + len(rows) // 10:
                return None
    structured = sum(isinstance(row, (dict, list)) for row in rows)
    if len(rows) < 2 or structured < 0.9 * len(rows) or bad >= len(rows):
        return None
    return rows, ["JSON Lines"] + ([f"{bad} lines are not JSON and were left out"] if bad else [])
