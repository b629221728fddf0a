"""Token counts of OpenAI's embedding models (cl100k_base), exact and offline.

Guarantee: `count` equals what OpenAI bills for texts up to PIECE_CHARS; longer ones are counted in pieces of
that length, off by at most a token or two per piece, so that hostile text costs bounded memory and time. The
ranks ship with Shoal (`data/NOTICE`); they are read at the first count (about 0.3 s), never fetched. A damaged
file raises ConfigurationError.
"""

from __future__ import annotations

import base64
import hashlib
import lzma
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

from shoal.errors import ConfigurationError

if TYPE_CHECKING:
    from tiktoken import Encoding

_RANKS_SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
_SPLIT = (  # the pattern of tiktoken_ext.openai_public.cl100k_base
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
PIECE_CHARS = 65_536


def count(text: str) -> int:
    """Tokens of `text`; special tokens in it count as the plain text they are."""
    encoding = _encoding()
    return sum(len(encoding.encode_ordinary(text[i : i + PIECE_CHARS])) for i in range(0, len(text), PIECE_CHARS))


def truncate(text: str, tokens_max: int) -> str:
    """The beginning of `text` that has at most `tokens_max` tokens."""
    encoding = _encoding()
    tokens = encoding.encode_ordinary(text[: tokens_max * 16])
    return (
        text
        if len(tokens) <= tokens_max and len(text) <= tokens_max * 16
        else encoding.decode(tokens[:tokens_max], "ignore")
    )


@cache
def _encoding() -> Encoding:
    from tiktoken import Encoding

    try:
        ranks_text = lzma.decompress(files(__package__).joinpath("data/cl100k_base.tiktoken.xz").read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise ConfigurationError(f"Shoal's token table can't be read, install it again: {error}") from None
    if hashlib.sha256(ranks_text).hexdigest() != _RANKS_SHA256:
        raise ConfigurationError("Shoal's token table is damaged, install it again")
    ranks = {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, ranks_text.splitlines())}
    return Encoding("cl100k_base", pat_str=_SPLIT, mergeable_ranks=ranks, special_tokens={})
