"""What every model refuses alike: texts that no provider can embed.

Guarantee: after `check_texts` each text is UTF-8, not blank and below TEXT_CHARS_MAX. Token limits are each
model's own. Fails with BadDocument(EMBEDDING_REJECTED), which names the text's place in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from shoal.errors import BadDocument, DeadReason

Kind = Literal["document", "query"]
"""What a text is: a document's text above the limit is refused, a query's is cut."""

# Far above any chunk (8191 tokens of English are 33k characters); below it a tokenizer answers within
# milliseconds even for text made to be slow.
TEXT_CHARS_MAX = 262_144
_QUERY_CHARS_MAX = 32_768


def check_texts(texts: Sequence[str], kind: Kind) -> list[str]:
    """The texts, queries cut to a sane length. Raises BadDocument(EMBEDDING_REJECTED)."""
    if kind == "query":
        texts = [text[:_QUERY_CHARS_MAX] for text in texts]
    for i, text in enumerate(texts):
        problem = _problem(text)
        if problem:
            raise BadDocument(DeadReason.EMBEDDING_REJECTED, f"text {i + 1} of {len(texts)} {problem}")
    return list(texts)


def _problem(text: str) -> str | None:
    if len(text) > TEXT_CHARS_MAX:
        return f"has {len(text)} characters; {TEXT_CHARS_MAX} is the limit"
    if not text or text.isspace():
        return "is blank"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "holds lone surrogates, which UTF-8 can't carry"
    return None
