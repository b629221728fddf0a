"""Fusion: one ranking out of the answers of several searches (legs), each with its own kind of score.

Weighted fusion is a convex combination of scores normalised per query (Bruch, Gai and Ingber 2022 found that better
than reciprocal ranks on most sets), whose weights are not the same for every query: a leg counts by how steeply its
scores decline over the first distinct ones. Where the words of a question stand in hundreds of documents to much the
same effect, the keyword scores decline slowly and the vectors count for more; where they name something rare, they fall
at once and the words do. No leg is ever silenced: each keeps LEAST of its weight, however flat. (That a ranking's
scores tell how good it is: Zhou and Croft 2007, WIG; Shtok et al. 2012, NQC.) Further passages of a document count as
far as they stand out by themselves. docs/search-quality.md has what was tried, and figures.

Guarantee (weighted): scores lie in 0..1, and above 0; the best of a leg scores at least LEAST of the leg's weight; of
two documents the one that is at least as good in every leg is never behind; a document that a leg misses gets nothing
from it, and the worst hit of a leg gets more than nothing; where no leg has more than FEW hits, a document found by all
legs never ranks behind one that some leg missed. (LanceDB's own linear combination ranks it last: min-max gives the
worst hit of a leg the value of a miss.)
Pure: plain mappings in, plain tuples out; equal scores are ordered by key, so pages of a ranking fit together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log2

VECTOR_WEIGHT, KEYWORD_WEIGHT = 0.7, 0.3
RECIPROCAL_RANK_CONSTANT = 60  # Cormack, Clarke, Büttcher 2009: dampens the first ranks
FEW = 10
"""Hits that are worth something by themselves, whatever their scores."""
FIRST = 20
"""Distinct scores over which the decline is read: two pages. At 15 and 30 the figures are much the same. Also the
passages of all documents among which a further one of a document has to be, to count."""
FURTHER = 0.5
"""What each next passage of a document counts of the one before: less is a little worse for pages, and a little better
for code (docs/search-quality.md)."""
LOOK = 256
"""Hits to which the vector leg's decline is brought: a first look at documents of one passage each."""
ALIKE = 3
"""Decimals of the way from a leg's best score to its zero within which scores are one: copies of a text that were
embedded in different batches differ in the seventh."""
EVEN = 2 / 3
"""The keyword leg's decline, as a share of the vector leg's, at which both count as the weights say. Higher, questions
about pages lose; lower, those in plain words for code do (docs/search-quality.md)."""
LEAST = 2 / 3
"""The share of its weight that a leg keeps however flat it is: of 0.7 and 0.3, 0.47 and 0.2. Over 0.71, the only hit of
rare words would come behind the nearest in meaning even where the vectors find all alike."""


@dataclass(frozen=True, slots=True)
class Fused:
    """A document's place: `score` in 0..1, what each leg gave (0..1 before weighting; None: missed), and what each leg
    counted for in this query: the sum of part times weight is the score."""

    key: str
    score: float
    parts: tuple[float | None, ...]
    weights: tuple[float, ...]


def normalise(scores: Mapping[str, float], floor: float = 0.0) -> dict[str, float]:
    """Min-max onto `floor`..1, best first at 1; a leg whose scores are all equal is all 1."""
    if not scores:
        return {}
    low, high = min(scores.values()), max(scores.values())
    if high <= low:
        return dict.fromkeys(scores, 1.0)
    return {key: floor + (1.0 - floor) * (score - low) / (high - low) for key, score in scores.items()}


