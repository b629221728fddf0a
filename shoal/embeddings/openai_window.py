"""How much of a text a provider's model takes."""

from __future__ import annotations

from collections.abc import Callable

from shoal.embeddings import cl100k
from shoal.embeddings.model_names import OPENAI_INPUT_TOKENS, OPENAI_WIDTHS, known_of
from shoal.settings import Settings


def openai_window(settings: Settings, model: str) -> tuple[Callable[[str], int], int]:
    """How a provider's model counts tokens and how many of those one text may have.

    Where a compatible server's tokenizer isn't given, tokens are cl100k_base's and half of the model's window is
    used: WordPiece makes 1.3 tokens of one of cl100k_base's on average (measured on mixed documents).
    """
    if model in OPENAI_WIDTHS:
        return cl100k.count, OPENAI_INPUT_TOKENS
    window = settings.openai_max_input_tokens or known_of(model).input_tokens
    if settings.openai_tokenizer is not None:
        from shoal.embeddings.wordpieces import TokenCounter

        return TokenCounter(settings.openai_tokenizer.expanduser().resolve()), window
    return cl100k.count, window // 2
