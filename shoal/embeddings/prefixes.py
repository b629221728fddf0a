"""Words that some models want before a query and before a document, and the model that puts them there.

Guarantee: a pair of prefixes has a name that is part of the model's (`+e5`), so vectors made with two pairs never
share a table or a cache key. A pair in PREFIXES never changes: a new one gets a new name. A pair of one's own
(settings, or `prompts` of a model directory) is named after its hash; under other settings its name raises
ConfigurationError instead of making other vectors. A prefix counts as tokens of its text and is never cut.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.embeddings.embedding_model import EmbeddingModel
from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.texts import Kind, check_texts
from shoal.errors import ConfigurationError
from shoal.records import Matrix


@dataclass(frozen=True, slots=True)
class Prefixes:
    """What is put before a text, blanks included."""

    query: str = ""
    document: str = ""

    @property
    def name(self) -> str:
        """The name of the pair; "" for none."""
        if self == Prefixes():
            return ""
        known = next((name for name, pair in PREFIXES.items() if pair == self), None)
        return known or f"own-{hashlib.sha256(json.dumps([self.query, self.document]).encode()).hexdigest()[:12]}"


_INSTRUCTION = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
_PASSAGES = "Represent this sentence for searching relevant passages: "

PREFIXES = {  # as the models' cards have them
    "e5": Prefixes("query: ", "passage: "),
    "e5-instruct": Prefixes(_INSTRUCTION + " "),
    "qwen3": Prefixes(_INSTRUCTION),
    "nomic": Prefixes("search_query: ", "search_document: "),
    "bge": Prefixes(_PASSAGES),
    "bge-zh": Prefixes("为这个句子生成表示以用于检索相关文章："),
    "arctic2": Prefixes("query: "),
    "gemma": Prefixes("task: search result | query: ", "title: none | text: "),
}


def named(name: str, own: Prefixes) -> Prefixes:
    """The pair of that name; `own`: what the settings say now. Raises ConfigurationError."""
    if not name or name in PREFIXES:
        return PREFIXES.get(name, Prefixes())
    if name == own.name:
        return own
    if name.startswith("own-"):
        raise ConfigurationError(
            f"the vectors were made with other prefixes ({name}) than the settings have ({own.name or 'none'}): set "
            "SHOAL_EMBEDDING_QUERY_PREFIX and SHOAL_EMBEDDING_DOCUMENT_PREFIX as they were"
        )
    raise ConfigurationError(f"prefixes {name!r} are unknown: known are {', '.join(PREFIXES)}")


class PrefixedModel:
    """An EmbeddingModel that is another one with a prefix before each text."""

    def __init__(self, model: EmbeddingModel, prefixes: Prefixes) -> None:
        self._model = model
        self._prefixes = prefixes
        self._longest = max(prefixes.query, prefixes.document, key=model.count_tokens)
        self.name = f"{model.name}+{prefixes.name}"
        self.batch_inputs_max = model.batch_inputs_max
        self.batch_tokens_max = model.batch_tokens_max
        self.concurrency = model.concurrency

    @property
    def width(self) -> int:
        return self._model.width

    @property
    def max_input_tokens(self) -> int:
        return self._model.max_input_tokens

    @property
    def limiter(self) -> RateLimiter | None:
        return self._model.limiter

    def count_tokens(self, text: str) -> int:
        """Tokens of the text with the longer prefix."""
        return self._model.count_tokens(self._longest + text)

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> Matrix:
        prefix = self._prefixes.query if kind == "query" else self._prefixes.document
        # Checked before: a blank text would no longer be blank behind a prefix.
        return self._model.embed([prefix + text for text in check_texts(texts, kind)], kind)

    def close(self) -> None:
        self._model.close()