def of_passages(leg: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """A leg's scores of documents, from the scores of their passages (of each document one or more, best first): the
    best, and of further ones what they are above the FIRST-th passage of all, each FURTHER of the one before. So a
    page with two good answers is ahead of one with the same best and no other, while length alone gives nothing:
    neither do passages that would not stand among the first by themselves, nor any where there are no more than FIRST.
    A document is at most twice as far above that bar as its best passage."""
    every = sorted((score for passages in leg.values() for score in passages), reverse=True)
    bar = every[FIRST - 1] if len(every) > FIRST else inf
    return {
        key: best + sum(FURTHER**place * max(0.0, score - bar) for place, score in enumerate(more, start=1))
        for key, (best, *more) in leg.items()
    }


def decline(scores: Mapping[str, float], zero: float | None = None) -> float:
    """Of the way from a leg's best score to `zero` (None: to its worst), the share that lies within the FIRST distinct
    scores, 0..1: near 0 for many hits that are nearly alike, 0 where all are equal. 1 where there are no more hits
    than FIRST. Equals count once: thirty copies of the best hit, and nothing else near, are a steep leg."""
    if len(scores) <= FIRST:
        return 1.0
    best = max(scores.values())
    end = min(scores.values()) if zero is None else zero
    if best <= end:
        return 0.0
    ways = sorted((best - score) / (best - end) for score in scores.values())
    distinct = list({round(way, ALIKE): way for way in ways}.values())
    return min(1.0, distinct[:FIRST][-1])


def adapted(
    vector: Mapping[str, float], keyword: Mapping[str, float], weights: tuple[float, float]
) -> tuple[float, float]:
    """`weights` of the two legs for this query, in sum as before and each at least LEAST of what it was. The scores of
    the keyword leg count from 0, which is what a miss has (BM25); those of the vector leg have no such point, and a
    search for the nearest never misses: they count from the worst hit, which is the further off the more hits there
    are. Near similarities fall with about the logarithm of the rank, so that decline is brought to LOOK hits by it:
    else 256 passages of seventy pages look steeper than those of as many functions. Unchanged where the vectors found
    FIRST documents or fewer (a collection so small has no slope to read), where a leg found nothing, or both are
    level."""
    if len(vector) <= FIRST or not keyword:
        return weights
    of_vector = weights[0] * EVEN * decline(vector) * log2(len(vector)) / log2(LOOK)
    of_keyword = weights[1] * decline(keyword, 0.0)
    if of_vector + of_keyword <= 0.0:
        return weights
    total = sum(weights)
    share = total * of_vector / (of_vector + of_keyword)
    share = min(max(share, LEAST * weights[0]), total - LEAST * weights[1])
    return share, total - share


def weighted(legs: Sequence[Mapping[str, float]], weights: Sequence[float]) -> list[Fused]:
    """Sum of the legs' normalised scores by adapted weight, best first. `legs` and `weights` are of the vectors, then
    of the words; higher raw scores are better, and those of the words are above 0. The weights sum to 1.

    To be among few hits says something by itself: the floor of the normalisation is, up to FEW hits, the larger weight
    (the least that a document found by both legs can get, and the most that one can get that one missed), and falls
    from there as hits grow many.
    """
    (vector, keyword), (of_vector, of_keyword) = legs, weights
    floor = max(weights)
    normalised = [normalise(leg, floor * min(1.0, FEW / max(1, len(leg)))) for leg in legs]
    counted = adapted(vector, keyword, (of_vector, of_keyword))
    fused = []
    for key in {key: None for leg in legs for key in leg}:
        parts = tuple(leg.get(key) for leg in normalised)
        score = sum(weight * (part or 0.0) for weight, part in zip(counted, parts, strict=True))
        fused.append(Fused(key, min(1.0, score), parts, counted))
    # Rounded so that what ties by right is a tie in floats too; then what more legs found comes first.
    fused.sort(key=lambda one: (-round(one.score, 9), one.parts.count(None), one.key))
    return fused


def reciprocal_rank(legs: Sequence[Sequence[str]], constant: int = RECIPROCAL_RANK_CONSTANT) -> list[Fused]:
    """Reciprocal rank fusion of keys that are best first in each leg; 1 is first place in every leg."""
    even = (1.0 / len(legs),) * len(legs)
    ranks = [{key: rank for rank, key in enumerate(leg)} for leg in legs]
    fused = []
    for key in {key: None for leg in legs for key in leg}:
        parts = tuple((constant + 1) / (constant + 1 + leg[key]) if key in leg else None for leg in ranks)
        fused.append(Fused(key, sum(part or 0.0 for part in parts) / len(legs), parts, even))
    fused.sort(key=lambda one: (-one.score, one.key))
    return fused
