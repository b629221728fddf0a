"""Request files of the half-price lane: texts into parts within every limit, and the lines that come back. Pure.

Guarantee: each distinct (kind, text) stands in exactly one part, and no part breaks `Limits`, which lie far below the
provider's. A text's request is named by its cache key, so an answer finds its text by content, in whatever order the
lines come.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import orjson

from shoal.embeddings.batch_provider import Entry

PROVIDER_REQUESTS_MAX = 50_000
"""OpenAI's, of requests in a file and of embedding inputs over a batch."""
PROVIDER_BYTES_MAX = 200_000_000
"""OpenAI's, of a file."""
_RESPONSE_FRAME = 4_096
_NUMBER_BYTES_MAX = 26
"""Of one number of a vector that is written out, its comma included."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one part. A part is a file in memory, a batch of its own, and what a lost one costs: above, memory and the
    smallest account's queue (3,000,000 tokens); below, many batches. `text_bytes` is of the JSON text."""

    texts: int = 10_000
    tokens: int = 1_000_000
    text_bytes: int = 16_000_000


class Parts:
    """Gathers the texts of one job. Keeps 16 bytes of each text that it has seen, and the part that is being filled."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self._limits = limits
        self._seen: set[bytes] = set()
        self._entries: list[Entry] = []
        self._tokens = self._bytes = 0
        self.texts = self.tokens = 0

    def add(self, entry: Entry) -> list[Entry] | None:
        """Takes a text; the part that it no longer fits into, where it is so. A text beyond a limit by itself makes a
        part by itself: the model's own limits are far below."""
        name = hashlib.blake2b(f"{entry.kind}\0{entry.text}".encode(), digest_size=16).digest()
        if name in self._seen:
            return None
        self._seen.add(name)
        size = len(orjson.dumps(entry.text))
        is_full = (
            len(self._entries) + 1 > self._limits.texts
            or self._tokens + entry.tokens > self._limits.tokens
            or self._bytes + size > self._limits.text_bytes
        )
        full = self.take() if is_full else None
        self._entries.append(entry)
        self._tokens, self._bytes = self._tokens + entry.tokens, self._bytes + size
        self.texts, self.tokens = self.texts + 1, self.tokens + entry.tokens
        return full

    def take(self) -> list[Entry] | None:
        """What is gathered and in no part yet; None where nothing is."""
        taken, self._entries = self._entries, []
        self._tokens = self._bytes = 0
        return taken or None


def stored(entries: list[Entry]) -> list[list[Any]]:
    """A part as JSON."""
    return [[entry.kind, entry.text, entry.tokens] for entry in entries]


def entries_of(value: Any) -> list[Entry] | None:
    """What `stored` made; None where it is something else."""
    try:
        return [
            Entry(str(text), "query" if kind == "query" else "document", int(tokens)) for kind, text, tokens in value
        ]
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of an output or an error file: whose, and the body of a 200, or why there is none."""

    custom_id: str
    body: bytes | None
    error: str = ""


def read_line(raw: bytes) -> Line:
    """Never raises: a line that is no answer names nobody, and says so."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return Line("", None, "a line is no JSON")
    if not isinstance(value, dict):
        return Line("", None, "a line is no object")
    custom_id, response, error = str(value.get("custom_id") or ""), value.get("response"), value.get("error")
    if isinstance(response, dict) and response.get("status_code") == 200 and isinstance(response.get("body"), dict):
        return Line(custom_id, orjson.dumps(response["body"]))
    if not isinstance(error, dict):
        body = response.get("body") if isinstance(response, dict) else None
        error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return Line(custom_id, None, "a line has neither an answer nor an error")
    words = " ".join(f"{error.get('code') or ''} {error.get('message') or ''}".split())
    return Line(custom_id, None, words[:200] or "an error without a word")


def output_bytes_max(texts: int, width: int) -> int:
    """Longer than any output file of so many vectors is, even written out as decimals."""
    return 1_000_000 + texts * (_RESPONSE_FRAME + _NUMBER_BYTES_MAX * width)
