"""How good rankings are against what people judged relevant: nDCG, recall and reciprocal rank, as trec_eval has them.

Pure. A ranking is document ids, best first, each once; judgments map a document's id to its grade, of which those
above 0 are relevant and all others (unjudged ones too) are not. Every figure lies in 0..1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2

CUTOFF = 10
"""Documents of a ranking that count: a page of answers."""
MEASURES = (f"ndcg@{CUTOFF}", f"recall@{CUTOFF}", f"mrr@{CUTOFF}")

Judgments = Mapping[str, float]


def ndcg(ranking: Sequence[str], judgments: Judgments, cutoff: int = CUTOFF) -> float:
    """Discounted gain over that of the best possible ranking: the gain is the grade itself, the discount
    log2(rank + 1) (Järvelin and Kekäläinen 2002, as trec_eval's ndcg_cut). 0 where nothing is relevant."""
    best = sorted((grade for grade in judgments.values() if grade > 0), reverse=True)
    ideal = _discounted(best[:cutoff])
    found = _discounted([max(0.0, judgments.get(key, 0.0)) for key in ranking[:cutoff]])
    return found / ideal if ideal else 0.0


def recall(ranking: Sequence[str], judgments: Judgments, cutoff: int = CUTOFF) -> float:
    """The share of all relevant documents that is among the first. 0 where nothing is relevant."""
    relevant = {key for key, grade in judgments.items() if grade > 0}
    return len(relevant.intersection(ranking[:cutoff])) / len(relevant) if relevant else 0.0


def reciprocal_rank(ranking: Sequence[str], judgments: Judgments, cutoff: int = CUTOFF) -> float:
    """1 over the place of the first relevant document; 0 where none is among the first."""
    for place, key in enumerate(ranking[:cutoff], start=1):
        if judgments.get(key, 0.0) > 0:
            return 1.0 / place
    return 0.0


def measured(rankings: Mapping[str, Sequence[str]], judgments: Mapping[str, Judgments]) -> dict[str, float]:
    """The mean of each of MEASURES over the judged queries; one without a ranking counts as nothing found."""
    sums = [0.0, 0.0, 0.0]
    for query, judged in judgments.items():
        ranking = rankings.get(query, ())
        for place, measure in enumerate((ndcg, recall, reciprocal_rank)):
            sums[place] += measure(ranking, judged)
    return {name: total / len(judgments) if judgments else 0.0 for name, total in zip(MEASURES, sums, strict=True)}


def _discounted(grades: Sequence[float]) -> float:
    return sum(grade / log2(place + 1) for place, grade in enumerate(grades, start=1))
