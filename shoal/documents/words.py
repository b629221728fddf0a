"""Names to words: `SystemLoadBtmPv` and `load_forecast_mw` as a person would say them, and the unit a name tells.

Pure string work, bounded by the length of its input, which callers cut first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|(?<=[A-Za-z]{2})(?=\d{4})")
_SEPARATOR = re.compile(r"[\s_\-./:|,;()\[\]{}<>〔〕［］（）【】#$@&+*=\"'\\!?%^~`·・]+")
_UNIT_PARTED = re.compile(r"(?<![A-Za-z])([kMGT]) (Wh?)(?![A-Za-z])")
_NAME_CHARS_MAX = 120

# Written in a bracket behind the name: "Load (MW)", "需要[kWh]".
_BRACKETED = re.compile(r"[(\[〔［（]([^()\[\]〔〕［］（）]{1,20})[)\]〕］）]")
_UNITS = {
    "mw": "MW", "mwh": "MWh", "gw": "GW", "gwh": "GWh", "kw": "kW", "kwh": "kWh", "twh": "TWh", "kv": "kV", "mu": "MU",
    "mva": "MVA", "mvar": "Mvar", "hz": "Hz", "percent": "%", "pct": "%", "percentage": "%", "%": "%",
    "万kw": "10 MW", "億kwh": "100 GWh", "30分kwh": "kWh per 30 min", "mw平均": "MW average", "千kw": "MW",
    "usd": "USD", "eur": "EUR", "gbp": "GBP", "cad": "CAD", "aud": "AUD", "$/mwh": "$/MWh", "eur/mwh": "EUR/MWh",
    "€/mwh": "EUR/MWh", "£/mwh": "GBP/MWh", "usd/mwh": "USD/MWh", "c/kwh": "c/kWh", "$/mw": "$/MW", "mmbtu": "MMBtu",
    "celsius": "°C", "fahrenheit": "°F", "°c": "°C", "°f": "°F", "degc": "°C", "degf": "°F", "m/s": "m/s",
    "km/h": "km/h",
    "mph": "mph", "w/m2": "W/m²", "w/m²": "W/m²", "mm": "mm", "km": "km", "kg": "kg", "tonnes": "t", "tco2": "t CO2",
    "gco2": "g CO2", "gco2eq": "g CO2eq", "kgco2": "kg CO2", "bbl": "bbl", "mcf": "mcf", "bcf": "bcf",
    "ms": "ms", "seconds": "s", "minutes": "min", "hours": "h", "bytes": "bytes", "m3": "m³",
}  # fmt: skip
# A word that is a unit only at the end of a name, where shorter words would be guesses.
_SUFFIX_UNITS_TEXT = """
mw mwh gw gwh kw kwh twh kv mva mvar hz percent pct percentage usd eur celsius fahrenheit degc degf mph gco2eq
ms bytes
"""
_SUFFIX_UNITS = frozenset(_SUFFIX_UNITS_TEXT.split())


# Words of the field, to part names that are written as one: `dayaheadhourlydemand`, `genfuelmix`.
_VOCABULARY_TEXT = """
actual actuals adjusted agg aggregated ahead alert all ancillary annual area areas auction available average avg
balance balancing base battery bid binding border by calendar capacity carbon charge clear cleared coal combined
congestion conditions constraint constraints consumption control cost cross cumulative current curtailment daily
data dam date day delivery demand detail dispatch downstream dst emissions ending energy event exchange export
exports external factor final five flow flows forecast forecasts fuel gas gen generation generators grid hour
hourly hydro imbalance import imports index installed intensity interchange interface intertie interval intraday
lmp lmps load location loss losses market max meter min minute minutes mix month monthly net nodal node north
nuclear offer offers oil operating operational outage outages peak physical plan plant plants power previous
price prices production purchase pump rate real realtime region regional regulation reliability renewable
renewables report reports reserve reserves response results rt sale schedule scheduled settlement seven short
solar south spot state station status storage sum summary supply sys system table tech tie time today tomorrow
total trans transmission unit units usage value values water weather week weekly west wind year yearly zonal
zone zones shadow marginal planned unplanned hub pricing broker services service get list fetch items bids
demanda generacion produccion consumo energia precio precios grafica eolica hidro termica renovable renovables
horaria diaria baleares canarias peninsula ceuta melilla lanzarote lagomera tenerife intercambio intercambios
geracao producao consommation electricite puissance prix frequency inertia curve stack merit commercial transfer
limits ratings
"""
_VOCABULARY = frozenset(_VOCABULARY_TEXT.split())
_MERGED_CHARS_MIN = 8


def split_words(name: str, *, chars_max: int = _NAME_CHARS_MAX) -> list[str]:
    """The words of an identifier, in lower case: camelCase, snake_case, kebab-case, dots, brackets, known compounds."""
    spaced = _SEPARATOR.sub(" ", name[:chars_max])
    if not (spaced.isupper() or spaced.islower()):
        spaced = _BOUNDARY.sub(" ", spaced)
    spaced = _UNIT_PARTED.sub(r"\1\2", spaced)
    return [part for word in spaced.lower().split() for part in (_parts(word) if word.isascii() else (word,))]


@lru_cache(maxsize=4096)
def _parts(word: str) -> tuple[str, ...]:
    """`word` as known words, the fewest that cover it whole; itself where none do."""
    if len(word) < _MERGED_CHARS_MIN or word in _VOCABULARY:
        return (word,)
    best: list[tuple[str, ...] | None] = [()]
    for end in range(1, len(word) + 1):
        choices = [
            (*before, word[start:end])
            for start in range(max(0, end - 13), end)
            if (before := best[start]) is not None and word[start:end] in _VOCABULARY
        ]
        best.append(min(choices, key=len) if choices else None)
    return best[-1] or (word,)


def spoken(name: str) -> str:
    """`name` as words; one that holds none is given back as it is."""
    return " ".join(split_words(name)) or name[:_NAME_CHARS_MAX]


def unit_of(name: str) -> str | None:
    """The unit that a field's name tells: `Load (MW)`, `forecast_load_mw`, `price [EUR/MWh]`."""
    name = name[:_NAME_CHARS_MAX]
    for match in _BRACKETED.finditer(name):
        unit = _UNITS.get(match[1].strip().lower().translate(_WIDE))
        if unit is not None:
            return unit
    if "%" in name:
        return "%"
    words = split_words(name)
    if len(words) > 1 and words[-1] in _SUFFIX_UNITS:
        return _UNITS[words[-1]]
    if words and words[0] == "mw" and len(words) > 1:  # "MW Offered"
        return "MW"
    return None


def known_unit(text: str) -> str | None:
    """`text` as a unit's usual spelling, where it is one and nothing else."""
    return _UNITS.get(text.strip().strip("()[]").lower().translate(_WIDE))


def unique(items: Iterable[str]) -> list[str]:
    """The items in order, each once, compared without case."""
    seen: dict[str, str] = {}
    for item in items:
        seen.setdefault(item.casefold(), item)
    return list(seen.values())


# Full-width forms, as in ｋＷｈ.
_WIDE = {0xFF01 + i: 0x21 + i for i in range(94)}
