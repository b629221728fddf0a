"""Recall: how much of the truth an approximate search finds, and the cheapest way to search that finds enough.

Pure. recall@k of a question is the share of its exact k nearest chunks that the search by index finds among its first
k; of a sample, the mean. Distances decide, not ids: where several chunks are equally far, any of them counts. A search
by index has two settings. `nprobes`: how many partitions are looked into; with too few, neighbours across a border are
missed. `refine`: how many candidates, as a multiple of the depth, are ranked again by their exact distance; with too
few, the codes' error decides. Both cost time, so the cheapest pair is wanted that holds the target.

Searches look `depth` chunks deep (they gather documents), so that is how recall is measured too. What is measured on
unfiltered questions is used for those alone: a filtered search looks into every partition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.metrics import RecallStatistics

FILE = "recall.json"
K = 10
PROBES_MIN = 5
REFINES = (1, 2, 4)
LAST_RESORTS = (8, 16)  # with all partitions: what a decayed index may still be good for
CODES_PER_CANDIDATE = 85
"""What reading a candidate's vector costs, in codes looked at: 0.04 ms against 0.47 us (1536 numbers, 96 bytes)."""
MARGIN = 0.01
"""Looked for above the target: with 64 questions of 10 neighbours the figure itself is only sure to about 0.01."""
TOLERANCE = 1e-5
"""Cosine distances that differ by less are the same one, computed in another order."""
TOLERANCE_HALF = 2e-3  # of float16 vectors, whose numbers have 11 bits
TUNING_AGE_MAX = timedelta(days=1)
REST_PER_WORK = 50
"""A measuring that took t seconds is done again after 50 t at the earliest: 2 % of a core."""
_CLOCK_SKEW = timedelta(minutes=5)
_REFINE_FACTOR_MAX = 64

Floats = npt.NDArray[np.float32]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to search the index. `nprobes` None: every partition."""

    nprobes: int | None
    refine: int


DEFAULT = Setting(None, 2)
"""What is used while nothing was measured: only the codes' error can cost recall."""


@dataclass(frozen=True, slots=True)
class IndexMark:
    """Which index was measured. `training`: a hash of its centroids, which folding in new rows leaves as it is."""

    type: str
    partitions: int | None
    training: str
    indexed_rows: int


