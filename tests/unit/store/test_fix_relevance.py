"""The ranking of fixes on a made-up but sizeable history, where it is known which fix helps; and its parts.

The history: scrapers of several sources fail in ways that have one cause and one remedy each; the messages differ
from one time to the next, as they do in life. Some remedies were tried and failed, some are wrong, and every other
scraper reports its own, later. Whoever ranks by time alone finds hardly anything of it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shoal.embeddings.hash_model import HashModel
from shoal.store.commands import fix_change
from shoal.store.fix_ranking import Judged, Scraper, diff_hash, kinship, name_likeness, ranked, worked_share

T0 = datetime(2025, 1, 1, tzinfo=UTC)
SOURCES = ("NYISO", "CAISO", "ERCOT", "PJM", "ENTSOE", "AEMO")
KINDS = ("load_forecast", "lmp_prices", "outages", "wind_actual", "fuel_mix", "interchange", "reserves", "weather")
FORMATS = ("JSON", "CSV", "XML")
CAUSES = (
    ("KeyError", "KeyError: '{word}' in row {n}", "the field {word} was renamed, read the new name"),
    ("HTTPError", "403 Client Error: Forbidden for url https://{word}.example.org/api?page={n}",
     "send a user agent, the gateway refuses the default"),
    ("HTTPError", "429 Client Error: Too Many Requests for url https://{word}.example.org/v{n}",
     "wait for Retry-After between the pages"),
    ("JSONDecodeError", "Expecting value: line {n} column 1 (char 0) of {word}",
     "the source answers a maintenance page in HTML: retry later"),
    ("ReadTimeout", "HTTPSConnectionPool(host='{word}.example.org', port=443): Read timed out after {n} s",
     "ask for one day at a time"),
    ("ParserError", "Error tokenizing data. C error: Expected {n} fields in line 12, saw 9 ({word})",
     "skip the preamble of the file"),
    ("ValueError", "time data '{n}-13-2025' does not match format '%m-%d-%Y' of {word}",
     "the dates are day first since the summer"),
    ("SSLError", "certificate verify failed: unable to get local issuer certificate {word} ({n})",
     "bring the intermediate certificate"),
)  # fmt: skip


@dataclass
class History:
    """Rows as the table has them; `remedy`: (scraper, cause) -> ids of the fixes that help it; of its kin too."""

    rows: list[dict[str, Any]]
    scrapers: dict[str, Scraper]
    own: dict[tuple[str, int], set[str]]
    wrong: set[str]
    likeness_of: Any


def history(seed: int = 7) -> History:
    """600 and some reports of 48 scrapers."""
    rng, model = random.Random(seed), HashModel(256)
    scrapers = {
        f"{source.lower()}_{kind}": Scraper(
            f"{source.lower()}_{kind}", source, f"{source.lower()}_{kind}", kind, rng.choice(FORMATS)
        )
        for source in SOURCES
        for kind in KINDS
    }
    rows: list[dict[str, Any]] = []
    own: dict[tuple[str, int], set[str]] = {}
    wrong: set[str] = set()

    def report(scraper: str, cause: int, summary: str, diff: str, outcome: str, count: int, **more: Any) -> str:
        kind, message, _ = CAUSES[cause]
        word = scraper.split("_")[-1]
        row = {
            "id": f"f{len(rows)}", "scraper_name": scraper, "error_type": kind, "summary": summary, "diff": diff,
            "error_message": message.format(word=word, n=rng.randint(2, 9999)), "outcome": outcome, "count": count,
            "reported_at": T0 + timedelta(hours=rng.randint(0, 8000)), "marked_wrong_by": None,
        } | more  # fmt: skip
        rows.append(row)
        return str(row["id"])

    for scraper in scrapers:
        for cause in rng.sample(range(len(CAUSES)), 4):
            remedy = CAUSES[cause][2].format(word=scraper.split("_")[-1])
            good = report(scraper, cause, remedy, f"-old {cause}\n+{remedy}", "worked", rng.randint(1, 6))
            own.setdefault((scraper, cause), set()).add(good)
            # Later, and of no use: what failed, and what was found to be wrong.
            report(scraper, cause, "restarted it", "-x\n+restart", "failed", rng.randint(1, 3),
                   reported_at=T0 + timedelta(hours=8100 + len(rows)))  # fmt: skip
            if rng.random() < 0.3:
                wrong.add(report(scraper, cause, "pinned the library", "-y\n+pin", "worked", 9,
                                 marked_wrong_by="ann: hides it", reported_at=T0 + timedelta(hours=9000)))  # fmt: skip

    texts = [f"{row['error_type']} {row['error_message']} {row['summary']}" for row in rows]
    vectors = model.embed(texts, "query")

    def likeness_of(kind: str, message: str) -> dict[str, float]:
        vector = model.embed([f"{kind} {message}"], "query")[0]
        return {row["id"]: max(0.0, float(v @ vector)) for row, v in zip(rows, vectors, strict=True)}

    return History(rows, scrapers, own, wrong, likeness_of)


@pytest.fixture(scope="module")
def past() -> History:
    return history()


def ask(past: History, scraper: str, cause: int) -> list[Judged]:
    kind, message, _ = CAUSES[cause]
    text = message.format(word=scraper.split("_")[-1], n=54321)
    same = {row["id"]: fix_change(row) for row in past.rows}
    asked = past.scrapers[scraper]
    return ranked(past.rows, same, asked, past.scrapers, kind, past.likeness_of(kind, text))


def test_the_remedy_of_the_same_error_of_the_same_scraper_is_first_where_time_alone_finds_hardly_any(
    past: History,
) -> None:
    first, by_time = 0, 0
    for (scraper, cause), good in past.own.items():
        first += ask(past, scraper, cause)[0].row["id"] in good
        own = [row for row in past.rows if row["scraper_name"] == scraper]
        by_time += max(own, key=lambda row: row["reported_at"])["id"] in good
    asked = len(past.own)
    assert asked == 192
    assert first / asked >= 0.97
    assert by_time / asked <= 0.05, "else this history does not tell the rankings apart"


def test_a_scraper_that_never_failed_so_finds_the_remedy_that_its_kin_found(past: History) -> None:
    found = asked = 0
    for scraper in past.scrapers:
        for cause in range(len(CAUSES)):
            if (scraper, cause) in past.own:
                continue
            asked += 1
            top = ask(past, scraper, cause)[:3]
            helps = {fix for (_, same_cause), fixes in past.own.items() if same_cause == cause for fix in fixes}
            found += any(one.row["id"] in helps for one in top)
    assert asked == 192
    assert found / asked >= 0.95


def test_what_is_marked_wrong_is_last_however_often_it_was_said_to_work(past: History) -> None:
    for scraper, cause in [*past.own][:40]:
        marked = [one.row["id"] in past.wrong for one in ask(past, scraper, cause)]
        assert marked == sorted(marked)


def test_of_the_same_change_the_reports_are_one_candidate_that_tells_how_often_it_worked() -> None:
    base = {"scraper_name": "s", "error_type": "E", "error_message": "m", "summary": "x", "marked_wrong_by": None}
    rows = [
        {**base, "id": "a", "diff": "-a\n+b", "outcome": "worked", "count": 3, "reported_at": T0},
        {**base, "id": "b", "diff": "-a\n+b", "outcome": "failed", "count": 1, "reported_at": T0},
        {**base, "id": "c", "diff": "-a\n+c", "outcome": "failed", "count": 2, "reported_at": T0},
    ]
    same = {row["id"]: fix_change(row) for row in rows}
    best, other = ranked(rows, same, Scraper("s"), {}, None, None)
    assert (best.row["id"], best.reports_worked, best.reports_failed) == ("a", 3, 1)
    assert best.shown() == {
        "score": 0.815, "error": None, "error_type": None, "kinship": 1.0, "kin_by": ["scraper"], "worked": 0.667,
        "reports_worked": 3, "reports_failed": 1,
    }  # fmt: skip
    assert (other.row["id"], other.worked) == ("c", 0.25)


def test_the_hash_of_a_diff_is_of_what_it_changes() -> None:
    head = "diff --git a/x.py b/x.py\nindex 12ab..34cd 100644\n"
    one = f"{head}--- a/x.py\t2025-01-01\n+++ b/x.py\n@@ -1,2 +1,2 @@ def f\n-a\n+b\n"
    other = "--- a/x.py\n+++ b/x.py\r\n@@ -90,2 +91,2 @@ def f\n-a  \n+b\n\n"
    assert diff_hash(one) == diff_hash(other) != ""
    assert diff_hash(one) != diff_hash(other.replace("+b", "+c"))
    assert diff_hash(None) == diff_hash("") == diff_hash(" \n") == ""


def test_kinship_is_whole_only_with_oneself_and_says_what_is_shared() -> None:
    load = Scraper("nyiso_load", "NYISO", "nyiso_load", "load", "CSV")
    assert kinship(load, Scraper("NYISO_load"))[0] == 1.0
    near, by = kinship(load, Scraper("nyiso_load_hourly", "nyiso", "nyiso_load", "load", "CSV"))
    assert 0.7 < near < 1.0
    assert by == ("data_source", "dataset", "data_type", "file_format", "name")
    assert kinship(load, Scraper("wind"))[0] == 0.0
    assert name_likeness("nyiso_load_forecast", "nyiso-load") == pytest.approx(2 / 3)
    assert worked_share(0, 0) == 0.5
    assert worked_share(9, 0) > worked_share(1, 0) > worked_share(0, 1)
