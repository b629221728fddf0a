"""What tokens cost: the price table (data/prices.toml, and one's own in SHOAL_PRICES).

A price has the day from which it holds, so what was spent before a change keeps its price. A model that the table
does not know costs None: its tokens are known, its money is not, and nobody shall take that for nothing.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from shoal.errors import ConfigurationError
from shoal.spending import Counts, SpendKey

MILLION = 1_000_000
BATCH_LANE = "batch"
"""The lane of what goes through a provider's Batch API."""
BATCH_SHARE = 0.5
"""Of the price; OpenAI: half (developers.openai.com/api/docs/guides/batch)."""
FILE_BYTES_MAX = 1024 * 1024


class Price(BaseModel):
    """One entry of the table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1, max_length=200)
    usd_per_million: float = Field(ge=0, le=1_000_000, allow_inf_nan=False)
    batch_usd_per_million: float | None = Field(None, ge=0, le=1_000_000, allow_inf_nan=False)
    valid_from: date = Field(date.min, alias="from")

    @field_validator("model")
    @classmethod
    def _star_at_the_end(cls, value: str) -> str:
        if "*" in value[:-1]:
            raise ValueError("a * stands at the end only")
        return value

    def fits(self, model: str) -> bool:
        return model.startswith(self.model[:-1]) if self.model.endswith("*") else model == self.model


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    price: list[Price] = Field(default_factory=list, max_length=10_000)


@dataclass(frozen=True, slots=True)
class Prices:
    """The prices in force."""

    entries: tuple[Price, ...]

    @classmethod
    def load(cls, own: Path | None) -> Prices:
        """The shipped table, with what the file `own` says instead of it. Raises ConfigurationError."""
        shipped = _read("the shipped price table", files("shoal.embeddings").joinpath("data/prices.toml").read_bytes())
        if own is None:
            return cls(tuple(shipped))
        path = own.expanduser()
        try:
            with path.open("rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigurationError(f"SHOAL_PRICES {path}: {error.strerror}") from None
        if len(raw) > FILE_BYTES_MAX:
            raise ConfigurationError(f"SHOAL_PRICES {path}: more than {FILE_BYTES_MAX} bytes is no price table")
        mine = _read(f"SHOAL_PRICES {path}", raw)
        named = {price.model for price in mine}
        return cls((*mine, *(price for price in shipped if price.model not in named)))

    def per_million(self, model: str, lane: str = "live", day: str = "9999-12-31") -> float | None:
        """US dollars per million tokens of `model` on `day` (2026-01-20), or None where nobody knows. Before the first
        price that is known, that one holds."""
        fitting = [price for price in self.entries if price.fits(model)]
        if not fitting:
            return None
        nearest = max(fitting, key=lambda price: (len(price.model.rstrip("*")), price.model == model)).model
        fitting = sorted((price for price in fitting if price.model == nearest), key=lambda price: price.valid_from)
        held = [price for price in fitting if price.valid_from.isoformat() <= day]
        price = held[-1] if held else fitting[0]
        if lane != BATCH_LANE:
            return price.usd_per_million
        if price.batch_usd_per_million is not None:
            return price.batch_usd_per_million
        return price.usd_per_million * BATCH_SHARE

    def usd(self, key: SpendKey, counts: Counts) -> float | None:
        """What `counts` cost: a request that failed is not billed (docs/cost.md says what that leaves out)."""
        price = self.per_million(key.model, key.lane, key.day)
        return None if price is None else counts.answered_tokens * price / MILLION


def _read(name: str, raw: bytes) -> list[Price]:
    try:
        document: Mapping[str, object] = tomllib.loads(raw.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(f"{name}: not TOML: {error}") from None
    try:
        return _File.model_validate(document).price
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f'{name}: {place}: {first["msg"]}; an entry is [[price]] with model = "openai:NAME" and '
            "usd_per_million = 0.02 (docs/cost.md)"
        ) from None