@dataclass(frozen=True, slots=True)
class Rung:
    """A setting and what it gave: recall, and the median time of a search in milliseconds."""

    setting: Setting
    recall: float
    ms_p50: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measuring. `before`: with the setting that was in force. `index` None: every search is exact."""

    at: datetime
    commit_sequence: int
    index: IndexMark | None
    target: float
    k: int
    depth: int
    real: int
    made: int
    before: Rung | None
    chosen: Rung | None
    rungs: tuple[Rung, ...] = field(default=())
    took_s: float = 0.0

    @property
    def alarm(self) -> str | None:
        """What is wrong: even the best setting does not hold the target, or only one that reads far too much."""
        if self.chosen is None:
            return None
        asked = f"measured with {self.real} real and {self.made} made questions"
        if self.chosen.recall < self.target:
            return f"recall@{self.k} is {self.chosen.recall:.3f} at best, below {self.target:g} ({asked})"
        if self.chosen.setting.refine > REFINES[-1]:
            read = self.chosen.setting.refine * self.depth
            return f"recall@{self.k} holds {self.target:g} only where each search reads {read} chunks ({asked})"
        return None

    def to_json(self) -> Json:
        """As `recall.json` has it."""

        def shown(rung: Rung | None) -> Json | None:
            return None if rung is None else asdict(rung.setting) | {"recall": rung.recall, "ms_p50": rung.ms_p50}

        chosen = self.chosen
        return {
            "at": self.at.isoformat(),
            "commit_sequence": self.commit_sequence,
            "index": asdict(self.index) if self.index else None,
            "queries": {"real": self.real, "made": self.made},
            "k": self.k,
            "depth": self.depth,
            "target": self.target,
            "recall": chosen.recall if chosen else 1.0,
            "nprobes": chosen.setting.nprobes if chosen else None,
            "refine": chosen.setting.refine if chosen else None,
            "before": shown(self.before),
            "rungs": [shown(rung) for rung in self.rungs],
            "alarm": self.alarm,
            "took_s": self.took_s,
        }


# --- the figure -------------------------------------------------------------------------------


class NearestDistances:
    """The exact `k` smallest cosine distances of each query (shape (n, width)), over batches of any number. One pass
    over the vectors serves all queries: a scan for each would cost as many passes."""

    def __init__(self, queries: Floats, k: int) -> None:
        self._queries, _ = _unit(queries)
        self._k = k
        self._best = np.full((len(queries), 0), np.inf, np.float32)

    def take(self, vectors: Floats) -> None:
        """Rows of shape (m, width). Those without a direction (zero, NaN, infinite) are near to nothing."""
        units, sound = _unit(vectors)
        units = units[sound]
        if not len(units):
            return
        both = np.concatenate([self._best, 1.0 - self._queries @ units.T], axis=1)
        if both.shape[1] > self._k:
            both = np.partition(both, self._k - 1, axis=1)[:, : self._k]
        self._best = both

    def distances(self) -> Floats:
        """Shape (n, k), or (n, rows) where there are fewer; ascending."""
        found: Floats = np.sort(self._best, axis=1)
        return found


def _unit(vectors: Floats) -> tuple[Floats, npt.NDArray[np.bool_]]:
    with np.errstate(all="ignore"):
        wide = np.asarray(vectors, np.float32)
        norms = np.linalg.norm(wide, axis=1)
        sound = np.isfinite(norms) & (norms > 0)
        scale: Floats = np.where(sound, norms, 1.0).astype(np.float32)
        units: Floats = wide / scale[:, None]
    return units, np.asarray(sound)


def recall(found: Sequence[Sequence[float]], exact: Floats, tolerance: float = TOLERANCE) -> float:
    """`found`: per query the exact distances of the rows that a search returned, best first. `exact`: of
    `NearestDistances`. 1.0 where there is nothing to find."""
    queries, k = exact.shape
    if not queries or not k:
        return 1.0
    hits = sum(
        sum(distance <= bound + tolerance for distance in distances[:k])
        for distances, bound in zip(found, exact[:, -1].tolist(), strict=True)
    )
    return float(hits / (queries * k))


def made_queries(rows: Floats, rng: np.random.Generator) -> Floats:
    """Questions where too few were asked: stored vectors, turned by about 17 degrees (cosine 0.96), so that the row
    itself is not simply found."""
    noise = rng.standard_normal(rows.shape).astype(np.float32)
    noise *= 0.3 * np.linalg.norm(rows, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    return (rows + noise).astype(np.float32)


# --- the search for a setting -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ladder:
    """The settings to choose from, for an index of so many rows and partitions (None: not known)."""

    rows: int
    partitions: int | None
    depth: int

    def probes(self) -> list[int | None]:
        """5, 10, 20, ... and every partition."""
        steps: list[int | None] = []
        probes = PROBES_MIN
        while self.partitions is not None and probes < self.partitions:
            steps.append(probes)
            probes *= 2
        return [*steps, None]

    def cost(self, setting: Setting) -> float:
        """In codes looked at. A model and no clock: what is busy meanwhile must not decide."""
        share = 1.0
        if setting.nprobes is not None and self.partitions:
            share = min(1.0, setting.nprobes / self.partitions)
        return share * self.rows + CODES_PER_CANDIDATE * self.depth * setting.refine

    def next(self, known: Mapping[Setting, float], goal: float) -> Setting | None:
        """What to measure next, given the recall of `known`; None: no more is needed. Recall grows with either number
        (within the sample's noise), so what more refining can't mend at so many probes, needs more probes."""
        for probes in self.probes():
            top = Setting(probes, REFINES[-1])
            if top not in known:
                return top
            if known[top] >= goal:
                break
        else:
            for refine in LAST_RESORTS:
                last = Setting(None, refine)
                if last not in known:
                    return last
                if known[last] >= goal:
                    break
            return None
        enough = self.probes()[self.probes().index(probes) :]
        cheaper = [Setting(some, refine) for some in enough for refine in REFINES]
        failed = [setting for setting, value in known.items() if value < goal]
        for setting in sorted(cheaper, key=self.cost):
            if self.cost(setting) >= self.cost(top):
                break
            if setting in known:
                if known[setting] >= goal:
                    break
            elif not any(_covers(one, setting) for one in failed):
                return setting
        return None

    def choose(self, known: Mapping[Setting, float], target: float) -> Setting:
        """The cheapest that holds the target with the margin, else the cheapest that holds it, else the best."""
        for goal in (goal_of(target), target):
            holding = [setting for setting, value in known.items() if value >= goal]
            if holding:
                return min(holding, key=self.cost)
        return min(known, key=lambda setting: (-known[setting], self.cost(setting)))


def goal_of(target: float) -> float:
    """What is looked for, so that the target holds in the next sample too."""
    return min(1.0, target + MARGIN)


def _covers(one: Setting, other: Setting) -> bool:
    """Whether `one` looks at all that `other` looks at."""
    probes = one.nprobes is None or (other.nprobes is not None and one.nprobes >= other.nprobes)
    return probes and one.refine >= other.refine


# --- what searches take from it ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tuning:
    """A setting in force, and what it was measured for."""

    at: datetime
    setting: Setting
    partitions: int | None
    depth: int
    indexed_rows: int

    def fits(self, indexed_rows: int, now: datetime) -> bool:
        """Whether it still speaks of this index: not too old, and of about its size."""
        age = now - self.at
        return -_CLOCK_SKEW <= age <= TUNING_AGE_MAX and self.indexed_rows / 2 <= indexed_rows <= self.indexed_rows * 2


def tuning_of(value: Any) -> Tuning | None:
    """What `recall.json` says; None where it holds no setting, or is not as we write it."""
    try:
        index = value["index"]
        setting = Setting(_number(value["nprobes"], 1_000_000, or_none=True), _number(value["refine"], 64) or 0)
        return Tuning(
            at=_aware(value["at"]),
            setting=setting,
            partitions=_number(index["partitions"], 1_000_000, or_none=True),
            depth=_number(value["depth"], 100_000) or 0,
            indexed_rows=_number(index["indexed_rows"], 1 << 50) or 0,
        )
    except (KeyError, TypeError, ValueError):
        return None


def statistics_of(value: Any) -> RecallStatistics | None:
    """The figures of `recall.json`; None where it is not as we write it."""
    try:
        recalled, target, queries, alarm = value["recall"], value["target"], value["queries"], value["alarm"]
        if not (_is_share(recalled) and _is_share(target)):
            return None
        return RecallStatistics(
            at=_aware(value["at"]).isoformat(),
            recall=float(recalled),
            target=float(target),
            k=_number(value["k"], 100_000) or 0,
            nprobes=_number(value["nprobes"], 1_000_000, or_none=True),
            refine=_number(value["refine"], 64, or_none=True),
            queries_real=_number(queries["real"], 1_000_000, least=0) or 0,
            queries_made=_number(queries["made"], 1_000_000, least=0) or 0,
            alarm=None if alarm is None else str(alarm)[:300],
        )
    except (KeyError, TypeError, ValueError):
        return None


def alarm_of(value: Any, training: str | None) -> str | None:
    """The alarm of `recall.json`, where it was measured on the index of this training."""
    figures = statistics_of(value)
    if figures is None or figures.alarm is None or training is None:
        return None
    index = value.get("index")
    return figures.alarm if isinstance(index, Mapping) and index.get("training") == training else None


def is_due(
    value: Any, mark: IndexMark | None, commit_sequence: int, now: datetime, interval_s: float, target: float
) -> bool:
    """Whether to measure again: another index, or time has come. On the same commit the same is found, so it is
    measured only before the tuning is too old to be used. `target`: that of the settings."""
    try:
        at, known = _aware(value["at"]), value["index"]
        rest_s = max(interval_s, REST_PER_WORK * min(float(value["took_s"]), 3600.0))
        trained = None if known is None else known["training"]
        if (value["commit_sequence"], value["target"]) == (commit_sequence, target):
            rest_s = max(rest_s, (TUNING_AGE_MAX / 2).total_seconds())
    except (KeyError, TypeError, ValueError):
        return True
    if trained != (mark.training if mark else None):
        return True
    if mark is None:
        return False  # nothing has changed, and every search is exact
    return not timedelta(0) <= now - at < timedelta(seconds=rest_s)


def for_limit(tuning: Tuning | None, limit: int, *, filtered: bool) -> tuple[int | None, int]:
    """(nprobes, refine factor) of a search for `limit` rows. As many candidates are refined as were measured to be
    enough, and the deeper the look, the more partitions."""
    refine = max(2, min(10, 500 // limit))
    if tuning is None:
        return None, refine
    wanted = math.ceil(tuning.setting.refine * tuning.depth / limit)
    tuned = max(1, min(_REFINE_FACTOR_MAX, wanted))
    if filtered or tuning.setting.nprobes is None:
        return None, max(tuned, refine) if filtered else tuned
    probes = math.ceil(tuning.setting.nprobes * max(1.0, limit / tuning.depth))
    return (None if tuning.partitions is None or probes >= tuning.partitions else probes), tuned


def median_ms(seconds: Iterable[float]) -> float:
    """Rounded to 0.01 ms."""
    return round(float(np.median(list(seconds))) * 1000, 2)


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _number(value: Any, most: int, *, least: int = 1, or_none: bool = False) -> int | None:
    if value is None and or_none:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError("not a number in bounds")
    return value


def _aware(text: Any) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("no time zone")
    return at
