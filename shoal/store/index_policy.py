"""When a vector index is trained, merged, folded or left alone: decided from counts. Pure.

Lance assigns new rows to the partitions and codes of the first training for ever: recall rots unseen as a table
outgrows it (facts 2.4). So an index is trained again when its table is twice what it was trained on, and sooner where
recall, which is measured (recall.py), does not hold. What was written since lies in deltas, each searched by itself:
too many are merged, which costs no training. Rows in neither are scanned one by one: too many are taken in.

None of it is urgent, a search is right without. So a build waits: for compaction, for another build, for a rest
after the last one (longer after a longer one: a build takes at most every fifth second), and after failures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """SHOAL_INDEX_KIND."""

    IVF_PQ = "ivf_pq"
    IVF_RQ = "ivf_rq"
    IVF_HNSW_SQ = "ivf_hnsw_sq"
    FLAT = "flat"


LANCE_TYPES: Mapping[Kind, str] = {Kind.IVF_PQ: "IVF_PQ", Kind.IVF_RQ: "IVF_RQ", Kind.IVF_HNSW_SQ: "IVF_HNSW_SQ"}


class Act(StrEnum):
    NOTHING = "nothing"
    TRAIN = "train"
    MERGE = "merge"  # all deltas and new rows into one, with the training that there is
    FOLD = "fold"  # new rows into a delta: so many that it takes a build
    DROP = "drop"


TRAINING_ROWS_MIN = 256
"""Lance trains no product quantiser below this (facts 2.4)."""
OUTGROWN = 2
"""Times its training that a table may be (facts 2.5)."""
ALARM_GROWTH, ALARM_S = 1.1, 86_400.0
"""An alarm of recall trains anew where a tenth of the rows came since, or a day passed: the same rows make the same
index, and an alarm that no training ends must not keep it busy."""
DELTAS_MAX = 8
FOLD_ROWS_MAX = 5_000
"""Rows that the writer folds in by itself, between two commits: about a second at 1536 dimensions. More is a build,
and due at once: what neither takes in is scanned by every search until more rows come, which may be never."""
DELTA_ROWS_MAX = 20_000
"""A delta takes more rows until it has so many: rewriting it costs milliseconds, and eight hold 160,000 rows."""
TEXT_GROWTH = 4
"""Times the rows that came after it that a delta of a full-text index may hold to be merged with them."""
TEXT_MERGE_ROWS_MAX = 100_000
"""Of such a merge by the writer itself, between two commits: measured 15 us a row. More is a build."""
CHEAP_ROWS_MAX = 200_000
"""Below, training is most of a build, and half of Lance's samples and rounds cost little recall."""
CHEAP_SAMPLE_RATE, CHEAP_ROUNDS = 64, 25
HNSW_PARTITION_ROWS = 1_000_000
"""Lance's own choice. A graph is best whole; this bounds the memory that building it takes."""
REST = 4
"""Rest after a build, in its own lengths."""
BACKOFF_S, BACKOFF_MAX_S = 30.0, 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What the settings say."""

    kind: Kind
    rows_min: int
    interval_s: float


@dataclass(frozen=True, slots=True)
class Counts:
    """An index and its table. `rows` have a vector; `segments` are the rows of the base and of each delta, none
    where there is no index; `unindexed` rows are in none of them. `trained_rows` had a vector at the training;
    `is_other`: a full-text index was made with other options than it would be now."""

    rows: int
    segments: Sequence[int] = ()
    unindexed: int = 0
    trained_rows: int = 0
    kind: Kind | None = None
    is_other: bool = False


@dataclass(frozen=True, slots=True)
class Past:
    """What happened to this index and what goes on. `ended_s` ago its last build ended (None: none in this life),
    and took `took_s`; `failures` of the last builds in a row; `defect`: what verification found; `asked`: what an
    operator wants; `alarm`: that recall does not hold with this training; `trained_s`: how old it is (None: not
    known)."""

    ended_s: float | None = None
    took_s: float = 0.0
    failures: int = 0
    is_building: bool = False
    is_compacting: bool = False
    defect: str | None = None
    asked: Act | None = None
    alarm: str | None = None
    trained_s: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do now, and what is due. They differ while something is waited for, which `why` says too."""

    act: Act
    due: Act
    why: str


