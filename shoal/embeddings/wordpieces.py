"""Tokens of a model by its own `tokenizer.json`, exact and offline.

Guarantee: counts are those of the whole text, whatever truncation or padding the file has switched on; text made
to be slow is counted in pieces of PIECE_CHARS, so it costs bounded memory. A missing or foreign file raises
ConfigurationError. It loads no weights.
"""

from __future__ import annotations

from pathlib import Path

from shoal.errors import ConfigurationError


class TokenCounter:
    """Counts tokens without the special ones; cheap to build (50 ms), can be pickled.

    Texts above PIECE_CHARS are counted in pieces of that length, so that hostile text costs bounded memory.
    """

    PIECE_CHARS = 65_536

    def __init__(self, path: Path) -> None:
        """`path`: the file, or the model directory that has it."""
        from tokenizers import Tokenizer

        self._path = path
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            self.tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust side raises bare Exception
            raise ConfigurationError(f"model file {file} can't be read: {error}") from None
        # A file may be set to cut and to pad every text (MiniLM's: to 128 tokens): both would be wrong here.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def __call__(self, text: str) -> int:
        pieces = (encodable(text[i : i + self.PIECE_CHARS]) for i in range(0, len(text), self.PIECE_CHARS))
        return sum(len(self.tokenizer.encode(piece, add_special_tokens=False).ids) for piece in pieces)

    def whole(self, text: str) -> int:
        """Tokens that the model is given for `text`, special ones included."""
        return len(self.tokenizer.encode(encodable(text)).ids)

    def truncate(self, text: str, tokens_max: int) -> str:
        """The beginning of `text` that has at most `tokens_max` tokens, special ones included."""
        encoding = self.tokenizer.encode(encodable(text))
        room = tokens_max - sum(encoding.special_tokens_mask)
        offsets = [
            offset
            for offset, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            if not special
        ]
        return text if len(offsets) <= room else text[: offsets[room][0]]

    def __reduce__(self) -> tuple[type[TokenCounter], tuple[Path]]:
        return TokenCounter, (self._path,)


def encodable(text: str) -> str:
    """Lone surrogates, which no UTF-8 can carry, as replacement characters."""
    return text.encode("utf-8", "replace").decode() if not text.isascii() else text
