"""Which of the fixes that were tried is the likeliest to help: what they are judged by, and how the parts are weighed.

A fix is judged by the likeness of its error to the one that is asked about, by the kinship of its scraper to the one
that fails, and by how often it worked. Reports of the same change to the same error are one candidate, whatever became
of each. What somebody marked as wrong is kept, behind everything else. Every judgement is shown (`Judged.shown`).
Pure; `likeness` comes from vectors or words, and is the store's business.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Row = dict[str, Any]

ERROR_WEIGHT, TYPE_WEIGHT, KIN_WEIGHT, WORKED_WEIGHT = 0.45, 0.1, 0.2, 0.25
"""The error decides first; but a fix of another scraper must be clearly likelier in its error to pass one's own, and
one that failed sinks below one that worked where the rest is alike. Chosen on made-up fixes
(tests/unit/store/test_fix_relevance.py), which the order by time alone fails."""

SOURCE_KIN, DATASET_KIN, TYPE_KIN, FORMAT_KIN, NAME_KIN = 0.3, 0.15, 0.1, 0.1, 0.25
"""Shares of the kinship of two scrapers that are not the same; together 0.9, so that none is as near as itself."""

ERROR_FLOOR, KIN_FLOOR = 0.35, 0.3
"""A fix of another scraper is shown where its error is so alike, or the scraper so near and the error type no other."""

_HUNK = re.compile(r"^@@.*?@@", re.MULTILINE)
_VOLATILE = re.compile(
    r"^(?:index [0-9a-f]+\.\.|diff --git |similarity index|new file mode|old mode|new mode).*$", re.MULTILINE
)
_FILE_TIMES = re.compile(r"^((?:---|\+\+\+) [^\t\n]*)\t.*$", re.MULTILINE)
_PART = re.compile(r"[a-z]+|[0-9]+")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def diff_hash(diff: str | None) -> str:
    """A hash of what `diff` changes: without line numbers, blob ids, file times and trailing blanks. '' for none."""
    text = _FILE_TIMES.sub(r"\1", _VOLATILE.sub("", _HUNK.sub("@@", (diff or "").replace("\r\n", "\n"))))
    lines = [line.rstrip() for line in text.split("\n")]
    kept = "\n".join(line for line in lines if line)
    return hashlib.sha256(kept.encode("utf-8", "replace")).hexdigest() if kept else ""


@dataclass(frozen=True, slots=True)
class Scraper:
    """What a scraper is known by; None where it is not known."""

    name: str
    data_source: str | None = None
    dataset: str | None = None
    data_type: str | None = None
    file_format: str | None = None


def kinship(one: Scraper, other: Scraper) -> tuple[float, tuple[str, ...]]:
    """How near two scrapers are, 0..1 (1: the same), and what they have in common."""
    if one.name.casefold() == other.name.casefold():
        return 1.0, ("scraper",)
    total, common = 0.0, []
    for field, share in (
        ("data_source", SOURCE_KIN),
        ("dataset", DATASET_KIN),
        ("data_type", TYPE_KIN),
        ("file_format", FORMAT_KIN),
    ):
        mine, theirs = getattr(one, field), getattr(other, field)
        if mine and theirs and mine.casefold() == theirs.casefold():
            total += share
            common.append(field)
    alike = name_likeness(one.name, other.name)
    if alike >= 0.5:
        common.append("name")
    return total + NAME_KIN * alike, tuple(common)


def name_likeness(one: str, other: str) -> float:
    """Jaccard likeness of the parts of two names, 0..1: `nyiso_load_forecast` and `nyiso-load` share two of three."""
    left, right = (set(_PART.findall(name.casefold())) for name in (one, other))
    return len(left & right) / len(left | right) if left | right else 0.0


def worked_share(worked: int, failed: int) -> float:
    """How likely it is to work, 0..1, from few reports with caution: the mean of a Beta(1, 1) after them."""
    return (worked + 1) / (worked + failed + 2)


@dataclass(frozen=True, slots=True)
class Judged:
    """A fix and why it stands where it does. `error` is None where there was nothing to compare."""

    row: Row
    score: float
    error: float | None
    error_type: float | None
    kinship: float
    kin_by: tuple[str, ...]
    worked: float
    reports_worked: int
    reports_failed: int

    def shown(self) -> dict[str, Any]:
        """The parts, rounded."""
        return {
            "score": round(self.score, 3),
            "error": None if self.error is None else round(self.error, 3),
            "error_type": self.error_type,
            "kinship": round(self.kinship, 3),
            "kin_by": list(self.kin_by),
            "worked": round(self.worked, 3),
            "reports_worked": self.reports_worked,
            "reports_failed": self.reports_failed,
        }


def ranked(
    rows: Iterable[Row],
    same: Mapping[str, tuple[str, ...]],
    asked: Scraper,
    scrapers: Mapping[str, Scraper],
    error_type: str | None,
    likeness: Mapping[str, float] | None,
    *,
    all_of_them: bool = False,
) -> list[Judged]:
    """The candidates, best first; those marked wrong last, equals newest first.

    `same`: id -> what makes two reports the same change to the same error; `scrapers`: by name; `likeness`: id -> 0..1,
    None where there was no error to compare. `all_of_them`: also those that are not worth showing, as far as is known.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=_age):
        groups.setdefault(same[row["id"]], []).append(row)
    judged = [_judged(group, asked, scrapers, error_type, likeness) for group in groups.values()]
    # Stable: `groups` is in the order of the newest of each.
    return sorted(
        judged if all_of_them else filter(_is_relevant, judged),
        key=lambda one: (one.row["marked_wrong_by"] is not None, -one.score),
    )


def _is_relevant(one: Judged) -> bool:
    if one.kinship == 1.0 or (one.error or 0.0) >= ERROR_FLOOR:
        return True
    return one.kinship >= KIN_FLOOR and one.error_type != 0.0


def _age(row: Row) -> tuple[float, str]:
    at = row["reported_at"]
    return -(at - _EPOCH).total_seconds() if at else float("inf"), row["id"]


def _judged(
    group: Sequence[Row],
    asked: Scraper,
    scrapers: Mapping[str, Scraper],
    error_type: str | None,
    likeness: Mapping[str, float] | None,
) -> Judged:
    counts = {"worked": 0, "failed": 0}
    for row in group:
        counts[row["outcome"] if row["outcome"] in counts else "failed"] += max(1, row["count"] or 1)
    # One that is marked tells what became of all; else the commoner outcome does, the newest first.
    told = max(
        group, key=lambda row: (row["marked_wrong_by"] is not None, row["count"] or 1, row["outcome"] == "worked")
    )
    name = told["scraper_name"] or ""
    kin, kin_by = kinship(asked, scrapers.get(name) or Scraper(name))
    error = None if likeness is None else max(likeness.get(row["id"], 0.0) for row in group)
    wanted = (error_type or "").casefold()
    same_type = float((told["error_type"] or "").casefold() == wanted) if wanted else None
    worked = worked_share(counts["worked"], counts["failed"])
    parts = (
        (error, ERROR_WEIGHT), (same_type, TYPE_WEIGHT), (kin, KIN_WEIGHT), (worked, WORKED_WEIGHT),
    )  # fmt: skip
    weights = sum(weight for part, weight in parts if part is not None)
    score = sum(part * weight for part, weight in parts if part is not None) / weights
    return Judged(told, score, error, same_type, kin, kin_by, worked, counts["worked"], counts["failed"])