def decide(counts: Counts, past: Past, limits: Limits) -> Decision:
    """What to do about one vector index."""
    due, why, is_urgent = _due(counts, past, limits)
    if due in (Act.NOTHING, Act.DROP):
        return Decision(due, due, why)
    waits = _waits(past, limits, is_urgent)
    return Decision(Act.NOTHING if waits else due, due, f"{why}; waits {waits}" if waits else why)


def decide_text(counts: Counts, past: Past) -> Decision:
    """What to do about a full-text index. It needs no training, and maintenance makes it and folds rows in; what is
    left is to build it anew where it is broken or made with other options, to merge what the writer by itself may not
    (text_merges), and what is asked for."""
    if not counts.segments:
        return Decision(Act.NOTHING, Act.NOTHING, "not there yet")
    due, why, is_urgent = Act.NOTHING, "up to date", True
    if past.defect:
        due, why = Act.TRAIN, f"verification failed: {past.defect}"
    elif past.asked is Act.TRAIN:
        due, why = Act.TRAIN, "asked for"
    elif counts.is_other:
        due, why, is_urgent = Act.TRAIN, "made with other options", False
    elif past.asked and (len(counts.segments) > 1 or counts.unindexed):
        due, why = past.asked, "asked for"
    elif len(counts.segments) > DELTAS_MAX:
        due, why, is_urgent = Act.MERGE, f"{len(counts.segments)} deltas, {DELTAS_MAX} are enough", False
    waits = _waits(past, None, is_urgent) if due is not Act.NOTHING else None
    return Decision(Act.NOTHING if waits else due, due, f"{why}; waits {waits}" if waits else why)


def _due(counts: Counts, past: Past, limits: Limits) -> tuple[Act, str, bool]:
    """The due act, why, and whether it needs no rest before it."""
    rows, is_asked = counts.rows, past.asked is not None
    if limits.kind is Kind.FLAT:
        return (Act.DROP if counts.segments else Act.NOTHING), "searches are exact by setting (index_kind flat)", True
    if past.defect and counts.segments and rows < TRAINING_ROWS_MIN:
        return Act.DROP, f"{rows} vectors are searched exactly, and verification failed: {past.defect}", True
    if rows < max(TRAINING_ROWS_MIN, 1 if counts.segments else limits.rows_min):
        return Act.NOTHING, f"{rows} vectors: searched exactly below {limits.rows_min}", False
    if not counts.segments:
        return Act.TRAIN, f"{rows} vectors and no index yet", True
    if counts.kind is not limits.kind:
        return Act.TRAIN, f"the index is {counts.kind or 'of another kind'}, the setting {limits.kind}", True
    if past.defect:
        return Act.TRAIN, f"verification failed: {past.defect}", True
    if past.asked is Act.TRAIN:
        return Act.TRAIN, "asked for", True
    if rows > OUTGROWN * counts.trained_rows:
        return Act.TRAIN, f"{rows} vectors outgrew the training on {counts.trained_rows}", False
    is_other = rows > ALARM_GROWTH * counts.trained_rows or past.trained_s is None or past.trained_s >= ALARM_S
    if past.alarm and is_other:
        return Act.TRAIN, past.alarm, False
    deltas = len(counts.segments)
    if deltas >= DELTAS_MAX or (past.asked is Act.MERGE and (deltas > 1 or counts.unindexed)):
        return Act.MERGE, "asked for" if is_asked else f"{deltas} deltas, {DELTAS_MAX} are too many", is_asked
    if counts.unindexed > FOLD_ROWS_MAX:
        return Act.FOLD, f"{counts.unindexed} rows are not indexed, more than {FOLD_ROWS_MAX}", False
    return Act.NOTHING, "up to date", False


