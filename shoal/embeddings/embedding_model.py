"""What every embedding model offers, whoever computes its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.texts import Kind
from shoal.records import Matrix


class EmbeddingModel(Protocol):
    """Turns texts into unit vectors. One object per process; `embed` may be called from several threads."""

    @property
    def name(self) -> str:
        """What a collection stores; two models of one name give comparable vectors."""

    @property
    def width(self) -> int:
        """Of its vectors. Where nobody knows it, asking costs a request (blocking), and raises what `embed` raises."""

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

    def count_tokens(self, text: str) -> int:
        """Tokens of a document's text, prefix included."""

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> Matrix:
        """Blocking. Unit vectors, shape (texts, width), in order; normalised here where the provider does not.

        A query above the token limit is cut; a document's text above it, or a blank text, raises BadDocument
        (EMBEDDING_REJECTED), and no text of the call is embedded. Raises TransientError and ConfigurationError.
        """

    def close(self) -> None:
        """Gives back connections; the model isn't used after it."""
