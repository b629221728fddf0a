"""Fusion: one ranking out of the answers of several searches (legs), each with its own kind of score.

Weighted fusion is a convex combination of scores normalised per query (Bruch, Gai and Ingber 2022 found that better
than reciprocal ranks on most sets), whose weights are not the same for every query: a leg counts by how clearly its
scores single out a first page. Where the words of a question stand in hundreds of documents alike, the scores of the
keyword leg fall off slowly and the vectors decide; where they name something rare, they fall off at once and the
words do. (A score's decline from the first ranks to the depth of the list predicts how good a ranking is: Shtok et
al. 2012, NQC; Zhou and Croft 2007, WIG.) docs/search-quality.md has what was tried, and figures.

Guarantee (weighted): scores lie in 0..1; of two documents the one that is at least as good in every leg is never
behind; a document that a leg misses gets nothing from it, and the worst hit of a leg gets more than nothing; where no
leg has more than a page of hits, a document found by all legs never ranks behind one that some leg missed. (LanceDB's
own linear combination ranks it last: min-max gives the worst hit of a leg the value of a miss.)
Pure: plain mappings in, plain tuples out; equal scores are ordered by key, so pages of a ranking fit together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

VECTOR_WEIGHT, KEYWORD_WEIGHT = 0.7, 0.3
RECIPROCAL_RANK_CONSTANT = 60  # Cormack, Clarke, Büttcher 2009: dampens the first ranks
PAGE = 10
"""The hits that a leg should single out: a page of answers."""


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


def clarity(scores: Mapping[str, float], page: int = PAGE) -> float:
    """How clearly a leg singles out its first page, 0..1: of the way from its best score to its worst, the share that
    lies within the first `page` hits. 1 where there are no more hits; 0 where so many are equally good."""
    ordered = sorted(scores.values(), reverse=True)
    if len(ordered) <= page:
        return 1.0
    best, last, worst = ordered[0], ordered[page - 1], ordered[-1]
    return (best - last) / (best - worst) if best > worst else 0.0


def adapted(legs: Sequence[Mapping[str, float]], weights: Sequence[float]) -> tuple[float, ...]:
    """`weights` for this query: each by its leg's clarity, in sum as before. A leg that found nothing keeps its own,
    so that a document's score does not rise because another leg is empty."""
    clear = [clarity(leg) if leg else None for leg in legs]
    known = [weight for weight, of_leg in zip(weights, clear, strict=True) if of_leg is not None]
    raised = sum(weight * of_leg for weight, of_leg in zip(weights, clear, strict=True) if of_leg is not None)
    if raised <= 0.0:
        return tuple(weights)
    scale = sum(known) / raised
    return tuple(
        weight if of_leg is None else weight * of_leg * scale for weight, of_leg in zip(weights, clear, strict=True)
    )


def weighted(legs: Sequence[Mapping[str, float]], weights: Sequence[float]) -> list[Fused]:
    """Sum of the legs' normalised scores by adapted weight, best first. Higher raw scores are better; `weights` sum
    to 1 and are what each leg counts for where all are equally clear.

    To be among few hits says something by itself: the floor of the normalisation is, up to a page of hits, the weight
    of all legs but the lightest (the least that a document found by every leg can get, and the most that one can get
    that missed some), and falls from there as hits grow many.
    """
    floor = sum(weights) - min(weights)
    normalised = [normalise(leg, floor * min(1.0, PAGE / max(1, len(leg)))) for leg in legs]
    counted = adapted(legs, weights)
    fused = []
    for key in {key: None for leg in legs for key in leg}:
        parts = tuple(leg.get(key) for leg in normalised)
        score = sum(weight * (part or 0.0) for weight, part in zip(counted, parts, strict=True))
        fused.append(Fused(key, min(1.0, score), parts))
    # Rounded so that what ties by right is a tie in floats too; then what more legs found comes first.
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