def _waits(past: Past, limits: Limits | None, is_urgent: bool) -> str | None:
    if past.is_building:
        return "for the build under way"
    if past.is_compacting:
        return "for compaction"
    if past.ended_s is None:
        return None
    if past.failures:
        left_s = backoff_s(past.failures) - past.ended_s
        return f"{left_s:.0f} s after {past.failures} failed builds" if left_s > 0 else None
    if is_urgent:
        return None
    left_s = max(limits.interval_s if limits else 0.0, REST * past.took_s) - past.ended_s
    return f"{left_s:.0f} s after the last build" if left_s > 0 else None


def backoff_s(failures: int) -> float:
    """How long a build is not tried again after so many failures in a row."""
    return min(BACKOFF_MAX_S, BACKOFF_S * 2.0 ** (min(failures, 20) - 1))


def folds_in_place(counts: Counts) -> int | None:
    """As `fold_merges`, for a fold by the writer itself; None is no work for it."""
    if not counts.segments or not 0 < counts.unindexed <= FOLD_ROWS_MAX:
        return None
    return fold_merges(counts)


def fold_merges(counts: Counts) -> int:
    """How many of the newest deltas a fold merges new rows into: 0 makes a new delta. Graphs are built anew by each
    merge, so they never are."""
    is_small = len(counts.segments) > 1 and counts.segments[-1] + counts.unindexed <= DELTA_ROWS_MAX
    return int(is_small and counts.kind is not Kind.IVF_HNSW_SQ)


def text_merges(segments: Sequence[int], unindexed: int) -> int:
    """How many of the newest segments of a full-text index a fold merges new rows into; 0 makes a new delta.

    Each that holds at most TEXT_GROWTH times what came after it, as a log-structured merge tree does: folds of 100 rows
    leave at most five segments of 100,000, and write each row ten times on the way (a test counts them). Into one
    segment, a fold would write the whole index however few rows it takes in: 1.5 CPU-seconds at 100,000 rows, against
    0.03 for a delta (measured). Scores are the same: Lance counts words over all segments."""
    after, merges = unindexed, 0
    for rows in reversed(segments):
        if rows > TEXT_GROWTH * after or rows + after > TEXT_MERGE_ROWS_MAX:
            break
        after += rows
        merges += 1
    return merges


def partitions(rows: int, kind: Kind = Kind.IVF_PQ) -> int:
    """IVF partitions for this many vectors (facts 2.5): sqrt(rows), with at least 256 rows each, up to a million;
    of 4096 rows each where that makes more. Graphs: one for each million."""
    if kind is Kind.IVF_HNSW_SQ:
        return max(1, rows // HNSW_PARTITION_ROWS)
    wanted = round(rows**0.5) if rows <= 1_000_000 else max(1_000, rows // 4096)
    return max(1, min(max(16, wanted), rows // 256))


def rows_of(count: int) -> int:
    """About the most vectors that `partitions` gives `count` partitions for: what an index of which nobody remembers
    the training was trained on."""
    if count <= 256:
        return 256 * count
    return count * count if count < 1_000 else 4096 * count


def sub_vectors(width: int) -> int:
    """PQ sub-vectors: width/16, or the nearest below that divides the width."""
    return next(count for count in range(max(1, width // 16), 0, -1) if width % count == 0)


def training(kind: Kind, rows: int, width: int) -> dict[str, int]:
    """Lance's parameters of a training."""
    parameters = {"num_partitions": partitions(rows, kind)}
    if kind is Kind.IVF_PQ:
        parameters["num_sub_vectors"] = sub_vectors(width)
        if rows < CHEAP_ROWS_MAX:
            parameters |= {"sample_rate": CHEAP_SAMPLE_RATE, "max_iters": CHEAP_ROUNDS}
    return parameters


def threads(cores: int, share: float) -> int:
    """Threads of a build."""
    return max(1, int(cores * share))
