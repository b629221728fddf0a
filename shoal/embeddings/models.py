"""Embedding models by name: what every one of them offers, and which one a name or the settings mean.

A name is `{provider}:{model}`, stored with each collection: `local:all-MiniLM-L6-v2`,
`openai:text-embedding-3-small`, `hash:64`. Importing this module, and everything here but `create_model`,
loads no weights, no ONNX Runtime and no SDK, so that fetch workers can plan chunks. An unknown name, a missing
key or missing files raise ConfigurationError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.texts import Kind
from shoal.errors import ConfigurationError
from shoal.records import Matrix
from shoal.settings import Settings

OPENAI_WIDTHS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
_HASH_WIDTH = 64


class EmbeddingModel(Protocol):
    """Turns texts into unit vectors. One object per process; `embed` may be called from several threads."""

    @property
    def name(self) -> str:
        """What a collection stores; two models of one name give comparable vectors."""

    @property
    def width(self) -> int: ...

    @property
    def max_input_tokens(self) -> int:
        """The most `count_tokens` a document's text may have."""

    @property
    def batch_inputs_max(self) -> int:
        """The most texts one `embed` should be given."""

    @property
    def batch_tokens_max(self) -> int:
        """The most tokens, summed, one `embed` should be given."""

    @property
    def concurrency(self) -> int:
        """Calls of `embed` that are worth making at once."""

    @property
    def limiter(self) -> RateLimiter | None:
        """What the provider allows per minute: to be asked before each `embed`. None: no limit."""

    def count_tokens(self, text: str) -> int: ...

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> Matrix:
        """Blocking. Unit vectors, shape (texts, width), in order.

        A query above the token limit is cut; a document's text above it, or a blank text, raises BadDocument
        (EMBEDDING_REJECTED), and no text of the call is embedded. Raises TransientError and ConfigurationError.
        """

    def close(self) -> None:
        """Gives back connections; the model isn't used after it."""


def default_model_name(settings: Settings) -> str:
    """The model that new collections get."""
    match settings.provider:
        case "openai":
            return f"openai:{settings.openai_embedding_model}"
        case "hash":
            return f"hash:{_HASH_WIDTH}"
        case "local":
            from shoal.embeddings.local_model import PACKAGE_MODEL

            return f"local:{settings.model_dir.expanduser().resolve().name if settings.model_dir else PACKAGE_MODEL}"


def create_model(settings: Settings, name: str | None = None, *, width: int | None = None) -> EmbeddingModel:
    """The model called `name`, or the default for new collections. Loads weights (a second) or makes a client.

    `width`: of its vectors, where a collection says so. With it nothing is asked of a provider here, so whoever
    starts in an outage of the provider starts all the same.
    """
    name = name or default_model_name(settings)
    match _split(name):
        case "local", model:
            from shoal.embeddings.local_model import LocalModel, model_directory

            return LocalModel(
                model_directory(settings, model), name, settings.home / "models", settings.embedding_threads
            )
        case "openai", model:
            from shoal.embeddings.openai_model import OpenAIModel

            return OpenAIModel(settings, model, width=width)
        case _, words:
            from shoal.embeddings.hash_model import HashModel

            return HashModel(int(words))


def model_width(settings: Settings, name: str) -> int:
    """The length of the model's vectors. Only an OpenAI-compatible model that we don't know costs a request."""
    match _split(name):
        case "local", model:
            from shoal.embeddings.bert_graph import read_shape
            from shoal.embeddings.local_model import model_directory

            return read_shape(model_directory(settings, model)).width
        case "openai", model:
            return OPENAI_WIDTHS.get(model) or create_model(settings, name).width
        case _, width:
            return int(width)


def token_budget(settings: Settings, name: str) -> tuple[Callable[[str], int], int, int]:
    """How to chunk for the model: (token count of a text, most tokens per chunk, tokens shared by neighbours).

    A chunk within the budget fits `max_input_tokens`, special tokens included, even where cutting a text into
    spans changed its count a little. The function can be pickled.
    """
    match _split(name):
        case "local", model:
            from shoal.embeddings.bert_graph import read_shape
            from shoal.embeddings.local_model import TokenCounter, model_directory

            directory = model_directory(settings, model)
            room = read_shape(directory).max_input_tokens - 6  # [CLS], [SEP] and some slack
            return TokenCounter(directory), room, room // 6
        case "openai", _:
            from shoal.embeddings import cl100k

            return cl100k.count, 1000, 200
        case _:
            from shoal.embeddings.hash_model import count_tokens

            return count_tokens, 250, 40


def _split(name: str) -> tuple[str, str]:
    provider, _, model = name.partition(":")
    known = provider in ("local", "openai") or (provider == "hash" and model.isdecimal() and 1 <= int(model) <= 65536)
    if not known or not model:
        raise ConfigurationError(
            f"embedding model {name!r} is unknown: a name is local:MODEL, openai:MODEL or hash:WIDTH"
        )
    return provider, model
