"""What a stored model name says, and what is known of models by name: pure, nothing loaded.

`{provider}:{model}[@variant][+prefixes]`: `local:all-MiniLM-L6-v2`, `openai:text-embedding-3-small@512`,
`openai:intfloat/e5-base-v2+e5`, `local:all-MiniLM-L6-v2@int8`, `hash:64`. Guarantee: whatever changes a vector
is part of the name, so two kinds of vectors never share a table or a cache key. The table below decides about new
names only; a name that is stored means the same in every release. A malformed one raises ConfigurationError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from shoal.errors import ConfigurationError

Provider = Literal["local", "openai", "hash"]

OPENAI_WIDTHS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
OPENAI_INPUT_TOKENS = 8191  # 8192 by the SDK's documentation, 8191 by older ones
UNKNOWN_INPUT_TOKENS = 512
"""What a model nobody knows is taken to read: the window of most small encoders."""
QUANTISED = "int8"

_NAME = re.compile(r"(local|openai|hash):(.+?)(?:@([1-9][0-9]{0,4}|int8))?(?:\+([a-z0-9-]+))?")


@dataclass(frozen=True, slots=True)
class ModelName:
    """`dimensions`: asked of the provider, 0 for the model's own. `prefixes`: the name of a pair, "" for none."""

    provider: Provider
    model: str
    dimensions: int = 0
    is_quantised: bool = False
    prefixes: str = ""

    def __str__(self) -> str:
        variant = f"@{self.dimensions}" if self.dimensions else f"@{QUANTISED}" if self.is_quantised else ""
        return f"{self.provider}:{self.model}{variant}" + (f"+{self.prefixes}" if self.prefixes else "")

    @property
    def is_openais(self) -> bool:
        """True for a model that OpenAI (or Azure) serves; False also for those of compatible servers."""
        return self.provider == "openai" and self.model in OPENAI_WIDTHS


def parse(name: str) -> ModelName:
    """The parts of `name`. Raises ConfigurationError."""
    match = _NAME.fullmatch(name)
    provider, model, variant, prefixes = match.groups() if match else ("", "", None, None)
    is_int8 = variant == QUANTISED
    is_odd = (
        (provider == "hash" and (variant or prefixes or not model.isdecimal() or not 1 <= int(model) <= 65536))
        or (provider == "local" and variant and not is_int8)
        or (provider == "openai" and is_int8)
    )
    if not match or is_odd:
        raise ConfigurationError(
            f"embedding model {name!r} is unknown: a name is local:MODEL, openai:MODEL or hash:WIDTH"
        )
    dimensions = int(variant) if variant and not is_int8 else 0
    parsed = ModelName(cast(Provider, provider), model, dimensions, is_int8, prefixes or "")
    if dimensions and parsed.is_openais:
        check_dimensions(model, dimensions)
    return parsed


def check_dimensions(model: str, dimensions: int) -> None:
    """Raises ConfigurationError where one of OpenAI's models can't give that many."""
    own = OPENAI_WIDTHS[model]
    if dimensions >= own or not model.startswith("text-embedding-3"):
        raise ConfigurationError(
            f"{model} has {own} dimensions"
            + (
                f" and can be asked for fewer, not for {dimensions}"
                if model.startswith("text-embedding-3")
                else " only"
            )
            + ": see OPENAI_EMBEDDING_DIMENSIONS"
        )


@dataclass(frozen=True, slots=True)
class Known:
    """Of a family of models: the prefixes its authors trained it with, and the tokens it reads of one text."""

    prefixes: str
    input_tokens: int


# By the models' own cards, first match wins. Where servers differ (Ollama reads 2048 of nomic's 8192) the least one.
_FAMILIES = tuple(
    (re.compile(pattern), Known(prefixes, tokens))
    for pattern, prefixes, tokens in (
        (r"e5-.*instruct", "e5-instruct", 512),
        (r"^(multilingual-)?e5-(small|base|large)", "e5", 512),
        (r"nomic-embed-text", "nomic", 2048),
        (r"^bge-(small|base|large)-zh", "bge-zh", 512),
        (r"^bge-(small|base|large)", "bge", 512),
        (r"^bge-m3", "", 8192),
        (r"mxbai-embed-large", "bge", 512),
        (r"snowflake-arctic-embed(2|-\w+-v2)", "arctic2", 8192),
        (r"snowflake-arctic-embed", "bge", 512),
        (r"embeddinggemma", "gemma", 2048),
        (r"qwen3-embedding", "qwen3", 8192),
        (r"^all-minilm", "", 256),
        (r"^gte-(small|base|large)$", "", 512),
    )
)


def known_of(model: str) -> Known:
    """What is known of a model by the last part of its name; no prefixes and 512 tokens of any other."""
    last = model.rsplit("/", 1)[-1].lower()
    return next((known for pattern, known in _FAMILIES if pattern.search(last)), Known("", UNKNOWN_INPUT_TOKENS))
