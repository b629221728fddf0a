"""Fusion: one ranking out of the answers of several searches (legs), each with its own kind of score.

Guarantee (weighted): scores lie in 0..1, a document that a leg misses gets nothing from it, a better score in
a leg never ranks lower for it, and a document found by all legs never ranks behind one that some leg missed
(LanceDB's own linear combination ranks it last: min-max gives the worst hit of a leg the value of a miss).
Pure: plain mappings in, plain tuples out; equal scores are ordered by key, so pages of a ranking fit together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VECTOR_WEIGHT, KEYWORD_WEIGHT = 0.7, 0.3
RECIPROCAL_RANK_CONSTANT = 60  # Cormack, Clarke, Büttcher 2009: dampens the first ranks


@dataclass(frozen=True, slots=True)
class Fused:
    """A document's place: `score` in 0..1, and what each leg gave (0..1 before weighting; None: missed)."""

    key: str
    score: float
    parts: tuple[float | None, ...]


def normalise(scores: Mapping[str, float], floor: float = 0.0) -> dict[str, float]:
    """Min-max onto `floor`..1, best first at 1; a leg whose scores are all equal is all 1."""
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    if high <= low:
        return dict.fromkeys(scores, 1.0)
    return {key: floor + (1.0 - floor) * (score - low) / (high - low) for key, score in scores.items()}


def weighted(legs: Sequence[Mapping[str, float]], weights: Sequence[float]) -> list[Fused]:
    """Sum of the legs' normalised scores by weight, best first. Higher raw scores are better; weights sum to 1.

    The floor of the normalisation is the weight of all legs but the lightest: the least that a document found
    by every leg can get, and the most that one can get that missed some.
    """
    floor = sum(weights) - min(weights)
    normalised = [normalise(leg, floor) for leg in legs]
    fused = []
    for key in {key: None for leg in legs for key in leg}:
        parts = tuple(leg.get(key) for leg in normalised)
        score = sum(weight * (part or 0.0) for weight, part in zip(weights, parts, strict=True))
        fused.append(Fused(key, min(1.0, score), parts))
    # Rounded so that the tie between the worst hit of all legs and the best of one is a tie in floats too.
    fused.sort(key=lambda one: (-round(one.score, 9), one.parts.count(None), one.key))
    return fused


def reciprocal_rank(legs: Sequence[Sequence[str]], constant: int = RECIPROCAL_RANK_CONSTANT) -> list[Fused]:
    """Reciprocal rank fusion of keys that are best first in each leg; 1 is first place in every leg."""
    ranks = [{key: rank for rank, key in enumerate(leg)} for leg in legs]
    fused = []
    for key in {key: None for leg in legs for key in leg}:
        parts = tuple((constant + 1) / (constant + 1 + leg[key]) if key in leg else None for leg in ranks)
        fused.append(Fused(key, sum(part or 0.0 for part in parts) / len(legs), parts))
    fused.sort(key=lambda one: (-one.score, one.key))
    return fused
